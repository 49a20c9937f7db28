"""LPIPS: its network against the package's own, and the search for weights with and without a network."""

import logging
import os
import threading
import urllib.error
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.losses import lpips_weights
from spatialavatar.losses.lpips_weights import (
    CONVOLUTIONS,
    WEIGHTS_VARIABLE,
    find_local_features,
    load_alexnet_features,
    read_alexnet_features,
)
from spatialavatar.losses.perceptual import Lpips
from tests.builders.lpips import random_alexnet


@pytest.fixture(scope="module")
def random_features() -> dict[str, Tensor]:
    return random_alexnet()


@pytest.fixture(scope="module")
def real_features() -> dict[str, Tensor]:
    folder = os.environ.get("SPATIALAVATAR_TEST_DATA")
    if not folder:
        pytest.skip("SPATIALAVATAR_TEST_DATA is not set: no AlexNet weights to test with")
    path = Path(folder) / "weights" / "alexnet_features.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is not there: no AlexNet weights to test with")
    return read_alexnet_features(path)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable, an empty hub cache, and no network; returns the cache."""
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(lpips_weights.urllib.request, "urlopen", no_network)
    return tmp_path / "checkpoints"


def pictures(size: int = 64) -> tuple[Tensor, Tensor]:
    """A smooth picture, twice, and noise."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 6, 6, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return smooth.movedim(1, -1).contiguous(), torch.randn(2, size, size, 3, generator=g)


