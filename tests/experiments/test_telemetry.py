"""What servers and GPUs tell while users ask: sampled over HTTP, kept as a table, summed up by arithmetic."""

import http.server
import threading

import pandas as pd
import pytest

from erlab.experiments import overviews, telemetry

TINY = """# TYPE erlab_running_requests gauge
erlab_running_requests{model="E-expert-0"} %d
erlab_running_requests{model="E-expert-1"} 1
# TYPE erlab_kv_tokens gauge
erlab_kv_tokens{model="E-expert-0"} %d
# TYPE erlab_requests_total counter
erlab_requests_total{model="E-expert-0"} %d
# TYPE erlab_queue_seconds_total counter
erlab_queue_seconds_total{model="E-expert-0"} %f
"""


@pytest.fixture
def server():
    """A metrics page; each request gets the next of `texts`, the last one again and again."""
    texts = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = (texts.pop(0) if len(texts) > 1 else texts[0]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_): ...

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{running.server_port}", texts
    running.shutdown()
    running.server_close()


def test_a_cell_is_summarised_from_its_samples(server, tmp_path):
    address, texts = server
    texts += [TINY % (0, 0, 10, 1.0), TINY % (4, 300, 14, 1.2)]  # at the start and at the end
    with telemetry.sampled({address: address}, tmp_path / "E-0008users.parquet", every=3600):
        pass
    row = overviews.telemetry(tmp_path).loc[("E", 8)]
    assert row["running"] == (1 + 5) / 2  # both experts, mean over the moments
    assert (row["KV in use"], row["KV unit"]) == (300, "tokens")
    assert row["queue ms"] == pytest.approx(200 / 4)  # 0.2 s more for four requests more
    assert pd.isna(row["waiting"])  # this server does not tell
    samples = pd.read_parquet(tmp_path / "E-0008users.parquet")
    assert samples.t.is_monotonic_increasing and samples.t.nunique() == 2


def test_each_engine_has_its_own_metric_names(server, tmp_path):
    address, texts = server
    texts.append(
        'vllm:num_requests_running{engine="0"} 7\nvllm:num_requests_waiting{engine="0"} 2\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.25\n'
        "# TYPE vllm:request_queue_time_seconds histogram\n"
        'vllm:request_queue_time_seconds_bucket{le="+Inf"} 3\nvllm:request_queue_time_seconds_count 3\n'
        "vllm:request_queue_time_seconds_sum 6\n"
    )
    with telemetry.sampled({"vllm": f"http://{address}/metrics"}, tmp_path / "v" / "D-0256users.parquet"):
        pass
    row = overviews.telemetry(tmp_path / "v").loc[("D", 256)]
    assert (row["running"], row["waiting"], row["KV in use"], row["KV unit"]) == (7, 2, 0.25, "of 1")
    assert pd.isna(row["queue ms"])  # nothing was answered in between
    assert not pd.read_parquet(tmp_path / "v" / "D-0256users.parquet").metric.str.endswith("_bucket").any()
    texts[:] = [
        'nv_trt_llm_request_metrics{model="m",request_type="scheduled",version="1"} 5\n'
        'nv_trt_llm_request_metrics{model="m",request_type="active",version="1"} 9\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="m",version="1"} 120\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="m",version="1"} 999\n'
    ]
    with telemetry.sampled({address: address}, tmp_path / "t" / "A-0001users.parquet"):
        pass
    row = overviews.telemetry(tmp_path / "t").loc[("A", 1)]
    assert (row["running"], row["KV in use"], row["KV unit"]) == (5, 120, "blocks")


def test_gpus_are_read_where_nvml_is(monkeypatch, tmp_path):
    rows = [{"metric": "gpu_utilisation", "labels": f'{{"gpu": {i}}}', "value": v} for i, v in enumerate((90.0, 70.0))]
    rows += [{"metric": "gpu_power_w", "labels": f'{{"gpu": {i}}}', "value": 500.0} for i in range(2)]
    monkeypatch.setattr(telemetry, "read_gpus", lambda: rows)
    with telemetry.sampled({}, tmp_path / "A-0001users.parquet"):
        pass
    row = overviews.telemetry(tmp_path).loc[("A", 1)]
    assert (row["GPU %"], row["GPU W"]) == (80, 1000)


def test_a_page_that_cannot_be_read_has_no_rows(tmp_path):
    with telemetry.sampled({"deaf": "127.0.0.1:1"}, tmp_path / "A-0001users.parquet"):
        pass
    samples = pd.read_parquet(tmp_path / "A-0001users.parquet")
    assert set(samples.source) <= {"nvml"} and list(samples.columns) == telemetry.SCHEMA.names
    assert overviews.telemetry(tmp_path).loc[("A", 1)].drop(["GPU %", "GPU W"]).isna().all()
    assert overviews.telemetry(tmp_path / "none").empty
