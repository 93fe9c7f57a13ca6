"""Model folders of OpenAI-compatible servers, and the commands that serve them.

vLLM and trtllm-serve make dummy weights of a model's real size from its ``config.json``; a byte tokenizer comes with it
(`tokenizer`). Flags are those of vLLM 0.22 and of TensorRT-LLM 1.0 to 1.3. Prefix caching is off, so that a repeated
prompt is computed again; vLLM decodes greedily, as TensorRT-LLM's ensemble does.

>>> from erlab.paper import SYSTEMS
>>> print(*vllm(SYSTEMS["v2"]["E"].expert, Path("/m"), "E-expert-0", 0.25, dummy=True)[:6])
vllm serve /m --served-model-name E-expert-0 --host
"""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from erlab import paper, textfiles
from erlab.errors import ErlabError
from erlab.serving.engines.kinds import slug
from erlab.serving.engines.openai_server import METRICS, PORT
from erlab.serving.engines.tensorrt_llm import require_weights
from erlab.simulation.hardware import Gpu
from erlab.simulation.vllm import BATCHED_TOKENS, BLOCK_TOKENS
from erlab.spec import BF16, Expert, require

FORMAT = 1  # of the folders; increase when the same expert gives other files
_QUANTIZED = {"producer": {"name": "erlab"}, "quantization": {"quant_algo": "FP8"}}  # as in NVIDIA's checkpoints


def vllm(expert: Expert, model: Path, name: str, share: float, dummy: bool) -> tuple[str, ...]:
    """Return the command that serves an expert by vLLM.

    Args:
        share: Share of the GPU's memory, in (0, 1).

    Returns:
        Program and arguments, with `openai_server.PORT` in place of the port.
    """
    program = _MODULE if not shutil.which("vllm") and _importable() else ("vllm",)
    flags = {
        "--served-model-name": name,
        "--host": "127.0.0.1",
        "--port": PORT,
        "--dtype": "bfloat16",
        "--tensor-parallel-size": expert.tensor_parallel,
        "--gpu-memory-utilization": f"{share:.3f}",
        "--max-num-seqs": expert.max_batch_size,
        "--max-model-len": expert.max_sequence_tokens,
        "--max-num-batched-tokens": BATCHED_TOKENS,
        "--generation-config": "vllm",
        "--override-generation-config": '{"temperature": 0.0}',
    }
    if dummy:
        flags["--load-format"] = "dummy"
    if expert.precision.weight_bits == 8:
        flags["--quantization"] = "fp8"
    if expert.precision.kv_bits == 8:
        flags["--kv-cache-dtype"] = "fp8"
    if expert.kv_tokens is not None:
        flags["--num-gpu-blocks-override"] = expert.kv_tokens // BLOCK_TOKENS
    listed = (text for flag, value in flags.items() for text in (flag, str(value)))
    return (*program, "serve", str(model), *listed, "--no-enable-prefix-caching", "--disable-uvicorn-access-log")


def trtllm_serve(expert: Expert, model: Path, name: str, share: float, dummy: bool) -> tuple[str, ...]:
    """Return the command by trtllm-serve (PyTorch backend), which names the model after its folder."""
    flags = {
        "--host": "127.0.0.1",
        "--port": PORT,
        "--backend": "pytorch",
        "--tp_size": expert.tensor_parallel,
        "--max_batch_size": expert.max_batch_size,
        "--max_num_tokens": max(BATCHED_TOKENS, expert.max_input_tokens),
        "--max_seq_len": expert.max_sequence_tokens,
        "--extra_llm_api_options": model / "options.yaml",
    }
    return ("trtllm-serve", "serve", str(model), *(text for flag, v in flags.items() for text in (flag, str(v))))


def embedded(expert: Expert, model: Path, name: str, share: float, dummy: bool) -> tuple[str, ...]:
    """Return the command by the laptop's engine on CUDA."""
    flags = {
        "--engine": model,
        "--name": name,
        "--port": PORT,
        "--max-batch-size": expert.max_batch_size,
        "--max-sequence-tokens": expert.max_sequence_tokens,
        "--device": "cuda",
    }
    if expert.kv_tokens is not None:
        flags["--kv-tokens"] = expert.kv_tokens
    module = (sys.executable, "-m", "erlab.serving.engines.tiny_openai")
    return (*module, *(text for flag, value in flags.items() for text in (flag, str(value))))


KINDS: dict[str, Callable] = {"trtllm-serve": trtllm_serve, "vllm": vllm, "embedded": embedded}
_MODULE = (sys.executable, "-m", "vllm.entrypoints.cli.main")  # a vLLM without its console script


def _importable() -> bool:
    return importlib.util.find_spec("vllm") is not None


def missing(kind: str) -> str | None:
    """Return why this kind of server cannot be started here, None if it can. GPUs are not checked."""
    if kind == "vllm":
        return None if shutil.which("vllm") or _importable() else "vLLM is not installed"
    if kind == "trtllm-serve":
        return None if shutil.which("trtllm-serve") else "trtllm-serve is not on PATH"
    import torch  # here, since only the embedded engine needs it

    return None if torch.cuda.is_available() else "PyTorch sees no CUDA GPU"


