"""Where a report's links lead: the files beside it, and the file of records that holds each run."""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from erlab.textfiles import printable


def record_files(folder: Path) -> dict[str, str]:
    """The address, from the report, of the file of records that holds each run."""
    found = {}
    for file in sorted((folder / "records").rglob("*.parquet")):
        try:
            ids = pq.read_table(file, columns=["run_id"])["run_id"].unique().to_pylist()
        except (OSError, pa.ArrowInvalid):  # not records
            continue
        found |= dict.fromkeys(ids, address(file, folder))
    return found


def beside(folder: Path, figures_folder: Path) -> dict[str, list[tuple[str, str]]]:
    """What lies beside the report: heading -> (name, relative address)."""
    sought = {
        "Executed notebooks": folder.glob("notebooks/*.html"),
        "Request records": folder.glob("records/**/*.parquet"),
        "Plotted numbers": figures_folder.glob("*.csv"),
        "The gateway's cost on emulated experts": [
            *folder.glob("overhead/*.csv"),
            *folder.glob("overhead/records/**/*.parquet"),
        ],
        "Routing recipes compared": folder.glob("routing/*.csv"),
        "Beyond the paper, and validation": [*folder.glob("beyond/*.csv"), *folder.glob("validation/*.csv")],
        "Claims and what each was computed from": [
            *(folder / n for n in ("claims.md", "claims.csv") if (folder / n).is_file()),
            *folder.glob("claims/*.csv"),
        ],
        "Manifest": folder.glob("manifest.json"),
    }
    return {heading: links for heading, paths in sought.items() if (links := relative(paths, folder))}


def relative(paths: Iterable[Path], folder: Path) -> list[tuple[str, str]]:
    """(name, address from the folder) of each file."""
    return [(printable(p.name), address(p, folder)) for p in sorted(paths)]


def address(path: Path, folder: Path) -> Markup:
    """A file's address from the folder, percent-encoded: neither HTML nor Markdown finds anything to act on in it."""
    return Markup(quote(os.fsencode(os.path.relpath(path, folder))))
