"""Results in the formats of other clients become records; hand-written, in these tools' own layout."""

import csv
import json

import pandas as pd
import pytest

from erlab.errors import ErlabError
from erlab.results import exports, imports, metrics, records

EPOCH = 1_759_813_207_000_000_000


def aiperf(n, start_ms, ttft, gaps, phase="profiling", **change):
    latency = ttft + sum(gaps)
    metadata = {
        "session_num": n,
        "x_request_id": f"r{n}",
        "conversation_id": f"c{n}",
        "turn_index": 0,
        "credit_issued_ns": EPOCH + start_ms * 1_000_000 - 250_000,
        "request_start_ns": EPOCH + start_ms * 1_000_000,
        "request_ack_ns": None,
        "request_end_ns": EPOCH + int((start_ms + latency) * 1e6),
        "worker_id": "worker_1",
        "record_processor_id": "record_processor_1",
        "benchmark_phase": phase,
        "was_cancelled": False,
        "cancellation_time_ns": None,
    }
    measured = {
        "input_sequence_length": {"value": 550, "unit": "tokens"},
        "time_to_first_token": {"value": ttft, "unit": "ms"},
        "request_latency": {"value": latency, "unit": "ms"},
        "output_token_count": {"value": len(gaps) + 1, "unit": "tokens"},
        "inter_chunk_latency": {"value": gaps, "unit": "ms"},
        "output_sequence_length": {"value": len(gaps) + 1, "unit": "tokens"},
    }
    return {"metadata": metadata, "metrics": measured} | change


def test_aiperf(tmp_path):
    failed = aiperf(2, 60, 0, [], metrics={"error_isl": {"value": 550, "unit": "tokens"}})
    failed["error"] = {"code": 499, "type": "RequestCancellationError", "message": "cancelled after 0.000 seconds"}
    failed["metadata"]["was_cancelled"] = True
    lines = [aiperf(9, 0, 1, [1], phase="warmup"), aiperf(1, 50, 20, [5, 7]), aiperf(0, 40, 10, [4]), failed]
    path = tmp_path / "profile_export.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = imports.read(path, system="E", machine="a box")
    requests = found.requests
    assert requests.user.tolist() == [0, 1, 2] and requests.t_submit.tolist() == [0, 10_000_000, 20_000_000]
    assert metrics.ttft(requests).tolist()[:2] == [0.010, 0.020]
    assert metrics.tpot(requests).tolist()[:2] == [4.0, 6.0]
    assert list(requests.token_times[1]) == [30_000_000, 35_000_000, 42_000_000]
    assert requests.late_ns.tolist() == [250_000] * 3
    assert requests.status.tolist() == ["ok", "ok", "cancelled"]
    assert requests.error[2] == "RequestCancellationError: cancelled after 0.000 seconds"
    assert pd.isna(requests.t_first[2]) and requests.input_tokens[2] == 550
    assert set(requests.users) == {2} and set(requests.machine) == {"a box"}  # 0 to 14, 10 to 42, 20 to 20 ms
    assert found.runs.client.tolist() == ["AIPerf"]
    assert found.runs.left_out.tolist() == ["1 x request of the warm-up"]


def guidellm(request_id, start, first, last, tokens, end=None, **change):
    timings = {
        "targeted_start": start - 0.001,
        "request_start": start,
        "first_token_iteration": first,
        "last_token_iteration": last,
        "token_iterations": tokens,
        "request_end": end or last,
        "resolve_end": end or last,
    }
    info = {"request_id": request_id, "turn_index": 0, "status": "completed", "timings": timings, "error": None}
    return {
        "type_": "generative_request_stats",
        "request_id": request_id,
        "info": info | change,
        "input_metrics": {"text_tokens": 128},
        "output_metrics": {"text_tokens": tokens},
        "request_start_time": start,
        "request_end_time": end or last,
        "prompt_tokens": 128,
        "output_tokens": tokens,
    }


