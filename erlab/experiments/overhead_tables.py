"""Tables of the gateway's overhead (`erlab.experiments.overhead`): time outside of the experts, and its parts.

Experts stamp their responses, so the expert's part of each time to first token is known. The gateway can only add to
the rest, the time *outside* of the expert. That rest does not depend on when in an expert's step a request arrives,
which changes times to first token more than any gateway does. The first request of each user is left out: all users
start at once, which measures how fast a thousand prompts are classified.
"""

import pandas as pd

from erlab.results import metrics
from erlab.results.records import Records

WARMUP = 1  # first requests of each user, left out of the times


def compare(records: Records) -> pd.DataFrame:
    """Compare runs with and without the gateway, one row per load and way.

    Returns:
        Times in ms. `lost`: requests that failed. `tokens_missing`, `disordered`: tokens that did not arrive, and that
        arrived out of order. `start_...`: first requests, which all users send at once. Empty without requests.
    """
    if records.requests.empty:
        return pd.DataFrame()
    rows = []
    for run in records.runs.sort_values(["users", "way"]).to_dict("records"):
        requests = records.requests[records.requests["run_id"] == run["run_id"]]
        later, first = requests[requests["turn"] >= WARMUP], requests[requests["turn"] < WARMUP]
        times = {
            "ttft": metrics.ttft(later) * 1e3,
            "outside": outside(later),
            "start_outside": outside(first),
        }
        cpu, tokens = run["gateway_cpu_s"], requests["output_tokens"].sum()
        rows.append(
            {
                "users": run["users"],
                "way": run["way"],
                "requests": len(requests),
                "lost": int((~metrics.finished(requests)).sum()),
                "tokens": int(tokens),
                "tokens_missing": int(run["tokens_asked"] - tokens),
                "disordered": int(requests["disordered"].sum()),
                **{f"{k}_p{q}_ms": metrics.percentile(v, q) for k, v in times.items() for q in (50, 99)},
                "gateway_us_a_token": 1e6 * cpu / tokens if pd.notna(cpu) else None,
                "time_scale": run["time_scale"],
                "machine": run["machine"],
            }
        )
    return pd.DataFrame(rows)


def added(records: Records) -> pd.DataFrame:
    """Compute what the gateway adds to the time outside of the experts, one row per load.

    Returns:
        Requests; lost requests and tokens, with and without the gateway; added time at the median and the 99th
        percentile, ms. Empty without requests.
    """
    compared = compare(records)
    if compared.empty:
        return compared
    both = compared.pivot(index="users", columns="way")
    lost = ["lost", "tokens_missing", "disordered"]
    table = pd.DataFrame({name: both[name].sum(axis=1) for name in ("requests", *lost)})
    for name, label in (("outside", "added"), ("start_outside", "added at the start")):
        for q in (50, 99):
            values = both[f"{name}_p{q}_ms"].astype(float)
            table[f"{label} p{q} ms"] = (values["gateway"] - values["direct"]).round(2)
    return table.assign(**{"time scale": both["time_scale"]["gateway"]})


def outside(requests: pd.DataFrame) -> pd.Series:
    """Return the part of each time to first token outside of the expert, ms."""
    return metrics.ttft(requests) * 1e3 - requests["expert_ns"] / 1e6


def parts(records: Records) -> pd.DataFrame:
    """Split the time to first token through the gateway, one row per load and part: p50 and p99, ms.

    The client's wait precedes it: from when the request was due until it was sent. Empty without requests.
    """
    if records.requests.empty:
        return pd.DataFrame()
    gateways = records.runs.loc[records.runs["way"] == "gateway", "run_id"]
    requests = records.requests
    requests = requests[requests["run_id"].isin(gateways) & (requests["turn"] >= WARMUP) & metrics.finished(requests)]
    upstream = requests["t_first"] - requests["t_routed"] - requests["queue_ns"]
    times = {
        "client wait": requests["late_ns"],
        "to the gateway and decided": requests["t_routed"] - requests["t_submit"] - requests["classify_ns"],
        "classify": requests["classify_ns"],
        "gateway queue": requests["queue_ns"],
        "upstream: the expert": requests["expert_ns"],
        "upstream: Triton and both ways": upstream - requests["expert_ns"],
    }
    by_load = pd.DataFrame(times).astype(float).div(1e6).groupby(requests["users"])
    columns = {f"p{q} ms": by_load.quantile(q / 100).stack() for q in (50, 99)}
    return pd.DataFrame(columns).round(3).rename_axis(["users", "part"])
