"""Figures 1 to 7 and Table I of the paper, drawn from request records.

    from erlab import figures
    from erlab.results import records

    data = figures.data(records.read("data/results/laptop/records"))
    figures.show("fig4", data)
    figures.save_all(data, "figures")
    data.missing

Records drawn over one another instead of in separate panels (Figs. 4 to 7):

    joined = figures.overlay({"before": old_records, "after": new_records})
    figures.save_all(figures.data(joined), "compared", formats=("pdf", "pgf"))

A figure is a module with

- ``CAPTION``: text under the figure in the report;
- ``data(records) -> DataFrame``: the plotted numbers, with what else the figure shows (such as the line of provenance)
  in the table's ``attrs``; raises ErlabError where the records lack what the figure shows;
- ``plot(table) -> Figure``: the figure of such a table, in the common style (`style.context`, `curves.draw`);
- ``files(table) -> dict``: optional, further files by name.

To add a figure, write such a module and add it to `FIGURES`, which `erlab figures` and the report read; `COLUMNS` lists
the columns of the records that `erlab figures` reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.figures import cdf, curves, fig1, fig2, fig3, fig4, fig5, fig6, fig7, plane, slo, style, table1, timeline
from erlab.results.records import Records, join
from erlab.spec import require

FIGURES = {m.__name__.rpartition(".")[2]: m for m in (fig1, fig2, fig3, fig4, fig5, fig6, fig7, table1)}

MORE = {m.__name__.rpartition(".")[2]: m for m in (cdf, plane, slo, timeline)}  # drawn if they are named
COLUMNS = (  # and the required ones: the others, such as the time of each token, are most of a file
    "paper", "machine", "input_tokens", "output_tokens", "cluster", "expert", "queue_ns", "t_submit", "t_routed",
    "t_first", "t_last",
)  # fmt: skip


@dataclass(frozen=True)
class FigureData:
    """Plotted numbers of several figures.

    Attributes:
        tables: Table of each figure that the records can make, by the figure's name.
        missing: Reason for each figure that the records cannot make, by the figure's name.
    """

    tables: dict[str, pd.DataFrame]
    missing: dict[str, str]


def data(records: Records, only: Iterable[str] | None = None) -> FigureData:
    """Compute the plotted numbers of figures, by default those of `FIGURES`; `only` may also name some of `MORE`."""
    tables, missing, known = {}, {}, FIGURES | MORE
    for name in FIGURES if only is None else only:
        require(name in known, "only", "figures.data", f"name figures of {', '.join(known)}", name)
        try:
            tables[name] = known[name].data(records)
        except ErlabError as e:
            missing[name] = str(e)
    return FigureData(tables, missing)


def show(name: str, data: FigureData) -> Figure | str:
    """Draw one figure in a notebook; return the reason as text if it is missing."""
    known = [*data.tables, *data.missing]
    require(name in known, "name", "figures.show", f"be one of {', '.join(known)}", name)
    if name in data.missing:
        return f"{name} is left out: {data.missing[name]}"
    return (FIGURES | MORE)[name].plot(data.tables[name])


def save_all(data: FigureData, folder: str | Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write each figure, and its plotted numbers as CSV.

    The same records give the same bytes. `style.using` sets sizes.

    Returns:
        The written files; Table I is also written as Markdown.
    """
    return [path for name in data.tables for path in _save(name, data.tables[name], Path(folder), formats)]


def _save(name: str, table: pd.DataFrame, folder: Path, formats: Sequence[str]) -> list[Path]:
    module = (FIGURES | MORE)[name]
    figure = module.plot(table)
    contents = {f"{name}.{kind}": style.render(figure, kind) for kind in formats}
    contents[f"{name}.csv"] = table.to_csv(index=False)
    if hasattr(module, "files"):
        contents |= module.files(table)
    return [textfiles.save(folder / file, content) for file, content in contents.items()]


def overlay(parts: Mapping[str, Records]) -> Records:
    """Join records to be drawn over one another in Figs. 4 to 7.

    Args:
        parts: Records by the name that the legend shows, followed by measured or simulated.
    """
    joined = join(*parts.values())
    names = [name for name, part in parts.items() for _ in range(len(part.requests))]
    labels = pd.array(names) + ", " + joined.requests["source"]
    return Records(joined.requests.assign(**{curves.LABEL: labels}), joined.runs)