def test_guidellm(tmp_path):
    t = 1_759_813_207.0
    one = {"successful": [guidellm("a", t + 1, t + 1.5, t + 2.5, 11)], "errored": [], "incomplete": []}
    two = {
        "successful": [guidellm("b", t + 5, t + 5.25, t + 6.25, 5), guidellm("c", t + 5.5, t + 6, t + 6.5, 2)],
        "errored": [guidellm("d", t + 6, None, None, 0, end=t + 6.1, status="errored", error="HTTP 503")],
        "incomplete": [guidellm("e", t + 6, t + 6.2, t + 6.3, 3, end=t + 6.4, status="cancelled")],
    }
    report = {"metadata": {"version": 2, "guidellm_version": "0.8.1"}, "config": {}, "conclusions": []}
    report["benchmarks"] = [{"type_": "generative_benchmark", "requests": r} for r in (one, two)]
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(report))
    requests = imports.read(path, system="A", paper="v2").requests
    assert requests.run_id.tolist() == ["benchmarks-0"] + ["benchmarks-1"] * 4
    assert requests.users.tolist() == [1] + [4] * 4
    ok = requests[requests.status == "ok"]
    assert metrics.ttft(ok).round(6).tolist() == [0.5, 0.25, 0.5]
    assert metrics.tpot(ok).round(3).tolist() == [100.0, 250.0, 500.0]
    assert dict(zip(requests.prompt_id, requests.status)) == dict(a="ok", b="ok", c="ok", d="error", e="cancelled")
    assert requests.error[requests.prompt_id == "d"].item() == "HTTP 503"
    assert requests.late_ns.between(990_000, 1_010_000).all()
    assert requests.groupby("run_id").t_submit.min().tolist() == [0, 0]


VLLM = {
    "date": "20261121-021500",
    "backend": "vllm",
    "model_id": "m",
    "num_prompts": 3,
    "request_rate": "inf",
    "max_concurrency": None,
    "duration": 2.0,
    "completed": 2,
    "input_lens": [10, 20, 30],
    "output_lens": [3, 1, 0],
    "ttfts": [0.5, 0.25, 0.0],
    "itls": [[0.1, 0.2], [], []],
    "latencies": [0.85, 0.25, 0.0],
    "start_times": [1000.0, 1000.5, 1001.0],
    "queue_times": [0.001, 0.0, 0.0],
    "generated_texts": ["abc", "a", ""],
    "errors": ["", "", "Traceback (most recent call last):\n  File\nConnectionError: refused"],
}


@pytest.mark.parametrize("indent", [None, 2])
def test_vllm(tmp_path, indent):
    path = tmp_path / "vllm-infqps.json"
    path.write_text(json.dumps(VLLM, indent=indent))
    requests = imports.read(path, system="C", users=7).requests
    assert requests.t_submit.tolist() == [0, 500_000_000, 1_000_000_000]
    assert metrics.ttft(requests).tolist()[:2] == [0.5, 0.25]
    assert metrics.tpot(requests).round(6).tolist()[0] == 175.0 and pd.isna(metrics.tpot(requests)[1])
    assert [round(t / 1e6) for t in requests.token_times[0]] == [500, 600, 800]
    assert requests.status.tolist() == ["ok", "ok", "error"] and requests.error[2] == "ConnectionError: refused"
    assert pd.isna(requests.t_first[2]) and set(requests.users) == {7}
    assert requests.late_ns.tolist() == [1_000_000, 0, 0]


def test_older_vllm_has_no_latencies(tmp_path):
    older = {k: v for k, v in VLLM.items() if k not in ("latencies", "queue_times")}
    (tmp_path / "v.json").write_text(json.dumps(older))
    requests = imports.read(tmp_path / "v.json", system="C").requests
    assert requests.t_last.tolist()[0] == 800_000_000 and requests.late_ns.isna().all()


def test_imported_records_are_kept_and_summarised_like_others(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps(VLLM))
    found = imports.read(tmp_path / "v.json", system="C", paper="v2")
    records.save(tmp_path / "r.parquet", found)
    again = records.read(tmp_path / "r.parquet")
    summary = metrics.summarise(again.requests)
    assert (summary.requests.item(), summary.failed.item()) == (3, 1)
    assert again.runs.client.item() == "vLLM bench serve"


