"""Writing results so that a reader never meets half a file."""

import os
from pathlib import Path


def save(path: Path, content: str | bytes) -> Path:
    """Write a file aside, then rename it: `path` holds all of `content` or what it held before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path
