"""Where results come from: commit, package versions, machine, parameters, inputs. What isn't known is None.

>>> sorted(git())
['commit', 'dirty']
"""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import psutil

from erlab import paths
from erlab.serving import nvidia, profiles


def git() -> dict:
    """The commit the code is at and whether files differ from it; None without git or outside a clone."""
    found = _output("git", "-C", str(paths.ROOT), "rev-parse", "--show-toplevel", "HEAD")
    top, commit = found.splitlines() if found else (None, None)
    if top is None or Path(top).resolve() != paths.ROOT:  # installed inside somebody else's repository
        return {"commit": None, "dirty": None}
    changes = _output("git", "-C", str(paths.ROOT), "status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def commit() -> str | None:
    """The short commit, such as ``abc1234+dirty`` where files differ from it; None where it isn't known."""
    state = git()
    return state["commit"] and state["commit"][:7] + "+dirty" * bool(state["dirty"])


def versions() -> dict[str, str | None]:
    """The installed version of the package and of each of its dependencies; None where one is missing."""
    names = ["erlab", *(requirement.name for requirement in requirements())]
    return {name: version(name) for name in names}


def requirements() -> list:
    """The package's dependencies that this platform needs, as `packaging.requirements.Requirement`."""
    from packaging.requirements import Requirement

    try:
        listed = [Requirement(line) for line in importlib.metadata.requires("erlab") or ()]
    except importlib.metadata.PackageNotFoundError:
        return []
    return [r for r in listed if r.marker is None or r.marker.evaluate({"extra": ""})]


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware() -> dict:
    """CPU model, the cores this process may use, memory in bytes, and the GPUs' names (None without a driver)."""
    return {
        "cpu": cpu_model(),
        "cores": len(profiles.cores()),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": list(nvidia.gpus()) or None,
    }


def cpu_model() -> str | None:
    info = Path("/proc/cpuinfo")
    told = info.read_text(errors="replace") if info.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    model = found[1] if found else _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)", "", model)).strip() or None


def machine(gpus: bool = False) -> str:
    """This machine in a few words, such as ``2-core AMD EPYC``, or where its GPUs compute ``8 x NVIDIA H200``."""
    if gpus and (found := nvidia.gpus()):
        return ", ".join(f"{count} x {name}" for name, count in Counter(found).items())
    return f"{len(profiles.cores())}-core {cpu_model() or platform.machine()}"


def manifest(parameters: Mapping, inputs: Mapping[str, str], steps: list[dict], started: str, finished: str) -> dict:
    """What a run's results came from, ready for JSON.

    `parameters`: what the user chose. `inputs`: SHA-256 by file. `steps`: name, state, seconds and when, a step.
    Times are ISO 8601.
    """
    return {
        "schema": 1,
        "command": shlex.join(["erlab", *sys.argv[1:]]),
        "started": started,
        "finished": finished,
        **git(),
        "packages": versions(),
        "python": platform.python_version(),
        "os": platform.platform(),
        "machine": machine(),
        "hardware": hardware(),
        "seed": parameters.get("seed"),
        "parameters": dict(parameters),
        "inputs": dict(inputs),
        "steps": steps,
    }


def _output(*command: str) -> str | None:
    """What a command prints; None where it is missing or fails."""
    try:
        environment = os.environ | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, timeout=20, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout).strip()  # a path, in its name's own bytes
