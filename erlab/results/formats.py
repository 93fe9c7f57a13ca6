"""Result formats of other benchmark clients, one entry of `CLIENTS` each.

A format's function turns the JSON documents of a file into its runs: columns of request records, with times in ns of
the client's own clock. A new client is added to `CLIENTS`; `erlab import --help` lists it.
"""

import heapq
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from erlab.errors import REASON

TIMES = ("t_submit", "t_first", "t_last")
_BLANK = re.compile(r"[ \t\r\n]*")


class Unsupported(ValueError):
    """A result that is not read; the message names its client."""


class _NoRequest(ValueError):
    """Reason why an entry of a result is no request that can be a record."""


class Run(NamedTuple):
    """Requests of one run and its number of concurrent users, None if the result does not have it."""

    rows: list[dict]
    users: int | None = None


def aiperf(documents: Iterable[dict], left_out: Counter) -> list[Run]:
    """Return the run of AIPerf's `profile_export.jsonl`, one request per document."""
    return [Run(_rows(_aiperf_row, documents, left_out))]


def guidellm(documents: Iterable[dict], left_out: Counter) -> list[Run]:
    """Return each benchmark of GuideLLM's reports; requests are grouped by their outcome."""
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
        runs.append(Run(run))
    return runs


def vllm(documents: Iterable[dict], left_out: Counter) -> list[Run]:
    """Return each result of `vllm bench serve` or SGLang's bench_serving, which store requests in columns."""
    runs = []
    for result in documents:
        count = len(result["ttfts"])
        names = ("ttfts", "itls", "errors", "input_lens", "output_lens")
        columns = {name: result[name] for name in names}
        columns |= {name: result.get(name) or [None] * count for name in ("latencies", "queue_times")}
        starts = result.get("start_times")
        if starts is None and result.get("request_rate") not in ("inf", math.inf):
            left_out["result without start times and with a request rate, so that no request's time is known"] += 1
            continue
        columns["start_times"] = _starts(result, left_out) if starts is None else starts
        if wrong := [name for name, values in columns.items() if len(values) != count]:
            raise Unsupported(f"a result whose lists {', '.join(['ttfts', *wrong])} differ in length.")
        requests = (dict(zip(columns, values)) for values in zip(*columns.values()))
        runs.append(Run(_rows(_vllm_row, requests, left_out), _whole(result.get("max_concurrency"))))
    return runs


def perf_analyzer(documents: Iterable[dict], left_out: Counter) -> list[Run]:
    """Return each experiment of perf_analyzer's `profile_export.json`, which GenAI-Perf also keeps."""
    runs = []
    for experiment in (experiment for document in documents for experiment in document["experiments"]):
        about = experiment["experiment"]
        users = _whole(about["value"]) if about["mode"] == "concurrency" else None
        runs.append(Run(_rows(_perf_analyzer_row, experiment["requests"], left_out), users))
    return runs


def inference_perf(documents: Iterable[dict], left_out: Counter) -> list[Run]:
    """Return the run of inference-perf's `per_request_lifecycle_metrics.json`, one request per document."""
    return [Run(_rows(_inference_perf_row, documents, left_out))]


def mlperf(documents: Iterable[dict], left_out: Counter) -> list[Run]:
    """Return the run of each trace of MLPerf's load generator.

    Samples are scheduled at `ts` (us) and issued `issue_start_ns` later. Their first tokens are other events: of the
    same sample, or, in the Server scenario, of the same time.
    """
    runs = []
    for trace in documents:
        first, scheduled = {}, {}
        for event in trace["traceEvents"]:
            if event["name"] == "Token":
                first[event["id"]] = event["args"]["complete_ns"]
            elif event["name"] == "Token_Latency":
                scheduled[event["ts"]] = event["args"]["issue_delay"] + event["args"]["issue_to_done"]
        samples = (event for event in trace["traceEvents"] if event["name"] == "Sample")
        firsts = ((event, first.get(event["id"], scheduled.get(event["ts"]))) for event in samples)
        runs.append(Run([_mlperf_row(event, ttft) for event, ttft in firsts]))
    return runs


class Client(NamedTuple):
    """Client whose results are read, and the format of its result file.

    Attributes:
        file: The file that is read.
        tried: Versions whose real files were read; empty if only its documentation was followed.
        keys: Keys that every document of the format has.
        read: Returns the runs in a file's documents, and counts what it leaves out.
    """

    file: str
    tried: str
    keys: set[str]
    read: Callable[[Iterable[dict], Counter], list[Run]]


