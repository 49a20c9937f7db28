"""An evaluation as subjects, each measured by itself: a generator on a clip, or an avatar on a clip of its person.

``Instruments`` is what a process needs for it, made once and sent to all; ``Bench`` is that made ready on a device.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from spatialavatar import files, tensor_files
from spatialavatar.avatar import AvatarRenderer, read_avatar
from spatialavatar.avatar.folder import FORMAT as AVATAR_FORMAT
from spatialavatar.avatar.folder import MANIFEST as AVATAR_FILE
from spatialavatar.clip.tracked_clip import Split, TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.evaluation.clip_pool import OneClip
from spatialavatar.evaluation.estimators import Estimators, require_estimators
from spatialavatar.evaluation.footage import Fault, Footage, ListedClip
from spatialavatar.evaluation.generator_report import SOURCES, TARGETS, measure_subject
from spatialavatar.evaluation.self_reenactment import background_for, evaluate
from spatialavatar.generator.checkpoint import PackedGenerator
from spatialavatar.head import HeadModel
from spatialavatar.losses.perceptual import Lpips

PROTOCOL = 2  # counts changes after which numbers compare no more
DEEPEST = 8  # folders above an avatar


@dataclass(frozen=True)
class Settings:
    """What every number depends on, beside the subject's own files; plain JSON."""

    generator: str | None  # hash of the checkpoint; None for avatars
    sources: tuple[int, ...] = SOURCES  # K; not for avatars
    targets: int | None = TARGETS  # frames of a clip; None: of an avatar's split all
    split: Split = "test"  # for avatars
    resolution: int | None = None  # pixels of the longer side; None: what each avatar was made at
    seed: int = 0
    lpips: str | None = None  # hash of the weights
    estimators: tuple[tuple[str, str], ...] = ()  # name, package
    protocol: int = PROTOCOL


def lpips_hash(features: Mapping[str, Tensor] | None) -> str | None:
    """What LPIPS weights are known by."""
    return None if features is None else tensor_files.content_hash({name: t.numpy() for name, t in features.items()})


@dataclass(frozen=True)
class Subject:
    key: str  # unique, names it in results
    clip: ListedClip
    avatar: str | None = None  # its folder
    avatar_state: str = ""  # another where the avatar is another

    def fingerprint(self, settings: Settings) -> str:
        """Equal where a measurement would give the same again."""
        value = [asdict(settings), self.key, self.clip.identity, self.clip.state, self.clip.head.hash]
        value.append(self.avatar_state)
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Instruments:
    """Picklable, and the same for every process."""

    settings: Settings
    footage: Footage
    head: HeadModel
    generator: PackedGenerator | None  # None for avatars
    lpips: dict[str, Tensor] | None  # AlexNet's features


class Bench:
    """Instruments on a device. Raises SpatialAvatarError: a checkpoint of another head, encoder weights that miss."""

    def __init__(self, instruments: Instruments, device: torch.device | str = "cpu") -> None:
        self._instruments, self._device = instruments, torch.device(device)
        self._lpips = None if instruments.lpips is None else Lpips(instruments.lpips, device)
        self._estimators: Estimators = require_estimators(dict(instruments.settings.estimators), device)
        packed = instruments.generator
        self._generator = None if packed is None else packed.build(instruments.head, self._device)

    def measure(self, subject: Subject) -> dict[str, Any]:
        """``rows`` of a generator (``measure_subject``) or the ``report`` of an avatar (``self_reenactment``), JSON.

        Raises SpatialAvatarError for what is wrong with the subject's clip or avatar.
        """
        given, settings = self._instruments, self._instruments.settings
        clip = given.footage.open(subject.clip)
        if self._generator is None:
            return {"report": self._avatar(subject, clip)}
        assert settings.resolution is not None and settings.targets is not None
        rows = measure_subject(
            self._generator,
            OneClip(clip, given.head),
            0,
            sources=settings.sources,
            targets=settings.targets,
            resolution=settings.resolution,
            lpips=self._lpips,
            estimators=self._estimators,
            seed=settings.seed,
            identity=subject.clip.identity,
            number=_number(subject.key),
        )
        return {"rows": rows}

    def _avatar(self, subject: Subject, clip: TrackedClip) -> dict[str, Any]:
        assert subject.avatar is not None
        settings = self._instruments.settings
        avatar = read_avatar(subject.avatar)
        return evaluate(
            AvatarRenderer(avatar, self._instruments.head, self._device, subject.avatar),
            clip,
            settings.split,
            resolution=settings.resolution or avatar.provenance["config"]["resolution"],
            background=background_for(clip),
            lpips=self._lpips,
            estimators=self._estimators,
            limit=settings.targets,
        )


def generator_subjects(footage: Footage, head: HeadModel) -> tuple[list[Subject], list[Fault]]:
    """Every clip that was tracked with the head."""
    subjects, faults = [], list(footage.faults)
    for clip in footage.clips:
        try:
            clip.head.require(head, footage.place(clip))
            subjects.append(Subject(clip.key, clip))
        except SpatialAvatarError as e:
            faults.append(Fault(clip.key, str(e)))
    return subjects, faults


def avatar_subjects(avatars: files.Location, footage: Footage) -> tuple[list[Subject], list[Fault]]:
    """Every avatar in or under a folder, on each clip of its identity. Raises SpatialAvatarError for no avatars."""
    clips: dict[str, list[ListedClip]] = {}
    for clip in footage.clips:
        clips.setdefault(clip.identity, []).append(clip)
    subjects, faults = [], list(footage.faults)
    for key, folder in find_avatars(avatars):
        try:
            manifest = files.read_json(files.join(folder, AVATAR_FILE))
        except SpatialAvatarError as e:
            faults.append(Fault(key, str(e)))
            continue
        if not isinstance(manifest, dict) or manifest.get("format") != AVATAR_FORMAT:
            faults.append(Fault(key, f"{folder}: not an avatar of ours (format is not {AVATAR_FORMAT})"))
            continue
        identity, state = str(manifest.get("identity")), json.dumps(manifest, sort_keys=True)
        own = clips.get(identity, [])
        if not own:
            faults.append(Fault(key, f"{folder}: no clip of {identity} in {footage.location}"))
        for clip in own:
            name = key if len(own) == 1 else f"{key} on {clip.key}"
            subjects.append(Subject(name, clip, folder, hashlib.sha256(state.encode()).hexdigest()))
    return subjects, faults


def find_avatars(folder: files.Location) -> list[tuple[str, str]]:
    """Key (the path under ``folder``) and folder of each avatar, by key; ``folder`` may itself be one.

    Raises SpatialAvatarError when there is none.
    """
    root = str(folder).rstrip("/") or "/"
    found: list[tuple[str, str]] = []
    level: list[tuple[str, ...]] = [()]
    for _ in range(DEEPEST):
        below: list[tuple[str, ...]] = []
        for parts in level:
            folders, names = files.list_folders_and_files(files.join(root, *parts))
            if AVATAR_FILE in names:
                found.append(("/".join(parts) or root.rsplit("/", 1)[-1], files.join(root, *parts)))
            else:
                below += [(*parts, name) for name in folders if not name.startswith(".")]
        level = below
    if not found:
        raise SpatialAvatarError(
            f"{root}: no avatar there; name an avatar's folder (from 'spatialavatar refine' or 'reconstruct'), or one "
            "above several"
        )
    return sorted(found)


def _number(key: str) -> int:
    """What a subject's frames are drawn by: its name, so that others beside it change nothing."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
