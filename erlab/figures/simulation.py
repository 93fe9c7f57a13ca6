"""Figures of simulation studies: routing policies, autoscaling, cost, goodput, sensitivity, validation.

Each function draws a table of `erlab.experiments`; `PLOTS` maps the names of the tables to them. Figures of
several panels span two columns where figures are narrow (`style.using`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator, PercentFormatter, StrMethodFormatter

from erlab import provenance
from erlab.figures import style
from erlab.results import claims

_SIMULATED = "simulated on a DGX H100"
_ONCE = f"{_SIMULATED}, one seed per case"
_VERDICTS = {  # colour and mark
    claims.HOLDS: ("#cfe5f5", "✓"),
    claims.FAILS: ("#e39a5b", "✗"),
    claims.NOT_RUNNABLE: ("#f2f2f2", "–"),
}


@style.context()
def policies(table: pd.DataFrame) -> Figure:
    """Draw throughput and p99 time to first token of each clusterer and policy, one row of panels per load."""
    names, loads = list(dict.fromkeys(table["policy"])), sorted(table["users"].unique())
    imbalance = table.groupby("clusterer")["largest cluster"].first().sort_values()
    places = {name: i for i, name in enumerate(imbalance.index)}
    looks = _looks(names)
    fig = style.figure(style.DOUBLE, 0.55 + len(loads) * (0.55 + 0.36 * len(places)), diagram=True)
    axes = fig.subplots(len(loads), 2, squeeze=False, sharey=True)
    columns = {"output_throughput": "Output tokens/s", "ttft_p99_s": "99th percentile of time to first token (s)"}
    for users, row in zip(loads, axes):
        for ax, (column, label) in zip(row, columns.items()):
            for i, name in enumerate(names):
                cells = table[(table["policy"] == name) & (table["users"] == users)]
                y = cells["clusterer"].map(places) + (i / (len(names) - 1 or 1) - 0.5) * 0.7
                ax.plot(cells[column].astype(float), y, linestyle="", **looks[name])
            ax.set_title(f"{users:,} user{'s' * (users > 1)}")
            ax.set_xlabel(label if users == loads[-1] else "")
            ax.grid(axis="y", visible=False)
            ax.set_xlim(0, 1.08 * table.loc[table["users"] == users, column].max())
            for edge in np.arange(0.5, len(places) - 1):
                ax.axhline(edge, color="#e4e4e4", linewidth=0.5)
        row[0].set_yticks(list(places.values()), [f"{n}\nlargest {s:.0%}" for n, s in imbalance.items()])
    _legend(fig, looks)
    return _noted(fig, f"{_ONCE}, system {_only(table, 'system')}; real decisions on held-back prompts")


@style.context()
def autoscaling(table: pd.DataFrame) -> Figure:
    """Draw the share of requests within MLPerf's limits over the arrival rate, one line per controller."""
    names = dict.fromkeys(table["controller"])
    looks = {n: look | {"linestyle": dash} for (n, look), dash in zip(_looks(names).items(), style.DASHES)}
    fig = style.figure(style.COLUMN, 2.6)
    ax = fig.subplots()
    for name, rows in table.groupby("controller", sort=False):
        ax.plot(rows["rate"], rows["within"], **looks[name])
    ax.set_xticks(sorted(table["rate"].unique()))
    ax.set_xlabel("Arrival rate over all experts (requests/s)")
    ax.set_ylabel("Requests within MLPerf's limits")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(fig, looks)
    cold = _only(table, "cold_start_s")
    return _noted(fig, f"{_ONCE}, system {_only(table, 'system')}; cold start {cold:g} s (assumed)")


@style.context()
def economics(table: pd.DataFrame) -> Figure:
    """Draw cost and energy per token over users, one column of panels per version of the paper."""
    rows = {"dollars_per_million_tokens": "$ per million output tokens", "joules_per_token": "J per output token"}
    price = _only(table, "dollars_per_gpu_hour")
    return _over_users(
        table,
        list(rows.items()),
        style.log_values,
        f"{_SIMULATED}; ${price:g} per GPU hour (assumed), board power throughout",
    )


@style.context()
def goodput(table: pd.DataFrame) -> Figure:
    """Draw the rate of requests within both latency limits over users, one row of panels per pair of limits."""
    wide = table.pivot_table(index=["paper", "system", "users"], columns="limits", values="goodput").reset_index()
    labels = [(name, f"Requests/s within\n{name}'s limits") for name in dict.fromkeys(table["limits"])]
    return _over_users(wide, labels, lambda ax: ax.set_ylim(bottom=0), _SIMULATED)


