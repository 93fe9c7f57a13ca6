"""What clients of the OpenAI-compatible face may leave out, ask for and send, and what a Triton expert can't take."""

import asyncio
import json
import socket
import time
import urllib.request

import numpy as np
import pytest
from fake_openai import FakeOpenAI
from fake_triton import KITCHEN, FakeTriton, count, echo
from local import Local
from test_gateway_web import get, post
from tritonclient.grpc import service_pb2

from erlab.gateway.limits import Limits
from erlab.gateway.wire import openai
from erlab.serving.triton.repository import text_model


@pytest.fixture(scope="module")
def triton(router):
    """A gateway whose one expert takes all tensors and answers with as many tokens as are asked for."""
    with FakeTriton({"e": count}) as fake, Local(router, fake.address, ("e",), http_port=0) as gateway:
        gateway.fake = fake
        yield gateway


@pytest.fixture(scope="module")
def upstream(router):
    """A gateway of two OpenAI-compatible experts, by their clusters in `homes`."""
    with FakeOpenAI() as first, FakeOpenAI() as second:
        with Local(router, None, (f"{first.base}#m", f"{second.base}#m"), http_port=0) as gateway:
            gateway.fakes = (first, second)
            yield gateway


def tokens(gateway, **body):
    answer = json.loads(post(gateway, "/v1/completions", {"prompt": "x"} | body)[2])
    return len(answer["choices"][0]["text"])


@pytest.mark.parametrize(
    "body, asked",
    [
        ({"max_completion_tokens": None, "max_tokens": 3}, 3),
        ({"max_completion_tokens": 4, "max_tokens": None}, 4),
        ({"max_completion_tokens": 4, "max_tokens": 3}, 4),
        ({"max_tokens": 3, "model": None, "stream": None, "stream_options": None, "temperature": None}, 3),
        ({"max_tokens": 3, "n": None, "stop": None, "seed": None, "top_k": None, "logprobs": None, "tools": None}, 3),
        ({"max_tokens": 3, "stop": [], "tools": [], "n": 1, "response_format": {"type": "text"}, "logit_bias": {}}, 3),
        ({"max_tokens": 3, "temperature": 1, "top_p": 1.0, "top_k": -1, "min_p": 0, "presence_penalty": 0.0}, 3),
        ({"max_tokens": 3, "frequency_penalty": 0, "repetition_penalty": 1.0, "min_tokens": 0}, 3),
        ({"max_tokens": 3, "user": "u", "logprobs": False, "echo": False, "suffix": "", "tool_choice": "none"}, 3),
    ],
)
def test_null_means_absent(triton, body, asked):
    assert tokens(triton, **body) == asked


def test_an_answer_names_the_model_that_gave_it(triton):
    for body in ({"prompt": "x"}, {"prompt": "x", "model": None}, {"prompt": "x", "model": "router"}):
        assert json.loads(post(triton, "/v1/completions", body)[2])["model"] == "e"


def test_stop_words_that_a_triton_model_does_not_take_are_refused_by_name(triton):
    status, _, answer = post(triton, "/v1/completions", {"prompt": "x", "stop": ["y"]})
    assert status == 400 and "'stop' must be absent for this expert" in json.loads(answer)["error"]["message"]


