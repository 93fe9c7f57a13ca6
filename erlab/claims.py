"""The claims ledger: each sentence of `paper.CLAIMS` tested on request records, with its value and verdict.

A claim that does not hold is a finding; one whose systems or loads aren't in the records is "not runnable here".
Comparisons are made at the loads that all of a claim's systems have, in each source (measured, simulated) for itself.

    from erlab import claims, records
    claims.save(claims.ledger(records.read("data/results/laptop/records")), "data/results/laptop")
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from erlab import metrics, output, selection
from erlab.errors import ErlabError
from erlab.paper import CLAIMS, SYSTEMS, Claim
from erlab.records import Records

HOLDS, FAILS, NOT_RUNNABLE = "holds", "does not hold", "not runnable here"
COLUMNS = ["id", "paper", "statement", "source", "figure", "test", "value", "verdict", "basis", "reason", "rows"]
_BASELINES = ("A", "B", "C")
_VERSION = {system: version for version, systems in SYSTEMS.items() for system in systems}


@dataclass(frozen=True)
class Check:
    """How a claim is tested: in words, on which systems, over how many loads at least, shown by which figure.

    `judge` gets the systems' cells of `metrics.summarise` indexed by (system, users) and returns the value as text and
    whether the claim holds.
    """

    words: str
    systems: tuple[str, ...]
    figure: str
    judge: Callable[[pd.DataFrame], tuple[str, bool]]
    least_loads: int = 1


def ledger(records: Records) -> pd.DataFrame:
    """A row a claim and source that can test it, COLUMNS; a claim that none can test has one row that says why."""
    try:
        requests = selection.systems(records)
    except ErlabError:
        requests = records.requests.iloc[:0]
    # records written by hand may not name the paper's version; the systems' names do
    cells = metrics.summarise(requests.assign(paper=requests["paper"].fillna(requests["system"].map(_VERSION))))
    rows = [row for claim in CLAIMS for row in _tested(claim, cells)]
    return pd.DataFrame(rows, columns=COLUMNS).convert_dtypes()


def save(found: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write the ledger as claims.md and claims.csv."""
    folder = Path(folder)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in found["verdict"].value_counts().items())
    text = f"# Claims\n\n{counts}.\n\n{output.markdown(found)}"
    return [output.save(folder / "claims.md", text), output.save(folder / "claims.csv", found.to_csv(index=False))]


def _tested(claim: Claim, cells: pd.DataFrame) -> list[dict]:
    check = CHECKS[claim.id]
    mine = cells[cells["system"].isin(check.systems) & (cells["paper"] == claim.paper)]
    rows = [_judged(check, rows, source) for source, rows in mine.groupby("source")]
    runnable = [row for row in rows if row["verdict"] != NOT_RUNNABLE]
    rows = runnable or rows[:1] or [_not_runnable(f"no records of {_names(check.systems)}")]
    common = {"id": claim.id, "paper": claim.paper, "statement": claim.statement, "source": claim.source}
    return [common | {"figure": check.figure, "test": check.words} | row for row in rows]


def _judged(check: Check, cells: pd.DataFrame, source: str) -> dict:
    """The verdict on one source's cells."""
    ended = cells[cells["requests"] > cells["failed"]]
    loads = {s: set(ended.loc[ended["system"] == s, "users"]) for s in check.systems}
    if absent := [s for s in check.systems if not loads[s]]:
        return _not_runnable(f"no finished {source} requests of {_names(absent)}")
    common = set.intersection(*loads.values())
    if len(common) < check.least_loads:
        shared = f"loads that {_names(check.systems)} share, has {len(common)}"
        return _not_runnable(f"{source}: needs {check.least_loads} {shared}")
    used = cells[cells["users"].isin(common)]
    try:
        value, holds = check.judge(used.set_index(["system", "users"]).sort_index())
    except _Unknown as e:
        return _not_runnable(f"{source}: {e}")
    rows, failed = int(used["requests"].sum()), int(used["failed"].sum())
    if failed:
        value += f" ({failed} of {rows} requests failed and count in no latency)"
    machines = ", ".join(sorted(used["machine"].dropna().unique())) or "an unnamed machine"
    verdict = HOLDS if holds else FAILS
    return {"value": value, "verdict": verdict, "basis": f"{source} on {machines}", "reason": pd.NA, "rows": rows}


