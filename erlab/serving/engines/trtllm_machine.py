"""What this machine has of what TensorRT-LLM needs, and refusals where that does not suffice.

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
from erlab.serving.triton import llm
from erlab.simulation.hardware import GPUS, Gpu
from erlab.spec import FP8, Expert, Profile, require


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


def checks(to: Profile) -> list[tuple[str, str, bool | None, str]]:
    """What this machine has of what a profile's engines need (see `kinds.EngineKind.checks`)."""
    found, narrow = devices(), [p.name for p in to.precisions.values() if p == FP8]
    names = [f"{count} x {name}" for name, count in Counter(device.gpu.name for device in found).items()]
    enough = len(found) >= to.gpus and not (narrow and min(d.capability for d in found) < (8, 9))
    needed = f"{to.gpus} GPUs{' of compute capability 8.9 or more, for FP8' * bool(narrow)}, and NVIDIA's driver"
    rows = [("GPUs", ", ".join(names) or "none answer (nvidia-smi)", enough, "" if enough else f"needs {needed}")]
    said, mend = "neither its programs nor docker or podman", f"install docker or podman, which run {nvidia.IMAGE}"
    try:
        container = nvidia.container()
    except ErlabError as e:
        container, said, mend = None, str(e), f"mend that; it runs {nvidia.IMAGE}"
    places = {"TensorRT-LLM": _installed(), "Triton server": llm.native()}
    if container or all(places.values()):
        return rows + [(name, at or f"in {nvidia.IMAGE}, by {container}", True, "") for name, at in places.items()]
    advice = f"{mend}, or work inside of that container"
    return rows + [("TensorRT-LLM with its Triton", said, False, advice)]


def _installed() -> str | None:
    """Where TensorRT-LLM is on this machine itself: with its conversion scripts, or its Python package alone."""
    return machine.find("trtllm-build") if EXAMPLES.is_dir() else machine.find("python3") if only_api(EXAMPLES) else None


def only_api(examples: Path) -> bool:
    """Whether this machine's TensorRT-LLM came without conversion scripts, as that of a package index does."""
    python = machine.find("python3")
    if examples.is_dir() or not python:
        return False
    looks = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorrt_llm') is None)"
    return subprocess.run((python, "-c", looks), env=machine.environment(), capture_output=True).returncode == 0


def tool(command: Command) -> str:
    """What does the work: the program, or the script that Python runs."""
    return command.argv[1] if command.argv[0] == "python3" else command.argv[0]


def tools(due: Sequence[Command]) -> str | None:
    """The container engine that has what the commands need, None where this machine has it all itself."""
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


def require_devices(expert: Expert, found: tuple[Device, ...]) -> None:
    """Raise ErlabError where these GPUs are too few for the expert, or have no FP8 that it needs."""
    if not found:
        raise ErlabError("No GPU answers (nvidia-smi): building an engine needs an NVIDIA driver and GPU.")
    tp = expert.tensor_parallel
    require(tp <= len(found), "tensor_parallel", "Expert", f"be at most this machine's {len(found)} GPUs", tp)
    if expert.precision == FP8 and found[0].capability < (8, 9):
        have = ".".join(map(str, found[0].capability))
        raise ErlabError(f"FP8 needs a GPU of compute capability 8.9 or more. {found[0].gpu.name} has {have}.")


def require_disk(folder: Path, needed: float) -> None:
    """Raise ErlabError where the disk that `folder` is on has no room for so many bytes."""
    existing = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ErlabError(f"{folder}: building needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free.")
