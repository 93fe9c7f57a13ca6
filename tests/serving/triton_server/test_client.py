import socket
import time

import fake_triton
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import InferInput, InferResult, service_pb2

from erlab.errors import ErlabError
from erlab.gateway import kserve


@given(st.text(max_size=40), st.integers(1, 2**31 - 1), st.booleans(), st.text("abc-7", max_size=8))
def test_a_request_carries_the_bytes_that_tritonclient_would_send(text, max_tokens, stream, request_id):
    tensors = {
        "text_input": ("BYTES", np.array([[text.encode()]], dtype=object)),
        "max_tokens": ("INT32", np.array([[max_tokens]], dtype=np.int32)),
        "stream": ("BOOL", np.array([[stream]])),
    }
    expected = service_pb2.ModelInferRequest(model_name="m", id=request_id)
    for name, (datatype, array) in tensors.items():
        tensor = InferInput(name, [1, 1], datatype).set_data_from_numpy(array)
        expected.inputs.append(tensor._get_tensor())
        expected.raw_input_contents.append(tensor._get_content())
    assert kserve.request("m", text, max_tokens, stream, request_id) == expected


@given(st.lists(st.binary(max_size=6), max_size=3))
def test_the_text_of_a_response_is_what_tritonclient_decodes(pieces):
    response = service_pb2.ModelInferResponse()
    for name, values in (("score", [b"no text"]), ("text_output", pieces)):
        tensor = InferInput(name, [len(values)], "BYTES").set_data_from_numpy(np.array(values, dtype=object))
        response.outputs.add(name=name, datatype="BYTES", shape=[len(values)])
        response.raw_output_contents.append(tensor._get_content())
    decoded = b"".join(InferResult(response).as_numpy("text_output"))
    assert kserve.text(response) == decoded.decode(errors="replace")


def test_a_response_without_text_is_empty():
    assert kserve.text(service_pb2.ModelInferResponse()) == ""
    assert not kserve.answers(service_pb2.ModelInferResponse())


def test_a_text_in_typed_contents_is_read():
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="score", datatype="FP32").contents.fp32_contents.append(0.5)
    response.outputs.add(name="text_output", datatype="BYTES").contents.bytes_contents.append("é".encode())
    assert kserve.answers(response) and kserve.text(response) == "é" and kserve.content(response) == "é".encode()


@pytest.mark.parametrize(
    "tokens, pieces",
    [([b"a", b"\xe2\x82", b"\xac"], ["a", "€"]), ([b"a\xe2"], ["a", "\ufffd"]), ([b""], [])],
)
def test_a_character_in_several_responses_is_whole(monkeypatch, tokens, pieces):
    with sending(monkeypatch, *map(said, tokens)) as server:
        assert list(kserve.generate(server.address, "m", "x", 3, timeout=30)) == pieces


@pytest.mark.parametrize(
    "response, error",
    [
        (None, "m at .*: ended the stream without an answer"),
        (service_pb2.ModelInferResponse(model_name="m"), "m at .*: ended the stream without an answer"),
        (b"\x09\0\0\0ab", "m at .*: sent a text whose length is not that of its bytes"),
    ],
)
def test_invalid_responses_are_errors(monkeypatch, response, error):
    responses = [] if response is None else [said(raw=response) if isinstance(response, bytes) else response]
    with sending(monkeypatch, *responses) as server, pytest.raises(ErlabError, match=error):
        list(kserve.generate(server.address, "m", "x", 3, timeout=30))


def said(token=b"", raw=None):
    """A response with one token's bytes, or with these raw contents."""
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
    response.raw_output_contents.append(len(token).to_bytes(4, "little") + token if raw is None else raw)
    return response


def sending(monkeypatch, *responses):
    """A server whose model `m` sends these."""

    async def model(request):
        for response in responses:
            yield service_pb2.ModelStreamInferResponse(infer_response=response).SerializeToString()

    monkeypatch.setattr(fake_triton, "text_response", lambda request, message: message)
    return fake_triton.FakeTriton({"m": model})


@pytest.mark.parametrize("good", ["127.0.0.1:8001", "triton.example:1", "[::1]:65535"])
def test_addresses(good):
    assert kserve.address(good) == good


@pytest.mark.parametrize("bad", ["", "8001", "host", "host:", ":1", "h:0", "h:65536", "http://h:1", "h:1/x", "h h:1"])
def test_invalid_addresses_are_refused(bad):
    with pytest.raises(ErlabError, match="HOST:PORT"):
        kserve.address(bad)


def test_answers_stream_in_pieces(server):
    assert list(kserve.generate(server.grpc, "echo", "a bé c", 5, timeout=60)) == ["a", "bé", "c", "a", "bé"]


def test_messages_beyond_grpcs_4_mib_pass_both_ways(server):
    word = "x" * (6 * 2**20)
    assert "".join(kserve.generate(server.grpc, "echo", word, 1, timeout=30)) == word


def test_a_late_answer_ends_at_the_deadline(server):
    pieces, start = [], time.monotonic()
    with pytest.raises(ErlabError, match="other at .*DEADLINE_EXCEEDED"):
        for piece in kserve.generate(server.grpc, "other", "one wait", 5, timeout=4):
            pieces.append(piece)
    assert pieces == ["one", "wait"] and 3.9 < time.monotonic() - start < 60


def test_an_unknown_model_is_named(server):
    with pytest.raises(ErlabError, match="nobody at .*unknown model"):
        list(kserve.generate(server.grpc, "nobody", "a", 1, timeout=5))


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*unheard.getsockname())
        with pytest.raises(ErlabError, match=f"m at {address}: UNAVAILABLE"):
            list(kserve.generate(address, "m", "a", 1, timeout=5))
