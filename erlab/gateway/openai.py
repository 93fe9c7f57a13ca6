"""OpenAI's completions in terms of KServe's messages, and the other way round.

The tensors are TensorRT-LLM's (`erlab.triton.client`): a response carries one token's text, so that counting responses
counts tokens. What a model doesn't declare as an input (say `temperature`) it isn't sent. A count of prompt tokens is
known to nobody here, and null.

>>> prompt("chat/completions", {"messages": [{"role": "user", "content": "What is a watt?"}]})
'What is a watt?'
"""

import json
import time
import uuid
from collections.abc import Iterator

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from erlab.gateway.limits import Refused
from erlab.triton import client

DEFAULT_TOKENS = {"completions": 16, "chat/completions": 256}  # OpenAI's own, and ours where it knows the model's limit
DONE = b"data: [DONE]\n\n"
# Of OpenAI's parameters: the tensor's name, its KServe datatype, its numpy type.
_TENSORS = {
    "temperature": ("temperature", "FP32", np.float32),
    "top_p": ("top_p", "FP32", np.float32),
    "top_k": ("top_k", "INT32", np.int32),
    "frequency_penalty": ("frequency_penalty", "FP32", np.float32),
    "presence_penalty": ("presence_penalty", "FP32", np.float32),
    "seed": ("random_seed", "UINT64", np.uint64),
}
_BAD = grpc.StatusCode.INVALID_ARGUMENT


def prompt(kind: str, body: dict) -> str:
    """The text that is classified: the prompt, or what the user said in a chat. Refused where there is none."""
    if kind == "completions":
        text = body.get("prompt")
        if isinstance(text, list) and len(text) == 1:
            text = text[0]
        if not isinstance(text, str):
            raise Refused(_BAD, f"The 'prompt' must be one text. Got {_short(body.get('prompt'))}.")
        return _encodable(text)
    return _encodable("\n".join(text for role, text in _messages(body) if role == "user"))


def to_kserve(kind: str, body: dict, declared: frozenset[str]) -> service_pb2.ModelInferRequest:
    """The request to a model with the `declared` inputs; Refused where `body` asks for what it cannot."""
    if body.get("n") not in (None, 1):
        raise Refused(_BAD, f"'n' must be 1 for this expert. Got {_short(body['n'])}.")
    text = prompt(kind, body)
    if kind != "completions":
        said = _messages(body)
        text = text if len(said) == 1 else "\n".join([f"{r}: {t}" for r, t in said] + ["assistant:"])
    request = client.request("", _encodable(text), _max_tokens(kind, body))
    for name, (tensor, datatype, numpy_type) in _TENSORS.items():
        if body.get(name) is not None and tensor in declared:
            try:
                content = numpy_type(body[name]).tobytes()
            except (TypeError, ValueError, OverflowError):
                raise Refused(_BAD, f"{name!r} must be a number. Got {_short(body[name])}.") from None
            request.inputs.add(name=tensor, datatype=datatype, shape=[1, 1])
            request.raw_input_contents.append(content)
    stop = body.get("stop")
    if stop and "stop_words" in declared:
        words = [stop] if isinstance(stop, str) else stop
        if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise Refused(_BAD, f"'stop' must be text or a list of texts. Got {_short(stop)}.")
        request.inputs.add(name="stop_words", datatype="BYTES", shape=[1, len(words)])
        array = np.array([word.encode() for word in words], dtype=object)
        request.raw_input_contents.append(serialize_byte_tensor(array).item())
    return request


def from_kserve(text: str, request: service_pb2.ModelInferRequest) -> dict:
    """The body of a streamed completion for a KServe request whose prompt is `text`."""
    tensors = dict(zip((tensor.name for tensor in request.inputs), request.raw_input_contents))
    body = {"prompt": text, "stream": True}
    names = {"max_tokens": ("max_tokens", np.int32)} | {t: (n, k) for n, (t, _, k) in _TENSORS.items()}
    try:
        for tensor, (name, numpy_type) in names.items():
            if tensor in tensors:
                body[name] = np.frombuffer(tensors[tensor], numpy_type)[0].item()
        if "stop_words" in tensors:
            body["stop"] = [word.decode() for word in deserialize_bytes_tensor(tensors["stop_words"])]
    except (ValueError, IndexError) as e:
        raise Refused(_BAD, f"A tensor of the request doesn't hold what it should: {e}.") from None
    return body


