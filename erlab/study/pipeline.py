"""Run of the study's steps: skips steps that are up to date and resumes after an interruption.

    study = Study("laptop", seed=1)
    survey(study)      # states, reasons and expected times; writes nothing
    reproduce(study)   # runs the steps

`erlab reproduce` makes these calls.
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

from erlab import fingerprint, paths, provenance, textfiles
from erlab.errors import ErlabError
from erlab.progress import CHANNEL
from erlab.serving import profiles
from erlab.serving.engines import kinds
from erlab.study import cache, parameters, steps
from erlab.study.steps import STEPS, Step
from erlab.study.terminal import Display, duration

_PLACES = ("results", "figures")  # parameters that name folders and do not change results
_QUIET = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")  # bars would stay in the notebooks
_PROMPTS = ("prompts", "other")  # parameters that name prompts, see `datasets.load`
_FILES = (*_PROMPTS, "trace")  # parameters that name files, which may be relative


@dataclass(frozen=True)
class Study:
    """Description of a study: the steps, the notebooks' parameters, and the folders.

    Attributes:
        prompts: Folder, file, dataset list or Hugging Face dataset; None for the project's own prompts.
        triton: HOST:PORT of a running Triton server or http://HOST:PORT of an OpenAI-compatible server.

    Raises:
        ErlabError: The profile is unknown or `triton` is no address.
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
        """The parameters that notebooks share, by name."""
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
        """Return the path of a step's notebook."""
        return self.notebooks / step.notebook

    @functools.cached_property
    def declared(self) -> dict[str, dict[str, bool]]:
        """The parameters that each step's notebook declares, and whether each may be None (`notebook.parameters`)."""
        from erlab.study import notebook

        options = [f"--{f.name}" for f in fields(self)[: len(self.common)] if getattr(self, f.name) != f.default]
        given = (*options, *(f"--set {name}" for name in self.extra))
        return {s.name: {} if s.function else notebook.parameters(self.source(s), given) for s in self.steps}

    def values(self, step: Step) -> dict:
        """Return the values of the parameters that a step's notebook declares, by name."""
        given = self.common | dict(self.extra)
        given |= {name: _whole(given[name]) for name in _FILES if name in given}
        return {k: v for k, v in given.items() if k in self.declared[step.name]}

    def places(self, entries: tuple[str, ...]) -> list[Path]:
        """Return the paths of entries of `Step.reads` or `Step.writes`."""
        return [steps.place(entry, self.results_folder, self.figures_folder) for entry in entries]

    @functools.cached_property
    def prompt_files(self) -> dict[str, dict[str, str | None]]:
        """The prompt files that each parameter names, by name and hash; without the project's own prompts."""
        given = self.common | dict(self.extra)
        sources = {name: _whole(given[name]) for name in _PROMPTS if isinstance(given.get(name), str)}
        if not sources:
            return {}
        from erlab.prompts import datasets

        files = {}
        for name, source in sources.items():
            try:
                files[name] = datasets.inputs(source, name == "prompts" and bool(given.get("skip_missing")))
            except ErlabError as e:
                raise ErlabError(f"{parameters.OPTIONS[name]}: {e}") from None
        return files | {"other": {f"other/{file}": digest for file, digest in files.get("other", {}).items()}}

    def dependencies(self, step: Step) -> dict:
        """Return everything that a step's result depends on now, see `cache.dependencies`."""
        values = self.values(step)
        inputs = cache.hashes(self.places(step.reads + step.optional), self.results_folder)
        for name, files in self.prompt_files.items():
            inputs |= files if name in values else {}
        if isinstance(trace := values.get("trace"), str) and Path(trace).is_file():
            inputs[f"trace/{Path(trace).name}"] = fingerprint.of_file(Path(trace))
        relevant = {k: v for k, v in values.items() if k not in _PLACES}
        cells = [f"import {step.function}"] if step.function else cache.code_cells(self.source(step))
        without = {*step.without, *kinds.unused(profiles.profile(self.profile))}
        without |= set() if self.triton else {"erlab.serving.external"}
        return cache.dependencies(cells, relevant, inputs, without)


@dataclass(frozen=True)
class State:
    """State of a step.

    Attributes:
        state: ``cached``, ``stale``, ``missing``, ``maybe`` (its inputs may change), ``left out`` or ``ran``.
        reason: Reason for the state; empty if cached.
        minutes: Minutes of the last run, or expected minutes; None if they depend on an attached server.
    """

    step: Step
    state: str
    reason: str
    minutes: float | None


