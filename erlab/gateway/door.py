"""The gRPC door: grpcio's server on asyncio, which answers a list of methods and relays messages as bytes.

Every call is read by one task, answered by one task a request and written by one task. What experts send is queued
where it arrives; a client that takes less than it is sent holds its experts back once `WINDOW` bytes wait for it. The
call of a client that cancels, vanishes or is past its deadline is cancelled by grpcio, and with it all its tasks and
what they asked of experts.

A request counts as received when grpcio hands its bytes to the event loop. It left the socket before, in a thread of
grpcio's, and has waited for its turn of the loop: clients measure that wait, the gateway cannot.

What grpcio leaves open: it offers Python no resource quota, so clients that begin requests and do not finish them hold
up to `calls` times `message_bytes` until `seconds` have passed, and whoever opens `calls` calls keeps others out as
long. Nor can a server take back what it has begun to send: a client that takes nothing loses its experts' answers after
`seconds`, but keeps its place among `calls` until its connection ends. A connection has no maximum age, since a long
stream would end by it.
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
from erlab.gateway import messages
from erlab.gateway.dispatch import Routed
from erlab.gateway.expert import Headers
from erlab.gateway.kserve import MAX_MESSAGE_BYTES
from erlab.gateway.limits import Limits, Refused

SERVICE = "inference.GRPCInferenceService"
STREAM = "ModelStreamInfer"
METHODS = (  # all others of the protocol are refused
    *("ServerLive", "ServerReady", "ServerMetadata"),
    *("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"),
    *("ModelInfer", STREAM),
)
WINDOW = 64 * 2**10  # bytes that wait here for one client, above which its experts are held back
_STREAMS = 1024  # calls that one connection may have open
_PING_SECONDS = 10  # pings of an idle client that come more often are strikes, …
_STRIKES = 2  # … and more of them end its connection
_LARGEST = 2**31 - 1  # of an option's value
_DETAILS = 600  # characters of an error: clients take 8 KiB of headers, and a character may need 12 bytes
_VALUE = re.compile("[ -~]*")  # what gRPC allows; another server's connection would end by anything else
# Headers of a connection, and of how a call is made; all others are the client's own and go on to the expert.
_OF_TRANSPORT = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host"}
_OF_TRANSPORT |= {"te", "content-type", "content-length", "accept-encoding", "user-agent"}
_ALLOWED = f"This gateway answers only {', '.join(METHODS)}."
_CODE = grpc.StatusCode
_logger = logging.getLogger(__name__)

Method = Callable[[bytes, Headers], Awaitable[bytes]]


class Service(Protocol):
    """What the door opens to. `methods`: those of METHODS, by name, that take one message and give one; they raise
    ErlabError."""

    methods: Mapping[str, Method]

    async def answer(self, data: bytes, received_ns: int, headers: Headers, stream: "Stream") -> None:
        """Give one request of ModelStreamInfer its responses; errors are responses, too."""


def _options(limits: Limits, shared: bool) -> list[tuple[str, int]]:
    """grpcio's options for a server within these limits; `shared`: other processes listen on the same port."""
    seconds = (limits.keepalive_seconds, limits.header_seconds, limits.idle_seconds)
    keepalive_ms, handshake_ms, idle_ms = (max(1, round(each * 1e3)) for each in seconds)
    options = [
        ("grpc.max_receive_message_length", limits.message_bytes),  # also of what it is once inflated
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),  # the same, else chance decides in between
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.server.max_pending_requests", limits.calls),  # calls that wait for a turn of the event loop
        ("grpc.server.max_pending_requests_hard_limit", limits.calls),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", handshake_ms),
        ("grpc.keepalive_time_ms", keepalive_ms),  # also sets TCP_USER_TIMEOUT
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.http2.ping_timeout_ms", keepalive_ms),  # else it is a minute, whatever the one above says
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_idle_ms", idle_ms),  # without a call
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_SECONDS * 1000),
        ("grpc.http2.max_ping_strikes", _STRIKES),
        ("grpc.http2.bdp_probe", 0),  # else the window of a stream grows to megabytes
        ("grpc.http2.lookahead_bytes", WINDOW),
        ("grpc.so_reuseport", int(shared)),  # only then, so that a port in use is noticed
    ]
    return [(name, min(value, _LARGEST)) for name, value in options]


