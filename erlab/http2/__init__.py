"""A gRPC client over HTTP/2 for asyncio, as cheap as Python allows: messages stay bytes and are pushed on where they
arrive, and all that a connection has to say in one turn of the event loop is one system call.

    async with Channel("127.0.0.1:8001") as channel:
        answer = await channel.unary("/test.Service/Ask", b"...")

What is framed here is RFC 9113 (HTTP/2) and gRPC's protocol on it; header compression is the `hpack` library's. No TLS,
no server push, no compression of messages.
"""

from erlab.http2.client import Channel
from erlab.http2.headers import Failed

__all__ = ["Channel", "Failed"]
