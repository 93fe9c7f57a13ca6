"""Requirements of TensorRT-LLM: GPUs, programs and disk space of this machine.

>>> all(device.capability >= (1, 0) for device in devices())
True
"""

import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from erlab import machine
from erlab.errors import ErlabError
from erlab.serving import nvidia
from erlab.serving.engines.tensorrt_llm import EXAMPLES, Command
from erlab.serving.triton import tensorrt_llm_server
from erlab.simulation.hardware import GPUS, Gpu
from erlab.spec import FP8, Expert, Profile, require


@dataclass(frozen=True)
class Device:
    """GPU of this machine and its CUDA compute capability, such as (9, 0)."""

    gpu: Gpu
    capability: tuple[int, int]


def devices() -> tuple[Device, ...]:
    """Return this machine's GPUs, none without a driver. Their speeds are those of an H100 and not used."""
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


def checks(profile: Profile) -> list[tuple[str, str, bool | None, str]]:
    """Return the requirements of a profile's engines (see `kinds.EngineKind.checks`)."""
    gpus, needs_fp8 = devices(), FP8 in profile.precisions.values()
    names = [f"{count} x {name}" for name, count in Counter(device.gpu.name for device in gpus).items()]
    enough = len(gpus) >= profile.gpus and not (needs_fp8 and min(d.capability for d in gpus) < (8, 9))
    needed = f"{profile.gpus} GPUs{' of compute capability 8.9 or more, for FP8' * needs_fp8}, and NVIDIA's driver"
    rows = [("GPUs", ", ".join(names) or "none answer (nvidia-smi)", enough, "" if enough else f"needs {needed}")]
    reason, advice = "neither its programs nor docker or podman", f"install docker or podman, which run {nvidia.IMAGE}"
    try:
        container = nvidia.container()
    except ErlabError as e:
        container, reason, advice = None, str(e), f"mend that; it runs {nvidia.IMAGE}"
    places = {"TensorRT-LLM": _installed(), "Triton server": tensorrt_llm_server.native()}
    if container or all(places.values()):
        return rows + [(name, at or f"in {nvidia.IMAGE}, by {container}", True, "") for name, at in places.items()]
    return rows + [("TensorRT-LLM with its Triton", reason, False, f"{advice}, or work inside of that container")]


def _installed() -> str | None:
    """Return the path of the installed TensorRT-LLM: with conversion scripts, or the Python package alone."""
    if EXAMPLES.is_dir():
        return machine.find("trtllm-build")
    return machine.find("python3") if only_api(EXAMPLES) else None


def only_api(examples: Path) -> bool:
    """Return whether the installed TensorRT-LLM has no conversion scripts, like that of a package index."""
    python = machine.find("python3")
    if examples.is_dir() or not python:
        return False
    check = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorrt_llm') is None)"
    return subprocess.run((python, "-c", check), env=machine.environment(), capture_output=True).returncode == 0


def tool(command: Command) -> str:
    """Return the program of a command, or the script that Python runs."""
    return command.argv[1] if command.argv[0] == "python3" else command.argv[0]


def tools(due: Sequence[Command]) -> str | None:
    """Return the container engine that runs the commands, None where all programs are installed."""
    missing = [c.argv[0] for c in due if machine.find(c.argv[0]) is None]
    scripts = [tool(c) for c in due if not c.script]
    missing += [tool for tool in scripts if tool.endswith(".py") and not Path(tool).is_file()]
    container = nvidia.container() if missing else None
    if missing and not container:
        raise ErlabError(
            f"{missing[0]} is not here: building engines needs TensorRT-LLM 1.0 to 1.2.1, or docker or podman, which "
            f"run it in {nvidia.IMAGE}"
        )
    return container


def require_devices(expert: Expert, gpus: tuple[Device, ...]) -> None:
    """Refuse an expert that needs more GPUs, or GPUs with FP8."""
    if not gpus:
        raise ErlabError("No GPU answers (nvidia-smi): building an engine needs an NVIDIA driver and GPU.")
    tp = expert.tensor_parallel
    require(tp <= len(gpus), "tensor_parallel", "Expert", f"be at most this machine's {len(gpus)} GPUs", tp)
    if expert.precision == FP8 and gpus[0].capability < (8, 9):
        have = ".".join(map(str, gpus[0].capability))
        raise ErlabError(f"FP8 needs a GPU of compute capability 8.9 or more. {gpus[0].gpu.name} has {have}.")


def require_disk(folder: Path, needed: float) -> None:
    """Refuse a build that needs more bytes than are free on the disk of `folder`."""
    existing = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ErlabError(f"{folder}: building needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free.")
