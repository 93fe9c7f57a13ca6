"""A gateway in a thread of this process: starts in milliseconds where a test needs no process of its own."""

import asyncio
import threading
from functools import cache

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
        self._router, self._settings = router, Settings(upstream, experts, **settings)

    def __enter__(self) -> "Local":
        self._serving = serving(self._router, self._settings)
        self.addresses = self._run(self._serving.__aenter__())
        self.address = self.addresses["address"]
        return self

    def __exit__(self, *_):
        self._run(self._serving.__aexit__(None, None, None))

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop()).result(20)
