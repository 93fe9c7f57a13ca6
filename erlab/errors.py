"""The error for users, and one-line reasons of any error."""


class ErlabError(Exception):
    """A mistake of the user or a missing requirement of this machine.

    The message names the parameter or file, what is allowed and what came. The command line prints it as one line,
    without a traceback, and exits with status 2.
    """


REASON = 1000  # characters of an error in a record, at most


def reason(error: BaseException) -> str:
    """Return an error's message in one line, of the first error of a group; its type where it has no message."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(str(error).split())[:REASON] or type(error).__name__