def test_several_files_have_runs_of_different_names(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.json").write_text(json.dumps(VLLM))
    files = [tmp_path / folder / "v.json" for folder in ("one", "two", "one")]
    found = imports.read_all(files, system="C", machine="m")
    assert found.runs.run_id.tolist() == [f"{tmp_path / folder / 'v'}-0" for folder in ("one", "two")]
    assert imports.read_all(files[:1], system="C").runs.run_id.tolist() == ["v-0"]


def test_records_as_json_lines(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps(VLLM))
    found = imports.read(tmp_path / "v.json", system="\u4e13\u5bb6\u2028")
    lines = exports.write(found, tmp_path / "r.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "" and list(rows[0]) == records.SCHEMA.names and rows[0]["system"] == "\u4e13\u5bb6\u2028"
    assert rows[0]["token_times"] == list(found.requests.token_times[0]) and rows[2]["t_first"] is None
    with pytest.raises(ErlabError, match="must be one of csv, jsonl, parquet. Got 'xlsx'"):
        exports.write(found, tmp_path / "r.xlsx")


def test_records_as_csv(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps(VLLM))
    found = imports.read(tmp_path / "v.json", system="C")
    exports.write(found, tmp_path / "out" / "r.csv")
    with (tmp_path / "out" / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == records.SCHEMA.names and len(rows) == 3
    assert json.loads(rows[0]["token_times"]) == list(found.requests.token_times[0])
    assert (rows[2]["t_first"], rows[2]["token_times"], rows[0]["output_tokens"]) == ("", "", "3")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[]",
        "{}",
        '{"benchmarks": [{}]}',
        '{"benchmarks": [{"requests": {}}]}',
        '{"metadata": {}, "metrics": {}}',
        '{"ttfts": [1]}',
    ],
)
def test_a_file_of_unknown_format_is_one_line(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ErlabError, match="f.json") as caught:
        imports.read(tmp_path / "f.json", system="A")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ErlabError, match="nowhere.json"):
        imports.read(tmp_path / "nowhere.json", system="A")


# What is left out, and what is refused by name


def read(tmp_path, *documents, separator="\n", **options):
    (tmp_path / "f.json").write_text(separator.join(d if isinstance(d, str) else json.dumps(d) for d in documents))
    return imports.read(tmp_path / "f.json", system="A", **options)


def refused(tmp_path, *documents):
    with pytest.raises(ErlabError) as caught:
        read(tmp_path, *documents)
    line = str(caught.value).removeprefix(f"{tmp_path / 'f.json'}: ")
    assert "\n" not in line and len(line) < 400
    return line


def guidellm_report(*benchmarks):
    return {"metadata": {"version": 2}, "benchmarks": [{"requests": requests} for requests in benchmarks]}


EMPTY = VLLM | {name: [] for name in VLLM if isinstance(VLLM[name], list)}
NONE = {"successful": [], "errored": [], "incomplete": []}
ONE = NONE | {"successful": [guidellm("a", 1e9, 1e9 + 1, 1e9 + 2, 5)]}


def test_the_order_of_keys_does_not_matter(tmp_path):
    lines = [aiperf(0, 40, 10, [4]), aiperf(1, 50, 20, [5])]
    turned = [{key: line[key] for key in ("metrics", "metadata")} for line in lines]
    assert read(tmp_path, *turned, separator="\n\n").requests.user.tolist() == [0, 1]
    assert read(tmp_path, dict(reversed(VLLM.items()))).runs.client.tolist() == ["vLLM bench serve"]
    assert read(tmp_path, dict(reversed(guidellm_report(ONE).items()))).runs.client.tolist() == ["GuideLLM"]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line(tmp_path, end):
    lines = [aiperf(0, 40, 10, [4]), aiperf(1, 50, 20, [5])]
    lines[0]["metadata"]["conversation_id"] = f"one{end}two"
    text = "\ufeff" + "\r\n".join(json.dumps(line, ensure_ascii=ord(end) < 32) for line in lines)
    assert read(tmp_path, text).requests.prompt_id.tolist() == [f"one{end}two", "c1"]


def test_several_results_one_after_another_are_runs(tmp_path):
    found = read(tmp_path, VLLM, VLLM)
    assert found.requests.groupby("run_id").size().to_dict() == {"f-0": 3, "f-1": 3}
    assert len(read(tmp_path, json.dumps(VLLM, indent=1), VLLM, separator="").runs) == 2
    assert read(tmp_path, guidellm_report(ONE), guidellm_report(ONE, ONE)).runs.run_id.tolist() == ["f-0", "f-1", "f-2"]
    said = "results of GuideLLM and vLLM bench serve in one file; give each a file of its own."
    assert refused(tmp_path, VLLM, guidellm_report(ONE)) == said


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    line = json.dumps(aiperf(0, 40, 10, [4]))
    found = read(tmp_path, line, line[:60])
    assert len(found.requests) == 1 and found.runs.left_out.item() == "1 x last line, cut short"
    assert "line 2: " in refused(tmp_path, line, line[:60], line)


