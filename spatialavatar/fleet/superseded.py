"""Removing what finished subjects have beside their records and avatars, once nobody writes any more."""

from collections.abc import Collection, Iterable, Mapping

from spatialavatar import files
from spatialavatar.errors import SpatialAvatarError
from spatialavatar.fleet.records import (
    AVATARS,
    FAILURES,
    RECORDS,
    UNFINISHED,
    Record,
    id_in,
    listed,
    remove,
    try_records,
)


def remove_superseded(out: files.Location, finished: Collection[str], known: Mapping[str, Record]) -> None:
    """Checkpoints, failures, records and avatars that are superseded; ``finished`` and ``known`` records by name."""
    current = {id_in(name): name for name in finished}
    records = [name for name in listed(out, RECORDS) if current.get(id_in(name), name) != name]
    remove(out, RECORDS, records)
    remove(out, FAILURES, [name for name in listed(out, FAILURES) if id_in(name) in current])
    unfinished = files.list_folder(files.join(out, UNFINISHED))
    remove(out, UNFINISHED, [name for name in unfinished if id_in(name) in current])
    remove(out, AVATARS, _superseded(out, files.list_folder(files.join(out, AVATARS)), current, known))


def _superseded(
    out: files.Location, avatars: Iterable[str], current: Mapping[str, str], known: Mapping[str, Record]
) -> list[str]:
    """Of the folders of finished subjects (names of records by id) those that no record names: neither the one on
    disk, which another process may have written since, nor the one that this run knows."""
    folders: dict[str, list[str]] = {}
    for avatar in avatars:
        folders.setdefault(id_in(avatar), []).append(avatar)
    several = {name: folders[id] for id, name in current.items() if len(folders.get(id, [])) > 1}
    gone: list[str] = []
    for name, record in try_records(out, several):
        if not isinstance(record, SpatialAvatarError):
            named = {found["avatar"].rpartition("/")[2] for found in (record, known.get(name, record))}
            gone += [avatar for avatar in several[name] if avatar not in named]
    return gone
