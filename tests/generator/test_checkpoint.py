"""A generator on disk: what comes back is what was written, and what does not belong is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from spatialavatar import tensor_files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import (
    CHECKPOINTS,
    COMPLETE,
    FILE,
    build_generator,
    complete_checkpoints,
    find_generator,
    load_weights,
    read_facts,
    read_generator,
    read_weights,
    write_generator,
)
from spatialavatar.generator.generator import Generator
from spatialavatar.head import HeadInfo, HeadModel, write_head
from spatialavatar.head.model import ARRAYS
from tests.builders.clips import tiny_head
from tests.builders.generators import awaken, tiny_drivers, tiny_generator, tiny_generator_config, tiny_sources

HEAD = tiny_head()
SMALL: dict[str, Any] = {"backbone": "vit_small_patch16_dinov3", "architecture": {}}


def shown(generator: Generator) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        decoded = generator(tiny_sources(HEAD, 2, [1, 2]), *tiny_drivers(HEAD, 2))
    return decoded.gaussians.tensors()


def other_head(**changes: Any) -> HeadModel:
    """The tiny head with some arrays changed."""
    arrays = {name: changes.get(name, getattr(HEAD, name).numpy()) for name in ARRAYS}
    info: HeadInfo = HEAD.info
    return write_head("memory://generator/other.head.safetensors", info, arrays)


def refused(match: str, act: Callable[[], Any]) -> str:
    with pytest.raises(SpatialAvatarError, match=match) as error:
        act()
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], Any]) -> None:
    """Change tensors or description of a file, and put it back as if it had been written so."""
    arrays, metadata = tensor_files.read_tensors(path)
    facts = json.loads(metadata["description"])
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays, facts)
    description = json.dumps(facts)
    digest = tensor_files.content_hash(arrays, description)
    tensor_files.write_tensors(path, arrays, {**metadata, "description": description, "hash": digest})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("generator") / FILE
    write_generator(path, awaken(tiny_generator(HEAD)), {"phase": 1, "step": 40})
    return path.read_bytes()


@pytest.fixture
def file(written: bytes, tmp_path: Path) -> Path:
    path = tmp_path / FILE
    path.write_bytes(written)
    return path


@pytest.fixture(scope="module")
def encoder_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("encoder") / "small.safetensors"
    safetensors.torch.save_file(timm.create_model(SMALL["backbone"], num_classes=0).state_dict(), path)
    return path


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "attention", "encoder": {"frozen": False}}, {"decoder": {"residual": False, "color_channels": 32}}],
    ids=["plain", "attention, unfrozen", "no residual, 32 channels"],
)
def test_round_trip_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    generator = awaken(tiny_generator(HEAD, **changes))
    digest = write_generator(tmp_path / FILE, generator, {"phase": 2, "licence": "CC-BY-4.0"})
    torch.manual_seed(99)  # what the reader makes before it loads is other weights
    found, facts = read_generator(tmp_path / FILE, HEAD)
    assert found.config == generator.config == facts.config
    assert facts.hash == digest and facts.layout_fingerprint == generator.layout.fingerprint
    assert facts.head.hash == HEAD.content_hash and facts.head.licence == HEAD.info.licence
    assert facts.training["phase"] == 2 and facts.training["licence"] == "CC-BY-4.0"
    assert not found.training and found.encoder.checksum() == facts.encoder_checksum
    for name, value in generator.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert {n for n, p in found.named_parameters() if p.requires_grad} == {
        n for n, p in generator.named_parameters() if p.requires_grad
    }
    for name, value in shown(generator.eval()).items():
        assert torch.equal(shown(found)[name], value), name


def test_equal_generators_make_equal_files(tmp_path: Path) -> None:
    digests = [write_generator(tmp_path / name, tiny_generator(HEAD), {"step": 1}) for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() and digests[0] == digests[1]
    assert write_generator(tmp_path / "c", tiny_generator(HEAD, seed=1), {"step": 1}) != digests[0]


def test_a_store_by_url() -> None:
    generator = tiny_generator(HEAD)
    write_generator(f"memory://generator/run/{FILE}", generator, {})
    assert read_generator("memory://generator/run", HEAD)[0].config == generator.config


# what does not belong


def test_another_head(file: Path) -> None:
    moved = other_head(template=HEAD.template.numpy() + 0.01)
    refused(f"{FILE}: made with head tiny", lambda: read_generator(file, moved))


def test_another_layout(file: Path) -> None:
    rewrite(file, lambda _, facts: facts.update(layout_fingerprint="0123456789abcdef"))
    refused(f"{FILE}: made for UV layout 0123456789ab", lambda: read_generator(file, HEAD))


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("decoder", "color_channels", 32, "decoder.heads.color"),
        ("decoder", "residual", False, "decoder.residual"),
        ("decoder", "feature_channels", 9, "decoder."),
        ("encoder", "feature_channels", 7, "dpt.output"),
        ("encoder", "architecture", {"embed_dim": 64, "depth": 4, "num_heads": 2}, "dpt|encoder"),
        ("unet", "channels", 4, "unet."),
    ],
)
def test_tensors_of_another_configuration(file: Path, section: str, key: str, value: Any, named: str) -> None:
    rewrite(file, lambda _, facts: facts["config"][section].update({key: value}))
    text = refused(f"{FILE}: holds .*({named})", lambda: read_generator(file, HEAD))
    assert "another configuration" in text


def test_an_unknown_setting(file: Path) -> None:
    rewrite(file, lambda _, facts: facts["config"].update(tomorrow=1))
    refused(f"{FILE}: its description is not readable .*tomorrow", lambda: read_generator(file, HEAD))


@pytest.mark.parametrize("drop", ["config", "head", "encoder_checksum", "layout_fingerprint", "training"])
def test_a_description_that_lacks_something(file: Path, drop: str) -> None:
    rewrite(file, lambda _, facts: facts.pop(drop))
    refused(f"{FILE}: its description is not readable", lambda: read_generator(file, HEAD))


def test_a_missing_and_an_additional_tensor(file: Path, written: bytes) -> None:
    def lose(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        del arrays["unet.constant"]

    def gain(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        arrays["more"] = np.zeros(3, np.float32)

    rewrite(file, lose)
    refused(r"holds nothing for unet\.constant", lambda: read_generator(file, HEAD))
    file.write_bytes(written)
    rewrite(file, gain)
    refused(r"holds \(3,\) for more, this generator has nothing", lambda: read_generator(file, HEAD))


# damage


def test_a_changed_tensor(file: Path, written: bytes) -> None:
    """One bit, anywhere among the tensors."""
    start = 8 + int.from_bytes(written[:8], "little")
    for offset in np.linspace(start, len(written) - 1, 5).astype(int):
        damaged = bytearray(written)
        damaged[offset] ^= 0x10
        file.write_bytes(damaged)
        refused(f"{FILE}: does not hold what it was written with", lambda: read_generator(file, HEAD))


def test_a_changed_description(file: Path) -> None:
    """Equal tensors mean something else under other bounds."""
    arrays, metadata = tensor_files.read_tensors(file)
    changed = metadata["description"].replace('"scale_bound": 10.0', '"scale_bound": 90.0')
    assert changed != metadata["description"]
    tensor_files.write_tensors(file, arrays, {**metadata, "description": changed})
    refused(f"{FILE}: does not hold what it was written with", lambda: read_generator(file, HEAD))


@pytest.mark.parametrize("keep", [0, 5, 8, 200, 0.5, 0.999])
def test_a_truncated_file(file: Path, written: bytes, keep: float) -> None:
    file.write_bytes(written[: int(keep * len(written)) if isinstance(keep, float) else keep])
    refused(FILE, lambda: read_generator(file, HEAD))


def test_not_ours(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    refused(
        "theirs.safetensors: not a generator of ours", lambda: read_generator(tmp_path / "theirs.safetensors", HEAD)
    )
    (tmp_path / "text.safetensors").write_text("a generator, honestly")
    refused("text.safetensors: not a readable", lambda: read_generator(tmp_path / "text.safetensors", HEAD))
    tensor_files.write_tensors(tmp_path / "avatar.safetensors", {}, {"format": "spatialavatar-avatar", "version": "1"})
    refused("avatar.safetensors: not a generator of ours", lambda: read_facts(tmp_path / "avatar.safetensors"))


def test_another_version(file: Path) -> None:
    arrays, metadata = tensor_files.read_tensors(file)
    tensor_files.write_tensors(file, arrays, {**metadata, "version": "7"})
    refused(f"{FILE}: generator format version 7, this program reads 1", lambda: read_facts(file))


# encoder weights that stay where they are


@pytest.fixture
def with_file(encoder_weights: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A generator on a backbone from a file, and that file."""
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(encoder_weights.read_bytes())
    generator = awaken(tiny_generator(HEAD, encoder={**SMALL, "weights": str(weights)}))
    write_generator(tmp_path / FILE, generator, {})
    return tmp_path / FILE, weights


