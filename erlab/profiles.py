"""Where the study runs: each profile is data, and `scale` turns a row of the paper's Table I into what runs there.

On the laptop every CPU core plays an equal share of the paper's eight GPUs: a baseline computes with as large a share
of the cores as its tensor parallelism takes of the GPUs, and a router system has one expert pinned to each core. The
tiny models keep the paper's ratio of sizes (70B : 8B), float32 plays FP16 and int8 plays FP8: wide and narrow weights.
The KV pool keeps its ratio to what a full batch of the longest requests would need.
"""

import os
from dataclasses import replace

from erlab import paper
from erlab.errors import ErlabError
from erlab.spec import FLOAT32, INT8_CPU, Model, Profile, System

SMALL = Model("tiny 8B", 256, 4, 4, 2, 544, 260, max_positions=2048)
BIG = Model("tiny 70B", 512, 8, 8, 2, 1408, 260, max_positions=2048)

_LAPTOP = Profile(
    name="laptop",
    description="CPU only: tiny experts served for real, each core plays a GPU",
    models={"Llama 3 8B": SMALL, "Llama 3 70B": BIG},
    precisions={"FP16": FLOAT32, "FP8": INT8_CPU},
    workload=replace(
        paper.WORKLOAD,
        input_tokens=paper.WORKLOAD.input_tokens.scaled(1 / 4),
        output_tokens=paper.WORKLOAD.output_tokens.scaled(1 / 8),
        turns=2,
        least_requests=8,
    ),
    loads=(1, 2, 4, 8, 16, 32, 64),
    preliminary_loads=(1, 8, 32),
    simulated_loads=paper.LOADS,
    batch_limits=(8, 16, 32),
)

PROFILES = {
    "laptop": _LAPTOP,
    "smoke": replace(
        _LAPTOP,
        name="smoke",
        description="the laptop's path with two loads and few requests, for tests",
        loads=(1, 4),
        preliminary_loads=(1, 4),
        simulated_loads=(1, 10, 100),
        explored_loads=(1, 100),
        compared_sizes=(2,),
        compared_recipes=("paper", "characters, balanced"),
        batch_limits=(4, 8),
        workload=replace(_LAPTOP.workload, turns=1, least_requests=4),
        prompts_per_domain=100,
    ),
}


def profile(name: str) -> Profile:
    if name not in PROFILES:
        raise ErlabError(f"The 'profile' parameter must be one of {', '.join(PROFILES)}. Got {name!r}.")
    return PROFILES[name]


def cores() -> tuple[int, ...]:
    """The CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def scale(system: System, to: Profile, cores: int, max_batch_size: int | None = None) -> System:
    """What plays `system` on `cores` CPU cores; `max_batch_size` defaults to the profile's largest limit."""
    original = system.expert
    width = max(1, cores * original.tensor_parallel // paper.GPUS)
    batch = max_batch_size or max(to.batch_limits)
    longest_in, longest_out = to.workload.input_tokens.maximum, to.workload.output_tokens.maximum
    full = original.max_batch_size * original.max_sequence_tokens
    share = min(1.0, paper.kv_pool_tokens(original) / full)
    expert = replace(
        original,
        model=to.models[original.model.name],
        precision=to.precisions[original.precision.name],
        tensor_parallel=1,
        cores=1 if system.router else width,
        max_batch_size=batch,
        max_input_tokens=longest_in,
        max_output_tokens=longest_out,
        kv_tokens=max(longest_in + longest_out, int(share * batch * (longest_in + longest_out))),
    )
    return replace(system, expert=expert, count=cores if system.router else max(1, cores // width))


def placement(system: System, cores: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The cores of each of the system's engines, in order and without overlap where there are enough."""
    width = system.expert.cores
    return tuple(tuple(cores[(i * width + j) % len(cores)] for j in range(width)) for i in range(system.count))
