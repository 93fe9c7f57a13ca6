"""Translation between OpenAI's completions and KServe's messages.

The tensors are TensorRT-LLM's (`erlab.gateway.kserve`); a response carries one token's text. A parameter that the model
does not declare as an input (such as `temperature`) is refused by name, unless its value has no effect: temperature 1
or, for a model whose configuration has the parameter `greedy`, what never changes the most likely token. So is a
parameter that no such model supports (such as `tools`). Null means absent in all of OpenAI's parameters. Answers of
Triton models have no `usage`, since the gateway cannot count their prompt tokens, and clients add up what they find
there.

>>> prompt("chat/completions", {"messages": [{"role": "user", "content": "What is a watt?"}]})
'What is a watt?'
"""

import codecs
import json
import math
import struct
import time
import uuid

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from erlab.gateway import kserve
from erlab.gateway.errors import Kind, RequestError

DEFAULT_TOKENS = {"completions": 16, "chat/completions": 256}  # for chats OpenAI's default is the model's limit
DONE = b"data: [DONE]\n\n"
_REAL, _LARGEST = "a finite number", float(np.finfo(np.float32).max)
# Parameters of OpenAI and vLLM: tensor, KServe datatype, numpy type, allowed values, values without effect.
_TENSORS = {
    "temperature": ("temperature", "FP32", np.float32, _REAL, (1,)),
    "top_p": ("top_p", "FP32", np.float32, _REAL, (1,)),
    "top_k": ("top_k", "INT32", np.int32, f"a whole number from {-(2**31)} to {2**31 - 1}", (0, -1)),
    "min_p": ("min_p", "FP32", np.float32, _REAL, (0,)),
    "frequency_penalty": ("frequency_penalty", "FP32", np.float32, _REAL, (0,)),
    "presence_penalty": ("presence_penalty", "FP32", np.float32, _REAL, (0,)),
    "repetition_penalty": ("repetition_penalty", "FP32", np.float32, _REAL, (1,)),
    "min_tokens": ("min_tokens", "INT32", np.int32, f"a whole number from {-(2**31)} to {2**31 - 1}", (0,)),
    "seed": ("random_seed", "UINT64", np.uint64, f"a whole number from 0 to {2**64 - 1}", ()),
}
_OF_SAMPLING = ("top_p", "top_k", "min_p", "seed")  # without effect on the most likely token
_TYPED = {"INT32": "int_contents", "FP32": "fp32_contents", "UINT64": "uint64_contents", "BYTES": "bytes_contents"}
# Parameters that Triton models do not support, and the value beside null that has no effect, if there is one.
_BEYOND = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "modalities": ["text"],
    "audio": None,
    "web_search_options": None,
    "prompt_embeds": None,
    "prompt_logprobs": None,
    "structured_outputs": None,
    "guided_json": None,
    "guided_regex": None,
    "guided_choice": None,
    "guided_grammar": None,
    "use_beam_search": False,
}
_BEYOND_MESSAGES = ("tool_calls", "function_call", "audio")


class StatusError(RequestError):
    """A request error with its own HTTP status, such as an expert's.

    Args:
        kind, message, retriable: As of `RequestError`.
        status: HTTP status for the client.
        about: OpenAI's `type`, `code` and `param`, as far as known.
    """

    def __init__(self, kind: Kind, message: str, retriable: bool, status: int, about: dict | None = None):
        super().__init__(kind, message, retriable)
        self.status, self.about = status, about or {}


def _invalid(message: str) -> RequestError:
    return RequestError(Kind.INVALID_ARGUMENT, message)


def prompt(kind: str, body: dict) -> str:
    """Return the text to classify: the prompt or prompts, or the user's messages, else all messages.

    It is empty if there is no text: prompts may be token ids, messages images. Raises RequestError if the field is
    missing or of the wrong type.
    """
    if kind == "completions":
        prompts = body.get("prompt")
        if isinstance(prompts, str):
            return prompts
        if not isinstance(prompts, list) or not prompts:
            allowed = "a text, a list of texts or a list of token ids"
            raise _invalid(f"The 'prompt' must be {allowed}. Got {_short(prompts)}.")
        return "\n".join(text for text in prompts if isinstance(text, str))
    messages = [message for message in _messages(body) if isinstance(message, dict)]
    of_user = [message for message in messages if message.get("role") == "user"]
    return _texts(of_user) or _texts(messages)


def choices(kind: str, body: dict) -> int:
    """Return the number of choices of the answer."""
    each, prompts = body.get("n"), body.get("prompt")
    each = each if isinstance(each, int) and each > 1 else 1
    several = kind == "completions" and isinstance(prompts, list) and not any(isinstance(p, int) for p in prompts)
    return each * len(prompts) if several else each


