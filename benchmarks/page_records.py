"""What the benchmark page reads: the records of benchmarks/results, and what each of their names stands for."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FROM_PAGE = "../benchmarks/results"  # from docs/

# Each name of a record: what a person types today to make one, and what it holds.
SWEEP = "python benchmarks/refine_sweep.py CLIP --head HEAD --variants benchmarks/variants"
ROUND_ONE = f"{SWEEP}/first_round.yaml --name refine_sweep_NAME"
ROUND_TWO = f"{SWEEP}/second_round.yaml --name refine_sweep_NAME_second_round"
FULL_SIZE = f"{SWEEP}/full_size.yaml --name refine_sweep_NAME_full_size"
BENCHMARKS: dict[str, tuple[str, str]] = {
    "rasterizer": ("python benchmarks/rasterizer.py", "forward and backward of the splatter by stage"),
    "refinement": ("python benchmarks/refinement.py", "one refinement iteration by stage, memory, frames/s"),
    "anti_spike_speaker": (f"{SWEEP}/anti_spike.yaml --name anti_spike_NAME", "anti-spike parts on and off, real clip"),
    "refine_sweep_speaker_full_size": (FULL_SIZE, "the position rate at full size, real clip"),
    "refine_sweep_speaker_second_round": (ROUND_TWO, "the sweep that chose the defaults, round two, real clip"),
    "refine_sweep_synthetic_second_round": (ROUND_TWO, "the same, synthetic clip"),
    "refine_sweep_speaker": (ROUND_ONE, "the sweep that chose the defaults, round one, real clip"),
    "refine_sweep_synthetic": (ROUND_ONE, "the same, synthetic clip"),
    "generator": ("python benchmarks/generator.py --full", "one reconstruction and one training step by pieces"),
    "generator_learning": ("python benchmarks/generator_learning.py --work DIR", "both phases in the small, and after"),
    "generator_ablation": ("python benchmarks/generator_ablation.py --work DIR", "both phases without each part"),
    "training": ("python benchmarks/training.py --work DIR", "the plain training loop against Ray with DeepSpeed"),
    "stream": ("python benchmarks/stream.py --work DIR", "shards to training batches"),
    "fleet": ("python benchmarks/fleet.py --work DIR", "what scheduling 10,000 subjects costs"),
    "fleet_run": ("python benchmarks/fleet_run.py --clip CLIP --head HEAD --work DIR", "a whole fleet, from S3 to S3"),
}
ORDER = list(BENCHMARKS)


@dataclass(frozen=True)
class Record:
    """One file of benchmarks/results."""

    file: str
    document: dict[str, Any]

    def at(self, *keys: str | int) -> Any:
        """What stands under these keys of ``results``."""
        value = self.document["results"]
        for key in keys:
            value = value[key]
        return value

    @property
    def name(self) -> str:
        return str(self.document["name"])

    @property
    def command(self) -> str:
        """Of today; the record has that of its commit."""
        return BENCHMARKS[self.name][0]

    @property
    def link(self) -> str:
        return f"[{self.file.removesuffix('.json')}]({FROM_PAGE}/{self.file})"

    @property
    def day(self) -> str:
        return str(self.document["date"])[:10]

    @property
    def gpus(self) -> list[str]:
        return list(self.document["machine"]["gpus"])

    @property
    def hardware(self) -> str:
        m = self.document["machine"]
        gpus = ", ".join(self.gpus) or "no GPU"
        return f"{m['processor']}, {m['vector_extensions']}, {m['cores']} cores, {m['memory_gib']} GiB, {gpus}"

    @property
    def when(self) -> str:
        return f"{self.day}, commit {str(self.document['commit'])[:7]}"


class Records:
    """All records of a folder. By name: the newest that was measured without a GPU, which is what the sections tell.

    Raises KeyError for a record whose name BENCHMARKS lacks.
    """

    def __init__(self, folder: Path) -> None:
        records = [Record(file.name, json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))]
        for record in records:
            if record.name not in BENCHMARKS:
                raise KeyError(f"{record.file}: say in BENCHMARKS of benchmarks/page_records.py what {record.name} is")
        self.all = sorted(records, key=lambda r: (ORDER.index(r.name), r.document["date"]))
        hardware = dict.fromkeys(record.hardware for record in sorted(records, key=lambda r: r.document["date"]))
        self.machines = {description: chr(ord("A") + number) for number, description in enumerate(hardware)}

    def __getitem__(self, name: str) -> Record:
        return [record for record in self.all if record.name == name and not record.gpus][-1]

    def on_cuda(self, name: str) -> list[Record]:
        return [record for record in self.all if record.name == name and record.gpus]

    def where(self, record: Record) -> str:
        return f"machine {self.machines[record.hardware]}, {record.when}"

    def source(self, *names: str) -> str:
        """What stands under a heading: which records, where and when they were made, how to repeat them."""
        return "\n".join(f"- {self[n].link}: {self.where(self[n])}; `{self[n].command}`" for n in names)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])
