"""A gateway within an event loop: its experts, its faces, and how they begin and end together."""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc

from erlab.errors import ErlabError
from erlab.gateway.decide import Classifier, Decider
from erlab.gateway.dispatch import Dispatcher
from erlab.gateway.expert import Expert
from erlab.gateway.limits import Limits
from erlab.gateway.metrics import Metrics
from erlab.gateway.service import RoutingService
from erlab.gateway.triton import CHANNEL_OPTIONS, TritonModel
from erlab.routing import PromptRouter
from erlab.spec import require
from erlab.triton import client

DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Settings:
    """What a gateway is told: where its experts are, how it chooses among them, where it listens."""

    upstream: str
    experts: tuple[str, ...]
    policy: str = "nearest"
    limits: Limits = Limits()
    host: str = "127.0.0.1"
    port: int = 0
    key: str | None = None


@asynccontextmanager
async def serving(router: PromptRouter, settings: Settings) -> AsyncIterator[dict[str, str]]:
    """The gateway's addresses, while it serves; on leaving it drains, for DRAIN_SECONDS at most."""
    names, clusters = settings.experts, len(router.centers_)
    allowed = f"name 1 to {clusters} Triton models, as many as the router has clusters at most"
    require(all(names) and len(names) <= clusters, "--experts", "the gateway", allowed, ",".join(names))
    _allow_many_files()
    limits = settings.limits
    async with AsyncExitStack() as stack:
        address = client.address(settings.upstream)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS))
        distinct = tuple(dict.fromkeys(names))
        experts = tuple(Expert(name, TritonModel(channel, name), limits) for name in distinct)
        places = [distinct.index(names[c % len(names)]) for c in range(clusters)]
        decide = Decider(experts, places, settings.policy)
        dispatch = Dispatcher(Classifier(router), decide, limits, Metrics(experts))
        service = RoutingService(dispatch, channel, distinct[0], settings.key)
        server = grpc.aio.server(options=_options(limits))
        server.add_generic_rpc_handlers([service])
        try:
            port = server.add_insecure_port(f"{settings.host}:{settings.port}")
        except RuntimeError:
            where = f"{settings.host}:{settings.port}"
            raise ErlabError(f"The gateway cannot listen on {where}: the port is in use.") from None
        tending = [asyncio.create_task(expert.tend()) for expert in experts]
        await server.start()
        try:
            yield {"address": f"{settings.host}:{port}"}
        finally:
            await server.stop(DRAIN_SECONDS)
            for task in tending:
                task.cancel()


def _options(limits: Limits) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", client.MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),
        ("grpc.server_handshake_timeout_ms", 10_000),  # connections on which nothing is ever said
        ("grpc.so_reuseport", 0),  # with it a second gateway would silently share a port in use
    )


def _allow_many_files() -> None:
    """A connection is an open file, and the usual limit of 1,024 is only the soft one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
