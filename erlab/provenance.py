"""Provenance of results: commit, package versions, machine, parameters, inputs. Unknown values are None.

>>> sorted(git())
['commit', 'dirty']
"""

import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from erlab import machine, paths


def git() -> dict:
    """Return the commit of the code and whether files differ from it; None without git or outside a clone."""
    output = machine.output("git", "-C", str(paths.ROOT), "rev-parse", "--show-toplevel", "HEAD")
    top, commit = output.splitlines() if output else (None, None)
    if top is None or Path(top).resolve() != paths.ROOT:  # installed inside another repository
        return {"commit": None, "dirty": None}
    changes = machine.output("git", "-C", str(paths.ROOT), "status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def commit() -> str | None:
    """Return the short commit, such as ``abc1234+dirty`` where files differ from it; None if unknown."""
    state = git()
    return state["commit"] and state["commit"][:7] + "+dirty" * bool(state["dirty"])


def versions() -> dict[str, str | None]:
    """Return the installed versions of the package and its dependencies; None for a missing one."""
    names = ["erlab", *(requirement.name for requirement in requirements())]
    return {name: version(name) for name in names}


def requirements() -> list:
    """Return the dependencies on this platform as `packaging.requirements.Requirement`."""
    from packaging.requirements import Requirement

    try:
        listed = [Requirement(line) for line in importlib.metadata.requires("erlab") or ()]
    except importlib.metadata.PackageNotFoundError:
        return []
    return [r for r in listed if r.marker is None or r.marker.evaluate({"extra": ""})]


def version(name: str) -> str | None:
    """Return the installed version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def manifest(
    parameters: Mapping,
    inputs: Mapping[str, str],
    datasets: list[dict] | None,
    steps: list[dict],
    started: str,
    finished: str,
) -> dict:
    """Return the provenance of a study, ready for JSON.

    Args:
        datasets: What the prompts were taken from (`erlab.prompts.lists.Origin`); None if unknown.
        steps: Name, state, duration (s) and time of each step.
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
        "machine": machine.title(),
        "hardware": machine.hardware(),
        "seed": parameters.get("seed"),
        "parameters": dict(parameters),
        "inputs": dict(inputs),
        "datasets": datasets,
        "steps": steps,
    }
