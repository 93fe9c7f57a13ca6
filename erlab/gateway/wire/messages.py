"""KServe messages: decoded for what the gateway reads, changed without encoding them again.

In two concatenated protobuf messages of one type the later scalar wins, and embedded messages and maps merge. So
appended bytes rename a request's model or add a response's parameters, and all else stays as received.

>>> request = service_pb2.ModelInferRequest(model_name="router", id="7").SerializeToString()
>>> renamed = service_pb2.ModelInferRequest.FromString(request + rename("expert_3"))
>>> renamed.model_name, renamed.id
('expert_3', '7')
"""

import struct

from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from erlab.errors import ErlabError
from erlab.gateway.core import Routed


def parse(message: type[Message], data: bytes) -> Message:
    """Decode `data`; raises ErlabError if it is not such a message."""
    try:
        return message.FromString(data)
    except DecodeError:
        raise ErlabError(f"The request must be a {message.DESCRIPTOR.full_name} message. Got other bytes.") from None


def request(data: bytes) -> service_pb2.ModelInferRequest:
    """Decode an inference request; raises ErlabError if it is none or has tensors in shared memory."""
    request = parse(service_pb2.ModelInferRequest, data)
    for tensor in (*request.inputs, *request.outputs):
        for name in tensor.parameters:
            if name.startswith("shared_memory"):
                raise ErlabError(
                    f"The tensor {tensor.name!r} must be part of the message. Got the parameter {name!r}; this gateway "
                    "allows no shared memory."
                )
    return request


def prompt(request: service_pb2.ModelInferRequest) -> str:
    """Return the text of `text_input`; raises ErlabError if it is not one UTF-8 string."""
    elements = _elements(request)
    if len(elements) != 1:
        raise ErlabError(f"The 'text_input' tensor must hold one prompt. Got {len(elements)}.")
    try:
        return elements[0].decode()
    except UnicodeDecodeError:
        raise ErlabError("The 'text_input' tensor must hold UTF-8 text. Got other bytes.") from None


def _elements(request: service_pb2.ModelInferRequest) -> list[bytes]:
    for i, tensor in enumerate(request.inputs):
        if tensor.name != "text_input":
            continue
        if tensor.datatype != "BYTES":
            raise ErlabError(f"The 'text_input' tensor must have the datatype BYTES. Got {tensor.datatype!r}.")
        if not request.raw_input_contents:
            return list(tensor.contents.bytes_contents)
        if i >= len(request.raw_input_contents):
            raise ErlabError("The 'text_input' tensor must have contents in the request. Got none.")
        try:
            return deserialize_bytes_tensor(request.raw_input_contents[i]).tolist()
        except struct.error:
            raise ErlabError("The 'text_input' tensor must hold strings with their lengths. Got other bytes.") from None
    raise ErlabError("A request to the router must have a 'text_input' tensor. Got none.")


def rename(model: str) -> bytes:
    """Return the bytes that turn a ModelInferRequest into one to `model` when appended to it."""
    return service_pb2.ModelInferRequest(model_name=model).SerializeToString()


def mark(routed: Routed) -> service_pb2.ModelInferResponse:
    """Return a response with only the decision, as parameters, to be merged into the answer's first response."""
    response, decision = service_pb2.ModelInferResponse(), routed.decision
    parameters = response.parameters
    parameters["erlab_expert"].string_param = decision.expert
    parameters["erlab_cluster"].int64_param = decision.cluster
    parameters["erlab_distance"].double_param = decision.distance
    parameters["erlab_margin"].double_param = decision.margin
    parameters["erlab_policy"].string_param = decision.policy
    parameters["erlab_received_ns"].int64_param = routed.received_ns
    parameters["erlab_routed_ns"].int64_param = routed.routed_ns
    parameters["erlab_classify_ns"].int64_param = routed.classify_ns
    parameters["erlab_queue_ns"].int64_param = routed.queue_ns
    return response


def streamed(response: service_pb2.ModelInferResponse, error: str = "") -> bytes:
    """Encode a response as one message of a stream, with an error message if not empty."""
    return service_pb2.ModelStreamInferResponse(infer_response=response, error_message=error).SerializeToString()
