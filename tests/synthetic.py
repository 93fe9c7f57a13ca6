"""Request records computed from a formula, for tests only: a queue of equal slots, with numbers of a laptop's order."""

import numpy as np
import pandas as pd
import pyarrow as pa

from erlab.results import records

LOADS = (1, 2, 4, 8, 16, 32, 64)
DOMAINS = ("banking", "cooking", "law", "maths", "medicine", "music", "python", "travel")
_TERMS = ("account", "oven", "court", "integral", "patient", "chord", "function", "flight")
# ms a token at one user, and tokens' extra cost a user
SPEED = {"A": (4.0, 0.10), "B": (6.0, 0.14), "C": (3.5, 0.13), "D": (7.0, 0.22), "E": (1.0, 0.03)}
ROUTERS = ("D", "E")
_MS = 1_000_000


def make(
    systems=tuple("ABCDE"), loads=LOADS, source="measured", seed=0, failing=0.0, speed=None, paper="v2"
) -> records.Records:
    """Runs of `systems` under `loads`; `failing` of the requests time out. `speed` overrides SPEED."""
    rows, runs = [], []
    for system in systems:
        for users in loads:
            run_id = f"{source}-{system}-{users}-s{seed}"
            rng = np.random.default_rng([seed, users, *map(ord, system)])
            common = dict(run_id=run_id, paper=paper, system=system, source=source, users=users,
                          machine="2-core AMD EPYC" if source == "measured" else "8 H100 (simulated)")  # fmt: skip
            rows += [common | row for row in _run(system, users, rng, failing, speed or SPEED)]
            runs.append(describe(common, system))
    return from_rows(rows, runs)


def preliminary(loads=(1, 8, 32, 64)) -> records.Records:
    rows, runs = [], []
    for half, factor in (("half", 1.0), ("all", 0.7)):
        for precision, base in (("float32", 6.0), ("int8", 4.0)):
            for limit in (8, 16, 32):
                name = f"P-{half}-{precision}-b{limit}"
                for users in loads:
                    common = dict(run_id=f"{name}-{users}", paper="v2", system=name, source="measured", users=users,
                                  machine="2-core AMD EPYC")  # fmt: skip
                    speed = {name: (base * factor, 0.1 * factor * (1 + 4 / limit))}
                    rng = np.random.default_rng([users, limit])
                    rows += [common | row for row in _run(name, users, rng, 0.0, speed)]
                    runs.append(describe(common, name) | dict(experiment="preliminary", half=half, precision=precision,
                                                              max_batch_size=limit, plays=None))  # fmt: skip
    return from_rows(rows, runs)


def both(*parts: records.Records) -> records.Records:
    return records.Records(
        pd.concat([p.requests for p in parts], ignore_index=True), pd.concat([p.runs for p in parts], ignore_index=True)
    )


def from_rows(rows, runs=()) -> records.Records:
    """Rows and their runs' descriptions as records."""
    return records.from_table(pa.Table.from_pylist(list(rows), schema=records.SCHEMA), *runs)


def describe(common: dict, system: str) -> dict:
    router = system in ROUTERS
    return common | {
        "experiment": "systems",
        "profile": "laptop",
        "commit": "abc1234",
        "seed": 0,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 3.0,
        "title": f"tiny {'8B' if system == 'E' else '70B'} int8, 1 core, 2 {'experts' if router else 'replicas'}",
        "model": "tiny 70B",
        "precision": "int8",
        "tensor_parallel": 1,
        "cores": 1,
        "count": 2,
        "router": router,
        "max_batch_size": 32,
        "kv_tokens": 4096,
        "plays": f"Llama 3 {'8B' if system == 'E' else '70B'} FP8, TP 4, 2 replicas",
        "half": None,
        "workload": {
            "input": {"median": 47.5, "sigma": 0.95, "minimum": 2, "maximum": 256},
            "output": {"median": 30.0, "sigma": 0.75, "minimum": 1, "maximum": 128},
        },
        "router_summary": summary() if router else None,
        "restarts": 0,
    }


def summary(clusters=8) -> dict:
    """What `erlab.routing.evaluation.summary` tells of a router."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(200, 800, clusters)
    centres = rng.normal(size=(clusters, 2)) * 2.2
    which = rng.choice(clusters, 300, p=sizes / sizes.sum())
    xy = centres[which] + rng.normal(size=(300, 2)) * 0.5
    return {
        "clusters": [
            {
                "cluster": k,
                "size": int(sizes[k]),
                "share": float(sizes[k] / sizes.sum()),
                "top_domain": DOMAINS[k % 8],
                "purity": 0.83,
                "domains": {DOMAINS[k % 8]: int(sizes[k])},
                "terms": [_TERMS[k % 8], "please", "explain", "question", "number"],
            }
            for k in range(clusters)
        ],
        "purity": 0.83,
        "points": {
            "x": xy[:, 0].tolist(),
            "y": xy[:, 1].tolist(),
            "cluster": which.tolist(),
            "domain": [DOMAINS[k % 8] for k in which],
        },
    }


def _run(system, users, rng, failing, speed):
    """`users` closed loops; the k-th user's requests follow one another, all share the machine."""
    base, slope = speed[system]
    for user in range(users):
        now = 0
        for turn in range(max(2, -(-8 // users))):
            length = int(np.clip(rng.lognormal(np.log(47.5), 0.95), 2, 256))
            out = int(np.clip(rng.lognormal(np.log(30), 0.75), 1, 128))
            step = base * (1 + slope * users) * rng.uniform(0.9, 1.2)
            first = step * rng.uniform(1.5, 3.0) + length * base * 0.05
            routed = 1.1 * rng.uniform(0.8, 1.5) if system in ROUTERS else 0
            t_first = now + int((first + routed) * _MS)
            t_last = t_first + int(step * (out - 1) * _MS)
            row = dict(user=user, turn=turn, prompt_id=f"p{user}-{turn}", domain=DOMAINS[user % 8], input_tokens=length,
                       t_submit=now, status="ok")  # fmt: skip
            if system in ROUTERS:
                cluster = int(rng.integers(8))
                row |= dict(cluster=cluster, expert=f"{system}-expert{cluster % 2}", distance=0.4, margin=0.1,
                            policy="nearest", t_routed=now + int(routed * _MS))  # fmt: skip
            if rng.uniform() < failing:
                yield row | dict(status="timeout", error="no answer in 120 s")
            else:
                yield row | dict(t_first=t_first, t_last=t_last, output_tokens=out)
            now = t_last + _MS