CHAT = {"messages": [{"role": "user", "content": "one"}]}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    "body, said",
    [
        ({"stream": "false"}, "'stream' must be true, false or null"),
        ({"stream": 1}, "'stream' must be"),
        ({"n": 2}, "'n' must be 1"),
        ({"best_of": 2}, "'best_of'"),
        ({"prompt": ["a", "b"]}, "'prompt' must be one text for this expert"),
        ({"prompt": [1, 2]}, "'prompt'"),
        ({"prompt": [[1, 2]]}, "'prompt'"),
        ({"prompt": []}, "'prompt' must be a text, a list of texts or a list of token ids"),
        ({"prompt": None}, "'prompt'"),
        ({"echo": True}, "'echo'"),
        ({"suffix": "end"}, "'suffix'"),
        ({"logprobs": 1}, "'logprobs' must be false"),
        ({"logprobs": 0}, "'logprobs'"),
        ({"logit_bias": {"5": 1}}, "'logit_bias'"),
        ({"guided_json": {}}, "'guided_json' must be absent"),
        ({"temperature": 0.7}, "'temperature' must be absent or 1 for this expert, whose model has no such input"),
        ({"temperature": 0}, "'temperature'"),
        ({"top_p": 0.9}, "'top_p'"),
        ({"top_k": 1}, "'top_k' must be absent or 0 or -1"),
        ({"min_p": 0.1}, "'min_p'"),
        ({"seed": 0}, "'seed' must be absent for"),
        ({"frequency_penalty": -1}, "'frequency_penalty'"),
        ({"presence_penalty": 0.5}, "'presence_penalty'"),
        ({"repetition_penalty": 1.1}, "'repetition_penalty'"),
        ({"min_tokens": 4}, "'min_tokens'"),
        (CHAT | {"top_logprobs": 2}, "'top_logprobs'"),
        (CHAT | {"response_format": {"type": "json_object"}}, "'response_format'"),
        (CHAT | {"tools": [{"type": "function"}]}, "'tools'"),
        (CHAT | {"tool_choice": "auto"}, "'tool_choice'"),
        (CHAT | {"functions": [{"name": "f"}]}, "'functions'"),
        (CHAT | {"modalities": ["audio"]}, "'modalities'"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "image_url"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]}, "'tool_calls'"),
        ({"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]}, "'function_call'"),
        ({"messages": [{"role": "assistant", "content": None, "refusal": "no"}]}, "'content' of text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}]}, "thinking"),
        ({"messages": ["hello"]}, "an object with a 'role'"),
        ({"messages": "hello"}, "'messages' must be a list"),
    ],
)
def test_parameters_that_a_triton_expert_lacks_are_refused_by_name(triton, body, said):
    before = len(triton.fake.received)
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    status, _, answer = post(triton, path, body if "messages" in body else {"prompt": "x"} | body)
    error = json.loads(answer)["error"]
    assert status == 400 and said in error["message"] and error["type"] == "invalid_request_error"
    assert len(triton.fake.received) == before


def test_a_greedy_model_takes_what_never_changes_the_most_likely_token(router):
    class Greedy(FakeTriton):
        async def _ModelConfig(self, data, context):
            config = text_model("e", {})  # as tiny engines are served
            return service_pb2.ModelConfigResponse(config=config).SerializeToString()

    with Greedy({"e": echo}) as fake, Local(router, fake.address, ("e",), http_port=0) as gateway:
        post_one = lambda **body: post(gateway, "/v1/completions", {"prompt": "one"} | body)  # noqa: E731
        assert post_one(temperature=0.0, seed=1234, top_p=0.9, top_k=40, min_p=0.1)[0] == 200
        request = service_pb2.ModelInferRequest.FromString(fake.received[-1])
        assert {tensor.name for tensor in request.inputs} == {"text_input", "max_tokens", "stream"}
        for name, value in (("temperature", 0.7), ("presence_penalty", 1), ("min_tokens", 2)):
            status, _, answer = post_one(**{name: value})
            assert status == 400 and f"{name!r} must be" in json.loads(answer)["error"]["message"]


NUMBERS = [
    *(("temperature", value) for value in ('"hot"', "[]", "{}", "true", "1e39", "-1e400", "NaN", "Infinity")),
    *(("top_p", value) for value in ('"1"', "false", "NaN")),
    *(("frequency_penalty", value) for value in ("[1]", "-Infinity")),
    *(("presence_penalty", value) for value in ("[1]", "1" + "0" * 400)),
    *(("seed", value) for value in ("-1", "0.5", "18446744073709551616", "true", '"7"', "NaN")),
    *(("top_k", value) for value in ("1099511627776", "0.5", "true", "-2147483649")),
    *(("max_tokens", value) for value in ("0", "-1", "1.5", "2147483648", "true", '"9"', "NaN", "1e999")),
    *(("max_completion_tokens", value) for value in ("0", "[]")),
]


@pytest.mark.parametrize("name, value", NUMBERS)
def test_an_invalid_number_is_refused_by_name(triton, name, value):
    status, _, answer = post(triton, "/v1/completions", f'{{"prompt": "x", "{name}": {value}}}'.encode())
    no_json = value in ("NaN", "Infinity", "-Infinity", "-1e400", "1e999")
    said = "must be JSON, with finite numbers" if no_json else f"'{name}' must be a"
    assert status == 400 and said in json.loads(answer)["error"]["message"]


def test_numbers_at_their_bounds_are_sent(router):
    class Declaring(FakeTriton):
        async def _ModelMetadata(self, data, context):
            tensor = service_pb2.ModelMetadataResponse.TensorMetadata
            inputs = [tensor(name=name) for name, *_ in openai._TENSORS.values()]
            return service_pb2.ModelMetadataResponse(name="e", inputs=inputs).SerializeToString()

    body = {"prompt": "x", "seed": 2**64 - 1, "top_k": -(2**31), "temperature": 0, "top_p": 1}
    with Declaring({"e": echo}) as fake, Local(router, fake.address, ("e",), http_port=0) as gateway:
        assert post(gateway, "/v1/completions", body)[0] == 200
        request = service_pb2.ModelInferRequest.FromString(fake.received[-1])
    got = dict(zip((t.name for t in request.inputs), request.raw_input_contents))
    assert np.frombuffer(got["random_seed"], np.uint64) == [2**64 - 1]
    assert np.frombuffer(got["top_k"], np.int32) == [-(2**31)]
    assert np.frombuffer(got["temperature"], np.float32) == [0] and np.frombuffer(got["top_p"], np.float32) == [1]


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "x", "stop": "\\ud800"}',
        b'{"prompt": "x", "stop": ["a", "\\uDFFF"]}',
        b'{"prompt": "\\ud83d x"}',
        b'{"prompt": "x", "model": "\\ud800"}',
        b'{"prompt": "x", "\\ud800": 1}',
        b'{"prompt": "x", "user": {"\\ud800": 1}}',
    ],
)
def test_half_of_a_surrogate_pair_is_refused_by_name(triton, upstream, body):
    name = next(name for name in ("stop", "model", "user", "\\ud800", "prompt") if name.encode() in body)
    for gateway in (triton, upstream):
        status, _, answer = post(gateway, "/v1/completions", body)
        assert status == 400 and f"'{name}' must be text" in json.loads(answer)["error"]["message"]
    assert post(triton, "/v1/completions", b'{"prompt": "\\ud83d\\ude00", "user": "\xf0\x9f\x98\x80"}')[0] == 200
    assert post(triton, "/v1/completions", b'{"prompt": "\xed\xa0\x80"}')[0] == 400


