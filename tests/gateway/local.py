"""A gateway in a thread of this process: starts in milliseconds where a test needs no process of its own."""

import asyncio
import threading

from erlab.gateway.server import Settings, serving


class Local:
    """`with Local(router, upstream, experts, limits=...) as gateway: gateway.address`; parameters as `Settings`."""

    def __init__(self, router, upstream, experts, **settings):
        self._router, self._settings = router, Settings(upstream, experts, **settings)

    def __enter__(self) -> "Local":
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(up)), daemon=True)
        self._thread.start()
        assert up.wait(20)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, up: threading.Event):
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serving(self._router, self._settings) as addresses:
            self.addresses, self.address = addresses, addresses.get("address")
            up.set()
            await self._stop.wait()
