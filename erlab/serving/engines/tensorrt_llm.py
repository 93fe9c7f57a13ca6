"""Commands that build TensorRT-LLM engines; `tensorrt_llm_build` runs them.

An engine needs two commands. The first writes a checkpoint: with dummy weights (the default) only its ``config.json``;
with real weights, a Hugging Face folder, the converted or quantized weights. The second, ``trtllm-build``, writes the
engine; from a bare ``config.json`` it has the real size without reading weights, on which speed does not depend.

TensorRT-LLM supports this path up to 1.2.1; `nvidia.IMAGE` has all programs.

>>> from erlab.paper import SYSTEMS
>>> plan = commands(SYSTEMS["v2"]["A"].expert, "/engines/a")
>>> [Path(command.argv[0]).name for command in plan]
['python3', 'trtllm-build']
>>> print(plan[1])  # doctest: +ELLIPSIS
trtllm-build --model_config /engines/a/checkpoint/config.json --output_dir /engines/a/engine --workers 4 ...
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.paper import RESERVE, kv_bytes_per_token, weight_bytes
from erlab.simulation.hardware import GPUS, Gpu, kv_pool_tokens
from erlab.spec import BF16, FP8, FP16, GIB, INT8, Expert, Model, require

EXAMPLES = Path("/app/tensorrt_llm/examples")  # the conversion scripts' folder in the container
MAX_NUM_TOKENS = 8192  # prompt and decoded tokens of one iteration; trtllm-build's default
RUNTIME = GIB  # CUDA context, TensorRT and NCCL on each GPU; assumed

_SECONDS_PER_BYTE = 1 / 0.5e9  # weights through disk and builder; assumed, as are all minutes here
_FLAGS = {  # by precision: 16-bit type, flags of convert_checkpoint.py for dummy weights, of quantize.py for real ones
    FP16: ("float16", (), None),
    BF16: ("bfloat16", (), None),
    FP8: ("float16", ("--use_fp8", "--fp8_kv_cache"), ("fp8", "fp8")),
    INT8: ("float16", ("--use_weight_only", "--weight_only_precision", "int8", "--int8_kv_cache"), ("int8_wo", "int8")),
}

ARCHITECTURE = {  # Hugging Face's names of a model's sizes
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "intermediate",
    "vocab_size": "vocab",
}
_ALGORITHMS = {FP16: (None, None), BF16: (None, None), FP8: ("FP8", "FP8"), INT8: ("W8A16", "INT8")}  # weights, cache


@dataclass(frozen=True)
class Command:
    """Build command.

    Attributes:
        script: Content of the file named by the last argument, written before the command runs; None if there is none.
    """

    argv: tuple[str, ...]
    writes: Path
    minutes: float
    disk_bytes: int
    script: str | None = None

    def __str__(self) -> str:
        """Return the shell command, after the one that writes its script."""
        write_script = f"cat > {shlex.quote(self.argv[-1])} <<'END'\n{self.script}END\n" if self.script else ""
        return write_script + shlex.join(self.argv)


@dataclass(frozen=True)
class Memory:
    """Memory of an engine; matrices and both embeddings are spread evenly over its GPUs.

    Attributes:
        reserve: Bytes per GPU for activations and runtime, at least the simulator's reserve.
        kv: Bytes of the KV cache per GPU.
        kv_tokens: Tokens of the KV cache over all GPUs.
    """

    weights: int
    activations: int
    reserve: int
    kv: int
    kv_tokens: int


def memory(expert: Expert, gpu: Gpu = GPUS["H100"]) -> Memory:
    """Return the memory that an engine takes; ErlabError where it does not fit.

    Activations are those of the MLP for `MAX_NUM_TOKENS` tokens of 16 bits (residual stream and its normalised copy
    whole; gate, up and their product split) and float32 logits of a full batch.
    """
    model, tp = expert.model, expert.tensor_parallel
    widest = MAX_NUM_TOKENS * (2 * model.hidden + 3 * model.intermediate // tp) * 2
    activations = widest + expert.max_batch_size * model.vocab * 4
    reserve = max(RESERVE, activations + RUNTIME)
    tokens = kv_pool_tokens(expert, gpu, reserve / GIB)
    weights = weight_bytes(expert) // tp
    kv = tokens * kv_bytes_per_token(expert) // tp
    if weights + reserve + kv > gpu.memory:  # possible only for an expert that states its pool
        raise ErlabError(
            f"{model.name} {expert.precision.name} does not fit {tp} {gpu.name}: a GPU of {gpu.memory / GIB:.1f} GiB "
            f"would hold weights {weights / GIB:.1f}, KV cache {kv / GIB:.1f} and reserve {reserve / GIB:.1f} GiB."
        )
    return Memory(weights, activations, reserve, kv, tokens)


def commands(
    expert: Expert, folder: str | Path, weights: str | Path | None = None, examples: Path = EXAMPLES
) -> tuple[Command, Command]:
    """Return the two commands that build an engine: checkpoint, then ``folder/engine``. No file is read.

    Args:
        weights: Hugging Face folder of a Llama; None for dummy weights.
        examples: Folder of TensorRT-LLM's conversion scripts.

    Raises:
        ErlabError: TensorRT-LLM cannot serve the expert.
    """
    _require_served(expert)
    folder = Path(folder).expanduser().resolve()
    checkpoint = _checkpoint(expert, folder / "checkpoint", weights, Path(examples))
    return checkpoint, _build(expert, folder, checkpoint.writes, real=weights is not None)


def _require_served(expert: Expert) -> None:
    require(expert.cores is None, "cores", "a TensorRT-LLM engine", "be None (it computes on GPUs)", expert.cores)
    precision, longest = expert.precision, expert.max_input_tokens
    allowed = f"be one of {', '.join(p.name for p in _FLAGS)}"
    require(precision in _FLAGS, "precision", "a TensorRT-LLM engine", allowed, precision.name)
    allowed = f"be at most {MAX_NUM_TOKENS}, since a prompt is computed in one iteration"
    require(longest <= MAX_NUM_TOKENS, "max_input_tokens", "a TensorRT-LLM engine", allowed, longest)


def _checkpoint(expert: Expert, to: Path, weights: str | Path | None, examples: Path) -> Command:
    model, tp = expert.model, expert.tensor_parallel
    dtype, dummy_flags, quantized = _FLAGS[expert.precision]
    convert = ("python3", str(examples / "models/core/llama/convert_checkpoint.py"))
    common = ("--output_dir", str(to), "--dtype", dtype, "--tp_size", str(tp))
    spread = ("--use_parallel_embedding",) * (tp > 1)  # otherwise each GPU holds the whole input embedding
    if weights is None:
        sizes = {
            "--vocab_size": model.vocab,
            "--n_positions": model.max_positions,
            "--n_layer": model.layers,
            "--n_head": model.heads,
            "--n_kv_head": model.kv_heads,
            "--n_embd": model.hidden,
            "--inter_size": model.intermediate,
            "--rms_norm_eps": 1e-05,
            "--rotary_base": model.rope_theta,
        }
        architecture = tuple(text for flag, size in sizes.items() for text in (flag, str(size)))
        return Command((*convert, *common, *architecture, *dummy_flags, *spread), to, 0.5, 2**20)
    source = ("--model_dir", str(Path(weights).expanduser().resolve()))
    minutes = (2 * model.parameters + weight_bytes(expert)) * _SECONDS_PER_BYTE / 60
    if quantized is None:
        return Command((*convert, *source, *common, *spread), to, minutes, weight_bytes(expert))
    qformat, cache = quantized
    script = ("python3", str(examples / "quantization/quantize.py"))
    argv = (*script, *source, *common, "--qformat", qformat, "--kv_cache_dtype", cache)
    return Command(argv, to, minutes + 10, weight_bytes(expert))  # 10 for the calibration


def _build(expert: Expert, folder: Path, checkpoint: Path, real: bool) -> Command:
    to, timing = folder / "engine", str(folder / "timing.cache")
    source = ("--checkpoint_dir", str(checkpoint)) if real else ("--model_config", str(checkpoint / "config.json"))
    flags = {
        "--output_dir": to,
        "--workers": expert.tensor_parallel,
        "--max_batch_size": expert.max_batch_size,
        "--max_input_len": expert.max_input_tokens,
        "--max_seq_len": expert.max_sequence_tokens,
        "--max_num_tokens": MAX_NUM_TOKENS,
        "--kv_cache_type": "paged",
        "--remove_input_padding": "enable",  # required for in-flight batching
        "--gemm_plugin": "auto",
        # Not allowed with an INT8 cache; with an FP8 cache it requires FP8 attention.
        "--use_paged_context_fmha": "disable" if expert.precision == INT8 else "enable",
        "--use_fp8_context_fmha": "enable" if expert.precision == FP8 else "disable",
        "--input_timing_cache": timing,  # a repeated build reuses kernel timings
        "--output_timing_cache": timing,
    }
    argv = ("trtllm-build", *source, *(text for flag, value in flags.items() for text in (flag, str(value))))
    size = weight_bytes(expert) * 105 // 100
    return Command(argv, to, 2 + size * _SECONDS_PER_BYTE / 60, size)


def api_commands(expert: Expert, folder: str | Path, weights: str | Path | None = None) -> tuple[Command]:
    """Return the command that builds the engine by TensorRT-LLM's Python API, without conversion scripts.

    Arguments and errors are those of `commands`. Dummy weights need the architecture in ``folder/model``
    (`write_model`).
    """
    _require_served(expert)
    folder = Path(folder).expanduser().resolve()
    source = folder / "model" if weights is None else Path(weights).expanduser().resolve()
    weight_algorithm, cache_algorithm = _ALGORITHMS[expert.precision]
    options = {
        "model": repr(str(source)),
        "tensor_parallel_size": expert.tensor_parallel,
        "dtype": repr(_FLAGS[expert.precision][0]),
        "load_format": repr("dummy" if weights is None else "auto"),
        "build_config": "BuildConfig("
        f"max_batch_size={expert.max_batch_size}, max_input_len={expert.max_input_tokens}, "
        f"max_seq_len={expert.max_sequence_tokens}, max_num_tokens={MAX_NUM_TOKENS})",
    }
    if weight_algorithm:
        algorithms = f"quant_algo=QuantAlgo.{weight_algorithm}, kv_cache_quant_algo=QuantAlgo.{cache_algorithm}"
        options["quant_config"] = f"QuantConfig({algorithms})"
    given = "".join(f"        {name}={value},\n" for name, value in options.items())
    script = (
        "from tensorrt_llm._tensorrt_engine import LLM\n"
        "from tensorrt_llm.llmapi import BuildConfig, QuantAlgo, QuantConfig\n\n"
        'if __name__ == "__main__":  # its workers import this\n'
        f"    llm = LLM(\n{given}    )\n"
        f"    llm.save({str(folder / 'engine')!r})\n"
    )
    build = _build(expert, folder, folder / "checkpoint", real=weights is not None)
    return (Command(("python3", str(folder / "build.py")), build.writes, build.minutes, build.disk_bytes, script),)


def require_weights(weights: Path, model: Model) -> None:
    """Refuse a folder that does not hold a complete Hugging Face model of this architecture."""
    try:
        config = json.loads(textfiles.read(weights / "config.json"))
    except (ErlabError, ValueError) as e:
        raise ErlabError(f"{weights}: no folder of Hugging Face weights with a config.json ({e}).") from None
    for name, attribute in ARCHITECTURE.items():
        expected = getattr(model, attribute)
        if config.get(name) != expected:
            raise ErlabError(f"{weights}: {name} must be {expected} for {model.name}. Got {config.get(name)}.")
    index = weights / "model.safetensors.index.json"
    try:
        whole = not index.is_file()
        files = {"model.safetensors"} if whole else set(json.loads(textfiles.read(index))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as e:
        raise ErlabError(f"{index}: not the index of weights ({e!r}).") from None
    if missing := sorted(f for f in files | {"tokenizer.json"} if not (weights / f).is_file()):
        raise ErlabError(f"{weights}: {missing[0]} is missing there ({len(missing)} files in all).")


def write_model(folder: Path, expert: Expert) -> None:
    """Write the Hugging Face ``config.json`` of an expert's model, without weights."""
    model = expert.model
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": model.rope_theta,
        "max_position_embeddings": model.max_positions,
        "tie_word_embeddings": False,
        "torch_dtype": _FLAGS[expert.precision][0],
    }
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: getattr(model, attribute) for name, attribute in ARCHITECTURE.items()}
    (folder / "config.json").write_text(json.dumps(config | sizes, indent=2) + "\n")
