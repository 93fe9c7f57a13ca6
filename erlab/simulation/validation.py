"""How wrong the simulation is: against published tables, a measured H200, queueing theory and its own interpolation.

    from erlab.simulation import validation
    cells = validation.validate_published("1.0")
    validation.summary(cells)       # median absolute error by precision and tensor-parallel size

Nothing of these comparisons is used by the simulation but `era.FACTORS` (fitted by `fit_era` on the 0.13 cells, whose
error is therefore cross-validated) and `HOST_PER_LAYER` (fitted by `fit_host` on every second load of the H200 file).
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from scipy.optimize import least_squares, minimize_scalar

from erlab import paper, paths
from erlab.errors import ErlabError
from erlab.results import metrics
from erlab.simulation import components, era, system
from erlab.simulation.components import Software
from erlab.simulation.engine import Batching
from erlab.simulation.hardware import gpu
from erlab.simulation.steptimes import NS
from erlab.simulation.sweeps import ALONE
from erlab.simulation.system import Setup, Traffic, fixed_lengths, simulate, step_times
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
_PRECISIONS = {"fp16": FP16, "fp8": FP8}  # published; vLLM's own FP8 keeps the KV cache at 16 bits
_VLLM_PRECISIONS = {"bf16": BF16, "fp8": Precision("FP8, 16-bit KV", 8, 16, 8)}
_REQUESTS = {  # how many the published runs submitted, by input and output tokens (same source)
    (128, 128): 30000, (128, 2048): 3000, (128, 4096): 1500, (1000, 2000): 1500, (2048, 128): 3000, (2048, 2048): 1500,
    (5000, 500): 1500, (1000, 1000): 3000, (500, 2000): 3000, (20000, 2000): 1000,
}  # fmt: skip
BENCHMARK = Setup(era=None, batching=Batching(chunked_context=True), free_fraction=0.95)  # trtllm-bench, as published


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
    """A row a published cell of this version and these tensor-parallel sizes: published and predicted output tokens/s
    at saturation on the cell's `gpu` (H100 or H200, whatever follows a hyphen), their ratio.

    `predicted` uses the kernels as measured. `decode_s` and `prefill_s` are what decoding takes in all and what
    prefilling adds. Where several cells of a precision and size allow it, `fitted` corrects for the era with factors
    fitted on the cells of all *other* input and output lengths. NA where the model does not fit. `jobs` as in `sweep`.
    """
    cells = pd.read_csv(file, dtype={"version": str})
    cells = cells[cells["version"].str.startswith(version) & cells["tp"].isin(sizes)].reset_index(drop=True)
    if cells.empty:
        raise ErlabError(f"{file}: no cells of version {version}.")
    tokens = _tokens(cells)
    asked = dict.fromkeys(map(_identity, cells.itertuples()))
    if jobs is None:
        jobs = 1 if 2 * sum(_REQUESTS[lengths] for *_, lengths in asked) <= ALONE else -1
    engines: dict[tuple, list] = {}  # an engine's cells together, so that its step times are tabulated once
    for *engine, lengths in asked:
        engines.setdefault(tuple(engine), []).append(lengths)
    work = (joblib.delayed(_saturated)(setup, engine, lengths) for engine, lengths in engines.items())
    found = joblib.Parallel(jobs)(work)
    spent = {(*engine, lengths): times for part, engine in zip(found, engines) for lengths, times in part.items()}
    parts = pd.DataFrame([spent[_identity(cell)] for cell in cells.itertuples()], columns=["decode_s", "prefill_s"])
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
    """Output tokens of all requests of each cell."""
    shapes = list(zip(cells["isl"], cells["osl"]))
    for shape in shapes:
        allowed = "hold input/output lengths whose number of requests is known"
        require(shape in _REQUESTS, "isl", "the published cells", allowed, "{}/{}".format(*shape))
    return cells["osl"] * [_REQUESTS[shape] for shape in shapes]


def _saturated(setup: Setup, engine: tuple, lengths: list[tuple[int, int]]) -> dict[tuple, tuple[float, float]]:
    """`_saturate` of one engine's cells, by their lengths."""
    return {one: _saturate(setup, *engine, one) for one in lengths}


