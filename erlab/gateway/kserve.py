"""KServe v2 text requests and responses, shared by gateway, users and probes.

KServe v2 over gRPC, with the tensors of TensorRT-LLM's ensemble: ``text_input`` BYTES (1, 1), ``max_tokens`` INT32
(1, 1) and ``stream`` BOOL (1, 1) in, ``text_output`` BYTES out, in raw or in typed contents. A character's bytes may
span several responses: join their `content`, or decode it incrementally.

>>> message = request("expert_0", "What is a watt?", 16)
>>> message.model_name, [tensor.name for tensor in message.inputs]
('expert_0', ['text_input', 'max_tokens', 'stream'])
"""

import codecs
import re
import struct
from collections.abc import Iterator

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from erlab.errors import ErlabError

MAX_MESSAGE_BYTES = 64 * 2**20  # gRPC's default for received messages is 4 MiB
# TCP_NODELAY is gRPC's default. No keepalive: Triton hangs up on clients that ping more than once in five silent
# minutes, so a lost peer is noticed by the deadline that every request carries. No proxy: addresses are used as given.
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
)


def address(text: str) -> str:
    """Return an address HOST:PORT unchanged; raises ErlabError for any other text."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})", text)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise ErlabError(f"A server's address must be HOST:PORT with a port from 1 to 65535. Got {text!r}.")
    return text


def request(
    model: str, text: str, max_tokens: int, stream: bool = True, request_id: str = ""
) -> service_pb2.ModelInferRequest:
    """Build a request to continue `text` by `max_tokens` tokens, with one response per token if `stream`."""
    message = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    tensors = (
        ("text_input", "BYTES", serialize_byte_tensor(np.array([text.encode()], dtype=object)).item()),
        ("max_tokens", "INT32", np.int32(max_tokens).tobytes()),
        ("stream", "BOOL", np.bool_(stream).tobytes()),
    )
    for name, datatype, content in tensors:
        message.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        message.raw_input_contents.append(content)
    return message


def content(response: service_pb2.ModelInferResponse) -> bytes:
    """Return the bytes of a response's text, empty if it has none; raises struct.error if their lengths are wrong."""
    for place, tensor in enumerate(response.outputs):
        if tensor.name == "text_output":
            if not response.raw_output_contents:
                return b"".join(tensor.contents.bytes_contents)
            if place < len(response.raw_output_contents):
                return b"".join(deserialize_bytes_tensor(response.raw_output_contents[place]))
    return b""


def answers(response: service_pb2.ModelInferResponse) -> bool:
    """Whether a response carries a text, which may be empty."""
    return any(tensor.name == "text_output" for tensor in response.outputs)


def text(response: service_pb2.ModelInferResponse) -> str:
    """Return the text of one response, empty if it has none; bytes that are not UTF-8 become U+FFFD."""
    return content(response).decode(errors="replace")


def generate(server: str, model: str, prompt: str, max_tokens: int, timeout: float) -> Iterator[str]:
    """Send a prompt to the server at HOST:PORT and yield the pieces of the answer as they arrive.

    Raises ErlabError, naming server and model, if the server is unreachable, refuses, sends no answer, or takes longer
    than `timeout` seconds.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    answered = False
    with grpc.insecure_channel(address(server), options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([request(model, prompt, max_tokens)]), timeout=timeout)
        try:
            for response in call:
                if response.error_message:
                    raise ErlabError(f"{model} at {server}: {response.error_message}")
                answered = answered or answers(response.infer_response)
                if piece := decoder.decode(content(response.infer_response)):
                    yield piece
            if not answered:
                raise ErlabError(f"{model} at {server}: ended the stream without an answer")
            if piece := decoder.decode(b"", final=True):
                yield piece
        except struct.error:
            raise ErlabError(f"{model} at {server}: sent a text whose length is not that of its bytes") from None
        except grpc.RpcError as e:
            raise ErlabError(f"{model} at {server}: {e.code().name}: {e.details()}") from None
        finally:
            call.cancel()