# The first entry whose keys a document has is taken: more specific ones come first.
CLIENTS = {
    "AIPerf": Client("profile_export.jsonl", "0.2, 0.6, 0.13", {"metadata", "metrics"}, aiperf),
    "GuideLLM": Client("benchmarks.json", "0.3, 0.4, 0.5, 0.8", {"benchmarks"}, guidellm),
    "vLLM bench serve": Client("--save-result --save-detailed", "0.10", {"ttfts", "itls", "model_id"}, vllm),
    "SGLang bench_serving": Client("--output-details", "0.4.6, 0.5.4", {"ttfts", "itls"}, vllm),
    "GenAI-Perf": Client("profile_export.json", "", {"experiments"}, perf_analyzer),
    "inference-perf": Client(
        "per_request_lifecycle_metrics.json", "", {"start_time", "end_time", "request", "error"}, inference_perf
    ),
    "MLPerf LoadGen": Client("mlperf_log_trace.json", "4.1, 5.1, 6.0", {"traceEvents"}, mlperf),
}
_RECORDS = "profile_export.jsonl is read, which AIPerf 0.2 and later write."
_DETAILED = "--save-result --save-detailed (vLLM) or --output-details (SGLang) writes them."
_UNSUPPORTED = {  # key of a document: what it is
    "responses": "AIPerf's raw records; its profile_export.jsonl, which lies beside them, is read.",
    "input_config": f"AIPerf's or GenAI-Perf's summary, without requests; profile_export.json or {_RECORDS}",
    "aiperf_version": f"AIPerf's summary, without requests; {_RECORDS}",
    "mean_ttft_ms": f"a summary of vLLM or SGLang without requests; {_DETAILED}",
    "successes": "inference-perf's summary, without requests; its per_request_lifecycle_metrics.json is read.",
}
_MLPERF_LOGS = (":::MLLOG", "================================================\nMLPerf Results Summary")


def documents(text: str, left_out: Counter) -> Iterator[object]:
    """Yield the JSON values of a text, the items of a list singly; an incomplete last line is left out.

    The trace of MLPerf's load generator is one value, read line by line: its other lines are not all JSON.
    """
    if text.startswith(_MLPERF_LOGS):
        raise Unsupported("a log of MLPerf's LoadGen without requests; mlperf_log_trace.json is read (enable_trace).")
    if text.startswith('{"traceEvents":[\n{"name":"'):
        starts = tuple(f'{{"name":"{name}",' for name in ("Sample", "Token", "Token_Latency"))
        lines = (line.rstrip(", \r") for line in text.split("\n") if line.startswith(starts))
        yield {"traceEvents": [event for event in map(json.loads, lines) if "args" in event]}
        return
    decoder, at, first = json.JSONDecoder(), _blank(text, 0), True
    while at < len(text):
        try:
            document, end = decoder.raw_decode(text, at)
        except ValueError as e:
            if first or "\n" in text[at:].strip():
                raise ValueError(f"line {text.count(chr(10), 0, at) + 1}: {getattr(e, 'msg', e)}") from None
            left_out["last line, cut short"] += 1
            return
        yield from document if isinstance(document, list) else (document,)
        at, first = _blank(text, end), False


def runs(documents: Iterable[object], left_out: Counter) -> tuple[str, list[Run]]:
    """Return the client that wrote the documents, and their runs."""
    documents = iter(documents)
    try:
        document = next(documents)
    except StopIteration:
        raise ValueError("the file is empty") from None
    client = recognize(document)

    def of_client() -> Iterator[dict]:
        for document in documents:
            if (other := recognize(document)) != client:
                both = " and ".join(sorted((client, other)))
                raise Unsupported(f"results of {both} in one file; give each a file of its own.")
            yield document

    return client, CLIENTS[client].read(itertools.chain([document], of_client()), left_out)


def recognize(document: object) -> str:
    """Return the client that wrote a document; raise Unsupported for other clients and versions."""
    if not isinstance(document, dict):
        raise TypeError(f"an object is needed, got {document!r:.40}")
    for client, form in CLIENTS.items():
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


def _blank(text: str, at: int) -> int:
    """Return the index of the first character from `at` on that is no JSON white space."""
    return _BLANK.match(text, at).end()


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
        return _old_guidellm_row(request, outcome, status)
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


def _old_guidellm_row(request: dict, outcome: str, status: str) -> dict:
    """Convert one request of GuideLLM 0.2 or 0.3, which name its times otherwise."""
    start, due = _ns(request["start_time"]), _ns(request["scheduler_info"].get("targeted_start_time"))
    last, end = _ns(request.get("last_token_time")), _ns(request["end_time"])
    start = _sent(start)
    return {
        "prompt_id": request["request_id"],
        "input_tokens": _whole(request["prompt_tokens"]),
        "output_tokens": _whole(request["output_tokens"]),
        "late_ns": None if due is None else max(0, start - due),
        "t_submit": start,
        "t_first": _ns(request.get("first_token_time")),
        "t_last": end if last is None or status != "ok" else last,
        "status": status,
        "error": None if status == "ok" else str(request.get("error") or outcome)[:REASON],
    }


