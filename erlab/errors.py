"""The one error a user can mend, and what any error says in one line."""


class ErlabError(Exception):
    """A mistake or a lack on this machine that the reader of the message can mend.

    The command line prints the message as one line, without a traceback, and exits with status 2.
    The message names the parameter or file, what is allowed, and what came.
    """


REASON = 1000  # characters of an error that a record keeps


def reason(error: BaseException) -> str:
    """The error's own words on one line, of the first in a group; its type where it has none."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(str(error).split())[:REASON] or type(error).__name__
