"""Folders as values, to compare them."""

from pathlib import Path


def folder_content(folder: Path | str) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
