"""Description of a gateway and the experts behind it: the one form in which every caller states it.

`erlab gateway` reads it from a TOML file, `erlab serve` and the study make it with `from_clusters`, and gateway
processes receive it as JSON. Nothing is contacted here.

    [gateway]
    host = "0.0.0.0"                 # default 127.0.0.1
    port = 8001                      # KServe v2 gRPC; default 0, a free one; grpc = false opens none
    http_port = 8080                 # OpenAI-compatible; default 0, a free one; http = false opens none
    workers = 4                      # processes that share the ports; default 1
    key_variable = "ERLAB_API_KEY"   # environment variable with the key that clients must send
    hosts = ["llm.example.com"]      # host names answered beside loopback's; default any, on a loopback address none
    origins = ["https://example.com"]  # web pages that may read answers; default none
    log = "access.jsonl"             # one JSON object per request, - for standard error; default none
    log_prompts = true               # with the text of the prompts; default false

    [router]
    folder = "router"                # saved router; with `prompts`, where to save the trained one; default router
    prompts = "my_prompts/"          # as `erlab reproduce --prompts`; also text, clusters, features, clusterer, seed

    [policy]
    name = "outlier"                 # with generalist; strong_weak with strong and threshold; spill with factor, free
    generalist = "general"

    [limits]                         # `erlab.gateway.limits.Limits`
    queue = 256

    [experts.math]
    url = "http://10.0.0.5:8000/v1"  # OpenAI-compatible; grpc://HOST:PORT for Triton
    model = "Qwen2.5-Math-7B"        # or behind the URL: http://.../v1#MODEL, grpc://HOST:PORT/MODEL
    domains = ["mathematics"]        # or clusters = [0, 3]
    weight = 2                       # share of a cluster that several experts serve; default 1
    price = [0.2, 0.6]               # dollars per million input and output tokens
    key_variable = "MATH_KEY"        # environment variable with the key that the expert requires

Files are relative to the TOML file. If no expert names clusters or domains, clusters are dealt to the experts in turn,
skipping the policy's generalist or strong expert; otherwise each cluster needs an expert. A router that was trained for
experts (`erlab.quality`) names the expert of each cluster itself. An expert without clusters is asked by its name, or
by the policy.

>>> fleet = from_clusters("router", "127.0.0.1:8001", ("expert_0", "expert_1"), port=9001)
>>> [(expert.name, expert.url) for expert in fleet.experts]
[('expert_0', 'grpc://127.0.0.1:8001/expert_0'), ('expert_1', 'grpc://127.0.0.1:8001/expert_1')]
>>> places(fleet, clusters=4)
((0,), (1,), (0,), (1,))
"""

import inspect
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

from erlab import toml
from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.gateway.core import ROUTER
from erlab.gateway.limits import Limits
from erlab.routing.policies import NUMBERS, POLICIES, SPECIAL_EXPERTS, gateway_policies
from erlab.spec import require

KEY_VARIABLE = "ERLAB_API_KEY"
_RELOADED = ("experts", "router", "policy", "special_expert", "policy_parameters")  # what a running gateway can change
_OWNER = "the gateway"
_FORMS = "be grpc://HOST:PORT/MODEL (Triton) or http://HOST:PORT/v1#MODEL (OpenAI-compatible)"


class Location(NamedTuple):
    """A model on a server: HOST:PORT of a Triton server or base URL of an OpenAI-compatible one."""

    server: str
    model: str

    @property
    def is_triton(self) -> bool:
        return "://" not in self.server


