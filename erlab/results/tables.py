"""Tables as Markdown, CSV and percentages, and text that Markdown shows as it is."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from erlab import textfiles
from erlab.textfiles import printable

# What begins markup in running text; an underscore or a dollar sign only at a word's edge, an ampersand in an entity.
_MARKUP = re.compile(r"[\\`*\[\]|~#!]|(?<!\w)[_$]|[_$](?!\w)")
_ENTITY = re.compile(r"&(?=#?\w+;)|<")


def escaped(text: str) -> str:
    """Text on one line, without what Markdown, HTML or a terminal would act on.

    >>> print(escaped("a|b *c* <b> [d](e) snake_case &amp; 5 < 6"))
    a\\|b \\*c\\* &lt;b> \\[d\\](e) snake_case &amp;amp; 5 &lt; 6
    """
    line = printable(re.sub(r"\s*\n\s*", " ", text))
    line = _ENTITY.sub(lambda found: "&lt;" if found[0] == "<" else "&amp;", line)
    return _MARKUP.sub(r"\\\g<0>", line)


def markdown(frame: pd.DataFrame) -> str:
    """Format a table in GitHub-flavoured Markdown; unknown values are empty.

    >>> print(markdown(pd.DataFrame({"system": ["A", None], "note": ["x|y", ""]})), end="")
    | system | note |
    | --- | --- |
    | A | x\\|y |
    |  |  |
    """
    rows = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "".join("| " + " | ".join(map(_cell, row)) + " |\n" for row in rows)


def keep(folder: Path, name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Write a table as CSV into a folder, and return it."""
    textfiles.save(folder / f"{name}.csv", table.to_csv(index=False))
    return table


def percent(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return the table with some columns as percentages.

    >>> percent(pd.DataFrame({"error": [0.051]}), "error")["error"].item()
    '5.1%'
    """
    return table.assign(**{column: table[column].map("{:.1%}".format) for column in columns})


def _cell(value) -> str:
    return "" if pd.isna(value) else escaped(str(value))


def described(registry: Mapping[str, object]) -> Styler:
    """Show the first line of the docstring of each entry of a registry, one row per entry."""
    lines = {name: (inspect.getdoc(entry) or "").partition("\n")[0] for name, entry in registry.items()}
    return pd.DataFrame({"description": lines}).style.set_properties(**{"text-align": "left"})
