"""Keeper process: runs a server command for a parent process and removes all its traces at the end.

``python -I -S keeper.py PARENT_PID FOLDER GRACE COMMAND...`` ends when the command does, on SIGTERM, or when the parent
ends, even by SIGKILL. It then terminates the command, kills the rest of its process group after GRACE seconds, kills
all processes with FOLDER in the environment variable MARK, and removes FOLDER and shared memory whose name begins with
FOLDER's name. If the parent ended, it also removes the log FOLDER.log. Linux only.

It is a separate process because a killed parent cannot clean up, and because the kernel's parent-death signal follows
the thread that started a process, which in a notebook may end long before the notebook does.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_PARENT_CHECK_SECONDS = 0.5
MARK = "ERLAB_KEEPER_FOLDER"  # in the environment of a server and of what it starts


def keep(parent: int, folder: Path, grace: float, command: list[str]) -> int:
    """Run the command until it or the parent ends, or SIGTERM; return its exit status (negative: the signal)."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SET_CHILD_SUBREAPER, 1)  # orphans of the command become children of this process, which can wait for them
    awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)

    def in_child():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)

    try:
        server = subprocess.Popen(command, process_group=0, preexec_fn=in_child)
        try:
            while server.poll() is None and os.getppid() == parent:
                arrived = signal.sigtimedwait(awaited, _PARENT_CHECK_SECONDS)
                if arrived and arrived.si_signo != signal.SIGCHLD:
                    break
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(grace)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            status = server.wait()
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-server.pid, 0)  # any child in the command's process group
        return status
    finally:
        sweep(folder)
        if os.getppid() != parent:
            folder.with_suffix(".log").unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Kill processes that were started for a folder; remove its shared memory, Triton's scratch folders, the folder."""
    mark = f"{MARK}={folder}"
    for file in Path("/proc").glob("[0-9]*/environ"):
        if int(file.parent.name) != os.getpid() and mark in _read(file).split("\0"):
            with contextlib.suppress(OSError):
                os.kill(int(file.parent.name), signal.SIGKILL)
    for file in Path("/dev/shm").glob(f"{folder.name}*"):
        file.unlink(missing_ok=True)
    # A killed Triton leaves an empty folder whose name does not identify it, and a Triton aborts at its end if its own
    # is missing. So they are removed when no Triton runs.
    running = (_read(file).partition("\0")[0] for file in Path("/proc").glob("[0-9]*/cmdline"))
    if not any(Path(program).name == "tritonserver" for program in running):
        for scratch in Path("/tmp").glob("python_env_??????"):
            with contextlib.suppress(OSError):  # not empty, or somebody else's
                scratch.rmdir()
    shutil.rmtree(folder, ignore_errors=True)


def _read(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text(errors="replace")
    return ""


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
