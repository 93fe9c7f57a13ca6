"""One look for every figure: sizes, fonts, colours, axes of users, the line under it and its files.

A system has one colour, marker and dash everywhere: baselines cool, router systems warm. The colours are told apart
with the common colour vision deficiencies (Okabe and Ito; the rest from Paul Tol's muted set), and no two series of a
figure differ in hue alone, so that a grey copy can be read.

    with style.using("talk", width=6):
        figures.save_all(found, "slides", formats=("svg",))
"""

import contextlib
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_pgf import RendererPgf
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from erlab import textfiles
from erlab.results import metrics, selection
from erlab.results.records import Records
from erlab.spec import require

COLUMN, DOUBLE = 3.5, 7.16  # inches: one column and the full width of a two-column paper
STYLES = {"paper": 1.0, "notebook": 4 / 3, "talk": 12 / 7}  # how much larger than on paper everything is
_NARROW = 5.0  # inches: panels stand side by side from here on, and diagrams are legible
DPI = 220
GREY = "#555555"
_RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine has it
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # embedded TrueType
    "text.parse_math": False,  # names come from records, and none of ours is mathematics
    "svg.fonttype": "path",  # needs no font
    "svg.hashsalt": "erlab",  # the same names of its parts every time
    "pgf.rcfonts": False,  # the document's fonts
    "pgf.texsystem": "lualatex",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


_SIZES = tuple(key for key, value in _RC.items() if isinstance(value, float | int) and not isinstance(value, bool))
_SCALED = tuple(key for key in _SIZES if key not in ("pdf.fonttype", "legend.handlelength", "legend.columnspacing"))
_UNDATED = {  # a format: what leaves its date and the software's version out
    "pdf": dict(metadata={"CreationDate": None}),
    "png": dict(metadata={"Software": None}),
    "svg": dict(metadata={"Date": None}),
    "pgf": {},
}
FORMATS = tuple(_UNDATED)


@dataclass(frozen=True)
class Size:
    """How large figures are made: the factor over paper's sizes, and their width in inches (None: each its own)."""

    scale: float = 1.0
    width: float | None = None


_SIZE: ContextVar[Size] = ContextVar("size", default=Size())


@contextlib.contextmanager
def using(style: str = "paper", width: float | None = None) -> Iterator[None]:
    """Figures made inside have this style, of STYLES, and this width in inches.

    What is narrow has its panels below one another; a diagram or table that would not be legible spans two columns.
    """
    require(style in STYLES, "style", "figures", f"be one of {', '.join(STYLES)}", style)
    require(width is None or 1.5 <= width <= 40, "width", "figures", "be between 1.5 and 40 inches", width)
    token = _SIZE.set(Size(STYLES[style], width))
    try:
        yield
    finally:
        _SIZE.reset(token)


def inches(length: str | None) -> float | None:
    """A length as inches: ``3.5in``, ``89mm``, ``8.9cm``, ``252pt`` or a plain number of inches.

    >>> inches("25.4mm"), inches("72pt"), inches("3.5")
    (1.0, 1.0, 3.5)
    """
    if length is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(in|mm|cm|pt|)", length.strip())
    require(found, "width", "figures", "be a length such as 3.5in, 89mm, 8.9cm or 252pt", length)
    return float(found[1]) / {"in": 1, "": 1, "mm": 25.4, "cm": 2.54, "pt": 72}[found[2]]


@dataclass(frozen=True)
class Look:
    """A line's colour, marker (filled or hollow) and dash."""

    color: str
    marker: str
    dash: str | tuple
    filled: bool = True

    def line(self) -> dict:
        """As matplotlib's options of a line."""
        face = self.color if self.filled else "white"
        return dict(color=self.color, marker=self.marker, linestyle=self.dash, markerfacecolor=face)


_SYSTEMS = {
    "A": Look("#0072B2", "o", "-"),
    "B": Look("#56B4E9", "s", (0, (4, 1.5))),
    "C": Look("#009E73", "^", (0, (6, 1.5, 1, 1.5))),
    "D": Look("#D55E00", "D", "-"),
    "E": Look("#E69F00", "v", (0, (4, 1.5))),
    "TP8": Look("#000000", "o", "-"),
    "70B-INT8": Look("#999933", "P", "-"),
    "13B-FP16": Look("#CC79A7", "<", (0, (4, 1.5))),
    "13B-FP8": Look("#882255", "X", (0, (6, 1.5, 1, 1.5))),
}
PALETTE = ("#332288", "#88CCEE", "#44AA99", "#999933", "#CC6677", "#AA4499", "#DDCC77", "#117733", "#882255", "#661100")
MARKERS = "oDs^vPX*<>"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))


