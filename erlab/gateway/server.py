"""A gateway within an event loop: its experts, its faces, and how they begin and end together."""

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
from erlab.gateway.decide import Classifier, Decider
from erlab.gateway.dispatch import Dispatcher
from erlab.gateway.door import Door
from erlab.gateway.expert import Expert
from erlab.gateway.limits import DRAIN_SECONDS, Limits
from erlab.gateway.metrics import Metrics
from erlab.gateway.service import Service
from erlab.gateway.upstreams import Upstreams
from erlab.gateway.web import Site, application, hosts_answered
from erlab.routing import CompiledRouter
from erlab.routing.policies import POLICIES
from erlab.spec import require

_logger = logging.getLogger(__name__)
_logger.addFilter(lambda record: not _quotes_a_client(record))


@dataclass(frozen=True)
class Settings:
    """What a gateway is told: where its experts are, how it chooses among them, where it listens.

    upstream: HOST:PORT of a Triton server's gRPC face. experts: each a model's name there, or an address of its own,
    grpc://HOST:PORT/MODEL (Triton) or http://HOST:PORT/v1#MODEL (OpenAI-compatible). port, http_port: 0 lets the
    system choose; http_port None: no HTTP face. key: what clients must bring. shared: other
    processes may listen on the same ports. hosts: names that the HTTP face answers to beside
    loopback's (none given: any name, unless it listens on loopback). generalist: the expert, one of `experts` or
    another, for the policy "outlier"; strong: for "strong_weak", which sends it prompts of a difficulty from
    `threshold` on (None: the policy's own).
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
    """The gateway's addresses (`address`, gRPC; `http`), while it serves; on leaving it drains, for DRAIN_SECONDS at
    most."""
    names, clusters = settings.experts, len(router.centers_)
    allowed = f"name 1 to {clusters} Triton models, as many as the router has clusters at most"
    require(all(names) and len(names) <= clusters, "--experts", "the gateway", allowed, ",".join(names))
    check_policy(router, settings)
    allow_many_files()
    limits, special = settings.limits, (settings.generalist, settings.strong)
    distinct = tuple(dict.fromkeys([*names, *filter(None, special)]))
    async with AsyncExitStack() as stack:
        upstreams = Upstreams(stack, settings.upstream)
        experts = tuple([Expert(name, await upstreams.open(name), limits) for name in distinct])
        places = [distinct.index(names[c % len(names)]) for c in range(clusters)]
        special = (distinct.index(name) if name else None for name in special)
        decide = Decider(experts, places, settings.policy, *special, settings.threshold)
        metrics = Metrics(experts)
        dispatch = Dispatcher(Classifier(router), decide, limits, metrics)
        runner = web.AppRunner(
            application(dispatch, limits, settings.key, hosts_answered(settings.host, settings.hosts)),
            handler_cancellation=True,  # a client that leaves cancels what it asked for
            access_log=None,
            logger=_logger,
            keepalive_timeout=limits.idle_seconds,
            max_field_size=limits.header_bytes,
            shutdown_timeout=DRAIN_SECONDS,
        )
        tending = [asyncio.create_task(task) for task in (metrics.tend(), *(expert.tend() for expert in experts))]
        door = Door(Service(dispatch, limits, routes=True), limits, settings.key)
        try:
            addresses = {"address": await listen(door, settings)}
            if settings.http_port is not None:
                await runner.setup()
                addresses["http"] = await _listen_http(runner, settings)
            yield addresses
        finally:
            await asyncio.gather(door.close(DRAIN_SECONDS), runner.cleanup())
            for task in tending:
                task.cancel()


def check_settings(settings: Settings) -> None:
    """ErlabError unless the policy exists and, if it sends some prompts to an expert of their own, has it."""
    require(settings.policy in POLICIES, "--policy", "the gateway", f"be one of {', '.join(POLICIES)}", settings.policy)
    threshold = settings.threshold
    fits = threshold is None or (settings.policy == "strong_weak" and 0 <= threshold <= 1)
    require(fits, "--threshold", "the gateway", "be from 0 to 1, and only where --policy is strong_weak", threshold)
    for policy, flag in (("outlier", "generalist"), ("strong_weak", "strong")):
        model, asked = getattr(settings, flag), settings.policy == policy
        allowed = f"name an expert where --policy is {policy}, and only there"
        require(bool(model) == asked, f"--{flag}", "the gateway", allowed, model)


def check_policy(router: CompiledRouter, settings: Settings) -> None:
    """ErlabError unless these are settings for a gateway (`check_settings`) and the router can tell which prompts the
    policy sends to an expert of their own."""
    check_settings(settings)
    needed = {
        "outlier": (router.threshold_, "an outlier threshold (PromptRouter.calibrate)"),
        "strong_weak": (router.difficulty_, "a difficulty score (PromptRouter.fit_difficulty)"),
    }
    learned, what = needed.get(settings.policy, (True, ""))
    if learned is None:
        raise ErlabError(f"The policy {settings.policy!r} needs a router with {what}. Got one without.")


async def listen(door: Door, settings: Settings) -> str:
    """Have `door` listen where it should; returns its address."""
    try:
        port = await door.open(settings.host, settings.port, settings.shared)
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
    why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
    return ErlabError(f"The gateway cannot listen on {host}:{port}: {why}.")


def _quotes_a_client(record: logging.LogRecord) -> bool:
    """Whether it is about what a client sent instead of HTTP, perhaps the rest of a prompt, which nobody logs."""
    errors = HttpProcessingError, web.RequestPayloadError
    return record.exc_info is not None and isinstance(record.exc_info[1], errors)


def allow_many_files() -> None:
    """A connection is an open file, and the usual limit of 1,024 is only the soft one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
