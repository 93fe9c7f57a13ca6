"""gRPC server of the gateway: grpcio's, on asyncio; messages stay bytes.

Each call has one task that reads, one that writes, and one per request. Pieces from experts are queued as they arrive;
a client that reads more slowly pauses its experts once `WINDOW` bytes wait for it. If a client cancels, disconnects or
passes its deadline, grpcio cancels its call, and with it the call's tasks and the requests they sent to experts.

A request counts as received when grpcio hands its bytes to the event loop. The time between the socket and the loop,
in a thread of grpcio's, is seen by clients and not by the gateway.

Bounds that grpcio does not offer (`calls`, `message_bytes` and `seconds` are those of `Limits`):

- There is no resource quota in Python. Clients that begin requests and never finish them hold up to `calls` times
  `message_bytes` until `seconds` have passed; a client with `calls` open calls shuts others out for that time.
- A server cannot withdraw what it has begun to send. A client that reads nothing loses its answers after `seconds`,
  and still counts among `calls` until its connection ends.

Connections have no maximum age by choice, since that would end long streams.
"""

import asyncio
import base64
import hmac
import logging
import re
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

import grpc
from grpc._cython import cygrpc

from erlab.errors import ErlabError
from erlab.gateway.core import Routed
from erlab.gateway.errors import Kind, RequestError
from erlab.gateway.kserve import MAX_MESSAGE_BYTES
from erlab.gateway.limits import Limits
from erlab.gateway.wire import messages
from erlab.gateway.wire.interface import Headers

SERVICE = "inference.GRPCInferenceService"
STREAM = "ModelStreamInfer"
METHODS = (  # other methods of the protocol are refused
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "ModelInfer",
    STREAM,
)
WINDOW = 64 * 2**10  # bytes queued for one client, above which its experts are paused
_STREAMS = 1024  # concurrent calls per connection
_PING_SECONDS = 10  # pings of an idle client closer together than this count as strikes
_STRIKES = 2  # strikes after which the connection ends
_LARGEST = 2**31 - 1  # largest value of an option
_DETAILS = 600  # characters of an error: clients accept 8 KiB of headers, and a character may need 12 bytes
_VALUE = re.compile("[ -~]*")  # allowed by gRPC; anything else would end the connection to the expert
# Headers of the transport; all others are the client's own and are forwarded to the expert.
_OF_TRANSPORT = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host"}
_OF_TRANSPORT |= {"te", "content-type", "content-length", "accept-encoding", "user-agent"}
_ALLOWED = f"This gateway answers only {', '.join(METHODS)}."
_logger = logging.getLogger(__name__)

Method = Callable[[bytes, Headers], Awaitable[bytes]]


class RpcService(Protocol):
    """Implementation of METHODS. `methods` maps names to unary methods, which raise ErlabError."""

    methods: Mapping[str, Method]

    async def answer(self, data: bytes, received_ns: int, headers: Headers, stream: "StreamCall") -> None:
        """Send the responses to one request of ModelStreamInfer to `stream`; errors are responses too."""


def _options(limits: Limits, shared: bool) -> list[tuple[str, int]]:
    """Return grpcio's server options; `shared`: other processes listen on the same port."""
    seconds = (limits.keepalive_seconds, limits.header_seconds, limits.idle_seconds)
    keepalive_ms, handshake_ms, idle_ms = (max(1, round(each * 1e3)) for each in seconds)
    options = [
        ("grpc.max_receive_message_length", limits.message_bytes),  # applies to the inflated size too
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),  # the same, else sizes between fail at random
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.server.max_pending_requests", limits.calls),  # calls that wait for the event loop
        ("grpc.server.max_pending_requests_hard_limit", limits.calls),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", handshake_ms),
        ("grpc.keepalive_time_ms", keepalive_ms),  # also sets TCP_USER_TIMEOUT
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.http2.ping_timeout_ms", keepalive_ms),  # else one minute, whatever the option above says
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_idle_ms", idle_ms),  # without a call
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_SECONDS * 1000),
        ("grpc.http2.max_ping_strikes", _STRIKES),
        ("grpc.http2.bdp_probe", 0),  # else a stream's window grows to megabytes
        ("grpc.http2.lookahead_bytes", WINDOW),
        ("grpc.so_reuseport", int(shared)),  # else a port in use goes unnoticed
    ]
    return [(name, min(value, _LARGEST)) for name, value in options]


