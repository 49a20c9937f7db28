"""The one base exception. Its message is the line that a user reads: what, where, what was expected, what to do."""


class SpatialAvatarError(Exception):
    """Something that the user can put right: bad input, a missing file, artefacts that do not fit together.

    The command line prints the message as one line and exits with code 2; any other exception is our fault
    and exits with 1.
    """


class StoreError(SpatialAvatarError):
    """A store did not answer, or refused access: nothing is known to be wrong with what it holds."""


def without_traceback(error: Exception) -> Exception:
    """The same error, which no longer holds the frames that it passed through, and all that they hold."""
    linked: list[BaseException | None] = [error]
    seen = set()
    while linked:
        if (e := linked.pop()) is not None and id(e) not in seen:
            seen.add(id(e))
            e.__traceback__ = None
            linked += [e.__cause__, e.__context__]
    return error


def in_short(error: BaseException, longest: int = 200, plain: bool = False) -> str:
    """What an error of another library says, as one line inside a message of ours; its kind where it says nothing.

    ``plain``: in ASCII, for it may repeat what a damaged or hostile file holds.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return (ascii(text)[1:-1] if plain else text)[:longest]
