"""Servers behind the gateway that cost little, each in a process of its own."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil

FAKE_TRITON = Path(__file__).parents[1] / "gateway" / "fake_server.py"
STUB = Path(__file__).parent / "stub_openai.py"


@contextmanager
def script(*command):
    """A script that prints one line when it is up and ends with its stdin; yields the process and that line."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, *map(str, command)], **pipes) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def cpu_seconds(pid):
    """CPU time of a process and its children, thread by thread: finer than the ticks that psutil counts in."""
    process = psutil.Process(pid)
    spent = 0
    for each in (process, *process.children(recursive=True)):
        for schedule in Path(f"/proc/{each.pid}/task").glob("*/schedstat"):
            spent += int(schedule.read_text().split()[0])
    return spent / 1e9
