"""Runs the study's notebooks in order: skips what nothing changed for, and goes on where it stopped.

    study = Study("laptop", seed=1)
    survey(study)      # what would run, why, and how long; writes nothing
    reproduce(study)   # runs it

`erlab reproduce` is these calls with options.
"""

import ast
import contextlib
import fcntl
import functools
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from pkgutil import resolve_name

from erlab import paths, provenance, textfiles
from erlab.errors import ErlabError
from erlab.progress import CHANNEL
from erlab.serving import profiles
from erlab.serving.engines import kinds
from erlab.study import cache, parameters, steps
from erlab.study.steps import STEPS, Step
from erlab.study.terminal import Display, duration

_PLACES = ("results", "figures")  # parameters that say where things go and change nothing in them
_PROMPTS = ("prompts", "other")  # parameters that name prompts, as `datasets.load` takes them


@dataclass(frozen=True)
class Study:
    """What to run and where: the notebooks' common parameters, and `extra` ones by name.

    `prompts`: None for the project's own, a folder or file, or a Hugging Face dataset. `triton`: HOST:PORT of a
    server that runs already, http://HOST:PORT of an OpenAI-compatible one. Raises ErlabError for an unknown profile and
    for what is no address.
    """

    profile: str = "laptop"
    prompts: str | None = None
    seed: int = 0
    results: str | Path | None = None
    figures: str | Path | None = None
    triton: str | None = None
    extra: Mapping[str, object] = field(default_factory=dict)
    steps: tuple[Step, ...] = STEPS
    notebooks: Path = paths.NOTEBOOKS

    def __post_init__(self):
        profiles.profile(self.profile)
        if self.triton is not None:
            from erlab.serving import external

            external.checked(self.triton)

    @property
    def common(self) -> dict:
        """The common parameters by name, as a notebook gets them."""
        return {
            "profile": self.profile,
            "prompts": _whole(self.prompts),
            "seed": self.seed,
            "results": str(self.results_folder),
            "figures": str(self.figures_folder),
            "triton": self.triton,
        }

    @property
    def results_folder(self) -> Path:
        return paths.results(self.profile, self.results)

    @property
    def figures_folder(self) -> Path:
        return paths.figures(self.figures)

    def source(self, step: Step) -> Path:
        return self.notebooks / step.notebook

    @functools.cached_property
    def declared(self) -> dict[str, dict[str, bool]]:
        """The parameters that each step's notebook declares, and whether each may be None."""
        from erlab.study import notebook

        options = [f"--{f.name}" for f in fields(self)[: len(self.common)] if getattr(self, f.name) != f.default]
        given = (*options, *(f"--set {name}" for name in self.extra))
        return {s.name: {} if s.function else notebook.parameters(self.source(s), given) for s in self.steps}

    def values(self, step: Step) -> dict:
        """The parameters that a step's notebook gets: those it declares."""
        given = self.common | dict(self.extra)
        given |= {name: _whole(given[name]) for name in _PROMPTS if name in given}
        return {k: v for k, v in given.items() if k in self.declared[step.name]}

    def places(self, entries: tuple[str, ...]) -> list[Path]:
        return [steps.place(entry, self.results_folder, self.figures_folder) for entry in entries]

    @functools.cached_property
    def prompt_files(self) -> dict[str, dict[str, str | None]]:
        """What the prompts that each parameter names consist of, by name and hash; the project's own are not given."""
        given = self.common | dict(self.extra)
        named = {name: _whole(given[name]) for name in _PROMPTS if isinstance(given.get(name), str)}
        if not named:
            return {}
        from erlab.prompts import datasets

        found = {}
        for name, source in named.items():
            try:
                found[name] = datasets.inputs(source)
            except ErlabError as e:
                raise ErlabError(f"{parameters.OPTIONS[name]}: {e}") from None
        return found | {"other": {f"other/{file}": digest for file, digest in found.get("other", {}).items()}}

    def dependencies(self, step: Step) -> dict:
        """All that a step's result depends on now (see `cache.dependencies`)."""
        values = self.values(step)
        inputs = cache.hashes(self.places(step.reads + step.optional), self.results_folder)
        for name, files in self.prompt_files.items():
            inputs |= files if name in values else {}
        kept = {k: v for k, v in values.items() if k not in _PLACES}
        cells = [f"import {step.function}"] if step.function else cache.code_cells(self.source(step))
        without = {*step.without, *kinds.unused(profiles.profile(self.profile))}
        without |= set() if self.triton else {"erlab.serving.external"}
        return cache.dependencies(cells, kept, inputs, without)


