"""What OpenAI-compatible servers send, well or badly, as clients of both faces get it."""

import json
import urllib.request
from urllib.error import HTTPError

import grpc
import pytest
from fake_openai import FakeOpenAI
from fake_triton import KITCHEN, decoded, stream
from local import Local

from erlab.gateway import kserve

STREAM, JSON, HTML = "text/event-stream", "application/json", "text/html"
DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def fake():
    with FakeOpenAI() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(fake, router):
    with Local(router, None, (f"{fake.base}#m",), http_port=0) as running:
        yield running


def event(text, finish=None, **also):
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'up', 'choices': [choice]} | also)}\n\n".encode()


def post(gateway, body, kind="completions"):
    """Status, body of an answer."""
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{gateway.addresses['http']}/v1/{kind}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as e:
        return e.code, e.read()


def merged(raw):
    """The text of a relayed stream, its error, and whether it ended with [DONE], as a client sees them."""
    said = [e.partition(b"data: ")[2] for e in raw.split(b"\n\n") if e.startswith(b"data: ")]
    found = [json.loads(" ".join(e.decode().split("\ndata: "))) for e in said if e not in (b"[DONE]", b"")]
    texts = [c.get("text") or "" for e in found if e for c in e.get("choices") or ()]
    errors = [e["error"] for e in found if e and "error" in e]
    return "".join(texts), errors, said.count(b"[DONE]") == 1 and said[-1] == b"[DONE]"


def by_grpc(gateway):
    """The text of the answer on the gRPC face, and its error."""
    with grpc.insecure_channel(gateway.address) as channel:
        answers = decoded(stream(channel, kserve.request("router", "one", 9).SerializeToString()))
    texts = b"".join(kserve.content(r.infer_response) for r in answers)
    return texts.decode(), "".join(r.error_message for r in answers)


@pytest.mark.parametrize(
    "pieces, text, stays_open",
    [
        ([event("one "), event("two", "stop"), DONE], "one two", False),
        ([event("one"), event(" two", "stop")], "one two", False),
        ([event("one two"), DONE], "one two", False),
        ([event("one two"), DONE], "one two", True),
        ([event("one two"), b"data: [DO", b"NE]\n", b"\n"], "one two", True),
        ([event("one two"), DONE + event("not this"), event("nor this")], "one two", True),
        ([event("one [DONE]"), event(" two", "length"), DONE], "one [DONE] two", False),
        ([event("", "stop"), DONE], "", False),
        ([event("", "stop")], "", False),
        ([event("one"), b'data: {"choices": null, "usage": {"completion_tokens": 1}}\n\n', DONE], "one", False),
        ([b"data:\n\n", b": here\n\n", event("one"), b"data: null\n\n", b"data: \n\n", DONE], "one", False),
        ([event("one").replace(b"\n", b"\r"), event(" two").replace(b"\n", b"\r\n"), DONE], "one two", False),
        ([b"\xef\xbb", b"\xbf" + event("one"), DONE], "one", False),
        ([b'data: {"choices":\ndata: [{"text": "one"}]}\n\n', DONE], "one", False),
        ([*(bytes([b]) for b in event("é€")), DONE], "é€", False),
        ([b'data: {"choices": [{"text": "\xe2\x82\xac"}]}\n\n', DONE], "€", False),
    ],
)
def test_a_complete_stream_is_relayed(gateway, fake, pieces, text, stays_open):
    fake.scripts += [(200, STREAM, pieces, stays_open)] * 2
    status, raw = post(gateway, {"prompt": "one", "stream": True})
    assert status == 200 and merged(raw) == (text, [], True)
    assert by_grpc(gateway) == (text, "")


def test_a_surrogate_pair_in_two_events(gateway, fake):
    fake.scripts += [(200, STREAM, [event("\ud83d"), event("\ude00 \ud800"), DONE], False)]
    assert by_grpc(gateway) == ("\U0001f600 \ufffd", "")


