"""Allowed values of the notebooks' parameters.

    check(profiles.profile("laptop"), paths.results("laptop"), {"cold_start": -1})   # ErlabError

A notebook's cell tagged ``parameters`` declares names, defaults and meanings (`notebook.parameters` reads it); `CHECKS`
adds what a value may be. Each check calls the functions with which the notebook's own code checks the value: `erlab
reproduce --set` and papermill refuse the same values, the former before any notebook runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from erlab import paths
from erlab.errors import ErlabError
from erlab.spec import Profile, checked_loads, require

OPTIONS = {"prompts": "--prompts", "other": "--set other"}  # option of each parameter that names prompts


@dataclass(frozen=True)
class Given:
    """Parameter values of one notebook: those that are not None, by name."""

    profile: Profile
    results: Path
    values: Mapping[str, object]


def check(profile: Profile, results: Path, values: Mapping) -> None:
    """Refuse parameter values that a notebook would refuse; write nothing.

    Only a run can tell some mistakes, and prompts on Hugging Face are not downloaded.

    Raises:
        ErlabError: The error that the notebook would raise.
    """
    given = Given(profile, results, {name: value for name, value in values.items() if value is not None})
    for names, function in CHECKS.items():
        if any(name in given.values for name in names):
            function(given)


def _weights(given: Given) -> None:
    from erlab.serving import deployment

    weights = given.values["weights"]
    deployment.check_weights(weights, given.values.get("triton"))
    deployment.plan_engines(given.profile, paths.Folders(given.results), weights)


def _text(given: Given) -> None:
    text = given.values["text"]
    require(isinstance(text, str) and text != "", "text", "the prompts", "be a column's name", text)


def _recipes(given: Given) -> None:
    from erlab.experiments import recipes

    recipes.chosen(given.profile, given.values.get("recipes"), given.values.get("seeds"))


def _router(given: Given) -> None:
    from erlab.routing import training

    skip_missing = given.values.get("skip_missing", False)
    require(isinstance(skip_missing, bool), "skip_missing", "the prompts", "be True or False", skip_missing)
    options = {"per_domain": given.profile.prompts_per_domain, "text": given.values.get("text")}
    options["skip_missing"] = skip_missing
    if prompts := _prompts("prompts", given.values.get("prompts"), seed=given.values["seed"], **options):
        training.check(given.profile, prompts, given.values.get("clusters"))


def _prompts(name: str, source: object, **options):
    """Return the prompts that a parameter names, None if they are not on this machine."""
    from erlab.prompts import datasets

    option = OPTIONS[name]
    if not isinstance(source, str | None) or source == "":
        raise ErlabError(f"{option} must be a folder, a file, a dataset list or a Hugging Face name. Got {source!r}.")
    try:
        return datasets.load(source, **options) if datasets.is_local(source) else None
    except ErlabError as e:
        raise ErlabError(f"{option}: {e}") from None


def _by(checker: str, name: str) -> Callable[[Given], None]:
    """Return the check of a parameter by a function, imported only when it is needed."""
    return lambda given: resolve_name(checker)(given.values[name])


def _cold_start(given: Given) -> None:
    from erlab.simulation import autoscaling

    autoscaling.Controller(cold_start=given.values["cold_start"])


def _day(given: Given) -> None:
    from erlab.experiments import day

    day.load(given.values.get("trace"), given.values.get("speed"))


# Check of the parameters of these names, whichever notebooks declare them; it runs if one of them is given.
CHECKS: dict[tuple[str, ...], Callable[[Given], None]] = {
    ("weights",): _weights,
    ("text",): _text,
    ("recipes", "seeds"): _recipes,
    ("prompts", "clusters", "skip_missing"): _router,
    ("other",): lambda given: _prompts("other", given.values["other"]),
    ("loads",): lambda given: checked_loads(given.values["loads"], "loads"),
    ("emulated_loads",): lambda given: checked_loads(given.values["emulated_loads"], "emulated_loads"),
    ("repeat",): _by("erlab.experiments.cells.check_repeat", "repeat"),
    ("papers",): _by("erlab.experiments.fullscale.checked_papers", "papers"),
    ("paper",): _by("erlab.results.selection.check_version", "paper"),
    ("system",): _by("erlab.experiments.capacity.check_system", "system"),
    ("clusterers",): _by("erlab.experiments.capacity.check_clusterers", "clusterers"),
    ("dollars_per_gpu_hour",): _by("erlab.simulation.beyond.check_price", "dollars_per_gpu_hour"),
    ("cold_start",): _cold_start,
    ("trace", "speed"): _day,
}
