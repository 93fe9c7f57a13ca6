"""Checks of this machine for the study, and its expected time and disk space; see notebook 00 and `erlab doctor`.

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

_MEMORY_GIB = 3.0  # a Triton process with torch (0.4 GiB) per expert on two cores, the notebook, and a reserve
_SHARED_MEMORY_MIB = 64  # default of containers; the Python backend starts with 1 MiB per model


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        ok: True if sufficient, False if the study cannot run, None if a part of it cannot.
    """

    name: str
    value: str
    ok: bool | None
    advice: str = ""


def inspect(results: str | Path | None = None, profile: str = "laptop", triton: str | None = None) -> list[Check]:
    """Check everything that the study needs; change nothing."""
    folder, machine_profile = paths.results(profile, results), profiles.profile(profile)
    servers = [external.check(triton)] if triton else kind(machine_profile).checks(machine_profile)
    return [
        _python(),
        *_packages(),
        _kernel(),
        _cores(),
        _memory(),
        _disk(folder, machine_profile, engines=not triton),
        _shared_memory(),
        _folder("results folder", folder),
        _folder("figures folder", paths.FIGURES),
        _temporary(),
        _ports(),
        *(Check(*fields) for fields in servers),
        _step_times(),
    ]


def table(checks: list[Check]) -> pd.DataFrame:
    """Return the checks as a table, one row per check."""
    words = {True: "yes", False: "no", None: "in part"}
    return pd.DataFrame([asdict(c) | {"ok": words[c.ok]} for c in checks]).set_index("name")


def plan(profile: str, results: str | Path | None = None) -> pd.DataFrame:
    """Return time and disk space of the study, one row per step.

    The minutes are those of the last run, otherwise an estimate for two cores; disk space is in MB.
    """
    machine_profile, folder = profiles.profile(profile), paths.results(profile, results)
    rows = []
    for step in steps.STEPS:
        finished = cache.load(folder, step.name)
        timed = finished and "seconds" in finished  # markers of reports had none once
        rows.append(
            {
                "step": step.name,
                "minutes": round(finished["seconds"] / 60 if timed else steps.minutes(step, machine_profile), 1),
                "known from": "last run" if timed else "estimate",
                "disk MB": _disk_mb(step.name, machine_profile),
                "measures": "yes" if step.measures else "",
            }
        )
    return pd.DataFrame(rows).set_index("step")


def fitting(results: str | Path | None = None) -> list[str]:
    """Return the names of the profiles that can run on this machine."""
    return [name for name in profiles.PROFILES if not _problems(inspect(results, name))]


def require_ready(profile: str, results: str | Path | None = None, triton: str | None = None) -> None:
    """Raise ErlabError if the study cannot run here; a missing Triton server is no reason."""
    if problems := _problems(inspect(results, profile, triton)):
        raise ErlabError(f"Profile {profile} cannot run here. " + " ".join(problems))


def _problems(checks: list[Check]) -> list[str]:
    return [f"{c.name}: {c.value}; {c.advice}." for c in checks if c.ok is False]


def _python() -> Check:
    ok = platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12"))
    return Check("Python", platform.python_version(), ok, "" if ok else "use Python 3.11 or 3.12")


def _packages() -> list[Check]:
    """Check the dependencies: those that are missing or outside of their version range, or one check for all."""
    requirements = provenance.requirements()
    wrong = []
    for requirement in requirements:
        version = provenance.version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            command = f"python -m pip install '{requirement.name}{requirement.specifier}'"
            wrong.append(Check(f"package {requirement.name}", version or "missing", False, command))
    if not requirements:
        return [Check("packages", "erlab is not installed", None, "python -m pip install -e .")]
    return wrong or [Check("packages", f"all {len(requirements)} in their version ranges", True)]


def _kernel() -> Check:
    version = provenance.version("ipykernel")
    advice = "" if version else "python -m pip install ipykernel"
    return Check("notebook kernel", f"ipykernel {version or 'missing'}", version is not None, advice)


def _cores() -> Check:
    cores = len(machine.cores())
    advice = "" if cores > 1 else "router systems have a single expert, so routing has no effect"
    return Check("CPU", f"{machine.cpu_model() or 'unknown'}, {cores} cores", True if cores > 1 else None, advice)


def _memory() -> Check:
    memory = psutil.virtual_memory()
    ok = memory.available / GIB >= _MEMORY_GIB
    value = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    return Check("memory", value, ok, "" if ok else f"{_MEMORY_GIB:.0f} GiB are needed")


def _disk(folder: Path, profile: Profile, engines: bool) -> Check:
    built = sum(f.stat().st_size for f in (folder / "engines").rglob("*") if f.is_file())
    free = (shutil.disk_usage(_existing(folder)).free + built) / 1e6
    needed = sum(_disk_mb(step.name, profile) for step in steps.STEPS if engines or step.name != "01_build_engines")
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
        return Check(name, f"{folder}: {e.strerror}", False, "not writable; choose another folder")
    return Check(name, str(folder), True)


def _temporary() -> Check:
    """Check for a temporary folder whose path Triton's shell accepts."""
    try:
        return Check("temporary folder", str(private.place()), True)
    except ErlabError as e:
        return Check("temporary folder", tempfile.gettempdir(), False, str(e).rstrip("."))


def _existing(folder: Path) -> Path:
    """Return the folder or its nearest existing parent."""
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def _ports() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.getsockname()
    except OSError as e:
        return Check("loopback ports", e.strerror or str(e), False, "servers would be unreachable")
    return Check("loopback ports", "available", True)


def _step_times() -> Check:
    from erlab.simulation.components import unavailable

    reason = unavailable()
    advice = (
        "" if reason is None else "the DGX H100 is simulated with the roofline (lower bound), which is not validated"
    )
    value = reason or f"measured kernels, aiconfigurator {provenance.version('aiconfigurator')}"
    return Check("step times", value, True if reason is None else None, advice)


def _disk_mb(step: str, profile: Profile) -> int:
    """Return the MB that a step writes: weights of the engines, about 1 kB per request record."""
    if step == "01_build_engines":
        try:
            experts = scaling.experts(profile)
        except ErlabError:  # engines that do not fit the GPU are not built
            return 0
        return round(kind(profile).disk_bytes(profile, experts) / 1e6) + 1
    requests = sum(users * profile.workload.turns_for(users) for users in profile.loads)
    sizes = {
        "00_environment": 1,
        "02_train_router": 5,
        "03_preliminary": 12 * requests / 1e3,
        "06_figures": 20,
        "report": 2,
    }
    return round(sizes.get(step, 5 * requests / 1e3))
