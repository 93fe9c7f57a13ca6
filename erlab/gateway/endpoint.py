"""An expert behind an OpenAI-compatible HTTP server (vLLM, trtllm-serve, NIM): its answers relayed as they are."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import grpc

from erlab.gateway import messages, openai
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
    """The model `model` under the URL `base`, which ends in /v1; an `expert.Upstream`."""

    def __init__(self, session: aiohttp.ClientSession, base: str, model: str):
        self._session, self._base, self._model = session, base.rstrip("/"), model

    async def openai(self, kind: str, body: dict, sink: Sink) -> None:
        async with self._post(kind, body) as response:
            if not body.get("stream"):
                sink.piece(await response.read())
                return
            tail = b""
            while piece := await response.content.readany():
                tail = (tail + piece)[-32:]
                sink.piece(piece)
                if sink.paused:
                    await sink.resumed()
        if b"[DONE]" not in tail:
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
            async with self._post("completions", {"prompt": "ping", "max_tokens": 1}) as response:
                await response.read()
        except Refused as e:
            if e.again and e.code is not _CODE.RESOURCE_EXHAUSTED:
                raise  # all other refusals are answers of a server that works

    @asynccontextmanager
    async def _post(self, kind: str, body: dict) -> AsyncIterator[aiohttp.ClientResponse]:
        content = json.dumps(body | {"model": self._model}).encode()
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(f"{self._base}/{kind}", data=content, headers=headers) as response:
                if response.status != 200:
                    raise await self._refused(response)
                yield response
        except aiohttp.ClientError as e:
            raise Refused(_CODE.UNAVAILABLE, f"{self._model}: {type(e).__name__}", again=True) from None

    async def _refused(self, response: aiohttp.ClientResponse) -> Refused:
        code = _CODES.get(response.status, _CODE.INVALID_ARGUMENT if response.status < 500 else _CODE.UNAVAILABLE)
        try:
            said = json.loads(await response.read())
            message = said["error"]["message"] if "error" in said else said["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{self._model} answered with HTTP status {response.status}"
        return Refused(code, str(message), again=response.status in (408, 429) or response.status >= 500)


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
