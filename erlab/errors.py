"""The one error a user can mend."""


class ErlabError(Exception):
    """A mistake or a lack on this machine that the reader of the message can mend.

    The command line prints the message as one line, without a traceback, and exits with status 2.
    The message names the parameter or file, what is allowed, and what came.
    """
