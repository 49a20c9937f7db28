"""``spatialavatar head``: make head model files and look into them."""

import re
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="""Head models: convert, generate, show what they are.

    \b
    Example:
      spatialavatar head info ict.head.safetensors
    """,
)

Out = Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The head file to write, *.head.safetensors.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite --out even when it is another head or no head.")]


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="FLAME .pkl, ICT .npz or ICT-FaceKit folder.")],
    out: Out,
    uv: Annotated[
        str | None, typer.Option(metavar="OBJ|NPZ", help="FLAME only: its unwrap, head_template.obj or an npz.")
    ] = None,
    id: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the head, e.g. flame2020 or flame2023-open.")
    ] = None,
    landmarks: Annotated[
        str | None, typer.Option(metavar="NPZ|NPY", help="FLAME only: an embedding of the 68 landmarks.")
    ] = None,
    codes: Annotated[
        str | None, typer.Option(metavar="S,E", help="FLAME only: shape and expression columns, if not 300,100.")
    ] = None,
    force: Force = False,
) -> None:
    """Convert a FLAME or ICT head model.

    From a FLAME pickle, the ICT archive or an ICT-FaceKit checkout.

    \b
    Examples:
      spatialavatar head convert generic_model.pkl --uv head_template.obj --out flame2020.head.safetensors
      spatialavatar head convert flame2023_Open.pkl --uv head_template.obj --id flame2023-open \\
          --out open.head.safetensors
      spatialavatar head convert ICT-FaceKit/ --out ict.head.safetensors
    """
    from spatialavatar.head.convert import convert_head
    from spatialavatar.head.file import write_head

    _claim(out, force)
    info, arrays = convert_head(source, uv=uv, id=id, landmarks=landmarks, codes=_two(codes))
    _refuse_another(out, info.id, force)
    head = write_head(out, info, arrays)
    _print_written(out, head)


@app.command()
def generate(out: Out, force: Force = False) -> None:
    """Make the built-in head, which needs no download.

    \b
    Example:
      spatialavatar head generate --out builtin.head.safetensors
    """
    from spatialavatar.head.builtin import HEAD_ID, generate_head
    from spatialavatar.head.file import write_head

    _claim(out, force)
    _refuse_another(out, HEAD_ID, force)
    head = write_head(out, *generate_head())
    _print_written(out, head)


@app.command()
def info(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A head file.")],
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what a head file holds, and its licence.

    \b
    Example:
      spatialavatar head info ict.head.safetensors
    """
    from json import dumps

    from spatialavatar.head.file import read_head

    facts = _facts(read_head(file))
    if json:
        typer.echo(dumps(facts, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        typer.echo(f"{name.replace('_', ' '):24} {shown if shown != '' else '-'}")


def _facts(head) -> dict[str, object]:  # type: ignore[no-untyped-def]
    from spatialavatar.head.model import JOINTS
    from spatialavatar.head.uv_layout import build_layout

    layout = build_layout(head, 256)
    return {
        "id": head.info.id,
        "vertices": head.vertex_count,
        "faces": head.faces.shape[0],
        "faces_with_uv": int((head.uv_faces >= 0).all(1).sum()),
        "shape_codes": head.shape_codes,
        "expression_codes": head.expression_codes,
        "pose_correctives": head.posedirs.shape[-1],
        "joints": list(JOINTS),
        "joints_follow_expression": head.info.joints_follow_expression,
        "mouth_opening_codes": head.info.mouth_opening_codes,
        "landmarks": head.landmark_faces.shape[0],
        "landmark_scheme": head.info.landmark_scheme,
        "charts": int(head.face_chart.max()) + 1,
        "parts": head.info.part_names,
        "texels_at_256": layout.count,
        "layout_at_256": layout.fingerprint,
        "licence": head.info.licence,
        "attribution": head.info.attribution,
        "hash": head.content_hash,
    }


def _print_written(out: str, head) -> None:  # type: ignore[no-untyped-def]
    typer.echo(
        f"{out}: {head.info.id}, {head.vertex_count} vertices, {head.shape_codes} shape and {head.expression_codes} "
        f"expression codes, licence {head.info.licence}"
    )
    typer.echo(f"Artefacts made with it must say: {head.info.attribution}")


def _two(codes: str | None) -> tuple[int, int] | None:
    if codes is None:
        return None
    from spatialavatar.errors import SpatialAvatarError

    match = re.fullmatch(r"(\d+),(\d+)", codes.replace(" ", ""))
    if match is None:
        raise SpatialAvatarError(f"--codes {codes}: expected two numbers, e.g. --codes 100,50")
    return int(match[1]), int(match[2])


def _claim(out: str, force: bool) -> None:
    """Refuse to overwrite anything but an earlier head file (which head it is, ``_refuse_another`` asks)."""
    from spatialavatar import files
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.head.file import SUFFIX, stored_head_id

    if not Path(out).name.endswith(SUFFIX):
        raise SpatialAvatarError(f"--out {out}: head files are named *{SUFFIX}; name it {Path(out).name}{SUFFIX}")
    if files.is_folder(out):
        raise SpatialAvatarError(f"--out {out}: is a folder, a file was expected")
    if files.exists(out) and not force and stored_head_id(out) is None:
        raise SpatialAvatarError(f"--out {out}: exists and is not a head file; name another, or add --force")


def _refuse_another(out: str, id: str, force: bool) -> None:
    """Refuse to put head ``id`` in the place of one with another id: clips and avatars may need that one."""
    from spatialavatar import files
    from spatialavatar.errors import SpatialAvatarError
    from spatialavatar.head.file import stored_head_id

    if force or not files.exists(out):
        return
    there = stored_head_id(out)
    if there is not None and there != id:
        raise SpatialAvatarError(f"--out {out}: holds head {there}, not {id}; name another file, or add --force")
