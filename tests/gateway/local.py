"""A gateway in a thread of this process: starts in milliseconds where a test needs no process of its own."""

import asyncio
import threading
from functools import cache

from erlab.gateway import fleet
from erlab.gateway.server import serving


@cache
def loop() -> asyncio.AbstractEventLoop:
    """One for all: gRPC's events for a loop that is closed would disturb the others."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, daemon=True).start()
    return made


class Local:
    """`with Local(router, upstream, experts, limits=...) as gateway: gateway.address`, as of `fleet.from_clusters`."""

    def __init__(self, router, upstream=None, experts=(), key=None, config=None, **settings):
        config = config or fleet.from_clusters("in memory", upstream, experts, **settings)
        self._serving = serving(config, router, key=key)

    def __enter__(self) -> "Local":
        self.service = self._run(self._serving.__aenter__())
        self.addresses = self.service.addresses
        self.address = self.addresses["address"]
        return self

    def reload(self, config) -> None:
        self._run(self.service.reload(config))

    def __exit__(self, *_):
        self._run(self._serving.__aexit__(None, None, None))

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop()).result(120)


class Passing(Local):
    """The same without a router: `experts` under `names`."""

    def __init__(self, names, upstream, experts, **settings):
        self._serving = serving(fleet.from_clusters(None, upstream, experts, names, **settings))
