"""Results that other benchmark clients wrote, as request records; and records as CSV for whoever wants them.

    found = read("artifacts/profile_export.jsonl", system="E", machine="DGX H100")
    records.save(folder / "aiperf.parquet", found)

Read are, recognised by their contents:

- AIPerf 0.13's `profile_export.jsonl`, a request a line; requests of its warm-up phase are left out;
- GuideLLM 0.8's `benchmarks.json` (version 2 of its report), a run for each of its benchmarks;
- what `vllm bench serve --save-result --save-detailed` writes (vLLM's commit 009e6d4; older ones that write
  `start_times` too).

Times stay what these tools measured. Where definitions differ (`erlab.metrics`): vLLM's time to first token counts a
first chunk without text. GuideLLM keeps no time a token, and neither GuideLLM nor vLLM say who the user was.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa

from erlab import records
from erlab.errors import ErlabError

def read(
    path: Path, system: str, users: int | None = None, machine: str | None = None, paper: str | None = None
) -> records.Records:
    """The request records of a result file; run ids are the file's name and the number of the run in it.

    system, machine, paper: what was measured, which the files don't say in our words. users: the load; None takes the
    largest number of requests in flight at one time.

    Raises ErlabError where the file is none of the formats, or where it lacks what a request record needs.
    """
    path = Path(path)
    try:
        text = path.read_text()
        tool, runs = _runs(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        why = f"{type(e).__name__}: {e}"
        raise ErlabError(f"{path}: no result of AIPerf, GuideLLM or vLLM bench serve ({why}).") from None
    rows, described = [], []
    for i, run in enumerate(runs):
        if not run:
            raise ErlabError(f"{path}: run {i} of the {tool} result has no requests.")
        common = {
            "run_id": f"{path.stem}-{i}",
            "paper": paper,
            "system": system,
            "source": "measured",
            "machine": machine,
            "users": users or _most_in_flight(run),
        }
        zero = min(row["t_submit"] for row in run)
        moved = sorted((_moved(row, zero) for row in run), key=lambda row: row["t_submit"])
        rows += [row | common for row in moved]
        described.append(common | {"client": tool, "file": path.name})
    return records.from_table(pa.Table.from_pylist(rows, schema=records.SCHEMA), *described)


def write_csv(path: Path, found: records.Records) -> None:
    """Write the requests as CSV, a row each, unknown values empty and `token_times` as a JSON list of ns."""
    times = [None if t is None else json.dumps([int(ns) for ns in t]) for t in found.requests["token_times"]]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.requests.assign(token_times=times).to_csv(path, index=False)


def _runs(text: str) -> tuple[str, list[list[dict]]]:
    """The tool that wrote `text`, and the rows of each of its runs, times in ns of the tool's own clock."""
    first = json.loads(text.split("\n", 1)[0]) if text.lstrip().startswith('{"metadata"') and "\n" in text else None
    if first and "metrics" in first:
        return "AIPerf", [_rows(_aiperf, (json.loads(line) for line in text.splitlines() if line.strip()))]
    whole = json.loads(text)
    if "benchmarks" in whole:
        return "GuideLLM", [_guidellm(benchmark["requests"]) for benchmark in whole["benchmarks"]]
    if "metadata" in whole and "metrics" in whole:
        return "AIPerf", [_rows(_aiperf, [whole])]
    if "ttfts" not in whole or "start_times" not in whole:
        raise KeyError("ttfts and start_times; vLLM writes them with --save-detailed")
    return "vLLM bench serve", [_vllm(whole)]


def _rows(make: Callable[[dict], dict | None], items: Iterable[dict]) -> list[dict]:
    return [row for row in map(make, items) if row is not None]


