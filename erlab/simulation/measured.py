"""Comparison of measured loads of one engine with its simulation.

    from erlab.results import records
    requests = records.read("data/results/gpu/records/gpu").requests
    compare(requests, system, vllm("H200"))

The simulated users start when the measured ones did, send requests of the same lengths, and pause for the same time
between an answer and the next request; the gateway of a router system takes the measured time.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from erlab import paper
from erlab.prompts.traffic import Traffic
from erlab.results import metrics
from erlab.simulation.components import Software
from erlab.simulation.engine import Batching
from erlab.simulation.hardware import Gpu, gpu
from erlab.simulation.steptimes import NS
from erlab.simulation.system import Setup, simulate
from erlab.simulation.vllm import BATCHED_TOKENS, BLOCK_TOKENS
from erlab.spec import Expert, System, require

COMPARED = {  # column, with its unit: metric
    "throughput": metrics.output_throughput,
    "tpot_ms": lambda requests: metrics.percentile(metrics.tpot(requests), 50),
    "ttft_s": lambda requests: metrics.percentile(metrics.ttft(requests), 50),
}
VLLM = Setup(  # vLLM with its server's defaults: no blocks reserved for tokens to come, batches chosen ahead since 0.14
    software=Software("vllm", "0.22.0"),
    era=None,
    batching=Batching(BATCHED_TOKENS, True, "max_utilization", block_tokens=BLOCK_TOKENS, schedules_ahead=True),
)


def vllm(machine: str, **changes) -> Setup:
    """Return `VLLM` on a GPU of `GPUS`, with fields changed."""
    return replace(VLLM, gpu=machine, **changes)


def compare(requests: pd.DataFrame, system: System, setup: Setup) -> pd.DataFrame:
    """Compare measured requests of one system with their simulation.

    Args:
        requests: Measured request records of one system.
        system: The system as it was served. Only a system of one engine on a GPU of its own is simulated.

    Returns:
        One row per load: throughput (tokens/s), median time per output token (ms) and median time to first token (s)
        as measured, as simulated (`_predicted`) and their ratio (`_ratio`); the share of the memory bandwidth that
        decoding used. NA where nothing was simulated.
    """
    names = requests["system"].unique().tolist()
    require(len(names) == 1, "requests", "compare", "be of one system", names)
    return pd.DataFrame([_compare_load(rows, system, setup) for _, rows in requests.groupby("users")])


def _compare_load(rows: pd.DataFrame, system: System, setup: Setup) -> dict:
    done = rows[metrics.finished(rows)].sort_values(["user", "turn"])
    counts = {"users": int(rows["users"].iloc[0]), "requests": len(rows), "failed": len(rows) - len(done)}
    simulated = None
    if system.count == 1 and len(done):
        delays = tuple(((done["t_routed"] - done["t_submit"]) / NS).dropna()) if system.router else ()
        if delays:
            setup = replace(setup, gateway=delays)
        simulated = simulate(system, traffic=traffic(done), setup=setup).requests
    share = bandwidth_share(done, system.expert, gpu(setup.gpu)) if system.count == 1 else pd.NA
    return counts | ratios(rows, simulated) | {"bandwidth_share": share}


def ratios(measured: pd.DataFrame, simulated: pd.DataFrame | None) -> dict:
    """Return the metrics of `COMPARED`: measured, predicted and their ratio."""
    values = {}
    for name, metric in COMPARED.items():
        observed = metric(measured)
        predicted = pd.NA if simulated is None else metric(simulated)
        values |= {name: observed, f"{name}_predicted": predicted, f"{name}_ratio": predicted / observed}
    return values


def traffic(requests: pd.DataFrame, ticks: int = NS) -> Traffic:
    """Return finished requests as the load they were.

    Args:
        ticks: Units of their times per second.
    """
    first = ~requests["user"].duplicated()
    pauses = (requests["t_submit"] - requests["t_last"].shift())[~first]
    column = lambda name: requests[name].to_numpy(dtype=np.int64)  # noqa: E731
    return Traffic(
        user=np.unique(column("user"), return_inverse=True)[1],
        turn=column("turn"),
        input_tokens=column("input_tokens"),
        output_tokens=column("output_tokens"),
        at=requests["t_submit"].where(first, 0).to_numpy(dtype=float) / ticks,
        pause=max(0.0, float(pauses.median()) / ticks) if len(pauses) else 0.0,
    )


def bandwidth_share(requests: pd.DataFrame, expert: Expert, gpu: Gpu) -> float:
    """Return the share of the memory bandwidth that decoding used.

    It is the bytes that a decode iteration reads, over the bytes that the memory delivers in that time by its data
    sheet. An iteration reads all weights but the input embedding, and the KV cache of the running sequences, whose mean
    number follows from Little's law on the time between first and last token. NA if no answer has two tokens.
    """
    times = metrics.tpot(requests)
    seconds = metrics.percentile(times, 50) / 1e3
    span = requests["t_last"].max() - requests["t_submit"].min()
    decoding = max(1.0, float((requests["t_last"] - requests["t_first"]).sum() / span))
    context = float((requests["input_tokens"] + requests["output_tokens"] / 2).mean())
    embedding = expert.model.embedding_parameters // 2 * max(16, expert.precision.weight_bits) // 8
    weights = paper.weight_bytes(expert) - embedding
    read = weights + decoding * context * paper.kv_bytes_per_token(expert)
    return read / expert.tensor_parallel / gpu.bandwidth / seconds
