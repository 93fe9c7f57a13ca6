"""Text files: UTF-8 in every locale, lines end at line feeds only, writes are atomic.

>>> lines("one\\u2028still one\\r\\ntwo\\n")
['one\\u2028still one', 'two']
>>> printable("a\\x1b[31m red\\ttab")
'a\ufffd[31m red\ufffdtab'
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erlab.errors import ErlabError

MAX_BYTES = 4 * 2**30  # a larger file is not one of text


def read(path: str | Path, most: int = MAX_BYTES) -> str:
    """Return the text of a file without a byte order mark.

    Args:
        path: Regular file.
        most: Largest size, bytes.

    Raises:
        ErlabError: The file is not regular, cannot be read, is larger, or is not UTF-8.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would block, or never end
            raise ErlabError(f"{path}: must be a file. Got {'a folder' if path.is_dir() else 'something else'}.")
        size = path.stat().st_size
        if size > most:
            raise ErlabError(f"{path}: must have at most {most:,} bytes. Got {size:,}.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ErlabError(f"{path}: must be UTF-8 text. Got the byte 0x{e.object[e.start]:02x} at {e.start:,}.") from None
    except (OSError, ValueError) as e:
        raise ErlabError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e}).") from None


def lines(text: str) -> list[str]:
    """Split text at line feeds only: a JSON string may contain the other line ends of Unicode."""
    parts = [line.removesuffix("\r") for line in text.split("\n")]
    return parts[:-1] if parts[-1] == "" else parts


def printable(text: str) -> str:
    """Return text with control and format characters, which affect a terminal, replaced."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def save(path: Path, content: str | bytes) -> Path:
    """Write a file atomically and return its path: it has all of `content`, or its former content."""
    path = Path(path)
    with replacing(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file that replaces `path` at the end; after a failure, `path` is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    except OSError as e:
        e.filename = str(path)  # the error of a full disk names no file
        raise
    finally:
        aside.unlink(missing_ok=True)
