"""What a Triton server sends, well or badly, as clients of both faces get it."""

import json

import fake_triton
import grpc
import pytest
from fake_triton import FakeTriton, ModelError, decoded, stream
from local import Local
from test_gateway_web import events, post
from tritonclient.grpc import service_pb2

from erlab.gateway import kserve
from erlab.gateway.wire import triton_upstream as triton

Message = service_pb2.ModelStreamInferResponse


def raw(content):
    """A message with one token's bytes."""
    response = service_pb2.ModelInferResponse(raw_output_contents=[len(content).to_bytes(4, "little") + content])
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
    return Message(infer_response=response).SerializeToString()


def typed(content):
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(content)
    return Message(infer_response=response).SerializeToString()


# The fields the other way round than protobuf writes them.
LATE_ERROR = raw(b"x") + Message(error_message="out of memory").SerializeToString()
NO_TEXT = Message(infer_response=service_pb2.ModelInferResponse(model_name="e")).SerializeToString()


@pytest.fixture
def sending(router, monkeypatch):
    """A gateway whose one expert sends the messages in `sending.messages`."""

    async def model(request):
        for message in [raw(b"pong")] if fake_triton.words(request) == ["ping"] else gateway.messages:  # a probe
            yield message

    monkeypatch.setattr(fake_triton, "text_response", lambda request, message: message)
    with FakeTriton({"e": model}) as fake, Local(router, fake.address, ("e",), http_port=0) as gateway:
        gateway.messages = []
        yield gateway


def by_grpc(gateway):
    with grpc.insecure_channel(gateway.address) as channel:
        answers = decoded(stream(channel, kserve.request("router", "one", 9).SerializeToString()))
    texts = b"".join(kserve.content(r.infer_response) for r in answers if not r.error_message)
    return texts.decode(), "".join(r.error_message for r in answers)


@pytest.mark.parametrize("of", [raw, typed])
@pytest.mark.parametrize(
    "tokens, text",
    [
        ([b"one ", b"two"], "one two"),
        ([b"\xe2", b"\x82", b"\xac!"], "€!"),
        ([b"a\xf0\x9f", b"\x98\x80"], "a😀"),
        ([b"", b"a", b""], "a"),
        ([b""], ""),
    ],
)
def test_texts_are_whole_on_both_faces(sending, of, tokens, text):
    sending.messages = [of(token) for token in tokens]
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
    _, _, whole = post(sending, "/v1/chat/completions", chat)
    assert json.loads(whole)["choices"][0]["message"] == {"role": "assistant", "content": text}
    *pieces, done = events(post(sending, "/v1/chat/completions", chat | {"stream": True})[2])
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert done == "[DONE]" and "".join(delta.get("content", "") for delta in deltas) == text
    assert "".join(delta.get("role", "") for delta in deltas) == "assistant"
    assert by_grpc(sending) == (text, "")


def test_an_incomplete_character_becomes_a_replacement_character(sending):
    sending.messages = [raw(b"a\xe2\x82")]
    *pieces, finish, done = events(post(sending, "/v1/completions", {"prompt": "x", "stream": True})[2])
    assert [piece["choices"][0]["text"] for piece in pieces] == ["a", "\ufffd"] and done == "[DONE]"
    assert finish["choices"][0]["finish_reason"] == "stop"


def test_tokens_are_counted_by_responses_not_by_characters(sending):
    sending.messages = [raw(b"\xe2"), raw(b"\x82"), raw(b"\xac")]
    _, _, whole = post(sending, "/v1/completions", {"prompt": "x", "max_tokens": 3})
    assert json.loads(whole)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "messages, said",
    [
        ([LATE_ERROR], "out of memory"),
        ([Message(error_message="out of memory").SerializeToString()], "out of memory"),
        ([], "e ended the stream without an answer"),
        ([NO_TEXT], "e ended the stream without an answer"),
        ([b"\xff\xff"], "a message that is no answer"),
    ],
)
def test_an_invalid_answer_is_an_error_on_both_faces(sending, messages, said):
    sending.messages = messages
    for streams in (True, False):
        status, _, body = post(sending, "/v1/completions", {"prompt": "x", "stream": streams})
        assert status in (502, 503) and said in json.loads(body)["error"]["message"]
    assert said in by_grpc(sending)[1]


def test_an_error_after_a_token_ends_the_answer_with_it(sending):
    sending.messages = [raw(b"one"), LATE_ERROR, raw(b"two")]
    first, error = events(post(sending, "/v1/completions", {"prompt": "x", "stream": True})[2])
    assert first["choices"][0]["text"] == "one" and error["error"]["message"] == "out of memory"
    assert by_grpc(sending) == ("one", "out of memory")
    sending.messages = [raw(b"one"), raw(b"two")[:9] + b"\xff\xff"]
    assert "no answer" in by_grpc(sending)[1]


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 5_000, 16_383, 16_384, 3_000_000])
def test_a_message_of_any_size_is_seen_to_be_a_response_alone(size):
    assert triton._only_response(raw(b"x" * size))
    for other in (raw(b"x" * size)[:-1], raw(b"x" * size) + LATE_ERROR, b"\x12" + b"\x80" * size, b"\n" + b"x" * size):
        assert not triton._only_response(other)


@pytest.mark.parametrize("failure", [ModelError("out of memory"), None])
def test_an_invalid_answer_is_retried_on_the_other_expert(router, homes, failure):
    async def failing(request):
        if failure:
            raise failure
        return
        yield

    with FakeTriton({"expert_0": failing, "expert_1": fake_triton.echo}) as fake:
        with Local(router, fake.address, ("expert_0", "expert_1"), http_port=0) as gateway:
            for streams in (True, False):
                body = {"prompt": homes[0], "stream": streams}
                status, headers, _ = post(gateway, "/v1/completions", body)
                assert status == 200 and headers["x-erlab-expert"] == "expert_1"


def test_a_whole_answer_in_one_response_must_hold_a_text(router):
    class Empty(FakeTriton):
        async def _ModelInfer(self, data, context):
            return service_pb2.ModelInferResponse(model_name="e").SerializeToString()

    with Empty({"e": fake_triton.echo}) as fake, Local(router, fake.address, ("e",)) as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as caught:
                infer(kserve.request("router", "one", 9).SerializeToString())
    assert "without an answer" in caught.value.details()
