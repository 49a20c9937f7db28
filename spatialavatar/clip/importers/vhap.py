"""Importer for VHAP's exports and GaussianAvatars' data sets (vhap_listing.py, vhap_parameters.py, vhap_pictures.py).

Several cameras become a multi-view take, the sequences of a union one clip each. VHAP composites images on white: with
its masks the straight image is recovered.
"""

import re

import torch

from spatialavatar.clip.assembly import assemble_clip
from spatialavatar.clip.header import ClipSource
from spatialavatar.clip.importers.options import ImportOptions, chosen_identity, with_test_last
from spatialavatar.clip.importers.vhap_listing import (
    CANONICAL_FILE,
    DIVISIONS,
    LISTING_FILE,
    VhapSequence,
    division_file,
    read_sequences,
)
from spatialavatar.clip.importers.vhap_parameters import read_parameters
from spatialavatar.clip.importers.vhap_pictures import open_pictures
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.head.model import HeadModel


def is_vhap(names: frozenset[str]) -> bool:
    listed = {LISTING_FILE, *map(division_file, DIVISIONS)} & names
    return bool(listed) and bool({CANONICAL_FILE, "flame_param"} & names)


def open_vhap(folder: str, head: HeadModel, options: ImportOptions) -> list[TrackedClip]:
    """The clips of an export. Raises SpatialAvatarError as the reading functions, and as ``assemble_clip``."""
    sequences = read_sequences(folder, with_divisions=options.keep_split)
    return [_open(sequence, head, options, union=sequence.location != folder) for sequence in sequences]


def _open(sequence: VhapSequence, head: HeadModel, options: ImportOptions, union: bool) -> TrackedClip:
    params, notes = read_parameters(sequence, head, options)
    pictures = open_pictures(sequence)
    test_from, test_cameras, split_notes = held_out(sequence) if options.keep_split else (None, [], [])
    name = sequence.location.rstrip("/").rsplit("/", 1)[-1]
    clip = assemble_clip(
        sequence.location,
        identity=chosen_identity(options, person(name, union)),
        head=head,
        params=params,
        world_to_camera=torch.from_numpy(sequence.world_to_camera),
        intrinsics=torch.from_numpy(sequence.intrinsics),
        width=sequence.width,
        height=sequence.height,
        fps=options.fps or 25.0,
        frames=pictures.encoded,
        matte_kind="alpha" if pictures.has_mattes else "none",
        test_from=test_from,
        test_cameras=test_cameras,
        source=ClipSource(
            "vhap",
            "; ".join([*reading_notes(sequence), *notes, *split_notes]),
            options.licence or "not stated",
        ),
        image_format=pictures.kind,
    )
    return with_test_last(clip, options.test_last)


def person(name: str, union: bool) -> str:
    """Who is seen, from a sequence's folder: ``074_EMO-1_v16_DS4`` of NeRSemble, and in unions, begins with it."""
    return name.split("_")[0] if union or re.match("[0-9]{3}_", name) else name


def reading_notes(sequence: VhapSequence) -> list[str]:
    """What was read and left out, for the clip's note."""
    notes = [sequence.listing.rsplit("/", 1)[-1]]
    if sequence.incomplete:
        everything = sequence.incomplete + len(sequence.timesteps)
        notes.append(f"{sequence.incomplete} of {everything} timesteps dropped: not seen by every camera")
    return notes


def held_out(sequence: VhapSequence) -> tuple[int | None, list[int], list[str]]:
    """``test_from`` and ``test_cameras`` of the tool's own split, and what of it they cannot say.

    Cameras that only validate are held out; so are the timesteps that only test, when they are the last.
    """
    seen = [{row[c] for row in sequence.divisions} - {None} for c in range(len(sequence.cameras))]
    if not set().union(*seen):
        return None, [], ["no split found to keep"]
    notes = []
    test_cameras = [c for c, divisions in enumerate(seen) if "val" in divisions and "train" not in divisions]
    if len(test_cameras) == len(sequence.cameras):
        notes.append("transforms_val.json holds every camera: none is kept apart")
        test_cameras = []
    tests = [set(row) - {None} == {"test"} for row in sequence.divisions]
    first = tests.index(True) if any(tests) else None
    if all(tests):
        notes.append("the tool's split holds out this whole sequence for testing")
        first = None
    elif first is not None and not all(tests[first:]):
        notes.append(f"{sum(tests)} test timesteps are not the last ones and not kept apart")
        first = None
    return first, test_cameras, notes
