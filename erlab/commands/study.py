"""`erlab reproduce` and `erlab doctor`: the study and its requirements."""

from pathlib import Path
from typing import Annotated

import typer

from erlab.commands import options, printed
from erlab.commands.options import Figures, Profile, Prompts, Results, Seed, SkipMissing, TextColumn, Triton, Upstream
from erlab.errors import ErlabError
from erlab.serving import profiles


def reproduce(
    profile: Profile = "laptop",
    prompts: Prompts = None,
    text: TextColumn = None,
    skip_missing: SkipMissing = False,
    seed: Seed = 0,
    results: Results = None,
    figures: Figures = None,
    triton: Triton = None,
    upstream: Upstream = None,
    repeat: options.Repeat = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Step to run, such as 04 or report; repeat for several (default: all).", metavar="STEP"),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="First step to run, such as 03 (default: 00).", metavar="STEP")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the steps again even if they are up to date.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Parameter of a notebook, such as loads=[1,8]; repeat for several.", metavar="NAME=VALUE"
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the steps and their states; run nothing.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, why, and the expected time; run nothing.")
    ] = False,
):
    """Run the study: notebooks 00 to 09 in order, then the report.

    Steps that are up to date are skipped; an interrupted step resumes.

    A step that measures time runs alone; other steps run in parallel.

    Examples:

    \b
      erlab reproduce                                the whole study
      erlab reproduce --dry-run                      what would run, and why
      erlab reproduce --prompts ../my-prompts        your own prompts
      erlab reproduce --prompts data/prompts/domains.toml --skip-missing  public datasets
      erlab reproduce --only 04 --set "loads=[1,8]"  baselines, two loads
      erlab reproduce --repeat 3                     each measured load three times, with confidence bands
      erlab reproduce --only report                  the report alone
      erlab reproduce --from 03 --force              measure everything again
    """
    from erlab.study import pipeline, steps

    settings = _settings(set_) | ({"text": text} if text else {}) | ({"skip_missing": True} if skip_missing else {})
    settings |= {"repeat": repeat} if repeat > 1 else {}
    attached = options.attached_server(triton, upstream)
    study = pipeline.Study(profile, prompts, seed, results, figures, attached, settings)
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
    """Check this machine for the study and estimate time and disk space; exit status 2 if the study cannot run.

    Example:

    \b
      erlab doctor --profile laptop
    """
    from erlab.study import environment

    printed.table("This machine", environment.table(environment.inspect(results, profile)).reset_index())
    printed.table(f"Profile {profile}", environment.plan(profile, results).reset_index())
    environment.require_ready(profile, results)
    printed.line(f"Profiles that can run here: {', '.join(environment.fitting(results))}")


def _settings(given: list[str] | None) -> dict[str, object]:
    from erlab.study.pipeline import literal

    pairs = []
    for setting in given or ():
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ErlabError(f"--set must be NAME=VALUE. Got {setting!r}.")
        pairs.append((name, literal(text)))
    return options.once("--set", "parameter", pairs)


def _show_states(states: list, results: Path, why: bool) -> None:
    from erlab.study.terminal import duration

    actions = {"stale": "runs", "missing": "runs", "maybe": "may run", "cached": "cached", "left out": "left out"}
    lengths = ["depends on the server" if s.minutes is None else duration(s.minutes) for s in states]
    rows = [(s.step.name, actions[s.state] if why else s.state, n, s.reason) for s, n in zip(states, lengths)]
    printed.text_table(str(results), ("step", "state", "expected time", "reason"), rows)
    if why:
        due = [s.minutes for s in states if s.state in ("stale", "missing")]
        known, unknown = sum(n for n in due if n is not None), None in due
        server = " plus the time of the server" if unknown else ""
        printed.line(
            f"About {duration(known)} in total{server}; nothing was written." if due else "All steps are up to date."
        )


def _show_plan(study) -> None:
    """Print the commands that build and serve engines, for profiles on GPUs."""
    from erlab.paths import Folders
    from erlab.study import plan

    if study.triton:
        printed.line(f"\n{study.triton} serves the models: no engine is built and no server is started.")
        return
    machine, folders = profiles.profile(study.profile), Folders.of(study.profile, study.results)
    if text := plan.text(machine, folders, study.extra.get("weights")):
        printed.line(f"\n{text}")
