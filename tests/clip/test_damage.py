"""Property-based: whatever is in a clip's files, reading gives a value or SpatialAvatarError, and never hangs."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatialavatar import files, tensor_files
from spatialavatar.clip import FrameIndex, TrackedClip, open_clip, validate_clip
from spatialavatar.clip.header import ClipHeader, check_header, header_from_json
from spatialavatar.clip.pictures import decode, encode, encoded_size
from spatialavatar.errors import SpatialAvatarError
from tests.builders.clips import tiny_clip, tiny_head, tiny_pictures

FOLDER = "memory://damage/clip"
FEW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-10, 10)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../etc/passwd", "/", "alpha", "none", "png", "0" * 64, 1e308, 5.0])
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


@pytest.fixture(scope="module")
def sound() -> dict[str, bytes]:
    """The files of a sound clip."""
    tiny_clip(FOLDER, instants=2, cameras=2, test_from=1, test_cameras=[1])
    names = ["clip.json", "params.safetensors", "images/000001_00.jpg", "masks/000001_00.png"]
    return {name: files.read_bytes(files.join(FOLDER, name)) for name in names}


def put(sound: dict[str, bytes], **changed: bytes) -> None:
    for name, data in {**sound, **changed}.items():
        files.write_bytes(files.join(FOLDER, name), data)


def read_everything() -> TrackedClip | None:
    try:
        clip = open_clip(FOLDER)
        assert isinstance(clip, TrackedClip)
        if clip.width == 32 and clip.height == 24:
            clip.frame(FrameIndex(min(1, clip.instants - 1), 0))
    except SpatialAvatarError as e:
        assert "\n" not in str(e)
        return None
    return clip


def array_bytes(clip: TrackedClip) -> dict[str, bytes | None]:
    tensors = {**vars(clip.params), **{name: getattr(clip, name) for name in CAMERA_ARRAYS}}
    return {name: None if value is None else value.numpy().tobytes() for name, value in tensors.items()}


CAMERA_ARRAYS = ("world_to_camera", "intrinsics", "face_box", "landmarks")


@FEW
@given(data=st.data())
def test_header_fields(sound: dict[str, bytes], data: st.DataObject) -> None:
    header: dict[str, Any] = json.loads(sound["clip.json"])
    for _ in range(data.draw(st.integers(1, 3))):
        holder = header.get("head") if data.draw(st.booleans()) else header
        holder = holder if isinstance(holder, dict) else header
        action = data.draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "add" or not holder:
            holder[data.draw(st.text(max_size=6))] = data.draw(values)
            continue
        key = data.draw(st.sampled_from(sorted(holder)))
        if action == "replace":
            holder[key] = data.draw(values)
        else:
            del holder[key]
    try:
        assert isinstance(header_from_json(header, "clip.json"), ClipHeader)
    except SpatialAvatarError as e:
        assert str(e).startswith("clip.json: ")
    faults, parsed = check_header(header)
    assert faults or parsed is not None


@FEW
@given(value=values)
def test_any_json_is_a_header_or_an_error(value: Any) -> None:
    faults, header = check_header(value)
    assert faults and header is None


@FEW
@given(
    name=st.sampled_from(["clip.json", "params.safetensors", "images/000001_00.jpg", "masks/000001_00.png"]),
    data=st.data(),
)
def test_bytes(sound: dict[str, bytes], name: str, data: st.DataObject) -> None:
    put(sound)
    before = open_clip(FOLDER)
    content = bytearray(sound[name])
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    put(sound, **{name: bytes(content)})
    clip = read_everything()
    try:
        faults = validate_clip(FOLDER, tiny_head())
    except SpatialAvatarError:
        assert clip is None
    else:
        assert faults or clip is not None
        check_believed(before, clip, bytes(content) if name == "clip.json" else None)
    put(sound)


def check_believed(before: TrackedClip, clip: TrackedClip | None, header: bytes | None) -> None:
    """What is read is what was written: the arrays bit for bit; of the header, a text for people to edit, exactly
    what it says (``header``: its changed bytes)."""
    if clip is None:
        return
    assert array_bytes(clip) == array_bytes(before)
    assert clip.header.to_json() == (before.header.to_json() if header is None else json.loads(header))


@FEW
@given(data=st.data())
def test_a_changed_bit_of_the_arrays_is_noticed(sound: dict[str, bytes], data: st.DataObject) -> None:
    content = bytearray(sound["params.safetensors"])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    put(sound)
    before = open_clip(FOLDER)
    put(sound, **{"params.safetensors": bytes(content)})
    clip, faults = read_everything(), validate_clip(FOLDER, tiny_head())
    put(sound)
    assert (clip is None) == bool(faults)
    check_believed(before, clip, None)


def test_arrays_without_a_hash_are_read(sound: dict[str, bytes]) -> None:
    """Other tools may write them."""
    put(sound)
    arrays, metadata = tensor_files.read_tensors(files.join(FOLDER, "params.safetensors"))
    del metadata["hash"]
    tensor_files.write_tensors(files.join(FOLDER, "params.safetensors"), arrays, metadata)
    assert open_clip(FOLDER).instants == 2
    put(sound)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[" * 100_000,
        b'{"format": "spatialavatar-clip", "version": ' + b"9" * 5000 + b"}",
        b'{"format": "spatialavatar-clip", "version": NaN}',
        b"\xff\xfe\x00",
        b"null",
    ],
    ids=["empty", "nested", "long number", "nan", "not utf-8", "null"],
)
def test_awkward_json(sound: dict[str, bytes], text: bytes) -> None:
    put(sound, **{"clip.json": text})
    with pytest.raises(SpatialAvatarError):
        open_clip(FOLDER)
    put(sound)


@FEW
@given(data=st.binary(max_size=200), start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
def test_any_bytes_as_picture(data: bytes, start: bytes) -> None:
    try:
        encoded_size(start + data)
        decode(start + data, 8, 8, color=True)
    except ValueError:
        pass


@FEW
@given(cut=st.floats(0, 0.999), kind=st.sampled_from(["jpg", "png"]))
def test_every_truncation_is_noticed(cut: float, kind: Any) -> None:
    data = encode(tiny_pictures(0, 0, 32, 24)[0], kind)
    with pytest.raises(ValueError):
        encoded_size(data[: int(cut * len(data))])