def _aiperf(item: dict) -> dict | None:
    """One line of AIPerf's records; its times since the epoch are ns, its durations ms."""
    about, metrics, error = item["metadata"], item["metrics"], item.get("error")  # unset fields are left out
    if about.get("benchmark_phase") == "warmup":
        return None

    def value(name: str):
        return metrics[name]["value"] if name in metrics else None

    start, ttft, gaps = about["request_start_ns"], value("time_to_first_token"), value("inter_chunk_latency")
    first = None if ttft is None else start + round(ttft * 1e6)
    latency = value("request_latency")
    times = None
    if first is not None and gaps is not None:
        times = [first]
        for gap in gaps:
            times.append(times[-1] + round(gap * 1e6))
    issued = about.get("credit_issued_ns")
    output = value("output_sequence_length")
    return {
        "user": about["session_num"],
        "turn": about.get("turn_index"),
        "prompt_id": about.get("conversation_id"),
        "input_tokens": value("input_sequence_length") or value("error_isl"),
        "output_tokens": value("output_token_count") if output is None else output,
        "late_ns": None if issued is None else max(0, start - issued),
        "t_submit": start,
        "t_first": first,
        "t_last": about["request_end_ns"] if latency is None else start + round(latency * 1e6),
        "token_times": times,
        "status": "cancelled" if about.get("was_cancelled") else "error" if error else "ok",
        "error": f"{error.get('type')}: {error['message']}" if error else None,
    }


def _guidellm(requests: dict) -> list[dict]:
    """The requests of one of GuideLLM's benchmarks, kept by how they ended; its times are seconds since the epoch."""
    rows = []
    for kind, status in (("successful", "ok"), ("errored", "error"), ("incomplete", "cancelled")):
        for request in requests.get(kind) or []:
            info, times = request["info"], request["info"]["timings"]
            start, end = request["request_start_time"], request["request_end_time"]
            if start is None:  # it was never sent
                continue
            last, due = times.get("last_token_iteration"), times.get("targeted_start")
            rows.append(
                {
                    "turn": info.get("turn_index"),
                    "prompt_id": request["request_id"],
                    "input_tokens": request["prompt_tokens"],
                    "output_tokens": request["output_tokens"],
                    "late_ns": None if due is None else max(0, _ns(start - due)),
                    "t_submit": _ns(start),
                    "t_first": _ns(times.get("first_token_iteration")),
                    "t_last": _ns(end if last is None or status != "ok" else last),
                    "status": status,
                    "error": info.get("error") or (None if status == "ok" else kind),
                }
            )
    return rows


def _vllm(result: dict) -> list[dict]:
    """The requests of a `vllm bench serve` result, kept as columns; all its times are seconds of its own clock."""
    rows = []
    latencies = result.get("latencies") or [None] * len(result["ttfts"])
    waits = result.get("queue_times") or [None] * len(result["ttfts"])
    columns = ("start_times", "ttfts", "itls", "errors", "input_lens", "output_lens")
    for (start, ttft, gaps, error, prompt, output), latency, wait in zip(
        zip(*(result[name] for name in columns), strict=True), latencies, waits, strict=True
    ):
        times = [start + ttft]
        for gap in gaps:
            times.append(times[-1] + gap)
        failed = bool(error)
        end = times[-1] if latency is None else start + latency
        rows.append(
            {
                "input_tokens": prompt,
                "output_tokens": output,
                "late_ns": None if wait is None else max(0, _ns(wait)),
                "t_submit": _ns(start),
                "t_first": None if failed and not ttft else _ns(times[0]),
                "t_last": _ns(end),
                "token_times": None if failed and not ttft else [_ns(t) for t in times],
                "status": "error" if failed else "ok",
                "error": str(error).strip().splitlines()[-1] if failed else None,
            }
        )
    return rows


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)


def _moved(row: dict, zero: int) -> dict:
    """The row with its times since the run's first submission."""
    times = row.get("token_times")
    since = {name: None if row[name] is None else row[name] - zero for name in ("t_submit", "t_first", "t_last")}
    return row | since | {"token_times": None if times is None else [t - zero for t in times]}


def _most_in_flight(rows: list[dict]) -> int:
    events = sorted(event for row in rows for event in ((row["t_submit"], 1), (row["t_last"], -1)))
    most = now = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return max(most, 1)
