"""Whose folder it is: what may be written into, what is removed, and what never is."""

from pathlib import Path

import pytest

from spatialavatar import files, tensor_files
from spatialavatar.avatar import write_avatar
from spatialavatar.avatar.folder import CHECKPOINT, CHECKPOINT_FORMAT, LOG, METRICS, claim_folder, clear_folder
from spatialavatar.errors import SpatialAvatarError
from tests.avatar.test_avatar import avatar

ELSES = ("gaussian-avatars/thesis.tex", METRICS, "point_cloud.ply", "features.safetensors", "avatar.json", CHECKPOINT)


def unfinished(folder: Path) -> None:
    tensor_files.write_tensors(folder / CHECKPOINT, {}, {"format": CHECKPOINT_FORMAT, "version": "1", "facts": "{}"})


@pytest.mark.parametrize("name", ELSES)
@pytest.mark.parametrize("force", [False, True])
def test_what_belongs_to_no_avatar_of_ours_is_kept(tmp_path: Path, name: str, force: bool) -> None:
    files.write_bytes(tmp_path / "a" / name, b'{"precious": 1}')
    files.write_bytes(tmp_path / "a" / "notes.txt", b"more")
    with pytest.raises(SpatialAvatarError, match="--force" if not force else r"which belong to no avatar"):
        claim_folder(tmp_path / "a", force)
    assert (tmp_path / "a" / name).read_bytes() == b'{"precious": 1}'


def test_force_writes_beside_what_is_never_touched(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a" / "notes.txt", b"years")
    claim_folder(tmp_path / "a", force=True)
    clear_folder(tmp_path / "a")
    assert files.list_folder(tmp_path / "a") == ["notes.txt"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_new_avatar_clears_what_the_old_one_left_and_no_more(tmp_path: Path, finished: bool) -> None:
    folder = tmp_path / "a"
    if finished:
        write_avatar(folder, avatar())
    else:
        unfinished(folder)
    kept = ["notes.txt", "gaussian-avatars/mine.txt"]
    gone = [LOG, METRICS, "point_cloud.ply", "gaussian-avatars/point_cloud.ply", "gaussian-avatars/flame_param.npz"]
    for name in (*kept, *gone):
        files.write_bytes(folder / name, b"x")
    with pytest.raises(SpatialAvatarError, match="--force"):
        claim_folder(folder)
    claim_folder(folder, force=True)
    clear_folder(folder)
    assert all((folder / name).exists() for name in kept) and not any((folder / name).exists() for name in gone)
    assert not (folder / CHECKPOINT).exists()
    files.remove(folder / "gaussian-avatars/mine.txt")
    clear_folder(folder)
    assert not (folder / "gaussian-avatars").exists()


def test_advice_is_what_the_command_can_do(tmp_path: Path) -> None:
    unfinished(tmp_path)
    with pytest.raises(SpatialAvatarError, match="unfinished refinement; go on with --resume, or start over"):
        claim_folder(tmp_path, resume=False)
    with pytest.raises(SpatialAvatarError, match="finish it with 'spatialavatar refine --resume'"):
        claim_folder(tmp_path)
    claim_folder(tmp_path, resume=True)