def _starts(result: dict, left_out: Counter) -> list[float]:
    """Return start times of requests that were due at once, of which at most `max_concurrency` ran at a time.

    SGLang, and vLLM before 0.11, write no start times. With an infinite request rate they follow from the order of the
    requests and their durations; with another rate they were drawn and are lost.
    """
    known = result.get("latencies") or [
        (ttft or 0) + sum(gap or 0 for gap in gaps or ()) for ttft, gaps in zip(result["ttfts"], result["itls"])
    ]
    slots = [0.0] * (_whole(result.get("max_concurrency")) or max(1, len(known)))
    starts = []
    for latency in known:
        starts.append(slots[0])
        heapq.heapreplace(slots, slots[0] + (_number(latency) or 0))
    left_out["list of start times (computed from the order of requests; throughput is an upper limit)"] += 1
    return starts


def _vllm_row(request: dict) -> dict:
    """Convert one request of vLLM: times in seconds of its own clock."""
    error = request["errors"]
    start, ttft, latency, wait = (_ns(request[name]) for name in ("start_times", "ttfts", "latencies", "queue_times"))
    start = _sent(start)
    answered = ttft or (ttft == 0 and not error and request["output_lens"])
    first = start + ttft if answered else None
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


def _perf_analyzer_row(request: dict) -> dict:
    """Convert one request of perf_analyzer: times in ns since the epoch.

    Token counts are known where the server reports them: GenAI-Perf counts tokens afterwards and does not save them.
    """
    times, outputs = request["response_timestamps"], request.get("response_outputs") or []
    parts = [_openai_parts(output) for output in outputs]
    with_text = [time for time, part in itertools.zip_longest(times, parts) if part is None or part.text]
    error = next((part.error for part in parts if part.error), None if times else "no response")
    usage = next((part.usage for part in reversed(parts) if part.usage), {})
    return {
        "user": _whole(request.get("sequence_id")),
        "prompt_id": (request.get("request_inputs") or {}).get("session_id"),
        "input_tokens": _whole(usage.get("prompt_tokens")),
        "output_tokens": _whole(usage.get("completion_tokens")),
        "t_submit": _sent(request["timestamp"]),
        "t_first": _number(with_text[0]) if with_text else None,
        "t_last": _number((with_text or times)[-1]) if times else None,
        "token_times": [_sent(time) for time in with_text] or None,
        "status": "error" if error else "ok",
        "error": error,
    }


class _Part(NamedTuple):
    """Content of one response: whether it has text, the usage it reports, its error."""

    text: bool
    usage: dict
    error: str | None


def _openai_parts(output: dict) -> _Part:
    """Return the content of one response of an OpenAI or Triton server."""
    if "response" not in output:
        return _Part(bool(output.get("text_output", True)), {}, None)
    text, usage, error = False, {}, None
    for line in str(output["response"]).split("\n"):
        line = line.removeprefix("data:").strip()
        if not line or line == "[DONE]":
            continue
        try:
            document = json.loads(line)
        except ValueError:  # an event in pieces
            text = True
            continue
        error = error or document.get("error") and str(document["error"])[:REASON]
        usage = document.get("usage") or usage
        for choice in document.get("choices") or ():
            said = choice.get("delta") or choice.get("message") or choice
            text = text or any(said.get(name) for name in ("content", "reasoning_content", "text", "tool_calls"))
    return _Part(text, usage, error)


def _inference_perf_row(request: dict) -> dict:
    """Convert one request of inference-perf: times in seconds of its own clock; 0.1 has no tokens."""
    info, error = request.get("info") or {}, request["error"]
    response = info.get("response_metrics") or info
    times = [_sent(_ns(time)) for time in response.get("chunk_times") or response.get("output_token_times") or ()]
    end = _ns(request["end_time"])
    return {
        "input_tokens": _whole(info.get("input_tokens")),
        "output_tokens": _whole(response.get("output_tokens")),
        "t_submit": _sent(_ns(request["start_time"])),
        "t_first": times[0] if times else None,
        "t_last": times[-1] if times and not error else end,
        "token_times": times or None,
        "status": "error" if error else "ok",
        "error": f"{error['error_type']}: {error['error_msg']}"[:REASON] if error else None,
    }


def _mlperf_row(event: dict, ttft: int | None) -> dict:
    """Convert one sample of MLPerf: durations in ns since its scheduled time, which `ts` has in us."""
    scheduled, about = round(_sent(event["ts"]) * 1e3), event["args"]
    late = max(0, _whole(about["issue_start_ns"]))
    return {
        "prompt_id": str(about["sample_idx"]),
        "late_ns": late,
        "t_submit": scheduled + late,
        "t_first": None if ttft is None else scheduled + _whole(ttft),
        "t_last": scheduled + _whole(about["complete_ns"]),
        "status": "ok",
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
