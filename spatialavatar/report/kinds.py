"""Which kind of results a folder holds, by the file that its writer leaves there."""

from collections.abc import Callable

from spatialavatar import files
from spatialavatar.avatar.folder import MANIFEST as AVATAR
from spatialavatar.errors import SpatialAvatarError
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
    for file, (_, read) in KINDS.items():
        if file in names:
            return read(location)
    known = ", ".join(f"{what} ({file})" for file, (what, _) in KINDS.items())
    found = "no such folder" if not files.exists(location) else "nothing that can be reported"
    raise SpatialAvatarError(f"{location}: {found}; expected the folder of {known}")
