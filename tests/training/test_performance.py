"""Times of steps, by a clock of the test's own."""

from collections.abc import Iterator

import pytest
import torch

from spatialavatar.training.performance import Meter


def test_means_over_the_steps_since_it_was_read() -> None:
    times: Iterator[float] = iter([0.0, 1.0, 1.5, 3.0, 4.0, 4.1, 8.0, 9.0, 9.0, 10.0])
    meter = Meter(torch.device("cpu"), lambda: next(times))
    for _ in range(2):  # 2 s, of them 0.5 for data; 4 s, of them 0.1
        meter.begin()
        meter.got_batch()
        meter.end()
    found = meter.read()
    assert found["step_seconds"] == pytest.approx(3.0) and found["data_seconds"] == pytest.approx(0.3)
    assert 0.05 < found["memory_gib"] < 1000 and "gpu_utilization" not in found
    meter.begin()
    meter.got_batch()
    meter.end()
    assert meter.read()["step_seconds"] == pytest.approx(1.0)


def test_read_before_any_step() -> None:
    assert Meter(torch.device("cpu")).read()["step_seconds"] == 0.0