@dataclass(frozen=True)
class ExpertConfig:
    """Description of one expert; attributes as in the module's table [experts.NAME].

    Raises:
        ErlabError: A value is not allowed.
    """

    name: str
    url: str
    clusters: tuple[int, ...] = ()
    domains: tuple[str, ...] = ()
    weight: float = 1.0
    price: tuple[float, float] | None = None
    key_variable: str | None = None

    def __post_init__(self):
        owner = f"expert {self.name!r}"
        fits = bool(self.name.strip()) and self.name.isprintable() and self.name != ROUTER
        require(fits, "name", "an expert", f"be printable text other than {ROUTER!r}", self.name)
        require(0 < self.weight < math.inf, "weight", owner, "be more than 0", self.weight)
        require(all(c >= 0 for c in self.clusters), "clusters", owner, "be at least 0", list(self.clusters))
        fits = self.price is None or len(self.price) == 2 and all(0 <= p < math.inf for p in self.price)
        require(fits, "price", owner, "be two numbers from 0, dollars per million input and output tokens", self.price)
        self.location  # raises

    @property
    def location(self) -> Location:
        if http := re.fullmatch(r"(https?://(?:\[[^\]\s]+\]|[^\s/#:\[\]]+)(?::\d+)?(?:/[^#\s]*)?)#(\S+)", self.url):
            return Location(http[1].rstrip("/"), http[2])
        triton = re.fullmatch(r"grpc://([^/\s]+)/(\S+)", self.url)
        require(triton is not None, "url", f"expert {self.name!r}", _FORMS, self.url)
        return Location(kserve.address(triton[1]), triton[2])

    @property
    def key(self) -> str | None:
        """The key that the expert requires; raises ErlabError if its variable is not set."""
        return _secret(self.key_variable, f"expert {self.name!r}") if self.key_variable else None


@dataclass(frozen=True)
class RouterConfig:
    """Description of the router.

    Attributes:
        folder: Folder of the saved router.
        trains: Whether it is trained and saved there at first start.
        prompts: What it is trained from; None for the project's own prompts.
        text: Column of the prompts.
        clusters, features, clusterer, seed: As of `erlab.routing.PromptRouter`.
    """

    folder: str
    trains: bool = False
    prompts: str | None = None
    text: str | None = None
    clusters: int = 8
    features: str = "words"
    clusterer: str = "kmeans"
    seed: int = 0


@dataclass(frozen=True)
class FleetConfig:
    """Description of a gateway; see the module.

    Attributes:
        experts: The experts, at least one.
        router: None for no routing: each expert is a model under its own name.
        policy: Name in `erlab.routing.policies.POLICIES`.
        special_expert: Name of the policy's generalist or strong expert.
        policy_parameters: Parameters of the policy.
        port: Port of the gRPC face; 0 lets the system choose, None for no such face.
        http_port: The same of the HTTP face.

    Raises:
        ErlabError: A value is not allowed, or values contradict each other.
    """

    experts: tuple[ExpertConfig, ...]
    router: RouterConfig | None = None
    policy: str = "nearest"
    special_expert: str | None = None
    policy_parameters: Mapping[str, float] = field(default_factory=dict)
    limits: Limits = Limits()
    host: str = "127.0.0.1"
    port: int | None = 0
    http_port: int | None = 0
    workers: int = 1
    key_variable: str = KEY_VARIABLE
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    log: str | None = None
    log_prompts: bool = False

    def __post_init__(self):
        names = [expert.name for expert in self.experts]
        require(len(names) > 0, "experts", _OWNER, "name at least one expert", names)
        require(len(set(names)) == len(names), "experts", _OWNER, "have different names", names)
        require(self.workers >= 1, "workers", _OWNER, "be at least 1", self.workers)
        is_open = self.port is not None or self.http_port is not None
        require(is_open, "grpc", _OWNER, "be open, or the HTTP face", "neither")
        for name in "port", "http_port":
            value = getattr(self, name)
            require(value is None or 0 <= value <= 65535, name, _OWNER, "be from 0 to 65535", value)
        for origin in self.origins:
            fits = re.fullmatch(r"https?://[^\s/]+", origin) is not None
            require(fits, "origins", _OWNER, "be https://HOST or http://HOST:PORT each", origin)
        self._check_policy(names)

    def _check_policy(self, names: list[str]) -> None:
        known = gateway_policies()
        require(self.policy in known, "policy", _OWNER, f"be one of {', '.join(known)}", self.policy)
        if kind := SPECIAL_EXPERTS.get(self.policy):
            needed = f"name an expert where the policy is {self.policy}"
            require(self.special_expert is not None, kind, _OWNER, needed, self.special_expert)
            require(self.special_expert in names, kind, _OWNER, f"be one of {', '.join(names)}", self.special_expert)
        for name, value in self.policy_parameters.items():
            require(name in NUMBERS, "policy_parameters", _OWNER, f"be some of {', '.join(NUMBERS)}", name)
            least, most = NUMBERS[name]
            takers = [policy for policy in known if name in inspect.signature(POLICIES[policy]).parameters]
            fits = self.policy in takers and least <= value <= most
            span = f"be from {least:g} to {most:g}" if most < math.inf else f"be at least {least:g}"
            require(fits, name, _OWNER, f"{span}, and only where the policy is {' or '.join(takers)}", value)

    @property
    def key(self) -> str | None:
        """Bearer token that clients must send, None for none; raises ErlabError if its named variable is not set."""
        if self.key_variable == KEY_VARIABLE:
            return os.environ.get(KEY_VARIABLE) or None
        return _secret(self.key_variable, _OWNER)

    def json(self) -> str:
        """Encode the description as one line of JSON."""
        return json.dumps(asdict(self))


