"""Checks and preparation of a gateway before it starts: its router, the experts of clusters, the experts' servers.

    ready = prepare.prepared(config)         # trains the router at the first start
    prepare.require_experts(ready.config)    # asks every server for its model
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import pandas as pd
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.gateway import fleet, kserve
from erlab.gateway.fleet import ExpertConfig, FleetConfig, RouterConfig
from erlab.gateway.server import check_policy
from erlab.routing import CompiledRouter, explain

_TRAINING = "training.json"  # what a router was trained from, beside it
_SECONDS = 5.0  # for a server to list its models
_LISTED = 12  # models named in an error
_TERMS = 6  # of a cluster in the table
_BYTES = 2**24  # of the largest list of models


@dataclass(frozen=True)
class Prepared:
    """A description that can be served.

    Attributes:
        config: The description, with clusters instead of domains.
        router: Its router.
        clusters: Size, share and top_domain of each cluster, as far as known.
    """

    config: FleetConfig
    router: CompiledRouter
    clusters: Mapping[int, dict]

    def table(self) -> pd.DataFrame:
        """Tabulate the clusters: terms, size, experts and their prices; one row per cluster."""
        rows = []
        for cluster, serving in enumerate(_places(self.config, self.router)):
            about = self.clusters.get(cluster, {})
            experts = [self.config.experts[i] for i in serving]
            total = sum(expert.weight for expert in experts)
            shares = [f"{e.name} ({e.weight / total:.0%})" if len(experts) > 1 else e.name for e in experts]
            rows.append(
                {
                    "cluster": cluster,
                    "terms": ", ".join(self.router.terms_[cluster][:_TERMS]),
                    "top domain": about.get("top_domain"),
                    "training prompts": about.get("size"),
                    "experts": "\n".join(shares),
                    "price per 1M tokens (in, out)": "\n".join(map(_price, experts)),
                }
            )
        return pd.DataFrame(rows, dtype=object)


def prepared(config: FleetConfig) -> Prepared:
    """Train the router if it is not there yet, and check that it suits the description.

    Raises:
        ErlabError: The router cannot be trained or loaded, a cluster has no expert, or a key's variable is not set.
    """
    config.key  # raises
    for expert in config.experts:
        expert.key  # raises
    if config.router.trains:
        _train(config.router)
    router = CompiledRouter.load(config.router.folder)
    domains = explain.top_domains(config.router.folder)
    config = fleet.resolved(config, domains)
    _places(config, router)
    check_policy(router, config)
    return Prepared(config, router, _clusters(Path(config.router.folder)))


def _places(config: FleetConfig, router: CompiledRouter) -> tuple[tuple[int, ...], ...]:
    return fleet.places(config, len(router.centers_), router.experts_)


def _clusters(folder: Path) -> dict[int, dict]:
    try:
        return {row["cluster"]: row for row in json.loads(textfiles.read(folder / "summary.json", _BYTES))["clusters"]}
    except (ErlabError, ValueError, KeyError, TypeError):
        return {}  # only the study and `_train` write it


def _train(wanted: RouterConfig) -> None:
    """Train a router, unless the folder holds one that was trained from the same prompts in the same way."""
    from erlab.prompts import datasets

    folder, marker = Path(wanted.folder), Path(wanted.folder) / _TRAINING
    about = asdict(wanted) | {"folder": None, "inputs": datasets.inputs(wanted.prompts)}
    if marker.exists() and json.loads(textfiles.read(marker)) == about:
        return
    if (folder / "router.json").exists() and not marker.exists():
        raise ErlabError(f"{folder}: holds a router that no gateway trained. Name another folder, or give no prompts.")
    # Imported here: only the first start needs them, and they take seconds.
    from erlab.routing import PromptRouter, evaluation

    prompts = datasets.load(wanted.prompts, seed=wanted.seed, text=wanted.text)
    rows = prompts.to_pandas()
    train, held_back = rows[rows.split == "train"], rows[rows.split == "held_back"]
    clusters = train.domain.nunique() if wanted.clusterer == "supervised" else wanted.clusters
    settings = {"features": wanted.features, "clusterer": wanted.clusterer, "seed": wanted.seed}
    router = PromptRouter(clusters, **settings).fit(train.text, train.domain)
    if len(held_back):
        router.calibrate(held_back.text)
    summary = evaluation.summary(router, prompts)
    marker.unlink(missing_ok=True)
    router.save(folder)
    textfiles.save(folder / "summary.json", json.dumps(summary))
    textfiles.save(marker, json.dumps(about))


def require_experts(config: FleetConfig) -> None:
    """Raise ErlabError unless every expert's server answers and lists its model."""
    if found := problems(config):
        raise ErlabError("; ".join(f"Expert {name!r}: {problem}" for name, problem in found.items()))


def problems(config: FleetConfig) -> dict[str, str]:
    """Ask every expert's server for its model; returns what is wrong, by the expert's name."""
    with ThreadPoolExecutor(len(config.experts)) as threads:
        found = threads.map(_problem, config.experts)
        return {expert.name: problem for expert, problem in zip(config.experts, found) if problem}


def _problem(expert: ExpertConfig) -> str | None:
    server, model = expert.location
    listed = _models_of_triton(expert) if expert.location.is_triton else _models_of_openai(expert)
    if isinstance(listed, str):
        return f"{server} does not answer ({listed})."
    if listed is None or model in listed or f"{model}:latest" in listed:  # Ollama's tag
        return None
    shown = ", ".join(sorted(listed)[:_LISTED]) + (", ..." if len(listed) > _LISTED else "")
    return f"{server} has no model {model!r}. It lists {shown or 'none'}."


def _models_of_openai(expert: ExpertConfig) -> set[str] | str | None:
    """Return a server's models, None if it lists none, or why it does not answer."""
    headers = {"Authorization": f"Bearer {expert.key}"} if expert.key else {}
    try:
        request = urllib.request.Request(f"{expert.location.server}/models", headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the gateway uses no proxy
        with opener.open(request, timeout=_SECONDS) as answer:
            return {str(model["id"]) for model in json.loads(answer.read(_BYTES))["data"]}
    except urllib.error.HTTPError as e:
        return None if e.code in (404, 405) else f"HTTP status {e.code}"
    except urllib.error.URLError as e:
        return str(getattr(e.reason, "strerror", None) or e.reason)
    except OSError as e:
        return str(e)
    except (ValueError, LookupError, TypeError):
        return "its list of models is not OpenAI's"


def _models_of_triton(expert: ExpertConfig) -> set[str] | str:
    """Return the models of a Triton server that are ready, or why it does not answer."""
    server, model = expert.location
    metadata = [("authorization", f"Bearer {expert.key}")] if expert.key else None
    with grpc.insecure_channel(server, options=kserve.CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        options = {"timeout": _SECONDS, "metadata": metadata}
        try:
            if stub.ModelReady(service_pb2.ModelReadyRequest(name=model), **options).ready:
                return {model}
        except grpc.RpcError as e:
            return f"{e.code().name}: {e.details()}"
        with suppress(grpc.RpcError):  # not every server lists its models
            index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), **options)
            return {about.name for about in index.models}
    return set()


def _price(expert: ExpertConfig) -> str:
    return "{:g}, {:g}".format(*expert.price) if expert.price else ""
