"""Receivers of the HTTP/2 client's calls."""

import asyncio


class RecordingReceiver:
    """A receiver that records the responses."""

    paused = False

    def __init__(self):
        self.messages = []

    def message(self, data, now):
        self.messages.append(data)

    async def resumed(self): ...


class GatedReceiver(RecordingReceiver):
    """A receiver that is paused until its gate is set."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()

    @property
    def paused(self):
        return not self.gate.is_set()

    async def resumed(self):
        await self.gate.wait()
