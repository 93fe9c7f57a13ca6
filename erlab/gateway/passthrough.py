"""A gateway without a router: a KServe v2 server whose models are OpenAI-compatible servers, each under its own name.

Baselines on such servers are measured through it, so that their users speak the same protocol and their answers take
the same translation as those behind the routing gateway; what differs is the routing. No expert is probed: without a
gateway nobody would, and a request that its server leaves unanswered ends by its own deadline.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from erlab.gateway.decide import Decider
from erlab.gateway.dispatch import Dispatcher
from erlab.gateway.door import Door
from erlab.gateway.expert import Expert
from erlab.gateway.metrics import Metrics
from erlab.gateway.server import DRAIN_SECONDS, Settings, allow_many_files, listen
from erlab.gateway.service import Service
from erlab.gateway.upstreams import Upstreams
from erlab.spec import require


@asynccontextmanager
async def passing(names: tuple[str, ...], settings: Settings) -> AsyncIterator[dict[str, str]]:
    """The address at which ``settings.experts`` answer under these names, while they do."""
    allowed = f"name each of the {len(settings.experts)} experts once"
    require(len(set(names)) == len(settings.experts), "--names", "the gateway", allowed, ",".join(names))
    allow_many_files()
    async with AsyncExitStack() as stack:
        upstreams, named = Upstreams(stack, settings.upstream), zip(names, settings.experts)
        experts = tuple([Expert(name, await upstreams.open(address), settings.limits) for name, address in named])
        dispatch = Dispatcher(None, Decider(experts, ()), settings.limits, Metrics(experts))
        door = Door(Service(dispatch, settings.limits, routes=False), settings.limits, settings.key)
        try:
            yield {"address": await listen(door, settings)}
        finally:
            await door.close(DRAIN_SECONDS)
