"""A data set of shards: what is in it, what it looks like, and what the ingest set aside."""

from collections.abc import Mapping

from spatialavatar import files
from spatialavatar.clip.pictures import encode
from spatialavatar.report.content import Facts, Figure, Problem, Section, counted
from spatialavatar.shards.manifest import MANIFEST_FILE, REJECTED_FILE, open_shards
from spatialavatar.shards.report import summary
from spatialavatar.shards.sheet import sample_sheet

CLIPS_SHOWN = 4


def data_section(location: str) -> Section:
    """Raises SpatialAvatarError for a damaged data set."""
    shards = open_shards(location)
    found = summary(shards)
    rejected = f", {found['rejected']:,} rejected" if found["rejected"] else ""
    name = location.rstrip("/").rsplit("/", 1)[-1]
    section = Section(
        f"Data set {name}",
        location,
        f"{counted(found['identities'], 'person', 'people')}, {counted(found['clips'], 'clip')}, "
        f"{counted(found['frames'], 'frame')}{rejected}",
    )
    facts = {
        "people": f"{found['identities']:,}",
        "clips": f"{found['clips']:,} in {counted(found['shards'], 'shard')}, {found['bytes'] / 1e6:.1f} MB",
        "frames": f"{found['frames']:,}, {found['train_frames']:,} of them to train on",
        "pictures": _counts(found["resolutions"]),
        "cameras of a clip": _counts(found["cameras"]),
        "tracked by": _counts(found["tools"]),
        "head": f"{found['head']['id']}, licence {found['head']['licence']}",
        "licences of the pictures": _counts(found["licences"]),
    }
    section.parts.append(Facts(facts, files.join(location, MANIFEST_FILE)))
    if len(shards):
        sheet = encode(sample_sheet(shards, count=CLIPS_SHOWN), "jpg")
        section.parts.append(Figure(f"{min(CLIPS_SHOWN, len(shards))} clips, drawn", sheet, "jpeg", location))
    for item in shards.rejected:
        handling = f"set aside at try {item.attempts}; --retry-rejected tries it again, the others went on"
        section.problems.append(Problem(item.key, item.reason, handling, files.join(location, REJECTED_FILE)))
    return section


def _counts(found: Mapping[str, int]) -> str:
    return "; ".join(f"{value} ({count:,})" if len(found) > 1 else value for value, count in found.items())