def from_json(line: str | bytes) -> FleetConfig:
    """Decode what `FleetConfig.json` wrote."""
    values = json.loads(line)
    experts = tuple(ExpertConfig(**{k: _tuple(v) for k, v in expert.items()}) for expert in values.pop("experts"))
    router = values.pop("router")
    router = RouterConfig(**router) if router else None
    limits = Limits(**values.pop("limits"))
    return FleetConfig(experts, router, limits=limits, **{name: _tuple(value) for name, value in values.items()})


def from_clusters(
    router: str | Path | None,
    upstream: str | None,
    experts: tuple[str, ...],
    names: tuple[str, ...] = (),
    generalist: str | None = None,
    strong: str | None = None,
    threshold: float | None = None,
    **settings: object,
) -> FleetConfig:
    """Describe a gateway by the expert of each cluster.

    Args:
        router: Folder of a saved router; None for no routing.
        upstream: HOST:PORT of a Triton server.
        experts: Expert of each cluster, dealt out in turn if there are more clusters than experts: a model of
            `upstream`, or a URL as `ExpertConfig.url`.
        names: Without a router: name under which each of `experts` is served.
        generalist, strong: Expert for the policy that needs it, one of `experts` or another.
        threshold: Number of the policy "strong_weak".
        **settings: Other attributes of `FleetConfig`.
    """
    policy, specials = settings.get("policy", "nearest"), {"generalist": generalist, "strong": strong}
    for kind, name in specials.items():
        allowed = "name an expert where the policy needs one, and only there"
        require(name is None or SPECIAL_EXPERTS.get(policy) == kind, kind, _OWNER, allowed, name)
    special = generalist or strong
    url = lambda name: name if "://" in name else f"grpc://{_upstream(upstream, name)}/{name}"  # noqa: E731
    if router is None:
        allowed = f"name each of the {len(experts)} experts once"
        require(len(set(names)) == len(names) == len(experts), "names", _OWNER, allowed, ",".join(names))
        described = tuple(ExpertConfig(name, url(expert)) for name, expert in zip(names, experts))
        settings |= {"http_port": None}  # baselines are measured over KServe v2
    else:
        distinct = tuple(dict.fromkeys(experts))
        explicit = len(distinct) < len(experts) or special in distinct
        clusters_of: dict[str, list[int]] = {name: [] for name in distinct}
        for cluster, name in enumerate(experts if explicit else ()):
            clusters_of[name].append(cluster)
        described = tuple(ExpertConfig(name, url(name), tuple(clusters)) for name, clusters in clusters_of.items())
        described += (ExpertConfig(special, url(special)),) if special and special not in distinct else ()
    parameters = {} if threshold is None else {"threshold": threshold}
    saved = None if router is None else RouterConfig(str(router))
    return FleetConfig(described, saved, special_expert=special, policy_parameters=parameters, **settings)


