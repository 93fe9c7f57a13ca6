"""Server processes that `keeper` watches over: how one is started, and what a context manager of one has to do."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Self

from erlab.errors import ErlabError
from erlab.serving.triton import keeper


def launch(
    command: Sequence[str], folder: Path, lock: int, grace: float, environment: Mapping[str, str], output: BinaryIO
) -> subprocess.Popen:
    """Start the keeper of `command`; both write to `output`. What happens to `folder` and after `grace` seconds, the
    keeper says. `folder` and `lock` are those of `private.folder`. `command` runs in `folder`, since Python programs
    look for modules where they run first."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), folder, str(grace), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**environment, keeper.MARK: str(folder)},
        cwd=folder,
        pass_fds=(lock,),
        start_new_session=True,  # Ctrl-C in a terminal is for us to handle, not for the server
    )


class Kept:
    """A context manager of one such server. `start` launches `_keeper`, `wait` returns when the server answers, and
    `_stop` ends it; its log is kept where it did not start or ended by itself."""

    _keeper: subprocess.Popen | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait()
        except BaseException as e:
            self._stop(keep_log=isinstance(e, ErlabError))
            raise
        return self

    def __exit__(self, *_) -> None:
        self._stop(keep_log=not self.alive())

    def alive(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None
