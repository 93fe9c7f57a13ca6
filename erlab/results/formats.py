"""Result formats of other benchmark clients: AIPerf, GuideLLM and vLLM bench serve.

A format's function turns the JSON documents of a file into the rows of each run: columns of request records, with times
in ns of the client's own clock. `FORMATS` lists all; a new client is added there.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from erlab.errors import REASON

TIMES = ("t_submit", "t_first", "t_last")


class Unsupported(ValueError):
    """A result that is not read; the message names its client."""


class _NoRequest(ValueError):
    """Reason why an entry of a result is no request that can be a record."""


def aiperf(documents: list[dict], left_out: Counter) -> list[list[dict]]:
    """Return the rows of AIPerf's `profile_export.jsonl`, one request per document."""
    return [_rows(_aiperf_row, documents, left_out)]


def guidellm(documents: list[dict], left_out: Counter) -> list[list[dict]]:
    """Return the rows of each benchmark of GuideLLM's reports; requests are grouped by their outcome."""
    runs = []
    for benchmark in (benchmark for report in documents for benchmark in report["benchmarks"]):
        if "benchmarks" in benchmark:
            raise Unsupported("a report of GuideLLM 0.1, which is not read; measure with GuideLLM 0.4 or later.")
        requests, run = benchmark["requests"] or {}, []
        for outcome, status in (("successful", "ok"), ("errored", "error"), ("incomplete", "cancelled")):
            entries = requests.get(outcome) or []
            run += _rows(lambda request: _guidellm_row(request, outcome, status), entries, left_out)
        if not run:
            left_out["benchmark without requests"] += 1
        runs.append(run)
    return runs


def vllm(documents: list[dict], left_out: Counter) -> list[list[dict]]:
    """Return the rows of each result of `vllm bench serve`, which stores requests in columns."""
    runs = []
    for result in documents:
        count = len(result["ttfts"])
        names = ("start_times", "ttfts", "itls", "errors", "input_lens", "output_lens")
        columns = {name: result[name] for name in names}
        columns |= {name: result.get(name) or [None] * count for name in ("latencies", "queue_times")}
        if wrong := [name for name, values in columns.items() if len(values) != count]:
            raise Unsupported(f"a vLLM result whose lists {', '.join(['ttfts', *wrong])} differ in length.")
        requests = (dict(zip(columns, values)) for values in zip(*columns.values()))
        runs.append(_rows(_vllm_row, requests, left_out))
    return runs


class Format(NamedTuple):
    """Result format of a client.

    Attributes:
        keys: Keys that every document of the format has.
        read: Returns the rows of each run in a file's documents, and counts what it leaves out.
    """

    keys: set[str]
    read: Callable[[list[dict], Counter], list[list[dict]]]


FORMATS = {
    "AIPerf": Format({"metadata", "metrics"}, aiperf),
    "GuideLLM": Format({"benchmarks"}, guidellm),
    "vLLM bench serve": Format({"ttfts", "start_times"}, vllm),
}
_RECORDS = "profile_export.jsonl is read, which AIPerf 0.2 and later write."
_DETAILED = "vllm bench serve writes them with --save-result --save-detailed."
_UNSUPPORTED = {  # key of a document: what it is
    "responses": "AIPerf's raw records; its profile_export.jsonl, which lies beside them, is read.",
    "input_config": f"AIPerf's summary, without requests; {_RECORDS}",
    "aiperf_version": f"AIPerf's summary, without requests; {_RECORDS}",
    "experiments": f"a profile of GenAI-Perf or perf_analyzer; {_RECORDS}",
    "ttfts": f"a result of vLLM or SGLang without start_times, so that no request's time is known; {_DETAILED}",
    "mean_ttft_ms": f"a summary of vLLM or SGLang without requests; {_DETAILED}",
}


def recognise(document: object) -> str:
    """Return the client that wrote a document; raise Unsupported for other clients and versions."""
    if not isinstance(document, dict):
        raise TypeError(f"an object is needed, got {document!r:.40}")
    for client, form in FORMATS.items():
        if form.keys <= document.keys():
            return client
    for key, message in _UNSUPPORTED.items():
        if key in document:
            raise Unsupported(message)
    raise KeyError(", ".join(list(document)[:5]) or "an empty object")


def _rows(make: Callable[[dict], dict], entries: Iterable[dict], left_out: Counter) -> list[dict]:
    rows = []
    for entry in entries:
        try:
            rows.append(make(entry))
        except _NoRequest as e:
            left_out[str(e)] += 1
    return rows