def literal(text: str) -> object:
    """Parse a parameter's value from the command line: Python or JSON if JSON can hold it, else the text itself.

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
    """Refuse parameters that no selected notebook declares and values that one of them would refuse."""
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
            parameters.check(profiles.profile(study.profile), study.results_folder, values)


def _reason(study: Study, step: Step) -> str | None:
    """Return the reason to run a step, None if it is up to date."""
    results = study.results_folder
    return cache.stale(cache.load(results, step.name), study.dependencies(step), results)


def survey(study: Study, selected: tuple[Step, ...] | None = None, force: bool = False) -> list[State]:
    """Return the state of each selected step (all if None); write nothing."""
    selected = study.steps if selected is None else selected
    check(study, selected, force)
    states: list[State] = []
    for step in selected:
        finished = cache.load(study.results_folder, step.name)
        reason = cache.stale(finished, study.dependencies(step), study.results_folder)
        state = ("stale" if finished else "missing") if reason else "cached"
        if force:
            state, reason = "stale", "--force"
        changing = [s for s in states if s.state in ("stale", "missing", "maybe") and _feeds(study, s.step, step)]
        if state == "cached" and changing:
            state, reason = "maybe", f"{changing[0].step.name} may change its inputs"
        if state != "cached" and (why := _left_out(step)):
            state, reason = "left out", why
        states.append(State(step, state, reason or "", _minutes(study, step, finished)))
    return states


def reproduce(
    study: Study, selected: tuple[Step, ...] | None = None, force: bool = False, show: Display | None = None
) -> list[State]:
    """Run the selected steps that are not up to date, in order.

    Consecutive steps that measure no time and do not need each other run in parallel, at most one per core. The results
    folder also receives the executed notebooks, markers and a manifest. Finished work is kept after an error: the next
    call resumes.

    Returns:
        The final state of each selected step.

    Raises:
        ErlabError: A mistake that the user can correct, or a full disk.
        notebook.NotebookError: A notebook failed otherwise.
        KeyboardInterrupt: Ctrl-C was pressed; with a message.
    """
    selected = study.steps if selected is None else selected
    check(study, selected, force)
    results, started = study.results_folder, _now()
    with _locked(results), show or Display(len(selected)) as show:
        _writable(study.figures_folder, "--figures")
        final: list[State] = []
        groups = _together(study, selected)
        for group in groups:
            if _reads_manifest(group[0]):
                _save_manifest(study, started, final)
            final += _run(study, group, force, show)
        if not _reads_manifest(groups[-1][0]):
            _save_manifest(study, started, final)
        for origin in _origins(study) or ():
            if origin["missing"]:
                show.line(f"Left out: {origin['missing']}")
    return final


def _reads_manifest(step: Step) -> bool:
    return steps.MANIFEST in step.reads


def _together(study: Study, selected: tuple[Step, ...]) -> list[list[Step]]:
    """Group the steps in order; the steps of a group may run in parallel."""
    groups: list[list[Step]] = []
    for step in selected:
        if groups and all(s.untimed and step.untimed and not _feeds(study, s, step) for s in groups[-1]):
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _run(study: Study, group: list[Step], force: bool, show: Display) -> list[State]:
    """Run the steps of a group in parallel; after a failure, running steps complete and no other step starts."""
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
        if len(group) == 1:
            return [run(group[0])]
        with ThreadPoolExecutor(min(len(group), os.cpu_count() or 1)) as pool:
            return list(pool.map(run, group))


def _step(study: Study, step: Step, force: bool, show: Display) -> State:
    """Run one step unless it is up to date; add the step's name to errors."""
    kept = "Finished work is kept: run the same command again to resume."
    try:
        return _unless_cached(study, step, force, show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped in {step.name}. {kept}") from None
    except OSError as e:
        if e.filename or e.errno is None:
            raise
        # An error of a write, such as on a full disk, has no file name.
        places = f"{study.results_folder} or {study.figures_folder}"
        raise ErlabError(f"{step.name}: {e.strerror}, in {places}. {kept}") from None


def _unless_cached(study: Study, step: Step, force: bool, show: Display) -> State:
    results = study.results_folder
    now, finished = study.dependencies(step), cache.load(results, step.name)
    minutes = _minutes(study, step, finished)
    reason = "--force" if force else cache.stale(finished, now, results)
    if not reason:
        show.end(step.name, "cached")
        return State(step, "cached", "", 0)
    if why := _left_out(step):
        show.end(step.name, f"left out, {why}")
        return State(step, "left out", why, 0)
    _require_inputs(study, step)
    places = study.places(step.writes)
    if force:  # a forced run must not resume from earlier measurements
        _remove(results, cache.made(results, step.name, places))
        if left := cache.times([p for p in places if p.is_relative_to(results)], results):
            show.line(f"{step.name}: kept, behind links or not made by this step: {cache.few(sorted(left))}")
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
                {CHANNEL: str(channel)} | dict.fromkeys(_QUIET, "1"),
                functools.partial(show.cell, step.name),
            )


