"""`erlab reproduce` and `erlab doctor`: the whole study, and what it needs of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from erlab.commands import options, printed
from erlab.commands.options import Figures, Profile, Prompts, Results, Seed, TextColumn, Triton, Upstream
from erlab.errors import ErlabError
from erlab.serving import profiles


def reproduce(
    profile: Profile = "laptop",
    prompts: Prompts = None,
    text: TextColumn = None,
    seed: Seed = 0,
    results: Results = None,
    figures: Figures = None,
    triton: Triton = None,
    upstream: Upstream = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this step, such as 04; repeat for more.", metavar="STEP")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Begin with this step, such as 03.", metavar="STEP")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the steps again though nothing changed.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A notebook's parameter, such as loads=[1,8]; repeat.", metavar="NAME=VALUE"),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the steps and where they stand; run nothing.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, why and how long; run nothing.")
    ] = False,
):
    """Run the study: notebooks 00 to 09 in order, then the report.

    A step that nothing changed for is skipped, and one that was stopped goes on where it was.

    A step that measures has the machine to itself; the others run side by side.

    Examples:

    \b
      erlab reproduce                                the whole study
      erlab reproduce --dry-run                      what would run, and why
      erlab reproduce --prompts ../my-prompts        with your own prompts
      erlab reproduce --only 04 --set "loads=[1,8]"  baselines, two loads
      erlab reproduce --from 03 --force              measure all again
    """
    from erlab.study import pipeline, steps

    settings = _settings(set_) | ({"text": text} if text else {})
    study = pipeline.Study(profile, prompts, seed, results, figures, options.running(triton, upstream), settings)
    selected = steps.select(study.steps, tuple(only or ()), start)
    if list_ or dry_run:
        _show_states(pipeline.survey(study, selected, force), study.results_folder, why=dry_run)
        if dry_run:
            _show_plan(study)
        return
    from erlab.study.notebook import NotebookError

    try:
        pipeline.reproduce(study, selected, force)
    except NotebookError as e:
        printed.leave(str(e), 1)


def doctor(profile: Profile = "laptop", results: Results = None):
    """Say what this machine has, what can't run on it, and what the study costs. Exit status 2 if it can't run.

    Example:

    \b
      erlab doctor --profile laptop
    """
    from erlab.study import environment

    printed.table("This machine", environment.table(environment.inspect(results, profile)).reset_index())
    printed.table(f"Profile {profile}", environment.plan(profile, results).reset_index())
    environment.require_ready(profile, results)
    printed.line(f"Profiles that fit: {', '.join(environment.fitting(results))}")


def _settings(given: list[str] | None) -> dict[str, object]:
    from erlab.study.pipeline import literal

    values = {}
    for setting in given or ():
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ErlabError(f"--set must be NAME=VALUE. Got {setting!r}.")
        if name in values:
            raise ErlabError(f"--set must name each parameter once. Got {name} twice.")
        values[name] = literal(text)
    return values


def _show_states(states: list, results: Path, why: bool) -> None:
    from erlab.study.terminal import duration

    will = {"stale": "runs", "missing": "runs", "maybe": "may run", "cached": "cached", "left out": "left out"}
    lengths = ["depends on the server" if s.minutes is None else duration(s.minutes) for s in states]
    rows = [(s.step.name, will[s.state] if why else s.state, n, s.reason) for s, n in zip(states, lengths)]
    printed.text_table(str(results), ("step", "state", "takes about", "why"), rows)
    if why:
        due = [s.minutes for s in states if s.state in ("stale", "missing")]
        known, unknown = sum(n for n in due if n is not None), None in due
        theirs = ", and what the server takes" if unknown else ""
        printed.line(f"About {duration(known)} in all{theirs}; nothing was written." if due else "Nothing has to run.")


def _show_plan(study) -> None:
    """What building and serving engines will take, where that is worth reading first."""
    from erlab.paths import Folders
    from erlab.study import plan

    if study.triton:
        printed.line(f"\n{study.triton} serves the models: no engine is built and no server of theirs is started.")
        return
    to, folders = profiles.profile(study.profile), Folders.of(study.profile, study.results)
    if text := plan.text(to, folders, study.extra.get("weights")):
        printed.line(f"\n{text}")
