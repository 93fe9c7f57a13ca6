"""The two tricks with bytes, against decoding and encoding; and what the gateway refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.gateway.core import Decision, Routed
from erlab.gateway.wire import messages

TEXTS = st.text(max_size=50)
FINITE = st.floats(allow_nan=False)


@given(TEXTS, TEXTS, TEXTS, st.integers(1, 1000), st.dictionaries(TEXTS, st.integers(-9, 9), max_size=3))
def test_renaming_changes_the_model_and_nothing_else(text, model, request_id, tokens, parameters):
    request = kserve.request("router", text, tokens, request_id=request_id)
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    got = service_pb2.ModelInferRequest.FromString(request.SerializeToString() + messages.rename(model or "m"))
    request.model_name = model or "m"
    assert got == request


@given(TEXTS, st.integers(0, 63), FINITE, FINITE, st.integers(0, 2**62), st.binary(max_size=40), st.booleans())
def test_marking_a_response_merges_into_it(expert, cluster, distance, margin, routed, content, final):
    response = service_pb2.ModelInferResponse(model_name="expert_0", id="7")
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(content)
    response.parameters["triton_final_response"].bool_param = final
    mark = messages.mark(Routed(Decision(expert, cluster, distance, margin, "nearest"), routed - 9, routed, 8, 7))
    sent = messages.streamed(response) + messages.streamed(mark)
    got = service_pb2.ModelStreamInferResponse.FromString(sent).infer_response
    assert got.raw_output_contents == [content] and got.id == "7"
    assert got.parameters["triton_final_response"].bool_param == final
    assert got.parameters["erlab_expert"].string_param == expert
    assert got.parameters["erlab_cluster"].int64_param == cluster
    assert got.parameters["erlab_distance"].double_param == distance
    assert got.parameters["erlab_margin"].double_param == margin
    assert got.parameters["erlab_policy"].string_param == "nearest"
    assert got.parameters["erlab_received_ns"].int64_param == routed - 9
    assert got.parameters["erlab_routed_ns"].int64_param == routed
    assert got.parameters["erlab_classify_ns"].int64_param == 8
    assert got.parameters["erlab_queue_ns"].int64_param == 7


@given(TEXTS)
def test_prompt_is_read_from_raw_and_from_typed_contents(text):
    request = kserve.request("router", text, 3)
    assert messages.prompt(request) == text
    typed = service_pb2.ModelInferRequest(model_name="router")
    typed.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(text.encode())
    assert messages.prompt(typed) == text


def _request(name="text_input", datatype="BYTES", contents=(b"\x02\0\0\0hi",)):
    request = service_pb2.ModelInferRequest(model_name="router", raw_input_contents=contents)
    request.inputs.add(name="max_tokens", datatype="INT32", shape=[1, 1])
    request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
    return request


@pytest.mark.parametrize(
    "request_, said",
    [
        (service_pb2.ModelInferRequest(), "must have a 'text_input' tensor"),
        (_request(name="prompt"), "must have a 'text_input' tensor"),
        (_request(datatype="INT32"), "datatype BYTES. Got 'INT32'"),
        (_request(contents=(b"\x01\0\0\0",)), "must have contents"),
        (_request(contents=(b"\x01\0\0\0", b"")), "one prompt. Got 0"),
        (_request(contents=()), "one prompt. Got 0"),
        (_request(contents=(b"\x01\0\0\0", b"\x01\0\0\0a\x01\0\0\0b")), "one prompt. Got 2"),
        (_request(contents=(b"\x01\0\0\0", b"\x09\0\0\0ab")), "strings with their lengths"),
        (_request(contents=(b"\x01\0\0\0", b"\x01\0\0\0\xff")), "UTF-8"),
    ],
)
def test_a_request_without_one_prompt_is_refused(request_, said):
    with pytest.raises(ErlabError, match=said):
        messages.prompt(request_)


def test_bytes_that_are_not_a_message_are_refused():
    with pytest.raises(ErlabError, match="inference.ModelInferRequest message"):
        messages.parse(service_pb2.ModelInferRequest, b"\xff\xff\xff")