def _upstream(address: str | None, name: str) -> str:
    require(address is not None, "experts", _OWNER, _FORMS, name)
    return kserve.address(address)


def read(path: str | Path) -> dict:
    """Return the content of a fleet's TOML file for `from_table`."""
    return toml.read(path)


_GATEWAY = {"host": str, "port": int, "http_port": int, "grpc": bool, "http": bool, "workers": int, "key_variable": str}
_GATEWAY |= {"hosts": list[str], "origins": list[str], "log": str, "log_prompts": bool}
_TRAINING = {"prompts": str, "text": str, "clusters": int, "features": str, "clusterer": str, "seed": int}
_EXPERT = {"url": str, "model": str, "clusters": list[int], "domains": list[str], "weight": float}
_EXPERT |= {"price": list[float], "key_variable": str}


def from_table(table: Mapping, where: str = "fleet", folder: Path = Path()) -> FleetConfig:
    """Describe a gateway by the tables of its TOML file.

    Args:
        table: Content of the file, as of the module's example.
        where: Name of the file, for errors.
        folder: Folder that the file's paths are relative to.
    """
    parts = toml.check(table, dict.fromkeys(("gateway", "router", "policy", "limits", "experts"), dict), where)
    gateway = toml.check(parts.get("gateway", {}), _GATEWAY, f"{where}: [gateway]")
    policy_kinds = {"name": str} | dict.fromkeys(SPECIAL_EXPERTS.values(), str) | dict.fromkeys(NUMBERS, float)
    policy = toml.check(parts.get("policy", {}), policy_kinds, f"{where}: [policy]")
    limits = toml.check(parts.get("limits", {}), {f.name: f.type for f in fields(Limits)}, f"{where}: [limits]")
    tables = parts.get("experts", {})
    try:
        experts = tuple(_expert(name, about, f"{where}: [experts.{name}]") for name, about in tables.items())
        name, values = policy.get("name", "nearest"), {}
        for key in ("hosts", "origins"):
            values[key] = tuple(gateway.get(key, ()))
        for key in ("host", "workers", "key_variable", "log_prompts"):
            values |= {key: gateway[key]} if key in gateway else {}
        if log := gateway.get("log"):
            values["log"] = log if log == "-" else str(folder / log)
        kinds = [kind for kind in policy if kind in SPECIAL_EXPERTS.values()]
        for kind in kinds:
            allowed = f"stand only where the policy is {[p for p, k in SPECIAL_EXPERTS.items() if k == kind][0]}"
            require(SPECIAL_EXPERTS.get(name) == kind, kind, _OWNER, allowed, policy[kind])
        return FleetConfig(
            experts,
            _router(parts.get("router", {}), f"{where}: [router]", folder),
            policy=name,
            special_expert=policy[kinds[0]] if kinds else None,
            policy_parameters={key: value for key, value in policy.items() if key in NUMBERS},
            limits=Limits(**limits),
            port=gateway.get("port", 0) if gateway.get("grpc", True) else None,
            http_port=gateway.get("http_port", 0) if gateway.get("http", True) else None,
            **values,
        )
    except ErlabError as e:
        raise e if str(e).startswith(where) else ErlabError(f"{where}: {e}") from None


def _expert(name: str, about: object, where: str) -> ExpertConfig:
    about = dict(toml.check(about, _EXPERT, where, required=["url"]))
    url, model = about.pop("url"), about.pop("model", None)
    if model is not None:
        url = f"{url.rstrip('/')}/{model}" if url.startswith("grpc://") else f"{url}#{model}"
    return ExpertConfig(name, url, **{key: _tuple(value) for key, value in about.items()})


