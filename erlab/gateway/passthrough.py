"""Gateway without a router: a KServe v2 server whose models are OpenAI-compatible servers.

Baselines on such servers are measured through it. Their users speak the same protocol, and their answers take the same
translation, as behind the routing gateway; only the routing differs. Experts are not probed, as without a gateway: a
request that its server leaves unanswered ends by its deadline.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from erlab.gateway.core import Decider, Dispatcher, ServedExpert
from erlab.gateway.metrics import Metrics
from erlab.gateway.server import DRAIN_SECONDS, Settings, allow_many_files, listen
from erlab.gateway.wire.grpc_server import GrpcServer
from erlab.gateway.wire.kserve_face import KServeFace
from erlab.gateway.wire.upstreams import Upstreams
from erlab.spec import require


@asynccontextmanager
async def passing(names: tuple[str, ...], settings: Settings) -> AsyncIterator[dict[str, str]]:
    """Serve `settings.experts` under these names, in order; yields the gRPC `address`."""
    allowed = f"name each of the {len(settings.experts)} experts once"
    require(len(set(names)) == len(settings.experts), "--names", "the gateway", allowed, ",".join(names))
    allow_many_files()
    async with AsyncExitStack() as stack:
        upstreams, named = Upstreams(stack, settings.upstream), zip(names, settings.experts)
        experts = tuple([ServedExpert(name, await upstreams.open(address), settings.limits) for name, address in named])
        dispatch = Dispatcher(None, Decider(experts, ()), settings.limits, Metrics(experts))
        grpc_server = GrpcServer(KServeFace(dispatch, settings.limits, routes=False), settings.limits, settings.key)
        try:
            yield {"address": await listen(grpc_server, settings)}
        finally:
            await grpc_server.close(DRAIN_SECONDS)
