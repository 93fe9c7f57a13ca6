"""How a command ends early: by Ctrl-C, by SIGTERM, by SIGHUP (its terminal was closed), or on a full disk."""

import errno
import os
import signal
import stat
from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = tuple(os.strerror(number) for number in FULL)
_came = signal.SIGINT


def heeded() -> tuple[signal.Signals, ...]:
    """The signals that stop a command: not SIGHUP where `nohup` or the like has it ignored."""
    hung_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return signal.SIGINT, signal.SIGTERM, *hung_up


def heed() -> None:
    """Have SIGTERM and SIGHUP stop this process as Ctrl-C does, by KeyboardInterrupt; each counts once."""

    def stop(number, frame):
        signal.signal(number, signal.SIG_IGN)  # what tidies up is not to be stopped in its turn
        note(number)
        raise KeyboardInterrupt

    for number in heeded()[1:]:
        signal.signal(number, stop)


def note(number: int) -> None:
    """Remember which signal came last. After SIGHUP nothing is written to the terminal, which is gone."""
    global _came
    _came = number
    if number == signal.SIGHUP:
        for descriptor in (1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                silence(descriptor)


def status() -> int:
    """The exit status after the signal that came: 129 after SIGHUP, else 130."""
    return 128 + (signal.SIGHUP if _came == signal.SIGHUP else signal.SIGINT)


def silence(descriptor: int) -> None:
    """Have what is written to this descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def full(error: BaseException) -> str | None:
    """What says, in an error, those it groups or those that it arose from, that a disk is full; None where nothing
    does."""
    for cause in _causes(error):
        if getattr(cause, "errno", None) in FULL or any(words in str(cause) for words in _FULL_WORDS):
            named, reason = getattr(cause, "filename", None), getattr(cause, "strerror", None) or str(cause)
            return f"{named}: {reason}" if named else reason
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    waiting, seen = [error], set()
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        context = None if cause.__suppress_context__ else cause.__context__
        waiting += [context, cause.__cause__, *getattr(cause, "exceptions", ())]
