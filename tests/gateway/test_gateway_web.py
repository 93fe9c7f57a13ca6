"""The OpenAI-compatible face, before Triton and before OpenAI-compatible experts, as its clients see it."""

import http.client
import json
import socket
import time
import urllib.request
from urllib.error import HTTPError

import grpc
import numpy as np
import pytest
from fake_openai import FLOOD, FLOODS, FakeOpenAI
from fake_triton import COURT, GATES, KITCHEN, FakeTriton, decoded, echo, obedient, stream
from local import Local
from tritonclient.grpc import service_pb2

from erlab.gateway import kserve
from erlab.gateway.errors import RequestError
from erlab.gateway.limits import Limits
from erlab.gateway.wire import openai

EXPERTS = ("expert_0", "expert_1")


@pytest.fixture(scope="module")
def served(fake, router):
    with Local(router, fake.address, EXPERTS, http_port=0) as running:
        yield running


def post(gateway, path, body, **headers):
    """Status, headers and body of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | headers
    request = urllib.request.Request(gateway.addresses["http"] + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except HTTPError as e:
        return e.code, e.headers, e.read()


def get(gateway, path, **headers):
    request = urllib.request.Request(gateway.addresses["http"] + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as e:
        return e.code, e.read()


def events(body):
    """The events of a stream, decoded; [DONE] as it is."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_plain_completion(served, router):
    for prompt in KITCHEN + COURT:
        status, headers, body = post(served, "/v1/completions", {"model": "router", "prompt": prompt, "max_tokens": 9})
        answer, words = json.loads(body), prompt.split()
        assert status == 200 and answer["object"] == "text_completion"
        assert answer["choices"] == [{"index": 0, "logprobs": None, "finish_reason": "stop", "text": "".join(words)}]
        assert "usage" not in answer
        routing = router.route([prompt])
        assert headers["x-erlab-expert"] == EXPERTS[routing.cluster[0]]
        assert float(headers["x-erlab-margin"]) == pytest.approx(routing.margin[0])
        assert int(headers["x-erlab-classify-ns"]) > 0 <= int(headers["x-erlab-queue-ns"])


