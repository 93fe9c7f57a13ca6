"""Simulation of any load: arrivals at a rate, traces, think times, warm-up.

    load = loads.Load(trace=traces.read("trace.csv").traffic, source="trace.csv", duration=600)
    replay(paper.SYSTEMS["v2"]["E"], load)
"""

from dataclasses import replace

from erlab import paper
from erlab.prompts import loads, traffic
from erlab.prompts.loads import Load
from erlab.prompts.traffic import Traffic
from erlab.results.records import Records
from erlab.simulation.components import CONTEXTS
from erlab.simulation.system import Setup, simulate
from erlab.spec import System, Workload, require

LONGEST = int(CONTEXTS[-1])  # context of the step times, tokens


def replay(
    system: System,
    load: Load,
    users: int = 1,
    *,
    workload: Workload = paper.WORKLOAD,
    setup: Setup = Setup(),
    seed: int = 0,
    context: int | None = None,
    **routing,
) -> Records:
    """Simulate a system under a load.

    Args:
        system: System.
        load: Load.
        users: Concurrent users of a closed loop.
        workload: Token lengths, except of a trace.
        setup: Machine and serving software.
        seed: Random seed.
        context: Longest request, see `fitted`.
        **routing: `shares`, `decisions` and `policy` of `simulate`, for router systems.

    Returns:
        Request records. The run's description adds `load`, with `cut`, the number of shortened requests.
    """
    turns = workload.turns_for(users)
    while True:
        wanted = load.traffic(workload, users, seed, turns)
        served, drawn, machine = fitted(system, wanted, setup, context)
        found = simulate(served, traffic=drawn, setup=machine, seed=seed, **routing)
        made = found.requests["user"].value_counts()
        if not load.closed or load.duration is None or made.max() < turns:
            break
        turns *= 2  # a user has sent all requests before the end
    requests = found.requests[loads.counted(load, found.requests["t_submit"])].reset_index(drop=True)
    shorter = (drawn.input_tokens < wanted.input_tokens) | (drawn.output_tokens < wanted.output_tokens)
    described = load.describe() | {"cut": int(shorter.sum())}
    run_id = found.runs["run_id"].item() + load.tag()
    return Records(requests.assign(run_id=run_id), found.runs.assign(run_id=run_id, load=[described]))


def fitted(
    system: System, drawn: Traffic, setup: Setup, context: int | None = None
) -> tuple[System, Traffic, Setup]:
    """Make a system take longer requests than the paper's, and cut those that are still too long.

    Prompts above the tokens of one iteration are prefilled in chunks. A load that fits the paper's lengths changes
    nothing.

    Args:
        system: System.
        drawn: Load.
        setup: Machine and serving software.
        context: Longest request, input and output tokens (default: the positions of the model). Above these positions,
            the model stands for one of its architecture with more, such as Llama 3.1.
    """
    expert = system.expert
    allowed = f"be from {expert.max_sequence_tokens} to {LONGEST} tokens, the range of the step times"
    require(context is None or expert.max_sequence_tokens <= context <= LONGEST, "context", "simulate", allowed, context)
    pool = setup.pool(expert) // setup.batching.block_tokens * setup.batching.block_tokens
    most = min(context or expert.model.max_positions, pool)
    needed = int((drawn.input_tokens + drawn.output_tokens).max())
    longest = max(expert.max_sequence_tokens, min(needed, most))
    if longest > expert.max_sequence_tokens:
        model = replace(expert.model, max_positions=max(expert.model.max_positions, longest))
        expert = replace(expert, model=model, max_input_tokens=longest - expert.max_output_tokens)
        system = replace(system, expert=expert)
    drawn = traffic.cut(drawn, longest) if needed > longest else drawn
    if int(drawn.input_tokens.max()) > setup.batching.max_num_tokens:
        setup = replace(setup, batching=replace(setup.batching, chunked_context=True))
    return system, drawn, setup
