"""Validation of the simulation.

It is compared with published throughputs, a measured H200, queueing theory, and direct queries of aiconfigurator.

    from erlab.simulation import validation
    cells = validation.validate_published("1.0")
    validation.summary(cells)       # median absolute error per precision and tensor-parallel size

Two results of these comparisons are inputs of the simulation: `era.FACTORS`, fitted by `fit_era` on the 0.13 cells
(their error is therefore cross-validated), and `HOST_PER_LAYER`, fitted by `fit_host` on every second load of the H200.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from scipy.optimize import least_squares, minimize_scalar

from erlab import paper, paths
from erlab.errors import ErlabError
from erlab.simulation import components, era, measured
from erlab.prompts.traffic import fixed_lengths, open_loop
from erlab.simulation.engine import Batching
from erlab.simulation.hardware import gpu
from erlab.simulation.steptimes import NS
from erlab.simulation.sweeps import SERIAL_REQUESTS
from erlab.simulation.system import Setup, simulate, step_times
from erlab.spec import BF16, FP8, FP16, GIB, Expert, Model, Precision, System, require

PUBLISHED = paths.DATA / "published" / "trtllm_h100_throughput.csv"
H200 = paths.DATA / "published" / "h200_vllm_llama3_8b_bf16.parquet"

_MODELS = {
    "LLaMA v2 7B": Model("Llama 2 7B", 4096, 32, 32, 32, 11008, 32000),
    "LLaMA v2 70B": paper.LLAMA_2_70B,
    "LLaMA v3 8B": paper.LLAMA_3_8B,
    "LLaMA v3.1 8B": paper.LLAMA_3_8B,
    "LLaMA v3 70B": paper.LLAMA_3_70B,
    "LLaMA v3.1 70B": paper.LLAMA_3_70B,
    "LLaMA v3.3 70B": paper.LLAMA_3_70B,
    "LLaMA v3.1 405B": Model("Llama 3.1 405B", 16384, 126, 128, 8, 53248, 128256),
    "8b": paper.LLAMA_3_8B,
    "70b": paper.LLAMA_3_70B,
}
_PRECISIONS = {"fp16": FP16, "fp8": FP8}  # of the published cells; FP8 of vLLM keeps the KV cache at 16 bits
_VLLM_PRECISIONS = {"bf16": BF16, "fp8": Precision("FP8, 16-bit KV", 8, 16, 8)}
_REQUESTS = {  # submitted by the published runs, by input and output tokens (same source)
    (128, 128): 30000, (128, 2048): 3000, (128, 4096): 1500, (1000, 2000): 1500, (2048, 128): 3000, (2048, 2048): 1500,
    (5000, 500): 1500, (1000, 1000): 3000, (500, 2000): 3000, (20000, 2000): 1000,
}  # fmt: skip
BENCHMARK = Setup(era=None, batching=Batching(chunked_context=True), free_fraction=0.95)  # published options


def _model(name: str) -> Model:
    if name not in _MODELS:
        raise ErlabError(f"The 'model' column must hold one of {', '.join(_MODELS)}. Got {name!r}.")
    return replace(_MODELS[name], max_positions=32768)


def validate_published(
    version: str,
    file: Path = PUBLISHED,
    setup: Setup = BENCHMARK,
    jobs: int | None = None,
    sizes: Collection[int] = (1, 2, 4, 8),
) -> pd.DataFrame:
    """Compare published saturation throughputs of TensorRT-LLM with the simulation.

    Args:
        version: Version of TensorRT-LLM, or its beginning.
        file: CSV with the columns of ``data/published/README.md``; `gpu` is H100 or H200, a suffix after a hyphen is
            ignored.
        jobs: Worker processes, as in `sweep`.
        sizes: Tensor-parallel sizes of the cells compared.

    Returns:
        One row per published cell. `tokens_per_s` is published; `predicted` uses the kernels as measured; `decode_s` is
        the total time of decoding and `prefill_s` the time that prefilling adds. `fitted` uses era factors fitted on
        the cells of the same precision and size with *other* input and output lengths, where these are at least four.
        NA where the model does not fit.
    """
    cells = pd.read_csv(file, dtype={"version": str})
    cells = cells[cells["version"].str.startswith(version) & cells["tp"].isin(sizes)].reset_index(drop=True)
    if cells.empty:
        raise ErlabError(f"{file}: no cells of version {version}.")
    tokens = _tokens(cells)
    distinct = dict.fromkeys(map(_identity, cells.itertuples()))
    if jobs is None:
        jobs = 1 if 2 * sum(_REQUESTS[lengths] for *_, lengths in distinct) <= SERIAL_REQUESTS else -1
    engines: dict[tuple, list] = {}  # cells by engine, so that its step times are tabulated once
    for *engine, lengths in distinct:
        engines.setdefault(tuple(engine), []).append(lengths)
    work = (joblib.delayed(_saturate_all)(setup, engine, lengths) for engine, lengths in engines.items())
    results = joblib.Parallel(jobs)(work)
    times = {(*engine, lengths): parts for result, engine in zip(results, engines) for lengths, parts in result.items()}
    parts = pd.DataFrame([times[_identity(cell)] for cell in cells.itertuples()], columns=["decode_s", "prefill_s"])
    cells = pd.concat([cells, parts], axis=1)
    cells["published_s"] = tokens / cells["tokens_per_s"]
    cells["predicted"] = tokens / (cells["decode_s"] + cells["prefill_s"])
    cells["ratio"] = cells["predicted"] / cells["tokens_per_s"]
    cells["fitted"] = tokens / _cross_validated(cells)
    cells["fitted_ratio"] = cells["fitted"] / cells["tokens_per_s"]
    return cells


def _identity(cell) -> tuple:
    return gpu(cell.gpu.split("-")[0]).name, _model(cell.model), cell.quant, cell.tp, (cell.isl, cell.osl)


def _tokens(cells: pd.DataFrame) -> pd.Series:
    """Total output tokens of each cell."""
    shapes = list(zip(cells["isl"], cells["osl"]))
    for shape in shapes:
        allowed = "hold input/output lengths whose number of requests is known"
        require(shape in _REQUESTS, "isl", "the published cells", allowed, "{}/{}".format(*shape))
    return cells["osl"] * [_REQUESTS[shape] for shape in shapes]


def _saturate_all(setup: Setup, engine: tuple, shapes: list[tuple[int, int]]) -> dict[tuple, tuple[float, float]]:
    """Apply `_saturate` to an engine's cells, keyed by their lengths."""
    return {shape: _saturate(setup, *engine, shape) for shape in shapes}