@style.context()
def day(table: pd.DataFrame) -> Figure:
    """Draw arrivals, time to first token, queue and requests within MLPerf's limits over the time of a trace."""
    panels = {
        "arrivals": "Arrivals/s",
        "ttft_s": "Median time to\nfirst token, s",
        "waiting": "Most requests that\nwait for a first token",
        "within": "Within MLPerf's\nserver limits",
    }
    looks = {name: replace(look, marker="") for name, look in style.looks(table["system"]).items()}
    fig = style.figure(style.DOUBLE, 6.4)
    axes = dict(zip(panels, fig.subplots(len(panels), sharex=True)))
    for (system, routing), part in table.groupby(["system", "routing"], sort=False):
        look, even = looks[system], routing == "even"
        options = dict(color=look.color, linestyle=":" if even else look.dash, linewidth=1.2 if even else None)
        for column in list(panels)[1:]:
            axes[column].plot(part["hour"], part[column].astype(float), **options)
    first = table.groupby(["system", "routing"], sort=False).get_group(tuple(table[["system", "routing"]].iloc[0]))
    axes["arrivals"].fill_between(first["hour"], first["arrivals"], color="#b8b8b8", step="mid")
    for column, ax in axes.items():
        ax.set_ylabel(panels[column])
    axes["arrivals"].set_ylim(bottom=0)
    style.log_values(axes["ttft_s"])
    axes["waiting"].set_yscale("symlog", linthresh=10)
    axes["waiting"].set_ylim(bottom=0)
    axes["waiting"].yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes["within"].set_ylim(-0.05, 1.05)
    axes["within"].yaxis.set_major_formatter(PercentFormatter(1))
    axes["within"].set_xlabel("Hour of the trace")
    handles = [style.handle(look, name) for name, look in looks.items()]
    style.legend(fig, [*handles, Line2D([], [], color="black", linestyle=":", label="even clusters")])
    return _noted(fig, f"{_ONCE}; {_only(table, 'load')}; each request is sent at its time")


def _over_users(
    table: pd.DataFrame, rows: Sequence[tuple[str, str]], scale: Callable[[Axes], None], text: str
) -> Figure:
    """Draw lines over users: a row of panels per metric, a column per version."""
    versions = sorted(table["paper"].unique(), reverse=True)
    several = len(versions) > 1
    fig = style.figure(style.DOUBLE if several else style.COLUMN, 0.9 + 1.7 * len(rows), diagram=several)
    looks = style.looks(table["system"])
    axes = fig.subplots(len(rows), len(versions), squeeze=False, sharex=True)
    for (column, label), line in zip(rows, axes):
        for version, ax in zip(versions, line):
            for system, part in table[table["paper"] == version].groupby("system"):
                look, y = looks[system], part[column].astype(float)
                ax.plot(part["users"], y, color=look.color, marker=look.marker, linestyle=look.dash)
            style.users_axis(ax, sorted(table["users"].unique()))
            scale(ax)
        line[0].set_ylabel(label)
    for version, ax in zip(versions, axes[0]):  # a legend a version: their systems share some looks
        ax.set_title(f"paper {version}")
        shown = sorted(set(table.loc[table["paper"] == version, "system"]))
        ax.legend(handles=[style.handle(looks[system], system) for system in shown])
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    return _noted(fig, text)


@style.context()
def sensitivity(table: pd.DataFrame) -> Figure:
    """Draw each claim's verdict under each changed assumption, framed where it differs from the default's."""
    case = table["assumption"] + table["value"].fillna("").map(lambda v: f": {v}" if v else "")  # NaN in a CSV
    cases, ids = list(dict.fromkeys(case)), list(dict.fromkeys(table["id"]))
    verdicts = table.assign(case=case).pivot_table(index="case", columns="id", values="verdict", aggfunc="first")
    fig = style.figure(style.DOUBLE, 1.6 + 0.17 * len(cases), diagram=True)
    ax = fig.subplots()
    for y, name in enumerate(cases):
        for x, claim in enumerate(ids):
            verdict = verdicts.loc[name, claim]
            if pd.isna(verdict):
                continue
            color, mark = _VERDICTS[verdict]
            changed = verdict != verdicts.loc[cases[0], claim]
            frame_line = dict(linewidth=1.1, edgecolor="black") if changed else dict(linewidth=0)
            ax.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, facecolor=color, **frame_line))
            ax.text(x, y, mark, ha="center", va="center", fontsize=7 * style.scale())
    ax.set_xlim(-0.5, len(ids) - 0.5)
    ax.set_ylim(len(cases) - 0.5, -0.5)
    ax.set_xticks(range(len(ids)), ids, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(cases)), cases)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    handles = [Patch(facecolor=color, label=f"{mark} {verdict}") for verdict, (color, mark) in _VERDICTS.items()]
    handles.append(Patch(facecolor="none", edgecolor="black", label="differs from the default"))
    fig.legend(handles=handles, loc="outside upper center", ncols=4)
    loads = _only(table, "loads")
    return _noted(fig, f"{_ONCE}, at {loads} users; the default first, then one assumption changed at a time")


