"""What the study's notebooks would refuse in the parameters that they are given, found before any of them runs.

    check("08_beyond", profiles.profile("laptop"), paths.results("laptop"), {"cold_start": -1})   # ErlabError

Each value is held against the function that the notebook's own code holds it against. What only a run can tell is left
to it, and so are prompts on Hugging Face, which would have to be fetched.
"""

from collections.abc import Mapping
from pathlib import Path

from erlab import paths
from erlab.errors import ErlabError
from erlab.spec import Profile, checked_loads, require

OPTIONS = {"prompts": "--prompts", "other": "--set other"}  # what names prompts, by parameter


def check(step: str, to: Profile, results: Path, values: Mapping) -> None:
    """Raise the ErlabError that the notebook of this step would, given these values by name. Nothing is written."""
    if step in _CHECKS:
        _CHECKS[step](to, results, {name: value for name, value in values.items() if value is not None})


def _engines(to: Profile, results: Path, given: dict) -> None:
    from erlab.serving import deployment

    if "weights" in given:
        deployment.check_weights(given["weights"], given.get("triton"))
        deployment.plan_engines(to, paths.Folders(results), given["weights"])


def _router(to: Profile, results: Path, given: dict) -> None:
    from erlab.experiments import recipes
    from erlab.routing import training

    text = given.get("text")
    require(isinstance(text, str | None) and text != "", "text", "the prompts", "be a column's name", text)
    recipes.chosen(to, given.get("recipes"), given.get("seeds"))
    if "prompts" in given or "clusters" in given:
        options = {"seed": given["seed"], "per_domain": to.prompts_per_domain, "text": text}
        if prompts := _prompts("prompts", given.get("prompts"), **options):
            training.check(to, prompts, given.get("clusters"))
    if "other" in given:
        _prompts("other", given["other"])


def _prompts(name: str, source: str | None, **options):
    """The prompts that a parameter names, None where they are not on this machine."""
    from erlab.prompts import datasets

    option = OPTIONS[name]
    if not isinstance(source, str | None) or source == "":
        raise ErlabError(f"{option} must be a folder, a file or a Hugging Face name. Got {source!r}.")
    if source is not None and not Path(source).expanduser().exists():
        return None
    try:
        return datasets.load(source, **options)
    except ErlabError as e:
        raise ErlabError(f"{option}: {e}") from None


def _loads(to: Profile, results: Path, given: dict) -> None:
    from erlab.experiments import fullscale

    for name in given.keys() & {"loads", "emulated_loads"}:
        checked_loads(given[name], name)
    if "papers" in given:
        fullscale.checked_papers(given["papers"])


def _figures(to: Profile, results: Path, given: dict) -> None:
    from erlab.results import selection

    if "paper" in given:
        selection.check_version(given["paper"])


def _beyond(to: Profile, results: Path, given: dict) -> None:
    from erlab.experiments import capacity
    from erlab.simulation import autoscaling, beyond

    _loads(to, results, given)
    checks = {
        "system": capacity.check_system,
        "clusterers": capacity.check_clusterers,
        "dollars_per_gpu_hour": beyond.check_price,
        "cold_start": lambda seconds: autoscaling.Controller(cold_start=seconds),
    }
    for name in given.keys() & checks.keys():
        checks[name](given[name])


_CHECKS = {
    "01_build_engines": _engines,
    "02_train_router": _router,
    "03_preliminary": _loads,
    "04_baselines": _loads,
    "05_router": _loads,
    "06_figures": _figures,
    "08_beyond": _beyond,
}
