"""Writing results so that a reader never meets half a file, and tables as Markdown."""

import os
from pathlib import Path

import pandas as pd


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


def markdown(frame: pd.DataFrame) -> str:
    """A GitHub-flavoured table; unknown values are left empty.

    >>> print(markdown(pd.DataFrame({"system": ["A", None], "note": ["x|y", ""]})), end="")
    | system | note |
    | --- | --- |
    | A | x\\|y |
    |  |  |
    """
    rows = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "".join("| " + " | ".join(map(_cell, row)) + " |\n" for row in rows)


def _cell(value) -> str:
    text = "" if pd.isna(value) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
