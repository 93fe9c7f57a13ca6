"""Tables as Markdown."""

import pandas as pd


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
