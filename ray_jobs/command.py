"""What the entry points share towards the user: errors as one line, exit codes, signals, where output goes."""

import os
import signal
from pathlib import Path
from types import FrameType

import typer

from spatialavatar import files
from spatialavatar.cli.console import fail
from spatialavatar.errors import SpatialAvatarError

EXTRA = ("ray", "deepspeed")  # packages that the base install lacks


class Interrupted(Exception):
    """By the user or the job's end, where another command than the same goes on; the message says which."""


def run(app: typer.Typer, name: str) -> None:
    """Exit codes as of the ``spatialavatar`` command: 0 done, 2 the user's input, 1 our fault, 130 interrupted.

    SIGTERM, which a job that is stopped gets, interrupts as Ctrl-C does.
    """
    on_term = signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(prog_name=f"python -m {name}")
    except SpatialAvatarError as e:
        fail(str(e), 2)
    except Interrupted as e:
        fail(f"interrupted; {e}", 130)
    except (KeyboardInterrupt, SystemExit) as e:
        if isinstance(e, SystemExit) and e.code != 130:  # what typer makes of an interruption
            raise
        fail("interrupted; run the same command again to go on", 130)
    except OSError as e:
        where = e.filename2 or e.filename or "output"
        fail(f"{where}: {(e.strerror or str(e)).lower()}; what is finished is as it was", 2)
    except Exception as e:
        if os.environ.get("SPATIALAVATAR_DEBUG"):
            raise
        if isinstance(e, ModuleNotFoundError) and e.name in EXTRA:
            fail(f"{e.name} is not installed; install it with: pip install -e '.[ray]'", 2)
        fail(f"internal error: {type(e).__name__}: {e}; set SPATIALAVATAR_DEBUG=1 for the traceback and report it", 1)
    finally:
        signal.signal(signal.SIGTERM, on_term)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def output_folder(given: str | None, default: str, option: str = "--out") -> str:
    """Where the run goes. A submitted job's own folder is a copy that goes away: its default lies in the home folder.

    Raises SpatialAvatarError for a relative folder of a submitted job.
    """
    if not in_submitted_job():
        return files.absolute(given or default)
    if given is None:
        return str(Path.home() / default)
    if files.is_local(given) and not Path(files.local_path(given)).is_absolute():
        raise SpatialAvatarError(
            f"{option} {given}: a submitted job works in a copy of the repository that goes away; give a URL or an "
            "absolute path"
        )
    return files.absolute(given)


def in_submitted_job() -> bool:
    """Whether 'ray job submit' started this program, with a copy of the working folder."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "_ray_pkg_" in os.getcwd()
