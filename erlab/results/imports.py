"""Results that other benchmark clients wrote, as request records; and records as CSV for whoever wants them.

    found = read("artifacts/profile_export.jsonl", system="E", machine="DGX H100")
    records.save(folder / "aiperf.parquet", found)

Read are, recognised by their contents:

- AIPerf's `profile_export.jsonl`, which it writes since 0.2, one request per line;
- GuideLLM's `benchmarks.json`, since 0.4 (versions 0.4 to 0.8 were looked at), one run for each of its benchmarks;
- what `vllm bench serve --save-result --save-detailed` writes, one run for each result that was appended
  (vLLM's commit 009e6d4; older ones that write `start_times` too).

What cannot be a request record is left out, and each run's description says what that was (`left_out`, a text).

Times stay what these tools measured. Where definitions differ (`erlab.results.metrics`): vLLM's time to first token counts a
first chunk without text. GuideLLM keeps no time per token, and neither GuideLLM nor vLLM say who the user was.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from erlab import textfiles
from erlab.errors import REASON, ErlabError, reason
from erlab.results import records
from erlab.spec import require

_ODD = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


class _Unknown(ValueError):
    """A result that is not read, in a sentence that names its tool."""


class _NoRequest(ValueError):
    """Why an entry of a result is no request that can be a record."""


def read(
    path: Path, system: str, users: int | None = None, machine: str | None = None, paper: str | None = None
) -> records.Records:
    """The request records of a result file; run ids are the file's name and the number of the run in it.

    system, machine, paper: what was measured, which the files don't say in our words. users: the load; None takes the
    largest number of requests in flight at one time.

    Raises ErlabError where the file is none of the formats, or where it lacks what a request record needs.
    """
    require(users is None or type(users) is int and users >= 1, "users", "read", "be at least 1, or None", users)
    path = Path(path)
    text = textfiles.read(path)
    left_out = Counter()
    try:
        tool, runs = _runs(list(_documents(text, left_out)), left_out)
    except _Unknown as e:
        raise ErlabError(f"{path}: {e}") from None
    except _ODD as e:
        why = f"{type(e).__name__}: {reason(e)}"
        raise ErlabError(f"{path}: no result of AIPerf, GuideLLM or vLLM bench serve ({why}).") from None
    if not any(runs):
        said = f" ({_listed(left_out)} left out)" if left_out else ""
        raise ErlabError(f"{path}: the {tool} result has no requests{said}.")
    rows, described = [], []
    for i, run in enumerate(runs):
        if not run:
            continue
        common = {
            "run_id": f"{path.stem}-{i}",
            "paper": paper,
            "system": system,
            "source": "measured",
            "machine": machine,
            "users": users or _most_in_flight(run),
        }
        lacking = (name for row in run if row["status"] == "ok" for name in _TIMES if row[name] is None)
        left_out += Counter(f"{name} of a request that ended well" for name in lacking)
        zero = min(row["t_submit"] for row in run)
        moved = sorted((_moved(row, zero) for row in run), key=lambda row: row["t_submit"])
        rows += [row | common for row in moved]
        described.append(common | {"client": tool, "file": path.name})
    described = [run | {"left_out": _listed(left_out)} for run in described]
    try:
        table = pa.Table.from_pylist(rows, schema=records.SCHEMA)
    except (pa.ArrowException, *_ODD) as e:
        raise ErlabError(f"{path}: the {tool} result cannot be request records ({reason(e)}).") from None
    return records.from_table(table, *described, origin=path)


def write_csv(path: Path, found: records.Records) -> None:
    """Write the requests as CSV, a row each, unknown values empty and `token_times` as a JSON list of ns."""
    times = [None if t is None else json.dumps([int(ns) for ns in t]) for t in found.requests["token_times"]]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.requests.assign(token_times=times).to_csv(path, index=False)


# ---- which tool wrote a file


def _documents(text: str, left_out: Counter) -> Iterator[object]:
    """The JSON values that follow one another in a text; a last line that was cut short is left out."""
    decoder, at, first = json.JSONDecoder(), _BLANK.match(text).end(), True
    while at < len(text):
        try:
            document, end = decoder.raw_decode(text, at)
        except ValueError as e:
            if first or "\n" in text[at:].strip():
                raise ValueError(f"line {text.count(chr(10), 0, at) + 1}: {getattr(e, 'msg', e)}") from None
            left_out["last line, cut short"] += 1
            return
        yield document
        at, first = _BLANK.match(text, end).end(), False


def _runs(documents: list, left_out: Counter) -> tuple[str, list[list[dict]]]:
    """The tool that wrote these, and the rows of each run, times in ns of the tool's own clock."""
    if not documents:
        raise ValueError("the file is empty")
    tools = sorted({_tool(document) for document in documents})
    if len(tools) > 1:
        raise _Unknown(f"results of {' and '.join(tools)} in one file; give each a file of its own.")
    if tools == ["AIPerf"]:
        return "AIPerf", [_rows(_aiperf, documents, left_out)]
    make = _guidellm if tools == ["GuideLLM"] else _vllm
    return tools[0], [run for document in documents for run in make(document, left_out)]


def _tool(document: object) -> str:
    """The tool that wrote this; raises _Unknown for what other tools and versions write."""
    if not isinstance(document, dict):
        raise TypeError(f"an object is needed, got {document!r:.40}")
    for tool, keys in _READ.items():
        if keys <= document.keys():
            return tool
    for key, said in _NAMED.items():
        if key in document:
            raise _Unknown(said)
    raise KeyError(", ".join(list(document)[:5]) or "an empty object")


