"""Gateway within an event loop: starts and stops experts, health checks and faces together.

Without a router it is a KServe v2 server whose models are the experts, such as OpenAI-compatible servers. Baselines are
measured through it, so that only the routing differs. Experts are not probed then, as without a gateway: a request that
its server leaves unanswered ends by its deadline.
"""

import asyncio
import errno
import logging
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from erlab.errors import ErlabError
from erlab.gateway import fleet, health
from erlab.gateway.accesslog import AccessLog
from erlab.gateway.classify import Classifier
from erlab.gateway.core import Decider, Dispatcher, Plan, ServedExpert
from erlab.gateway.fleet import ExpertConfig, FleetConfig
from erlab.gateway.limits import Limits
from erlab.gateway.metrics import Metrics
from erlab.gateway.wire.grpc_server import GrpcServer
from erlab.gateway.wire.kserve_face import KServeFace
from erlab.gateway.wire.openai_face import Site, application, hosts_answered
from erlab.gateway.wire.upstreams import Upstreams
from erlab.routing import CompiledRouter

_IDLE_SECONDS = 0.25  # between two looks whether a removed expert still answers requests
_ROUTER_NEEDS = {  # attribute of the router that a policy needs, and what it is
    "outlier": ("threshold_", "an outlier threshold (PromptRouter.calibrate)"),
    "strong_weak": ("difficulty_", "a difficulty score (PromptRouter.fit_difficulty)"),
}
_logger = logging.getLogger(__name__)
_logger.addFilter(lambda record: not _quotes_a_client(record))


@asynccontextmanager
async def serving(
    config: FleetConfig, router: CompiledRouter | None = None, shared: bool = False, key: str | None = None
) -> AsyncIterator["Service"]:
    """Run a gateway, which drains for up to `Limits.drain_seconds` on exit.

    Args:
        config: Description of the gateway, without domains (`fleet.resolved`).
        router: The router of `config.router`, if it is loaded already.
        shared: Whether other processes may listen on the same ports.
        key: Bearer token that clients must send, instead of the configured variable's.
    """
    allow_many_files()
    log = _open_log(config)
    service = Service(config, log)
    try:
        service.dispatch.use(await service.plan(config, router or _load(config)))
        await service.open(shared, key or config.key)
        yield service
    finally:
        await service.close()
        if log:
            log.close()


class Service:
    """A running gateway, whose experts, router and policy can be exchanged.

    Attributes:
        addresses: `address` of the gRPC face, HOST:PORT, and `http`, the URL of the HTTP face, as far as they are open.
    """

    def __init__(self, config: FleetConfig, log: AccessLog | None):
        self._config, self._log = config, log
        self._experts = _Experts(config.limits, probes=config.router is not None)
        self._refresh: asyncio.Task | None = None
        self._grpc: GrpcServer | None = None
        self._http: web.AppRunner | None = None
        self.dispatch = Dispatcher(Plan(None, Decider((), ())), config.limits, Metrics(), log)
        self.addresses: dict[str, str] = {}

    async def plan(self, config: FleetConfig, router: CompiledRouter | None) -> Plan:
        """Connect a description's experts and return how requests are routed to them."""
        places = fleet.places(config, len(router.centers_), router.experts_) if router else ()
        if router:
            check_policy(router, config)
        experts = await self._experts.open(config.experts)
        names, weights = [expert.name for expert in experts], [expert.weight for expert in config.experts]
        special = names.index(config.special_expert) if config.special_expert else None
        decide = Decider(experts, places, config.policy, special, config.policy_parameters, weights)
        return Plan(await asyncio.to_thread(Classifier, router) if router else None, decide)

    async def open(self, shared: bool, key: str | None) -> None:
        """Open the faces; raises ErlabError if a port is not available."""
        config, limits = self._config, self._config.limits
        self._refresh = asyncio.create_task(self.dispatch.metrics.refresh())
        if config.port is not None:
            self._grpc = GrpcServer(KServeFace(self.dispatch), limits, key)
            try:
                port = await self._grpc.open(config.host, config.port, shared)
            except OSError as e:
                raise cannot_listen(config.host, config.port, e) from None
            self.addresses["address"] = _at(config.host, port)
        if config.http_port is not None:
            hosts = hosts_answered(config.host, config.hosts)
            self._http = web.AppRunner(
                application(self.dispatch, limits, key, hosts, frozenset(config.origins)),
                handler_cancellation=True,  # a client that disconnects cancels its request
                access_log=None,
                logger=_logger,
                keepalive_timeout=limits.idle_seconds,
                max_field_size=limits.header_bytes,
                shutdown_timeout=limits.drain_seconds,
            )
            await self._http.setup()
            try:
                await Site(self._http, limits, config.host, config.http_port, shared).start()
            except OSError as e:
                raise cannot_listen(config.host, config.http_port, e) from None
            self.addresses["http"] = f"http://{_at(config.host, self._http.addresses[0][1])}"

    async def reload(self, config: FleetConfig) -> None:
        """Use another description's experts, router and policy; see `process.Gateway.reload`."""
        for expert in config.experts:
            expert.key  # raises
        plan = await self.plan(config, await asyncio.to_thread(_load, config))
        self._config = config
        self.dispatch.use(plan)
        self._experts.retire(config.experts)
        if self._log:
            self._log.reopen()

    async def close(self) -> None:
        """Refuse new requests, let those in flight end, and disconnect the experts."""
        closing = [self._grpc.close(self._config.limits.drain_seconds)] if self._grpc else []
        closing += [self._http.cleanup()] if self._http else []
        await asyncio.gather(*closing)
        if self._refresh:
            self._refresh.cancel()
        await self._experts.close()