@dataclass(frozen=True)
class State:
    """Where a step stands: ``cached``, ``stale``, ``missing``, ``maybe`` (its inputs may change) or ``left out``.

    `minutes` it took or is expected to take; None where that depends on a server that is not ours.
    """

    step: Step
    state: str
    reason: str
    minutes: float | None


def literal(text: str) -> object:
    """A parameter's value as given on the command line: Python or JSON, else, and where JSON has no such value, the
    text itself.

    >>> literal("[1, 8]"), literal("true"), literal("None"), literal("laptop"), literal("{1, 8}")
    ([1, 8], True, None, 'laptop', '{1, 8}')
    """
    for read in (ast.literal_eval, json.loads):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = read(text)
            json.dumps(value, sort_keys=True)
            return value
    return text


def check(study: Study, selected: tuple[Step, ...], force: bool = False) -> None:
    """Refuse parameters that none of the selected notebooks declares, and values that one of them would refuse, by
    name."""
    known = sorted({name for step in selected for name in study.declared[step.name]} - study.common.keys())
    for name in study.extra:
        if name in study.common:
            raise ErlabError(f"The parameter {name!r} has an option of its own: --{name}, not --set {name}=...")
        if name not in known:
            where = ", ".join(step.name for step in selected)
            allowed = ", ".join(known) or "none"
            raise ErlabError(f"No notebook of {where} has a parameter {name!r}. --set may name there: {allowed}.")
    given = study.extra.keys() | ({"prompts"} if study.prompts is not None else set())
    for step in selected:
        values = study.values(step)
        if given & values.keys() and (force or _reason(study, step)):
            for name, optional in study.declared[step.name].items():
                if name in study.extra and values[name] is None and not optional:
                    raise ErlabError(f"The {name!r} parameter of {step.notebook} must not be None. Got None.")
            parameters.check(step.name, profiles.profile(study.profile), study.results_folder, values)


def _reason(study: Study, step: Step) -> str | None:
    """Why a step has to run again, None if it is cached."""
    results = study.results_folder
    return cache.stale(cache.load(results, step.name), study.dependencies(step), results)


def survey(study: Study, selected: tuple[Step, ...] | None = None, force: bool = False) -> list[State]:
    """Where each step stands: what would run, why, and how long it is expected to take. Writes nothing."""
    selected = study.steps if selected is None else selected
    check(study, selected, force)
    states: list[State] = []
    for step in selected:
        found = cache.load(study.results_folder, step.name)
        reason = cache.stale(found, study.dependencies(step), study.results_folder)
        state = ("stale" if found else "missing") if reason else "cached"
        if force:
            state, reason = "stale", "--force"
        changing = [s for s in states if s.state in ("stale", "missing", "maybe") and _feeds(study, s.step, step)]
        if state == "cached" and changing:
            state, reason = "maybe", f"{changing[0].step.name} may change its inputs"
        if state != "cached" and (why := _left_out(step)):
            state, reason = "left out", why
        states.append(State(step, state, reason or "", _minutes(study, step, found)))
    return states


def reproduce(
    study: Study, selected: tuple[Step, ...] | None = None, force: bool = False, show: Display | None = None
) -> list[State]:
    """Run the selected steps (all if None) that are not cached, in order; return how each ended.

    Steps in which no time is measured and that don't need one another run side by side, as many as there are cores.
    Leaves executed notebooks, markers, a manifest and, after the last step, the report in the results folder.
    Raises ErlabError for what the user can mend (a full disk too), `notebook.NotebookError` for a notebook that failed
    otherwise, and KeyboardInterrupt, with a message, after Ctrl-C; finished work stays, and the next call goes on.
    """
    selected = study.steps if selected is None else selected
    check(study, selected, force)
    results, started = study.results_folder, _now()
    with _locked(results), show or Display(len(selected)) as show:
        _writable(study.figures_folder, "--figures")
        ended: list[State] = []
        groups = _together(study, selected)
        for group in groups:
            if _reads_manifest(group[0]):
                _save_manifest(study, started, ended)
            ended += _run(study, group, force, show)
        if not _reads_manifest(groups[-1][0]):
            _save_manifest(study, started, ended)
    return ended