_BLANK = re.compile(r"[ \t\r\n]*")
_READ = {"AIPerf": {"metadata", "metrics"}, "GuideLLM": {"benchmarks"}, "vLLM bench serve": {"ttfts", "start_times"}}
_RECORDS = "profile_export.jsonl is read, which AIPerf 0.2 and later write."
_DETAILED = "vllm bench serve writes them with --save-result --save-detailed."
_NAMED = {
    "responses": "AIPerf's raw records; its profile_export.jsonl, which lies beside them, is read.",
    "input_config": f"AIPerf's summary, without requests; {_RECORDS}",
    "aiperf_version": f"AIPerf's summary, without requests; {_RECORDS}",
    "experiments": f"a profile of GenAI-Perf or perf_analyzer; {_RECORDS}",
    "ttfts": f"a result of vLLM or SGLang without start_times, so that no request's time is known; {_DETAILED}",
    "mean_ttft_ms": f"a summary of vLLM or SGLang without requests; {_DETAILED}",
}


# ---- what each tool says of a request


def _rows(make: Callable[[dict], dict], entries: Iterable[dict], left_out: Counter) -> list[dict]:
    rows = []
    for entry in entries:
        try:
            rows.append(make(entry))
        except _NoRequest as e:
            left_out[str(e)] += 1
    return rows


def _aiperf(entry: dict) -> dict:
    """One line of AIPerf's records; its times since the epoch are ns, its durations ms."""
    about, metrics, error = entry["metadata"], entry["metrics"], entry.get("error")  # unset fields are left out
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


def _guidellm(report: dict, left_out: Counter) -> list[list[dict]]:
    """The rows of each of a report's benchmarks, whose requests are kept by how they ended."""
    runs = []
    for benchmark in report["benchmarks"]:
        if "benchmarks" in benchmark:
            raise _Unknown("a report of GuideLLM 0.1, which is not read; measure with GuideLLM 0.4 or later.")
        requests, run = benchmark["requests"] or {}, []
        for kind, status in (("successful", "ok"), ("errored", "error"), ("incomplete", "cancelled")):
            run += _rows(lambda request: _guidellm_row(request, kind, status), requests.get(kind) or [], left_out)
        if not run:
            left_out["benchmark without requests"] += 1
        runs.append(run)
    return runs


def _guidellm_row(request: dict, kind: str, status: str) -> dict:
    """One request of GuideLLM; its times are seconds since the epoch."""
    if "info" not in request:
        raise _Unknown("a report of GuideLLM 0.2 or 0.3, which is not read; measure with GuideLLM 0.4 or later.")
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
        "error": None if status == "ok" else str(info.get("error") or kind)[:REASON],
    }


def _vllm(result: dict, left_out: Counter) -> list[list[dict]]:
    """The rows of a `vllm bench serve` result, kept as columns."""
    count = len(result["ttfts"])
    columns = {name: result[name] for name in ("start_times", "ttfts", "itls", "errors", "input_lens", "output_lens")}
    columns |= {name: result.get(name) or [None] * count for name in ("latencies", "queue_times")}
    if wrong := [name for name, values in columns.items() if len(values) != count]:
        raise _Unknown(f"a vLLM result whose lists {', '.join(['ttfts', *wrong])} differ in length.")
    return [_rows(_vllm_row, (dict(zip(columns, values)) for values in zip(*columns.values())), left_out)]


def _vllm_row(request: dict) -> dict:
    """One request of vLLM; its times are seconds of its own clock."""
    error = request["errors"]
    start, ttft, latency, wait = (_ns(request[name]) for name in ("start_times", "ttfts", "latencies", "queue_times"))
    start = _sent(start)
    first = None if ttft is None or (error and not ttft) else start + ttft
    times = _token_times(first, request["itls"], 1e9)
    end = start if error else None  # what failed at once has no times
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
    """A number, None where it is null, NaN or infinite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is needed, got {value!r:.40}")
    return value if math.isfinite(value) else None


def _whole(value: object) -> int | None:
    """A count, None where it is unknown."""
    number = _number(value)
    if number is not None and number != int(number):
        raise TypeError(f"a whole number is needed, got {number}")
    return number


def _ns(seconds: float | None) -> int | None:
    seconds = _number(seconds)
    return None if seconds is None else round(seconds * 1e9)


def _sent(start: float | None) -> float:
    """The time of a request that was sent."""
    if _number(start) is None:
        raise _NoRequest("request without the time at which it was sent")
    return start


def _token_times(first: int | None, gaps: list | None, unit: float) -> list[int] | None:
    """The times of a request's tokens: the first, and the gaps (in `unit` ns) after it; None where one is unknown."""
    if first is None or gaps is None or any(_number(gap) is None for gap in gaps):
        return None
    times = [first]
    for gap in gaps:
        times.append(times[-1] + round(gap * unit))
    return times


def _moved(row: dict, zero: int) -> dict:
    """The row with its times since the run's first submission; a failed request ends with its last token or later."""
    times, last = row.get("token_times"), row["t_last"]
    if last is not None and row["status"] != "ok":
        last = max([last, row["t_first"] or last, *(times or ())])
    since = {name: None if at is None else at - zero for name, at in (row | {"t_last": last}).items() if name in _TIMES}
    return row | since | {"token_times": None if times is None else [t - zero for t in times]}


_TIMES = ("t_submit", "t_first", "t_last")


def _most_in_flight(rows: list[dict]) -> int:
    ends = (math.inf if row["t_last"] is None else row["t_last"] for row in rows)
    events = sorted(event for row, end in zip(rows, ends) for event in ((row["t_submit"], 1), (end, -1)))
    most = now = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return max(most, 1)


def _listed(left_out: Counter) -> str | None:
    """What was left out, in words; None where nothing was."""
    return ", ".join(f"{count} x {what}" for what, count in sorted(left_out.items())) or None
