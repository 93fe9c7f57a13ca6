"""Upstream on an OpenAI-compatible HTTP server (vLLM, trtllm-serve, NIM), whose answers are relayed unchanged.

A client's body is forwarded as received, except for `model`. Of a stream, whole events are relayed until [DONE]; the
client's [DONE] follows when the answer has proved complete.
"""

import codecs
import json

from erlab.gateway.core import Sink
from erlab.gateway.errors import Kind, RequestError
from erlab.gateway.wire import events, http1, messages, openai
from erlab.gateway.wire.answers import Completion, completion, http_error
from erlab.gateway.wire.interface import Headers, Onward, Unpaused


class OpenAIModel:
    """Model of a server, whose base URL ends in /v1; an `interface.Upstream`."""

    def __init__(self, server: http1.HTTPClient, model: str):
        self._server, self._model = server, model

    async def openai(self, kind: str, body: dict, sink: Sink) -> None:
        if body.get("stream"):
            await self._stream(kind, body, _Relayed(sink, Completion(self._model, openai.choices(kind, body))))
            sink.piece(openai.DONE)
        else:
            sink.piece(completion(self._model, await self._post(kind, body)))

    async def kserve(self, request, data: bytes, headers: Headers, sink: Sink) -> None:
        def respond(text: str) -> None:
            sink.piece(messages.streamed(openai.text_response(self._model, request.id, text)))

        usage = await self._texts(request, sink, respond)
        if isinstance(tokens := usage.get("completion_tokens"), int):
            sink.piece(messages.streamed(openai.count_response(self._model, request.id, tokens)))

    async def infer(self, request, data: bytes, headers: Headers) -> bytes:
        texts: list[str] = []
        await self._texts(request, _Quiet(), texts.append)
        return openai.text_response(self._model, request.id, "".join(texts)).SerializeToString()

    async def probe(self) -> None:
        try:
            completion(self._model, await self._post("completions", {"prompt": "ping", "max_tokens": 1}))
        except RequestError as e:
            if e.retriable and e.kind is not Kind.RESOURCE_EXHAUSTED:
                raise  # any other error proves that the server works

    async def _texts(self, request, sink: Sink, take) -> dict:
        """Pass the texts of the answer to a KServe request to `take`; returns the usage."""
        body = openai.from_kserve(messages.prompt(request), request) | {"stream_options": {"include_usage": True}}
        answer = _ToTexts(sink, Completion(self._model, 1), take)
        await self._stream("completions", body, answer)
        answer.end()
        return answer.completion.usage

    async def _stream(self, kind: str, body: dict, answer: "_Stream") -> None:
        await self._post(kind, body, answer)
        answer.completion.check(bytes(answer.events.rest))

    async def _post(self, kind: str, body: dict, sink: Sink | None = None) -> bytes:
        """Post a request; returns the answer, unless it goes to `sink`."""
        try:
            content = json.dumps(body | {"model": self._model}).encode()
        except RecursionError:
            raise RequestError(Kind.INVALID_ARGUMENT, "The request's body is nested too deeply.") from None
        try:
            status, answer = await self._server.post(kind, content, sink)
        except http1.HTTPFailure as e:
            raise RequestError(Kind.UNAVAILABLE, f"{self._model}: {e}", retriable=True) from None
        if status != 200:
            raise http_error(self._model, status, answer)
        return answer


class _Stream(Onward):
    """Sink of an event stream."""

    def __init__(self, sink: Sink, completion: Completion):
        super().__init__(sink)
        self.completion, self.events = completion, events.Events()


class _Relayed(_Stream):
    """Sink that relays whole events, from the first with data on, so that a failure before it can be retried."""

    def __init__(self, sink: Sink, completion: Completion):
        super().__init__(sink, completion)
        self._begun = False
        self._going_on: bytes | None = None  # in the next read, if that is one event from the middle of the answer

    def piece(self, data: bytes) -> None:
        # Most reads are such an event, and recognizing it is cheaper than parsing.
        if self._going_on and self._going_on in data and data.endswith(b"}\n\n") and data.count(b"\n") == 2:
            return self._sink.piece(data)
        whole, going_on = [], self.completion.going_on
        try:
            for event in self.events.take(data):
                content = events.data(event)
                if not (going_on and going_on in content):
                    self.completion.read(content)
                if self.completion.done:
                    raise http1.Enough
                self._begun = self._begun or bool(content)
                if self._begun:
                    whole.append(event)
        finally:
            self._going_on = None if self.events.rest else self.completion.going_on
            self._sink.piece(b"".join(whole))  # or a sign of life


class _ToTexts(_Stream):
    """Sink that passes the texts to `take`, or an empty one if a complete answer has none."""

    def __init__(self, sink: Sink, completion: Completion, take):
        super().__init__(sink, completion)
        self._take, self._taken = take, False
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")  # a surrogate pair may span events

    def piece(self, data: bytes) -> None:
        self._sink.piece(b"")
        for event in self.events.take(data):
            self._give(self.completion.read(events.data(event)))
            if self.completion.done:
                raise http1.Enough

    def end(self) -> None:
        self._give("", final=True)
        if not self._taken:
            self._take("")

    def _give(self, text: str, final: bool = False) -> None:
        if text := self._decoder.decode(text.encode("utf-16-le", "surrogatepass"), final):
            self._taken = True
            self._take(text)


class _Quiet(Unpaused):
    """Sink that ignores signs of life."""

    def piece(self, data: bytes) -> None:
        return
