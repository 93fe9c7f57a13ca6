"""Common style of all figures: sizes, fonts, colours, axes, provenance and file formats.

A system has the same colour, marker and dash in every figure: cool colours for baselines, warm ones for router systems.
The colours are distinguishable with the common colour vision deficiencies (Okabe and Ito; the others from Paul Tol's
muted set). No two series of a figure differ in hue alone, so a greyscale copy is readable.

    with style.using("talk", width=6):
        figures.save_all(figures.data(records), "slides", formats=("svg",))
"""

import contextlib
import functools
import io
import logging
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from erlab import textfiles
from erlab.results import metrics, selection
from erlab.results.records import Records
from erlab.spec import require

COLUMN, DOUBLE = 3.5, 7.16  # inches: one column and the full width of a two-column paper
STYLES = {"paper": 1.0, "notebook": 4 / 3, "talk": 12 / 7}  # scale factor relative to paper
_NARROW = 5.0  # inches: minimum width for panels side by side and for legible diagrams
DPI = 220
GREY = "#555555"
_RC = {
    "font.family": ["DejaVu Sans"],  # shipped with matplotlib, so available on every machine
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
    "text.parse_math": False,  # names come from records and hold no mathematics
    "svg.fonttype": "path",  # text as outlines: needs no font
    "svg.hashsalt": "erlab",  # deterministic element ids
    "pgf.rcfonts": False,  # use the fonts of the LaTeX document
    "pgf.texsystem": "lualatex",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


_SIZES = tuple(key for key, value in _RC.items() if isinstance(value, float | int) and not isinstance(value, bool))
_WIDE_FONTS = (  # those that have Chinese, Japanese and Korean characters, where installed
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "IPAexGothic", "PingFang SC", "Microsoft YaHei", "Arial Unicode MS",
)  # fmt: skip
_SCALED = tuple(key for key in _SIZES if key not in ("pdf.fonttype", "legend.handlelength", "legend.columnspacing"))
_UNDATED = {  # format: savefig options that leave out the date and the software's version
    "pdf": dict(metadata={"CreationDate": None}),
    "png": dict(metadata={"Software": None}),
    "svg": dict(metadata={"Date": None}),
    "pgf": {},
}
FORMATS = tuple(_UNDATED)
# The backend itself escapes ^ and %.
_LATEX = {ord(c): f"\\{c}" for c in "{}$&#_"} | {ord("\\"): "\\textbackslash{}", ord("~"): "\\textasciitilde{}"}


@dataclass(frozen=True)
class Size:
    """What `using` sets: scale factor relative to paper, width in inches (None: the figure's own), footer, axes."""

    scale: float = 1.0
    width: float | None = None
    footer: bool = True
    linear: bool = False


_SIZE: ContextVar[Size] = ContextVar("size", default=Size())


@contextlib.contextmanager
def using(
    style: str = "paper", width: float | None = None, footer: bool = True, linear: bool = False
) -> Iterator[None]:
    """Set the style and width of the figures created inside the context.

    Panels of a narrow figure are stacked; a diagram or table that would be illegible spans two columns.

    Args:
        width: Width of each figure in inches, from 1.5 to 40; None for the figure's own width.
        footer: Write the line of provenance under each figure.
        linear: Draw Fig. 7 on linear axes.
    """
    require(style in STYLES, "style", "figures", f"be one of {', '.join(STYLES)}", style)
    require(width is None or 1.5 <= width <= 40, "width", "figures", "be between 1.5 and 40 inches", width)
    token = _SIZE.set(Size(STYLES[style], width, footer, linear))
    try:
        yield
    finally:
        _SIZE.reset(token)


def inches(length: str | None) -> float | None:
    """Convert a length to inches: ``3.5in``, ``89mm``, ``8.9cm``, ``252pt`` or a number of inches.

    >>> inches("25.4mm"), inches("72pt"), inches("3.5")
    (1.0, 1.0, 3.5)
    """
    if length is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(in|mm|cm|pt|)", length.strip())
    require(match, "width", "figures", "be a length such as 3.5in, 89mm, 8.9cm or 252pt", length)
    return float(match[1]) / {"in": 1, "": 1, "mm": 25.4, "cm": 2.54, "pt": 72}[match[2]]


@dataclass(frozen=True)
class Look:
    """Colour, marker (filled or hollow) and dash of a line."""

    color: str
    marker: str
    dash: str | tuple
    filled: bool = True

    def line(self) -> dict:
        """Return the look as keyword arguments of `Axes.plot`."""
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
    """Return the i-th of a hundred pairs; ten consecutive pairs share neither colour nor marker."""
    return PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]


