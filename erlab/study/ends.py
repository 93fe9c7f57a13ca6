"""Early ends of a command: Ctrl-C, SIGTERM, SIGHUP (closed terminal) and a full disk."""

import errno
import os
import signal
import stat
from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = tuple(os.strerror(number) for number in FULL)
_received = signal.SIGINT


def handled() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a command; without SIGHUP if it is ignored, as under ``nohup``."""
    hung_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return signal.SIGINT, signal.SIGTERM, *hung_up


def handle() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt in this process, as Ctrl-C does; each at most once."""

    def stop(number, frame):
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
        note(number)
        raise KeyboardInterrupt

    for number in handled()[1:]:
        signal.signal(number, stop)


def note(number: int) -> None:
    """Record the received signal; after SIGHUP, stop writing to the terminal, which is gone."""
    global _received
    _received = number
    if number == signal.SIGHUP:
        for descriptor in (1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                silence(descriptor)


def status() -> int:
    """Return the exit status after the received signal: 129 after SIGHUP, else 130."""
    return 128 + (signal.SIGHUP if _received == signal.SIGHUP else signal.SIGINT)


def silence(descriptor: int) -> None:
    """Discard everything that is written to a file descriptor."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def full(error: BaseException) -> str | None:
    """Return the message of a full disk in an error, its causes or its group; None if there is none."""
    for cause in _causes(error):
        if getattr(cause, "errno", None) in FULL or any(words in str(cause) for words in _FULL_WORDS):
            filename, reason = getattr(cause, "filename", None), getattr(cause, "strerror", None) or str(cause)
            return f"{filename}: {reason}" if filename else reason
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the errors that it groups and those that it arose from."""
    waiting, seen = [error], set()
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        context = None if cause.__suppress_context__ else cause.__context__
        waiting += [context, cause.__cause__, *getattr(cause, "exceptions", ())]
