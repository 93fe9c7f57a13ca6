"""Emulated experts: Triton models with the simulated timing of an engine of Table I.

They load the real gateway, Triton and users with the paper's concurrency on a machine without a GPU. Step times and KV
pool are the simulator's; an emulated expert is slower by the factor `time_scale`, since a Triton on few cores cannot
send as many responses per second as eight GPUs make. The metric `erlab_late_seconds` shows how far emulated steps lag
behind. The timing is an input: emulated experts measure nothing about GPUs.

    table = step_table(system.expert, Setup())
    write(repository, "emulated-E-expert-0", system.expert, table, kv_tokens=Setup().pool(system.expert), time_scale=20)

Model names begin with "emulated", the model configuration states it, and request records name `machine`.
"""

from pathlib import Path

import numpy as np

from erlab.serving.engines.emulated_engine import StepTable
from erlab.serving.triton import repository as triton_repository
from erlab.simulation.system import Setup, step_times
from erlab.spec import Expert, System, require

PREFIX = "emulated-"
_CONTEXTS = (1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_TOKENS = (1, 16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


def step_table(expert: Expert, setup: Setup = Setup()) -> StepTable:
    """Tabulate the simulator's iteration times of an engine.

    More prompt tokens than the longest prompt count as several prompts of equal length.
    """
    times = step_times(expert, setup)
    limit, longest = expert.max_batch_size, expert.max_sequence_tokens
    batches = tuple(sorted({b for b in (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512) if b < limit} | {limit}))
    contexts = tuple(sorted({c for c in _CONTEXTS if c < longest} | {longest - 1}))

    def added(batch: int, tokens: int) -> float:
        prompts = -(-tokens // expert.max_input_tokens)
        alone = times.decode(batch, longest // 2) if batch else 0
        return times.mixed(batch, longest // 2, prompts, tokens, finished=prompts) - alone

    decode = [[times.decode(b, c) / 1e6 for c in contexts] for b in batches]
    prefill = [[added(b, t) / 1e6 for t in _TOKENS] for b in (0, *batches)]
    rounded = [tuple(map(tuple, np.round(table, 4).tolist())) for table in (decode, prefill)]
    return StepTable(batches, contexts, rounded[0], (0, *batches), _TOKENS, rounded[1])


def write(
    repository: Path, name: str, expert: Expert, table: StepTable, kv_tokens: int, time_scale: float, note: str = ""
) -> Path:
    """Write the Triton model that emulates an expert."""
    require(name.startswith(PREFIX), "name", "emulated.write", f"begin with {PREFIX!r}", name)
    require(time_scale > 0, "time_scale", "emulated.write", "be above 0", time_scale)
    allowed = f"hold one request of {expert.max_sequence_tokens} tokens"
    require(kv_tokens >= expert.max_sequence_tokens, "kv_tokens", "emulated.write", allowed, kv_tokens)
    parameters = {
        "emulated": note or f"keeps the time of {expert.model.name} {expert.precision.name}, computes nothing",
        "time_scale": repr(float(time_scale)),
        "step_times": table.to_json(),
        **triton_repository.limits(expert),
        "kv_tokens": str(kv_tokens),
    }
    code = "from erlab.serving.engines.emulated_backend import TritonPythonModel\n"
    return triton_repository.write(repository, triton_repository.text_model(name, parameters), code)


def write_system(repository: Path, key: str, system: System, time_scale: float, setup: Setup = Setup()) -> tuple:
    """Write one emulated model per engine of a system; return their names, such as ``emulated-E-expert-0``."""
    table, pool = step_table(system.expert, setup), setup.pool(system.expert)
    names = tuple(f"{PREFIX}{key}-{'expert' if system.router else 'replica'}-{i}" for i in range(system.count))
    for name in names:
        note = f"one engine of {system.title} on {setup.gpu}, {time_scale:g} times slower; computes nothing"
        write(repository, name, system.expert, table, pool, time_scale, note)
    return names


def machine(time_scale: float, host: str, setup: Setup = Setup()) -> str:
    """Return the machine of request records: emulated engines, their time scale and the real host."""
    return f"emulated experts ({setup.gpu}, {time_scale:g} times slower) on {host}"