def _not_runnable(reason: str) -> dict:
    return {"value": pd.NA, "verdict": NOT_RUNNABLE, "basis": pd.NA, "reason": reason, "rows": 0}


class _Unknown(Exception):
    """A metric that a claim needs is unknown or undefined in these records."""


def _wide(cells: pd.DataFrame, metric: str, systems: tuple[str, ...]) -> pd.DataFrame:
    """The metric as floats: a row a load, a column a system."""
    table = cells[metric].unstack("system")[list(systems)]
    if table.isna().any().any():
        raise _Unknown(f"{metric} is unknown for {_names(table.columns[table.isna().any()])} at some load")
    return table.astype(float)


def _lower(metric: str, lower: tuple[str, ...], higher: tuple[str, ...]):
    """Whether each of `lower` lies below each of `higher` at more than half of the loads; ratios as geometric means."""

    def judge(cells: pd.DataFrame) -> tuple[str, bool]:
        table, text, holds = _wide(cells, metric, lower + higher), [], True
        for low in lower:
            for high in higher:
                wins = int((table[low] < table[high]).sum())
                ratio = math.exp((table[low] / table[high]).map(math.log).mean())
                text.append(f"{low} below {high} at {wins} of {len(table)} loads (mean ratio {ratio:.2f})")
                holds &= 2 * wins > len(table)
        return "; ".join(text), holds

    return judge


def _similar_ttft(cells: pd.DataFrame) -> tuple[str, bool]:
    table = _wide(cells, "ttft_median_s", (*_BASELINES, "E"))
    ratio = table["E"] / table[list(_BASELINES)].median(axis=1)
    spread = f"{ratio.min():.2f} to {ratio.max():.2f}"
    text = f"E / baselines: {ratio.median():.2f} in median over {len(ratio)} loads ({spread})"
    return text, bool(1 / 1.5 <= ratio.median() <= 1.5)


def _minimum_ttft(cells: pd.DataFrame) -> tuple[str, bool]:
    least = 1000 * _wide(cells, "ttft_min_s", (*_BASELINES, "D", "E")).min()
    gateway = _wide(cells, "routing_min_ms", ("D", "E")).min().min()
    text = ", ".join(f"{s} {v:.1f} ms" for s, v in least.items())
    holds = least[["D", "E"]].min() > least[list(_BASELINES)].max()
    return f"minima: {text}; of these the gateway's decision takes at least {gateway:.2f} ms", bool(holds)


def _minimal_overhead(cells: pd.DataFrame) -> tuple[str, bool]:
    routing = _wide(cells, "routing_median_ms", ("D", "E"))
    ttft = 1000 * _wide(cells, "ttft_median_s", ("D", "E"))
    share = 100 * (routing / ttft).max(axis=1)
    spread = ((ttft["D"] - ttft["E"]).abs() / routing.max(axis=1)).median()
    text = (
        f"decision {routing.median(axis=None):.2f} ms, {share.min():.1f} to {share.max():.1f} % of the median time to "
        f"first token; D and E differ by {spread:.0f} times the decision in median over {len(share)} loads"
    )
    return text, bool(share.max() < 5 and spread >= 10)


def _stable(cells: pd.DataFrame) -> tuple[str, bool]:
    loads = cells.index.get_level_values("users").unique().sort_values()
    moderate = [n for n in loads if n <= math.sqrt(loads[0] * loads[-1])]
    throughput = _wide(cells, "output_throughput", ("D",)).loc[moderate, "D"]
    latency = _wide(cells, "e2e_median_s", ("D",)).loc[moderate, "D"]
    kept, grown = (throughput / throughput.cummax()).min(), latency.max() / latency.iloc[0]
    text = (
        f"{moderate[0]} to {moderate[-1]} users: throughput stays at {100 * kept:.0f} % or more of the best so far, "
        f"median response time grows to {grown:.2f} times that at {moderate[0]}"
    )
    return text, bool(kept >= 0.9 and grown <= 2)