def build(kind: str, expert: Expert, folder: Path, seed: int, weights: Path | None = None) -> Path:
    """Write the model folder of an expert unless it exists.

    Args:
        weights: Folder of real weights for vLLM and trtllm-serve; None for dummy weights.
    """
    check(kind, expert)
    if kind == "embedded":
        require(weights is None, "weights", "the embedded engine", "be None (its weights are seeded dummies)", weights)
    elif weights is not None:
        require_weights(weights, expert.model)
    spec = asdict(replace(expert, kv_tokens=None))
    about = {"format": FORMAT, "kind": kind, "weights": str(weights) if weights else None, "expert": spec}
    marker = folder / "openai.json"
    if marker.is_file() and json.loads(marker.read_text()) == json.loads(json.dumps(about)):
        return folder
    marker.unlink(missing_ok=True)
    if kind == "embedded":
        from erlab.serving.engines import tiny  # here, since it imports torch, which plans do not need

        tiny.build(_weights(folder, expert), expert.model, expert.precision, seed)
    else:
        _write_architecture(kind, expert, folder)
    textfiles.save(marker, json.dumps(about, indent=1))
    return folder


def check(kind: str, expert: Expert) -> None:
    """Refuse an expert that this kind of server cannot serve."""
    require(kind in KINDS, "kind", "an OpenAI-compatible server", f"be one of {', '.join(KINDS)}", kind)
    if kind == "embedded":
        allowed = "be BF16 (profile gpu-embedded has no other)"
        require(expert.precision == BF16, "precision", "the embedded engine", allowed, expert.precision.name)


def _weights(folder: Path, expert: Expert) -> Path:
    """Return the folder of the embedded engine's weights, which experts with different batch limits share."""
    return folder.parent / slug(f"embedded-{expert.model.name}-{expert.precision.name}")


def _write_architecture(kind: str, expert: Expert, folder: Path) -> None:
    from erlab.serving.engines import tiny, tokenizer  # here, since they import torch, which plans do not need

    tokenizer.write(folder, expert.model.vocab)
    config = tiny.config(expert.model, BF16)
    config |= {"rope_theta": expert.model.rope_theta, "torch_dtype": config["dtype"]}  # names in transformers 4
    textfiles.save(folder / "config.json", json.dumps(config, indent=1))
    if kind == "trtllm-serve" and expert.precision.weight_bits == 8:
        about = _QUANTIZED["quantization"] | {"kv_cache_quant_algo": "FP8" if expert.precision.kv_bits == 8 else None}
        textfiles.save(folder / "hf_quant_config.json", json.dumps(_QUANTIZED | {"quantization": about}, indent=1))


def share(expert: Expert, gpu: Gpu) -> float:
    """Return the share of GPU memory for weights, reserve and KV cache; vLLM's default without a stated pool."""
    if expert.kv_tokens is None:
        return 0.9
    kv = expert.kv_tokens * paper.kv_bytes_per_token(expert)
    return min(0.95, (paper.weight_bytes(expert) + paper.RESERVE + kv) / gpu.memory)


def write(repository: Path, name: str, folder: Path, expert: Expert, gpu: Gpu) -> Path:
    """Write ``repository/name/server.json`` with the command that serves a model.

    Raises:
        ErlabError: There is no such model folder, or it was built for another expert.
    """
    try:
        about = json.loads((folder / "openai.json").read_text())
    except (OSError, ValueError) as e:
        raise ErlabError(f"{folder}: no model of an OpenAI-compatible server ({e}). Run 01_build_engines.") from None
    if about["expert"] != json.loads(json.dumps(asdict(replace(expert, kv_tokens=None)))):
        raise ErlabError(f"{folder}: this model was written for another expert. Run 01_build_engines again.")
    kind, weights, memory_share = about["kind"], about["weights"], share(expert, gpu)
    place = Path(repository).resolve() / name
    model = Path(weights) if weights else _weights(folder, expert) if kind == "embedded" else folder
    if kind == "trtllm-serve":
        model = _named(place / name, model, expert, dummy=weights is None)
    argv = KINDS[kind](expert, model, name, memory_share, weights is None)
    server = {"kind": kind, "argv": argv, "metrics": METRICS[kind], "share": round(memory_share, 3)}
    return textfiles.save(place / "server.json", json.dumps(server, indent=1))


def _named(place: Path, model: Path, expert: Expert, dummy: bool) -> Path:
    """Link the model's files into a folder of the model's name, which trtllm-serve uses, and write its options."""
    place.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        link = place / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    cache = {"enable_block_reuse": False, "dtype": "fp8" if expert.precision.kv_bits == 8 else "auto"}
    if expert.kv_tokens is not None:
        cache["max_tokens"] = expert.kv_tokens
    options = {"kv_cache_config": cache} | ({"load_format": "dummy"} if dummy else {})
    textfiles.save(place / "options.yaml", json.dumps(options, indent=1))  # JSON is YAML
    return place
