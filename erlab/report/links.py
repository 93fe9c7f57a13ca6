"""Links of a report to the files of its study."""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from erlab.textfiles import printable


def record_files(folder: Path) -> dict[str, str]:
    """Return the link to the file of records that holds each run, by run id."""
    links = {}
    for file in sorted((folder / "records").rglob("*.parquet")):
        try:
            ids = pq.read_table(file, columns=["run_id"])["run_id"].unique().to_pylist()
        except (OSError, pa.ArrowInvalid):  # not records
            continue
        links |= dict.fromkeys(ids, address(file, folder))
    return links


def beside(folder: Path, figures_folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the names and links of the study's files by heading."""
    files = {
        "Executed notebooks": folder.glob("notebooks/*.html"),
        "Request records": folder.glob("records/**/*.parquet"),
        "Plotted numbers": figures_folder.glob("*.csv"),
        "Gateway overhead on emulated experts": [
            *folder.glob("overhead/*.csv"),
            *folder.glob("overhead/records/**/*.parquet"),
        ],
        "Comparison of routing recipes": folder.glob("routing/*.csv"),
        "Extensions and validation": [*folder.glob("beyond/*.csv"), *folder.glob("validation/*.csv")],
        "Claims and their numbers": [
            *(folder / n for n in ("claims.md", "claims.csv") if (folder / n).is_file()),
            *folder.glob("claims/*.csv"),
        ],
        "Manifest": folder.glob("manifest.json"),
    }
    return {heading: links for heading, paths in files.items() if (links := relative(paths, folder))}


def relative(paths: Iterable[Path], folder: Path) -> list[tuple[str, str]]:
    """Return the name and link of each file, relative to the folder."""
    return [(printable(p.name), address(p, folder)) for p in sorted(paths)]


def address(path: Path, folder: Path) -> Markup:
    """Return a file's percent-encoded path relative to the folder, safe in HTML and Markdown."""
    return Markup(quote(os.fsencode(os.path.relpath(path, folder))))
