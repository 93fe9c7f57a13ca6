"""An expert behind an OpenAI-compatible HTTP server (vLLM, trtllm-serve, NIM): its answers relayed as they are."""

import json

import grpc

from erlab.gateway import http1, messages, openai
from erlab.gateway.expert import Headers, Onward, Sink, Unpaused
from erlab.gateway.limits import Refused

_CODE = grpc.StatusCode
_CODES = {
    401: _CODE.PERMISSION_DENIED,
    403: _CODE.PERMISSION_DENIED,
    404: _CODE.NOT_FOUND,
    429: _CODE.RESOURCE_EXHAUSTED,
}


class OpenAIModel:
    """The model `model` of `server`, whose base URL ends in /v1; an `expert.Upstream`."""

    def __init__(self, server: http1.Client, model: str):
        self._server, self._model = server, model

    async def openai(self, kind: str, body: dict, sink: Sink) -> None:
        if not body.get("stream"):
            sink.piece(await self._post(kind, body))
            return
        if b"[DONE]" not in await self._post(kind, body, sink):
            raise Refused(_CODE.UNAVAILABLE, f"{self._model} ended its answer too early", again=True)

    async def kserve(self, request, data: bytes, headers: Headers, sink: Sink) -> None:
        answer = _Translated(self._model, request.id, sink)
        await self.openai("completions", _asked(request), answer)
        if isinstance(tokens := answer.texts.usage.get("completion_tokens"), int):
            sink.piece(messages.streamed(openai.count_response(self._model, request.id, tokens)))

    async def infer(self, request, data: bytes, headers: Headers) -> bytes:
        whole = _Whole()
        await self.openai("completions", _asked(request), whole)
        return openai.text_response(self._model, request.id, "".join(whole.got)).SerializeToString()

    async def probe(self) -> None:
        try:
            await self._post("completions", {"prompt": "ping", "max_tokens": 1})
        except Refused as e:
            if e.again and e.code is not _CODE.RESOURCE_EXHAUSTED:
                raise  # all other refusals are answers of a server that works

    async def _post(self, kind: str, body: dict, sink: Sink | None = None) -> bytes:
        """The answer, or its end where it goes to `sink`."""
        content = json.dumps(body | {"model": self._model}).encode()
        try:
            status, answer = await self._server.post(kind, content, sink)
        except http1.Broken as e:
            raise Refused(_CODE.UNAVAILABLE, f"{self._model}: {e}", again=True) from None
        if status != 200:
            raise self._refused(status, answer)
        return answer

    def _refused(self, status: int, answer: bytes) -> Refused:
        code = _CODES.get(status, _CODE.INVALID_ARGUMENT if status < 500 else _CODE.UNAVAILABLE)
        try:
            said = json.loads(answer)
            message = said["error"]["message"] if "error" in said else said["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{self._model} answered with HTTP status {status}"
        return Refused(code, str(message), again=status in (408, 429) or status >= 500)


def _asked(request) -> dict:
    """The body that asks for what a KServe request asks for."""
    return openai.from_kserve(messages.prompt(request), request) | {"stream_options": {"include_usage": True}}


class _Translated(Onward):
    """An event stream on its way into KServe's responses."""

    def __init__(self, model: str, request_id: str, sink: Sink):
        super().__init__(sink)
        self._model, self._id, self.texts = model, request_id, openai.Texts()

    def piece(self, data: bytes) -> None:
        for text in self.texts.read(data):
            self._sink.piece(messages.streamed(openai.text_response(self._model, self._id, text)))


class _Whole(Unpaused):
    """Keeps the texts of an event stream."""

    def __init__(self):
        self.got: list[str] = []
        self._texts = openai.Texts()

    def piece(self, data: bytes) -> None:
        self.got += self._texts.read(data)