def _save_manifest(study: Study, started: str, states: list[State]) -> None:
    """Write the manifest if a step ran or none exists."""
    file = study.results_folder / steps.MANIFEST
    if any(s.state == "ran" for s in states) or not file.is_file():
        textfiles.save(file, json.dumps(_manifest(study, started, states), indent=1))


def _manifest(study: Study, started: str, states: list[State]) -> dict:
    described = [step for step in study.steps if not _reads_manifest(step)]
    markers = {step.name: cache.load(study.results_folder, step.name) for step in described}
    final = {s.step.name: s.state for s in states}
    listed = [
        {"name": name, "state": final.get(name, "not selected")}
        | {key: finished and finished[key] for key in ("seconds", "started", "finished", "commit")}
        for name, finished in markers.items()
    ]
    finished = [marker for marker in markers.values() if marker]
    outputs = {file for marker in finished for file in marker["outputs"]}
    inputs = {
        _short(file): digest for marker in finished for file, digest in marker["inputs"].items() if file not in outputs
    }
    folders = {name: _short(getattr(study, name)) for name in ("prompts", *_PLACES)}
    values = study.common | folders | dict(study.extra)
    return provenance.manifest(values, inputs, _origins(study), listed, started, _now())


def _origins(study: Study) -> list[dict] | None:
    """Return the datasets of the study's prompts; None before they are loaded."""
    file = paths.Folders(study.results_folder).origins
    return json.loads(textfiles.read(file)) if file.is_file() else None


def _whole(source: object) -> object:
    """Return a source of prompts with an existing path made absolute, since notebooks run in another folder."""
    exists = isinstance(source, str) and os.path.exists(os.path.expanduser(source))
    return str(Path(os.path.expanduser(source)).resolve()) if exists else source


def _short(file: str | Path | None) -> str | None:
    """Return a path relative to the repository if inside, else unchanged."""
    if file is None or not Path(file).is_relative_to(paths.ROOT):
        return file if file is None else str(file)
    return Path(file).relative_to(paths.ROOT).as_posix()


def _left_out(step: Step) -> str | None:
    """Return why a step cannot run on this machine, None if it can."""
    if not step.validates:
        return None
    from erlab.simulation.components import unavailable

    return unavailable()


def _require_inputs(study: Study, step: Step) -> None:
    for place in study.places(step.reads):
        source = next((s for s in study.steps if _makes(study, s, place)), None)
        if source and not place.exists():
            command = f"erlab reproduce --from {source.name}"
            raise ErlabError(f"{step.name} needs {place}: run {source.name} first ({command}).")


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


def _minutes(study: Study, step: Step, finished: Mapping | None) -> float | None:
    """Return the minutes of a step's last run, or expected minutes; None if an attached server is used for the first
    time."""
    served = "engines" in step.reads + step.writes
    if finished and "seconds" in finished and not (served and finished["parameters"].get("triton") != study.triton):
        return finished["seconds"] / 60
    return None if served and study.triton else steps.minutes(step, profiles.profile(study.profile))


def _remove(results: Path, names: Iterable[str]) -> None:
    """Remove these files of the results folder; keep files outside of it and behind links."""
    root = results.resolve()
    for file in (root / name for name in names):
        if file.is_file() and file.is_relative_to(root) and file.resolve() == file:
            file.unlink()


@contextlib.contextmanager
def _locked(results: Path) -> Iterator[None]:
    """Lock the results folder against other runs; the lock ends with its process."""
    _writable(results, "--results")
    with open(results / ".lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ErlabError(
                f"{results} is in use by another erlab (process {lock.read().strip() or 'unknown'}): "
                "wait for its end or choose another folder with --results."
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
        raise ErlabError(f"{folder}: not writable ({e.strerror}). Choose another folder with {option}.") from None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