def _saturate(
    setup: Setup, machine: str, model: Model, quant: str, tp: int, lengths: tuple[int, int]
) -> tuple[float, float]:
    """Seconds decoding takes in all, and seconds prefilling adds, when a published cell's requests come at once.

    The schedule of requests that are all there from the start does not depend on how long iterations take, so the
    total is linear in both factors and two runs tell the parts.
    """
    require(quant in _PRECISIONS, "quant", "the published cells", f"hold one of {', '.join(_PRECISIONS)}", quant)
    expert, setup = Expert(model, _PRECISIONS[quant], tp, None, 2048, *lengths), replace(setup, gpu=machine)
    one = System("published", "v2", expert, 1, router=False)
    load = fixed_lengths(_REQUESTS[lengths], 1, *lengths)
    try:
        total, more = (
            simulate(one, traffic=load, setup=replace(setup, era=slower)).requests["t_last"].max() / NS
            for slower in ((1.0, 1.0), (1.0, 2.0))
        )
    except ErlabError:
        return np.nan, np.nan
    return 2 * total - more, more - total


def _factors(cells: pd.DataFrame) -> np.ndarray:
    """The decode and prefill factors that bring predicted times nearest the published ones (relative, robust)."""
    parts, target = cells[["decode_s", "prefill_s"]].to_numpy(float), cells["published_s"].to_numpy(float)
    misfit = lambda x: np.log(parts @ x / target)  # noqa: E731
    return least_squares(misfit, [1.0, 1.0], bounds=(0.3, 5.0), loss="soft_l1", f_scale=0.1).x


def fit_era(cells: pd.DataFrame) -> dict[tuple[str, int], tuple[float, float]]:
    """Decode and prefill factor of each precision and tensor-parallel size, fitted on all of `validate_published`."""
    known = cells.dropna(subset=["decode_s"])
    return {
        (quant.upper(), int(tp)): tuple(float(x) for x in _factors(rows))
        for (quant, tp), rows in known.groupby(["quant", "tp"])
    }


def _cross_validated(cells: pd.DataFrame) -> pd.Series:
    """Seconds a cell takes by factors fitted on the cells of its precision and size but of other lengths."""
    seconds = pd.Series(np.nan, index=cells.index)
    known = cells.dropna(subset=["decode_s"])
    for _, rows in known.groupby(["quant", "tp"]):
        for _, held_out in rows.groupby(["isl", "osl"]):
            rest = rows.drop(held_out.index)
            if len(rest) >= 4:
                seconds[held_out.index] = held_out[["decode_s", "prefill_s"]].to_numpy(float) @ _factors(rest)
    return seconds


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Median absolute error of each precision and size and of all: untuned, and with the era's cross-validated fit."""
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
    """Which KV pool the published 0.13 cells of a 70B FP8 model on one GPU imply, where the pool decides throughput:
    by GiB a GPU reserved, the pool in GiB, median predicted / published, and median absolute error, in that era."""
    cells = pd.read_csv(file, dtype={"version": str})
    chosen = (cells["version"] == "0.13.0") & (cells["model"] == model) & (cells["quant"] == "fp8") & (cells["tp"] == 1)
    cells, expert, rows = cells[chosen], Expert(_model(model), FP8), []
    require(len(cells) > 0, "model", "implied_kv_pool", "have FP8 cells on one GPU", model)
    decode, prefill = era.factors("0.13", "FP8", 1)
    for reserve in reserves:
        it = replace(setup, reserve_gib=float(reserve))
        parts = np.array([_saturate(it, *_identity(cell)) for cell in cells.itertuples()])
        ratio = _tokens(cells) / (parts @ (decode, prefill)) / cells["tokens_per_s"]
        pool = it.pool(expert) * paper.kv_bytes_per_token(expert) / GIB
        error = (ratio - 1).abs().median()
        rows.append({"reserve_gib": reserve, "pool_gib": pool, "ratio": ratio.median(), "error": error})
    return pd.DataFrame(rows)


# ---- one H200 with vLLM

HOST_PER_LAYER = 0.00025  # s: what the host adds a layer to an iteration that prefills; see `fit_host`
_KIND = {"model": "8b", "quant": "bf16", "kv_blocks": 0}  # what a file of one kind need not say; 0: vLLM's own pool
_VLLM = Setup(  # vLLM reserves no blocks for tokens to come, and since 0.14 it chooses batches ahead by default
    gpu="H200", software=Software("vllm", "0.22.0"), era=None,
    batching=Batching(2048, True, "max_utilization", block_tokens=16, schedules_ahead=True),
)  # fmt: skip


