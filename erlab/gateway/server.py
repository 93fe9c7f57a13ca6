"""Gateway within an event loop: starts and stops experts, health checks and faces together."""

import asyncio
import errno
import logging
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from erlab.errors import ErlabError
from erlab.gateway import health
from erlab.gateway.classify import Classifier
from erlab.gateway.core import Decider, Dispatcher, ServedExpert
from erlab.gateway.limits import DRAIN_SECONDS, Limits
from erlab.gateway.metrics import Metrics
from erlab.gateway.wire.grpc_server import GrpcServer
from erlab.gateway.wire.kserve_face import KServeFace
from erlab.gateway.wire.openai_face import Site, application, hosts_answered
from erlab.gateway.wire.upstreams import Upstreams
from erlab.routing import CompiledRouter
from erlab.routing.policies import POLICIES, SIMULATED
from erlab.spec import require

_logger = logging.getLogger(__name__)
_logger.addFilter(lambda record: not _quotes_a_client(record))


@dataclass(frozen=True)
class Settings:
    """Configuration of a gateway.

    Attributes:
        upstream: HOST:PORT of the Triton server's gRPC port.
        experts: Expert of each cluster, repeated if there are more clusters: a model of `upstream`,
            grpc://HOST:PORT/MODEL (Triton) or http://HOST:PORT/v1#MODEL (OpenAI-compatible).
        policy: Name in `erlab.routing.policies.POLICIES`.
        limits: Bounds on concurrency, time and size.
        host: Address to listen on.
        port: Port of the gRPC face; 0 lets the system choose.
        http_port: Port of the HTTP face; 0 lets the system choose, None for no such face.
        key: Bearer token that clients must send.
        shared: Whether other processes may listen on the same ports.
        generalist: Expert for the policy "outlier", one of `experts` or another.
        strong: Expert for the policy "strong_weak", one of `experts` or another.
        threshold: Difficulty from which `strong` serves a prompt, 0 to 1; None for the policy's default.
        hosts: Host names that the HTTP face answers to beside loopback's; if empty, all names, unless it listens on
            loopback.
    """

    upstream: str | None
    experts: tuple[str, ...]
    policy: str = "nearest"
    limits: Limits = Limits()
    host: str = "127.0.0.1"
    port: int = 0
    http_port: int | None = None
    key: str | None = None
    shared: bool = False
    generalist: str | None = None
    strong: str | None = None
    threshold: float | None = None
    hosts: tuple[str, ...] = ()


@asynccontextmanager
async def serving(router: CompiledRouter, settings: Settings) -> AsyncIterator[dict[str, str]]:
    """Run a gateway; yields its addresses (`address` for gRPC, `http`), and drains for up to DRAIN_SECONDS on exit."""
    names, clusters = settings.experts, len(router.centers_)
    allowed = f"name 1 to {clusters} Triton models, as many as the router has clusters at most"
    require(all(names) and len(names) <= clusters, "--experts", "the gateway", allowed, ",".join(names))
    check_policy(router, settings)
    allow_many_files()
    limits, special = settings.limits, (settings.generalist, settings.strong)
    distinct = tuple(dict.fromkeys([*names, *filter(None, special)]))
    async with AsyncExitStack() as stack:
        upstreams = Upstreams(stack, settings.upstream)
        experts = tuple([ServedExpert(name, await upstreams.open(name), limits) for name in distinct])
        places = [distinct.index(names[c % len(names)]) for c in range(clusters)]
        special = (distinct.index(name) if name else None for name in special)
        decide = Decider(experts, places, settings.policy, *special, settings.threshold)
        metrics = Metrics(experts)
        dispatch = Dispatcher(Classifier(router), decide, limits, metrics)
        runner = web.AppRunner(
            application(dispatch, limits, settings.key, hosts_answered(settings.host, settings.hosts)),
            handler_cancellation=True,  # a client that disconnects cancels its request
            access_log=None,
            logger=_logger,
            keepalive_timeout=limits.idle_seconds,
            max_field_size=limits.header_bytes,
            shutdown_timeout=DRAIN_SECONDS,
        )
        background = [metrics.refresh(), *(health.watch(expert, limits) for expert in experts)]
        tasks = [asyncio.create_task(coroutine) for coroutine in background]
        grpc_server = GrpcServer(KServeFace(dispatch, limits, routes=True), limits, settings.key)
        try:
            addresses = {"address": await listen(grpc_server, settings)}
            if settings.http_port is not None:
                await runner.setup()
                addresses["http"] = await _listen_http(runner, settings)
            yield addresses
        finally:
            await asyncio.gather(grpc_server.close(DRAIN_SECONDS), runner.cleanup())
            for task in tasks:
                task.cancel()


def check_settings(settings: Settings) -> None:
    """Raise ErlabError unless the policy exists and has the special expert that it needs, if any."""
    known = [name for name in POLICIES if name not in SIMULATED]
    require(settings.policy in known, "--policy", "the gateway", f"be one of {', '.join(known)}", settings.policy)
    threshold = settings.threshold
    fits = threshold is None or (settings.policy == "strong_weak" and 0 <= threshold <= 1)
    require(fits, "--threshold", "the gateway", "be from 0 to 1, and only where --policy is strong_weak", threshold)
    for policy, flag in (("outlier", "generalist"), ("strong_weak", "strong")):
        model, needed = getattr(settings, flag), settings.policy == policy
        allowed = f"name an expert where --policy is {policy}, and only there"
        require(bool(model) == needed, f"--{flag}", "the gateway", allowed, model)


def check_policy(router: CompiledRouter, settings: Settings) -> None:
    """Raise ErlabError unless the settings are valid (`check_settings`) and the router supports the policy."""
    check_settings(settings)
    needed = {
        "outlier": (router.threshold_, "an outlier threshold (PromptRouter.calibrate)"),
        "strong_weak": (router.difficulty_, "a difficulty score (PromptRouter.fit_difficulty)"),
    }
    value, name = needed.get(settings.policy, (True, ""))
    if value is None:
        raise ErlabError(f"The policy {settings.policy!r} needs a router with {name}. Got one without.")


async def listen(grpc_server: GrpcServer, settings: Settings) -> str:
    """Let a gRPC server listen; returns its address HOST:PORT."""
    try:
        port = await grpc_server.open(settings.host, settings.port, settings.shared)
    except OSError as e:
        raise cannot_listen(settings.host, settings.port, e) from None
    return f"{settings.host}:{port}"


async def _listen_http(runner: web.AppRunner, settings: Settings) -> str:
    host, port = settings.host, settings.http_port
    try:
        await Site(runner, settings.limits, host, port, settings.shared).start()
    except OSError as e:
        raise cannot_listen(host, port, e) from None
    return f"http://{host}:{runner.addresses[0][1]}"


def cannot_listen(host: str, port: int, error: OSError) -> ErlabError:
    """Return the error for a port that is not available."""
    why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
    return ErlabError(f"The gateway cannot listen on {host}:{port}: {why}.")


def _quotes_a_client(record: logging.LogRecord) -> bool:
    """Whether a log record quotes malformed HTTP of a client, which may hold a part of a prompt."""
    errors = HttpProcessingError, web.RequestPayloadError
    return record.exc_info is not None and isinstance(record.exc_info[1], errors)


def allow_many_files() -> None:
    """Raise the soft limit of open files, usually 1,024, to the hard one: each connection is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
