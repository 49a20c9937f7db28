"""Writes tests/training/golden_losses.json anew: ``python -m tests.training.record_golden``."""

import json
import tempfile
from pathlib import Path

from tests.builders.training import training_folder
from tests.training.test_step import GOLDEN, golden_run

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = training_folder(Path(name))
        losses = {f"phase{phase}": [round(x, 6) for x in golden_run(folder, phase)] for phase in (1, 2)}
    GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
