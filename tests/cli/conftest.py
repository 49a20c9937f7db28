"""The command line called in the test's own process."""

import sys
from typing import NamedTuple

import pytest

from spatialavatar.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Call the command in this process."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["spatialavatar", *map(str, arguments)])
        capfd.readouterr()
        try:
            main.run()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        return Result(code, *capfd.readouterr())

    return call
