"""What servers of tests leave behind when they should not."""

import contextlib
from pathlib import Path


def nobodys_shared_memory() -> set[Path]:
    """The shared memory of Triton servers that no process has open: servers of other tests may run beside this one."""
    opened = ""
    for file in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            opened += file.read_text()
    return {file for file in Path("/dev/shm").glob("erlab-triton-*") if str(file) not in opened}