def to_kserve(
    kind: str, body: dict, declared: frozenset[str], greedy: bool = False
) -> service_pb2.ModelInferRequest:
    """Build the KServe request to a model; raises RequestError if the model cannot serve it.

    Args:
        kind: "completions" or "chat/completions".
        body: The client's request.
        declared: Names of the model's inputs.
        greedy: Whether the model always takes the most likely token.
    """
    for name, nothing in _BEYOND.items():
        value = body.get(name)
        if value is not None and (type(value), value) != (type(nothing), nothing):
            allowed = "absent" if nothing is None else json.dumps(nothing)
            raise _invalid(f"{name!r} must be {allowed} for this expert. Got {_short(value)}.")
    request = kserve.request("", _one_text(kind, body), _max_tokens(kind, body))
    for name, (tensor, datatype, numpy_type, allowed, neutral) in _TENSORS.items():
        value = body.get(name)
        if value is None:
            continue
        if not (_is_real(value) if datatype == "FP32" else _is_whole(value, numpy_type)):
            raise _invalid(f"{name!r} must be {allowed} for this expert. Got {_short(value)}.")
        if tensor in declared:
            request.inputs.add(name=tensor, datatype=datatype, shape=[1, 1])
            request.raw_input_contents.append(numpy_type(value).tobytes())
        elif value not in neutral and not (greedy and (name in _OF_SAMPLING or (name, value) == ("temperature", 0))):
            fits = " or ".join(map(str, ("absent", *neutral)))
            fits += " for this expert, whose model has no such input"
            raise _invalid(f"{name!r} must be {fits}. Got {_short(value)}.")
    stop = body.get("stop") or []
    words = [stop] if isinstance(stop, str) else stop
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise _invalid(f"'stop' must be text or a list of texts. Got {_short(stop)}.")
    if words and "stop_words" not in declared:
        raise _invalid(f"'stop' must be absent for this expert, whose model has no stop words. Got {_short(stop)}.")
    if words:
        request.inputs.add(name="stop_words", datatype="BYTES", shape=[1, len(words)])
        array = np.array([word.encode() for word in words], dtype=object)
        request.raw_input_contents.append(serialize_byte_tensor(array).item())
    return request


def from_kserve(text: str, request: service_pb2.ModelInferRequest) -> dict:
    """Build the body of a streamed completion from a KServe request whose prompt is `text`."""
    body = {"prompt": text, "stream": True}
    names = {"max_tokens": ("max_tokens", np.int32)} | {t: (n, k) for n, (t, _, k, *_) in _TENSORS.items()}
    for place, tensor in enumerate(request.inputs):
        if tensor.name not in names and tensor.name != "stop_words":
            continue
        try:
            if place < len(request.raw_input_contents):
                content = request.raw_input_contents[place]
                kind = names[tensor.name][1] if tensor.name in names else None
                values = np.frombuffer(content, kind).tolist() if kind else deserialize_bytes_tensor(content).tolist()
            else:
                values = list(getattr(tensor.contents, _TYPED[tensor.datatype]))
            if tensor.name == "stop_words":
                body["stop"] = [word.decode() for word in values]
            elif math.isfinite(values[0]):
                body[names[tensor.name][0]] = values[0]
            else:
                raise ValueError(f"{values[0]} is not finite")
        except (ValueError, LookupError, TypeError, AttributeError, struct.error) as e:
            raise _invalid(f"The {tensor.name!r} tensor doesn't hold what it should: {e}.") from None
    return body


class CompletionWriter:
    """Writer of an answer of `model` in OpenAI's format: `piece` and `end` return the bytes to send, if any."""

    def __init__(self, kind: str, body: dict, model: str):
        self._chat, self._stream = kind != "completions", bool(body.get("stream"))
        self._limit = _max_tokens(kind, body)
        options = body.get("stream_options") or {}
        if not isinstance(options, dict):
            raise _invalid(f"'stream_options' must be an object. Got {_short(options)}.")
        self._texts: list[str] = []
        self._tokens = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may span several tokens
        kind = ("chat.completion" + ".chunk" * self._stream) if self._chat else "text_completion"
        prefix = "chatcmpl-" if self._chat else "cmpl-"
        self._head = {"id": prefix + uuid.uuid4().hex, "object": kind}
        self._head |= {"created": int(time.time()), "model": model}
        self._role = {"role": "assistant"}  # in the first event only, since clients concatenate deltas
        self._frame()

    def _frame(self) -> None:
        """Build the parts of an event around its text once per answer."""
        marker = "\0"
        whole = json.dumps(self._head | {"choices": [self._choice(marker, None)]})
        self._before, self._after = (f"data: {whole}\n\n").split(json.dumps(marker))

    def _choice(self, text: str | None, finish: str | None) -> dict:
        choice = {"index": 0, "logprobs": None, "finish_reason": finish}
        if not self._chat:
            return choice | {"text": text or ""}
        if not self._stream:
            return choice | {"message": {"role": "assistant", "content": text}}
        return choice | {"delta": self._role if text is None else self._role | {"content": text}}

    def piece(self, content: bytes) -> bytes:
        """Take one token's bytes; returns the event to send."""
        if not content:
            return b""
        self._tokens += 1
        return self._write(self._decoder.decode(content))

    def _write(self, text: str) -> bytes:
        if not text:
            return b""
        if not self._stream:
            self._texts.append(text)
            return b""
        event = f"{self._before}{json.dumps(text)}{self._after}".encode()
        if self._role:
            self._role = {}
            self._frame()
        return event

    def end(self) -> bytes:
        """Return the end of the stream, or the whole JSON document."""
        finish = "length" if self._tokens >= self._limit else "stop"
        rest = self._write(self._decoder.decode(b"", final=True))
        if not self._stream:
            return json.dumps(self._head | {"choices": [self._choice("".join(self._texts), finish)]}).encode()
        return rest + _event(self._head | {"choices": [self._choice(None, finish)]}) + DONE