def test_equals_the_package(random_features: dict[str, Tensor]) -> None:
    """Built without a download or a random number, our network is the one that the package builds."""
    import lpips

    a, noise = pictures()
    b = (a + 0.2 * noise).clamp(0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    convolutions = [part for slice_ in theirs.net.children() for part in slice_ if isinstance(part, torch.nn.Conv2d)]
    for index, convolution in zip(CONVOLUTIONS, convolutions):
        weight, bias = (random_features[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
        convolution.load_state_dict({"weight": weight, "bias": bias})
    expected = theirs(a.movedim(-1, 1), b.movedim(-1, 1), normalize=True).flatten().detach()
    torch.testing.assert_close(Lpips(random_features)(a, b), expected)


def test_construction_is_silent_and_leaves_the_random_state(
    random_features: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Lpips(random_features)
    assert torch.equal(torch.get_rng_state(), before)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_gradient_reaches_the_pictures_and_not_the_network(random_features: dict[str, Tensor]) -> None:
    a, noise = pictures(40)
    b = (a + 0.1 * noise).requires_grad_()
    Lpips(random_features)(a, b).sum().backward()
    assert b.grad is not None and (b.grad != 0).any()
    assert not any(t.requires_grad for t in random_features.values())


def test_gradient_is_a_finite_difference(random_features: dict[str, Tensor]) -> None:
    a, noise = pictures(40)
    b = (a + 0.2 * noise).requires_grad_()
    metric = Lpips(random_features)
    (gradient,) = torch.autograd.grad(metric(b, a).sum(), b)
    step = 0.01 * gradient / gradient.norm()
    with torch.no_grad():
        change = (metric(b + step, a) - metric(b - step, a)).sum()
    torch.testing.assert_close(change, 2 * (gradient * step).sum(), rtol=0.02, atol=0)


def test_a_pixel_without_activations_has_a_finite_gradient(random_features: dict[str, Tensor]) -> None:
    """Its length is a root of zero; the NaN of that root's derivative must not get past the ReLU."""
    dead = random_features | {"features.10.bias": torch.full((256,), -1e4)}
    a, noise = pictures(40)
    b = (a + 0.1 * noise).requires_grad_()
    metric = Lpips(dead)
    distance = metric(b, a)
    distance.sum().backward()
    assert (distance > 0).all() and b.grad is not None
    assert b.grad.isfinite().all() and (b.grad != 0).any()


def test_autocast_does_not_lower_the_precision(random_features: dict[str, Tensor]) -> None:
    metric = Lpips(random_features)
    a, noise = pictures(40)
    with torch.autocast("cpu", torch.bfloat16):
        found = metric(a, a + 0.01 * noise)
    assert torch.equal(found, metric(a, a + 0.01 * noise))


def test_smallest_picture(random_features: dict[str, Tensor]) -> None:
    metric = Lpips(random_features)
    a, noise = pictures(31)
    assert metric(a, a + noise).isfinite().all()
    with pytest.raises(SpatialAvatarError, match="at least 31 pixels on a side, got 30 x 31"):
        metric(a[:, :, :30], a[:, :, :30])


def test_real_weights_measure_distance(real_features: dict[str, Tensor]) -> None:
    metric = Lpips(real_features)
    a, noise = pictures()
    assert (metric(a, a) == 0).all()
    distances = torch.stack([metric(a, (a + s * noise).clamp(0, 1)) for s in (0.02, 0.05, 0.1, 0.3)])
    assert (distances.diff(dim=0) > 0).all()
    assert (distances > 0).all() and (distances < 2).all()
    noisy = (a + 0.1 * noise).clamp(0, 1)
    torch.testing.assert_close(metric(a, noisy), metric(noisy, a))
    # each picture of a batch by itself
    torch.testing.assert_close(metric(a, noisy)[1:], metric(a[1:], noisy[1:]))


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize("where", ["argument", "variable"])
def test_named_file(
    random_features: dict[str, Tensor],
    nowhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    where: str,
) -> None:
    path = tmp_path / f"weights.{kind}"
    whole = {**random_features, "classifier.1.bias": torch.zeros(4)}  # what else there is does not matter
    safetensors.torch.save_file(whole, path) if kind == "safetensors" else torch.save(whole, path)
    if where == "variable":
        monkeypatch.setenv(WEIGHTS_VARIABLE, str(path))
    loaded = load_alexnet_features(path if where == "argument" else None)
    assert loaded is not None and loaded.keys() == random_features.keys()
    assert all(torch.equal(loaded[name], random_features[name]) for name in loaded)


def test_hub_cache(random_features: dict[str, Tensor], nowhere: Path) -> None:
    nowhere.mkdir()
    torch.save(random_features, nowhere / "alexnet-owt-7be5be79.pth")
    assert find_local_features() == nowhere / "alexnet-owt-7be5be79.pth"
    loaded = load_alexnet_features()
    assert loaded is not None and torch.equal(loaded["features.0.bias"], random_features["features.0.bias"])


def test_without_weights_and_network(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_local_features() is None
    with caplog.at_level(logging.WARNING):
        assert Lpips.find() is None
    (record,) = caplog.records
    message = record.getMessage()
    assert "LPIPS is left out" in message and "Name or service not known" in message
    assert WEIGHTS_VARIABLE in message and str(nowhere) in message and "\n" not in message
    assert not nowhere.exists()


def test_training_without_weights_stops(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SpatialAvatarError) as error:
        Lpips.require()
    message = str(error.value)
    assert "Name or service not known" in message and "\n" not in message
    assert WEIGHTS_VARIABLE in message and "loss.lambda_lp to 0" in message
    assert not caplog.records  # one error, no warning beside it


def test_training_with_weights(random_features: dict[str, Tensor], nowhere: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file(random_features, tmp_path / "weights.safetensors")
    a, noise = pictures(40)
    expected = Lpips(random_features)(a, a + noise)
    assert torch.equal(Lpips.require(tmp_path / "weights.safetensors")(a, a + noise), expected)


def test_a_silent_network_does_not_hold_us_up(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A name server that does not answer blocks urlopen whatever its time-out."""
    never = threading.Event()
    monkeypatch.setattr(lpips_weights, "DOWNLOAD_TIMEOUT", 0.05)
    monkeypatch.setattr(lpips_weights.urllib.request, "urlopen", lambda *_, **__: never.wait())
    assert load_alexnet_features() is None
    never.set()
    assert "no answer" in caplog.records[0].getMessage()


class _Answer:
    """What urlopen returns, for one body."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> bytes:
        return self.body


def test_download_is_checked_and_cached(
    random_features: dict[str, Tensor], nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(random_features, tmp_path / "upstream.pth")
    body = (tmp_path / "upstream.pth").read_bytes()
    digest = lpips_weights.hashlib.sha256(body).hexdigest()[:8]
    monkeypatch.setattr(lpips_weights, "DOWNLOAD_URL", f"https://example.org/alexnet-owt-{digest}.pth")
    asked = []
    monkeypatch.setattr(
        lpips_weights.urllib.request, "urlopen", lambda url, timeout: asked.append((url, timeout)) or _Answer(body[:-9])
    )
    assert load_alexnet_features() is None  # a body that does not match the hash in the name is not kept
    assert not nowhere.exists()
    monkeypatch.setattr(
        lpips_weights.urllib.request, "urlopen", lambda url, timeout: asked.append((url, timeout)) or _Answer(body)
    )
    assert load_alexnet_features() is not None
    assert load_alexnet_features() is not None  # from the cache
    assert asked == [(lpips_weights.DOWNLOAD_URL, lpips_weights.DOWNLOAD_TIMEOUT)] * 2
    assert [path.name for path in nowhere.iterdir()] == [f"alexnet-owt-{digest}.pth"]


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_truncated_file(random_features: dict[str, Tensor], tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"weights.{kind}"
    safetensors.torch.save_file(random_features, path) if kind == "safetensors" else torch.save(random_features, path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(SpatialAvatarError, match=rf"weights\.{kind}: not .*truncated") as error:
        load_alexnet_features(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["argument", "variable"])
def test_missing_named_file(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A file that was asked for by name is not replaced by another silently."""
    path = tmp_path / "absent.pth"
    if where == "variable":
        monkeypatch.setenv(WEIGHTS_VARIABLE, str(path))
    with pytest.raises(SpatialAvatarError, match=r"absent\.pth: no such file"):
        load_alexnet_features(path if where == "argument" else None)


def test_other_networks_file(random_features: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "vgg.pth"
    torch.save({**random_features, "features.3.weight": torch.zeros(64, 64, 3, 3)}, path)
    with pytest.raises(
        SpatialAvatarError, match=r"features\.3\.weight should be \(192, 64, 5, 5\), found \(64, 64, 3, 3\)"
    ):
        read_alexnet_features(path)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(SpatialAvatarError, match=r"features\.0\.weight should be .* found nothing"):
        read_alexnet_features(path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"features.0.weight": _Evil(str(tmp_path / "touched"))}, path)
    with pytest.raises(SpatialAvatarError, match=r"evil\.pth: not readable as AlexNet weights"):
        read_alexnet_features(path)
    assert not (tmp_path / "touched").exists()


class _Evil:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)
