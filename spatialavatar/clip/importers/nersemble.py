"""Importer for NeRSemble v2: its calibration and videos, with the head parameters that VHAP tracked.

Source: a sequence (``ROOT/030/sequences/SEQ``) or a participant (``ROOT/030``: every sequence with tracking). Tracking:
VHAP's export, in ``SEQ/vhap`` or where ``--tracking`` says. Cameras come from ``calibration/camera_params.json``,
brought into VHAP's world, which is theirs rigidly moved; mattes from the export; colours are corrected by
``calibration/color_calibration.json`` whatever the pixels come from, for VHAP leaves them as they are.
"""

from pathlib import Path

import torch

from spatialavatar import files
from spatialavatar.clip.assembly import FrameContent, assemble_clip
from spatialavatar.clip.header import ClipSource
from spatialavatar.clip.importers.color_correction import corrected
from spatialavatar.clip.importers.nersemble_calibration import Calibration, calibrated_cameras, read_calibration
from spatialavatar.clip.importers.nersemble_pixels import pixel_source
from spatialavatar.clip.importers.options import ImportOptions, chosen_identity, with_test_last
from spatialavatar.clip.importers.vhap import held_out, is_vhap, reading_notes
from spatialavatar.clip.importers.vhap_listing import read_sequences
from spatialavatar.clip.importers.vhap_parameters import read_parameters
from spatialavatar.clip.importers.vhap_pictures import VhapPictures, open_pictures
from spatialavatar.clip.tracked_clip import TrackedClip
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.head.model import HeadModel

_BACKGROUND = "BACKGROUND"  # stands among the sequences
_SEQUENCE_NAMES = {"images", "alpha_maps", "landmark2d", "annotations"}


def is_nersemble(names: frozenset[str]) -> bool:
    """A participant, or a sequence with tracking."""
    return {"calibration", "sequences"} <= names or {"images", "vhap"} <= names


def is_bare_sequence(names: frozenset[str]) -> bool:
    """A sequence without tracking in it: nothing but pictures and what is made from them."""
    return "images" in names and all(name in _SEQUENCE_NAMES or name.startswith("images_") for name in names)


def open_nersemble(folder: str, head: HeadModel, options: ImportOptions) -> list[TrackedClip]:
    """A clip for each sequence. Raises SpatialAvatarError: no tracking, calibration that disagrees with it."""
    place = str(Path(files.local_path(folder)).resolve()) if files.is_local(folder) else folder
    if "sequences" in files.list_folder(place):
        participant = place
        names = [name for name in files.list_folder(files.join(place, "sequences")) if name != _BACKGROUND]
        found = [files.join(place, "sequences", name) for name in names]
    else:
        participant, found = place.rsplit("/", 2)[0], [place]
    person = participant.rsplit("/", 1)[-1]
    pairs = [(sequence, _tracking(sequence, person, options)) for sequence in found]
    tracked = [(sequence, tracking) for sequence, tracking in pairs if tracking is not None]
    if not tracked:
        where = "its folder vhap/" if options.tracking is None else options.tracking
        raise SpatialAvatarError(
            f"{folder}: no sequence has tracking in {where}; name the folder that VHAP exported by --tracking"
        )
    if len({tracking for _, tracking in tracked}) < len(tracked):
        raise SpatialAvatarError(
            f"{options.tracking}: is the tracking of one sequence, {folder} holds several; name the sequence's folder"
        )
    calibration = read_calibration(files.join(participant, "calibration"))
    return [_open(sequence, tracking, person, calibration, head, options) for sequence, tracking in tracked]


def _tracking(sequence: str, person: str, options: ImportOptions) -> str | None:
    """VHAP's export of a sequence: a folder named like ``030_EMO-1_...`` where several stand side by side."""
    if options.tracking is None:
        own = files.join(sequence, "vhap")
        return own if is_vhap(frozenset(files.list_folder(own))) else None
    tracking, name = str(options.tracking).rstrip("/"), sequence.rsplit("/", 1)[-1]
    names = files.list_folder(tracking)
    if is_vhap(frozenset(names)):
        return tracking
    fitting = [n for n in names if n == name or _is_named_after(n, person, name)]
    if len(fitting) > 1:
        raise SpatialAvatarError(f"{tracking}: {' and '.join(fitting[:3])} both track {name}; name one by --tracking")
    return files.join(tracking, fitting[0]) if fitting else None


def _is_named_after(folder: str, person: str, sequence: str) -> bool:
    parts = folder.split("_")
    return len(parts) > 1 and parts[0] == person and f"{sequence}-".startswith(f"{parts[1]}-")


def _open(
    folder: str, tracking: str, person: str, calibration: Calibration, head: HeadModel, options: ImportOptions
) -> TrackedClip:
    sequences = read_sequences(tracking, with_divisions=options.keep_split)
    if len(sequences) != 1 or sequences[0].location != tracking:
        raise SpatialAvatarError(f"{tracking}: is a union of sequences; name the export of this one by --tracking")
    sequence = sequences[0]
    world_to_camera, intrinsics, notes = calibrated_cameras(sequence, calibration)
    params, dropped = read_parameters(sequence, head, options)
    pictures = (
        open_pictures(sequence)
        if files.exists(sequence.images[0][0])
        else VhapPictures(sequence, "png", alpha=False, on_white=False)
    )
    source = pixel_source(folder, sequence, pictures)
    matrices = [calibration.colors.get(camera.id) for camera in sequence.cameras]
    test_from, test_cameras, split_notes = held_out(sequence) if options.keep_split else (None, [], [])

    def frames(instant: int, camera: int) -> FrameContent:
        image, matrix = source.read(instant, camera), matrices[camera]
        return image if matrix is None else corrected(image, matrix), pictures.matte(instant, camera)

    notes = [*reading_notes(sequence), f"pixels from {source.name}", *source.notes, *notes, *dropped, *split_notes]
    clip = assemble_clip(
        folder,
        identity=chosen_identity(options, person),
        head=head,
        params=params,
        world_to_camera=torch.from_numpy(world_to_camera),
        intrinsics=torch.from_numpy(intrinsics),
        width=sequence.width,
        height=sequence.height,
        fps=options.fps or source.rate,
        frames=frames,
        matte_kind="alpha" if pictures.has_mattes else "none",
        test_from=test_from,
        test_cameras=test_cameras,
        source=ClipSource("nersemble", "; ".join(notes), options.licence or "not stated"),
    )
    return with_test_last(clip, options.test_last)
