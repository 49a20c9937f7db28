"""The benchmark page: all records of benchmarks/results beside published numbers, as docs/benchmarks.md.

    python benchmarks/page.py

Reads the records and ``published.py`` and measures nothing: the same records give the same page. Run it after a new
record, and commit both; a test holds the page to the records.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import published
from benchmarks.page_records import BENCHMARKS, Records, table
from benchmarks.page_sections import fleet, generator, rasterizer, refinement, refinement_quality, stream, training

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "benchmarks.md"

INTRODUCTION = f"""# Benchmarks

<!-- Written by python benchmarks/page.py from benchmarks/results and benchmarks/published.py: change those. -->

All that was measured, beside what was published. A number of ours stands in a record: a JSON file in
[benchmarks/results](../benchmarks/results) with machine, versions, commit and command. The published numbers, those of
other methods, too, are quoted from the method's paper (SpatialAvatar-0, {published.SOURCE}). They are of other
hardware, those of quality of other data, too, and none of them was measured by us."""

LEGEND = """The keys lead into `results` of the record; times are medians. `CLIP` and `HEAD` are a tracked clip and its
head ([data.md](data.md)), `DIR` is a folder for what the run leaves. Each script explains itself with `--help`."""

# What CUDA would add to a record of that name; the other benchmarks are of the CPU.
ON_CUDA = {
    "rasterizer": "gsplat, forward and backward, beside the CPU splatter",
    "refinement": "an iteration, four subjects at once, frames/s and device memory",
    "anti_spike_speaker": "quality after refinement with gsplat, and its time",
    "generator": "an avatar in fp32, bf16 and with torch.compile; training steps of both phases at full size",
    "training": "the small Phase 1, plain and on Ray with one GPU and with two",
    "fleet_run": "subjects an hour with workers that share GPUs",
}


@dataclass(frozen=True)
class Row:
    """One line of the overview: a number of ours by its place in the record, and what was published."""

    what: str
    name: str
    keys: tuple[str | int, ...]
    show: Callable[[float], str]
    published: str = "none known"

    def cells(self, records: Records) -> list[str]:
        record = records[self.name]
        place = f"{records.where(record)}, {record.link}: `{' > '.join(str(key) for key in self.keys)}`"
        return [self.what, self.show(record.at(*self.keys)), place, self.published, f"`{record.command}`"]


def ms(value: float) -> str:
    return f"{value:.1f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def db(value: float) -> str:
    return f"{value:.2f} dB"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"


def of(unit: str) -> Callable[[float], str]:
    return lambda value: f"{value:.4g} {unit}"


def overview() -> list[Row]:
    peers = {name: values for name, values in published.EFFICIENCY.items() if not name.startswith("SpatialAvatar-0")}
    whole = published.REFINEMENT_SECONDS / published.REFINEMENT_ITERATIONS
    refined, gagavatar, one_pass = "SpatialAvatar-0, refined", "GAGAvatar", "SpatialAvatar-0, one pass"
    speed, size = ("sizes", "512"), "512 x 512, 65,536 Gaussians"
    spikes = ("anti_spike_speaker", ("runs", "freeze+clamp+aspect", "max_aspect_ratio"))
    return [
        Row(
            "a picture of 58,173 Gaussians, 512 x 512, without posing",
            "rasterizer",
            ("512/58K", "cpu", "forward", "median_ms"),
            ms,
            f"{published.FRAME_MILLISECONDS} ms, RTX 3090 (Table 3, which does not say whether posing is in it)",
        ),
        Row("the same, forward and backward", "rasterizer", ("512/58K", "cpu", "total", "median_ms"), ms),
        Row(
            f"a finished avatar, posing included, {size}",
            "refinement",
            (*speed, "frames_per_second"),
            of("frames/s"),
            f"{published.EFFICIENCY[refined][2]} frames/s, 58,173 Gaussians, RTX 3090 (Table 3); there: "
            + ", ".join(f"{name} {values[2]}" for name, values in peers.items()),
        ),
        Row(
            f"one refinement iteration, {size}",
            "refinement",
            (*speed, "milliseconds", "whole iteration", 0),
            ms,
            f"{1000 * whole:.0f} ms, RTX 3090 (Table 3: its time over its iterations)",
        ),
        Row(
            f"{published.REFINEMENT_ITERATIONS:,} of them (the median times {published.REFINEMENT_ITERATIONS:,})",
            "refinement",
            (*speed, "seconds_for_10000_iterations"),
            minutes,
            f"{published.EFFICIENCY[refined][1]}, RTX 3090 (Table 3); there, for their own number of iterations: "
            + ", ".join(f"{name} {values[1]}" for name, values in peers.items()),
        ),
        Row(
            "held-out PSNR after 2,000 iterations, 256 x 256, one real clip",
            "anti_spike_speaker",
            ("runs", "freeze+clamp+aspect", "psnr"),
            db,
            f"{published.PER_SUBJECT[refined][0]} dB after 10,000, GeoAvatar {published.PER_SUBJECT['GeoAvatar'][0]} "
            "(Table 4); other clips, not comparable",
        ),
        Row(
            "largest aspect ratio of a Gaussian there",
            *spikes,
            lambda value: f"{value:.2f}",
            f"{published.ANTI_SPIKE['all three'][3]} (B.6)",
        ),
        Row(
            "the same without the anti-spike parts",
            "anti_spike_speaker",
            ("runs", "none", "max_aspect_ratio"),
            lambda value: f"{value:,.0f}",
            f"{published.ANTI_SPIKE['without clamp'][3]} without the clamp (B.6)",
        ),
        Row(
            "one portrait to an avatar and a picture of it, full size, random weights",
            "generator",
            ("reconstruction", "K = 1", "total_ms"),
            ms,
            f"about {published.AVATAR_MILLISECONDS:.0f} ms, RTX 3090 (section 4.3)",
        ),
        Row(
            "held-out PSNR of one portrait's avatar, small generator, synthetic people",
            "generator_learning",
            ("after_phase2", "K = 1", "psnr"),
            db,
            f"{published.ZERO_SHOT[one_pass][0]} dB on VFHQ, {published.ZERO_SHOT[one_pass][3]} on HDTF, GAGAvatar "
            f"{published.ZERO_SHOT[gagavatar][0]} and {published.ZERO_SHOT[gagavatar][3]} (Tables 1, 2); "
            "other people, not comparable",
        ),
        Row(
            "training at full size, Phase 1, batch of one",
            "generator",
            ("training", "phase1.yaml", "samples_per_second", "data beside the step"),
            of("samples/s"),
            f"at least {published.LEAST_SAMPLES_PER_SECOND:.1f} samples/s on one H100 NVL: Phase 1 is "
            f"{published.PHASE1_STEPS // 1000} K steps of {published.PHASE1_BATCH}, both phases took "
            f"{published.TRAINING_DAYS} days (4.2, A.2)",
        ),
        Row(
            "training of the small Phase 1, plain loop",
            "training",
            ("variants", "plain loop", "samples_per_second"),
            of("samples/s"),
        ),
        Row(
            "the same on Ray with DeepSpeed, one worker",
            "training",
            ("variants", "Ray, 1 worker, ZeRO 0", "of_plain_loop"),
            of("of the plain loop"),
        ),
        Row(
            "frames with mattes prepared for training by one core, 512 x 512",
            "stream",
            ("alpha", "prepared on one core, frames/s"),
            of("frames/s"),
        ),
        Row(
            "fleet: subjects of 50 ms scheduled on 8 workers, of 160 a second",
            "fleet",
            ("whole", "subjects_per_second"),
            of("subjects/s"),
        ),
        Row(
            "fleet: subjects refined, 1,000 iterations, 256 x 256",
            "fleet_run",
            ("subjects_per_hour",),
            of("subjects/hour"),
        ),
    ]


def never_measured(records: Records) -> str:
    first = (
        "The overview and the sections tell what was measured without a GPU. With CUDA there is:"
        if any(record.gpus for record in records.all)
        else "**No CUDA number exists yet.** Every record was made on CPUs. These commands, run as they are on a "
        "machine with CUDA, are there to make one:"
    )
    rows = [
        [
            what,
            f"`{BENCHMARKS[name][0]}`",
            ", ".join(record.link for record in records.on_cuda(name)) or "never measured",
        ]
        for name, what in ON_CUDA.items()
    ]
    cores = max(record.document["machine"]["cores"] for record in records.all)
    return "\n\n".join(
        [
            "## What was never measured",
            first,
            table(["with CUDA", "command", "record"], rows),
            "Nor was, on any machine:\n\n"
            "- quality on the paper's data sets (VFHQ, HDTF, CelebV-HQ, NeRSemble, the SplattingAvatar clips), so no "
            "quality here is to be compared with a published one;\n"
            "- a trained generator of the paper's size: its times here are with random weights;\n"
            "- CSIM, AED, APD and AKD, which need networks of others;\n"
            f"- a cluster of several machines, and a machine of more than {cores} cores.",
        ]
    )


def machines(records: Records) -> str:
    return "\n\n".join(
        [
            "## Machines",
            table(["", "as a record describes it"], ([letter, text] for text, letter in records.machines.items())),
            "The machines were shared with other work. Compare figures of one record with each other rather than "
            "across records; [all records](#all-records) has the load when each began.",
        ]
    )


def listing(records: Records) -> str:
    header = ["record", "what", "where and when", "load", "torch", "command, as typed at that commit"]
    rows = [
        [
            record.link,
            BENCHMARKS[record.name][1],
            records.where(record),
            record.document["machine"]["load_1min"],
            record.document["versions"]["torch"],
            f"`{record.document['command']}`",
        ]
        for record in records.all
    ]
    return "\n\n".join(["## All records", table(header, rows)])


def page(folder: Path = RESULTS) -> str:
    """The page as text. Raises KeyError for a record whose name or contents it does not know."""
    records = Records(folder)
    header = ["what", "ours", "where it stands", "published, their hardware, not measured by us", "command"]
    sections = (
        never_measured,
        machines,
        rasterizer,
        refinement,
        refinement_quality,
        generator,
        training,
        stream,
        fleet,
    )
    parts = [
        INTRODUCTION,
        table(header, (row.cells(records) for row in overview())),
        LEGEND,
        *(section(records) for section in (*sections, listing)),
    ]
    paragraphs = "\n\n".join(parts).split("\n\n")
    return "\n\n".join(map(wrapped, paragraphs)) + "\n"


def wrapped(paragraph: str) -> str:
    """Prose in lines of 120 characters, like the other pages; tables, lists, headings and pictures as they are."""
    prose = not paragraph.startswith(("|", "-", "#", "!", "<"))
    return textwrap.fill(paragraph, 120, break_on_hyphens=False, break_long_words=False) if prose else paragraph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    PAGE.write_text(page())
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