class Door:
    """A gRPC server of `service`. `key`: what clients must bring as a bearer token, if anything; not handed on."""

    def __init__(self, service: Service, limits: Limits, key: str | None = None):
        self._service, self._limits = service, limits
        self._bearer = f"Bearer {key}".encode() if key else None
        self._server: grpc.aio.Server | None = None

    async def open(self, host: str, port: int, shared: bool = False) -> int:
        """Listen on this port, 0 for any, and return it; raises OSError where it cannot be had."""
        _probe(host, port, shared)
        self._server = _server(_options(self._limits, shared), self._limits.calls)
        known = messages.service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
        handlers = {name: grpc.stream_stream_rpc_method_handler(partial(self._handle, name)) for name in known}
        self._server.add_registered_method_handlers(SERVICE, handlers)
        port = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        await self._server.start()
        return port

    async def close(self, grace: float) -> None:
        """Take no more calls, let those that are there end within `grace` seconds, and end the others."""
        if self._server:
            await self._server.stop(grace)

    async def _handle(self, name: str, _, context: grpc.aio.ServicerContext) -> None:
        try:
            headers = self._admit(context)
            if name == STREAM:
                await Stream(context, self._limits).serve(self._service, headers)
            elif name in METHODS:
                await self._once(self._service.methods[name], headers, context)
            else:
                raise Refused(_CODE.UNIMPLEMENTED, f"The method {name} is refused. {_ALLOWED}")
        except grpc.aio.BaseError:  # the client is gone, or has been told
            raise
        except Refused as e:
            await context.abort(e.code, str(e)[:_DETAILS])
        except ErlabError as e:
            await context.abort(_CODE.INVALID_ARGUMENT, str(e)[:_DETAILS])
        except Exception as e:
            _logger.exception("A call of %s failed", name)
            await context.abort(_CODE.UNKNOWN, f"Unexpected {type(e).__name__}")

    def _admit(self, context: grpc.aio.ServicerContext) -> Headers:
        """The client's own metadata, as it is on the wire; Refused without the key."""
        said = context.invocation_metadata()
        if self._bearer:
            came = next((value for name, value in said if name == "authorization"), "")
            if not hmac.compare_digest(came.encode(), self._bearer):
                asked = "This gateway asks for its key: metadata 'authorization: Bearer KEY'."
                raise Refused(_CODE.UNAUTHENTICATED, asked)
        headers = []
        for name, value in said:
            if name in _OF_TRANSPORT or name.startswith("grpc-") or (self._bearer and name == "authorization"):
                continue
            if isinstance(value, bytes):  # its name ends in -bin
                value = base64.b64encode(value).decode().rstrip("=")
            elif not _VALUE.fullmatch(value):
                raise Refused(_CODE.INVALID_ARGUMENT, f"The metadata {name!r} must be printable ASCII.")
            headers.append((name, value))
        return tuple(headers)

    async def _once(self, method: Method, headers: Headers, context: grpc.aio.ServicerContext) -> None:
        late = f"The call was not made, or its answer not taken, within {self._limits.seconds:g} s."
        try:
            async with asyncio.timeout(self._limits.seconds):
                data = await context.read()
            if data is grpc.aio.EOF:
                raise Refused(_CODE.UNIMPLEMENTED, "This method takes one message. Got none.")
            answer = await method(data, headers)
            async with asyncio.timeout(self._limits.seconds):
                await context.write(answer)
        except TimeoutError:
            raise Refused(_CODE.DEADLINE_EXCEEDED, late) from None


