"""The encoder: what it taps, its weights from files, and every way of naming it wrongly."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.config import EncoderConfig
from spatialavatar.generator.encoder import Encoder
from tests.builders.generators import tiny_encoder_config

SMALL = "vit_small_patch16_dinov3"  # the smallest that timm has weights for


def tiny_encoder(seed: int = 0, **changes: Any) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(tiny_encoder_config(**changes))


def pictures(count: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one set of weights in both formats, of a small backbone as timm makes it."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    state = timm.create_model(SMALL, num_classes=0).state_dict()
    safetensors.torch.save_file(state, folder / "small.safetensors")
    torch.save(state, folder / "small.pth")
    return folder


def from_file(path: Path | str, **changes: Any) -> Encoder:
    return Encoder(EncoderConfig(backbone=SMALL, weights=str(path), image_size=32, **changes))


def one_line(error: pytest.ExceptionInfo[SpatialAvatarError]) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


@pytest.mark.parametrize("size", [32, 48, 64])
def test_four_maps_on_the_patch_grid_and_a_token(size: int) -> None:
    encoder = tiny_encoder(image_size=size)
    encoded = encoder(pictures(2, size))
    assert encoder.grid == size // 16
    assert [tuple(m.shape) for m in encoded.maps] == [(2, 32, size // 16, size // 16)] * 4
    assert encoded.cls.shape == (2, 32)
    assert not encoded.cls.requires_grad and not any(m.requires_grad for m in encoded.maps)


def test_maps_and_token_by_timms_plain_forward() -> None:
    """The deepest tap with the final norm is what timm itself returns; the first token is CLS."""
    encoder = tiny_encoder().eval()
    images = pictures(2, seed=3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
    normalised = (images - mean[:, None, None]) / std[:, None, None]
    tokens = encoder.backbone.forward_features(normalised).detach()
    encoded = encoder(images)
    torch.testing.assert_close(encoded.cls, tokens[:, 0])
    patches = tokens[:, encoder.backbone.num_prefix_tokens :]
    torch.testing.assert_close(encoded.maps[-1], patches.mT.reshape(2, 32, 2, 2))


def test_row_and_column_of_the_patches() -> None:
    """What changes in the upper right corner of the picture changes there in the maps, before attention spreads it."""
    encoder = tiny_encoder(image_size=64, layers=[0, 1, 2, 3])
    images = pictures(1, 64)
    changed = images.clone()
    changed[..., :16, 48:] = 1 - changed[..., :16, 48:]
    difference = (encoder(changed).maps[0] - encoder(images).maps[0]).norm(dim=1)[0]
    assert difference.argmax().item() == 3  # row 0, column 3
    assert difference[0, 3] > 3 * difference[3, 0]


def test_layers_are_tapped_by_number() -> None:
    images = pictures(1)
    six = {"embed_dim": 32, "depth": 6, "num_heads": 2}
    a, b = (tiny_encoder(architecture=six, layers=layers)(images) for layers in ([0, 1, 2, 3], [2, 3, 4, 5]))
    torch.testing.assert_close(a.maps[2], b.maps[0])
    torch.testing.assert_close(a.maps[3], b.maps[1])
    assert (a.maps[0] - a.maps[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("vit_small_patch16_dinov3", [2, 5, 8, 11]),
        ("vit_base_patch16_dinov3", [2, 5, 8, 11]),
        ("vit_large_patch16_dinov3", [5, 11, 17, 23]),
    ],
)
def test_default_layers(backbone: str, expected: list[int]) -> None:
    with torch.device("meta"):  # shapes without memory
        encoder = Encoder(EncoderConfig(backbone=backbone, weights="random", image_size=32))
    assert encoder.layers == expected


def test_the_token_of_an_untrained_encoder_knows_the_picture() -> None:
    """timm starts DINOv3's residual branches at 1e-5, which would make the random encoder's token a constant."""
    encoded = tiny_encoder()(pictures(2))
    assert (encoded.cls[0] - encoded.cls[1]).abs().mean() > 0.01


def test_same_in_training_and_evaluation() -> None:
    encoder, images = tiny_encoder(), pictures(1)
    assert torch.equal(encoder.train()(images).cls, encoder.eval()(images).cls)


def test_frozen_has_no_gradient() -> None:
    assert not any(p.requires_grad for p in tiny_encoder().backbone.parameters())


def test_unfrozen_trains_all_that_takes_part() -> None:
    encoder = tiny_encoder(
        frozen=False, architecture={"embed_dim": 32, "depth": 5, "num_heads": 2}, layers=[0, 1, 2, 3]
    )
    encoded = encoder(pictures(2))
    random = torch.Generator().manual_seed(0)
    parts = [*encoded.maps, encoded.cls]
    sum((part * torch.randn(part.shape, generator=random)).sum() for part in parts).backward()  # type: ignore[union-attr]
    for name, parameter in encoder.named_parameters():
        if name.startswith("backbone.blocks.4"):
            assert not parameter.requires_grad and parameter.grad is None, name
        else:
            assert parameter.requires_grad, name
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", ["small.safetensors", "small.pth"])
def test_weights_from_a_file(weights: Path, name: str) -> None:
    encoder = from_file(weights / name)
    expected = safetensors.torch.load_file(weights / "small.safetensors")
    for key, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert encoder.channels == 384 and encoder(pictures(1)).cls.isfinite().all()


def test_weights_by_url(weights: Path) -> None:
    assert from_file(f"file://{weights}/small.safetensors").channels == 384


def test_checksum_is_of_the_weights(weights: Path) -> None:
    encoder = from_file(weights / "small.safetensors")
    checksum = encoder.checksum()
    assert from_file(weights / "small.pth").checksum() == checksum  # wherever they came from
    with torch.no_grad():
        encoder.backbone.blocks[3].mlp.fc1.weight[0, 0] += 1e-3
    assert encoder.checksum() != checksum


def test_architecture_alone_reads_no_file() -> None:
    """For weights that come from a checkpoint: neither file nor hub is asked for."""
    for weights in ("/no/such.safetensors", "hub"):
        config = EncoderConfig(backbone=SMALL, weights=weights, image_size=32)
        with torch.device("meta"):
            assert Encoder(config, pretrained=False).channels == 384


def test_missing_file() -> None:
    with pytest.raises(SpatialAvatarError, match=r"^encoder\.weights /no/such\.pth: no such file; .*random") as error:
        from_file("/no/such.pth")
    one_line(error)


def test_a_file_on_a_store() -> None:
    with pytest.raises(SpatialAvatarError, match="local path is needed") as error:
        from_file("memory://somewhere/small.safetensors")
    one_line(error)


@pytest.mark.parametrize(
    ("name", "damage"), [("small.safetensors", "truncated"), ("small.pth", "truncated"), ("small.pth", "empty")]
)
def test_damaged_file(weights: Path, tmp_path: Path, name: str, damage: str) -> None:
    data = (weights / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    with pytest.raises(SpatialAvatarError, match=f"{name}: not the weights of {SMALL}") as error:
        from_file(tmp_path / name)
    one_line(error)


def test_weights_of_another_backbone(tmp_path: Path) -> None:
    other = timm.create_model(SMALL, num_classes=0, embed_dim=64, num_heads=4, depth=12)
    for state in (other.state_dict(), {"something": torch.zeros(3)}):
        safetensors.torch.save_file(state, tmp_path / "other.safetensors")
        with pytest.raises(SpatialAvatarError, match=f"other.safetensors: not the weights of {SMALL}") as error:
            from_file(tmp_path / "other.safetensors")
        one_line(error)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"cls_token": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(SpatialAvatarError, match=r"evil\.pth: not the weights"):
        from_file(tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()


def test_unknown_backbone() -> None:
    with pytest.raises(SpatialAvatarError, match=r"^encoder\.backbone resnet50: unknown; one of .*vit_base") as error:
        Encoder(EncoderConfig(backbone="resnet50", weights="random"))
    one_line(error)


def test_architecture_is_for_random_weights_alone() -> None:
    with pytest.raises(SpatialAvatarError, match=r"^encoder\.architecture .*weights: random") as error:
        tiny_encoder(weights="hub")
    one_line(error)


def test_an_unknown_architecture_key() -> None:
    with pytest.raises(ValueError, match="'embed_dim', 'depth' or 'num_heads'"):
        tiny_encoder_config(architecture={"width": 3})


@pytest.mark.parametrize("architecture", [{"num_heads": 0}])
def test_an_impossible_architecture(architecture: dict[str, int]) -> None:
    with pytest.raises(
        SpatialAvatarError, match=f"^encoder {SMALL} with architecture {{'.*embed_dim, depth and num_heads"
    ) as error:
        tiny_encoder(architecture=architecture)
    one_line(error)


@pytest.mark.parametrize("width", [33, 34, 36])
def test_heads_that_do_not_divide_the_width(width: int) -> None:
    expected = rf"^encoder\.architecture .*embed_dim {width} must be a multiple of 4 x num_heads 2"
    with pytest.raises(SpatialAvatarError, match=expected) as error:
        tiny_encoder(architecture={"embed_dim": width, "depth": 4, "num_heads": 2})
    one_line(error)


@pytest.mark.parametrize("size", [40, 33, 100])
def test_image_size_that_patches_do_not_divide(size: int) -> None:
    with pytest.raises(SpatialAvatarError, match=rf"^encoder\.image_size {size}: .*multiple of .*16") as error:
        tiny_encoder(image_size=size)
    one_line(error)


@pytest.mark.parametrize("layers", [(0, 1, 2, 4), (-1, 0, 1, 2), (0, 1, 1, 2), (3, 2, 1, 0)])
def test_layers_that_are_not_there(layers: tuple[int, ...]) -> None:
    with pytest.raises(SpatialAvatarError, match=r"^encoder\.layers .*rising numbers from 0 to 3") as error:
        tiny_encoder(layers=layers)
    one_line(error)


def test_too_shallow_for_four_layers() -> None:
    with pytest.raises(SpatialAvatarError, match=r"^encoder\.layers .*has 3 blocks") as error:
        tiny_encoder(architecture={"embed_dim": 32, "depth": 3, "num_heads": 2})
    one_line(error)


def test_pictures_of_another_size() -> None:
    with pytest.raises(SpatialAvatarError, match=r"^sources are 48 x 32 pixels, the encoder takes 32 x 32") as error:
        tiny_encoder()(torch.zeros(1, 3, 32, 48))
    one_line(error)


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SpatialAvatarError, match=r"^encoder\.weights hub: .*encoder\.weights=FILE") as error:
        Encoder(EncoderConfig(backbone=SMALL, image_size=32))
    one_line(error)
