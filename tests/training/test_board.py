"""Event files on a disk and, copied whole, on a store."""

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spatialavatar import files
from spatialavatar.training.board import Board


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_curves_and_pictures_on_a_disk(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 0)
    board.scalars({"train/loss": 2.0}, 1)
    board.scalars({"train/loss": 1.0}, 2)
    board.picture("held_out/samples", np.zeros((4, 4, 3), np.uint8), 2)
    board.close()
    found = read(tmp_path / "board")
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert found.Tags()["images"] == ["held_out/samples"]


def test_a_store_has_all_that_was_published_and_in_the_end_everything(tmp_path: Path) -> None:
    target = "memory://test-board/tensorboard"
    board = Board(target, 0)
    board.scalars({"train/loss": 2.0}, 1)
    board.publish()

    def copied(name: str) -> list[float]:
        folder = tmp_path / name
        folder.mkdir()
        for file in files.list_folder(target):
            (folder / file).write_bytes(files.read_bytes(files.join(target, file)))
        return [event.value for event in read(folder).Scalars("train/loss")]

    assert copied("early") == [2.0]
    board.scalars({"train/loss": 1.0}, 2)
    assert copied("between") == [2.0]
    board.close()
    assert copied("late") == [2.0, 1.0]
