"""Attacks on every port that the embedded server opens: none runs code, changes a model or a setting."""

import base64
import http.client
import json
import socket
import urllib.request

import grpc
import pytest
from attacks import CODE, CONFIG, attacks, inline, listening
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

from erlab.gateway import kserve
from erlab.serving.triton import Server
from erlab.serving.triton import server as module

pytestmark = pytest.mark.skipif(bool(module.available()), reason=f"no embedded Triton: {module.available()}")

@pytest.fixture(scope="module")
def marker(tmp_path_factory):
    return tmp_path_factory.mktemp("marker") / "marker"


@pytest.fixture(scope="module")
def attacked(echo):
    with Server(echo) as running:
        yield running


def test_only_grpc_and_metrics_listen_and_only_on_the_loopback(attacked):
    assert {f"{ip}:{port}" for ip, port in listening(attacked._keeper.pid)} == {attacked.grpc, *attacked.metrics.values()}


@pytest.mark.parametrize("headers", [(), (("triton-grpc-protocol-erlab-key", "guess"),)], ids=["no key", "a guess"])
@pytest.mark.parametrize("method", attacks(""))
def test_grpc_refuses_what_changes_the_server(attacked, marker, method, headers):
    for _, port in listening(attacked._keeper.pid):
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=kserve.CHANNEL_OPTIONS) as channel:
            call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
            with pytest.raises(grpc.RpcError) as refused:
                call(attacks(marker)[method], timeout=30, metadata=headers)
            if f"127.0.0.1:{port}" == attacked.grpc:
                assert "This protocol is restricted" in refused.value.details()
    assert not marker.exists()
    assert list(kserve.generate(attacked.grpc, "echo", "a b", 2, timeout=20)) == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("v2/repository/models/evil/load", {"parameters": {"config": json.dumps(CONFIG), "file:1/model.py": ""}}),
        ("v2/repository/models/echo/unload", {}),
        ("v2/repository/index", {}),
        ("v2/logging", {"log_verbose_level": 1}),
        ("v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
        ("v2/systemsharedmemory/region/r/register", {"key": "/r", "offset": 0, "byte_size": 8}),
    ],
)
def test_a_web_page_cannot_reach_the_server(attacked, marker, path, body):
    """What a browser sends for a page of another site without asking first: a POST of text/plain."""
    headers = {"Content-Type": "text/plain", "Origin": "http://evil.example"}
    if "parameters" in body:
        code = base64.b64encode(CODE.format(marker=str(marker)).encode()).decode()
        body = {"parameters": body["parameters"] | {"file:1/model.py": code}}
    for _, port in listening(attacked._keeper.pid):
        url = f"http://127.0.0.1:{port}/{path}"
        with pytest.raises((OSError, http.client.HTTPException)) as refused:  # gRPC's port does not speak HTTP/1.1
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=30)
        assert getattr(refused.value, "code", 0) in (0, 404, 405)
    assert not marker.exists()
    assert list(kserve.generate(attacked.grpc, "echo", "a b", 2, timeout=20)) == ["a", "b"]


def test_reading_needs_no_key(attacked):
    with grpc.insecure_channel(attacked.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(messages.ServerReadyRequest(), timeout=30).ready
        assert stub.ModelConfig(messages.ModelConfigRequest(name="echo"), timeout=30).config.name == "echo"
        assert stub.ModelMetadata(messages.ModelMetadataRequest(name="echo"), timeout=30).platform == "python"
        stats = stub.ModelStatistics(messages.ModelStatisticsRequest(name="echo"), timeout=30)
        assert stats.model_stats[0].name == "echo"


def test_the_attack_succeeds_with_the_key(attacked, tmp_path):
    marker = tmp_path / "marker"
    with grpc.insecure_channel(attacked.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.RepositoryModelLoad(inline(marker), timeout=60, metadata=attacked._allowed())
    assert marker.read_text() == "ran"


def test_every_start_has_a_key_of_its_own(attacked, echo):
    keys = [attacked._key]
    with Server(echo, ["echo"]) as other:
        keys.append(other._key)
    assert len(set(keys)) == 2 and min(map(len, keys)) > 40


def test_the_metrics_port_only_answers_reads(attacked):
    (address,) = attacked.metrics.values()
    host, port = address.split(":")
    page = urllib.request.urlopen(f"http://{address}/metrics", timeout=30).read()
    assert b"nv_inference" in page and attacked._key.encode() not in page
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(b"PUT /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 4")
