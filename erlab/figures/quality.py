"""Figures of an evaluation of routers on outcomes (`erlab.quality.evaluation`). `PICTURES` is the registry.

    from erlab.figures import quality as pictures

    pictures.show("frontier", evaluation)
    pictures.save_all(evaluation, "figures")

A picture is two functions: `data(evaluation)` returns the plotted numbers, or None where the outcomes lack what the
picture shows; `plot(numbers)` draws them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from erlab import textfiles
from erlab.figures import style
from erlab.quality import measures
from erlab.quality.evaluation import Evaluation
from erlab.spec import require


def _accuracy(evaluation: Evaluation) -> pd.DataFrame:
    return evaluation.table()[["router", "accuracy", "accuracy_low", "accuracy_high", "decision_ms"]]


@style.context()
def _plot_accuracy(table: pd.DataFrame) -> Figure:
    table = table.sort_values("accuracy", kind="stable")
    fig = style.figure(style.COLUMN, 0.8 + 0.17 * len(table), diagram=True)
    ax = fig.subplots()
    errors = [table["accuracy"] - table["accuracy_low"], table["accuracy_high"] - table["accuracy"]]
    ax.errorbar(table["accuracy"], table["router"], xerr=errors, fmt="o", color=style.PALETTE[0], elinewidth=1)
    best = table.loc[table["router"] == "best_single", "accuracy"]
    ax.axvline(best.iloc[0], color=style.GREY, linestyle="--", linewidth=0.8)
    ax.set_xlabel("Mean score on unseen prompts")
    style.note(fig, "bars: 95 % interval; dashed: best single expert")
    return fig


def _frontier(evaluation: Evaluation) -> pd.DataFrame | None:
    curves = {name: evaluation.curve(name) for name in evaluation.choices}
    rows = [curve.assign(kind="router", router=name) for name, curve in curves.items() if curve is not None]
    if not rows:
        return None
    means = zip(evaluation.outcomes.experts, evaluation.outcomes.mean_costs(), evaluation.outcomes.mean_scores())
    experts = pd.DataFrame(means, columns=["router", "cost", "accuracy"]).assign(kind="expert")
    return pd.concat([*rows, experts], ignore_index=True)


@style.context()
def _plot_frontier(table: pd.DataFrame) -> Figure:
    fig = style.figure(style.DOUBLE, 3.2, diagram=True)
    ax = fig.subplots()
    curves, experts = table[table["kind"] == "router"], table[table["kind"] == "expert"]
    looks, handles = style.looks(curves["router"].unique()), []
    for name, rows in curves.groupby("router", sort=False):
        ax.plot(*measures.hull(rows["cost"], rows["accuracy"]), **looks[name].line())
        handles.append(style.handle(looks[name], name))
    ax.plot(experts["cost"], experts["accuracy"], "k*", markersize=7, zorder=3)
    for name, cost, score in experts[["router", "cost", "accuracy"]].itertuples(index=False):
        ax.annotate(name, (cost, score), xytext=(3, -7), textcoords="offset points", fontsize="x-small")
    handles.append(Line2D([], [], color="black", marker="*", linestyle="", label="single expert"))
    ax.set(xlabel="Mean cost per prompt, dollars", ylabel="Mean score (lines: convex hull)")
    style.legend(fig, handles)
    return fig


def _deferral(evaluation: Evaluation) -> pd.DataFrame | None:
    curves = {name: evaluation.deferral(name) for name in evaluation.choices}
    rows = [_thinned(curve).assign(router=name) for name, curve in curves.items() if curve is not None]
    strong, weak = (evaluation.outcomes.experts[i] for i in evaluation.pair)
    return pd.concat(rows, ignore_index=True).assign(strong=strong, weak=weak) if rows else None


def _thinned(curve: pd.DataFrame, points: int = 200) -> pd.DataFrame:
    """Return at most `points` rows, evenly spaced, first and last included."""
    rows = np.unique(np.linspace(0, len(curve) - 1, points).astype(int))
    return curve.iloc[rows]


@style.context()
def _plot_deferral(table: pd.DataFrame) -> Figure:
    fig = style.figure(style.DOUBLE, 3.2, diagram=True)
    ax = fig.subplots()
    looks = style.looks(table["router"].unique())
    for name, rows in table.groupby("router", sort=False):
        ax.plot(rows["share"], rows["accuracy"], **looks[name].line(), markevery=0.1)
    ax.set(xlabel=f"Share of prompts sent to {table['strong'].iloc[0]}", ylabel="Mean score of the answers")
    ax.set_title(f"otherwise {table['weak'].iloc[0]}", loc="left")
    style.legend(fig, [style.handle(looks[name], name) for name in table["router"].unique()])
    return fig


def _shares(evaluation: Evaluation) -> pd.DataFrame:
    return evaluation.shares()


@style.context()
def _plot_shares(table: pd.DataFrame) -> Figure:
    wide = 100 * table.pivot(index="router", columns="expert", values="share").loc[table["router"].unique()]
    return _heat(wide, "%", "{:.0f}")


def _tasks(evaluation: Evaluation) -> pd.DataFrame | None:
    return evaluation.tasks() if len(np.unique(evaluation.outcomes.tasks)) > 1 else None


@style.context()
def _plot_tasks(table: pd.DataFrame) -> Figure:
    counts = table.drop_duplicates("task").set_index("task")["prompts"]
    shown = counts.nlargest(20).index
    wide = 100 * table[table["task"].isin(shown)].pivot(index="router", columns="task", values="accuracy")
    wide = wide.loc[table["router"].unique(), shown]
    return _heat(wide.rename(columns=lambda task: f"{task} ({counts[task]})"), "mean score, %", "{:.0f}")


def _heat(wide: pd.DataFrame, label: str, form: str) -> Figure:
    fig = style.figure(max(style.COLUMN, 1.6 + 0.34 * wide.shape[1]), 1.6 + 0.16 * len(wide), diagram=True)
    ax = fig.subplots()
    labels = wide.map(lambda value: "" if np.isnan(value) else form.format(value))
    bar = dict(label=label)
    sns.heatmap(wide, annot=labels, fmt="", cmap="cividis", ax=ax, cbar_kws=bar, annot_kws=dict(fontsize="x-small"))
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=90)
    return fig


def _calibration(evaluation: Evaluation) -> pd.DataFrame | None:
    curves = {name: evaluation.calibration(name) for name in evaluation.choices}
    rows = [bins.assign(router=name) for name, bins in curves.items() if bins is not None]
    return pd.concat(rows, ignore_index=True) if rows else None


@style.context()
def _plot_calibration(table: pd.DataFrame) -> Figure:
    fig = style.figure(style.COLUMN, 3.4, diagram=True)
    ax = fig.subplots()
    ax.plot([0, 1], [0, 1], color=style.GREY, linestyle="--", linewidth=0.8)
    looks = style.looks(table["router"].unique())
    for name, rows in table.groupby("router", sort=False):
        ax.plot(rows["predicted"], rows["observed"], **looks[name].line())
    ax.set(xlabel="Predicted score", ylabel="Mean observed score", xlim=(0, 1), ylim=(0, 1))
    style.legend(fig, [style.handle(looks[name], name) for name in table["router"].unique()], columns=2)
    return fig


def _regret(evaluation: Evaluation) -> pd.DataFrame | None:
    rows = []
    for name, stream in evaluation.online.items():
        regret = (stream["best"] - stream["score"]).fillna(0)
        frame = pd.DataFrame({"prompt": np.arange(1, len(stream) + 1), "cumulative_regret": regret.cumsum()})
        rows.append(_thinned(frame.assign(router=name)))
    return pd.concat(rows, ignore_index=True) if rows else None


@style.context()
def _plot_regret(table: pd.DataFrame) -> Figure:
    fig = style.figure(style.COLUMN, 2.4, diagram=True)
    ax = fig.subplots()
    looks = style.looks(table["router"].unique())
    for name, rows in table.groupby("router", sort=False):
        ax.plot(rows["prompt"], rows["cumulative_regret"], **looks[name].line(), markevery=0.1)
    ax.set(xlabel="Prompts learned from", ylabel="Cumulative regret against the oracle")
    style.legend(fig, [style.handle(looks[name], name) for name in table["router"].unique()])
    return fig


@dataclass(frozen=True)
class Picture:
    """A figure of an evaluation.

    Attributes:
        data: Returns the plotted numbers, or None if there are none.
        plot: Draws them.
        missing: Why there may be none; empty if there always are some.
    """

    data: Callable[[Evaluation], pd.DataFrame | None]
    plot: Callable[[pd.DataFrame], Figure]
    missing: str = ""


PICTURES: dict[str, Picture] = {
    "accuracy": Picture(_accuracy, _plot_accuracy),
    "frontier": Picture(_frontier, _plot_frontier, "needs the score and cost of every prompt and expert"),
    "deferral": Picture(_deferral, _plot_deferral, "needs prompts that both experts answered"),
    "shares": Picture(_shares, _plot_shares),
    "tasks": Picture(_tasks, _plot_tasks, "needs several tasks"),
    "calibration": Picture(_calibration, _plot_calibration, "needs a router that predicts scores"),
    "regret": Picture(_regret, _plot_regret, "needs a router that learns online"),
}


def show(name: str, evaluation: Evaluation) -> Figure | str:
    """Draw one picture in a notebook; return the reason as text if it is missing."""
    require(name in PICTURES, "name", "quality.show", f"be one of {', '.join(PICTURES)}", name)
    table = PICTURES[name].data(evaluation)
    return f"{name} is left out: {PICTURES[name].missing}." if table is None else PICTURES[name].plot(table)


def save_all(evaluation: Evaluation, folder: str | Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write every picture and its plotted numbers as CSV, and the table of routers; return the files."""
    folder = Path(folder)
    files = [textfiles.save(folder / "routers.csv", evaluation.table().to_csv(index=False))]
    for name, picture in PICTURES.items():
        if (table := picture.data(evaluation)) is None:
            continue
        figure = picture.plot(table)
        files += [textfiles.save(folder / f"{name}.{kind}", style.render(figure, kind)) for kind in formats]
        files.append(textfiles.save(folder / f"{name}.csv", table.to_csv(index=False)))
    return files