def user(content):
    return {"role": "user", "content": content}


def text(said):
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    "messages, said",
    [
        ([user("law"), {"role": "assistant", "content": None, "tool_calls": [CALL]}, user("egg")], "law\negg"),
        ([user([text("law"), IMAGE, text(" egg")])], "law egg"),
        ([user([IMAGE])], ""),
        ([user([IMAGE]), {"role": "system", "content": "law"}], "law"),
        ([user("law"), {"role": "assistant", "content": None, "refusal": "no"}], "law"),
        ([user("law"), {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}], "law"),
        ([user("law"), {"role": "assistant", "content": "", "function_call": {"name": "f"}}], "law"),
        ([user("law"), {"role": "tool", "tool_call_id": "c", "content": "42"}], "law"),
        ([{"role": "tool", "tool_call_id": "c", "content": "42"}], "42"),
        ([{"role": "user"}, "no object", {"content": 3}], ""),
        ([user(["law"])], "law"),
    ],
)
def test_a_conversation_is_classified_by_the_users_text_and_forwarded_unchanged(router, upstream, messages, said):
    body = {"messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}], "n": 2, "logprobs": True}
    assert openai.prompt("chat/completions", body) == said
    home = upstream.fakes[int(router.predict([said])[0])]
    home.bodies.clear()
    home.scripts.append((200, "application/json", [b'{"choices": [{}]}'], False))
    assert post(upstream, "/v1/chat/completions", body)[0] == 200
    assert home.bodies == [body | {"model": "m"}]


@pytest.mark.parametrize(
    "prompt, said",
    [(["law", "egg"], "law\negg"), ([1, 2, 3], ""), ([[1, 2], [3]], ""), ("", ""), ([KITCHEN[0]], KITCHEN[0])],
)
def test_prompts_in_lists_and_token_ids_are_forwarded(router, upstream, prompt, said):
    assert openai.prompt("completions", {"prompt": prompt}) == said
    home = upstream.fakes[int(router.predict([said])[0])]
    home.bodies.clear()
    home.scripts.append((200, "application/json", [b'{"choices": [{}]}'], False))
    body = {"prompt": prompt, "echo": True, "logprobs": 5, "suffix": "end", "best_of": 2, "temperature": "hot"}
    assert post(upstream, "/v1/completions", body)[0] == 200
    assert home.bodies == [body | {"model": "m"}]


def test_a_body_nested_too_deeply_is_refused(upstream):
    for depth in (900, 950, 970, 980, 990, 2000):
        status, _, _ = post(upstream, "/v1/completions", b'{"prompt": "x", "a": %b1%b}' % (b"[" * depth, b"]" * depth))
        assert status in (200, 400)


def test_models_by_their_ids(upstream, triton):
    (expert,) = [model["id"] for model in json.loads(get(triton, "/v1/models")[1])["data"]][1:]
    assert json.loads(get(triton, f"/v1/models/{expert}")[1])["id"] == expert
    for model in json.loads(get(upstream, "/v1/models")[1])["data"]:
        quoted = urllib.request.quote(model["id"], safe="")
        assert json.loads(get(upstream, f"/v1/models/{quoted}")[1]) == model
    assert json.loads(get(upstream, f"/v1/models/{urllib.request.quote(model['id'])}")[1]) == model  # its slashes bare
    status, body = get(upstream, "/v1/models/no/body")
    assert status == 404 and "must be 'router' or an expert" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json-seq", None])
def test_content_that_a_form_could_send_is_refused(triton, kind):
    body = b'{"prompt": "x"}'
    for path in ("/v1/completions", "/v1/chat/completions", "/route"):
        headers = f"Content-Type: {kind}\r\n" if kind else ""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}"
        said = raw(triton, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert said.startswith(b"HTTP/1.1 415 ") and b"must be application/json" in said
        assert b"access-control" not in said.lower()
    assert post(triton, "/v1/completions", body, **{"Content-Type": "application/json; charset=utf-8"})[0] == 200


def raw(gateway, data):
    """All that comes for `data` until the connection ends."""
    with socket.create_connection(gateway.addresses["http"].removeprefix("http://").split(":"), timeout=60) as opened:
        opened.sendall(data)
        return b"".join(iter(lambda: opened.recv(65536), b""))


def answered(gateway, host):
    head = b"GET /v1/models HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host
    return raw(gateway, head).split(b" ")[1]


LOOPBACK = [b"localhost", b"LocalHost:8000", b"127.0.0.1", b"127.9.9.9:1", b"[::1]", b"[::1]:8000"]
FOREIGN = [b"evil.example", b"evil.example:8000", b"localhost.evil.example", b"127.0.0.1.evil.example", b"10.0.0.1"]
FOREIGN += [b"", b"[::2]", b"127.0.0.1@evil.example", b"0.0.0.0"]


def test_on_loopback_only_its_host_names_are_answered(triton):
    assert {answered(triton, host) for host in LOOPBACK} == {b"200"}
    assert {answered(triton, host) for host in FOREIGN} == {b"403"}
    twice = raw(triton, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert twice.split(b" ")[1] in (b"403", b"400")
    assert b"one of --hosts" in raw(triton, b"GET /health/live HTTP/1.0\r\nHost: evil.example\r\n\r\n")


def test_configured_hosts_are_answered(router):
    with FakeTriton({"e": echo}) as fake:
        with Local(router, fake.address, ("e",), http_port=0, hosts=("Gateway.example",)) as gateway:
            assert {answered(gateway, host) for host in (*LOOPBACK, b"gateway.example:1")} == {b"200"}
            assert answered(gateway, b"evil.example") == b"403"
        with Local(router, fake.address, ("e",), http_port=0, host="0.0.0.0") as gateway:
            assert answered(gateway, b"evil.example") == b"200"
        with Local(router, fake.address, ("e",), http_port=0, host="0.0.0.0", hosts=("a.example",)) as gateway:
            assert (answered(gateway, b"a.example"), answered(gateway, b"evil.example")) == (b"200", b"403")


HEADS = {
    "silent": b"",
    "slow": b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Slow: ",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_connections_without_a_request_are_closed(router, head):
    with Local(router, None, ("http://127.0.0.1:9/v1#m",), http_port=0, limits=Limits(header_seconds=0.5)) as gateway:
        address = gateway.addresses["http"].removeprefix("http://").split(":")
        opened = [socket.create_connection(address, timeout=60) for _ in range(50)]
        for connection in opened:
            connection.sendall(head)
        assert [connection.recv(1) for connection in opened] == [b""] * 50
        for connection in opened:
            connection.close()


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(router):
    limits = Limits(header_seconds=0.2, idle_seconds=0.5)
    with FakeTriton({"e": slow}) as fake, Local(router, fake.address, ("e",), http_port=0, limits=limits) as gateway:
        body = b'{"prompt": "x"}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        said = raw(gateway, head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        assert said.startswith(b"HTTP/1.1 200 ") and b'"text": "late"' in said


def taken(gateway):
    try:
        return answered(gateway, b"localhost") == b"200"
    except ConnectionError:  # turned away before it had said what it wants
        return False


async def slow(request):
    await asyncio.sleep(1)  # longer than both limits
    yield "late"


def test_connections_beyond_the_limit_are_refused(router):
    with Local(router, None, ("http://127.0.0.1:9/v1#m",), http_port=0, limits=Limits(connections=3)) as gateway:
        address = gateway.addresses["http"].removeprefix("http://").split(":")
        opened = [socket.create_connection(address, timeout=60) for _ in range(3)]
        for connection in opened:  # each is known to be taken
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(9) == b"HTTP/1.1 "
        with socket.create_connection(address, timeout=60) as more:
            assert b"".join(iter(lambda: more.recv(65536), b"")).startswith(b"HTTP/1.1 503 ")
        opened.pop().close()
        end = time.monotonic() + 60
        while not taken(gateway):
            assert time.monotonic() < end
        for connection in opened:
            connection.close()