def _competitive(cells: pd.DataFrame) -> tuple[str, bool]:
    systems = (*_BASELINES, "E")
    throughput, latency = _wide(cells, "output_throughput", systems), _wide(cells, "e2e_median_s", systems)
    near = throughput.ge(0.8 * throughput.max(axis=1), axis=0) & latency.le(1.25 * latency.min(axis=1), axis=0)
    counts = near.sum()
    text = ", ".join(f"{s} {n}" for s, n in counts.items())
    return f"competitive at so many of {len(near)} loads: {text}", bool(counts["E"] > counts[list(_BASELINES)].max())


_V1_ROUTERS = ("70B-INT8", "13B-FP16", "13B-FP8")


def _v1_throughput(cells: pd.DataFrame) -> tuple[str, bool]:
    table = _wide(cells, "output_throughput", ("TP8", *_V1_ROUTERS))
    ratio = table[list(_V1_ROUTERS)].div(table["TP8"], axis=0)
    top = ratio.index.max()
    text = "; ".join(
        f"{s}: {ratio[s].median():.2f} in median, {ratio.loc[top, s]:.2f} at {top} users" for s in _V1_ROUTERS
    )
    return f"throughput / TP8's: {text}", bool((ratio.median() >= 0.8).all() and (ratio.loc[top] > 1).all())


def _v1_size(cells: pd.DataFrame) -> tuple[str, bool]:
    table = _wide(cells, "output_throughput", _V1_ROUTERS)
    ratios = {s: (table["70B-INT8"] / table[s]).median() for s in _V1_ROUTERS[1:]}
    text = ", ".join(f"70B-INT8 / {s} {r:.2f}" for s, r in ratios.items())
    return f"throughput in median over {len(table)} loads: {text}", min(ratios.values()) >= 0.9


def _names(systems) -> str:
    return ", ".join(systems)


CHECKS = {
    "v2-ttft-baselines": Check(
        "the median time to first token of each of A, B and C is below D's at more than half of the loads",
        (*_BASELINES, "D"), "fig4", _lower("ttft_median_s", _BASELINES, ("D",)),
    ),
    "v2-ttft-8b": Check(
        "E's median time to first token over the median of A's, B's and C's is 1/1.5 to 1.5, in median over the loads",
        (*_BASELINES, "E"), "fig4", _similar_ttft,
    ),
    "v2-ttft-overhead": Check(
        "over all loads, the smallest time to first token of D and of E is above the smallest of each of A, B and C",
        (*_BASELINES, "D", "E"), "fig4", _minimum_ttft,
    ),
    "v2-tpot-8b": Check(
        "E's median time per output token is below that of each of A, B, C and D at more than half of the loads",
        (*_BASELINES, "D", "E"), "fig5", _lower("tpot_median_ms", ("E",), (*_BASELINES, "D")),
    ),
    "v2-tpot-comm": Check(
        "the median time per output token of A and of B is below C's at more than half of the loads",
        _BASELINES, "fig5", _lower("tpot_median_ms", ("A", "B"), ("C",)),
    ),
    "v2-overhead-minimal": Check(
        "from sending to the gateway's decision takes less than 5 % of the median time to first token of D and E at "
        "every load, and D's and E's medians differ by at least 10 times the decision, in median over the loads",
        ("D", "E"), "fig4", _minimal_overhead,
    ),
    "v2-70b-moderate": Check(
        "up to the geometric middle of the loads, D's throughput stays at 90 % or more of the best at a smaller load "
        "and its median response time at most doubles from the smallest load",
        ("D",), "fig6", _stable, least_loads=3,
    ),
    "v2-8b-wide": Check(
        "E is competitive (throughput at least 0.8 and median response time at most 1.25 times the best of A, B, C "
        "and E) at more loads than any of A, B and C",
        (*_BASELINES, "E"), "fig7", _competitive, least_loads=2,
    ),
    "v1-throughput": Check(
        "each router system's throughput is at least 0.8 times TP8's in median over the loads and above it at the "
        "highest load",
        ("TP8", *_V1_ROUTERS), "fig7", _v1_throughput, least_loads=2,
    ),
    "v1-size": Check(
        "70B-INT8's throughput is at least 0.9 times 13B-FP16's and 13B-FP8's, in median over the loads",
        _V1_ROUTERS, "fig7", _v1_size,
    ),
}  # fmt: skip