def test_an_empty_benchmark_is_left_out_and_said(tmp_path):
    found = read(tmp_path, guidellm_report(NONE, ONE, None))
    assert found.runs.run_id.tolist() == ["f-1"] and found.runs.left_out.item() == "2 x benchmark without requests"
    assert read(tmp_path, guidellm_report(ONE)).runs.left_out.item() is None


@pytest.mark.parametrize(
    "document, said",
    [
        (guidellm_report(), "the GuideLLM result has no requests."),
        (guidellm_report(NONE), "the GuideLLM result has no requests (1 x benchmark without requests left out)."),
        (EMPTY, "the vLLM bench serve result has no requests."),
        (aiperf(9, 0, 1, [1], phase="warmup"), "the AIPerf result has no requests (1 x request of the warm-up left"),
    ],
)
def test_a_result_without_requests_is_one_line(tmp_path, document, said):
    assert refused(tmp_path, document).startswith(said)


def test_a_null_end_is_the_end_of_the_resolution_or_unknown(tmp_path):
    cut, lost = guidellm("b", 1e9, 1e9 + 1, None, 5), guidellm("c", 1e9, 1e9 + 1, None, 5)
    cut["request_end_time"] = lost["request_end_time"] = lost["info"]["timings"]["resolve_end"] = None
    cut["info"]["timings"]["resolve_end"] = 1e9 + 3
    found = read(tmp_path, guidellm_report(ONE | {"incomplete": [cut, lost]}))
    assert found.requests.t_last.tolist() == [2 * 10**9, 3 * 10**9, pd.NA] and set(found.requests.users) == {3}
    never = guidellm("d", 1e9, None, None, 0, end=1e9) | {"request_start_time": None}
    found = read(tmp_path, guidellm_report(ONE | {"incomplete": [never]}))
    assert found.runs.left_out.item() == "1 x request without the time at which it was sent"


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_unknown_times_stay_unknown(tmp_path, unknown):
    result = VLLM | {"ttfts": [unknown, 0.25, unknown], "latencies": [0.85, unknown, 0.0]}
    found = read(tmp_path, result | {"start_times": [1.0, 1.5, 2.0], "itls": [[0.1], [unknown], []]})
    assert found.requests.t_first.tolist() == [pd.NA, 750_000_000, pd.NA]
    assert found.requests.t_last.tolist() == [850_000_000, pd.NA, 10**9]
    assert found.requests.token_times.isna().all() and found.requests.status.tolist() == ["ok", "ok", "error"]
    well = "of a request that ended well"
    assert found.runs.left_out.item() == f"1 x t_first {well}, 1 x t_last {well}"
    found = read(tmp_path, VLLM | {"start_times": [unknown, 1.5, 2.0]})
    assert len(found.requests) == 2
    assert "1 x request without the time at which it was sent" in found.runs.left_out.item()
    line, odd = aiperf(0, 40, 10, [4]), aiperf(1, 50, 20, [4.0])
    line["metrics"]["time_to_first_token"]["value"] = unknown
    odd["metrics"]["inter_chunk_latency"]["value"] = [unknown]
    found = read(tmp_path, line, odd)
    assert found.requests.t_first.tolist() == [pd.NA, 30_000_000] and found.requests.token_times.isna().all()


def old_guidellm():
    """A request in the layout of GuideLLM 0.2 and 0.3."""
    return {
        "type_": "generative_text_response",
        "request_id": "a",
        "scheduler_info": {"targeted_start_time": 1e9, "request_start": 1e9},
        "prompt_tokens": 5,
        "output_tokens": 5,
        "start_time": 1e9,
        "end_time": 1e9 + 2,
        "first_token_time": 1e9 + 1,
        "last_token_time": 1e9 + 2,
    }


def test_guidellm_0_3_is_read(tmp_path):
    requests = read(tmp_path, guidellm_report(NONE | {"successful": [old_guidellm()]})).requests
    assert metrics.ttft(requests).item() == 1.0 and metrics.tpot(requests).item() == 250.0


SGLANG = {
    "backend": "sglang-oai",
    "request_rate": float("inf"),
    "max_concurrency": 2,
    "accept_length": None,
    "input_lens": [10, 20, 30],
    "output_lens": [3, 3, 2],
    "ttfts": [0.5, 0.25, 0.125],
    "itls": [[0.25, 0.25], [0.125, 0.125], [0.25]],
    "generated_texts": ["a", "b", "c"],
    "errors": ["", "", ""],
}


