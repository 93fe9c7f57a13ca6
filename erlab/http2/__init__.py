"""gRPC over HTTP/2 for asyncio, both sides of it, as cheap as Python allows: messages stay bytes and are pushed on
where they arrive, and all that a connection has to say in one turn of the event loop is one system call.

    server = Server(handler)                                  # async def handler(call): call.send(await call.receive())
    port = await server.listen("127.0.0.1", 0)
    channel = Channel(f"127.0.0.1:{port}")
    answer = await channel.unary("/test.Service/Ask", b"...")

What is framed here is RFC 9113 (HTTP/2) and gRPC's protocol on it; header compression is the `hpack` library's. No TLS,
no server push, and messages are sent as they are, though a server takes them compressed.
"""

from erlab.http2.client import Channel
from erlab.http2.headers import Failed
from erlab.http2.server import Server

__all__ = ["Channel", "Failed", "Server"]
