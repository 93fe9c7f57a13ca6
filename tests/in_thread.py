"""A server of a test's own, on an event loop in a thread: `with` starts it and ends it."""

import asyncio
import threading
from typing import Self


class InThread:
    """`_serve(up)` is the server's: it sets `up` when it answers, and ends when `_stop` is set."""

    def __enter__(self) -> Self:
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(up)), daemon=True)
        self._thread.start()
        while not up.wait(0.1):
            assert self._thread.is_alive(), "it could not start"
        return self

    def __exit__(self, *_):
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    async def _run(self, up: threading.Event):
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self._serve(up)
