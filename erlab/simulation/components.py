"""Tabulated times of the parts of one engine iteration.

A table is computed once per engine and stored on disk.

The time of an iteration that decodes `b` sequences and prefills some prompt tokens is the sum of four parts:

- `body`: everything that depends only on the number of tokens (GEMMs, norms, all-reduces),
- `logits`: the output head, for each sequence that gets a token,
- `decode`: attention of `b` sequences over a mean context,
- `prefill`: attention of `n` prompts of `s` tokens; `prefix` is the time that cached tokens add to one chunk.

Measured: kernel times of aiconfigurator (Apache-2.0; TensorRT-LLM and vLLM on H100 and H200), queried part by part.
Roofline: FLOP over peak rate and bytes over bandwidth, the physical limit.

aiconfigurator has no rows for INT8 weight-only. Its time is **assumed**: the larger of FP8's time (the same weight
traffic) and the bf16 arithmetic of its tensor-core instructions (bf16's time per token at the largest batch), times
`INT8_OVERHEAD` for dequantisation; its INT8 KV cache is read like that of FP8.

>>> from erlab.paper import SYSTEMS
>>> from erlab.simulation.hardware import gpu
>>> parts = roofline(SYSTEMS["v2"]["E"].expert, gpu("H100"))
>>> bool(parts.body[0] > 15.0 / 3350 * 0.9)  # one token reads 14 GB of weights at 3.35 TB/s
True
"""

import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from erlab import paths
from erlab.errors import ErlabError
from erlab.simulation.hardware import Gpu, arithmetic
from erlab.spec import Expert, require

TOKENS = np.unique(np.r_[1:9, 12:64:4, 64:320:16, 320:1024:64, 1024:4097:256, 5120:16385:1024])
BATCHES = np.r_[1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096]
CONTEXTS = np.r_[1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072:8193:1024, 16384, 32768]
PROMPTS = np.r_[1, 2, 4, 8, 16, 32, 64]
LENGTHS = np.r_[1, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384]
CHUNKS = np.r_[1, 64, 256, 512, 1024, 2048, 4096, 8192, 16384]
PREFIXES = np.r_[0, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
INT8_OVERHEAD = 1.1  # assumed: dequantisation of weights to 16 bits in the GEMM's main loop
SCHEMA = 2  # version of the files on disk; increase it when grids or meaning change


@dataclass(frozen=True)
class Components:
    """Times (s) of an iteration's parts on the grids above.

    Attributes:
        body: Shape (TOKENS,).
        logits: Shape (BATCHES,).
        decode: Shape (BATCHES, CONTEXTS).
        prefill: Shape (PROMPTS, LENGTHS).
        prefix: Shape (CHUNKS, PREFIXES); attention of a chunk beyond that of a prompt of the same length.
    """

    body: np.ndarray
    logits: np.ndarray
    decode: np.ndarray
    prefill: np.ndarray
    prefix: np.ndarray


@dataclass(frozen=True)
class Software:
    """Serving software: backend and data version of aiconfigurator."""

    backend: str = "trtllm"
    version: str = "1.2.0rc5"

    def __post_init__(self):
        require(self.backend in ("trtllm", "vllm"), "backend", "Software", "be trtllm or vllm", self.backend)


def measured(expert: Expert, gpu: Gpu, software: Software = Software(), folder: Path | None = None) -> Components:
    """Read an engine's measured table, or make and store it.

    Args:
        software: Serving software whose kernels are used.

    Raises:
        ErlabError: aiconfigurator is not installed or has no measurements of this engine.
    """
    folder = Path(folder) if folder else paths.RESULTS / "steptimes"
    dims = asdict(expert.model) | {"name": None, "rope_theta": None, "max_positions": None}
    kernels = arithmetic(expert.precision), expert.precision.kv_bits
    identity = [SCHEMA, dims, kernels, expert.tensor_parallel, gpu.name, asdict(software)]
    file = folder / (hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16] + ".npz")
    if not file.exists():
        _save(_tabulate(expert, gpu, software), file)
    with np.load(file) as data:
        return Components(**{f.name: data[f.name] for f in fields(Components)})


