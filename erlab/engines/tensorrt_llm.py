"""TensorRT-LLM engines: from an `Expert` to the exact commands that build it, and their careful execution.

Two commands an engine. The first writes a checkpoint: with dummy weights (the default) only its ``config.json``, from
the architecture; with real weights, a folder as Hugging Face stores them, converted or quantized with calibration. The
second, ``trtllm-build``, writes the engine; from a bare ``config.json`` it makes one of the real size without reading
any weights, and speed does not depend on what weights say.

TensorRT-LLM has had this path up to 1.2.1; `CONTAINER` holds all of it. A build's folder ends up as
``checkpoint/``, ``engine/``, ``build.log`` and a marker beside each of the two, written last: what has a marker is
whole and is not made again for the same command.

>>> from erlab.paper import SYSTEMS
>>> plan = commands(SYSTEMS["v2"]["A"].expert, "/engines/a")
>>> [Path(command.argv[0]).name for command in plan]
['python3', 'trtllm-build']
>>> print(plan[1])  # doctest: +ELLIPSIS
trtllm-build --model_config /engines/a/checkpoint/config.json --output_dir /engines/a/engine --workers 4 ...
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from erlab.errors import ErlabError
from erlab.paper import RESERVE, kv_bytes_per_token, weight_bytes
from erlab.simulation.hardware import GPUS, Gpu, kv_pool_tokens
from erlab.spec import BF16, FP8, FP16, GIB, INT8, Expert, Model, require

CONTAINER = "nvcr.io/nvidia/tritonserver:25.12-trtllm-python-py3"
EXAMPLES = Path("/app/tensorrt_llm/examples")  # the conversion scripts' folder in the container
MAX_NUM_TOKENS = 8192  # prompt and decoded tokens of one iteration; trtllm-build's default
RUNTIME = GIB  # CUDA context, TensorRT and NCCL on each GPU; assumed
FORMAT = 1  # of the markers; rises when the same command would give another engine

_SECONDS_PER_BYTE = 1 / 0.5e9  # weights through disk and builder; assumed, as are all minutes here
_FLAGS = {  # by precision: 16-bit type, flags of convert_checkpoint.py for dummy weights, of quantize.py for real ones
    FP16: ("float16", (), None),
    BF16: ("bfloat16", (), None),
    FP8: ("float16", ("--use_fp8", "--fp8_kv_cache"), ("fp8", "fp8")),
    INT8: ("float16", ("--use_weight_only", "--weight_only_precision", "int8", "--int8_kv_cache"), ("int8_wo", "int8")),
}
_ARCHITECTURE = {  # Hugging Face's names of a model's sizes
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "intermediate",
    "vocab_size": "vocab",
}


@dataclass(frozen=True)
class Command:
    """A program with its arguments, the folder it writes, and roughly the minutes and bytes of disk that takes."""

    argv: tuple[str, ...]
    writes: Path
    minutes: float
    disk_bytes: int

    def __str__(self) -> str:
        return shlex.join(self.argv)


@dataclass(frozen=True)
class Memory:
    """Bytes on each of an engine's GPUs, and the tokens its KV cache holds over all of them.

    `reserve` is what weights and KV cache leave alone: activations and the runtime, and never less than the simulator
    reserves. Matrices and both embeddings are taken as spread evenly over the GPUs.
    """

    weights: int
    activations: int
    reserve: int
    kv: int
    kv_tokens: int


def memory(expert: Expert, gpu: Gpu = GPUS["H100"]) -> Memory:
    """What the engine takes of each GPU. Raises ErlabError with the numbers where it does not fit.

    Activations are those of the widest place, the MLP, for `MAX_NUM_TOKENS` tokens of 16 bits: the residual stream and
    its normed copy whole, gate, up and their product split; and float32 logits for a full batch.
    """
    model, tp = expert.model, expert.tensor_parallel
    widest = MAX_NUM_TOKENS * (2 * model.hidden + 3 * model.intermediate // tp) * 2
    activations = widest + expert.max_batch_size * model.vocab * 4
    reserve = max(RESERVE, activations + RUNTIME)
    tokens = kv_pool_tokens(expert, gpu, reserve / GIB)
    weights = weight_bytes(expert) // tp
    kv = tokens * kv_bytes_per_token(expert) // tp
    if weights + reserve + kv > gpu.memory:  # only an expert that states its pool can ask for too much
        raise ErlabError(
            f"{model.name} {expert.precision.name} does not fit {tp} {gpu.name}: a GPU of {gpu.memory / GIB:.1f} GiB "
            f"would hold weights {weights / GIB:.1f}, KV cache {kv / GIB:.1f} and reserve {reserve / GIB:.1f} GiB."
        )
    return Memory(weights, activations, reserve, kv, tokens)


def commands(
    expert: Expert, folder: str | Path, weights: str | Path | None = None, examples: Path = EXAMPLES
) -> tuple[Command, Command]:
    """The two commands that build the expert's engine in `folder`: its checkpoint, then ``folder/engine``.

    `weights`: a folder as Hugging Face stores a Llama; None for dummy weights. `examples`: where TensorRT-LLM's
    conversion scripts are. Raises ErlabError where TensorRT-LLM cannot serve the expert; looks at no file.
    """
    require(expert.cores is None, "cores", "a TensorRT-LLM engine", "be None (it computes on GPUs)", expert.cores)
    precision, longest = expert.precision, expert.max_input_tokens
    allowed = f"be one of {', '.join(p.name for p in _FLAGS)}"
    require(precision in _FLAGS, "precision", "a TensorRT-LLM engine", allowed, precision.name)
    allowed = f"be at most {MAX_NUM_TOKENS}, since a prompt is computed in one iteration"
    require(longest <= MAX_NUM_TOKENS, "max_input_tokens", "a TensorRT-LLM engine", allowed, longest)
    folder = Path(folder).expanduser().resolve()
    checkpoint = _checkpoint(expert, folder / "checkpoint", weights, Path(examples))
    return checkpoint, _build(expert, folder, checkpoint.writes, real=weights is not None)


def _checkpoint(expert: Expert, to: Path, weights: str | Path | None, examples: Path) -> Command:
    model, tp = expert.model, expert.tensor_parallel
    dtype, dummy_flags, quantized = _FLAGS[expert.precision]
    convert = ("python3", str(examples / "models/core/llama/convert_checkpoint.py"))
    common = ("--output_dir", str(to), "--dtype", dtype, "--tp_size", str(tp))
    spread = ("--use_parallel_embedding",) * (tp > 1)  # else each GPU holds the whole input embedding
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
        "--remove_input_padding": "enable",  # in-flight batching needs it
        "--gemm_plugin": "auto",
        # TensorRT-LLM refuses it with an INT8 cache, and with an FP8 cache wants FP8 attention for it.
        "--use_paged_context_fmha": "disable" if expert.precision == INT8 else "enable",
        "--use_fp8_context_fmha": "enable" if expert.precision == FP8 else "disable",
        "--input_timing_cache": timing,  # a build that is tried again need not time its kernels again
        "--output_timing_cache": timing,
    }
    argv = ("trtllm-build", *source, *(text for flag, value in flags.items() for text in (flag, str(value))))
    size = weight_bytes(expert) * 105 // 100
    return Command(argv, to, 2 + size * _SECONDS_PER_BYTE / 60, size)


def build(
    expert: Expert,
    folder: str | Path,
    weights: str | Path | None = None,
    dry_run: bool = False,
    examples: Path = EXAMPLES,
    timeout: float = 4 * 3600,
) -> tuple[Command, ...]:
    """Build the expert's engine in `folder`, as far as it isn't there; the commands that ran (`dry_run`: would run).

    A build that was interrupted or failed goes on where it stopped. `timeout`: seconds a command may take. What the
    tools print goes to ``build.log``. Raises ErlabError, before anything runs, where memory, disk, driver, GPUs, tools
    or weights do not suffice, and with the tool's own last lines where it fails. A dry run changes nothing and asks
    for no tools; the memory it checks is that of this machine's GPUs, of an H100 where there are none.
    """
    folder = Path(folder).expanduser().resolve()
    plan = commands(expert, folder, weights, examples)
    found = devices()
    memory(expert, found[0].gpu if found else GPUS["H100"])
    if weights is not None:
        _require_weights(Path(weights).expanduser().resolve(), expert.model)
    _require_own(folder)
    due = tuple(c for c in plan if not _is_done(c, expert, found, weights is not None))
    if due and due[0] is plan[0]:
        due = plan  # an engine is never older than its checkpoint
    if dry_run or not due:
        return due
    _require_tools(due)
    _require_devices(expert, found)
    _require_disk(folder, due)
    folder.mkdir(parents=True, exist_ok=True)
    for command in due:
        _marker(command).unlink(missing_ok=True)
        shutil.rmtree(command.writes, ignore_errors=True)
    for command in due:
        try:
            start = time.monotonic()
            _run(command, folder / "build.log", timeout)
            if missing := _missing(command, expert, weights is not None):
                log = folder / "build.log"
                raise ErlabError(f"{_tool(command)} ended without {command.writes / missing}. Its log: {log}.")
            _mark(command, expert, found, time.monotonic() - start)
        except BaseException:
            shutil.rmtree(command.writes, ignore_errors=True)
            raise
    return due


def load(folder: str | Path, expert: Expert) -> Path:
    """The engine in `folder` that `build` made for `expert`, ready to be served on this machine.

    Raises ErlabError where it is not whole, or was built for another expert, GPU or version of TensorRT-LLM.
    """
    folder = Path(folder).expanduser().resolve()
    engine = folder / "engine"
    try:
        about = json.loads((folder / "engine.json").read_text())
        built_with = json.loads((engine / "config.json").read_text()).get("version")
    except (OSError, ValueError) as e:
        raise ErlabError(f"{folder}: no complete TensorRT-LLM engine ({e}). Run 01_build_engines again.") from None
    if about.get("format") != FORMAT or about.get("expert") != _spec(expert):
        raise ErlabError(f"{folder}: this engine was built from another specification. Run 01_build_engines again.")
    found = devices()
    if found and about["gpu"] != found[0].gpu.name:
        here = found[0].gpu.name
        raise ErlabError(f"{folder}: built for {about['gpu']}, but this machine has {here}. Build it here.")
    try:
        installed = version("tensorrt_llm")
    except PackageNotFoundError:
        installed = None  # it will be served elsewhere, in a container
    if installed and built_with and installed != built_with:
        raise ErlabError(f"{folder}: built with TensorRT-LLM {built_with}, but {installed} is installed. Build again.")
    return engine


@dataclass(frozen=True)
class Device:
    """A GPU of this machine with its CUDA compute capability, such as (9, 0)."""

    gpu: Gpu
    capability: tuple[int, int]


def devices() -> tuple[Device, ...]:
    """This machine's GPUs as the driver names them, none without a driver. Speeds are an H100's and not used here."""
    query = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
        rows = [[field.strip() for field in line.split(",")] for line in out.splitlines() if line.strip()]
        return tuple(
            Device(replace(GPUS["H100"], name=name, memory=int(mib) * 2**20), tuple(map(int, capability.split("."))))
            for name, mib, capability in rows
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _require_weights(weights: Path, model: Model) -> None:
    try:
        config = json.loads((weights / "config.json").read_text())
    except (OSError, ValueError) as e:
        raise ErlabError(f"{weights}: no folder of Hugging Face weights with a config.json ({e}).") from None
    for name, attribute in _ARCHITECTURE.items():
        expected = getattr(model, attribute)
        if config.get(name) != expected:
            raise ErlabError(f"{weights}: {name} must be {expected} for {model.name}. Got {config.get(name)}.")


def _require_own(folder: Path) -> None:
    own = {"checkpoint", "checkpoint.json", "engine", "engine.json", "build.log", "timing.cache"}
    if folder.exists() and (others := sorted({p.name.removeprefix(".") for p in folder.iterdir()} - own)):
        raise ErlabError(f"{folder}: not a TensorRT-LLM build folder (it holds {others[0]}). Choose another.")


def _require_tools(due: tuple[Command, ...]) -> None:
    missing = [c.argv[0] for c in due if shutil.which(c.argv[0]) is None]
    missing += [tool for c in due if (tool := _tool(c)).endswith(".py") and not Path(tool).is_file()]
    if missing:
        raise ErlabError(
            f"{missing[0]} is not here: building engines needs TensorRT-LLM 1.0 to 1.2.1. The container has it: "
            f"docker run --gpus all --shm-size=2g -v $PWD:$PWD -w $PWD -it {CONTAINER}"
        )


def _tool(command: Command) -> str:
    """What does the work: the program, or the script that Python runs."""
    return command.argv[1] if command.argv[0] == "python3" else command.argv[0]


def _require_devices(expert: Expert, found: tuple[Device, ...]) -> None:
    if not found:
        raise ErlabError("No GPU answers (nvidia-smi): building an engine needs an NVIDIA driver and GPU.")
    tp = expert.tensor_parallel
    require(tp <= len(found), "tensor_parallel", "Expert", f"be at most this machine's {len(found)} GPUs", tp)
    if expert.precision == FP8 and found[0].capability < (8, 9):
        have = ".".join(map(str, found[0].capability))
        raise ErlabError(f"FP8 needs a GPU of compute capability 8.9 or more. {found[0].gpu.name} has {have}.")


def _require_disk(folder: Path, due: tuple[Command, ...]) -> None:
    existing = next(p for p in (folder, *folder.parents) if p.is_dir())
    needed, free = sum(c.disk_bytes for c in due), shutil.disk_usage(existing).free
    if needed > free:
        raise ErlabError(f"{folder}: the engine needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free.")


def _run(command: Command, log: Path, timeout: float) -> None:
    """Run it in a session of its own, so that its workers end with it, printing to the end of `log`."""
    with log.open("ab") as out:
        out.write(f"$ {command}\n".encode())
        out.flush()
        begin = out.tell()
        process = subprocess.Popen(
            command.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ErlabError(_said(command, log, begin, f"did not end within {timeout:g} s")) from None
        finally:
            if process.poll() != 0:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # workers of one that failed may still be there
                process.wait()
    if code:
        raise ErlabError(_said(command, log, begin, f"failed with status {code}"))


def _said(command: Command, log: Path, begin: int, how: str) -> str:
    """What happened, with the last lines that the command printed."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return f"{_tool(command)} {how}, saying: {' | '.join(lines[-3:]) or 'nothing'}. Its log: {log}."