def looks(systems: Iterable[str]) -> dict[str, Look]:
    """Map each system to its look; other systems than the paper's follow by name."""
    names = sorted(set(systems))
    others = [n for n in names if n not in _SYSTEMS]
    known = _SYSTEMS | {n: Look(*color_and_marker(i), "-") for i, n in enumerate(others)}
    return {n: known[n] for n in names}


def overlaid(look: Look, index: int) -> Look:
    """Vary a look for the `index`-th overlaid records: same colour, other dash."""
    return replace(look, dash=DASHES[index % len(DASHES)], filled=(index + index // len(DASHES)) % 2 == 0)


@functools.cache
def _families() -> list[str]:
    """Return the fonts, in order: names of systems may have characters that the first lacks."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # many of them have no bold weight
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [*_RC["font.family"], *(name for name in _WIDE_FONTS if name in installed)]


class Picture(Figure):
    """Figure that Jupyter displays without pyplot, which would keep it open."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


def figure(width: float, height: float, diagram: bool = False, **layout) -> Figure:
    """Create an empty figure; `context` styles what is drawn on it later.

    Args:
        width: Width on paper in inches; `using` scales or replaces it.
        height: Height on paper in inches, scaled likewise.
        diagram: Keep the proportions, and use two columns where `using` asks for a narrow figure.
    """
    size = _SIZE.get()
    wide = size.width or width * size.scale
    if diagram and narrow():
        wide = 2 * wide + DOUBLE - 2 * COLUMN
    height *= wide / width if diagram else size.scale
    return Picture(figsize=(wide, height), layout="constrained", **layout)


def narrow() -> bool:
    """Return whether the width set by `using` has no room for panels side by side."""
    size = _SIZE.get()
    return size.width is not None and size.width < _NARROW * size.scale


def linear() -> bool:
    """Return whether `using` asks for linear axes."""
    return _SIZE.get().linear


def scale() -> float:
    """Return the scale factor of lines and markers relative to paper."""
    return _SIZE.get().scale


@contextlib.contextmanager
def context() -> Iterator[None]:
    """Apply the style; works as a context manager and as a decorator."""
    factor = scale()
    with matplotlib.rc_context(_RC | {"font.family": _families()} | {key: _RC[key] * factor for key in _SCALED}):
        yield


def render(fig: Figure, format: str) -> bytes:
    """Render a figure as the content of a file.

    The bytes are the same for the same input: they hold no date, and the first call fixes the layout.
    """
    require(format in FORMATS, "format", "figures", f"be one of {', '.join(FORMATS)}", format)
    buffer = io.BytesIO()
    with context(), _pgf_without_latex() if format == "pgf" else contextlib.nullcontext():
        if layout := fig.get_layout_engine():  # each run of the layout would start from the last and move the axes
            for _ in range(2):  # as savefig does
                layout.execute(fig)
            fig.set_layout_engine(None)
        fig.savefig(buffer, format=format, dpi=DPI, **_UNDATED[format])
    return buffer.getvalue()


@contextlib.contextmanager
def _pgf_without_latex() -> Iterator[None]:
    """Measure the text of PGF files with matplotlib's font metrics instead of LaTeX's, and escape markup."""
    from matplotlib.backends.backend_pgf import RendererPgf  # slow to import, and needed by this format alone

    by_latex, draw = RendererPgf.get_text_width_height_descent, RendererPgf.draw_text

    def draw_escaped(self, gc, x, y, text, *options, **more):
        draw(self, gc, x, y, text.translate(_LATEX), *options, **more)

    RendererPgf.get_text_width_height_descent = RendererBase.get_text_width_height_descent
    RendererPgf.draw_text = draw_escaped
    try:
        yield
    finally:
        RendererPgf.get_text_width_height_descent, RendererPgf.draw_text = by_latex, draw


def save(fig: Figure, folder: Path, name: str, table: pd.DataFrame | None = None) -> Figure:
    """Write a figure as PDF and PNG, and its table as CSV; return it."""
    for kind in ("pdf", "png"):
        textfiles.save(folder / f"{name}.{kind}", render(fig, kind))
    if table is not None:
        textfiles.save(folder / f"{name}.csv", table.to_csv(index=False))
    return fig


def users_axis(ax: Axes, loads: Sequence[int]) -> None:
    """Format the x axis: concurrent users, base-2 logarithm, one tick per load, no overlapping labels."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(min(loads) / 1.25, max(loads) * 1.25)
    ax.set_xticks(loads, _thinned(loads, room=labels_beside(ax) if len(loads) > 1 else 1))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Concurrent users")


def labels_beside(ax: Axes) -> int:
    """Return how many labels of a few digits fit side by side under a panel."""
    return max(2, int(3.2 * ax.figure.figure.get_figwidth() / scale() / ax.get_subplotspec().get_gridspec().ncols))


def _thinned(loads: Sequence[int], room: int) -> list[str]:
    """Return one label per load, empty where it is closer than 1/room of the axis to the next larger label."""
    ratio = (max(loads) / min(loads)) ** (1 / room)
    labels, last = [], float("inf")
    for load in sorted(loads, reverse=True):
        fits = load * ratio <= last * 1.0001
        labels.append(f"{load:g}" if fits else "")
        last = load if fits else last
    return labels[::-1]


def log_values(ax: Axes, name: str = "y") -> None:
    """Format an axis, x or y: logarithmic, with plain numbers at 1, 2 and 5 of each decade, at least two of them."""
    axis, limits = getattr(ax, f"{name}axis"), f"{name}lim"
    ax.set(**{f"{name}scale": "log"})
    low, high = getattr(ax, f"get_{limits}")()
    steps = [m * 10.0**e for e in range(-9, 9) for m in (1, 2, 5)]
    ticks = [t for t in steps if low <= t <= high]
    if len(ticks) < 2:
        low, high = max(t for t in steps if t <= low), min(t for t in steps if t >= high)
        ax.set(**{limits: (low, high)})
        ticks = [t for t in steps if low <= t <= high]
    if len(ticks) > 8:
        ticks = [t for t in ticks if f"{t:e}"[0] == "1"]
    axis.set_ticks(ticks)
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def handle(look: Look, label: str) -> Line2D:
    """Create the legend handle of a look."""
    return Line2D([], [], label=label, **look.line())


def legend(fig: Figure | SubFigure, handles: Sequence[Line2D], columns: int | None = None) -> None:
    """Add a legend above all axes, with as many columns as fit unless `columns` is given."""
    labels = [str(h.get_label()) for h in handles]
    columns = columns or _columns(labels, fig.figure.get_figwidth() / scale())
    fig.legend(handles=handles, loc="outside upper center", ncols=columns)


def _columns(labels: Sequence[str], width: float) -> int:
    """Return how many columns of a legend, filled column by column, fit into a width in inches on paper."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        longest = [max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows)]
        if sum(0.42 + 0.06 * n for n in longest) <= width:
            return -(-len(labels) // rows)  # no column stays empty
    return 1


def note(fig: Figure, text: str) -> None:
    """Add a line of text under a figure, wrapped to its width, unless `using` leaves it out."""
    if not _SIZE.get().footer:
        return
    size = matplotlib.rcParams["legend.fontsize"]
    joined = text.replace("commit ", "commit\xa0")  # keep the word and its number on one line
    wrapped = "\n".join(textwrap.wrap(joined, int(fig.get_figwidth() * 120 / size), break_long_words=False))
    fig.supxlabel(wrapped.replace("\xa0", " "), x=0.01, ha="left", fontsize=size, color=GREY)


def provenance(records: Records, requests: pd.DataFrame) -> str:
    """Describe how requests were obtained: source, machine, repetitions, warnings and commits.

    The line under each figure, for example
    ``measured on 2-core X (scale model: each core stands for a GPU), one seed · commit abc1234``.
    """
    runs = records.runs
    runs = runs[runs["run_id"].isin(requests["run_id"].unique())] if "run_id" in runs else pd.DataFrame()
    parts = []
    for source, rows in requests.groupby("source"):
        source_runs = runs[runs["run_id"].isin(rows["run_id"].unique())] if len(runs) else runs
        on_cores = source == "measured" and "cores" in source_runs and source_runs["cores"].notna().any()
        machines = selection.basis(source, rows["machine"]) + selection.by_one(selection.of_attached(records, rows))
        machines += " (scale model: each core stands for a GPU)" if on_cores else ""
        seeded = "seed" in source_runs and source_runs["seed"].notna().all()
        parts.append(f"{machines}, {_repetitions(rows, seeded)}")
        if warning := selection.warning(rows["run_id"], selection.marked(records)):
            parts.append(warning)
    commits = sorted(runs["commit"].dropna().unique()) if "commit" in runs else []
    return "; ".join(parts) + " · commit " + (", ".join(commits) or "unknown")


def _repetitions(requests: pd.DataFrame, seeded: bool) -> str:
    """Describe how often each system was run at each load, as seeds if all runs have one."""
    counts = requests.drop_duplicates("run_id").groupby(metrics.CELL, dropna=False).size()
    least, most = counts.min(), counts.max()
    word = "seed" if seeded else "run"
    return f"one {word}" if most == 1 else f"{least if least == most else f'{least} to {most}'} {word}s"
