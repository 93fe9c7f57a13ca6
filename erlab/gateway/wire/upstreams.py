"""Experts' addresses, and one connection per server for all its experts."""

import re
from contextlib import AsyncExitStack

from erlab.gateway import kserve
from erlab.gateway.wire import http1, http2
from erlab.gateway.wire.interface import Upstream
from erlab.gateway.wire.openai_upstream import OpenAIModel
from erlab.gateway.wire.triton_upstream import TritonModel
from erlab.spec import require

_BACKOFF_SECONDS = 1.0  # between attempts to connect to an unreachable server


class Upstreams:
    """Opens experts' upstreams, one channel per server, all closed by `stack`; `default`: HOST:PORT of Triton."""

    def __init__(self, stack: AsyncExitStack, default: str | None):
        self._stack, self._default = stack, kserve.address(default) if default else None
        self._channels: dict[str, http2.Channel] = {}
        self._servers: dict[str, http1.HTTPClient] = {}

    async def open(self, name: str) -> Upstream:
        """Open the upstream of an expert; `name`: one of `Settings.experts`."""
        forms = "be a model's name (with --upstream), grpc://HOST:PORT/MODEL or http://HOST:PORT/v1#MODEL"
        if http := re.fullmatch(r"(https?://[^#\s]+)#(\S+)", name):
            base, model = http.groups()
            if base not in self._servers:
                try:
                    server = http1.HTTPClient(base)
                except ValueError:
                    require(False, "--experts", "the gateway", forms, name)
                self._servers[base] = await self._stack.enter_async_context(server)
            return OpenAIModel(self._servers[base], model)
        if triton := re.fullmatch(r"grpc://([^/\s]+)/(\S+)", name):
            server, model = kserve.address(triton[1]), triton[2]
        else:
            require("://" not in name and self._default is not None, "--experts", "the gateway", forms, name)
            server, model = self._default, name
        if server not in self._channels:
            channel = http2.Channel(server, _BACKOFF_SECONDS)
            self._channels[server] = await self._stack.enter_async_context(channel)
        return TritonModel(self._channels[server], model)
