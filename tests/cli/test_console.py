"""What the commands share: devices as people name them."""

import pytest
import torch

from spatialavatar.cli.console import choose_device
from spatialavatar.errors import SpatialAvatarError


@pytest.mark.parametrize(
    "name", ["", "gpu", "cpu:3", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "mps", "cuda:²", "CUDA"]
)
def test_what_is_no_device_is_named(name: str) -> None:
    with pytest.raises(SpatialAvatarError, match="expected auto, cpu, cuda"):
        choose_device(name)


def test_devices_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(SpatialAvatarError, match="no CUDA device here"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1") and choose_device("auto").type == "cuda"
    with pytest.raises(SpatialAvatarError, match=r"--device cuda:2: this machine has cuda:0\.\.1"):
        choose_device("cuda:2")
