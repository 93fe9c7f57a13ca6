"""Measured loads of one engine beside the simulation of the same machine, and beside the limit of its memory.

    found = compare(records.read("data/results/gpu/records/gpu").requests, system, vllm("H200"))

The simulated users begin when the measured ones did, ask for the same lengths, and pause as long between an answer and
the next request; a router system's gateway takes as long as it took.
"""

import numpy as np
import pandas as pd

from erlab import paper
from erlab.results import metrics
from erlab.simulation.components import Software
from erlab.simulation.engine import Batching
from erlab.simulation.hardware import Gpu, gpu
from erlab.simulation.steptimes import NS
from erlab.simulation.system import Setup, Traffic, simulate
from erlab.spec import Expert, System, require

COMPARED = {  # by column, with its unit
    "throughput": metrics.output_throughput,
    "tpot_ms": lambda requests: metrics.percentile(metrics.tpot(requests), 50),
    "ttft_s": lambda requests: metrics.percentile(metrics.ttft(requests), 50),
}


def vllm(machine: str, **changes) -> Setup:
    """vLLM as `openai_models.vllm` starts it, on a GPU of `hardware.GPUS`; `changes` of `Setup`."""
    batching = Batching(2048, True, "max_utilization", block_tokens=16, schedules_ahead=True)
    it = {"gpu": machine, "software": Software("vllm", "0.22.0"), "era": None, "batching": batching}
    return Setup(**it | changes)


def compare(requests: pd.DataFrame, system: System, setup: Setup) -> pd.DataFrame:
    """A row a load of one system's measured request records: throughput (tokens/s), median time per output token (ms)
    and to the first token (s), as measured, as simulated (`_predicted`) and their ratio, and the share of the memory's
    bandwidth that decoding used.

    Only a system of one engine on a GPU of its own can be simulated; what shares its GPU has no prediction (NA).
    """
    names = requests["system"].unique().tolist()
    require(len(names) == 1, "requests", "compare", "be of one system", names)
    return pd.DataFrame([_row(rows, system, setup) for _, rows in requests.groupby("users")])


def _row(rows: pd.DataFrame, system: System, setup: Setup) -> dict:
    done = rows[metrics.finished(rows)].sort_values(["user", "turn"])
    found = {"users": int(rows["users"].iloc[0]), "requests": len(rows), "failed": len(rows) - len(done)}
    simulated = None
    if system.count == 1 and len(done):
        delays = tuple(((done["t_routed"] - done["t_submit"]) / NS).dropna()) if system.router else ()
        it = Setup(**{**vars(setup), "gateway": delays}) if delays else setup
        simulated = simulate(system, traffic=traffic(done), setup=it).requests
    for name, metric in COMPARED.items():
        was = metric(rows)
        says = pd.NA if simulated is None else metric(simulated)
        found |= {name: was, f"{name}_predicted": says, f"{name}_ratio": says / was}
    share = bandwidth_share(done, system.expert, gpu(setup.gpu)) if system.count == 1 else pd.NA
    return found | {"bandwidth_share": share}


def traffic(requests: pd.DataFrame) -> Traffic:
    """Finished requests, ordered by user and turn, as the load they were."""
    first = ~requests["user"].duplicated()
    gaps = (requests["t_submit"] - requests["t_last"].shift())[~first]
    column = lambda name: requests[name].to_numpy(dtype=np.int64)  # noqa: E731
    return Traffic(
        user=np.unique(column("user"), return_inverse=True)[1],
        turn=column("turn"),
        input_tokens=column("input_tokens"),
        output_tokens=column("output_tokens"),
        start=column("t_submit")[first.to_numpy()] / NS,
        pause=max(0.0, float(gaps.median()) / NS) if len(gaps) else 0.0,
    )


def bandwidth_share(requests: pd.DataFrame, expert: Expert, gpu: Gpu) -> float:
    """Bytes that a decoding iteration has to read over what the GPU's memory gives in the time it took (its data sheet).

    Read are all weights but the input embedding, and the KV cache of those that decode, on average: how many they are
    follows from Little's law on the time between first and last token; NA where no answer has two tokens.
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
