"""The sheet that ``clip inspect`` draws."""

from pathlib import Path

import pytest

from spatialavatar.clip import FrameIndex
from spatialavatar.clip.inspect import inspect_clip
from spatialavatar.clip.pictures import decode, encoded_size
from spatialavatar.errors import SpatialAvatarError
from tests.builders.clips import tiny_clip, tiny_head


def test_inspection_sheet(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip", cameras=2, width=64, height=48)
    shown = inspect_clip(clip, tiny_head(), tmp_path / "sheet.png", [0, FrameIndex(3, 1)])
    assert shown == [(0, 0), (0, 1), (3, 1)]
    data = (tmp_path / "sheet.png").read_bytes()
    size = encoded_size(data)
    sheet = decode(data, size.width, size.height, color=True).astype(int)
    # the middle panel of the first row: the subject's left, orange, on the right
    width, height = 256, 192
    top = size.height - 3 * (height + 2)
    panel = sheet[top : top + height, width + 2 : 2 * width + 2]
    orange = panel[..., 0] - panel[..., 2]
    assert orange[80:110, 140:150].mean() > 20 and orange[80:110, 106:116].mean() < -20
    with pytest.raises(SpatialAvatarError, match="no frame at instant 9"):
        inspect_clip(clip, tiny_head(), tmp_path / "other.png", [9])
    assert not (tmp_path / "other.png").exists()