def test_a_frozen_backbone_from_a_file_is_not_copied(with_file: tuple[Path, Path]) -> None:
    path, weights = with_file
    assert path.stat().st_size < weights.stat().st_size / 20
    assert not [name for name in tensor_files.read_tensors(path)[0] if "backbone" in name]
    found, facts = read_generator(path, HEAD)
    expected = safetensors.torch.load_file(weights)
    for name, value in found.encoder.backbone.state_dict().items():
        assert torch.equal(value, expected[name])
    assert facts.encoder_checksum == found.encoder.checksum()


def test_encoder_weights_that_moved_or_changed(with_file: tuple[Path, Path], tmp_path: Path) -> None:
    path, weights = with_file
    moved = weights.rename(tmp_path / "moved.safetensors")
    refused(r"encoder\.weights .*encoder.safetensors: no such file", lambda: read_generator(path, HEAD))
    found, facts = read_generator(path, HEAD, encoder_weights=str(moved))
    assert found.config.encoder.weights == str(moved) and facts.config.encoder.weights == str(weights)
    state = safetensors.torch.load_file(moved)
    state["blocks.7.mlp.fc1.bias"][3] += 1e-3
    safetensors.torch.save_file(state, weights)
    refused(f"{FILE}: was trained on encoder weights", lambda: read_generator(path, HEAD))


