"""TOML files whose tables have known keys; mistakes are one line with the nearest known key.

>>> check({"port": 8001}, {"port": int, "hosts": list[str]}, "fleet.toml")
{'port': 8001}
>>> check({"prot": 8001}, {"port": int, "hosts": list[str]}, "fleet.toml")
Traceback (most recent call last):
    ...
erlab.errors.ErlabError: fleet.toml: must not have the key 'prot'; did you mean 'port'?
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args, get_origin

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.spec import is_number

MAX_BYTES = 2**20  # of one file
_KINDS = {
    str: ("a string", lambda value: isinstance(value, str)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a number", is_number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    list: ("a list", lambda value: isinstance(value, list)),
    dict: ("a table", lambda value: isinstance(value, dict)),
}


def read(path: str | Path, most: int = MAX_BYTES) -> dict:
    """Return the content of a TOML file.

    Args:
        path: File.
        most: Largest size, bytes.

    Raises:
        ErlabError: The file cannot be read (see `textfiles.read`) or is not TOML.
    """
    try:
        return tomllib.loads(textfiles.read(path, most))
    except (ValueError, RecursionError) as e:
        raise ErlabError(f"{path}: must be TOML ({e}).") from None


def check(table: object, kinds: Mapping[str, object], where: str, required: Iterable[str] = ()) -> dict:
    """Return a table after checking its keys and the types of its values.

    Args:
        table: Part of a TOML file.
        kinds: Type of each known key: str, int, float (any finite number), bool, list, dict, or a list of one of them,
            such as ``list[str]``.
        where: File and table, as they begin the error.
        required: Keys that must be there.

    Raises:
        ErlabError: A key is unknown or missing, or a value has another type.
    """
    if not isinstance(table, dict):
        raise ErlabError(f"{where}: must be a table. Got {_short(table)}.")
    for name, value in table.items():
        if name not in kinds:
            raise ErlabError(f"{where}: must not have the key {_short(name)}; {nearest(name, kinds)}")
        allowed, fits = _kind(kinds[name])
        if not fits(value):
            raise ErlabError(f"{where}: {name!r} must be {allowed}. Got {_short(value)}.")
    for name in required:
        if name not in table:
            raise ErlabError(f"{where}: must have the key {name!r}.")
    return table


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest known one, all of them where none is near.

    >>> nearest("colum", ["column", "split"]), nearest("x", ["column", "split"])
    ("did you mean 'column'?", 'known: column, split.')
    """
    known = list(known)
    close = difflib.get_close_matches(name[:100], known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."


def _kind(kind: object) -> tuple:
    """Return what a value must be, in words, and its test."""
    if get_origin(kind) is not list:
        return _KINDS[kind]
    allowed, fits = _KINDS[get_args(kind)[0]]
    return f"a list, each item {allowed}", lambda value: isinstance(value, list) and all(map(fits, value))


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