class Answer:
    """One answer in OpenAI's form, from an expert's texts: `piece` and `end` return what to send, if anything."""

    def __init__(self, kind: str, body: dict):
        self._chat, self._stream = kind != "completions", bool(body.get("stream"))
        self._limit = _max_tokens(kind, body)
        options = body.get("stream_options") or {}
        if not isinstance(options, dict):
            raise Refused(_BAD, f"'stream_options' must be an object. Got {_short(options)}.")
        self._usage = bool(options.get("include_usage"))
        self._texts: list[str] = []
        kind = ("chat.completion" + ".chunk" * self._stream) if self._chat else "text_completion"
        prefix = "chatcmpl-" if self._chat else "cmpl-"
        self._head = {"id": prefix + uuid.uuid4().hex, "object": kind}
        self._head |= {"created": int(time.time()), "model": body.get("model")}
        # An event is built around its text once, not a text at a time.
        marker = "\0"
        whole = json.dumps(self._head | {"choices": [self._choice(marker, None)]})
        self._before, self._after = (f"data: {whole}\n\n").split(json.dumps(marker))

    def _choice(self, text: str | None, finish: str | None) -> dict:
        choice = {"index": 0, "logprobs": None, "finish_reason": finish}
        if not self._chat:
            return choice | {"text": text or ""}
        if self._stream:
            return choice | {"delta": {} if text is None else {"role": "assistant", "content": text}}
        return choice | {"message": {"role": "assistant", "content": text}}

    def piece(self, text: str) -> bytes:
        if not text:
            return b""
        self._texts.append(text)
        return f"{self._before}{json.dumps(text)}{self._after}".encode() if self._stream else b""

    def end(self) -> bytes:
        tokens = len(self._texts)
        finish = "length" if tokens >= self._limit else "stop"
        usage = {"prompt_tokens": None, "completion_tokens": tokens, "total_tokens": None}
        if not self._stream:
            choices = [self._choice("".join(self._texts), finish)]
            return json.dumps(self._head | {"choices": choices, "usage": usage}).encode()
        last = _event(self._head | {"choices": [self._choice(None, finish)]})
        if self._usage:
            last += _event(self._head | {"choices": [], "usage": usage})
        return last + DONE


def error(code: grpc.StatusCode, message: str) -> dict:
    """An error in OpenAI's shape."""
    kind = _KINDS.get(code, "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code.name.lower()}}


def error_event(code: grpc.StatusCode, message: str) -> bytes:
    return _event(error(code, message))


_KINDS = {
    _BAD: "invalid_request_error",
    grpc.StatusCode.NOT_FOUND: "invalid_request_error",
    grpc.StatusCode.UNAUTHENTICATED: "authentication_error",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "rate_limit_error",
}


def _event(content: dict) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


class Texts:
    """Reads the texts of a completion's event stream; `usage` is what it has told of its usage."""

    def __init__(self):
        self.usage: dict = {}
        self._rest = b""

    def read(self, piece: bytes) -> Iterator[str]:
        """The texts that have become whole with the stream's next piece; Refused where it holds an error or no JSON."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]":
                continue
            try:
                event = json.loads(data)
                text = "".join(choice.get("text") or "" for choice in event.get("choices", ()))
                failed = event.get("error")
                self.usage.update(event.get("usage") or {})
            except (ValueError, AttributeError, TypeError):
                broken = "An expert sent an event that is no completion"
                raise Refused(grpc.StatusCode.INTERNAL, broken, again=True) from None
            if failed:
                message = failed.get("message") if isinstance(failed, dict) else failed
                raise Refused(grpc.StatusCode.UNKNOWN, str(message), again=True)
            if text:
                yield text


def text_response(model: str, request_id: str, text: str) -> service_pb2.ModelInferResponse:
    """A KServe response that carries `text`."""
    response = service_pb2.ModelInferResponse(model_name=model, model_version="1", id=request_id)
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
    response.raw_output_contents.append(serialize_byte_tensor(np.array([text.encode()], dtype=object)).item())
    return response


def count_response(model: str, request_id: str, tokens: int) -> service_pb2.ModelInferResponse:
    """A KServe response without text that tells how many tokens the answer has: a server that is behind puts several
    into one event."""
    response = service_pb2.ModelInferResponse(model_name=model, model_version="1", id=request_id)
    response.parameters["erlab_output_tokens"].int64_param = tokens
    return response


def _messages(body: dict) -> list[tuple[str, str]]:
    """A chat's (role, text) pairs."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(_BAD, f"'messages' must be a list of messages. Got {_short(messages)}.")
    pairs = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else None for part in content]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
        if not (isinstance(role, str) and isinstance(content, str)):
            raise Refused(_BAD, "Each of the 'messages' must have a 'role' and a 'content' of text.")
        pairs.append((role, content))
    return pairs


def _max_tokens(kind: str, body: dict) -> int:
    asked = body.get("max_completion_tokens", body.get("max_tokens"))
    if asked is None:
        return DEFAULT_TOKENS[kind]
    if not isinstance(asked, int) or isinstance(asked, bool) or not 1 <= asked < 2**31:
        raise Refused(_BAD, f"'max_tokens' must be a whole number from 1. Got {_short(asked)}.")
    return asked


def _encodable(text: str) -> str:
    """The text if it is one: JSON can hold half of a surrogate pair, which is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(_BAD, "The prompt must be text. Got half of a surrogate pair.") from None
    return text


def _short(value: object) -> str:
    """What came, without what it says: a prompt has no place in an error message."""
    return type(value).__name__ if isinstance(value, list | dict | str) else repr(value)