def _reads_manifest(step: Step) -> bool:
    return steps.MANIFEST in step.reads


def _together(study: Study, selected: tuple[Step, ...]) -> list[list[Step]]:
    """The steps in order, those that may run side by side as one."""
    groups: list[list[Step]] = []
    for step in selected:
        if groups and all(s.untimed and step.untimed and not _feeds(study, s, step) for s in groups[-1]):
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _run(study: Study, together: list[Step], force: bool, show: Display) -> list[State]:
    """Run these steps side by side. Where one fails, those that run go on to their end and no other begins."""
    from erlab.study import notebook

    failed = threading.Event()

    def run(step: Step) -> State | None:
        try:
            return None if failed.is_set() else _step(study, step, force, show)
        except BaseException as e:
            failed.set()
            show.end(step.name, "stopped" if isinstance(e, KeyboardInterrupt) else "failed")
            raise

    with notebook.interruptible():
        if len(together) == 1:
            return [run(together[0])]
        with ThreadPoolExecutor(min(len(together), os.cpu_count() or 1)) as pool:
            return list(pool.map(run, together))


def _step(study: Study, step: Step, force: bool, show: Display) -> State:
    """Run one step if it needs to."""
    kept = "What is finished stays: the same command goes on from there."
    try:
        return _unless_cached(study, step, force, show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped in {step.name}. {kept}") from None
    except OSError as e:
        if e.filename or e.errno is None:
            raise
        # What fails while it writes, such as on a full disk, does not know its file's name.
        places = f"{study.results_folder} or {study.figures_folder}"
        raise ErlabError(f"{step.name}: {e.strerror}, in {places}. {kept}") from None


def _unless_cached(study: Study, step: Step, force: bool, show: Display) -> State:
    results = study.results_folder
    now, found = study.dependencies(step), cache.load(results, step.name)
    minutes = _minutes(study, step, found)
    reason = "--force" if force else cache.stale(found, now, results)
    if not reason:
        show.end(step.name, "cached")
        return State(step, "cached", "", 0)
    if why := _left_out(step):
        show.end(step.name, f"left out, {why}")
        return State(step, "left out", why, 0)
    _require_inputs(study, step)
    places = study.places(step.writes)
    if force:  # what it measured before is not to be taken up again
        _remove(results, cache.made(results, step.name, places))
        if left := cache.times([p for p in places if p.is_relative_to(results)], results):
            show.line(f"{step.name}: left in place, behind links or not made by it: {cache.few(sorted(left))}")
    cache.begin(results, step.name, places)
    show.begin(step.name, reason, minutes)
    started, clock = _now(), time.monotonic()
    _execute(study, step, show)
    _require_outputs(study, step)
    seconds = round(time.monotonic() - clock, 1)
    outputs = cache.hashes(places, results)
    others = sorted(outputs.keys() - cache.made(results, step.name, places))
    when = {"seconds": seconds, "started": started, "finished": _now(), "commit": provenance.commit()}
    cache.save(results, step.name, now | when | {"outputs": outputs, "others": others})
    made = f": {places[0]}" if step.function else ""
    show.end(step.name, f"done in {duration(seconds / 60)}{made}")
    return State(step, "ran", reason, seconds / 60)


def _execute(study: Study, step: Step, show: Display) -> None:
    """Call the step's function or run its notebook."""
    if step.function:
        resolve_name(step.function)(study.results_folder, study.figures_folder)
        return
    from erlab.study import notebook

    executed = study.results_folder / "notebooks" / step.notebook
    with tempfile.TemporaryDirectory() as folder:
        channel = Path(folder) / "progress.jsonl"
        with show.following(step.name, channel):
            notebook.run(
                study.source(step),
                executed,
                study.values(step),
                {CHANNEL: str(channel)},
                functools.partial(show.cell, step.name),
            )


def _save_manifest(study: Study, started: str, ended: list[State]) -> None:
    """Write the manifest if a step ran or none exists."""
    file = study.results_folder / steps.MANIFEST
    if any(s.state == "ran" for s in ended) or not file.is_file():
        textfiles.save(file, json.dumps(_manifest(study, started, ended), indent=1))


def _manifest(study: Study, started: str, ended: list[State]) -> dict:
    described = [step for step in study.steps if not _reads_manifest(step)]
    markers = {step.name: cache.load(study.results_folder, step.name) for step in described}
    states = {s.step.name: s.state for s in ended}
    listed = [
        {"name": name, "state": states.get(name, "not asked for")}
        | {key: found and found[key] for key in ("seconds", "started", "finished", "commit")}
        for name, found in markers.items()
    ]
    read = {file: digest for found in markers.values() if found for file, digest in found["inputs"].items()}
    made = {file for found in markers.values() if found for file in found["outputs"]}
    inputs = {_short(file): digest for file, digest in read.items() if file not in made}
    given = {name: _short(getattr(study, name)) for name in ("prompts", *_PLACES)}
    chosen = study.common | given | dict(study.extra)
    return provenance.manifest(chosen, inputs, listed, started, _now())


def _whole(source: object) -> object:
    """A source of prompts as notebooks get it, wherever they run: a path that exists as a whole one."""
    there = isinstance(source, str) and Path(source).expanduser().exists()
    return str(Path(source).expanduser().resolve()) if there else source


def _short(file: str | Path | None) -> str | None:
    """A file of the repository by its path in it, another as it is."""
    if file is None or not Path(file).is_relative_to(paths.ROOT):
        return file if file is None else str(file)
    return Path(file).relative_to(paths.ROOT).as_posix()


def _left_out(step: Step) -> str | None:
    """Why a step cannot run on this machine, None if it can."""
    if not step.validates:
        return None
    from erlab.simulation.components import unavailable

    return unavailable()


def _require_inputs(study: Study, step: Step) -> None:
    for place in study.places(step.reads):
        maker = next((s for s in study.steps if _makes(study, s, place)), None)
        if maker and not place.exists():
            command = f"erlab reproduce --from {maker.name}"
            raise ErlabError(f"{step.name} needs {place}: run {maker.name} first ({command}).")


def _require_outputs(study: Study, step: Step) -> None:
    for place in study.places(step.writes):
        if not place.exists():
            raise ErlabError(f"{step.function or step.notebook} ended without making {place}.")


def _makes(study: Study, step: Step, place: Path) -> bool:
    return any(steps.overlap(place, written) for written in study.places(step.writes))


def _feeds(study: Study, earlier: Step, later: Step) -> bool:
    if _reads_manifest(later):  # which lists every step
        return True
    return any(_makes(study, earlier, place) for place in study.places(later.reads + later.optional))


def _minutes(study: Study, step: Step, found: Mapping | None) -> float | None:
    """What a step took last time, or is expected to take; None where it asks another server than then, or than ours."""
    served = "engines" in step.reads + step.writes
    if found and "seconds" in found and not (served and found["parameters"].get("triton") != study.triton):
        return found["seconds"] / 60
    return None if served and study.triton else steps.minutes(step, profiles.profile(study.profile))


def _remove(results: Path, names: Iterable[str]) -> None:
    """Remove these files of the results folder: none that lies elsewhere, and none behind a link."""
    root = results.resolve()
    for file in (root / name for name in names):
        if file.is_file() and file.is_relative_to(root) and file.resolve() == file:
            file.unlink()


@contextlib.contextmanager
def _locked(results: Path) -> Iterator[None]:
    """Keep other runs out of the results folder; the lock ends with its process, however that ends."""
    _writable(results, "--results")
    with open(results / ".lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ErlabError(
                f"{results} is in use by another erlab (process {lock.read().strip() or 'unknown'}): "
                "wait until it has ended, or give another folder with --results."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _writable(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="."):
            pass
    except OSError as e:
        reason = f"{folder}: nothing can be written there ({e.strerror}). {option} names another folder."
        raise ErlabError(reason) from None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
