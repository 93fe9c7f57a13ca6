"""An expert behind an OpenAI-compatible HTTP server (vLLM, trtllm-serve, NIM): its answers relayed as they are.

A client's body goes to it as it came, but for the `model`. Of a stream, whole events are relayed until it has said
[DONE], and a [DONE] follows when the answer has proved whole.
"""

import codecs
import json

import grpc

from erlab.gateway import events, http1, messages, openai
from erlab.gateway.answers import Completion, completion, refused
from erlab.gateway.expert import Headers, Onward, Sink, Unpaused
from erlab.gateway.limits import Refused

_CODE = grpc.StatusCode


class OpenAIModel:
    """The model `model` of `server`, whose base URL ends in /v1; an `expert.Upstream`."""

    def __init__(self, server: http1.Client, model: str):
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
        except Refused as e:
            if e.again and e.code is not _CODE.RESOURCE_EXHAUSTED:
                raise  # all other refusals are answers of a server that works

    async def _texts(self, request, sink: Sink, take) -> dict:
        """Have `take` get the texts of what answers a KServe request; returns the usage."""
        asked = openai.from_kserve(messages.prompt(request), request) | {"stream_options": {"include_usage": True}}
        answer = _Translated(sink, Completion(self._model, 1), take)
        await self._stream("completions", asked, answer)
        answer.end()
        return answer.completion.usage

    async def _stream(self, kind: str, body: dict, answer: "_Stream") -> None:
        await self._post(kind, body, answer)
        answer.completion.check(bytes(answer.events.rest))

    async def _post(self, kind: str, body: dict, sink: Sink | None = None) -> bytes:
        """The answer where it does not go to `sink`."""
        try:
            content = json.dumps(body | {"model": self._model}).encode()
        except RecursionError:
            raise Refused(_CODE.INVALID_ARGUMENT, "The request's body is nested too deeply.") from None
        try:
            status, answer = await self._server.post(kind, content, sink)
        except http1.Broken as e:
            raise Refused(_CODE.UNAVAILABLE, f"{self._model}: {e}", again=True) from None
        if status != 200:
            raise refused(self._model, status, answer)
        return answer


class _Stream(Onward):
    """An event stream on its way to a sink."""

    def __init__(self, sink: Sink, completion: Completion):
        super().__init__(sink)
        self.completion, self.events = completion, events.Events()


class _Relayed(_Stream):
    """Hands whole events on. The first with data is the first to go, so that a failure before it can be retried."""

    def __init__(self, sink: Sink, completion: Completion):
        super().__init__(sink, completion)
        self._begun = False
        self._going_on: bytes | None = None  # what the next read has if it is one event of an answer that goes on

    def piece(self, data: bytes) -> None:
        # Most reads are such an event: it costs less to see that than to take it apart.
        if self._going_on and self._going_on in data and data.endswith(b"}\n\n") and data.count(b"\n") == 2:
            return self._sink.piece(data)
        whole, going_on = [], self.completion.going_on
        try:
            for event in self.events.take(data):
                said = events.data(event)
                if not (going_on and going_on in said):
                    self.completion.read(said)
                if self.completion.done:
                    raise http1.Enough
                self._begun = self._begun or bool(said)
                if self._begun:
                    whole.append(event)
        finally:
            self._going_on = None if self.events.rest else self.completion.going_on
            self._sink.piece(b"".join(whole))  # or a sign of life


class _Translated(_Stream):
    """Has `take` get the texts, an empty one where a whole answer has none."""

    def __init__(self, sink: Sink, completion: Completion, take):
        super().__init__(sink, completion)
        self._take, self._taken = take, False
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")  # events may part a surrogate pair

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
    """A Sink of signs of life that nobody waits for."""

    def piece(self, data: bytes) -> None:
        return