def test_a_trained_backbone_needs_no_other_file(encoder_weights: Path, tmp_path: Path) -> None:
    """It started from a file and was trained: the generator's file holds it."""
    start = tmp_path / "encoder.safetensors"
    start.write_bytes(encoder_weights.read_bytes())
    generator = tiny_generator(HEAD, encoder={**SMALL, "weights": str(start), "frozen": False})
    with torch.no_grad():
        generator.encoder.backbone.cls_token += 1
    write_generator(tmp_path / FILE, generator, {})
    start.unlink()
    found, _ = read_generator(tmp_path / FILE, HEAD)
    assert torch.equal(found.encoder.backbone.cls_token, generator.encoder.backbone.cls_token)


def test_a_file_of_another_generator_with_other_encoder_weights(with_file: tuple[Path, Path], tmp_path: Path) -> None:
    """Whoever loads into a generator that exists is told, too."""
    path, weights = with_file
    state = safetensors.torch.load_file(weights)
    state["blocks.7.mlp.fc1.bias"][3] += 1e-3
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(state, other)
    generator = tiny_generator(HEAD, encoder={**SMALL, "weights": str(other)})
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    facts = read_facts(path)
    refused(
        f"{FILE}: was trained on encoder weights .*other.safetensors",
        lambda: load_weights(generator, path, facts, read_weights(path, facts)),
    )
    assert all(torch.equal(p, before[name]) for name, p in generator.named_parameters())