def _router(table: Mapping, where: str, folder: Path) -> RouterConfig:
    about = dict(toml.check(table, {"folder": str} | _TRAINING, where))
    trains = bool(about.keys() & _TRAINING.keys()) or "folder" not in about
    saved = folder / Path(about.pop("folder", ROUTER)).expanduser()
    prompts = about.pop("prompts", None)
    if prompts is not None and (folder / Path(prompts).expanduser()).exists():
        prompts = str(folder / Path(prompts).expanduser())
    return RouterConfig(str(saved), trains, prompts, **about)


def places(
    config: FleetConfig, clusters: int, names: tuple[str, ...] | None = None
) -> tuple[tuple[int, ...], ...]:
    """Return the experts that serve each of a router's clusters, as indices of `config.experts`.

    Args:
        config: The description.
        clusters: Number of clusters.
        names: Name of the expert of each cluster, if the router was trained for experts (`CompiledRouter.experts_`);
            used only if no expert names clusters or domains.

    Raises:
        ErlabError: A cluster has no expert, or an expert names a cluster that the router does not have.
    """
    experts = config.experts
    if names and not any(expert.clusters or expert.domains for expert in experts):
        known = [expert.name for expert in experts]
        allowed = f"name those that the router was trained for: {', '.join(names)}"
        require(set(names) <= set(known), "experts", _OWNER, allowed, ", ".join(known))
        return tuple((known.index(name),) for name in names)
    if not any(expert.clusters or expert.domains for expert in experts):
        free = [i for i, expert in enumerate(experts) if expert.name != config.special_expert]
        allowed = f"be 1 to {clusters}, as the router has {clusters} clusters, or name their clusters or domains"
        require(1 <= len(free) <= clusters, "experts", _OWNER, allowed, len(free))
        return tuple((free[c % len(free)],) for c in range(clusters))
    for expert in experts:
        fits, allowed = all(c < clusters for c in expert.clusters), f"be from 0 to {clusters - 1}, the router's"
        require(fits, "clusters", f"expert {expert.name!r}", allowed, list(expert.clusters))
    found = tuple(tuple(i for i, expert in enumerate(experts) if c in expert.clusters) for c in range(clusters))
    if missing := [c for c, serving in enumerate(found) if not serving]:
        raise ErlabError(f"Each cluster of the router must have an expert. Got none for {_numbers(missing)}.")
    return found


def resolved(config: FleetConfig, domains: Mapping[int, str]) -> FleetConfig:
    """Return the description with clusters instead of domains.

    Args:
        config: The description.
        domains: Most frequent domain of each cluster of the router, as far as known.
    """
    experts = []
    for expert in config.experts:
        for domain in expert.domains:
            if domain not in domains.values():
                known = toml.nearest(domain, sorted(set(domains.values()))) if domains else "it has no domains."
                raise ErlabError(f"Expert {expert.name!r}: the router has no cluster of the domain {domain!r}; {known}")
        named = {c for c, domain in domains.items() if domain in expert.domains}
        experts.append(replace(expert, clusters=tuple(sorted({*expert.clusters, *named})), domains=()))
    return replace(config, experts=tuple(experts))


def check_reload(old: FleetConfig, new: FleetConfig) -> None:
    """Raise ErlabError if a description changes what a running gateway cannot change."""
    for name in (f.name for f in fields(FleetConfig) if f.name not in _RELOADED):
        if getattr(old, name) != getattr(new, name):
            raise ErlabError(f"{name!r} must not change while the gateway runs: restart it.")


def _numbers(clusters: list[int]) -> str:
    return f"cluster {clusters[0]}" if len(clusters) == 1 else f"clusters {', '.join(map(str, clusters))}"


def _secret(variable: str, owner: str) -> str:
    if not (value := os.environ.get(variable)):
        raise ErlabError(f"The environment variable {variable} must hold the key of {owner}. It is not set.")
    return value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
