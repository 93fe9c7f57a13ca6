"""The study's notebooks as data: their order, what each reads and writes, and what it costs."""

from dataclasses import dataclass
from pathlib import Path

from erlab import paths
from erlab.errors import ErlabError
from erlab.serving import profiles
from erlab.spec import Profile


@dataclass(frozen=True)
class Step:
    """A notebook of the study.

    `reads`, `writes`: files or folders in the results folder; ``{figures}`` and ``{data}`` stand for those folders.
    `minutes`: what it takes with the laptop profile on two cores. `measures`: whether it measures systems, which needs
    Triton. `validates`: whether it holds measured step times against others' numbers, which needs them. `untimed`:
    whether nothing in it is a measurement of time, so that others may run beside it.
    """

    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    minutes: float = 0.1
    measures: bool = False
    validates: bool = False
    untimed: bool = False

    @property
    def notebook(self) -> str:
        return f"{self.name}.ipynb"


STEPS = (
    Step("00_environment", minutes=0.1),
    Step("01_build_engines", writes=("engines",), minutes=0.3),
    Step("02_train_router", ("{data}/prompts",), ("router", "prompts.parquet", "routing"), minutes=0.8),
    Step(
        "03_preliminary",
        ("engines", "prompts.parquet"),
        ("records/preliminary", "records/simulated/preliminary", "table1.json"),
        minutes=3,
        measures=True,
    ),
    Step(
        "04_baselines",
        ("engines", "prompts.parquet", "table1.json"),
        ("records/baselines", "records/simulated/baselines"),
        minutes=2,
        measures=True,
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
)


def select(steps: tuple[Step, ...], only: tuple[str, ...] = (), start: str | None = None) -> tuple[Step, ...]:
    """The steps named in `only` (all if empty), from `start` on. A name may be its beginning (``04``) or its word."""
    wanted = [_one(steps, name, "only") for name in only] or list(steps)
    first = steps.index(_one(steps, start, "from")) if start is not None else 0
    if found := tuple(s for s in steps[first:] if s in wanted):
        return found
    raise ErlabError(f"No step is left: --only {', '.join(only)} lies before --from {start}.")


def _one(steps: tuple[Step, ...], name: str, option: str) -> Step:
    for step in steps:
        if name and (step.name.startswith(name.removesuffix(".ipynb").zfill(2)) or step.name.partition("_")[2] == name):
            return step
    raise ErlabError(f"--{option} must name one of {', '.join(s.name for s in steps)}. Got {name!r}.")


def place(entry: str, results: Path, figures: Path) -> Path:
    """The file or folder that an entry of `reads` or `writes` stands for."""
    return results / entry.format(figures=figures, data=paths.DATA)


def overlap(one: Path, other: Path) -> bool:
    """Whether one of two paths is or holds the other."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def minutes(step: Step, to: Profile) -> float:
    """What a step is expected to take on two cores: a measuring one in proportion to the profile's requests.

    A fifth of the laptop's time goes into starting servers, however few the requests. What the profile states counts.
    """
    if step.name in to.minutes:
        return to.minutes[step.name]
    return step.minutes * (max(0.2, _requests(to) / _requests(profiles.profile("laptop"))) if step.measures else 1)


def _requests(to: Profile) -> int:
    return sum(users * to.workload.turns_for(users) for users in to.loads)