class _Experts:
    """The connected experts and their health checks."""

    def __init__(self, limits: Limits, probes: bool):
        self._limits, self._probes = limits, probes
        self._upstreams = Upstreams()
        self._experts: dict[tuple, tuple[ExpertConfig, ServedExpert]] = {}
        self._tasks: dict[ServedExpert, asyncio.Task] = {}
        self._retiring: set[asyncio.Task] = set()

    async def open(self, configs: Sequence[ExpertConfig]) -> tuple[ServedExpert, ...]:
        """Return the experts of these descriptions; one that is connected already keeps its queue and health."""
        for config in configs:
            if _identity(config) not in self._experts:
                expert = ServedExpert(config.name, await self._upstreams.open(config), self._limits)
                self._experts[_identity(config)] = config, expert
                if self._probes:
                    self._tasks[expert] = asyncio.create_task(health.watch(expert, self._limits))
        return tuple(self._experts[_identity(config)][1] for config in configs)

    def retire(self, kept: Sequence[ExpertConfig]) -> None:
        """Disconnect the experts that are not in `kept` when their requests have ended."""
        for identity in self._experts.keys() - {_identity(config) for config in kept}:
            task = asyncio.create_task(self._retire(*self._experts.pop(identity)))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _retire(self, config: ExpertConfig, expert: ServedExpert) -> None:
        while expert.outstanding:
            await asyncio.sleep(_IDLE_SECONDS)
        if watch := self._tasks.pop(expert, None):
            watch.cancel()
        await self._upstreams.release(config)

    async def close(self) -> None:
        for task in (*self._tasks.values(), *self._retiring):
            task.cancel()
        await self._upstreams.close()


def _identity(config: ExpertConfig) -> tuple:
    return config.name, config.url, config.key_variable


def check_policy(router: CompiledRouter, config: FleetConfig) -> None:
    """Raise ErlabError unless the router supports the policy."""
    attribute, name = _ROUTER_NEEDS.get(config.policy, ("centers_", ""))
    if getattr(router, attribute) is None:
        raise ErlabError(f"The policy {config.policy!r} needs a router with {name}. Got one without.")


def _load(config: FleetConfig) -> CompiledRouter | None:
    return CompiledRouter.load(config.router.folder) if config.router else None


def _open_log(config: FleetConfig) -> AccessLog | None:
    try:
        return AccessLog(config.log, config.log_prompts) if config.log else None
    except OSError as e:
        raise ErlabError(f"{config.log}: the access log cannot be written ({e.strerror}).") from None


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cannot_listen(host: str, port: int, error: OSError) -> ErlabError:
    """Return the error for a port that is not available."""
    why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
    return ErlabError(f"The gateway cannot listen on {_at(host, port)}: {why}.")


def _quotes_a_client(record: logging.LogRecord) -> bool:
    """Whether a log record quotes malformed HTTP of a client, which may hold a part of a prompt."""
    errors = HttpProcessingError, web.RequestPayloadError
    return record.exc_info is not None and isinstance(record.exc_info[1], errors)


def allow_many_files() -> None:
    """Raise the soft limit of open files, usually 1,024, to the hard one: each connection is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
