"""This machine: its cores, GPUs and memory, and the programs outside of this virtual environment."""

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
    """The CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def hardware() -> dict:
    """CPU model, the cores this process may use, memory in bytes, and the GPUs' names (None without a driver)."""
    return {
        "cpu": cpu_model(),
        "cores": len(cores()),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": list(gpus()) or None,
    }


def cpu_model() -> str | None:
    info = Path("/proc/cpuinfo")
    told = info.read_text(errors="replace") if info.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    model = found[1] if found else output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)", "", model)).strip() or None


def title(on_gpus: bool = False) -> str:
    """This machine in a few words, such as ``2-core AMD EPYC``, or where its GPUs compute ``8 x NVIDIA H200``."""
    if on_gpus and (found := gpus()):
        return ", ".join(f"{count} x {name}" for name, count in Counter(found).items())
    return f"{len(cores())}-core {cpu_model() or platform.machine()}"


def environment() -> dict[str, str]:
    """The environment without this virtual environment, whose ``python3`` has no TensorRT-LLM."""
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    ours = {str(Path(sys.executable).parent)} if sys.prefix != sys.base_prefix else set()
    path = [place for place in kept.get("PATH", os.defpath).split(os.pathsep) if place not in ours]
    return kept | {"PATH": os.pathsep.join(path)}


def find(program: str, *places: str) -> str | None:
    """Where a program is: on PATH, outside of this virtual environment, or in one of these folders."""
    path = os.pathsep.join([environment()["PATH"], *places])
    return shutil.which(program, path=path)


def gpus() -> tuple[str, ...]:
    """The names of this machine's GPUs as the driver tells them, none without a driver."""
    query = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    try:
        out = subprocess.run(query, env=environment(), capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in out.splitlines() if line.strip())


def output(*command: str) -> str | None:
    """What a command prints; None where it is missing or fails."""
    try:
        environment = os.environ | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, timeout=20, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout).strip()  # a path, in its name's own bytes
