"""Where results come from: commit, package versions, machine, parameters, inputs. What isn't known is None.

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
    """The commit the code is at and whether files differ from it; None without git or outside a clone."""
    found = machine.output("git", "-C", str(paths.ROOT), "rev-parse", "--show-toplevel", "HEAD")
    top, commit = found.splitlines() if found else (None, None)
    if top is None or Path(top).resolve() != paths.ROOT:  # installed inside somebody else's repository
        return {"commit": None, "dirty": None}
    changes = machine.output("git", "-C", str(paths.ROOT), "status", "--porcelain")
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
        "machine": machine.title(),
        "hardware": machine.hardware(),
        "seed": parameters.get("seed"),
        "parameters": dict(parameters),
        "inputs": dict(inputs),
        "steps": steps,
    }
