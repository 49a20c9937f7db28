"""An avatar's folder: the names in it, who may write there, and what of an earlier one goes.

The folder holds an avatar, what a refinement leaves beside it, and exports. A folder that is none of ours is never
cleared, whatever is asked for.
"""

from spatialavatar import files, tensor_files
from spatialavatar.errors import SpatialAvatarError

MANIFEST = "avatar.json"
FORMAT = "spatialavatar-avatar"  # what the manifest says of itself
GAUSSIANS, FEATURES = "gaussians.safetensors", "features.safetensors"  # of a static avatar, of a generated one
CHECKPOINT = "checkpoint.safetensors"  # of an unfinished refinement
CHECKPOINT_FORMAT = "spatialavatar-refine-checkpoint"
LOG = "refine.jsonl"
METRICS = "metrics.json"  # written after a refinement by whoever measures the avatar
PLY, GAUSSIAN_AVATARS = "point_cloud.ply", "gaussian-avatars"  # where exports lie unless told otherwise
EXPORTED = SPLATS, MOTION = "point_cloud.ply", "flame_param.npz"  # in the folder of a GaussianAvatars export
_BEGUN = (LOG, GAUSSIANS, FEATURES, CHECKPOINT)  # all that a run leaves that was killed before it could finish
_OWN = (*_BEGUN, MANIFEST, METRICS, PLY, GAUSSIAN_AVATARS)


def claim_folder(out: files.Location, force: bool = False, *, resume: bool | None = None) -> None:
    """Raises SpatialAvatarError when ``out`` holds what must not be replaced; removes nothing.

    ``resume`` says whether the caller goes on with an unfinished refinement; None where the caller never does.
    """
    names = files.list_folder(out)
    if MANIFEST in names and not force and not (resume and CHECKPOINT in names):
        raise SpatialAvatarError(f"{out}: holds a finished avatar; name another folder, or replace it with --force")
    if CHECKPOINT in names and not (resume or force):
        advice = "go on with --resume, or start over with --force"
        if resume is None:
            advice = "finish it with 'spatialavatar refine --resume', name another folder, or replace it with --force"
        raise SpatialAvatarError(f"{out}: holds an unfinished refinement; {advice}")
    begun = all(name in _BEGUN or _is_partial(name) for name in names)
    taken = [name for name in names if name in _OWN]
    if force and taken and not begun and not _is_ours(out, names):
        raise SpatialAvatarError(
            f"{out}: holds {', '.join(taken)}, which belong to no avatar and would be overwritten; name another folder "
            "or move them away"
        )
    files.claim_output_folder(out, MANIFEST, force or begun)


def clear_folder(out: files.Location) -> None:
    """Remove what an earlier avatar has beside its own files, once a new one takes its place in a claimed folder."""
    for name in (CHECKPOINT, LOG, METRICS, PLY):
        files.remove(files.join(out, name))
    export = files.join(out, GAUSSIAN_AVATARS)
    if set(files.list_folder(export)) <= set(EXPORTED):
        files.remove(export)
    else:  # whatever else was put there stays
        for name in EXPORTED:
            files.remove(files.join(export, name))
    clear_partial(out)


def clear_partial(out: files.Location) -> None:
    """Remove what killed writes of ours left."""
    for name in files.list_folder(out):
        if _is_partial(name):
            files.remove(files.join(out, name))


def is_finished(out: files.Location) -> bool:
    """Whether a folder holds an avatar whose refinement is not under way."""
    names = files.list_folder(out)
    return MANIFEST in names and CHECKPOINT not in names


def _is_ours(out: files.Location, names: list[str]) -> bool:
    """Whether an avatar of ours or an unfinished refinement is there, readable or not by this version."""
    try:
        if MANIFEST in names:
            manifest = files.read_json(files.join(out, MANIFEST))
            if isinstance(manifest, dict) and manifest.get("format") == FORMAT:
                return True
        if CHECKPOINT in names:
            return tensor_files.read_tensor_metadata(files.join(out, CHECKPOINT)).get("format") == CHECKPOINT_FORMAT
    except SpatialAvatarError:
        pass
    return False


def _is_partial(name: str) -> bool:
    """Whether a write of ours was killed and left this."""
    own = (LOG, GAUSSIANS, FEATURES, MANIFEST, CHECKPOINT)
    return name.endswith(files.TEMPORARY) and any(name.startswith(f".{file}.") for file in own)
