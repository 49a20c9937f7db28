"""What the commands share towards the user: progress, the device, finding the head of an artefact."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn, Protocol

import typer

if TYPE_CHECKING:
    import torch

    from spatialavatar.head import HeadModel, HeadReference
    from spatialavatar.head.reference import FoundHead

SECONDS_BETWEEN_LINES = 5.0  # of plain progress, where no terminal is

HeadOption = Annotated[
    str | None,
    typer.Option(
        "--head", metavar="FILE", help="Head file; needed when it is no longer where the avatar's maker had it."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, or cuda:1.")]
BackgroundOption = Annotated[str, typer.Option(help="Colour behind the head: white, black, or r,g,b in 0..1.")]


class Update(Protocol):
    def __call__(self, done: int, note: str = "", total: int | None = None) -> None: ...  # when it has changed


@contextmanager
def progress(title: str, total: int, estimate: bool = True) -> Iterator[Update]:
    """A bar in a terminal; elsewhere a plain line every few seconds and at the end, on stderr.

    Without ``estimate`` the time left is for the notes to say, where whole units tell too little of it.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            *([TimeRemainingColumn()] if estimate else []),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda done, note="", total=None: bar.update(task, completed=done, note=note, total=total)
        return

    began = last = time.monotonic()
    expected = total
    first: tuple[float, int] | None = None  # when and where work began: a resumed run does not begin at 0

    def line(done: int, note: str = "", total: int | None = None) -> None:
        nonlocal first, last, expected
        expected = total or expected
        now = time.monotonic()
        first = first or (now, done)
        if done >= expected or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = ""
            if estimate and done > first[1]:
                left = f", {(now - first[0]) / (done - first[1]) * (expected - done):.0f} s left"
            print(f"{title}: {done}/{expected}, {now - began:.0f} s{left}  {note}".rstrip(), file=sys.stderr)

    yield line


def fail(message: str, code: int) -> NoReturn:
    """An error as one line on stderr, and the program's end."""
    say(f"error: {' '.join(message.split())}")
    sys.exit(code)


def say(message: str) -> None:
    """A line for the user, on stderr: stdout is for results."""
    print(message, file=sys.stderr)


def tell_faults(where: str, faults: Sequence[object], sound: str = "no faults") -> None:
    """Each fault on a line of stdout and exit code 2, or a line that there are none."""
    for fault in faults:
        typer.echo(str(fault))
    if faults:
        typer.echo(f"{where}: {len(faults)} fault{'s' if len(faults) > 1 else ''}", err=True)
        raise typer.Exit(2)
    typer.echo(f"{where}: {sound}")


@contextmanager
def clean_stop(unit: str) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask to stop; gives a function that tells whether they did. A second one interrupts at once.

    ``unit`` names what is finished before: a step, an iteration.
    """
    requested = False

    def request(*_: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        say(f"stopping after this {unit}, with a checkpoint (press again to stop at once)")

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def one_of_resume_and_force(resume: bool, force: bool) -> None:
    """Raises SpatialAvatarError for both."""
    from spatialavatar.errors import SpatialAvatarError

    if resume and force:
        raise SpatialAvatarError("--resume goes on with a run, --force starts over: give one of them")


def choose_device(name: str) -> "torch.device":
    """Raises SpatialAvatarError for a device that this machine does not have."""
    import torch

    from spatialavatar.errors import SpatialAvatarError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if not (name == "cpu" or (kind == "cuda" and (not colon or (index.isascii() and index.isdigit())))):
        raise SpatialAvatarError(f"--device {name}: expected auto, cpu, cuda, or cuda:1 for the second of several")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SpatialAvatarError(f"--device {name}: no CUDA device here; 'spatialavatar doctor' says why")
    count = torch.cuda.device_count()
    if colon and int(index) >= count:
        raise SpatialAvatarError(f"--device {name}: this machine has cuda:0" + (f"..{count - 1}" if count > 1 else ""))
    return torch.device(f"cuda:{int(index)}" if colon else "cuda")


def parse_background(text: str) -> "torch.Tensor":
    import torch

    from spatialavatar.errors import SpatialAvatarError

    named = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
    try:
        values = named.get(text) or tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(0 <= v <= 1 for v in values):
        raise SpatialAvatarError(f"--background {text}: expected white, black or three numbers in 0..1 as 0.5,0.5,0.5")
    return torch.tensor(values)


def resolve_head(reference: "HeadReference", given: str | None, what: str, hints: list[str]) -> "HeadModel":
    """The head of an artefact: the given file, which must be the right one, or wherever it is found."""
    return locate_head(reference, given, what, hints).head


def locate_head(reference: "HeadReference", given: str | None, what: str, hints: list[str]) -> "FoundHead":
    """The same, with where it lies."""
    from spatialavatar.head import read_head
    from spatialavatar.head.reference import FoundHead
    from spatialavatar.head.reference import locate_head as search

    if given is None:
        return search(reference, what, hints)
    head = read_head(given)
    reference.require(head, what)
    return FoundHead(head, given)
