"""Server processes under a keeper, which removes all traces of them at their end."""

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Self

from erlab.errors import ErlabError
from erlab.serving.triton import keeper


def launch(
    command: Sequence[str], folder: Path, lock: int, grace: float, environment: Mapping[str, str], output: BinaryIO
) -> subprocess.Popen:
    """Start the keeper of a server command.

    Args:
        command: Program and arguments. It runs in `folder`, where Python programs look for modules first.
        folder: Private folder (`private.folder`), which the keeper removes at the end.
        grace: Seconds between the request to stop and SIGKILL.
        output: Log file of both.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), folder, str(grace), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**environment, keeper.MARK: str(folder)},
        cwd=folder,
        pass_fds=(lock,),
        start_new_session=True,  # the parent handles Ctrl-C in a terminal, not the server
    )


class ServerProcess(ABC):
    """Context manager of one server under a keeper. Its log is kept if it does not start or ends by itself."""

    log: Path | None = None
    _keeper: subprocess.Popen | None = None

    @abstractmethod
    def start(self) -> None:
        """Start the server without waiting: `launch` its keeper into `_keeper`."""

    @abstractmethod
    def wait(self) -> None:
        """Return when the server answers; ErlabError with the end of its log where it does not."""

    def _stop(self, keep_log: bool) -> None:
        """Stop the server if it runs."""
        if self._keeper:
            self._keeper.terminate()
            self._keeper.wait()
        self._keeper = None
        if self.log and not keep_log:
            self.log.unlink(missing_ok=True)

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