def test_sglang_without_start_times_starts_as_its_slots_allow(tmp_path):
    found = read(tmp_path, SGLANG)
    assert found.requests.t_submit.tolist() == [0, 0, 500_000_000]  # the second ends first, after half a second
    assert found.requests.t_last.tolist() == [10**9, 500_000_000, 875_000_000]
    assert set(found.requests.users) == {2} and found.runs.client.item() == "SGLang bench_serving"
    assert "throughput is an upper limit" in found.runs.left_out.item()
    at_once = read(tmp_path, SGLANG | {"max_concurrency": None}, SGLANG | {"request_rate": 3.0}).requests
    assert at_once.t_submit.tolist() == [0, 0, 0] and set(at_once.users) == {3}
    assert "1 x result without start times and with a request rate" in refused(tmp_path, SGLANG | {"request_rate": 3.0})


def event(**delta):
    return {"response": f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"}


def test_genai_perf(tmp_path):
    usage = {"response": 'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\ndata: [DONE]\n'}
    times = [EPOCH + n for n in (1, 5, 9, 10)]
    told = {"timestamp": EPOCH, "request_inputs": {"payload": "{}"}, "response_timestamps": times}
    told["response_outputs"] = [event(role="assistant", content=""), event(content="a"), event(content="b"), usage]
    failed = told | {"response_timestamps": [EPOCH + 2], "response_outputs": [{"response": '{"error": "full"}'}]}
    triton = told | {"response_timestamps": [EPOCH + 3, EPOCH + 4]}
    triton["response_outputs"] = [{"text_output": "a"}, {"text_output": "b"}]
    experiment = {"experiment": {"mode": "concurrency", "value": 5}, "requests": [told, failed, triton, told]}
    experiment["requests"][3] = told | {"response_timestamps": [], "response_outputs": []}
    requests = read(tmp_path, {"experiments": [experiment], "version": "1"}).requests
    assert requests.t_first.tolist() == [5, pd.NA, 3, pd.NA] and requests.t_last.tolist() == [9, 2, 4, pd.NA]
    assert list(requests.token_times[0]) == [5, 9] and requests.output_tokens.tolist() == [2, pd.NA, pd.NA, pd.NA]
    assert requests.status.tolist() == ["ok", "error", "ok", "error"] and set(requests.users) == {5}
    assert requests.error.tolist() == [pd.NA, "full", pd.NA, "no response"]


@pytest.mark.parametrize("version", ["0.4", "0.6"])
def test_inference_perf(tmp_path, version):
    tokens = {"output_tokens": 3, "output_token_times": [2.5, 2.75, 3.0]}
    info = {"input_tokens": 9, **tokens}
    if version == "0.6":
        info = {"input_tokens": 9, "request_metrics": {"text": {"input_tokens": 9}}, "response_metrics": tokens}
    answered = {"start_time": 2.0, "end_time": 3.5, "request": "{}", "response": "abc", "info": info, "error": None}
    failed = answered | {"start_time": 2.25, "info": None, "error": {"error_type": "ClientError", "error_msg": "gone"}}
    requests = read(tmp_path, [answered, failed]).requests
    assert metrics.ttft(requests)[0] == 0.5 and metrics.tpot(requests)[0] == 250.0 and requests.output_tokens[0] == 3
    assert requests.t_last.tolist() == [10**9, 1_500_000_000] and requests.error[1] == "ClientError: gone"


@pytest.mark.parametrize("scenario", ["Server", "Offline"])
def test_mlperf_loadgen(tmp_path, scenario):
    sample = '{"name":"Sample","cat":"default","ph":"b","pid":1,"id":%d,"ts":%s,"args":{"sample_seq":%d,"query_seq":0,'
    sample += '"sample_idx":%d,"issue_start_ns":%d,"complete_ns":%d}},'
    token = sample.replace("Sample", "Token", 1) % (4, "1.500", 4, 8, 200, 1000)
    if scenario == "Server":
        token = '{"name":"Token_Latency","ph": "C","pid":1,"ts":1.500,"args":{ "issue_delay":200,"issue_to_done":800}},'
    lines = ['{"traceEvents":[', '{"name":"LogDetail","ph":"X","args":{"key":""not JSON""}},', token]
    lines += [sample % (4, "1.500", 4, 8, 200, 5000), '{"name":"Sample","ph":"e", "pid":1,"id":4,"ts":6.5},']
    lines += [sample % (5, "2.000", 5, 9, 0, 100), '{"name":"LastTrace"}', "],", '"otherData":{}', "}"]
    found = read(tmp_path, "\n".join(lines))
    assert found.requests.t_submit.tolist() == [0, 300] and found.requests.late_ns.tolist() == [200, 0]
    assert found.requests.t_first.tolist() == [800, pd.NA] and found.requests.t_last.tolist() == [4800, 400]
    assert found.requests.prompt_id.tolist() == ["8", "9"] and found.requests.output_tokens.isna().all()


@pytest.mark.parametrize(
    "document, said",
    [
        ({"benchmarks": [{"benchmarks": [{"results": []}], "args": {}}]}, "a report of GuideLLM 0.1,"),
        ({"metadata": {"session_num": 0}, "start_perf_ns": 1, "payload": {}, "responses": []}, "AIPerf's raw records;"),
        ({"records": {}, "input_config": {}}, "AIPerf's or GenAI-Perf's summary, without requests;"),
        ({"aiperf_version": "0.13.0", "request_latency": {}}, "AIPerf's summary, without requests;"),
        ({"service_kind": "openai", "experiments": []}, "the GenAI-Perf result has no requests."),
        ({"successes": {}, "load_summary": {}}, "inference-perf's summary, without requests;"),
        (":::MLLOG {}", "a log of MLPerf's LoadGen without requests;"),
        ({"backend": "vllm", "mean_ttft_ms": 3.0}, "a summary of vLLM or SGLang without requests;"),
        (VLLM | {"errors": [""]}, "a result whose lists ttfts, errors differ in length."),
    ],
)
def test_what_is_not_read_is_named_as_what_it_is(tmp_path, document, said):
    assert refused(tmp_path, document).startswith(said)


@pytest.mark.parametrize("minor", ["0.2", "0.4"])
def test_older_aiperf_is_read(tmp_path, minor):
    line = aiperf(0, 40, 10, [4])
    if minor == "0.2":  # without the times that later versions add
        del line["metadata"]["credit_issued_ns"], line["metrics"]["output_token_count"]
    requests = read(tmp_path, line).requests
    assert requests.t_last.tolist() == [14_000_000] and requests.output_tokens.tolist() == [2]
    assert requests.late_ns.isna().all() == (minor == "0.2")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"ttfts": ["soon", 0.1, 0.1]}, "a number is needed, got 'soon'"),
        ({"ttfts": [True, 0.1, 0.1]}, "a number is needed, got True"),
        ({"ttfts": [-1.0, 0.1, 0.1]}, "not request records (t_first must be at least 0. Got -1000000000)."),
        ({"start_times": [1e300, 0, 0]}, "(OverflowError: cannot convert float infinity to integer)."),
        ({"start_times": [1e18, 0, 0]}, "the vLLM bench serve result cannot be request records ("),
        ({"output_lens": [1.5, 1, 1]}, "a whole number is needed, got 1.5"),
        ({"itls": [[-9.0], [], []]}, "not request records (token_times must be at least 0. Got -8500000000)."),
        ({"ttfts": 3}, "MLPerf LoadGen (TypeError: "),
    ],
)
def test_impossible_values_are_one_line(tmp_path, change, said):
    assert said in refused(tmp_path, VLLM | change)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"metadata": ' * 100_000, "\x00", "NaN", "5 6"])
def test_odd_json_is_one_line(tmp_path, text):
    assert refused(tmp_path, text).startswith("no result of AIPerf, GuideLLM, vLLM bench serve, ")


@pytest.mark.parametrize("users", [0, -1, True, 2.5])
def test_a_load_of_no_users_is_refused(tmp_path, users):
    with pytest.raises(ErlabError, match=f"'users' parameter of read must be at least 1, or None. Got {users}"):
        read(tmp_path, VLLM, users=users)


def test_what_fails_after_its_first_token_ends_no_earlier(tmp_path):
    found = read(tmp_path, VLLM | {"errors": ["cut", "", "\n"], "latencies": [0.0, 0.25, 0.0]})
    assert found.requests.t_last.tolist()[0] == 800_000_000 and found.requests.error.tolist() == ["cut", pd.NA, "error"]
