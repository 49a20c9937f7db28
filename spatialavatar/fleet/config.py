"""What a fleet can be told; configs/fleet.yaml explains each value."""

import hashlib
import json
import re
from typing import Any

from pydantic import Field, field_validator

from spatialavatar.config import Config
from spatialavatar.refine.config import HARMLESS, RefineConfig

_USER_IN_URL = re.compile(r"://[^/]*@|://[^/:]*:(?!\d*(/|$)).*@")  # the secret keys of S3 hold slashes
# whoever has a signed URL has what it names
_SIGNED = re.compile(
    r"://.*[?&;](sig|[\w-]*(signature|token|password|passwd|secret|api_?key|access_?key(_?id)?)|googleaccessid"
    r"|x-(amz|goog|oss)-[\w-]+)=",
    re.IGNORECASE,
)


class Gate(Config):
    """Bounds of what is delivered without a person's look; null takes one away."""

    min_psnr: float | None = 20.0  # dB, mean over the held-out frames
    max_aspect_ratio: float | None = Field(8.01, ge=1)  # largest over smallest scale of any Gaussian
    # mean distance of the tracked landmarks from the mesh's, as a share of the image's longer side
    max_tracking_residual: float | None = Field(0.02, gt=0)


class Evaluation(Config):
    frames: int | None = Field(None, ge=1)  # of the held-out frames, evenly spread; null: all
    lpips_weights: str | None = None  # AlexNet features; null: where 'spatialavatar doctor' finds them

    @field_validator("lpips_weights")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        return _without_credentials(value)


class Attempts(Config):
    """How often a subject is tried before it is set aside."""

    errors: int = Field(2, ge=1)  # that it raised
    crashes: int = Field(3, ge=1)  # of the process that worked on it alone; a lost machine does not count
    stores: int = Field(3, ge=1)  # times a store did not answer, before it is left for the next run
    minutes: float = Field(60.0, gt=0)  # a stage that takes longer, for each subject of its batch, counts as a crash


class Workers(Config):
    most: int | None = Field(None, ge=1)  # null: as many as the cluster has room for
    cpus: float = Field(1.0, gt=0)  # of each; without a GPU also its number of threads
    gpus: float | None = Field(None, ge=0)  # of each; null: 1 where the cluster has GPUs, else 0
    batch: int | None = Field(None, ge=1)  # subjects optimised together; null: by memory and measured speed
    largest_batch: int = Field(8, ge=1)  # with batch: null


class FleetConfig(Config):
    subjects: str = ""  # manifest (.parquet, .csv, .jsonl), folder above clips, or data set of shards
    output: str = ""
    allow: list[str] = Field(default_factory=list)  # folders that a manifest may name beside its own
    head: str | None = None  # null: the built-in one, or one beside the clips
    checkpoint: str | None = None  # generator that makes the starts; null: template skin
    encoder_weights: str | None = None
    sources: int = Field(4, ge=1, le=4)  # K: portraits that the generator sees
    refine: RefineConfig = RefineConfig()
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    attempts: Attempts = Attempts()
    workers: Workers = Workers()

    @field_validator("subjects", "output", "head", "checkpoint", "encoder_weights", "allow")
    @classmethod
    def _no_credentials(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            _without_credentials(text)
        return value


def holds_credentials(location: str) -> bool:
    """Whether a URL names a user before its host, or is signed."""
    return bool(_USER_IN_URL.search(location) or _SIGNED.search(location))


def _without_credentials(location: str | None) -> str | None:
    if location is not None and holds_credentials(location):
        raise ValueError(
            "holds a user or password, or is signed; credentials come from the environment or the AWS config"
        )
    return location


def config_hash(config: FleetConfig, generator: str | None, lpips: str | None) -> str:
    """Of all settings that an avatar and its metrics depend on, beside head, layout and clip.

    ``generator`` is the hash of the checkpoint, ``lpips`` that of the weights; None without.
    """
    value = {
        "refine": config.refine.model_dump(mode="json", exclude=set(HARMLESS)),
        "generator": generator,
        "sources": config.sources if generator else None,
        "evaluated_frames": config.evaluation.frames,
        "lpips": lpips,
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