def _saturate(
    setup: Setup, machine: str, model: Model, quant: str, tp: int, lengths: tuple[int, int]
) -> tuple[float, float]:
    """Return the time (s) of decoding and that added by prefilling.

    All requests are submitted at once. The schedule of such requests does not depend on iteration times, so the total
    time is linear in both era factors and two simulations separate the parts.
    """
    require(quant in _PRECISIONS, "quant", "the published cells", f"hold one of {', '.join(_PRECISIONS)}", quant)
    expert, setup = Expert(model, _PRECISIONS[quant], tp, None, 2048, *lengths), replace(setup, gpu=machine)
    engine = System("published", "v2", expert, 1, router=False)
    load = fixed_lengths(_REQUESTS[lengths], 1, *lengths)
    try:
        total, more = (
            simulate(engine, traffic=load, setup=replace(setup, era=slower)).requests["t_last"].max() / NS
            for slower in ((1.0, 1.0), (1.0, 2.0))
        )
    except ErlabError:
        return np.nan, np.nan
    return 2 * total - more, more - total


def _factors(cells: pd.DataFrame) -> np.ndarray:
    """Fit decode and prefill factors to published times (soft L1)."""
    parts, target = cells[["decode_s", "prefill_s"]].to_numpy(float), cells["published_s"].to_numpy(float)
    misfit = lambda x: np.log(parts @ x / target)  # noqa: E731
    return least_squares(misfit, [1.0, 1.0], bounds=(0.3, 5.0), loss="soft_l1", f_scale=0.1).x


