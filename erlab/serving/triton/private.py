"""Private folders of server processes: harmless names, one owner each, and copies of model repositories in them.

Triton starts every Python model by a shell, with the paths of its repository and of its backends unquoted, and the
model's interpreter decodes paths as ASCII. Therefore a server is only told paths made of `HARMLESS` characters: those
of a private folder, whose links lead to the real places. The process that holds the folder's lock owns it; `keeper`
does for as long as it lives.

>>> harmless("/tmp/erlab-triton-x1"), harmless("/home/me/My Projects"), harmless("/home/naïve")
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
_ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")  # where the user's temporary folder has another name
_PATHS = ("engine_dir", "tokenizer_dir", "gpt_model_path")  # parameters of models that name folders


def harmless(path: str | Path) -> bool:
    """Whether a path means the same to every shell and in every encoding."""
    return re.fullmatch(r"[A-Za-z0-9_./-]+", str(path)) is not None


def place() -> Path:
    """The folder of temporary files, or the first usual one with a harmless name; ErlabError where none is writable."""
    tried = (tempfile.gettempdir(), *_ELSEWHERE)
    for folder in tried:
        if harmless(folder) and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise ErlabError(
        f"TMPDIR must be a writable folder whose path has only {HARMLESS} (Triton hands it to a shell). "
        f"Got {tried[0]!r}, and none of {', '.join(_ELSEWHERE)} is writable."
    )


@contextmanager
def folder(prefix: str) -> Iterator[tuple[Path, int]]:
    """Make a private folder; yields its path and the descriptor that locks it, to be handed to the keeper.

    The descriptor is closed at the end, the folder stays: its keeper removes it. Folders of the same prefix that nobody
    holds any more, because their keeper was killed, are removed before. Removes the new one where the body fails.
    """
    sweep(prefix)
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=place()))
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            break
        os.close(lock)  # another process's sweep came between the two
    try:
        yield path, lock
    except BaseException:
        keeper.sweep(path)
        raise
    finally:
        os.close(lock)


def sweep(prefix: str) -> list[str]:
    """Remove what is left of this user's servers whose keeper was killed; the names of their folders."""
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
                pass  # its keeper lives
            finally:
                os.close(lock)
    return swept


def copy_models(repository: Path, models: Iterable[str], to: Path, linked: bool = True) -> dict[Path, Path]:
    """Write the repository ``to/models`` with these models, their files linked or copied.

    Where a model's parameters name an engine's or tokenizer's folder by a path that is not harmless, its new
    configuration names ``to/places/N`` instead. Returns the real folder of each of these.
    """
    places: dict[Path, Path] = {}
    for model in models:
        source, made = repository / model, to / "models" / model
        if not source.is_dir():
            raise ErlabError(f"{source}: no such model folder.")
        made.mkdir(parents=True)
        for entry in source.iterdir():
            if entry.name == "config.pbtxt" and (moved := _moved(entry.read_bytes(), to / "places", places)):
                (made / entry.name).write_bytes(moved)
            elif linked:
                (made / entry.name).symlink_to(entry)
            elif entry.is_dir():
                shutil.copytree(entry, made / entry.name)
            else:
                shutil.copy(entry, made)
    return places


def _moved(config: bytes, to: Path, places: dict[Path, Path]) -> bytes | None:
    """A model's configuration with harmless paths; None where there is nothing to change or it cannot be read."""
    try:
        message = text_format.Parse(config, ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError):
        return None  # Triton says what is wrong with it
    named = {key: Path(message.parameters[key].string_value) for key in _PATHS if key in message.parameters}
    moved = {key: path for key, path in named.items() if not harmless(path)}
    if not moved:
        return None
    known = {real: link for link, real in places.items()}
    for key, real in moved.items():
        link = known.setdefault(real, to / str(len(known)))
        places[link] = real
        message.parameters[key].string_value = str(link)
    return text_format.MessageToString(message).encode()
