"""The paper's seven figures and Table I, each a function of request records.

A figure's module has a CAPTION, `data(records)`, the plotted numbers, and `plot(records)`, the picture. Both raise
ErlabError, saying what is missing, where the records don't hold what the figure shows.

    from erlab import figures, records
    found = records.read("data/results/laptop/records")
    figures.fig4.plot(found)
    figures.save_all(found, "figures")
    figures.save_all(figures.overlay({"before": one, "after": other}), "compared", formats=("pdf", "pgf"))

To add a figure, write such a module and name it in FIGURES.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.figures import curves, fig1, fig2, fig3, fig4, fig5, fig6, fig7, style, table1
from erlab.results.records import Records, join
from erlab.spec import require

FIGURES = {m.__name__.rpartition(".")[2]: m for m in (fig1, fig2, fig3, fig4, fig5, fig6, fig7, table1)}


def missing(records: Records, only: Iterable[str] | None = None) -> dict[str, str]:
    """The figures (of `only`, or of all) that these records can't make, by name, and why."""
    reasons = {}
    for name in _chosen(only):
        try:
            FIGURES[name].data(records)
        except ErlabError as e:
            reasons[name] = str(e)
    return reasons


def show(name: str, records: Records) -> Figure | str:
    """The figure `name`, or why these records can't make it: what a notebook's cell ends with."""
    _chosen([name])
    try:
        return FIGURES[name].plot(records)
    except ErlabError as e:
        return f"{name} is left out: {e}"


def overlay(parts: Mapping[str, Records]) -> Records:
    """Several records joined, to be drawn over one another in Figs. 4 to 7 instead of in panels of their own.

    The keys name them in the legend, with measured or simulated behind.
    """
    joined = join(*parts.values())
    names = [name for name, part in parts.items() for _ in range(len(part.requests))]
    labels = pd.array(names) + ", " + joined.requests["source"]
    return Records(joined.requests.assign(**{curves.LABEL: labels}), joined.runs)


def save_all(
    records: Records,
    folder: str | Path,
    only: Iterable[str] | None = None,
    formats: Sequence[str] = ("pdf", "png"),
) -> list[Path]:
    """Write each figure in these formats (pdf, png, svg, pgf) and its plotted numbers as CSV (Table I also as
    Markdown); return the files.

    A figure that the records can't make is left out; `missing` says why. `style.using` sets sizes. The same records
    give the same bytes.
    """
    folder, absent = Path(folder), missing(records, only)
    return [path for name in _chosen(only) if name not in absent for path in _save(name, records, folder, formats)]


def _save(name: str, records: Records, folder: Path, formats: Sequence[str]) -> list[Path]:
    module = FIGURES[name]
    picture = module.plot(records)
    contents = {f"{name}.{kind}": style.render(picture, kind) for kind in formats}
    contents[f"{name}.csv"] = module.data(records).to_csv(index=False)
    if hasattr(module, "files"):
        contents |= module.files(records)
    return [textfiles.save(folder / file, content) for file, content in contents.items()]


def _chosen(only: Iterable[str] | None) -> list[str]:
    chosen = list(FIGURES) if only is None else list(only)
    for name in chosen:
        require(name in FIGURES, "only", "save_all", f"name figures of {', '.join(FIGURES)}", name)
    return chosen
