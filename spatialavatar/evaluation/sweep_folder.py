"""The folder of a sweep, which ``ray_jobs.tune`` writes.

OUT/sweep.yaml                       the sweep, and the whole configuration of each trial
OUT/trials/NAME/                     a training run, and evaluation.json: its generator on held-out people
OUT/ended/NAME.json                  of a trial that has no evaluation: where it was stopped, or why it failed
OUT/tune/                            Ray Tune's own state
OUT/table.md, table.csv, sweep.png   what came of it
"""

from collections.abc import Sequence

SWEEP, TRIALS, ENDED, TUNE = "sweep.yaml", "trials", "ended", "tune"
EVALUATION = "evaluation.json"  # of a trial
MARKDOWN, CSV, PLOT = "table.md", "table.csv", "sweep.png"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last parts of keys, as lambda_sp of loss.lambda_sp, where they tell them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last)}
