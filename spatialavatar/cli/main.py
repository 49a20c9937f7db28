"""The ``spatialavatar`` command. Exit codes: 0 done, 2 the user's input, 1 our fault, 130 interrupted."""

import os

# before torch and numba start their thread pools, which fight over the cores otherwise (splat/cpu/runtime.py)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import errno
import traceback
from typing import Annotated

import typer

from spatialavatar import __version__
from spatialavatar.cli import (
    animate,
    avatar,
    clip,
    demo,
    doctor,
    evaluate,
    export,
    fleet,
    head,
    model,
    reconstruct,
    refine,
    report,
    shards,
    train,
)
from spatialavatar.cli.console import fail
from spatialavatar.errors import SpatialAvatarError

app = typer.Typer(
    name="spatialavatar",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Tracked head videos in, animatable 3D Gaussian head avatars out.

    \b
    Examples:
      spatialavatar demo
      spatialavatar refine clips/anna --head flame2020.head.safetensors --out avatars/anna
      spatialavatar animate avatars/anna --driver clips/ben --out anna_as_ben.mp4
    """,
)
app.command("demo")(demo.demo)
app.command("reconstruct")(reconstruct.reconstruct)
app.command("refine")(refine.refine)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("animate")(animate.animate)
app.command("export")(export.export)
app.add_typer(avatar.app, name="avatar")
app.add_typer(head.app, name="head")
app.add_typer(model.app, name="model")
app.add_typer(clip.app, name="clip")
app.add_typer(shards.app, name="shards")
app.add_typer(fleet.app, name="fleet")
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)

# errors of the operating system that the user can put right
_SURROUNDINGS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}

_debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    global _debug
    _debug = debug


def run() -> None:
    """Entry point: every error becomes one line and an exit code."""
    try:
        app()
    except SpatialAvatarError as e:
        _fail(str(e), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as e:
        if _was_interrupted(e):
            _fail("interrupted", 130)
        if isinstance(e, OSError) and e.errno in _SURROUNDINGS:
            where = e.filename2 or e.filename or "output"
            _fail(f"{where}: {(e.strerror or str(e)).lower()}; finished files are as they were", 2)
        _fail(f"internal error: {type(e).__name__}: {e}; run again with 'spatialavatar --debug ...' and report it", 1)


def _was_interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: compiled code turns it into errors of its own."""
    behind = error.__cause__ or error.__context__
    return behind is not None and (isinstance(behind, KeyboardInterrupt) or _was_interrupted(behind))


def _fail(message: str, code: int) -> None:
    if _debug:
        traceback.print_exc()
    fail(message, code)
