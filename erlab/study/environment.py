"""What this machine has, what can run on it, and what that costs. Notebook 00 and `erlab doctor` show it.

>>> all(check.ok is not False for check in inspect() if check.name == "Python")
True
"""

import platform
import shutil
import socket
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import psutil

from erlab import machine, paths, provenance
from erlab.errors import ErlabError
from erlab.serving import external, profiles, scaling
from erlab.serving.engines.kinds import kind
from erlab.serving.triton import private
from erlab.spec import GIB, Profile
from erlab.study import cache, steps

_MEMORY_GIB = 3.0  # a Triton process of 0.4 GiB with torch for each expert of two cores, the notebook, some room
_SHARED_MEMORY_MIB = 64  # what containers get by default; the Python backend begins with 1 MiB a model


@dataclass(frozen=True)
class Check:
    """Something looked at: `ok` is False where nothing can run without it, None where only a part is missing."""

    name: str
    value: str
    ok: bool | None
    advice: str = ""


def inspect(
    results: str | Path | None = None, profile: str = "laptop", triton: str | None = None
) -> list[Check]:
    """Look at everything that the study needs; changes nothing.

    `triton`: a server that holds the models already, so that it doesn't matter what this machine could serve.
    """
    folder, to = paths.results(profile, results), profiles.profile(profile)
    servers = [external.check(triton)] if triton else kind(to).checks(to)
    return [
        _python(),
        *_packages(),
        _kernel(),
        _cores(),
        _memory(),
        _disk(folder, to, engines=not triton),
        _shared_memory(),
        _folder("results folder", folder),
        _folder("figures folder", paths.FIGURES),
        _temporary(),
        _ports(),
        *(Check(*found) for found in servers),
        _step_times(),
    ]


def table(checks: list[Check]) -> pd.DataFrame:
    """A row a check, for a notebook."""
    words = {True: "yes", False: "no", None: "in part"}
    return pd.DataFrame([asdict(c) | {"ok": words[c.ok]} for c in checks]).set_index("name")


def plan(profile: str, results: str | Path | None = None) -> pd.DataFrame:
    """A row a step: the minutes it took last time (or is expected to take on two cores) and its disk space in MB."""
    to, folder = profiles.profile(profile), paths.results(profile, results)
    rows = []
    for step in steps.STEPS:
        found = cache.load(folder, step.name)
        timed = found and "seconds" in found  # an older report has none
        rows.append(
            {
                "step": step.name,
                "minutes": round(found["seconds"] / 60 if timed else steps.minutes(step, to), 1),
                "known from": "last run" if timed else "estimate",
                "disk MB": _disk_mb(step.name, to),
                "measures": "yes" if step.measures else "",
            }
        )
    return pd.DataFrame(rows).set_index("step")


def fitting(results: str | Path | None = None) -> list[str]:
    """The profiles that nothing on this machine stands against."""
    return [name for name in profiles.PROFILES if not _problems(inspect(results, name))]


def require_ready(profile: str, results: str | Path | None = None, triton: str | None = None) -> None:
    """Raise ErlabError, in one line, where the study cannot run here. A missing Triton server is no such reason."""
    if problems := _problems(inspect(results, profile, triton)):
        raise ErlabError(f"Profile {profile} cannot run here. " + " ".join(problems))


def _problems(checks: list[Check]) -> list[str]:
    return [f"{c.name}: {c.value}; {c.advice}." for c in checks if c.ok is False]


def _python() -> Check:
    ok = platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12"))
    return Check("Python", platform.python_version(), ok, "" if ok else "use Python 3.11 or 3.12")


def _packages() -> list[Check]:
    """The dependencies that are missing or outside their range, or one line that says all are there."""
    wanted = provenance.requirements()
    wrong = []
    for requirement in wanted:
        found = provenance.version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            mend = f"python -m pip install '{requirement.name}{requirement.specifier}'"
            wrong.append(Check(f"package {requirement.name}", found or "missing", False, mend))
    if not wanted:
        return [Check("packages", "erlab is not installed", None, "python -m pip install -e .")]
    return wrong or [Check("packages", f"all {len(wanted)} in their ranges", True)]


def _kernel() -> Check:
    version = provenance.version("ipykernel")
    advice = "" if version else "python -m pip install ipykernel"
    return Check("notebook kernel", f"ipykernel {version or 'missing'}", version is not None, advice)


def _cores() -> Check:
    cores = len(machine.cores())
    advice = "" if cores > 1 else "the router systems have a single expert, so that routing shows nothing"
    return Check("CPU", f"{machine.cpu_model() or 'unknown'}, {cores} cores", True if cores > 1 else None, advice)


def _memory() -> Check:
    memory = psutil.virtual_memory()
    ok = memory.available / GIB >= _MEMORY_GIB
    value = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    return Check("memory", value, ok, "" if ok else f"{_MEMORY_GIB:.0f} GiB are needed")


def _disk(folder: Path, to: Profile, engines: bool) -> Check:
    built = sum(f.stat().st_size for f in (folder / "engines").rglob("*") if f.is_file())
    free = (shutil.disk_usage(_existing(folder)).free + built) / 1e6
    needed = sum(_disk_mb(step.name, to) for step in steps.STEPS if engines or step.name != "01_build_engines")
    return Check("disk", f"{free:,.0f} MB free", free >= needed, "" if free >= needed else f"{needed:,} MB are needed")


def _shared_memory() -> Check:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Check("shared memory", "no /dev/shm", None, "Triton's Python backend needs it")
    size = shutil.disk_usage(place).total / 2**20
    ok = size >= _SHARED_MEMORY_MIB
    advice = "" if ok else f"Triton needs {_SHARED_MEMORY_MIB} MiB: docker run --shm-size=1g"
    return Check("shared memory", f"{size:.0f} MiB", True if ok else None, advice)


def _folder(name: str, folder: Path) -> Check:
    existing = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix="."):
            pass
    except OSError as e:
        return Check(name, f"{folder}: {e.strerror}", False, "nothing can be written there; name another folder")
    return Check(name, str(folder), True)


def _temporary() -> Check:
    """Where servers get paths that Triton's shell can take."""
    try:
        return Check("temporary folder", str(private.place()), True)
    except ErlabError as e:
        return Check("temporary folder", tempfile.gettempdir(), False, str(e).rstrip("."))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def _ports() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.getsockname()
    except OSError as e:
        return Check("loopback ports", e.strerror or str(e), False, "servers could not be reached")
    return Check("loopback ports", "free ones are found", True)


def _step_times() -> Check:
    from erlab.simulation.components import unavailable

    reason = unavailable()
    advice = "" if reason is None else "the DGX H100 is simulated with the roofline, the limit of physics; not validated"
    value = reason or f"measured kernels, aiconfigurator {provenance.version('aiconfigurator')}"
    return Check("step times", value, True if reason is None else None, advice)


def _disk_mb(step: str, to: Profile) -> int:
    """What a step leaves on disk: weights for the engines, about 1 kB a request for records."""
    if step == "01_build_engines":
        try:
            experts = scaling.experts(to)
        except ErlabError:  # what does not fit the GPU is not made
            return 0
        return round(kind(to).disk_bytes(to, experts) / 1e6) + 1
    requests = sum(users * to.workload.turns_for(users) for users in to.loads)
    sizes = {"00_environment": 1, "02_train_router": 5, "03_preliminary": 12 * requests / 1e3, "06_figures": 20, "report": 2}
    return round(sizes.get(step, 5 * requests / 1e3))
