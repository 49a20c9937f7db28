"""A training run's folder: the names in it, and who may write there."""

from spatialavatar import files
from spatialavatar.config import load_config
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.generator.checkpoint import CHECKPOINTS
from spatialavatar.training.checkpoint import ANCHOR
from spatialavatar.training.config import TrainConfig

CONFIG = "config.yaml"
LOG = "train.jsonl"
SHEETS = "sheets"
TENSORBOARD = "tensorboard"
FAILED_BATCH = "failed-batch.safetensors"  # of one process
FAILED_BATCHES = "failed-batches"  # of many: rank-0.safetensors ...
PARTS = (CHECKPOINTS, LOG, SHEETS, TENSORBOARD, FAILED_BATCH, FAILED_BATCHES, ANCHOR)  # beside the configuration


def claim_run(out: files.Location, resume: bool, force: bool, parent: str | None = None) -> None:
    """Raises SpatialAvatarError when ``out`` holds what this run must not replace, ``force`` or not.

    That is whatever is no training run of ours but bears one of its names, and the run that this one goes on from.
    """
    if parent is not None and _inside(parent, out):
        raise SpatialAvatarError(f"{out}: holds phase1_checkpoint {parent}; name another folder for this run")
    names = files.list_folder(out)
    if CONFIG in names:
        try:
            load_config(TrainConfig, files.join(out, CONFIG))
        except SpatialAvatarError as e:
            raise SpatialAvatarError(
                f"{out}: its {CONFIG} is no training run's of this program ({e}); name another folder"
            ) from None
        if not (resume or force):
            raise SpatialAvatarError(f"{out}: holds a training run; go on with --resume, or start over with --force")
    elif taken := [name for name in PARTS if name in names]:
        raise SpatialAvatarError(f"{out}: holds {taken[0]}, but no {CONFIG} of a training run; name another folder")
    files.claim_output_folder(out, CONFIG, force)


def _inside(location: str, folder: files.Location) -> bool:
    if files.is_local(location) and files.is_local(folder):
        return files.local_path(location).resolve().is_relative_to(files.local_path(folder).resolve())
    return files.join(location, "").startswith(files.join(folder, ""))
