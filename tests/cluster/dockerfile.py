"""What stands in cluster/Dockerfile."""

import re

from tests.docs.commands import CLUSTER


def instructions() -> list[tuple[str, str]]:
    """Instruction and the rest of it, lines joined, comments gone."""
    text = re.sub(r"^\s*#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def arguments() -> dict[str, str]:
    """Default of each ARG."""
    given = (rest.partition("=") for name, rest in instructions() if name == "ARG")
    return {name: value.strip('"') for name, _, value in given}


def working_directory() -> str:
    """In which a container starts."""
    return [rest for name, rest in instructions() if name == "WORKDIR"][-1]