def fit_era(cells: pd.DataFrame) -> dict[tuple[str, int], tuple[float, float]]:
    """Fit era factors per precision and tensor-parallel size.

    Returns:
        (precision, size): (decode factor, prefill factor).
    """
    known = cells.dropna(subset=["decode_s"])
    return {
        (quant.upper(), int(tp)): tuple(float(x) for x in _factors(rows))
        for (quant, tp), rows in known.groupby(["quant", "tp"])
    }


def _cross_validated(cells: pd.DataFrame) -> pd.Series:
    """Predict each cell's time (s) with factors fitted on others."""
    seconds = pd.Series(np.nan, index=cells.index)
    known = cells.dropna(subset=["decode_s"])
    for _, rows in known.groupby(["quant", "tp"]):
        for _, held_out in rows.groupby(["isl", "osl"]):
            rest = rows.drop(held_out.index)
            if len(rest) >= 4:
                seconds[held_out.index] = held_out[["decode_s", "prefill_s"]].to_numpy(float) @ _factors(rest)
    return seconds


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Compute median absolute errors of rows of `validate_published`.

    Returns:
        One row per precision and size, and one for all cells: `error` untuned, `error fitted` with cross-validated
        factors.
    """
    errors = cells.assign(predicted=(cells["ratio"] - 1).abs(), fitted=(cells["fitted_ratio"] - 1).abs())
    groups = [(f"{quant} TP {tp}", rows) for (quant, tp), rows in errors.groupby(["quant", "tp"])]
    return pd.DataFrame(
        [
            {"cells": name, "n": int(rows["predicted"].notna().sum()), "median ratio": rows["ratio"].median(),
             "error": rows["predicted"].median(), "error fitted": rows["fitted"].median(),
             "90 % fitted": rows["fitted"].quantile(0.9)}
            for name, rows in [*groups, ("all", errors)]
        ]
    )  # fmt: skip


def implied_kv_pool(
    model: str = "LLaMA v3.1 70B", file: Path = PUBLISHED, setup: Setup = BENCHMARK, reserves: tuple = (4, 5, 6, 7, 8)
) -> pd.DataFrame:
    """Estimate the KV pool behind published cells of one GPU.

    These are the 0.13 cells of a 70B FP8 model; the pool limits their throughput.

    Args:
        model: `model` of the published cells.
        reserves: Memory reserved on the GPU, GiB.

    Returns:
        One row per reserve: pool (GiB), median predicted / published, and median absolute error.
    """
    cells = pd.read_csv(file, dtype={"version": str})
    chosen = (cells["version"] == "0.13.0") & (cells["model"] == model) & (cells["quant"] == "fp8") & (cells["tp"] == 1)
    cells, expert, rows = cells[chosen], Expert(_model(model), FP8), []
    require(len(cells) > 0, "model", "implied_kv_pool", "have FP8 cells on one GPU", model)
    decode, prefill = era.factors("0.13", "FP8", 1)
    for reserve in reserves:
        machine = replace(setup, reserve_gib=float(reserve))
        parts = np.array([_saturate(machine, *_identity(cell)) for cell in cells.itertuples()])
        ratio = _tokens(cells) / (parts @ (decode, prefill)) / cells["tokens_per_s"]
        pool = machine.pool(expert) * paper.kv_bytes_per_token(expert) / GIB
        error = (ratio - 1).abs().median()
        rows.append({"reserve_gib": reserve, "pool_gib": pool, "ratio": ratio.median(), "error": error})
    return pd.DataFrame(rows)


# ---- one H200 with vLLM

HOST_PER_LAYER = 0.00025  # s that the host adds per layer to an iteration that prefills; see `fit_host`
_DEFAULTS = {"model": "8b", "quant": "bf16", "kv_blocks": 0}  # of columns that the file may omit; 0: vLLM's own pool
_VLLM = measured.vllm("H200")


def validate_h200(file: Path = H200, host_per_layer: float = HOST_PER_LAYER) -> pd.DataFrame:
    """Compare a closed loop measured on an H200 with its simulation.

    The simulated users start when the measured ones did and pause for the same time between answer and next request.

    Args:
        file: Measurements (.parquet or .jsonl) with the columns of ``data/published/README.md``, and optionally `model`
            (8b, 70b), `quant` (bf16, fp8) and `kv_blocks`.
        host_per_layer: Seconds that the host adds per layer to an iteration that prefills. These iterations ran without
            CUDA graphs and compiled fusions, which the kernel data do not contain.

    Returns:
        One row per load: throughput (tokens/s), median time per output token (ms) and median time to first token (s),
        each as measured, predicted and their ratio.
    """
    file = Path(file)
    rows = pd.read_json(file, lines=True) if file.suffix == ".jsonl" else pd.read_parquet(file)
    rows = rows.assign(**{k: v for k, v in _DEFAULTS.items() if k not in rows})
    return pd.DataFrame([_compare_load(load, host_per_layer) for _, load in rows.groupby([*_DEFAULTS, "users"])])


def _compare_load(rows: pd.DataFrame, host_per_layer: float) -> dict:
    names = {"k": "turn", "isl": "input_tokens", "osl": "output_tokens"}
    times = {"submit": "t_submit", "first": "t_first", "last": "t_last"}  # seconds in the file, ns in records
    rows = rows.sort_values(["user", "k"]).rename(columns=names | times)
    load = measured.traffic(rows, ticks=1)
    ns = {name: (rows[name] * NS).astype("int64") for name in times.values()}
    requests = rows.assign(**ns, run_id="measured", status="ok")
    first = rows.iloc[0]
    model = _model(first["model"])
    allowed = f"hold one of {', '.join(_VLLM_PRECISIONS)}"
    require(first["quant"] in _VLLM_PRECISIONS, "quant", "the measured file", allowed, first["quant"])
    longest = int(rows["input_tokens"].max()), int(rows["output_tokens"].max())
    pool = int(first["kv_blocks"]) * _VLLM.batching.block_tokens or None
    expert = Expert(model, _VLLM_PRECISIONS[first["quant"]], 1, None, 256, *longest, pool)
    setup = replace(_VLLM, prefill_overhead=host_per_layer * model.layers)
    simulated = simulate(System("h200", "v2", expert, 1, router=False), traffic=load, setup=setup).requests
    kind = {"model": first["model"], "quant": first["quant"], "users": int(first["users"]), "requests": len(rows)}
    return kind | measured.ratios(requests, simulated)


def fit_host(file: Path = H200) -> pd.DataFrame:
    """Fit the host's time per layer and compare with `HOST_PER_LAYER`.

    The fit uses every second load and minimises the mean absolute logarithm of predicted / measured throughput.

    Returns:
        Two rows, `fitted` and `in use`: `host_us_per_layer`, and the median absolute errors of throughput, time per
        output token and time to first token on the loads that the fit does not use.
    """
    loads = validate_h200(file, 0.0)["users"].tolist()[::2]

    def misfit(per_layer: float) -> float:
        compared = validate_h200(file, per_layer)
        return float(np.log(compared.loc[compared["users"].isin(loads), "throughput_ratio"]).abs().mean())

    fitted = minimize_scalar(misfit, bounds=(0.0, 0.001), method="bounded", options={"xatol": 1e-5}).x
    rows = []
    for name, per_layer in (("fitted", float(fitted)), ("in use", HOST_PER_LAYER)):
        compared = validate_h200(file, per_layer)
        others = compared[~compared["users"].isin(loads)]
        errors = {f"{metric} error": (others[f"{metric}_ratio"] - 1).abs().median() for metric in measured.COMPARED}
        rows.append({"value": name, "host_us_per_layer": per_layer * 1e6} | errors)
    return pd.DataFrame(rows)


# ---- theory, bounds and interpolation


def identities(setup: Setup = Setup(), seed: int = 0) -> pd.DataFrame:
    """Compare system E's engine with identities of queueing theory and arithmetic.

    One user: the sum of the iteration times. Saturation: Little's law on a closed loop, users = throughput × response
    time. Batch size 1 with Poisson arrivals of equal requests: mean wait of M/D/1, ρ s / 2 (1 − ρ).

    Returns:
        One row per identity: simulated and expected value and their ratio.
    """
    expert = replace(paper.SYSTEMS["v2"]["E"].expert, max_input_tokens=512, max_output_tokens=128)
    times, engine = step_times(expert, setup), System("identity", "v2", expert, 1, router=False)
    service = times.mixed(0, 0, 1, 512, (), 1) + sum(times.decode(1, 512 + j) for j in range(127))

    session = simulate(engine, traffic=fixed_lengths(1, 1, 512, 128), setup=setup).requests
    rows = [("one user: response time, s", (session["t_last"] - session["t_submit"]).iloc[0] / NS, service / NS)]

    saturated = simulate(engine, traffic=fixed_lengths(300, 40, 512, 128), setup=setup).requests
    start, end = (int(saturated["t_last"].quantile(q)) for q in (0.2, 0.8))
    rate = saturated["t_last"].between(start, end, inclusive="right").sum() / (end - start)
    response = (saturated["t_last"] - saturated["t_submit"])[saturated["t_submit"].between(start, end)].mean()
    rows.append(("saturation: users = rate × response time", rate * response, 300.0))

    single = replace(engine, expert=replace(expert, max_batch_size=1))
    load, n = 0.6, 20_000
    at = np.cumsum(np.random.default_rng(seed).exponential(service / NS / load, n))
    queue = simulate(single, traffic=open_loop(at, [512] * n, [128] * n), setup=setup).requests
    wait = (queue["t_last"] - queue["t_submit"]).mean() - service
    rows.append((f"batch 1, load {load}: M/D/1's mean wait, s", wait / NS, load * service / NS / (2 * (1 - load))))
    frame = pd.DataFrame(rows, columns=["identity", "simulated", "expected"])
    return frame.assign(ratio=frame["simulated"] / frame["expected"])


def bounds(setup: Setup = Setup(era=None), systems: dict[str, System] = paper.SYSTEMS["v2"]) -> pd.DataFrame:
    """Compare step times (ms) of each system's engine with the roofline."""
    rows = []
    for name, system in systems.items():
        times = step_times(system.expert, setup)
        roofline = step_times(system.expert, replace(setup, steps="roofline"))
        for step, duration in (
            ("decode, batch 1, context 500", lambda t: t.decode(1, 500)),
            ("decode, batch 256, context 500", lambda t: t.decode(256, 500)),
            ("prefill 500 tokens", lambda t: t.mixed(0, 0, 1, 500, (), 1)),
        ):
            ms, limit = duration(times) / 1e6, duration(roofline) / 1e6
            rows.append({"system": name, "step": step, "ms": ms, "roofline_ms": limit, "ratio": ms / limit})
    return pd.DataFrame(rows)


def interpolation(expert: Expert, setup: Setup = Setup(era=None), points: int = 200, seed: int = 0) -> pd.DataFrame:
    """Compare interpolated iteration times (ms) with aiconfigurator at random points."""
    times, parts = step_times(expert, setup), components.engine_parts(expert, gpu(setup.gpu), setup.software)
    rng = np.random.default_rng(seed)
    rows = []

    def compare(step: str, tokens: int, direct: float, table: float) -> None:
        rows.append(
            {"step": step, "tokens": tokens, "direct_ms": direct, "table_ms": table, "ratio": table / direct}
        )

    for _ in range(points):
        batch, context = int(rng.integers(1, 257)), int(rng.integers(1, times.longest))
        direct = parts.body(batch) + parts.logits(batch) + parts.decode(batch, context)
        compare("decode", batch, direct, times.decode(batch, context) / 1e6)
        prompts, mean = int(rng.integers(1, 9)), int(rng.integers(8, 1024))
        direct = parts.body(prompts * mean) + parts.logits(prompts) + parts.prefill(prompts, mean, 0)
        compare("prefill", prompts * mean, direct, times.mixed(0, 0, prompts, prompts * mean, (), prompts) / 1e6)
    return pd.DataFrame(rows)