def test_a_backbone_that_was_trained_and_is_frozen_now_stays_in_the_file(encoder_weights: Path, tmp_path: Path) -> None:
    start = tmp_path / "encoder.safetensors"
    start.write_bytes(encoder_weights.read_bytes())
    trained = tiny_generator(HEAD, encoder={**SMALL, "weights": str(start), "frozen": False})
    with torch.no_grad():
        trained.encoder.backbone.cls_token += 1
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write_generator(first, trained, {})
    start.unlink()
    frozen = tiny_generator_config(encoder={**SMALL, "weights": str(start)})
    facts = read_facts(first)
    again = build_generator(frozen, HEAD, first, facts, read_weights(first, facts))
    assert not any(p.requires_grad for p in again.encoder.backbone.parameters())
    write_generator(second, again, {})
    found, facts = read_generator(second, HEAD)
    assert facts.backbone_in_file and facts.config.encoder.frozen
    assert torch.equal(found.encoder.backbone.cls_token, trained.encoder.backbone.cls_token)


def test_a_frozen_backbone_goes_on_to_be_trained(with_file: tuple[Path, Path], tmp_path: Path) -> None:
    path, weights = with_file
    facts = read_facts(path)
    unfrozen = tiny_generator_config(encoder={**SMALL, "weights": str(weights), "frozen": False})
    generator = build_generator(unfrozen, HEAD, path, facts, read_weights(path, facts))
    assert generator.encoder.backbone.cls_token.requires_grad
    assert generator.encoder.checksum() == facts.encoder_checksum and not facts.backbone_in_file
    write_generator(tmp_path / "second.safetensors", generator, {})
    weights.unlink()
    found, facts = read_generator(tmp_path / "second.safetensors", HEAD)
    assert facts.backbone_in_file
    assert torch.equal(found.encoder.backbone.cls_token, generator.encoder.backbone.cls_token)


def test_weights_of_16_bits_are_written_in_32(tmp_path: Path) -> None:
    generator = awaken(tiny_generator(HEAD))
    rounded = generator.unet.output.weight.data.bfloat16()
    generator.unet.output.weight.data = rounded
    write_generator(tmp_path / FILE, generator, {})
    found, _ = read_generator(tmp_path / FILE, HEAD)
    assert found.unet.output.weight.dtype == torch.float32
    assert torch.equal(found.unet.output.weight, rounded.float())


def test_random_weights_ignore_where_others_lie(file: Path) -> None:
    found, _ = read_generator(file, HEAD, encoder_weights="/no/such.safetensors")
    assert found.config.encoder.weights == "random"


# where it lies


def run_with(folder: Path, complete: list[int], incomplete: list[int] = ()) -> list[str]:  # type: ignore[assignment]
    for step in [*complete, *incomplete]:
        checkpoint = folder / CHECKPOINTS / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / FILE).write_bytes(b"")
        if step in complete:
            (checkpoint / COMPLETE).write_text("{}")
    return [str(folder / CHECKPOINTS / f"step-{step:08d}") for step in sorted(complete)]


def test_file_folder_or_run(tmp_path: Path) -> None:
    folders = run_with(tmp_path / "run", [1000, 200], incomplete=[3000])
    newest = f"{folders[-1]}/{FILE}"
    assert find_generator(tmp_path / "run") == newest
    assert find_generator(folders[-1]) == newest
    assert find_generator(newest) == newest
    assert find_generator(folders[0]) == f"{folders[0]}/{FILE}"


def test_complete_checkpoints_oldest_first(tmp_path: Path) -> None:
    expected = run_with(tmp_path, [12_000, 900, 100_000], incomplete=[50, 200_000])
    (tmp_path / CHECKPOINTS / "notes").mkdir()
    (tmp_path / CHECKPOINTS / "notes" / COMPLETE).write_text("{}")
    assert complete_checkpoints(tmp_path) == expected
    assert complete_checkpoints(tmp_path / "nothing") == []


def test_nothing_there(tmp_path: Path) -> None:
    run_with(tmp_path / "run", [], incomplete=[10])
    refused(f"run: holds neither {FILE} nor a complete checkpoint", lambda: read_generator(tmp_path / "run", HEAD))
    refused(
        r"absent: no training run, checkpoint or generator.safetensors there",
        lambda: read_generator(tmp_path / "absent", HEAD),
    )