def validate_h200(file: Path = H200, host_per_layer: float = HOST_PER_LAYER) -> pd.DataFrame:
    """A row a load of a measured closed loop on one H200 (vLLM): measured, predicted and ratio of throughput
    (tokens/s), median time per output token (ms) and median time to first token (s).

    The simulated users begin when the measured ones did and pause as long between answer and next request.
    `host_per_layer`: prefilling iterations ran without CUDA graphs or compiled fusions, which the kernel data don't
    hold. The file (.parquet or .jsonl) has the columns of data/published/README.md and may have `model` (8b, 70b),
    `quant` (bf16, fp8) and `kv_blocks`.
    """
    file = Path(file)
    rows = pd.read_json(file, lines=True) if file.suffix == ".jsonl" else pd.read_parquet(file)
    rows = rows.assign(**{k: v for k, v in _KIND.items() if k not in rows})
    return pd.DataFrame([_load(load, host_per_layer) for _, load in rows.groupby([*_KIND, "users"])])


def _load(rows: pd.DataFrame, host_per_layer: float) -> dict:
    rows = rows.sort_values(["user", "k"])
    times = (rows[["submit", "first", "last"]] * NS).astype("int64").set_axis(["t_submit", "t_first", "t_last"], axis=1)
    measured = times.assign(run_id="measured", status="ok", output_tokens=rows["osl"])
    again = rows["k"] > 0
    pause = float((rows["submit"] - rows["last"].shift())[again].median()) if again.any() else 0.0
    load = Traffic(
        np.unique(rows["user"], return_inverse=True)[1], rows["k"].to_numpy(), rows["isl"].to_numpy(),
        rows["osl"].to_numpy(), rows.loc[~again, "submit"].to_numpy(), max(0.0, pause),
    )  # fmt: skip
    kind = rows.iloc[0]
    model, longest = _model(kind["model"]), (int(rows["isl"].max()), int(rows["osl"].max()))
    allowed = f"hold one of {', '.join(_VLLM_PRECISIONS)}"
    require(kind["quant"] in _VLLM_PRECISIONS, "quant", "the measured file", allowed, kind["quant"])
    pool = int(kind["kv_blocks"]) * _VLLM.batching.block_tokens or None
    expert = Expert(model, _VLLM_PRECISIONS[kind["quant"]], 1, None, 256, *longest, pool)
    setup = replace(_VLLM, prefill_overhead=host_per_layer * model.layers)
    simulated = simulate(System("h200", "v2", expert, 1, router=False), traffic=load, setup=setup).requests
    found = {"model": kind["model"], "quant": kind["quant"], "users": int(kind["users"]), "requests": len(rows)}
    for name, metric in (
        ("throughput", metrics.output_throughput),
        ("tpot_ms", lambda r: metrics.percentile(metrics.tpot(r), 50)),
        ("ttft_s", lambda r: metrics.percentile(metrics.ttft(r), 50)),
    ):
        was, says = float(metric(measured)), float(metric(simulated))
        found |= {name: was, f"{name}_predicted": says, f"{name}_ratio": says / was}
    return found


def fit_host(file: Path = H200) -> tuple[float, pd.DataFrame]:
    """Seconds a layer the host adds to prefilling iterations: fitted to the throughput of every second load, and the
    comparison on the others (the loads that were not used)."""
    loads = validate_h200(file, 0.0)["users"].tolist()[::2]

    def misfit(per_layer: float) -> float:
        found = validate_h200(file, per_layer)
        return float(np.log(found.loc[found["users"].isin(loads), "throughput_ratio"]).abs().mean())

    best = float(minimize_scalar(misfit, bounds=(0.0, 0.001), method="bounded", options={"xatol": 1e-5}).x)
    found = validate_h200(file, best)
    return best, found[~found["users"].isin(loads)]


# ---- theory, bounds and interpolation


