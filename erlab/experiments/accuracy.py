"""Accuracy of the simulation, for notebook 09: published measurements, residuals, fits and targets.

    new, old = accuracy.published(profile, "1.0"), accuracy.published(profile, "0.13")
    accuracy.targets(new, old, validation.validate_h200())
"""

import warnings

import numpy as np
import pandas as pd

from erlab import paper
from erlab.simulation import era, validation
from erlab.spec import Profile

TARGETS = {"throughput": 0.10, "tpot_ms": 0.10, "ttft_s": 0.25, "1.0": 0.10, "0.13": 0.15}  # median absolute errors


def published(profile: Profile, version: str) -> pd.DataFrame:
    """Compare the published cells of a version of TensorRT-LLM with the simulation (`validation.validate_published`).

    Args:
        version: "1.0" or "0.13".

    Returns:
        One row per cell. `judged`: ratio that the target is about. `how`: where it comes from, kernels as measured or
        cross-validated factors of the era.
    """
    with warnings.catch_warnings():  # joblib warns when it replaces a worker whose memory has grown
        warnings.filterwarnings("ignore", "A worker stopped")
        cells = validation.validate_published(version, sizes=profile.compared_sizes)
    untuned = version == "1.0"
    return cells.assign(
        version=version,
        judged=cells["ratio" if untuned else "fitted_ratio"],
        how="kernels as measured" if untuned else "era fitted on other lengths",
        target=TARGETS[version],
    )


def residuals(cells: pd.DataFrame) -> pd.DataFrame:
    """Compute the median ratio of predicted to published throughput by lengths, precision and tensor-parallel size.

    Above 1 the simulation is too fast.

    Returns:
        One row per pair of input and output length, one column per precision and tensor-parallel size.
    """
    shapes = [f"{i}/{o}" for i, o in zip(cells["isl"], cells["osl"])]
    kinds = [f"{quant} TP {tp}" for quant, tp in zip(cells["quant"], cells["tp"])]
    named = cells.assign(shape=shapes, kind=kinds).sort_values(["isl", "osl"])
    wide = named.pivot_table(index="shape", columns="kind", values="judged", aggfunc="median", sort=False)
    return wide.sort_index(axis=1).rename_axis(index="input/output", columns=None).round(2).reset_index()


def era_fit(cells: pd.DataFrame) -> pd.DataFrame:
    """Fit the era's factors to cells of `published`, beside the factors that the simulation uses."""
    rows = [
        {"precision": quant, "TP": tp, "decode": decode, "prefill": prefill}
        | dict(zip(("decode used", "prefill used"), era.FACTORS["0.13"][quant, tp]))
        for (quant, tp), (decode, prefill) in validation.fit_era(cells).items()
    ]
    return pd.DataFrame(rows).round(2)


def interpolation(seed: int = 0) -> pd.DataFrame:
    """Compute the relative error of interpolated iteration times for the engines of D and E, by kind of step."""
    rows = []
    for name in ("D", "E"):
        points = validation.interpolation(paper.SYSTEMS["v2"][name].expert, points=50, seed=seed)
        for step, part in points.groupby("step"):
            error = (part["ratio"] - 1).abs()
            row = {"engine": name, "step": step, "points": len(part)}
            rows.append(row | {"median error": error.median(), "largest error": error.max()})
    return pd.DataFrame(rows)


def targets(new: pd.DataFrame, old: pd.DataFrame, h200: pd.DataFrame) -> pd.DataFrame:
    """Compare the median absolute errors of the simulation with their targets, one row per comparison.

    The host's share of a prefill iteration was fitted to every second load of `h200`; the loads between have rows of
    their own.
    """
    comparisons = [
        ("published throughput, TensorRT-LLM 1.0, untuned", TARGETS["1.0"], new["judged"]),
        ("published throughput, TensorRT-LLM 0.13, era cross-validated", TARGETS["0.13"], old["judged"]),
    ]
    names = {"throughput": "throughput", "tpot_ms": "time per output token", "ttft_s": "time to first token"}
    for loads, part in (("all loads", h200), ("loads not used in the fit", h200.iloc[1::2])):
        comparisons += [
            (f"H200, {name}, {loads}", TARGETS[column], part[f"{column}_ratio"]) for column, name in names.items()
        ]
    rows = []
    for name, target, ratios in comparisons:
        reached = float((ratios.dropna() - 1).abs().median())
        rows.append({"against": name, "compared": int(ratios.notna().sum()), "target": target, "reached": reached})
    return pd.DataFrame(rows).assign(met=lambda table: np.where(table["reached"] <= table["target"], "yes", "no"))