def _aiperf_row(entry: dict) -> dict:
    """Convert one request of AIPerf: times in ns since the epoch, durations in ms; unset fields are absent."""
    about, metrics, error = entry["metadata"], entry["metrics"], entry.get("error")
    if about.get("benchmark_phase") == "warmup":
        raise _NoRequest("request of the warm-up")

    def value(name: str) -> float | None:
        return _number(metrics[name]["value"]) if name in metrics else None

    start, ttft, latency = _sent(about["request_start_ns"]), value("time_to_first_token"), value("request_latency")
    first = None if ttft is None else start + round(ttft * 1e6)
    gaps = metrics["inter_chunk_latency"]["value"] if "inter_chunk_latency" in metrics else None
    issued = _number(about.get("credit_issued_ns"))
    output = value("output_sequence_length")
    return {
        "user": about["session_num"],
        "turn": about.get("turn_index"),
        "prompt_id": about.get("conversation_id"),
        "input_tokens": _whole(value("input_sequence_length") or value("error_isl")),
        "output_tokens": _whole(value("output_token_count") if output is None else output),
        "late_ns": None if issued is None else max(0, start - issued),
        "t_submit": start,
        "t_first": first,
        "t_last": _number(about.get("request_end_ns")) if latency is None else start + round(latency * 1e6),
        "token_times": _token_times(first, gaps, 1e6),
        "status": "cancelled" if about.get("was_cancelled") else "error" if error else "ok",
        "error": f"{error.get('type')}: {error['message']}"[:REASON] if error else None,
    }


def _guidellm_row(request: dict, outcome: str, status: str) -> dict:
    """Convert one request of GuideLLM: times in seconds since the epoch."""
    if "info" not in request:
        raise Unsupported("a report of GuideLLM 0.2 or 0.3, which is not read; measure with GuideLLM 0.4 or later.")
    info, times = request["info"], request["info"]["timings"]
    start, end = _ns(request["request_start_time"]), _ns(request["request_end_time"])
    end = _ns(times.get("resolve_end")) if end is None else end
    last, due = _ns(times.get("last_token_iteration")), _ns(times.get("targeted_start"))
    start = _sent(start)
    return {
        "turn": info.get("turn_index"),
        "prompt_id": request["request_id"],
        "input_tokens": _whole(request["prompt_tokens"]),
        "output_tokens": _whole(request["output_tokens"]),
        "late_ns": None if due is None else max(0, start - due),
        "t_submit": start,
        "t_first": _ns(times.get("first_token_iteration")),
        "t_last": end if last is None or status != "ok" else last,
        "status": status,
        "error": None if status == "ok" else str(info.get("error") or outcome)[:REASON],
    }


def _vllm_row(request: dict) -> dict:
    """Convert one request of vLLM: times in seconds of its own clock."""
    error = request["errors"]
    start, ttft, latency, wait = (_ns(request[name]) for name in ("start_times", "ttfts", "latencies", "queue_times"))
    start = _sent(start)
    first = None if ttft is None or (error and not ttft) else start + ttft
    times = _token_times(first, request["itls"], 1e9)
    end = start if error else None  # a request that failed at once has no times
    if latency is not None:
        end = start + latency
    elif times:
        end = times[-1]
    return {
        "input_tokens": _whole(request["input_lens"]),
        "output_tokens": _whole(request["output_lens"]),
        "late_ns": None if wait is None else max(0, wait),
        "t_submit": start,
        "t_first": first,
        "t_last": end,
        "token_times": times,
        "status": "error" if error else "ok",
        "error": (str(error).strip().split("\n")[-1] or "error")[:REASON] if error else None,
    }


def _number(value: object) -> float | None:
    """Return a number, None if it is null, NaN or infinite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is needed, got {value!r:.40}")
    return value if math.isfinite(value) else None


def _whole(value: object) -> int | None:
    """Return a count, None if it is unknown."""
    number = _number(value)
    if number is not None and number != int(number):
        raise TypeError(f"a whole number is needed, got {number}")
    return number


def _ns(seconds: float | None) -> int | None:
    seconds = _number(seconds)
    return None if seconds is None else round(seconds * 1e9)


def _sent(start: float | None) -> float:
    """Return the time at which a request was sent."""
    if _number(start) is None:
        raise _NoRequest("request without the time at which it was sent")
    return start


def _token_times(first: int | None, gaps: list | None, unit: float) -> list[int] | None:
    """Return the times of a request's tokens from the first and the gaps (in `unit` ns), None if one is unknown."""
    if first is None or gaps is None or any(_number(gap) is None for gap in gaps):
        return None
    times = [first]
    for gap in gaps:
        times.append(times[-1] + round(gap * unit))
    return times
