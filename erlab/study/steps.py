"""The steps of the study: order, inputs, outputs, cost."""

from dataclasses import dataclass
from pathlib import Path

from erlab import paths
from erlab.errors import ErlabError
from erlab.serving import profiles
from erlab.spec import Profile


@dataclass(frozen=True)
class Step:
    """A notebook or function of the study.

    Attributes:
        reads: Files or folders that the step needs, relative to the results folder; ``{figures}`` and ``{data}`` stand
            for those folders.
        writes: Files or folders that the step makes, as in `reads`.
        minutes: Expected minutes with the laptop profile on two cores.
        measures: Whether it measures systems, which needs Triton.
        validates: Whether it compares measured step times with published numbers, which needs the step times.
        untimed: Whether it measures no time, so that other steps may run at the same time.
        optional: Files or folders that the step uses if they exist, as in `reads`.
        without: Modules (or packages) that the step's code imports but never runs: its result does not depend on them.
        function: Dotted name of the function that the step calls with the results and the figures folder, instead of
            running a notebook.
    """

    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    minutes: float = 0.1
    measures: bool = False
    validates: bool = False
    untimed: bool = False
    optional: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    function: str = ""

    @property
    def notebook(self) -> str:
        return f"{self.name}.ipynb"


MANIFEST = "manifest.json"
_NO_ROUTER = ("erlab.routing",)  # for steps whose systems have no router


STEPS = (
    Step("00_environment", minutes=0.1, without=(*_NO_ROUTER, "erlab.figures", "erlab.report")),
    Step("01_build_engines", writes=("engines",), minutes=0.3, without=_NO_ROUTER),
    Step(
        "02_train_router",
        ("{data}/prompts/grammar.toml",),
        ("router", "prompts.parquet", "datasets.json", "routing"),
        minutes=0.8,
    ),
    Step(
        "03_preliminary",
        ("engines", "prompts.parquet"),
        ("records/preliminary", "records/simulated/preliminary", "table1.json"),
        minutes=3,
        measures=True,
        without=(*_NO_ROUTER, "erlab.figures"),  # it saves no figure
    ),
    Step(
        "04_baselines",
        ("engines", "prompts.parquet", "table1.json"),
        ("records/baselines", "records/simulated/baselines"),
        minutes=2,
        measures=True,
        without=_NO_ROUTER,
    ),
    Step(
        "05_router",
        ("engines", "router", "prompts.parquet", "table1.json"),
        ("records/router", "records/simulated/router", "overhead"),
        minutes=2.7,
        measures=True,
    ),
    Step("06_figures", ("records",), ("{figures}",), minutes=0.5, untimed=True),
    Step("07_claims", ("records",), ("claims.md", "claims.csv", "claims"), minutes=0.2, untimed=True),
    Step(
        "08_beyond",
        ("router", "prompts.parquet", "records/router", "records/simulated"),
        ("beyond",),
        minutes=0.8,
        untimed=True,
    ),
    Step("09_validation", ("{data}/published",), ("validation",), minutes=0.5, validates=True, untimed=True),
    Step(
        "report",
        ("records", "{figures}", "claims.csv", MANIFEST),
        ("report.html", "report.md"),
        untimed=True,
        optional=("routing", "claims", "overhead/overhead.png", "overhead/added.csv", "beyond", "validation"),
        function="erlab.report.build_study",
    ),
)


def select(steps: tuple[Step, ...], only: tuple[str, ...] = (), start: str | None = None) -> tuple[Step, ...]:
    """Select steps by name.

    Raises:
        ErlabError: A name is unknown or no step is left.
    """
    named = [_find(steps, name, "only") for name in only] or list(steps)
    first = steps.index(_find(steps, start, "from")) if start is not None else 0
    if selected := tuple(s for s in steps[first:] if s in named):
        return selected
    raise ErlabError(f"No step is left: --only {', '.join(only)} lies before --from {start}.")


def _find(steps: tuple[Step, ...], name: str, option: str) -> Step:
    for step in steps:
        if name and (step.name.startswith(name.removesuffix(".ipynb").zfill(2)) or step.name.partition("_")[2] == name):
            return step
    raise ErlabError(f"--{option} must name one of {', '.join(s.name for s in steps)}. Got {name!r}.")


def place(entry: str, results: Path, figures: Path) -> Path:
    """Return the path of an entry of `Step.reads` or `Step.writes`."""
    return results / entry.format(figures=figures, data=paths.DATA)


def overlap(one: Path, other: Path) -> bool:
    """Return whether one path is the other or contains it."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def minutes(step: Step, profile: Profile) -> float:
    """Return the expected minutes of a step: those that the profile states or, on two cores, an estimate.

    A measuring step takes time in proportion to the profile's requests, but at least the share (a fifth on the laptop)
    that starting the servers takes.
    """
    if step.name in profile.minutes:
        return profile.minutes[step.name]
    relative = _requests(profile) / _requests(profiles.profile("laptop"))
    return step.minutes * (max(0.2, relative) if step.measures else 1)


def _requests(profile: Profile) -> int:
    return sum(users * profile.workload.turns_for(users) for users in profile.loads)
