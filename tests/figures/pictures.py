"""All figures of a study, drawn from small synthetic tables, for the tests.

``python pictures.py`` prints the hashes of the figures.
"""

import hashlib
import itertools
import json

import pandas as pd
import synthetic
from matplotlib.figure import Figure

from erlab import figures
from erlab.figures import overhead, routing, simulation, style
from erlab.results import claims
from erlab.results.records import Records


def study() -> Records:
    """Create records of measured, repeated simulated and preliminary runs."""
    seeds = [synthetic.make("CDE", (1, 8), source="simulated", seed=seed) for seed in (0, 1)]
    return synthetic.both(synthetic.make(loads=(1, 8)), *seeds, synthetic.preliminary((1, 8)))


def tables() -> dict[str, pd.DataFrame]:
    """Create a table for each of `figures.simulation.PLOTS`, with every series that its figure can have."""
    policies = [
        {"clusterer": c, "policy": p, "users": n, "system": "D", "largest cluster": 0.1 + 0.2 * i}
        | {"output_throughput": 100.0 * (i + j + n), "ttft_p99_s": 1.0 + i + j}
        for (i, c), (j, p), n in itertools.product(
            enumerate(("ward", "kmeans")),
            enumerate(("nearest", "spill", "least_outstanding", "two_choices", "round_robin", "random")),
            (600, 1000),
        )
    ]
    autoscaling = [
        {"system": "D", "controller": c, "rate": rate, "within": 0.9 - 0.1 * i, "cold_start_s": 60.0}
        for (i, c), rate in itertools.product(enumerate(("fixed", "reactive", "forecasting")), (10.0, 20.0))
    ]
    systems = [("v2", s) for s in "ABCDE"] + [("v1", s) for s in ("TP8", "70B-INT8", "13B-FP16", "13B-FP8")]
    cells = [
        {"paper": version, "system": s, "users": n, "dollars_per_gpu_hour": 2.5}
        | {"dollars_per_million_tokens": 9.0 / n + i, "joules_per_token": 5.0 / n + i, "goodput": float(n + i)}
        for (i, (version, s)), n in itertools.product(enumerate(systems), (1, 10))
    ]
    verdicts = (claims.HOLDS, claims.FAILS, claims.NOT_RUNNABLE)
    sensitivity = [
        {"assumption": a, "value": None, "id": f"claim-{i}", "verdict": verdicts[(i + j) % 3], "loads": "1, 10"}
        for (j, a), i in itertools.product(enumerate(("default", "gateway")), range(3))
    ]
    published = [
        {"version": v, "quant": quant, "tp": tp, "tokens_per_s": 100.0 * tp, "judged": 1.1, "target": 0.1, "how": "so"}
        for v, quant, tp in itertools.product(("1.0", "0.13"), ("fp8", "fp16"), (1, 2, 4, 8))
    ]
    h200 = pd.DataFrame({"users": [1, 4], "throughput": [9.0, 30.0], "tpot_ms": [5.0, 6.0], "ttft_s": [0.1, 0.2]})
    rows = {"policies": policies, "autoscaling": autoscaling, "economics": cells, "sensitivity": sensitivity}
    rows["day"] = [
        {"system": s, "routing": routing, "hour": h, "arrivals": 9.0 + h, "ttft_s": 0.1 * (1 + h + i), "within": 0.9}
        | {"waiting": 10 * h * i, "longest_queue": h, "load": "synthetic day, 144 times the speed"}
        for i, s in enumerate("ABCDE")
        for routing in (("router", "even") if s in "DE" else ("",))
        for h in (0.25, 0.75, 1.25)
    ]
    rows |= {"goodput": [c | {"limits": limits} for c in cells for limits in ("one", "two")], "published": published}
    return {n: pd.DataFrame(r) for n, r in rows.items()} | {"h200": h200.join(1.1 * h200, rsuffix="_predicted")}


def added() -> pd.DataFrame:
    """Create a table as of `erlab.figures.overhead.data`."""
    times = {f"{part}_p{q}_ms": 1.0 + q / 10 for part in ("ttft", "outside") for q in (50, 99)}
    table = pd.DataFrame([{"way": way, "users": n} | times for way in ("direct", "gateway") for n in (1, 10)])
    table.attrs = {"provenance": "emulated"}
    return table


def draw() -> dict[str, Figure]:
    """Draw all figures, by name."""
    data = figures.data(study())
    overlaid = figures.overlay({name: synthetic.make("CD", (1, 8), source=name) for name in ("measured", "simulated")})
    recipes = pd.DataFrame({"p50_ms": [0.1, 2.0], "unseen": [0.7, 0.9]}, ["words, even", "MiniLM"])
    drawn = {name: figures.show(name, data) for name in figures.FIGURES}
    drawn |= {name: module.plot(module.data(study())) for name, module in figures.MORE.items()}
    drawn |= {name: simulation.PLOTS[name](frame) for name, frame in tables().items()}
    drawn |= {"overlaid fig7": figures.fig7.plot(figures.fig7.data(overlaid)), "overhead": overhead.plot(added())}
    return drawn | {"frontier": routing.frontier(recipes)}


EVERY_FORMAT = ("fig1", "fig3", "sensitivity", "frontier")  # between them, everything that figures draw


def hashes(drawn: dict[str, Figure]) -> dict[str, str]:
    """Hash each figure as PGF, which lists all that is drawn in its order, and some in every format."""
    files = ((name, kind) for name in drawn for kind in (style.FORMATS if name in EVERY_FORMAT else ("pgf",)))
    return {f"{name}.{kind}": hashlib.sha256(style.render(drawn[name], kind)).hexdigest() for name, kind in files}


if __name__ == "__main__":
    print(json.dumps(hashes(draw())))
