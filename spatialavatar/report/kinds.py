"""Which kind of results a folder holds, by the file that its writer leaves there."""

from collections.abc import Callable

from spatialavatar import files
from spatialavatar.avatar.folder import MANIFEST as AVATAR
from spatialavatar.errors import SpatialAvatarError, in_short
from spatialavatar.evaluation.results import REPORT
from spatialavatar.evaluation.sweep_folder import SWEEP
from spatialavatar.fleet.settings import SETTINGS
from spatialavatar.report.avatar import avatar_section
from spatialavatar.report.content import Section
from spatialavatar.report.data import data_section
from spatialavatar.report.evaluation import evaluation_section
from spatialavatar.report.fleet import fleet_section
from spatialavatar.report.sweep import sweep_section
from spatialavatar.report.training import training_section
from spatialavatar.shards.manifest import MANIFEST_FILE
from spatialavatar.training.folder import LOG

KINDS: dict[str, tuple[str, Callable[[str], Section]]] = {
    MANIFEST_FILE: ("a data set of shards", data_section),
    SWEEP: ("a sweep", sweep_section),
    LOG: ("a training run", training_section),
    SETTINGS: ("a fleet", fleet_section),
    REPORT: ("an evaluation", evaluation_section),
    AVATAR: ("an avatar", avatar_section),
}


def read_section(location: str) -> Section:
    """The section of a folder of results. Raises SpatialAvatarError: nothing of ours there, or damaged files."""
    names = set(files.list_folder(location))
    for file, (what, read) in KINDS.items():
        if file in names:
            return _read(read, location, what)
    known = ", ".join(f"{what} ({file})" for file, (what, _) in KINDS.items())
    found = "no such folder" if not files.exists(location) else "nothing that can be reported"
    raise SpatialAvatarError(f"{location}: {found}; expected the folder of {known}")


def _read(read: Callable[[str], Section], location: str, what: str) -> Section:
    """Where a field is missing, or of another type, one line that says so."""
    try:
        return read(location)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        why = f"{type(e).__name__}: {in_short(e)}"
        raise SpatialAvatarError(
            f"{location}: cannot be reported as {what} ({why}); restore its files, or leave it out"
        ) from e