class GrpcServer:
    """gRPC server of `service`; `key`: bearer token that clients must send, not forwarded to experts."""

    def __init__(self, service: RpcService, limits: Limits, key: str | None = None):
        self._service, self._limits = service, limits
        self._bearer = f"Bearer {key}".encode() if key else None
        self._server: grpc.aio.Server | None = None

    async def open(self, host: str, port: int, shared: bool = False) -> int:
        """Listen on a port, 0 for any, and return it; raises OSError if it is not available."""
        _probe(host, port, shared)
        self._server = _server(_options(self._limits, shared), self._limits.calls)
        known = messages.service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
        handlers = {name: grpc.stream_stream_rpc_method_handler(partial(self._handle, name)) for name in known}
        self._server.add_registered_method_handlers(SERVICE, handlers)
        port = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        await self._server.start()
        return port

    async def close(self, grace: float) -> None:
        """Refuse new calls, and end those in flight after `grace` seconds."""
        if self._server:
            await self._server.stop(grace)

    async def _handle(self, name: str, _, context: grpc.aio.ServicerContext) -> None:
        try:
            headers = self._admit(context)
            if name == STREAM:
                await StreamCall(context, self._limits).serve(self._service, headers)
            elif name in METHODS:
                await self._once(self._service.methods[name], headers, context)
            else:
                raise RequestError(Kind.UNIMPLEMENTED, f"The method {name} is refused. {_ALLOWED}")
        except grpc.aio.BaseError:  # the client has disconnected or knows the status
            raise
        except RequestError as e:
            await context.abort(grpc.StatusCode[e.kind.name], str(e)[:_DETAILS])
        except ErlabError as e:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e)[:_DETAILS])
        except Exception as e:
            _logger.exception("A call of %s failed", name)
            await context.abort(grpc.StatusCode.UNKNOWN, f"Unexpected {type(e).__name__}")

    def _admit(self, context: grpc.aio.ServicerContext) -> Headers:
        """Return the client's own metadata as on the wire; raises RequestError without the key."""
        metadata = context.invocation_metadata()
        if self._bearer:
            token = next((value for name, value in metadata if name == "authorization"), "")
            if not hmac.compare_digest(token.encode(), self._bearer):
                missing = "This gateway requires its key: metadata 'authorization: Bearer KEY'."
                raise RequestError(Kind.UNAUTHENTICATED, missing)
        headers = []
        for name, value in metadata:
            if name in _OF_TRANSPORT or name.startswith("grpc-") or (self._bearer and name == "authorization"):
                continue
            if isinstance(value, bytes):  # its name ends in -bin
                value = base64.b64encode(value).decode().rstrip("=")
            elif not _VALUE.fullmatch(value):
                raise RequestError(Kind.INVALID_ARGUMENT, f"The metadata {name!r} must be printable ASCII.")
            headers.append((name, value))
        return tuple(headers)

    async def _once(self, method: Method, headers: Headers, context: grpc.aio.ServicerContext) -> None:
        late = f"No message was received, or its response not read, within {self._limits.seconds:g} s."
        try:
            async with asyncio.timeout(self._limits.seconds):
                data = await context.read()
            if data is grpc.aio.EOF:
                raise RequestError(Kind.UNIMPLEMENTED, "This method takes one message. Got none.")
            answer = await method(data, headers)
            async with asyncio.timeout(self._limits.seconds):
                await context.write(answer)
        except TimeoutError:
            raise RequestError(Kind.DEADLINE_EXCEEDED, late) from None


