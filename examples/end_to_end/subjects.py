"""The list of the fleet of end_to_end.sh: every clip of some data sets, and one that nobody can refine.

    python examples/end_to_end/subjects.py s3://avatars/shards/monocular s3://avatars/shards/multiview \
        --poison s3://avatars/clips/poison --out s3://avatars/subjects.jsonl

The poison is a sound clip with one damaged picture: its header and numbers can be read, its refinement fails.
"""

import json
from typing import Annotated

import typer

from spatialavatar import files
from spatialavatar.clip.header import FrameIndex
from spatialavatar.clip.writer import save_clip
from spatialavatar.shards import open_shards


def main(
    data: Annotated[list[str], typer.Argument(metavar="URL...", help="Data sets of shards.")],
    poison: Annotated[str, typer.Option(metavar="URL", help="Where the damaged clip goes.")],
    out: Annotated[str, typer.Option(metavar="URL", help="The list, .jsonl.")],
) -> None:
    """Write the list of a fleet's subjects, one of them damaged."""
    sets = [open_shards(url) for url in data]
    clip = sets[0].clip(0, whole=True)
    save_clip(clip, poison)
    files.write_bytes(files.join(poison, clip.header.frame_file("images", FrameIndex(1, 0))), b"\xff\xd8 broken off")
    rows = [{"id": key.replace("/", "-"), "clip": f"{s.location}#{key}"} for s in sets for key in s.column("key")]
    rows.insert(len(rows) // 2, {"id": "poison", "clip": poison})
    files.write_bytes(out, "".join(json.dumps(row) + "\n" for row in rows).encode())
    print(f"{out}: {len(rows)} subjects, one of them with a damaged picture")


if __name__ == "__main__":
    typer.run(main)
