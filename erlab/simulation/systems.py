"""Systems described in a TOML file, simulated like those of the paper; a new system needs no Python.

    [systems."8B, two GPUs each"]
    model = "Llama 3 8B"        # one of the paper, or of [models]
    precision = "FP16"          # FP16, BF16, FP8 or INT8
    tensor_parallel = 2         # GPUs of one engine (default 1)
    count = 4                   # engines (default: as many as fit eight GPUs)
    router = true               # experts behind the gateway, or replicas (default false)

    [models."My 3B"]            # the Llama architecture
    hidden = 3072
    layers = 28
    heads = 24
    kv_heads = 8
    intermediate = 8192
    vocab = 128256

The other keys of a system are the limits of `spec.Expert`, those of a model the attributes of `spec.Model`.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from erlab import paper, toml
from erlab.errors import ErlabError
from erlab.spec import BF16, FP8, FP16, GIB, INT8, Expert, Model, System

_PAPER = {name: system for systems in paper.SYSTEMS.values() for name, system in systems.items()}
MODELS = {system.expert.model.name: system.expert.model for system in _PAPER.values()}
PRECISIONS = {precision.name: precision for precision in (FP16, BF16, FP8, INT8)}
_SIZES = ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocab")
_MODEL = {**dict.fromkeys((*_SIZES, "max_positions"), int), "rope_theta": float}
_LIMITS = ("tensor_parallel", "max_batch_size", "max_input_tokens", "max_output_tokens", "kv_tokens")
_SYSTEM = {"model": str, "precision": str, **dict.fromkeys((*_LIMITS, "count"), int), "router": bool}


def read(path: str | Path) -> dict[str, System]:
    """Return the systems that a TOML file describes, by name; their records are drawn among those of the paper's v2.

    Raises:
        ErlabError: The file cannot be read, has an unknown or missing key, or describes a system that cannot be.
    """
    content = toml.check(toml.read(path), {"systems": dict, "models": dict}, str(path), ["systems"])
    models = dict(MODELS)
    for name, table in content.get("models", {}).items():
        where = f"{path}, models.{name}"
        values = toml.check(table, _MODEL, where, _SIZES)
        models[name] = _made(where, Model, name, **values)
    return {name: _system(name, table, models, f"{path}, systems.{name}") for name, table in content["systems"].items()}


def table(systems: Mapping[str, System]) -> pd.DataFrame:
    """Return one row per system: engine, number of engines, GPUs, weights of an engine in GiB, router or not."""
    rows = [
        {
            "system": name,
            "paper": system.paper if _PAPER.get(name) == system else None,
            "model": system.expert.model.name,
            "precision": system.expert.precision.name,
            "tensor_parallel": system.expert.tensor_parallel,
            "engines": system.count,
            "gpus": system.count * system.expert.tensor_parallel,
            "router": system.router,
            "weights_gib": round(paper.weight_bytes(system.expert) / GIB, 1),
        }
        for name, system in systems.items()
    ]
    return pd.DataFrame(rows)


def _system(name: str, table: object, models: Mapping[str, Model], where: str) -> System:
    values = dict(toml.check(table, _SYSTEM, where, ["model", "precision"]))
    model, precision = values.pop("model"), values.pop("precision")
    for key, chosen, known in (("model", model, models), ("precision", precision, PRECISIONS)):
        if chosen not in known:
            raise ErlabError(f"{where}: {key!r} is unknown: {chosen!r:.60}; {toml.nearest(chosen, known)}")
    if name in _PAPER or not name.strip():
        raise ErlabError(f"{where}: must have a name that no system of the paper has.")
    router, count = values.pop("router", False), values.pop("count", None)
    expert = _made(where, Expert, models[model], PRECISIONS[precision], **values)
    most = paper.GPUS // expert.tensor_parallel
    if not 1 <= (count := most if count is None else count) <= most:
        allowed = f"be 1 to {most} with {expert.tensor_parallel} of the {paper.GPUS} GPUs each"
        raise ErlabError(f"{where}: 'count' must {allowed}. Got {count}.")
    return System(name, "v2", expert, count, router)


def _made(where: str, kind: type, *values, **more):
    """Make an object; its error names the file and table."""
    try:
        return kind(*values, **more)
    except ErlabError as e:
        raise ErlabError(f"{where}: {e}") from None
