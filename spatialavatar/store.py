"""The file system behind a location (fsspec), and how it is asked: a store that fails is asked again for a while."""

import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from spatialavatar.errors import SpatialAvatarError, StoreError, in_short
from spatialavatar.locations import Location, is_local

T = TypeVar("T")

RETRY_AFTER = (0.2, 1.0, 4.0, 15.0, 30.0)  # seconds before a store is asked again
# One repeat by the client, for parts of an upload; its own loops, one in another, would take an hour to give up.
S3_CLIENT: dict[str, Any] = {"retries": {"mode": "standard", "total_max_attempts": 2}, "read_timeout": 15}
_BOTOCORE_REFUSALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "NoRegionError",
    "ParamValidationError",
)


def filesystem(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    text = os.fspath(location)
    protocol = fsspec.core.split_protocol(text)[0]
    options: dict[str, Any] = {}
    if not (is_local(text) or protocol == "memory"):
        options["use_listings_cache"] = False  # what this process remembers would hide what others write
    if protocol in ("s3", "s3a"):
        given = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        options |= {"config_kwargs": {**given, **S3_CLIENT}, "max_concurrency": 1}
    try:
        fs, path = fsspec.core.url_to_fs(text, **options)
    except (ImportError, ValueError) as e:
        advice = "; pip install -e '.[s3]'" if protocol in ("s3", "s3a") else ""
        raise SpatialAvatarError(f"{location}: no way to open such a URL here ({e}){advice}") from None
    if protocol in ("s3", "s3a"):
        fs.retries = 1
    return fs, path


def asked(location: Location, request: Callable[[], T], missing: str = "no such file") -> T:
    """What a file system answers; a store that fails as networks and busy servers do is asked again.

    Raises SpatialAvatarError: at once where asking again is of no use, else after about a minute, or, of a store that
    takes requests and never answers, after four.
    """
    tries = 1 if is_local(location) else len(RETRY_AFTER) + 1
    for attempt in range(tries):
        try:
            return request()
        except FileNotFoundError as e:
            # no such upload: it was completed, only the answer was lost; again from the start then
            if answer(e)[1] != "NoSuchUpload" or attempt == tries - 1:
                raise SpatialAvatarError(f"{location}: {missing}") from None
        except IsADirectoryError:
            raise SpatialAvatarError(f"{location}: is a folder, a file was expected") from None
        except (SpatialAvatarError, MemoryError, TypeError, AttributeError):
            raise
        except Exception as e:  # every store's client has exceptions of its own
            if is_local(location):
                raise
            reason = in_short(e, plain=True)
            if _refused(e):
                raise StoreError(
                    f"{location}: the store refuses access ({reason}); check the address and the keys"
                ) from None
            if attempt == tries - 1:
                raise StoreError(
                    f"{location}: the store did not answer after {tries} tries ({reason}); check the network and the "
                    "store, then run the same command again"
                ) from None
            time.sleep(RETRY_AFTER[attempt] * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def answer(error: BaseException) -> tuple[int, str]:
    """HTTP status and code in a store client's error; 0 and nothing when it has none."""
    for e in (error, error.__cause__):  # s3fs keeps botocore's as the cause
        response = getattr(e, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    status = getattr(error, "status", getattr(error, "code", 0))  # aiohttp's and Google's
    return status if isinstance(status, int) else 0, ""


def _refused(error: Exception) -> bool:
    """Whether the same request would fail again: bad keys, no rights, an impossible name."""
    if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError, ValueError)):
        return True
    if type(error).__name__ in _BOTOCORE_REFUSALS:
        return True
    status, code = answer(error)
    # sums that do not match and bodies that end early are the network's doing
    passing = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "OperationAborted")
    return 400 <= status < 500 and status not in (408, 409, 425, 429) and code not in passing
