"""Private folders of server processes, with copies of model repositories under harmless paths.

Triton starts each Python model by a shell command with unquoted paths, and the model's interpreter decodes paths as
ASCII. A server therefore only gets paths of `HARMLESS` characters: those of a private folder, which links to the real
paths. The process that holds the folder's lock owns it, which is `keeper` while it lives.

>>> harmless("runs/erlab-1"), harmless("My Projects"), harmless("naïve")
(True, False, False)
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from erlab.errors import ErlabError
from erlab.serving.triton import keeper

with suppress(ImportError):
    import fcntl  # Linux only, as the servers are

HARMLESS = "letters, digits, '_', '-', '.' and '/'"
_ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")  # used if the path of the temporary folder is not harmless
_PATHS = ("engine_dir", "tokenizer_dir", "gpt_model_path")  # model parameters that name folders


def harmless(path: str | Path) -> bool:
    """Return whether a path needs no quoting in a shell and is ASCII."""
    return re.fullmatch(r"[A-Za-z0-9_./-]+", str(path)) is not None


def place() -> Path:
    """Return a writable folder for temporary files with a harmless path; ErlabError where there is none."""
    candidates = (tempfile.gettempdir(), *_ELSEWHERE)
    for folder in candidates:
        if harmless(folder) and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise ErlabError(
        f"TMPDIR must be a writable folder whose path has only {HARMLESS} (Triton hands it to a shell). "
        f"Got {candidates[0]!r}, and none of {', '.join(_ELSEWHERE)} is writable."
    )


@contextmanager
def folder(prefix: str) -> Iterator[tuple[Path, int]]:
    """Create a private folder, and first remove those of the same prefix whose keeper was killed.

    Yields:
        Path, and the descriptor that locks the folder, which the keeper inherits. The descriptor is closed at the end;
        the folder stays until its keeper removes it, or is removed here if the body fails.
    """
    sweep(prefix)
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=place()))
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            break
        os.close(lock)  # removed by another process before it was locked
    try:
        yield path, lock
    except BaseException:
        keeper.sweep(path)
        raise
    finally:
        os.close(lock)


def sweep(prefix: str) -> list[str]:
    """Remove the traces of this user's servers whose keeper was killed; return the names of their folders."""
    swept = []
    for path in place().glob(f"{prefix}*"):
        with suppress(OSError):
            if path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.getuid():
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                keeper.sweep(path)
                path.with_suffix(".log").unlink(missing_ok=True)
                swept.append(path.name)
            except BlockingIOError:
                pass  # its keeper runs
            finally:
                os.close(lock)
    return swept


def copy_models(repository: Path, models: Iterable[str], folder: Path, linked: bool = True) -> dict[Path, Path]:
    """Copy models of a repository to ``folder/models``.

    If a model's configuration names a folder by a path that is not harmless, the copy names ``folder/places/N``
    instead.

    Returns:
        Real folder of each ``folder/places/N``, which is a link or, for a container, to be mounted.
    """
    places: dict[Path, Path] = {}
    for model in models:
        source, copy = repository / model, folder / "models" / model
        if not source.is_dir():
            raise ErlabError(f"{source}: no such model folder.")
        copy.mkdir(parents=True)
        for entry in source.iterdir():
            if entry.name == "config.pbtxt" and (moved := _moved(entry.read_bytes(), folder / "places", places)):
                (copy / entry.name).write_bytes(moved)
            elif linked:
                (copy / entry.name).symlink_to(entry)
            elif entry.is_dir():
                shutil.copytree(entry, copy / entry.name)
            else:
                shutil.copy(entry, copy)
    for link, real in places.items() if linked else ():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(real)
    return places


def _moved(config: bytes, folder: Path, places: dict[Path, Path]) -> bytes | None:
    """Return a model's configuration with harmless paths; None if nothing changes or it cannot be parsed."""
    try:
        message = text_format.Parse(config, ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError):
        return None  # Triton reports the error
    named = {key: Path(message.parameters[key].string_value) for key in _PATHS if key in message.parameters}
    moved = {key: path for key, path in named.items() if not harmless(path)}
    if not moved:
        return None
    known = {real: link for link, real in places.items()}
    for key, real in moved.items():
        link = known.setdefault(real, folder / str(len(known)))
        places[link] = real
        message.parameters[key].string_value = str(link)
    return text_format.MessageToString(message).encode()