@style.context()
def published(table: pd.DataFrame) -> Figure:
    """Draw the ratio of predicted to published throughput, one panel per version, with the target shaded."""
    versions = sorted(table["version"].unique(), reverse=True)
    sizes = sorted(table["tp"].unique())
    colors = dict(zip(sizes, colormaps["viridis"](np.linspace(0, 0.85, len(sizes)))))  # from dark to light
    fig = style.figure(style.DOUBLE, 2.9, diagram=True)
    axes = fig.subplots(1, len(versions), squeeze=False, sharey=True)[0]
    markers = {"fp8": "o", "fp16": "s"}
    for version, ax in zip(versions, axes):
        rows = table[table["version"] == version]
        target = rows["target"].iloc[0]
        ax.axhspan(1 / (1 + target), 1 + target, color="#e8eef4", linewidth=0)
        ax.axhline(1, color=style.GREY, linewidth=0.7)
        for (quant, tp), cells in rows.groupby(["quant", "tp"]):
            ax.plot(
                cells["tokens_per_s"], cells["judged"], linestyle="", marker=markers[quant], color=colors[tp],
                markersize=3.6 * style.scale(), alpha=0.8, markeredgewidth=0,
            )  # fmt: skip
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_title(f"TensorRT-LLM {version}: " + _only(rows, "how"))
        ax.set_xlabel("Published output tokens/s")
        error = (rows["judged"] - 1).abs().median()
        text = f"{rows['judged'].notna().sum()} cells, median error {error:.1%}"
        ax.text(0.98, 0.03, text, transform=ax.transAxes, ha="right", fontsize=7 * style.scale())
    ticks = [0.5, 0.67, 0.8, 1, 1.25, 1.5, 2]
    axes[0].set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel("Predicted / published")
    handles = [Line2D([], [], linestyle="", marker="D", color=c, label=f"TP {tp}") for tp, c in colors.items()]
    handles += [Line2D([], [], linestyle="", marker=m, color=style.GREY, label=q.upper()) for q, m in markers.items()]
    style.legend(fig, handles)
    return _noted(fig, "simulated / published by NVIDIA (H100 SXM, throughput at saturation); shaded: the target")


@style.context()
def h200(table: pd.DataFrame) -> Figure:
    """Draw measured and predicted throughput, time per output token and time to first token over users."""
    panels = {
        "throughput": "Output tokens/s",
        "tpot_ms": "Median time per\noutput token (ms)",
        "ttft_s": "Median time to\nfirst token (s)",
    }
    fig = style.figure(style.DOUBLE, 2.3, diagram=True)
    dashed = dict(linestyle=(0, (4, 1.5)), markerfacecolor="white")
    looks = {
        "measured": dict(color="black", marker="o", linestyle="-", label="measured"),
        "predicted": dict(color="#D55E00", marker="D", label="simulated", **dashed),
    }
    for ax, (column, label) in zip(fig.subplots(1, 3), panels.items()):
        ax.plot(table["users"], table[column], **looks["measured"])
        ax.plot(table["users"], table[f"{column}_predicted"], **looks["predicted"])
        style.users_axis(ax, table["users"].tolist())
        style.log_values(ax)
        ax.set_ylabel(label)
    _legend(fig, looks)
    machine = "one H200 (vLLM 0.22, Llama 3 8B bf16, 512 input and 128 output tokens)"
    return _noted(fig, f"measured on and simulated for {machine}")


PLOTS: dict[str, Callable[[pd.DataFrame], Figure]] = {
    plot.__name__: plot for plot in (policies, autoscaling, economics, goodput, day, sensitivity, published, h200)
}


def _looks(names: Sequence[str]) -> dict[str, dict]:
    """Map each name to its colour, marker and label, as keyword arguments of `Axes.plot`."""
    pairs = map(style.color_and_marker, range(len(names)))
    return {n: dict(color=color, marker=marker, label=n) for n, (color, marker) in zip(names, pairs)}


def _legend(fig: Figure, looks: dict[str, dict]) -> None:
    style.legend(fig, [Line2D([], [], **{"linestyle": "", **look}) for look in looks.values()])


def _only(table: pd.DataFrame, column: str):
    """Return the value that all rows of a column share."""
    return table[column].iloc[0]


def _noted(fig: Figure, text: str) -> Figure:
    style.note(fig, f"{text} · commit {(provenance.commit() or 'unknown')[:7]}")
    return fig


def show(folder: Path, name: str, table: pd.DataFrame) -> Figure:
    """Draw a table with its function in `PLOTS`; write both to a folder."""
    return style.save(PLOTS[name](table), folder, name, table)
