"""Finding the AlexNet features that LPIPS compares: the five ImageNet convolutions of torchvision's AlexNet.

Searched in this order: the path given, the variable ``SPATIALAVATAR_LPIPS_WEIGHTS``, torch hub's cache, torchvision's
download. Files are safetensors or ``.pth`` (read with ``weights_only``) with the names of torchvision's AlexNet,
``features.0.weight`` and so on; what else they hold is ignored.
"""

import contextlib
import hashlib
import io
import logging
import os
import re
import threading
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from spatialavatar import files, tensor_files
from spatialavatar.errors import SpatialAvatarError

WEIGHTS_VARIABLE = "SPATIALAVATAR_LPIPS_WEIGHTS"
DOWNLOAD_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"  # torchvision's AlexNet, 233 MiB
DOWNLOAD_TIMEOUT = 5.0  # seconds to connect, and for each read

# Kernel shapes of the convolutions by their index in torchvision's ``features``.
CONVOLUTIONS = {
    0: (64, 3, 11, 11),
    3: (192, 64, 5, 5),
    6: (384, 192, 3, 3),
    8: (256, 384, 3, 3),
    10: (256, 256, 3, 3),
}

logger = logging.getLogger(__name__)


def load_alexnet_features(path: files.Location | None = None) -> dict[str, Tensor] | None:
    """The weights and biases of the five convolutions by torchvision's names, or None when there are none anywhere.

    None comes with one logged line that says what to do. Raises SpatialAvatarError when a file that was named or
    found cannot be used.
    """
    try:
        return _features(path)
    except _NoWeights as e:
        logger.warning("LPIPS is left out: %s", e)
        return None


def require_alexnet_features(path: files.Location | None = None) -> dict[str, Tensor]:
    """The same for a training that asks for LPIPS: raises SpatialAvatarError when there are none anywhere."""
    try:
        return _features(path)
    except _NoWeights as e:
        raise SpatialAvatarError(f"LPIPS cannot be trained on: {e}; or set loss.lambda_lp to 0") from None


class _NoWeights(Exception):
    """None here and none to be had; the message says why and what to do."""


def _features(path: files.Location | None) -> dict[str, Tensor]:
    found = find_local_features(path)
    if found is not None:
        return read_alexnet_features(found)
    cache = _hub_cache()
    try:
        data = _download(DOWNLOAD_URL)
    except OSError as e:
        raise _NoWeights(
            f"no AlexNet weights here and the download failed ({getattr(e, 'reason', None) or e}); "
            f"set {WEIGHTS_VARIABLE} to a file with them or copy {DOWNLOAD_URL} to {cache}"
        ) from None
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next download, not this one
        files.write_bytes(cache / DOWNLOAD_URL.rsplit("/", 1)[-1], data)
    return _select_features(_load_pth(data, DOWNLOAD_URL), DOWNLOAD_URL)


def find_local_features(path: files.Location | None = None) -> files.Location | None:
    """Where the weights would be read from without a download; None when there are none.

    Raises SpatialAvatarError when a file was named, by ``path`` or the variable, that does not exist.
    """
    named = path or os.environ.get(WEIGHTS_VARIABLE)
    if not named:
        return next(iter(sorted(_hub_cache().glob("alexnet-owt-*.pth"))), None)
    if not files.exists(named):
        raise SpatialAvatarError(f"{named}: no such file; name AlexNet weights for LPIPS, or unset {WEIGHTS_VARIABLE}")
    return named


def _hub_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def read_alexnet_features(location: files.Location) -> dict[str, Tensor]:
    """The convolutions in one file. Raises SpatialAvatarError when it is damaged or holds something else."""
    if os.fspath(location).endswith(".safetensors"):
        arrays, _ = tensor_files.read_tensors(location)
        return _select_features({name: torch.from_numpy(array) for name, array in arrays.items()}, location)
    return _select_features(_load_pth(files.read_bytes(location), location), location)


def _load_pth(data: bytes, location: files.Location) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # torch.load raises many kinds on a damaged file
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        message = f"{location}: not readable as AlexNet weights ({reason}); it may be truncated, fetch it anew"
        raise SpatialAvatarError(message) from None


def _select_features(tensors: Any, location: files.Location) -> dict[str, Tensor]:
    features = {}
    for index, shape in CONVOLUTIONS.items():
        for name, expected in ((f"features.{index}.weight", shape), (f"features.{index}.bias", shape[:1])):
            tensor = tensors.get(name) if isinstance(tensors, dict) else None
            if not isinstance(tensor, Tensor) or tuple(tensor.shape) != expected:
                found = tuple(tensor.shape) if isinstance(tensor, Tensor) else "nothing"
                raise SpatialAvatarError(
                    f"{location}: not AlexNet weights: {name} should be {expected}, found {found}; "
                    f"use torchvision's {DOWNLOAD_URL.rsplit('/', 1)[-1]}"
                )
            features[name] = tensor.float()
    return features


def _download(url: str) -> bytes:
    """The file behind ``url``, checked against the hash in its name. Raises OSError when there is no way to it."""
    try:
        with _connect(url) as response:
            data = response.read()
    except HTTPException as e:
        raise OSError(f"broken off: {e!r}") from None
    expected = re.search(r"-([0-9a-f]{8,})\.", url)
    if expected and not hashlib.sha256(data).hexdigest().startswith(expected[1]):
        raise OSError("what came is damaged")
    return data


def _connect(url: str) -> HTTPResponse:
    """Opened in a thread of its own, because looking up a host name knows no time-out."""
    answer: SimpleQueue[HTTPResponse | OSError] = SimpleQueue()

    def connect() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT))
        except OSError as e:
            answer.put(e)

    threading.Thread(target=connect, daemon=True).start()
    try:
        response = answer.get(timeout=DOWNLOAD_TIMEOUT)
    except Empty:
        raise TimeoutError("no answer") from None
    if isinstance(response, OSError):
        raise response
    return response
