"""A gateway in a thread of this process: starts in milliseconds where a test needs no process of its own."""

import asyncio
import threading
from functools import cache

from erlab.gateway.passthrough import passing
from erlab.gateway.server import Settings, serving


@cache
def loop() -> asyncio.AbstractEventLoop:
    """One for all: gRPC's events for a loop that is closed would disturb the others."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, daemon=True).start()
    return made


class Local:
    """`with Local(router, upstream, experts, limits=...) as gateway: gateway.address`; parameters as `Settings`."""

    def __init__(self, router, upstream, experts, **settings):
        self._serving = serving(router, Settings(upstream, experts, **settings))

    def __enter__(self) -> "Local":
        self.addresses = self._run(self._serving.__aenter__())
        self.address = self.addresses["address"]
        return self

    def __exit__(self, *_):
        self._run(self._serving.__aexit__(None, None, None))

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop()).result(20)


class Passing(Local):
    """The same without a router: `experts` under `names`."""

    def __init__(self, names, upstream, experts, **settings):
        self._serving = passing(names, Settings(upstream, experts, **settings))
