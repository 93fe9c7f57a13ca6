"""Request records as CSV, JSON lines or parquet, for other programs.

`FORMATS` has one writer per format. Unknown values are empty in CSV and null in JSON lines; `token_times` is a list of
ns, in CSV as JSON. Text is UTF-8, lines end with a line feed.
"""

import json
from pathlib import Path

import pandas as pd

from erlab import textfiles
from erlab.results import records
from erlab.spec import require

_ROWS = 10_000  # converted at a time


def write(found: records.Records, path: Path, form: str | None = None) -> Path:
    """Write records to a file and return its path; after a failure the file has its former content.

    Args:
        found: Request records.
        path: File.
        form: Name in `FORMATS` (default: the end of the file's name).

    Raises:
        ErlabError: There is no such format.
    """
    form = Path(path).suffix[1:] if form is None else form
    require(form in FORMATS, "format", "export", f"be one of {', '.join(FORMATS)}", form)
    if form == "parquet":
        records.save(path, found)
    else:
        with textfiles.replacing(Path(path)) as aside:
            FORMATS[form](found.requests, aside)
    return Path(path)


def _csv(requests: pd.DataFrame, path: Path) -> None:
    times = [None if t is None else json.dumps([int(ns) for ns in t]) for t in requests["token_times"]]
    requests.assign(token_times=times).to_csv(path, index=False, lineterminator="\n")


def _jsonl(requests: pd.DataFrame, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for start in range(0, len(requests), _ROWS):
            part = requests.iloc[start : start + _ROWS]
            times = [None if t is None else [int(ns) for ns in t] for t in part["token_times"]]
            plain = part.astype(object).where(part.notna(), None)
            rows = plain.assign(token_times=pd.Series(times, part.index, object)).to_dict("records")
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)


FORMATS = {"csv": _csv, "jsonl": _jsonl, "parquet": records.save}
