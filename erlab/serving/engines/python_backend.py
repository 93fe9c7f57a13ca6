"""Base class of text models for Triton's Python backend.

Tensors are those of TensorRT-LLM's ensemble: inputs `text_input`, `max_tokens` and optionally `stream` (default false),
output `text_output`. With `stream`, every token is a response, and the last one carries the final flag; without, the
whole text is one response. Triton passes malformed requests on, so they are checked here and get one error each.

Triton's thread checks and queues requests, one thread steps the engine, and one sends responses, which takes as long as
a step of a small model. An engine that computes waits until its tokens are sent: on a busy core the sender would get
neither the core nor the interpreter's lock, and answers would arrive all at once at their end.
"""

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np

from erlab.errors import ErlabError
from erlab.serving.engines.batching import Batch

with suppress(ImportError):
    import triton_python_backend_utils as pb_utils  # exists in Triton's stub process only

_PUBLISH_SECONDS = 0.25
_METRICS = {  # in order of publication: a counted request has its tokens and times counted before
    "erlab_output_tokens_total": "Tokens generated",
    "erlab_queue_seconds_total": "Time from arrival to the step that admits a request, summed over requests",
    "erlab_first_token_seconds_total": "Time from arrival to the first token, summed over requests",
    "erlab_end_to_end_seconds_total": "Time from arrival to the last token, summed over finished requests",
    "erlab_requests_total": "Requests answered in full",
    "erlab_running_requests": "Requests in the batch",
    "erlab_waiting_requests": "Requests queued in the engine",
    "erlab_kv_tokens": "Tokens of the key-value cache that running requests reserve",
    "erlab_late_seconds": "Time by which emulated steps ended later than they should have, summed; 0 if they compute",
}


@dataclass(eq=False)
class _TritonRequest:
    sender: object
    prompt: Sequence
    max_tokens: int
    stream: bool
    arrived: float = field(default_factory=time.monotonic)
    answer: list[int] = field(default_factory=list)


class TextModel(ABC):
    """Text model that Triton calls. Subclasses load an engine, encode prompts and decode tokens."""

    computes = True  # uses the core, so it waits for the sender
    cancel_checks = 2  # requests per step that are checked for cancellation; a check costs tens of microseconds

    @abstractmethod
    def load(self, name: str, parameters: dict[str, str]) -> Batch:
        """Return the engine, a `Batch` with `submit(request, prompt, max_tokens)` and `step()`."""

    @abstractmethod
    def encode(self, text: str) -> Sequence:
        """Return the tokens of a prompt, with at least one start token before those of the text."""

    @abstractmethod
    def decode(self, tokens: list[int]) -> str: ...

    def text(self, tokens: list[int], arrived: float) -> str:
        """Return the text of a response when it is sent; its request arrived at `arrived` (time.monotonic)."""
        return self.decode(tokens)

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine named in the model's parameters and start the threads."""
        parameters = {k: v["string_value"] for k, v in json.loads(args["model_config"]).get("parameters", {}).items()}
        name = args["model_name"]
        try:
            self._max_input_tokens = number(name, parameters, "max_input_tokens")
            self._max_output_tokens = number(name, parameters, "max_output_tokens")
            self._engine = self.load(name, parameters)
        except ErlabError as e:
            raise pb_utils.TritonModelException(str(e)) from None
        self._metrics = _Metrics(name)
        self._inbox: SimpleQueue[_TritonRequest | None] = SimpleQueue()
        self._outbox: SimpleQueue[list[Callable[[], None]] | None] = SimpleQueue()
        self._engine_thread = threading.Thread(target=self._generate, name="engine", daemon=True)
        self._sender_thread = threading.Thread(target=self._send, name="sender", daemon=True)
        self._engine_thread.start()
        self._sender_thread.start()

    def execute(self, requests: list) -> None:
        """Queue requests; refused ones get one error each. The other threads answer."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._inbox.put(_TritonRequest(sender, *self._checked(request)))
            except ErlabError as e:
                _fail(sender, str(e), pb_utils.TritonError.INVALID_ARG)

    def finalize(self) -> None:
        """Stop the threads; requests in flight get an error."""
        self._inbox.put(None)
        self._engine_thread.join()
        self._outbox.put(None)
        self._sender_thread.join()

    def _checked(self, request: object) -> tuple[Sequence, int, bool]:
        """Return a request's prompt tokens, max_tokens and stream; ErlabError with the message for its client."""
        try:
            prompt = self.encode(_scalar(request, "text_input").decode())
        except UnicodeDecodeError as e:
            got = f"{e.object[e.start]:#04x} at byte {e.start}"
            raise ErlabError(f"'text_input' must be UTF-8 text. Got {got}.") from None
        max_tokens = int(_scalar(request, "max_tokens"))
        if len(prompt) == 1:
            raise ErlabError("'text_input' must not be empty.")
        if len(prompt) > self._max_input_tokens:
            allowed = f"have at most {self._max_input_tokens} tokens (max_input_tokens), its start token included"
            raise ErlabError(f"'text_input' must {allowed}. Got {len(prompt)}.")
        if not 1 <= max_tokens <= self._max_output_tokens:
            allowed = f"be from 1 to {self._max_output_tokens} (max_output_tokens)"
            raise ErlabError(f"'max_tokens' must {allowed}. Got {max_tokens}.")
        return prompt, max_tokens, bool(_scalar(request, "stream", default=False))

    def _generate(self) -> None:
        """Run the engine thread until None arrives: take requests, step, pass tokens to the sender."""
        in_flight: dict[_TritonRequest, None] = {}  # in the order of their next check for cancellation
        while True:
            arrived = [] if in_flight else [self._inbox.get()]
            while not self._inbox.empty():
                arrived.append(self._inbox.get())
            if None in arrived:
                break
            for request in arrived:
                self._engine.submit(request, request.prompt, request.max_tokens)
                in_flight[request] = None
            self._drop_cancelled(in_flight)
            started = time.monotonic()
            try:
                emitted = self._engine.step()
            except Exception as e:  # must neither leave requests waiting nor end the thread
                self._fail_all(in_flight, f"The engine failed: {type(e).__name__}: {e}")
                continue
            messages = [self._answer(r, token, last, started) for r, token, last in emitted]
            if self.computes:
                sent = threading.Event()
                self._outbox.put([*messages, sent.set])
                sent.wait()
            else:
                self._outbox.put(messages)
            for request in (r for r, _, last in emitted if last):
                del in_flight[request]
        self._fail_all(in_flight | dict.fromkeys(r for r in arrived if r), "The model is being unloaded.")

    def _answer(self, request: _TritonRequest, token: int, last: bool, started: float) -> Callable[[], None]:
        """Count the token and return the function that sends it (a no-op unless streaming or last)."""
        now, total = time.monotonic(), self._metrics.totals
        if not request.answer:
            total["erlab_queue_seconds_total"] += started - request.arrived
            total["erlab_first_token_seconds_total"] += now - request.arrived
        request.answer.append(token)
        total["erlab_output_tokens_total"] += 1
        if last:
            total["erlab_end_to_end_seconds_total"] += now - request.arrived
            total["erlab_requests_total"] += 1
        if not (request.stream or last):
            return lambda: None
        tokens, flags = [token] if request.stream else request.answer, _final() if last else 0
        return lambda: request.sender.send(_response(self.text(tokens, request.arrived)), flags)

    def _drop_cancelled(self, in_flight: dict[_TritonRequest, None]) -> None:
        for request in list(in_flight)[: self.cancel_checks]:
            del in_flight[request]
            if request.sender.is_cancelled():
                self._engine.cancel(request)
                message = "The request was cancelled."
                self._outbox.put([lambda r=request: _fail(r.sender, message, pb_utils.TritonError.CANCELLED)])
            else:
                in_flight[request] = None

    def _fail_all(self, in_flight: dict[_TritonRequest, None], message: str) -> None:
        for request in in_flight:
            self._engine.cancel(request)
        self._outbox.put([lambda r=r: _fail(r.sender, message, pb_utils.TritonError.INTERNAL) for r in in_flight])
        in_flight.clear()

    def _send(self) -> None:
        """Run the sender thread: send responses, and publish metrics every `_PUBLISH_SECONDS`."""
        published = time.monotonic()
        while True:
            try:
                messages = self._outbox.get(timeout=_PUBLISH_SECONDS)
            except Empty:
                messages = []
            if messages is None:
                return
            for send in messages:
                try:
                    send()
                except Exception as e:  # such as a client that has gone; other answers go on
                    pb_utils.Logger.log_error(f"A response could not be sent: {type(e).__name__}: {e}")
            if time.monotonic() - published >= _PUBLISH_SECONDS:
                self._metrics.publish(self._engine)
                published = time.monotonic()


