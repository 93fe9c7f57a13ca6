"""A gateway without a router: a KServe v2 server whose models are OpenAI-compatible servers, each under its own name.

Baselines on such servers are measured through it, so that their users speak the same protocol and their answers take
the same translation as those behind the routing gateway; what differs is the routing.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from tritonclient.grpc import service_pb2

from erlab import http2
from erlab.errors import ErlabError
from erlab.gateway import messages
from erlab.gateway.expert import NO_HEADERS, Upstream
from erlab.gateway.limits import Refused
from erlab.gateway.server import DRAIN_SECONDS, Settings, allow_many_files, listen
from erlab.gateway.service import Outlet
from erlab.gateway.triton import INFER, SERVICE, STREAM
from erlab.gateway.upstreams import Upstreams
from erlab.http2.server import Call
from erlab.spec import require

_CODE = grpc.StatusCode
_READY = {
    f"{SERVICE}/ServerLive": service_pb2.ServerLiveResponse(live=True).SerializeToString(),
    f"{SERVICE}/ServerReady": service_pb2.ServerReadyResponse(ready=True).SerializeToString(),
}


@asynccontextmanager
async def passing(names: tuple[str, ...], settings: Settings) -> AsyncIterator[dict[str, str]]:
    """The address at which ``settings.experts`` answer under these names, while they do."""
    allowed = f"name each of the {len(settings.experts)} experts once"
    require(len(set(names)) == len(settings.experts), "--names", "the gateway", allowed, ",".join(names))
    allow_many_files()
    async with AsyncExitStack() as stack:
        upstreams = Upstreams(stack, settings.upstream)
        models = {name: await upstreams.open(expert) for name, expert in zip(names, settings.experts)}
        server = http2.Server(_Service(models), settings.limits.message_bytes, settings.limits.header_bytes)
        try:
            yield {"address": await listen(server, settings)}
        finally:
            await server.close(DRAIN_SECONDS)


class _Service:
    def __init__(self, models: Mapping[str, Upstream]):
        self._models = models

    async def __call__(self, call: Call) -> None:
        method = call.request.method
        if method == STREAM:
            return await self._stream(call)
        data = await call.only()
        try:
            call.send(await self._infer(data) if method == INFER else self._about(method, data))
        except ErlabError as e:
            raise http2.Failed(e.code if isinstance(e, Refused) else _CODE.INVALID_ARGUMENT, str(e)) from None

    async def _stream(self, call: Call) -> None:
        outlet = Outlet(call)

        async def answer(data: bytes) -> None:
            request = service_pb2.ModelInferRequest()
            try:
                request = messages.parse(service_pb2.ModelInferRequest, data)
                await self._model(request.model_name).kserve(request, data, NO_HEADERS, outlet)
            except ErlabError as e:
                outlet.piece(messages.streamed(service_pb2.ModelInferResponse(id=request.id), str(e)))

        async with asyncio.TaskGroup() as tasks:
            while (data := await call.receive()) is not None:
                tasks.create_task(answer(data))

    async def _infer(self, data: bytes) -> bytes:
        request = messages.parse(service_pb2.ModelInferRequest, data)
        return await self._model(request.model_name).infer(request, data, NO_HEADERS)

    def _about(self, method: str, data: bytes) -> bytes:
        if method in _READY:
            return _READY[method]
        if method == f"{SERVICE}/ModelReady":
            known = messages.parse(service_pb2.ModelReadyRequest, data).name in self._models
            return service_pb2.ModelReadyResponse(ready=known).SerializeToString()
        raise Refused(_CODE.UNIMPLEMENTED, "This gateway only hands requests on.")

    def _model(self, name: str) -> Upstream:
        if name not in self._models:
            raise Refused(_CODE.NOT_FOUND, f"There is no model {name!r} here, only {', '.join(self._models)}.")
        return self._models[name]