def _missing(command: Command, expert: Expert, real: bool) -> str | None:
    """The first file that the command should have written and has not, or left empty."""
    engine = command.argv[0] == "trtllm-build"
    suffix = "engine" if engine else "safetensors"
    ranks = range(expert.tensor_parallel) if engine or real else ()
    names = ["config.json", *(f"rank{i}.{suffix}" for i in ranks)]
    return next((n for n in names if not (f := command.writes / n).is_file() or not f.stat().st_size), None)


def _marker(command: Command) -> Path:
    return command.writes.with_name(f"{command.writes.name}.json")


def _mark(command: Command, expert: Expert, found: tuple[Device, ...], seconds: float) -> None:
    about = {
        "format": FORMAT,
        "argv": list(command.argv),
        "expert": _spec(expert),
        "gpu": found[0].gpu.name,
        "seconds": round(seconds, 1),
    }
    marker = _marker(command)
    aside = marker.with_name(f".{marker.name}")
    aside.write_text(json.dumps(about, indent=2) + "\n")
    os.replace(aside, marker)


def _is_done(command: Command, expert: Expert, found: tuple[Device, ...], real: bool) -> bool:
    try:
        about = json.loads(_marker(command).read_text())
        same = about["format"] == FORMAT and about["argv"] == list(command.argv)
        here = not found or about["gpu"] == found[0].gpu.name  # an engine runs on the kind of GPU it was built on
    except (OSError, ValueError, KeyError):
        return False
    return same and here and _missing(command, expert, real) is None


def _spec(expert: Expert) -> dict:
    """What of the expert goes into its engine: the size of the KV pool is chosen when it is served."""
    return asdict(replace(expert, kv_tokens=None))
