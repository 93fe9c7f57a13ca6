"""Speed of the simulation: against a plain loop in the same run, and against the time that it simulates."""

import statistics
import subprocess
import sys
import time

import pytest
from plain_loop import plain_run

from erlab import paper
from erlab.simulation import Setup, closed_loop, events, simulate, sweep
from erlab.simulation.engine import Requests, SimulatedEngine
from erlab.simulation.system import schedule, step_times

SETUP = Setup(steps="roofline", era=(1.5, 1.5))  # as slow as measured kernels, without asking for them
E = paper.SYSTEMS["v2"]["E"]


def best(run, times=5, clock=time.perf_counter):
    spent = []
    for _ in range(times):
        start = clock()
        run()
        spent.append(clock() - start)
    return min(spent)


def simulated_seconds(found):
    """Return the simulated time from the first request to the last token, summed over runs (s)."""
    runs = found.requests.groupby("run_id")
    return (runs.t_last.max() - runs.t_submit.min()).sum() / 1e9


def test_twenty_times_the_plain_loop(record_property):
    """The paper's workload on one engine: simulated requests a second over four loads together. Both give the same
    times to the nanosecond; each load's own ratio is printed beside."""
    times, pool, expert = step_times(E.expert, SETUP), SETUP.pool(E.expert), E.expert
    rows = []
    for users in (1, 16, 64, 256):
        load = closed_loop(paper.WORKLOAD, users)
        lengths = load.input_tokens.tolist(), load.output_tokens.tolist()
        asked = [
            dict(at=("after", i - 1) if turn else 0, prompt=p, output=o)
            for i, (turn, p, o) in enumerate(zip(load.turn.tolist(), *lengths))
        ]

        def fast():
            requests = Requests.of(*lengths)
            engine = SimulatedEngine(times, requests, SETUP.batching, expert.max_batch_size, pool)
            submit, following = schedule(load)
            events.run([engine], submit, following, [0] * len(submit), [0] * len(submit))
            return list(requests.last)

        def plain():
            served = plain_run(times, SETUP.batching, expert.max_batch_size, pool, [dict(r) for r in asked])
            return [r["last"] for r in served]

        assert fast() == plain()
        seconds = best(fast, 100, time.process_time), best(plain, 5, time.process_time)
        rows.append((users, len(asked), *seconds))
    print(f"{'users':>6} {'requests':>9} {'requests/s':>11} {'plain loop':>11} {'ratio':>6}")
    for name, n, a, b in [*rows, ("all", *(sum(column) for column in list(zip(*rows))[1:]))]:
        print(f"{name:>6} {n:>9} {n / a:>11,.0f} {n / b:>11,.0f} {b / a:>6.1f}")
        record_property(f"times_the_plain_loop_{name}", round(b / a, 1))
    print(f"{statistics.geometric_mean(b / a for *_, a, b in rows):.1f} x as the geometric mean over loads")
    assert sum(b for *_, b in rows) / sum(a for *_, a, _ in rows) >= 20


def test_a_thousand_requests_on_eight_experts(record_property):
    simulate(E, 8, setup=SETUP)
    seconds, simulated = best(lambda: simulate(E, 200, setup=SETUP)), simulated_seconds(simulate(E, 200, setup=SETUP))
    record_property("times_real_time", round(simulated / seconds))
    print(f"{seconds * 1e3:.1f} ms for 1,000 requests on 8 experts, {simulated:.0f} s of simulated time")
    assert simulated / seconds >= 100


def test_a_full_sweep(record_property):
    start = time.perf_counter()
    found = sweep(paper.SYSTEMS["v2"], setup=SETUP)
    seconds, simulated = time.perf_counter() - start, simulated_seconds(found)
    record_property("times_real_time", round(simulated / seconds))
    print(f"{seconds:.1f} s for {len(found.requests)} requests: 5 systems, 9 loads, {simulated:.0f} s of simulated time")
    assert found.requests["run_id"].nunique() == 45
    assert found.requests.query("users == 1000 and system == 'E'").groupby("user").size().min() >= 5
    assert simulated / seconds >= 100


def test_a_million_requests_fit_a_gigabyte(record_property):
    """In a process of its own, whose largest resident size counts everything, Python and libraries too."""
    pytest.importorskip("resource")
    code = (
        "import resource\n"
        "from dataclasses import replace\n"
        "from erlab import paper\n"
        "from erlab.simulation import Setup, simulate\n"
        "work = replace(paper.WORKLOAD, turns=1000)\n"
        "setup = Setup(steps='roofline', era=None)\n"
        "found = simulate(paper.SYSTEMS['v2']['E'], 1000, workload=work, setup=setup)\n"
        "print(len(found.requests), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    requests, size = map(int, done.stdout.split())
    record_property("gigabytes", round(size / 1e9, 2))
    print(f"{size / 1e9:.2f} GB")
    assert requests == 1_000_000 and size <= 1e9