class StreamCall:
    """One client's call of ModelStreamInfer, whose requests are answered concurrently. Implements `core.Reply`."""

    def __init__(self, context: grpc.aio.ServicerContext, limits: Limits):
        self._context, self._limits = context, limits
        self.client = f"grpc:{context.peer()}"
        self._open, self._open_bytes = 0, 0  # requests in flight
        self._pieces: deque[bytes] = deque()
        self._bytes, self._ended = 0, False  # bytes queued; whether no more pieces follow
        self._shrunk = asyncio.Event()  # the queue or the requests in flight have shrunk
        self._piece_waiter: asyncio.Future | None = None  # the writer waits for a piece

    async def serve(self, service: RpcService, headers: Headers) -> None:
        """Answer all requests; raises RequestError if none arrives, or responses are not read, for too long."""
        loop = asyncio.get_running_loop()
        idle = asyncio.timeout(self._limits.seconds)

        def answered(size: int, _: asyncio.Task) -> None:
            self._open, self._open_bytes = self._open - 1, self._open_bytes - size
            self._shrunk.set()
            if not self._open:
                idle.reschedule(loop.time() + self._limits.seconds)

        try:
            async with idle, asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write())
                async with asyncio.TaskGroup() as answers:
                    while (data := await self._read()) is not grpc.aio.EOF:
                        received_ns = time.monotonic_ns()
                        self._open, self._open_bytes = self._open + 1, self._open_bytes + len(data)
                        idle.reschedule(None)
                        task = answers.create_task(service.answer(data, received_ns, headers, self))
                        task.add_done_callback(partial(answered, len(data)))
                self._ended = True
                self._wake()
        except TimeoutError:
            late = f"No request was received, or no response read, for {self._limits.seconds:g} s."
            raise RequestError(Kind.DEADLINE_EXCEEDED, late) from None

    async def _read(self) -> bytes:
        """Read the next request once those in flight, and the queued pieces, are small enough."""
        while self.paused or self._open_bytes >= self._limits.message_bytes:
            self._shrunk.clear()
            await self._shrunk.wait()
        return await self._context.read()

    async def _write(self) -> None:
        """Write queued pieces until the end; grpcio accepts one write at a time."""
        loop = asyncio.get_running_loop()
        try:
            while self._pieces or not self._ended:
                if not self._pieces:
                    self._piece_waiter = loop.create_future()
                    await self._piece_waiter
                    continue
                data = self._pieces.popleft()
                await self._context.write(data)
                self._bytes -= len(data)
                if not self.paused:
                    self._shrunk.set()
        except grpc.aio.BaseError:  # the client has disconnected, and grpcio is about to cancel the call
            self._ended, self._bytes = True, 0
            self._pieces.clear()

    def _wake(self) -> None:
        if self._piece_waiter is not None and not self._piece_waiter.done():
            self._piece_waiter.set_result(None)

    def piece(self, data: bytes, routed: Routed | None = None) -> None:
        if routed:
            data += messages.streamed(messages.mark(routed))  # concatenated protobuf messages merge
        if not self._ended:  # else the client has disconnected
            self._pieces.append(data)
            self._bytes += len(data)
            self._wake()

    @property
    def paused(self) -> bool:
        return self._bytes > WINDOW

    async def resumed(self) -> None:
        while self.paused:
            self._shrunk.clear()
            await self._shrunk.wait()


class _StrictAioServer(cygrpc.AioServer):
    """AioServer that refuses unregistered methods.

    AioServer itself decodes their path as UTF-8, and a path that is not UTF-8 ends the whole server (grpcio 1.85).
    `grpc.aio.server` takes no server class, so `_server` replaces the one that it uses.
    """

    async def _request_call(self):
        loop, refusing = asyncio.get_running_loop(), set()
        while True:
            context = cygrpc._ServicerContext(await super()._request_call(), None, None, loop)
            task = loop.create_task(self._refuse(context))
            refusing.add(task)
            task.add_done_callback(refusing.discard)

    async def _refuse(self, context: grpc.aio.ServicerContext) -> None:
        try:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"This method is unknown. {_ALLOWED}")
        except grpc.aio.BaseError:
            return  # the client has disconnected or knows the status


def _server(options: list[tuple[str, int]], calls: int) -> grpc.aio.Server:
    """Return `grpc.aio.server` on a `_StrictAioServer`."""
    usual, cygrpc.AioServer = cygrpc.AioServer, _StrictAioServer
    try:
        return grpc.aio.server(options=options, maximum_concurrent_rpcs=calls)
    finally:
        cygrpc.AioServer = usual


def _probe(host: str, port: int, shared: bool) -> None:
    """Raise the OSError that keeps a server from listening there, which grpcio does not report."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(address)
