"""This machine: cores, GPUs, memory, and programs outside of the virtual environment."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil


def cores() -> tuple[int, ...]:
    """Return the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def hardware() -> dict:
    """Return CPU model, number of usable cores, memory in bytes and names of GPUs (None without GPUs)."""
    return {
        "cpu": cpu_model(),
        "cores": len(cores()),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": list(gpus()) or None,
    }


def cpu_model() -> str | None:
    """Return the CPU's name without trademarks, None where it is unknown."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    model = name[1] if name else output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)", "", model)).strip() or None


def title(on_gpus: bool = False) -> str:
    """Return this machine's label, such as ``2-core AMD EPYC``, or ``8 x NVIDIA H200`` if engines run on GPUs."""
    if on_gpus and (names := gpus()):
        return ", ".join(f"{count} x {name}" for name, count in Counter(names).items())
    return f"{len(cores())}-core {cpu_model() or platform.machine()}"


def environment() -> dict[str, str]:
    """Return the environment variables without the virtual environment, whose ``python3`` has no TensorRT-LLM."""
    outer = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    own = {str(Path(sys.executable).parent)} if sys.prefix != sys.base_prefix else set()
    path = [place for place in outer.get("PATH", os.defpath).split(os.pathsep) if place not in own]
    return outer | {"PATH": os.pathsep.join(path)}


def find(program: str, *places: str) -> str | None:
    """Return the path of a program on PATH outside of the virtual environment, or in one of these folders."""
    path = os.pathsep.join([environment()["PATH"], *places])
    return shutil.which(program, path=path)


def gpus() -> tuple[str, ...]:
    """Return the names of this machine's GPUs, none without a driver."""
    query = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    try:
        out = subprocess.run(query, env=environment(), capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in out.splitlines() if line.strip())


def output(*command: str) -> str | None:
    """Return the output of a command; None where it is missing or fails."""
    try:
        environment = os.environ | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, timeout=20, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout).strip()  # paths may not be UTF-8