def identities(setup: Setup = Setup(), seed: int = 0) -> pd.DataFrame:
    """What queueing theory and arithmetic say must hold, on system E's engine: simulated, expected and their ratio.

    One user: the sum of its iterations' times. Saturation: Little's law, users = throughput × response time, on a
    closed loop. Batch size 1 under Poisson arrivals of equal requests: M/D/1's mean wait, ρ s / 2 (1 − ρ).
    """
    expert = replace(paper.SYSTEMS["v2"]["E"].expert, max_input_tokens=512, max_output_tokens=128)
    times, one = step_times(expert, setup), System("identity", "v2", expert, 1, router=False)
    service = times.mixed(0, 0, 1, 512, 0, 1) + sum(times.decode(1, 512 + j) for j in range(127))

    alone = simulate(one, traffic=fixed_lengths(1, 1, 512, 128), setup=setup).requests
    rows = [("one user: response time, s", (alone["t_last"] - alone["t_submit"]).iloc[0] / NS, service / NS)]

    crowd = simulate(one, traffic=fixed_lengths(300, 40, 512, 128), setup=setup).requests
    start, end = (int(crowd["t_last"].quantile(q)) for q in (0.2, 0.8))
    rate = crowd["t_last"].between(start, end, inclusive="right").sum() / (end - start)
    response = (crowd["t_last"] - crowd["t_submit"])[crowd["t_submit"].between(start, end)].mean()
    rows.append(("saturation: users = rate × response time", rate * response, 300.0))

    single = replace(one, expert=replace(expert, max_batch_size=1))
    load, n = 0.6, 20_000
    at = np.cumsum(np.random.default_rng(seed).exponential(service / NS / load, n))
    queue = simulate(single, traffic=system.trace(at, [512] * n, [128] * n), setup=setup).requests
    wait = (queue["t_last"] - queue["t_submit"]).mean() - service
    rows.append((f"batch 1, load {load}: M/D/1's mean wait, s", wait / NS, load * service / NS / (2 * (1 - load))))
    frame = pd.DataFrame(rows, columns=["identity", "simulated", "expected"])
    return frame.assign(ratio=frame["simulated"] / frame["expected"])


def bounds(setup: Setup = Setup(era=None), systems: dict[str, System] = paper.SYSTEMS["v2"]) -> pd.DataFrame:
    """Decode and prefill times (ms) of each system's engine beside the roofline's, which no kernel beats."""
    rows = []
    for name, it in systems.items():
        times, least = step_times(it.expert, setup), step_times(it.expert, replace(setup, steps="roofline"))
        for what, ask in (
            ("decode, batch 1, context 500", lambda t: t.decode(1, 500)),
            ("decode, batch 256, context 500", lambda t: t.decode(256, 500)),
            ("prefill 500 tokens", lambda t: t.mixed(0, 0, 1, 500, 0, 1)),
        ):
            measured, limit = ask(times) / 1e6, ask(least) / 1e6
            rows.append({"system": name, "step": what, "ms": measured, "roofline_ms": limit, "ratio": measured / limit})
    return pd.DataFrame(rows)


def interpolation(expert: Expert, setup: Setup = Setup(era=None), points: int = 200, seed: int = 0) -> pd.DataFrame:
    """Tabulated and interpolated iteration times against asking aiconfigurator directly, at random points (ms)."""
    times, parts = step_times(expert, setup), components.engine_parts(expert, gpu(setup.gpu), setup.software)
    rng = np.random.default_rng(seed)
    rows = []
    ask: Callable[[str, int, float, float], None] = lambda step, n, direct, table: rows.append(  # noqa: E731
        {"step": step, "tokens": n, "direct_ms": direct, "table_ms": table, "ratio": table / direct}
    )
    for _ in range(points):
        batch, context = int(rng.integers(1, 257)), int(rng.integers(1, times.longest))
        direct = parts.body(batch) + parts.logits(batch) + parts.decode(batch, context)
        ask("decode", batch, direct, times.decode(batch, context) / 1e6)
        prompts, mean = int(rng.integers(1, 9)), int(rng.integers(8, 1024))
        direct = parts.body(prompts * mean) + parts.logits(prompts) + parts.prefill(prompts, mean, 0)
        ask("prefill", prompts * mean, direct, times.mixed(0, 0, prompts, prompts * mean, 0, prompts) / 1e6)
    return pd.DataFrame(rows)