def test_a_streamed_chat_ends_with_a_reason_and_done(served):
    messages = [{"role": "user", "content": [{"type": "text", "text": "salt the pasta"}]}]
    body = {"model": "router", "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    status, headers, raw = post(served, "/v1/chat/completions", body | {"max_tokens": 3})
    *pieces, finish, done = events(raw)
    assert [piece["choices"][0]["delta"].get("role") for piece in pieces] == ["assistant", None, None]
    assert status == 200 and headers.get_content_type() == "text/event-stream" and done == "[DONE]"
    assert [piece["choices"][0]["delta"]["content"] for piece in pieces] == ["salt", "the", "pasta"]
    assert all(piece["object"] == "chat.completion.chunk" for piece in pieces)
    assert len({event["id"] for event in (*pieces, finish)}) == 1
    assert finish["choices"][0]["finish_reason"] == "length" and finish["choices"][0]["delta"] == {}


def test_a_chat_is_classified_by_what_the_user_said(served, router):
    said = [("system", "You cook pasta."), ("user", COURT[0]), ("assistant", "boil"), ("user", "law")]
    body = {"messages": [{"role": role, "content": content} for role, content in said]}
    decision = json.loads(post(served, "/route", body)[2])
    assert decision["cluster"] == router.predict([f"{COURT[0]}\nlaw"])[0]
    answer = json.loads(post(served, "/v1/chat/completions", body | {"model": "router"})[2])
    # The fake takes the first word for an order; "system:" is none, so all words come back.
    assert answer["choices"][0]["message"]["content"].startswith("system:Youcookpasta.user:sue")


def test_only_declared_tensors_are_sent(router):
    class Declaring(FakeTriton):
        async def _ModelMetadata(self, data, context):
            tensor = service_pb2.ModelMetadataResponse.TensorMetadata
            names = ("text_input", "max_tokens", "stream", "temperature", "random_seed", "stop_words")
            answer = service_pb2.ModelMetadataResponse(name="e", inputs=[tensor(name=name) for name in names])
            return answer.SerializeToString()

    with Declaring({"e": echo}) as fake, Local(router, fake.address, ("e",), http_port=0) as gateway:
        body = {"prompt": "one", "temperature": 0.5, "top_p": 1.0, "seed": 7, "stop": ["a", "bc"], "max_tokens": 5}
        assert post(gateway, "/v1/completions", body)[0] == 200
        request = service_pb2.ModelInferRequest.FromString(fake.received[-1])
    got = dict(zip((t.name for t in request.inputs), request.raw_input_contents))
    assert set(got) == {"text_input", "max_tokens", "stream", "temperature", "random_seed", "stop_words"}
    assert np.frombuffer(got["temperature"], np.float32) == [0.5] and np.frombuffer(got["max_tokens"], np.int32) == [5]
    assert np.frombuffer(got["random_seed"], np.uint64) == [7] and got["stop_words"] == b"\x01\0\0\0a\x02\0\0\0bc"


def test_the_decision_alone(served, router, fake):
    before = len(fake.received)
    decision = json.loads(post(served, "/route", {"prompt": KITCHEN[0]})[2])
    routing = router.route([KITCHEN[0]])
    assert decision["expert"] == EXPERTS[routing.cluster[0]] and decision["policy"] == "nearest"
    assert decision["distance"] == pytest.approx(routing.distance[0]) and decision["classify_ns"] > 0
    assert len(fake.received) == before


def test_an_expert_can_be_requested_by_name(served):
    for name in EXPERTS:
        status, headers, body = post(served, "/v1/completions", {"model": name, "prompt": KITCHEN[0]})
        assert status == 200 and json.loads(body)["model"] == headers["x-erlab-expert"] == name
    listed = json.loads(get(served, "/v1/models")[1])
    assert [model["id"] for model in listed["data"]] == ["router", *EXPERTS]


@pytest.mark.parametrize(
    "path, body, status, said",
    [
        ("/v1/completions", b"{", 400, "must be JSON"),
        ("/v1/completions", b"[]", 400, "JSON object"),
        ("/v1/completions", b"[" * 100_000, 400, "must be JSON"),
        ("/v1/completions", b"\xff\xfe", 400, "must be JSON"),
        ("/v1/completions", {"model": "nobody", "prompt": "x"}, 404, "'model' must be 'router' or an expert"),
        ("/v1/completions", {"model": 3, "prompt": "x"}, 404, "'model' must be"),
        ("/v1/completions", {"model": "router"}, 400, "'prompt' must be a text, a list of texts or"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "'prompt' must be one text for this expert. Got list"),
        ("/v1/completions", b'{"prompt": "\\ud800"}', 400, "surrogate"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400, "'max_tokens' must be a whole number from 1 to 2"),
        ("/v1/completions", {"prompt": "x", "max_tokens": "9"}, 400, "'max_tokens'"),
        ("/v1/completions", {"prompt": "x", "n": 2}, 400, "'n' must be 1"),
        ("/v1/completions", {"prompt": "x", "stream_options": 3}, 400, "'stream_options'"),
        ("/v1/chat/completions", {"messages": []}, 400, "'messages' must be a list"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "'content' of text"),
        ("/v1/completions", {"prompt": "fail"}, 502, "out of memory"),
        ("/v1/completions", {"prompt": "x" * 5_000_000}, 413, "Too Large"),
        ("/v1/nothing", {}, 404, "Not Found"),
        ("/health/live", {}, 405, "Not Allowed"),
    ],
)
def test_errors_have_openais_format(served, path, body, status, said):
    got, _, answer = post(served, path, body)
    error = json.loads(answer)["error"]
    assert got == status and said in error["message"]
    assert set(error) == {"message", "type", "param", "code"} and "xxxx" not in error["message"]


def test_a_broken_stream_ends_with_an_error_event(served):
    first, error = events(post(served, "/v1/completions", {"prompt": "half", "stream": True})[2])
    assert first["choices"][0]["text"] == "half" and "connection reset" in error["error"]["message"]


def test_a_stream_to_an_http_1_0_client_ends_with_its_connection(served):
    body = json.dumps({"prompt": "one two", "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(served.addresses["http"].removeprefix("http://").split(":"), timeout=60) as opened:
        opened.sendall(head + body)
        said = b"".join(iter(lambda: opened.recv(65536), b""))
    head, _, answer = said.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower() and [e["choices"][0]["text"] for e in events(answer)[:2]] == ["one", "two"]
    assert answer.endswith(b"data: [DONE]\n\n")


def test_a_full_queue_is_429_with_retry_after(router):
    with FakeTriton({"e": obedient}) as fake:
        with Local(router, fake.address, ("e",), http_port=0, limits=Limits(in_flight=1, queue=0)) as gateway:
            with grpc.insecure_channel(gateway.address) as channel:  # the faces share the expert's places
                method = channel.unary_stream("/inference.GRPCInferenceService/ModelStreamInfer")
                call = method(kserve.request("router", "wait web", 4).SerializeToString(), timeout=60)
                fake.wait(lambda: fake.in_flight.total() == 1)
                status, headers, body = post(gateway, "/v1/completions", {"prompt": "one", "stream": True})
                assert status == 429 and headers["Retry-After"] and headers["x-erlab-expert"] == "e"
                assert json.loads(body)["error"]["type"] == "rate_limit_error"
                fake.loop.call_soon_threadsafe(GATES["web"].set)
                list(call)
            assert post(gateway, "/v1/completions", {"prompt": "one"})[0] == 200


def test_a_disconnected_client_cancels_its_request(served, fake):
    before = fake.cancelled.total()
    connection = http.client.HTTPConnection(served.addresses["http"].removeprefix("http://"), timeout=60)
    body, headers = json.dumps({"prompt": "hang", "stream": True}), {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", body, headers)
    answer = connection.getresponse()
    assert b"hang" in answer.read1()
    answer.close(), connection.close()
    fake.wait(lambda: fake.cancelled.total() == before + 1)


def test_the_key_is_required(fake, router):
    with Local(router, fake.address, EXPERTS, http_port=0, key="s3cret") as gateway:
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
            status, body = get(gateway, "/v1/models", **headers)
            assert status == 401 and json.loads(body)["error"]["type"] == "authentication_error"
        assert get(gateway, "/v1/models", Authorization="Bearer s3cret")[0] == 200
        assert get(gateway, "/health/live") == (200, b'{"status": "ok"}')
        up = {"expert_0": "up", "expert_1": "up"}
        assert json.loads(get(gateway, "/health/ready")[1]) == {"status": "ok", "experts": up}
        assert get(gateway, "/health") == get(gateway, "/health/ready")


def test_metrics_count_requests(router):
    with FakeTriton({"expert_0": obedient, "expert_1": obedient}) as fake:
        with Local(router, fake.address, EXPERTS, http_port=0) as gateway:
            for prompt in (KITCHEN[0], KITCHEN[1], "half"):
                post(gateway, "/v1/completions", {"prompt": prompt, "stream": True})
            text = get(gateway, "/metrics")[1].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    totals = {k: float(v) for k, v in values.items() if k.startswith("erlab_requests_total")}
    by_status = {s: sum(v for k, v in totals.items() if f'status="{s}"' in k) for s in ("ok", "unavailable")}
    assert by_status == {"ok": 2, "unavailable": 1}
    assert float(values["erlab_classify_seconds_count"]) == 3
    for name in ("queue", "first"):
        assert sum(float(v) for k, v in values.items() if k.startswith(f"erlab_{name}_seconds_count")) == 3
    assert sum(float(v) for k, v in values.items() if k.startswith("erlab_upstream_seconds_count")) == 2
    assert {v for k, v in values.items() if k.startswith("erlab_in_flight")} == {"0.0"}


def test_answers_of_openai_servers_are_relayed_unchanged(router):
    with FakeOpenAI() as first, FakeOpenAI() as second:
        experts = (f"{first.base}#llama", f"{second.base}#llama")
        with Local(router, None, experts, http_port=0) as gateway:
            homes = {c: p for p in (KITCHEN[0], COURT[0]) if (c := int(router.predict([p])[0])) in (0, 1)}
            for cluster, fake in enumerate((first, second)):
                body = {"model": "router", "prompt": homes[cluster], "stream": True, "logit_bias": {"5": 1}}
                status, headers, raw = post(gateway, "/v1/completions", body)
                assert status == 200 and headers["x-erlab-expert"] == experts[cluster]
                assert [e["choices"][0]["text"] for e in events(raw)[:-1]] == homes[cluster].split()
                assert fake.bodies == [body | {"model": "llama"}]
            plain = json.loads(post(gateway, "/v1/completions", {"prompt": homes[0]})[2])
            assert plain["id"] == "up" and plain["choices"][0]["text"] == homes[0]
            chat = {"messages": [{"role": "user", "content": homes[1]}], "stream": True}
            raw = post(gateway, "/v1/chat/completions", chat)[2]
            assert [e["choices"][0]["delta"]["content"] for e in events(raw)[:-1]] == homes[1].split()


@pytest.mark.parametrize(
    "tensor, datatype, contents, raw, asked",
    [
        ("max_tokens", "INT32", {"int_contents": [7]}, None, {"max_tokens": 7}),
        ("temperature", "FP32", {"fp32_contents": [0.5]}, None, {"temperature": 0.5}),
        ("random_seed", "UINT64", {"uint64_contents": [2**64 - 1]}, None, {"seed": 2**64 - 1}),
        ("stop_words", "BYTES", {"bytes_contents": ["é".encode()]}, None, {"stop": ["é"]}),
        ("stop_words", "BYTES", {}, b"\2\0\0\0\xc3\xa9", {"stop": ["é"]}),
        ("temperature", "FP32", {"fp32_contents": [float("nan")]}, None, "nan is not finite"),
        ("temperature", "FP32", {}, b"\0\0\x80\x7f", "inf is not finite"),
        ("temperature", "FP32", {}, b"\0", "'temperature' tensor"),
        ("max_tokens", "INT32", {}, b"", "'max_tokens' tensor"),
        ("stop_words", "BYTES", {}, b"\9\0\0\0x", "'stop_words' tensor"),
        ("stop_words", "BYTES", {"bytes_contents": [b"\xff"]}, None, "'stop_words' tensor"),
    ],
)
def test_kserve_tensors_become_openai_parameters(tensor, datatype, contents, raw, asked):
    request = service_pb2.ModelInferRequest()
    added = request.inputs.add(name=tensor, datatype=datatype, shape=[1, 1])
    for name, values in contents.items():
        getattr(added.contents, name).extend(values)
    if raw is not None:
        request.raw_input_contents.append(raw)
    if isinstance(asked, dict):
        assert openai.from_kserve("x", request) == {"prompt": "x", "stream": True} | asked
    else:
        with pytest.raises(RequestError, match=asked):
            openai.from_kserve("x", request)


@pytest.mark.parametrize("word", ["half", "cut"])
def test_a_lost_upstream_connection_ends_the_stream_with_an_error(router, word):
    with FakeOpenAI() as fake, Local(router, None, (f"{fake.base}#m",), http_port=0) as gateway:
        *_, error = events(post(gateway, "/v1/completions", {"prompt": f"{word} two three", "stream": True})[2])
        assert error["error"]["code"] == "unavailable"


def test_a_slow_client_pauses_its_openai_server(router):
    with FakeOpenAI() as fake, Local(router, None, (f"{fake.base}#m",), http_port=0) as gateway:
        body = json.dumps({"prompt": "flood", "stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        head %= len(body)
        with socket.create_connection(gateway.addresses["http"].removeprefix("http://").split(":"), timeout=20) as slow:
            slow.sendall(head + body)
            assert slow.recv(1) == b"H"
            still = 0
            while still < 20:  # until all between are full
                before = fake.flooded
                time.sleep(0.02)
                still = still + 1 if fake.flooded == before and before else 0
            assert fake.flooded < FLOODS / 2  # the sockets' buffers hold some
            taken = sum(data.count(b"x") for data in iter(lambda: slow.recv(2**20), b""))
        assert taken >= FLOODS * FLOOD == fake.flooded * FLOOD


def test_a_failing_openai_server_is_taken_out_and_comes_back(router):
    with FakeOpenAI() as first, FakeOpenAI() as second:
        with Local(router, None, (f"{first.base}#m", f"{second.base}#m"), http_port=0) as gateway:
            prompt = KITCHEN[0]
            home, other = (first, second) if router.predict([prompt])[0] == 0 else (second, first)
            home.status, end = 503, time.monotonic() + 60
            while set(json.loads(get(gateway, "/health/ready")[1])["experts"].values()) == {"up"}:
                status, headers, _ = post(gateway, "/v1/completions", {"prompt": prompt})
                assert status == 200 and headers["x-erlab-expert"] == f"{other.base}#m"
                assert time.monotonic() < end
            home.status = 200
            while post(gateway, "/v1/completions", {"prompt": prompt})[1]["x-erlab-expert"] != f"{home.base}#m":
                assert time.monotonic() < end
            home.status, asked = 400, len(other.bodies)  # the client's own fault: nobody else is bothered with it
            status, _, body = post(gateway, "/v1/completions", {"prompt": prompt})
            assert status == 400 and json.loads(body)["error"]["message"] == "status 400"
            assert len(other.bodies) == asked


def test_the_grpc_face_before_openai_servers(router):
    with FakeOpenAI() as fake, Local(router, None, (f"{fake.base}#m",)) as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            data = kserve.request("router", "salt the pasta", 9, request_id="7").SerializeToString()
            answers = decoded(stream(channel, data))
            assert [kserve.text(r.infer_response) for r in answers] == ["salt", "the", "pasta"]
            assert {r.infer_response.id for r in answers} == {"7"}
            asked = {"prompt": "salt the pasta", "stream": True, "max_tokens": 9, "model": "m"}
            assert fake.bodies[0] == asked | {"stream_options": {"include_usage": True}}
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            answer = service_pb2.ModelInferResponse.FromString(infer(data))
            assert kserve.text(answer) == "saltthepasta" and answer.parameters["erlab_expert"].string_param
            *_, broken = decoded(stream(channel, kserve.request("router", "half a", 9).SerializeToString()))
            assert broken.error_message.startswith("UNAVAILABLE: ")
            ready = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
            assert service_pb2.ModelReadyResponse.FromString(
                ready(service_pb2.ModelReadyRequest(name="router").SerializeToString())
            ).ready


def test_experts_on_several_triton_servers(router):
    with FakeTriton({"m": echo}) as first, FakeTriton({"m": echo}) as second:
        experts = (f"grpc://{first.address}/m", f"grpc://{second.address}/m")
        with Local(router, None, experts, http_port=0) as gateway:
            for prompt in (KITCHEN[0], COURT[0]):
                _, headers, body = post(gateway, "/v1/completions", {"prompt": prompt})
                assert headers["x-erlab-expert"] == experts[router.predict([prompt])[0]]
                assert json.loads(body)["choices"][0]["text"] == prompt.replace(" ", "")
            assert len(first.received) == len(second.received) == 1


def test_a_tool_conversation_by_the_openai_package(router):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    tool = {"type": "function", "function": {"name": "salt", "parameters": {}}}
    messages = [{"role": "user", "content": "salt the pasta"}]
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "salt", "arguments": ""}}
    deltas = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"g"', ": 3}")]
    chunk = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    ends = [*((delta, None) for delta in deltas), ({}, "tool_calls")]
    chunks = [chunk | {"choices": [{"index": 0, "delta": d, "finish_reason": finish}]} for d, finish in ends]
    with FakeOpenAI() as fake, Local(router, None, (f"{fake.base}#m",), http_port=0) as gateway:
        stock = openai.OpenAI(base_url=gateway.addresses["http"] + "/v1", api_key="any", max_retries=0)
        pieces = [f"data: {json.dumps(c)}\n\n".encode() for c in chunks]
        fake.scripts.append((200, "text/event-stream", pieces, False))
        with stock.chat.completions.stream(model="router", messages=messages, tools=[tool]) as merged:
            message = merged.get_final_completion().choices[0].message
        assert message.role == "assistant" and message.tool_calls[0].function.arguments == '{"g": 3}'
        messages += [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": "c", "content": "done"}]
        body = {"id": "up", "object": "chat.completion", "created": 1, "model": "m"}
        choice = {"index": 0, "message": {"role": "assistant", "content": "salted"}, "finish_reason": "stop"}
        fake.scripts.append((200, "application/json", [json.dumps(body | {"choices": [choice]}).encode()], False))
        answer = stock.chat.completions.create(model="router", messages=messages, tools=[tool])
        assert answer.choices[0].message.content == "salted" and fake.bodies[-1]["messages"][2]["role"] == "tool"
        about = {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}
        fake.scripts.append((400, "application/json", [json.dumps({"error": about}).encode()], False))
        with pytest.raises(openai.BadRequestError, match="too long") as caught:
            stock.chat.completions.create(model="router", messages=messages)
        assert caught.value.code == "context_length_exceeded"
        assert stock.models.retrieve(f"{fake.base}#m").id == f"{fake.base}#m"


def test_the_openai_package_works_unchanged(served):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    stock = openai.OpenAI(base_url=served.addresses["http"] + "/v1", api_key="any", max_retries=0)
    assert [model.id for model in stock.models.list()] == ["router", *EXPERTS]
    plain = stock.completions.create(model="router", prompt="salt water", max_tokens=9)
    assert plain.choices[0].text == "saltwater" and plain.usage is None
    messages = [{"role": "user", "content": "the court"}]
    chat = stock.chat.completions.create(model="router", messages=messages)
    assert chat.choices[0].message.content == "thecourt" and chat.choices[0].finish_reason == "stop"
    for options in ({}, {"stream_options": {"include_usage": True}}):
        with stock.chat.completions.stream(model="router", messages=messages, **options) as merged:
            texts = [event.delta for event in merged if event.type == "content.delta"]
        (choice,) = merged.get_final_completion().choices
        assert (choice.message.role, choice.message.content) == ("assistant", "thecourt")
        assert texts == ["the", "court"] and choice.finish_reason == "stop"
    assert stock.models.retrieve("expert_1").id == "expert_1"
    tool = {"type": "function", "function": {"name": "salt", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="'tools' must be"):
        stock.chat.completions.create(model="router", messages=messages, tools=[tool])
    with pytest.raises(openai.NotFoundError):
        stock.completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.APIError, match="connection reset"):
        list(stock.completions.create(model="router", prompt="half", stream=True))