def _save(parts: Components, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as aside:
        np.savez_compressed(aside, **asdict(parts))
    os.replace(aside.name, file)


def _tabulate(expert: Expert, gpu: Gpu, software: Software) -> Components:
    if arithmetic(expert.precision) != "INT8":
        return _query(engine_parts(expert, gpu, software))
    wide = _query(engine_parts(expert, gpu, software, gemm="bfloat16"))
    narrow = engine_parts(expert, gpu, software, gemm="fp8")
    traffic = np.array([narrow.body(t) for t in TOKENS]) * 1e-3
    multiply = wide.body[-1] / TOKENS[-1] * TOKENS
    return replace(wide, body=INT8_OVERHEAD * np.maximum(traffic, multiply))


@dataclass(frozen=True)
class Parts:
    """Times (ms) of an iteration's parts, as functions of one point."""

    body: Callable[[int], float]
    logits: Callable[[int], float]
    decode: Callable[[int, int], float]
    prefill: Callable[[int, int, int], float]


def unavailable() -> str | None:
    """Return why measured step times are unavailable here, or None."""
    if importlib.util.find_spec("aiconfigurator"):
        return None
    return "aiconfigurator, which has wheels for Linux only, is not installed (pip install aiconfigurator==0.10.0)"


def engine_parts(expert: Expert, gpu: Gpu, software: Software, gemm: str | None = None) -> Parts:
    """Split aiconfigurator's engine of this expert into its parts.

    Args:
        gemm: GEMM kernels, fp8 or bfloat16 (default: those of the expert's precision).
    """
    if reason := unavailable():
        raise ErlabError(f"Measured step times are not available: {reason}; the roofline needs none (steps = roofline)")
    import aiconfigurator
    import aiconfigurator_core

    os.environ.setdefault("AICONFIGURATOR_SYSTEMS_PATH", str(Path(aiconfigurator.__file__).parent / "systems"))
    logging.getLogger("aiconfigurator").setLevel(logging.ERROR)
    from aiconfigurator.sdk import engine, perf_database
    from aiconfigurator.sdk.config_builders import build_model_config
    from aiconfigurator.sdk.models import get_model

    gemm = gemm or ("fp8" if arithmetic(expert.precision) == "FP8" else "bfloat16")
    kv = "fp8" if expert.precision.kv_bits == 8 else "bfloat16"
    attention = "fp8" if gemm == kv == "fp8" else "bfloat16"
    machine = f"{gpu.name.lower()}_sxm"
    where = dict(system=machine, backend=software.backend, backend_version=software.version)
    try:
        database = perf_database.get_database(machine, software.backend, software.version)
        if database is None:
            raise ValueError("aiconfigurator has no such data")
        with tempfile.TemporaryDirectory() as folder:
            _write_config(expert, Path(folder))
            config = build_model_config(expert.tensor_parallel, 1, 1, 1, 1, gemm, kv, attention)
            spec = json.loads(
                engine.build_engine_spec_json(
                    get_model(folder, config, software.backend), model_path=folder, **where, kv_block_size=None,
                    systems_path=None, nextn=0, nextn_accept_rates=None, database=database,
                )
            )

            def ops(phase: str, kind: str) -> list:
                return [op for op in spec[phase] if _kind(op) == kind]

            def engine_of(context: list, generation: list):
                chosen = {"context_ops": context, "generation_ops": generation}
                blob = aiconfigurator_core.engine_spec_bincode_from_json(json.dumps(spec | chosen))
                return aiconfigurator_core.AicEngine.from_spec(bytes(blob), None)

            attend = engine_of(ops("context_ops", "attention"), ops("generation_ops", "attention"))
            # Each engine loads the measured GEMMs, so one engine serves both: its prefill phase holds the output head.
            dense = engine_of(ops("generation_ops", "head"), ops("generation_ops", "rest"))
            with ThreadPoolExecutor() as pool:  # the first query loads measurements and releases the GIL
                queries = [
                    pool.submit(dense.predict_decode_latency, 1, 1, 2),
                    pool.submit(attend.predict_prefill_latency, 1, 1, 0),
                    pool.submit(attend.predict_decode_latency, 1, 1, 2),
                ]
                for query in queries:
                    query.result()
    except (ValueError, KeyError, RuntimeError, OSError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        name = f"{expert.model.name} {expert.precision.name} TP {expert.tensor_parallel}"
        data = f"{gpu.name}, {software.backend} {software.version}"
        raise ErlabError(f"No step times of {name} on {data}: {reason}") from e
    return Parts(
        lambda tokens: dense.predict_decode_latency(int(tokens), 1, 2),
        lambda sequences: dense.predict_prefill_latency(int(sequences), 1, 0),
        lambda batch, context: attend.predict_decode_latency(int(batch), int(context), 2),
        lambda prompts, length, prefix: attend.predict_prefill_latency(int(prompts), int(length + prefix), int(prefix)),
    )


def _kind(op: dict) -> str:
    """Classify an operation of aiconfigurator's engine: attention, head or rest."""
    name = next(iter(op.values()))["name"]
    return "attention" if name.endswith("attention") else "head" if name.endswith("logits_gemm") else "rest"


def _write_config(expert: Expert, folder: Path) -> None:
    model = expert.model
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "hidden_size": model.hidden, "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads, "intermediate_size": model.intermediate, "vocab_size": model.vocab,
        "max_position_embeddings": model.max_positions, "head_dim": model.head_dim, "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _query(parts: Parts) -> Components:
    ms = 1e-3
    prefill = np.array([[parts.prefill(n, s, 0) for s in LENGTHS] for n in PROMPTS])
    alone = prefill[0]
    prefix = np.array([[parts.prefill(1, s, p) - np.interp(s, LENGTHS, alone) for p in PREFIXES] for s in CHUNKS])
    return Components(
        body=ms * np.array([parts.body(t) for t in TOKENS]),
        logits=ms * np.array([parts.logits(b) for b in BATCHES]),
        decode=ms * np.array([[parts.decode(b, c) for c in CONTEXTS] for b in BATCHES]),
        prefill=ms * prefill,
        prefix=ms * prefix,
    )


def roofline(expert: Expert, gpu: Gpu) -> Components:
    """Compute the roofline of each part of an iteration.

    It is the larger of arithmetic at peak rate and bytes at full bandwidth. Communication is the volume of a ring
    all-reduce, 2 (p − 1) / p of each activation, at NVLink's bandwidth, twice per layer.
    """
    model, tp = expert.model, expert.tensor_parallel
    rate = tp * (gpu.flops8 if arithmetic(expert.precision) == "FP8" else gpu.flops16)
    weights = model.parameters - model.embedding_parameters
    kv_byte = expert.precision.kv_bits / 8

    def larger(flops, rate, byte):
        return np.maximum(np.asarray(flops, float) / rate, np.asarray(byte, float) / (tp * gpu.bandwidth))

    reduced = 2 * model.layers * TOKENS * model.hidden * 2 * 2 * (tp - 1) / tp / gpu.nvlink
    head = model.vocab * model.hidden
    pair = 4 * model.layers * model.hidden  # FLOP per query token and cached token
    cached = 2 * model.layers * model.kv_heads * model.head_dim * kv_byte  # bytes per cached token
    context = np.outer(BATCHES, CONTEXTS)
    causal = LENGTHS * (LENGTHS + 1) / 2
    return Components(
        body=larger(2 * weights * TOKENS, rate, weights * expert.precision.weight_bits / 8) + reduced,
        logits=larger(2 * head * BATCHES, tp * gpu.flops16, 2 * head),
        decode=larger(pair * context, tp * gpu.flops16, cached * context),
        prefill=larger(pair * np.outer(PROMPTS, causal), rate, cached * np.outer(PROMPTS, LENGTHS)),
        prefix=larger(pair * np.outer(CHUNKS, PREFIXES), rate, 0.0),
    )