def error_body(error: RequestError) -> dict:
    """Return an error in OpenAI's format."""
    about = {"type": None, "param": None, "code": None}
    if isinstance(error, StatusError):
        about |= error.about
    about["type"] = about["type"] or _TYPES.get(error.kind, "server_error")
    about["code"] = about["code"] or error.kind
    return {"error": {"message": str(error)} | about}


def error_event(error: RequestError) -> bytes:
    """Return an error as an event of a stream."""
    return _event(error_body(error))


_TYPES = {
    Kind.INVALID_ARGUMENT: "invalid_request_error",
    Kind.NOT_FOUND: "invalid_request_error",
    Kind.PERMISSION_DENIED: "invalid_request_error",
    Kind.UNAUTHENTICATED: "authentication_error",
    Kind.RESOURCE_EXHAUSTED: "rate_limit_error",
}


def _event(content: dict) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def text_response(model: str, request_id: str, text: str) -> service_pb2.ModelInferResponse:
    """Build a KServe response that carries `text`."""
    response = service_pb2.ModelInferResponse(model_name=model, model_version="1", id=request_id)
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
    response.raw_output_contents.append(serialize_byte_tensor(np.array([text.encode()], dtype=object)).item())
    return response


def count_response(model: str, request_id: str, tokens: int) -> service_pb2.ModelInferResponse:
    """Build a KServe response without text that states the answer's token count.

    A server under load may put several tokens into one event, so responses cannot be counted instead.
    """
    response = service_pb2.ModelInferResponse(model_name=model, model_version="1", id=request_id)
    response.parameters["erlab_output_tokens"].int64_param = tokens
    return response


def _messages(body: dict) -> list:
    """Return a chat's messages, unchecked."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _invalid(f"'messages' must be a list of messages. Got {_short(messages)}.")
    return messages


def _texts(messages: list[dict]) -> str:
    """Join the texts of messages by line breaks."""
    texts = []
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        parts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        texts.append("".join(part for part in parts if isinstance(part, str)))
    return "\n".join(filter(None, texts))


def _one_text(kind: str, body: dict) -> str:
    """Return the prompt for a model without a chat template; raises RequestError if it is not all text."""
    if kind == "completions":
        prompts = body.get("prompt")
        prompts = prompts[0] if isinstance(prompts, list) and len(prompts) == 1 else prompts
        if not isinstance(prompts, str):
            raise _invalid(f"The 'prompt' must be one text for this expert. Got {_short(body.get('prompt'))}.")
        return prompts
    pairs = []
    for message in _messages(body):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _invalid("Each of the 'messages' must be an object with a 'role'.")
        for name in _BEYOND_MESSAGES:
            if message.get(name):
                raise _invalid(f"'messages' must have no {name!r} for this expert. Got {_short(message[name])}.")
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            known = isinstance(part, dict) and part.get("type", "text") == "text"
            if not known or not isinstance(part.get("text"), str):
                got = part.get("type") if isinstance(part, dict) and not known else _short(content)
                raise _invalid(f"'messages' must have a 'content' of text for this expert. Got {str(got)[:40]}.")
        pairs.append((message["role"], "".join(part["text"] for part in parts)))
    if len(pairs) == 1:
        return pairs[0][1]
    return "\n".join([f"{role}: {text}" for role, text in pairs] + ["assistant:"])


def _max_tokens(kind: str, body: dict) -> int:
    name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    asked = body.get(name)
    if asked is None:
        return DEFAULT_TOKENS[kind]
    if not isinstance(asked, int) or isinstance(asked, bool) or not 1 <= asked < 2**31:
        raise _invalid(f"{name!r} must be a whole number from 1 to {2**31 - 1}. Got {_short(asked)}.")
    return asked


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_whole(value: object, numpy_type: type) -> bool:
    bounds = np.iinfo(numpy_type)
    return isinstance(value, int) and not isinstance(value, bool) and int(bounds.min) <= value <= int(bounds.max)


def _short(value: object) -> str:
    """What came, without what it says: a prompt has no place in an error message."""
    return type(value).__name__ if isinstance(value, list | dict | str) else repr(value)[:40]