@pytest.mark.parametrize(
    "kind, pieces, text, said",
    [
        (STREAM, [event("one [DONE]")], "one [DONE]", "ended its answer too early"),
        (STREAM, [event("one"), event("two")[:-9]], "one", "ended its answer too early"),
        (STREAM, [event("one"), b"data: [DONE]"], "one", "ended its answer too early"),
        (STREAM, [event("one"), b'data: {"error": "out of memory"}\n\n', DONE], "one", "out of memory"),
        (STREAM, [event("one"), b'data: {"detail": "out of memory"}\n\n', DONE], "one", "out of memory"),
        (STREAM, [event("one"), b'data: {"error": "out', b' of memory"}\n\n'], "one", "out of memory"),
        (STREAM, [b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n', DONE], "", "without an answer"),
        (STREAM, [event("one"), b"data: {\n\n"], "one", "no completion"),
    ],
)
def test_an_incomplete_stream_ends_with_an_error(gateway, fake, kind, pieces, text, said):
    fake.scripts += [(200, kind, pieces, False)] * 2
    status, raw = post(gateway, {"prompt": "one", "stream": True})
    got, errors, done = merged(raw)
    assert (status, got, len(errors), done) == (200, text, 1, False) and said in errors[0]["message"]
    got, error = by_grpc(gateway)
    assert got == text and said in error


SILENT = [
    (200, STREAM, [], "ended the stream without an answer"),
    (200, STREAM, [DONE], "ended the stream without an answer"),
    (200, STREAM, [b": here\n\n", b"data:\n\n"], "ended the stream without an answer"),
    (200, STREAM, [event("one")[:9]], "ended the stream without an answer"),
    (200, STREAM, [b'data: {"error": {"message": "out of memory"}}\n\n'], "out of memory"),
    (200, STREAM, [b"data: {\n\n"], "no completion"),
    (200, HTML, [b"<html><title>Sign in</title>\n\n</html>"], "sent no completion, but"),
    (200, JSON, [b'{"error": "out of memory"}'], "out of memory"),
    (500, JSON, [b'{"error": "out of memory"}'], "out of memory"),
]
PLAIN = [
    (200, JSON, [b'{"choices": [{"text": "on'], "ended its answer too early"),
    (200, JSON, [b'{"choices": []}'], "without an answer"),
    (200, JSON, [b'{"choices": null}'], "sent no completion, but other JSON"),
    (200, JSON, [b"[1]"], "sent no completion, but other JSON"),
    (200, JSON, [], "sent no completion, but nothing"),
    (200, JSON, [b'{"object": "error", "message": "out of memory", "code": 503}'], "out of memory"),
    (200, HTML, [b"<html><title>Sign in</title></html>"], "sent no completion, but Sign in"),
    (302, HTML, [b"<html>moved</html>"], "HTML"),
    (204, JSON, [], "answered with HTTP status 204"),
    (503, "text/plain", [b"overloaded\n"], "overloaded"),
]


@pytest.mark.parametrize("streams, script", [(True, s) for s in SILENT] + [(False, s) for s in PLAIN])
def test_an_invalid_answer_is_retried_on_the_other_expert(router, fake, streams, script):
    *answer, said = script
    with FakeOpenAI() as other:
        home = int(router.predict([KITCHEN[0]])[0])
        experts = [f"{other.base}#m"] * 2
        experts[home] = f"{fake.base}#m"
        with Local(router, None, tuple(experts), http_port=0) as gateway:
            fake.scripts += [(*answer, False)]
            status, raw = post(gateway, {"prompt": KITCHEN[0], "stream": streams})
            assert status == 200 and not fake.scripts and len(other.bodies) == 1
            text = merged(raw)[0] if streams else json.loads(raw)["choices"][0]["text"]
            assert text.replace(" ", "") == KITCHEN[0].replace(" ", "")
            fake.scripts += [(*answer, False)]
            other.scripts += [(*answer, False)]
            status, raw = post(gateway, {"prompt": KITCHEN[0], "stream": streams})
            assert status in (502, 503) and said in json.loads(raw)["error"]["message"]


BAD, OURS = "invalid_request_error", "invalid_argument"
TOO_LONG = {"message": "too long", "type": BAD, "code": "context_length_exceeded"}
VLLM = {"object": "error", "message": "no", "type": "BadRequestError", "code": 400}
LOCATED = {"loc": ["body", "n"], "msg": "too many", "input": "secret"}


@pytest.mark.parametrize(
    "status, body, message, kind, code",
    [
        (400, {"error": TOO_LONG}, "too long", BAD, "context_length_exceeded"),
        (400, VLLM, "no", "BadRequestError", 400),
        (422, {"detail": "Not that"}, "Not that", BAD, OURS),
        (422, {"detail": [LOCATED]}, "body.n: too many", BAD, OURS),
        (422, {"error": "Not that", "error_type": "validation"}, "Not that", "validation", OURS),
        (404, {"message": "no such model"}, "no such model", BAD, "not_found"),
        (400, {"error": {"code": "x"}}, "m answered with HTTP status 400", BAD, "x"),
        (400, {"detail": "\ud800"}, "?", BAD, OURS),
        (429, {"error": {"message": "slow down"}}, "slow down", "rate_limit_error", "resource_exhausted"),
        (401, {"error": {"message": "no key", "code": "invalid_api_key"}}, "no key", BAD, "invalid_api_key"),
        (413, "Payload too large", "Payload too large", BAD, OURS),
        (400, "<html><head><title>400 Bad Request</title>", "400 Bad Request", BAD, OURS),
        (400, "", "m answered with HTTP status 400", BAD, OURS),
    ],
)
@pytest.mark.parametrize("streams", [True, False])
def test_an_upstreams_error_is_relayed(gateway, fake, streams, status, body, message, kind, code):
    content = body if isinstance(body, str) else json.dumps(body)
    fake.scripts += [(status, JSON, [content.encode()], False)] * 2
    got, raw = post(gateway, {"prompt": "one", "stream": streams})
    error = json.loads(raw)["error"]
    assert (got, error["message"], error["type"], error["code"]) == (status, message, kind, code)
    assert message in by_grpc(gateway)[1]


def test_an_error_in_a_streams_first_event_has_its_status(gateway, fake):
    failed = f"data: {json.dumps({'error': TOO_LONG})}\n\n".encode()
    fake.scripts += [(200, STREAM, [failed], False)]
    status, raw = post(gateway, {"prompt": "one", "stream": True})
    assert status == 400 and json.loads(raw)["error"] == TOO_LONG | {"param": None}
    fake.scripts += [(200, STREAM, [event("one"), failed], False)]
    assert merged(post(gateway, {"prompt": "one", "stream": True})[1])[1] == [TOO_LONG | {"param": None}]


def test_all_choices_of_an_answer_must_have_finished(gateway, fake):
    def of(index, finish):
        return f'data: {{"choices": [{{"index": {index}, "text": "x", "finish_reason": "{finish}"}}]}}\n\n'.encode()

    for pieces, whole in (([of(0, "stop")], False), ([of(0, "stop"), of(1, "length")], True)):
        for body in ({"prompt": "one", "n": 2}, {"prompt": ["one", "two"]}, {"prompt": [[1, 2], [3]]}):
            fake.scripts += [(200, STREAM, pieces, False)]
            _, errors, done = merged(post(gateway, body | {"stream": True})[1])
            assert (not errors) == done == whole
    fake.scripts += [(200, STREAM, [of(0, "stop")], False)]
    assert merged(post(gateway, {"prompt": [1, 2], "stream": True})[1])[2]


@pytest.mark.parametrize(
    "delta",
    [{"tool_calls": [{"index": 0}]}, {"reasoning_content": "hm"}, {"refusal": "no"}, {"content": "one"}],
)
def test_a_delta_without_text_counts_as_an_answer(gateway, fake, delta):
    piece = f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n".encode()
    fake.scripts += [(200, STREAM, [piece, DONE], False)]
    status, raw = post(gateway, {"messages": [{"role": "user", "content": "x"}], "stream": True}, "chat/completions")
    assert (status, raw) == (200, piece + DONE)


def test_a_connection_is_reused_after_late_bytes_of_an_answer(gateway, fake):
    fake.scripts += [(200, STREAM, [event("one"), DONE, b": the end comes apart\n\n"], False)]
    for _ in range(2):
        assert merged(post(gateway, {"prompt": "one", "stream": True})[1]) == ("one", [], True)


PARTS = [{"type": "text", "text": "boil"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
EVERYTHING = {
    "messages": [{"role": "system", "content": "ü"}, {"role": "user", "content": PARTS}],
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "n": 2,
    "stop": ["\n", "é"],
    "logprobs": True,
    "top_logprobs": 3,
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
    "temperature": 0.1,
    "seed": 2**60 + 1,
    "logit_bias": {"5": -100},
    "chat_template_kwargs": {"enable_thinking": False},
    "max_completion_tokens": None,
}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("model", ["router", "named"])
def test_all_parameters_reach_the_expert_unchanged(gateway, fake, streams, model):
    named = fake.base + "#m" if model == "named" else model
    whole = json.dumps({"choices": [{"index": i, "message": {"content": "é"}} for i in range(2)], "x": 1.50}).encode()
    ends = b"".join(b'data: {"choices": [{"index": %d, "delta": {}, "finish_reason": "stop"}]}\n\n' % i for i in (0, 1))
    fake.scripts[:] = [(200, STREAM, [ends + DONE], False) if streams else (200, JSON, [whole], False)]
    status, answer = post(gateway, EVERYTHING | {"stream": streams, "model": named}, "chat/completions")
    assert status == 200 and answer == (ends + DONE if streams else whole)
    assert fake.bodies[-1] == EVERYTHING | {"stream": streams, "model": "m"}
