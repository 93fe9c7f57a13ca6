"""Experts' servers: one connection per server for all its experts, closed with the last of them."""

from contextlib import AsyncExitStack

from erlab.gateway.fleet import ExpertConfig
from erlab.gateway.wire import http1, http2
from erlab.gateway.wire.interface import Upstream
from erlab.gateway.wire.openai_upstream import OpenAIModel
from erlab.gateway.wire.triton_upstream import TritonModel

_BACKOFF_SECONDS = 1.0  # between attempts to connect to an unreachable server


class Upstreams:
    """Clients of the experts' servers, opened for the first expert of a server and key; `close` ends all."""

    def __init__(self):
        self._clients: dict[tuple, tuple[object, AsyncExitStack]] = {}
        self._users: dict[tuple, int] = {}

    async def open(self, expert: ExpertConfig) -> Upstream:
        """Open the upstream of an expert."""
        location, place = expert.location, _place(expert)
        if place not in self._clients:
            stack = AsyncExitStack()
            if location.is_triton:
                client = http2.Channel(location.server, _BACKOFF_SECONDS)
            else:
                client = http1.HTTPClient(location.server, expert.key)
            await stack.enter_async_context(client)
            self._clients[place] = client, stack
        self._users[place] = self._users.get(place, 0) + 1
        client, _ = self._clients[place]
        if location.is_triton:
            return TritonModel(client, location.model, expert.key)
        return OpenAIModel(client, location.model)

    async def release(self, expert: ExpertConfig) -> None:
        """Give an expert's upstream up."""
        place = _place(expert)
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            _, stack = self._clients.pop(place)
            await stack.aclose()

    async def close(self) -> None:
        """Close all connections."""
        for _, stack in self._clients.values():
            await stack.aclose()
        self._clients.clear()


def _place(expert: ExpertConfig) -> tuple:
    return expert.location.server, expert.key_variable