def color_and_marker(i: int) -> tuple[str, str]:
    """Those of the i-th of many things: a hundred pairs, of which ten in a row share neither."""
    return PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]


def looks(systems: Iterable[str]) -> dict[str, Look]:
    """Each system's look; systems that aren't the paper's share the rest of the palette in the order of their names."""
    names = sorted(set(systems))
    others = [n for n in names if n not in _SYSTEMS]
    free = {n: Look(*color_and_marker(i), "-") for i, n in enumerate(others)}
    return {n: _SYSTEMS[n] if n in _SYSTEMS else free[n] for n in names}


def overlaid(look: Look, place: int) -> Look:
    """A system's look in the `place`-th of several records drawn over one another: its colour, another dash (and, from
    the fifth on, the other filling)."""
    return replace(look, dash=DASHES[place % len(DASHES)], filled=(place + place // len(DASHES)) % 2 == 0)


class Picture(Figure):
    """A figure that Jupyter shows without pyplot, so that nothing is kept open behind it."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


def figure(width: float, height: float, diagram: bool = False, **layout) -> Figure:
    """An empty figure, inches on paper (`using` changes them); what is drawn on it later is styled by `context`.

    A diagram keeps its proportions and is never narrow.
    """
    size = _SIZE.get()
    wide = size.width or width * size.scale
    if diagram and narrow():
        wide = 2 * wide + DOUBLE - 2 * COLUMN
    height *= wide / width if diagram else size.scale
    return Picture(figsize=(wide, height), layout="constrained", **layout)


def narrow() -> bool:
    """Whether figures are made in a width that has no room for panels side by side."""
    size = _SIZE.get()
    return size.width is not None and size.width < _NARROW * size.scale


def scale() -> float:
    """How much larger than on paper lines and markers are drawn."""
    return _SIZE.get().scale


@contextlib.contextmanager
def context() -> Iterator[None]:
    """The style, as a context manager or a decorator."""
    factor = scale()
    with matplotlib.rc_context(_RC | {key: _RC[key] * factor for key in _SCALED}):
        yield


def render(fig: Figure, format: str) -> bytes:
    """The figure as a file's bytes (pdf, png, svg or pgf): the same for the same input, hence without dates, and however
    often it is asked for: the first time lays the figure out for good.

    Texts of a pgf are measured with this style's font, so that no LaTeX is needed to write it.
    """
    require(format in FORMATS, "format", "figures", f"be one of {', '.join(FORMATS)}", format)
    buffer = io.BytesIO()
    measure = RendererBase.get_text_width_height_descent
    with context(), mock.patch.object(RendererPgf, measure.__name__, measure):
        if layout := fig.get_layout_engine():  # each layout would start from the last and move things a little
            for _ in range(2):  # as often as savefig would
                layout.execute(fig)
            fig.set_layout_engine(None)
        fig.savefig(buffer, format=format, dpi=DPI, **_UNDATED[format])
    return buffer.getvalue()


def save(fig: Figure, folder: Path, name: str, frame: pd.DataFrame | None = None) -> Figure:
    """Write a picture as PDF and PNG and, if given, its numbers as CSV; return the picture."""
    for kind in ("pdf", "png"):
        textfiles.save(folder / f"{name}.{kind}", render(fig, kind))
    if frame is not None:
        textfiles.save(folder / f"{name}.csv", frame.to_csv(index=False))
    return fig


def users_axis(ax: Axes, loads: Sequence[int]) -> None:
    """Concurrent users on a base-2 logarithm with a tick at each real load; labels that would touch are left out."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(min(loads) / 1.25, max(loads) * 1.25)
    ax.set_xticks(loads, _thinned(loads, room=labels_beside(ax) if len(loads) > 1 else 1))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Concurrent users")


def labels_beside(ax: Axes) -> int:
    """How many labels of a few digits stand side by side under a panel without touching."""
    return max(2, int(3.2 * ax.figure.figure.get_figwidth() / scale() / ax.get_subplotspec().get_gridspec().ncols))


def _thinned(loads: Sequence[int], room: int) -> list[str]:
    """Labels from the largest load down, each at least 1/room of the axis from the last."""
    least = (max(loads) / min(loads)) ** (1 / room)
    labels, last = [], float("inf")
    for load in sorted(loads, reverse=True):
        keep = load * least <= last * 1.0001
        labels.append(f"{load:g}" if keep else "")
        last = load if keep else last
    return labels[::-1]


def log_values(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 of every decade, and at least two of them."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    steps = [m * 10.0**e for e in range(-9, 9) for m in (1, 2, 5)]
    ticks = [t for t in steps if low <= t <= high]
    if len(ticks) < 2:
        low, high = max(t for t in steps if t <= low), min(t for t in steps if t >= high)
        ax.set_ylim(low, high)
        ticks = [t for t in steps if low <= t <= high]
    if len(ticks) > 8:
        ticks = [t for t in ticks if f"{t:e}"[0] == "1"]
    ax.set_yticks(ticks)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def handle(look: Look, label: str) -> Line2D:
    return Line2D([], [], label=label, **look.line())


def legend(fig: Figure | SubFigure, handles: Sequence[Line2D], columns: int | None = None) -> None:
    """A legend above all axes, where it covers nothing; as many columns as fit if not given."""
    labels = [str(h.get_label()) for h in handles]
    columns = columns or _columns(labels, fig.figure.get_figwidth() / scale())
    fig.legend(handles=handles, loc="outside upper center", ncols=columns)


def _columns(labels: Sequence[str], width: float) -> int:
    """How many columns of a legend, filled one after the other, fit into so many inches on paper."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        longest = [max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows)]
        if sum(0.42 + 0.06 * n for n in longest) <= width:
            return -(-len(labels) // rows)  # no more than have a label in each row but the last
    return 1


def footer(fig: Figure, records: Records, requests: pd.DataFrame) -> None:
    """The line under a figure: measured or simulated, on what, from which commit."""
    note(fig, provenance(records, requests))


def note(fig: Figure, text: str) -> None:
    """A line of text under a figure, wrapped to its width."""
    size = matplotlib.rcParams["legend.fontsize"]
    kept = text.replace("commit ", "commit\xa0")  # on one line with its number
    wrapped = "\n".join(textwrap.wrap(kept, int(fig.get_figwidth() * 120 / size), break_long_words=False))
    fig.supxlabel(wrapped.replace("\xa0", " "), x=0.01, ha="left", fontsize=size, color=GREY)


def provenance(records: Records, requests: pd.DataFrame) -> str:
    """How the requests came about: ``measured on 2-core X (scale model: each core plays a GPU), one seed · commit abc1234``."""
    runs = records.runs
    runs = runs[runs["run_id"].isin(requests["run_id"].unique())] if "run_id" in runs else pd.DataFrame()
    parts = []
    for source, rows in requests.groupby("source"):
        mine = runs[runs["run_id"].isin(rows["run_id"].unique())] if len(runs) else runs
        scaled = source == "measured" and "cores" in mine and mine["cores"].notna().any()
        where = selection.basis(source, rows["machine"]) + selection.by_one(selection.of_attached(records, rows))
        where += " (scale model: each core plays a GPU)" if scaled else ""
        parts.append(f"{where}, {_repeated(rows, 'seed' in mine and mine['seed'].notna().all())}")
        if warning := selection.warning(rows["run_id"], selection.marked(records)):
            parts.append(warning)
    commits = sorted(runs["commit"].dropna().unique()) if "commit" in runs else []
    return "; ".join(parts) + " · commit " + (", ".join(commits) or "unknown")


def _repeated(requests: pd.DataFrame, seeded: bool) -> str:
    """How often each system was run under each load, in words; a run of a known seed is called by that."""
    counts = requests.drop_duplicates("run_id").groupby(metrics.CELL, dropna=False).size()
    least, most = counts.min(), counts.max()
    word = "seed" if seeded else "run"
    return f"one {word}" if most == 1 else f"{least if least == most else f'{least} to {most}'} {word}s"