class _Metrics:
    """Counters and gauges on Triton's metrics port. Setting one is a call to the server, so not done per token."""

    def __init__(self, model: str):
        self.totals = dict.fromkeys((n for n in _METRICS if n.endswith("_total")), 0.0)
        self._published = dict.fromkeys(_METRICS, 0.0)
        self._families, self._metrics = {}, {}  # families must outlive their metrics
        for name, meaning in _METRICS.items():
            kind = pb_utils.MetricFamily.COUNTER if name in self.totals else pb_utils.MetricFamily.GAUGE
            self._families[name] = pb_utils.MetricFamily(name=name, description=meaning, kind=kind)
            self._metrics[name] = self._families[name].Metric(labels={"model": model})
            if name not in self.totals:
                self._metrics[name].set(0)  # the server keeps values of a process that was killed

    def publish(self, engine: Batch) -> None:
        gauges = (engine.running, engine.waiting, engine.kv_tokens_in_use, engine.late_seconds)
        names = ("erlab_running_requests", "erlab_waiting_requests", "erlab_kv_tokens", "erlab_late_seconds")
        for name, value in {**self.totals, **dict(zip(names, gauges))}.items():
            if value == self._published[name]:
                continue
            if name in self.totals:
                self._metrics[name].increment(value - self._published[name])
            else:
                self._metrics[name].set(value)
            self._published[name] = value


def number(model: str, parameters: dict[str, str], key: str) -> int:
    """Return a whole number of a model's parameters; ErlabError where there is none."""
    value = parameters.get(key, "")
    if not value.isdecimal():
        raise ErlabError(f"The {key!r} parameter of model {model} must be a whole number. Got {value!r}.")
    return int(value)


def _scalar(request: object, name: str, default: object = None) -> object:
    """Return the one value of an input tensor of any shape; `default` if it is not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        if default is None:
            raise ErlabError(f"{name!r} is required.")
        return default
    values = tensor.as_numpy()
    if values.size != 1:
        raise ErlabError(f"{name!r} must hold one value, one prompt a request. Got shape {list(values.shape)}.")
    return values.item()


def _final() -> int:
    return pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def _response(text: str) -> object:
    return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", np.array([[text.encode()]], dtype=object))])


def _fail(sender: object, message: str, code: int) -> None:
    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)), _final())
