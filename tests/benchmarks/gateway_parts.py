"""A gateway with a part that bypasses aiohttp: `python gateway_parts.py PART ROUTER EXPERT`.

PART: `none` (the gateway as it is), `client` or `response`. Prints the port of the OpenAI-compatible face; ends with its
stdin.
"""

import asyncio
import gc
import sys

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

from yarl import URL

from erlab.gateway import fleet
from erlab.gateway.server import serving
from erlab.gateway.wire import http1, openai_face


class DirectClient(http1.HTTPClient):
    """The least that a client has to do: pushes the chunks of streamed answers, and checks nothing."""

    def __init__(self, base, key=None):
        super().__init__(base)
        self._url, self._idle = URL(base), []

    async def post(self, path, content, sink=None):
        loop = asyncio.get_running_loop()
        if self._idle:
            connection = self._idle.pop()
        else:
            _, connection = await loop.create_connection(Connection, self._url.host, self._url.port)
        head = f"POST {self._url.path}/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.begin(head.encode() + content, sink, self._idle)
        await connection.answered
        return 200, b""


class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self._transport, self._rest = transport, b""

    def begin(self, request, sink, idle):
        self._sink, self._idle, self._in_body = sink, idle, False
        self.answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)

    def data_received(self, data):
        data = self._rest + data
        if not self._in_body:
            _, self._in_body, data = data.partition(b"\r\n\r\n")
        while data:
            size, found, rest = data.partition(b"\r\n")
            end = int(size, 16) if found else 0
            if not found or len(rest) < end + 2:
                break
            data = rest[end + 2 :]
            if end == 0:
                self._idle.append(self)
            elif not self.answered.done():
                try:
                    self._sink.piece(rest[:end])
                except http1.Enough:
                    self.answered.set_result(None)
        self._rest = data


class DirectReply(openai_face._Reply):
    """Writes its pieces to the transport, past aiohttp's writer."""

    def piece(self, data, routed):
        if self.response.prepared:
            self._request.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            super().piece(data, routed)


async def main(part, folder, expert):
    if part == "client":
        http1.HTTPClient = DirectClient
    elif part == "response":
        openai_face._Reply = DirectReply
    async with serving(fleet.from_clusters(folder, None, (expert,))) as service:
        addresses = service.addresses
        gc.collect()
        gc.freeze()
        print(addresses["http"].rpartition(":")[2], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
