"""Results in the formats of AIPerf, GuideLLM and vLLM become records; hand-written, in these tools' own layout."""

import csv
import json

import pandas as pd
import pytest

from erlab import metrics, records
from erlab.errors import ErlabError
from erlab.users import imports

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


def test_records_as_csv(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps(VLLM))
    found = imports.read(tmp_path / "v.json", system="C")
    imports.write_csv(tmp_path / "out" / "r.csv", found)
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
def test_a_file_of_nobodys_is_one_line(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ErlabError, match="f.json") as caught:
        imports.read(tmp_path / "f.json", system="A")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ErlabError, match="nowhere.json"):
        imports.read(tmp_path / "nowhere.json", system="A")