class Stream:
    """One client's call of ModelStreamInfer, whose requests are answered side by side; a Reply and a Sink."""

    def __init__(self, context: grpc.aio.ServicerContext, limits: Limits):
        self._context, self._limits = context, limits
        self._open, self._open_bytes = 0, 0  # requests that are being answered
        self._pieces: deque[bytes] = deque()
        self._bytes, self._ends = 0, False  # that wait to be written; whether no more will be
        self._less = asyncio.Event()  # less is waiting or being answered than before
        self._more: asyncio.Future | None = None  # the writer waits for it

    async def serve(self, service: Service, headers: Headers) -> None:
        """Have all requests answered; Refused where none came, or the last answers were not taken, for too long."""

        def answered(size: int, _: asyncio.Task) -> None:
            self._open, self._open_bytes = self._open - 1, self._open_bytes - size
            self._less.set()
            if not self._open:
                idle.reschedule(loop.time() + self._limits.seconds)

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.seconds) as idle, asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write())
                async with asyncio.TaskGroup() as answers:
                    while (data := await self._read()) is not grpc.aio.EOF:
                        received_ns = time.monotonic_ns()
                        self._open, self._open_bytes = self._open + 1, self._open_bytes + len(data)
                        idle.reschedule(None)
                        task = answers.create_task(service.answer(data, received_ns, headers, self))
                        task.add_done_callback(partial(answered, len(data)))
                self._ends = True
                self._wake()
        except TimeoutError:
            late = f"No request came, or no answer was taken, for {self._limits.seconds:g} s."
            raise Refused(_CODE.DEADLINE_EXCEEDED, late) from None

    async def _read(self) -> bytes:
        """The next request, when those that are being answered, and their answers, are not too large."""
        while self.paused or self._open_bytes >= self._limits.message_bytes:
            self._less.clear()
            await self._less.wait()
        return await self._context.read()

    async def _write(self) -> None:
        """Write what is queued until the end; one write at a time is all that grpcio takes."""
        loop = asyncio.get_running_loop()
        try:
            while self._pieces or not self._ends:
                if not self._pieces:
                    self._more = loop.create_future()
                    await self._more
                    continue
                data = self._pieces.popleft()
                await self._context.write(data)
                self._bytes -= len(data)
                if not self.paused:
                    self._less.set()
        except grpc.aio.BaseError:  # the client is gone, and grpcio about to cancel the call
            self._ends, self._bytes = True, 0
            self._pieces.clear()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def piece(self, data: bytes, routed: Routed | None = None) -> None:
        if routed:
            data += messages.streamed(messages.mark(routed))
        if not self._ends:  # else nobody is there to take it
            self._pieces.append(data)
            self._bytes += len(data)
            self._wake()

    @property
    def paused(self) -> bool:
        return self._bytes > WINDOW

    async def resumed(self) -> None:
        while self.paused:
            self._less.clear()
            await self._less.wait()


class _Core(cygrpc.AioServer):
    """The class behind `grpc.aio.server`, which refuses methods that nobody registered.

    AioServer itself decodes the path of such a call as UTF-8, and one that is none ends the whole server (grpcio 1.85).
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
            await context.abort(_CODE.UNIMPLEMENTED, f"This method is unknown. {_ALLOWED}")
        except grpc.aio.BaseError:
            return  # it has been told, or is gone


def _server(options: list[tuple[str, int]], calls: int) -> grpc.aio.Server:
    """`grpc.aio.server` on a `_Core`."""
    usual, cygrpc.AioServer = cygrpc.AioServer, _Core
    try:
        return grpc.aio.server(options=options, maximum_concurrent_rpcs=calls)
    finally:
        cygrpc.AioServer = usual


def _probe(host: str, port: int, shared: bool) -> None:
    """Raise the OSError that keeps a server from listening there; grpcio does not say which."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(address)
