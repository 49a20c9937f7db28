"""Who is to be refined: manifests, folders, shards."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spatialavatar import files
from spatialavatar.clip.header import is_identity
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.subjects import (
    FleetSubject,
    clip_head,
    id_of,
    open_subject,
    read_subjects,
    source_version,
)
from spatialavatar.head import HeadReference
from spatialavatar.shards.manifest import write_manifest
from tests.builders.clips import tiny_clip, tiny_head
from tests.builders.shards import tiny_shards, tiny_take, write_shard


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=120))
@example("a" * 101)
@example("..")
def test_any_key_has_an_id_of_its_own(key: str) -> None:
    assert is_identity(id_of(key))
    assert (id_of(key) == key) == is_identity(key)
    assert id_of(key + "/") != id_of(key)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SpatialAvatarError, match="no such file"):
        read_subjects(tmp_path / "m.csv")
    with pytest.raises(SpatialAvatarError, match="no such folder"):
        read_subjects(tmp_path / "clips")
    with pytest.raises(SpatialAvatarError, match=r"no subject there; expected a manifest \(.parquet, .csv, .jsonl\)"):
        read_subjects(tmp_path)


def test_a_folder_above_clips(tmp_path: Path) -> None:
    for name in ("ben", "anna", "deep/er/c", "odd name#1"):
        tiny_clip(tmp_path / name, instants=1)
    (tmp_path / "notes").mkdir()
    listing = read_subjects(f"{tmp_path}/")
    odd = id_of("odd name%231")
    assert {s.id: s.clip for s in listing.subjects} == {
        "anna": f"{tmp_path}/anna",
        "ben": f"{tmp_path}/ben",
        id_of("deep/er/c"): f"{tmp_path}/deep/er/c",
        odd: f"{tmp_path}/odd name#1",
    }
    assert listing.version == source_version(tmp_path) == ""
    for subject in listing.subjects:
        assert open_subject(subject).location == subject.clip
        assert clip_head(subject)[0] == HeadReference.of(tiny_head())


ODD_KEYS = ["plain", "people/9#2-of-3", "people/9#3-of-3", "ä b", "x%23y", ".hidden"]


@pytest.mark.parametrize("name", ["set", "set #1"])
def test_a_data_set_of_shards(tmp_path: Path, name: str) -> None:
    """Keys may hold '#', for a folder may hold several clips, and so may the data set's folder."""
    folder = tmp_path / name
    made = {key: tiny_take(number, instants=1) for number, key in enumerate(ODD_KEYS)}
    write_manifest(folder, [write_shard(folder, "a", made)])
    listing = read_subjects(folder)
    assert [(s.id, s.clip) for s in listing.subjects] == [(id_of(key), f"{folder}#{key}") for key in ODD_KEYS]
    assert listing.subjects[0].id == "plain" and listing.version == source_version(folder) != ""
    for subject, clip in zip(listing.subjects, made.values()):
        assert open_subject(subject).identity == clip.identity
        assert clip_head(subject)[0] == HeadReference.of(tiny_head())


def test_a_manifest_that_names_clips_in_shards(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "set", clips=2, instants=1)
    (tmp_path / "people.csv").write_text("id,clip\na,set#clip1\n")
    [subject] = read_subjects(tmp_path / "people.csv").subjects
    assert open_subject(subject).identity == "tiny1"
    for clip, said in (("set#clip9", "no clip with the key 'clip9'"), ("sets#clip1", "no data set of shards")):
        with pytest.raises(SpatialAvatarError, match=said):
            open_subject(FleetSubject("a", f"{tmp_path}/{clip}"))
    with pytest.raises(SpatialAvatarError, match="no such folder"):
        open_subject(FleetSubject("a", f"{tmp_path}/gone"))


def test_shards_that_are_written_again(tmp_path: Path) -> None:
    """The same clip is found where it is now; another one under its key is refused, and is another subject."""
    tiny_shards(tmp_path, clips=2, instants=1)
    first, second = read_subjects(tmp_path).subjects
    version = source_version(tmp_path)
    assert open_subject(second).identity == "tiny1"
    files.remove(tmp_path / "shards")
    write_manifest(tmp_path, [write_shard(tmp_path, "z", {"clip1": tiny_take(1, instants=1), "clip0": tiny_take(7)})])
    assert open_subject(second).identity == "tiny1"
    with pytest.raises(SpatialAvatarError, match=r"#clip0: is another clip than when this run began"):
        open_subject(first)
    again = {subject.id: subject for subject in read_subjects(tmp_path).subjects}
    assert again["clip1"] == second and again["clip0"] != first
    assert source_version(tmp_path) != version
