"""The `erlab` command. Each subcommand parses its options and calls one function of the package.

A user's mistake is one line and exit status 2, Ctrl-C is 130, a notebook that failed otherwise is 1.
"""

import contextlib
import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from erlab import options, paper, profiles
from erlab.errors import ErlabError
from erlab.options import (
    Figures,
    MoreRecords,
    NewRecords,
    Profile,
    Prompts,
    RecordFiles,
    Results,
    Seed,
    TextColumn,
    Triton,
    Upstream,
)

_MENDABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}
_MENDABLE |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # a file where a folder was wanted, or the other way round

_UsageError = typer.BadParameter.__base__  # click's, wherever this typer has it


class _Group(typer.core.TyperGroup):
    def make_context(self, info_name, args, parent=None, **extra):
        with _in_one_line() if args else contextlib.nullcontext():  # without any, help comes as an exception
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx):
        with _in_one_line(ctx):
            return super().invoke(ctx)

    def resolve_command(self, ctx, args):
        if not args[0].startswith("-") and args[0] not in self.commands:
            known = ", ".join(self.commands)
            raise ErlabError(f"The command must be one of {known}. Got {args[0]!r}. Help: erlab --help")
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def _in_one_line(context: typer.Context | None = None) -> Iterator[None]:
    """Ends the program after what its user can mend: with a line, and an exit status. `context`: the group's, once it
    runs."""
    try:
        yield
    except ErlabError as e:
        _leave(str(e), 2)
    except _UsageError as e:
        command = e.ctx.command_path.split()[1:] if e.ctx else [context.invoked_subcommand] if context else []
        _leave(f"{_refused(e)}. Help: {' '.join(['erlab', *command, '--help'])}", 2)
    except KeyboardInterrupt as e:
        _leave(str(e) or "Stopped.", 130)
    except OSError as e:
        if e.errno not in _MENDABLE:
            raise
        _leave(f"{e.filename}: {e.strerror}" if e.filename else e.strerror, 2)


def _refused(e: _UsageError) -> str:
    """What typer has to say; it checks no values here, so that what it says of one parameter is that it is missing."""
    if isinstance(e, typer.BadParameter) and e.param:
        return f"{e.param.opts[0]} {e.param.metavar} must be given"
    return e.format_message().rstrip(".")


def _leave(message: str, status: int) -> NoReturn:
    print(f"erlab: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(status)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Reproduces the paper Expert Router (arXiv 2404.15153): prompts are classified by k-means and forwarded "
    "to expert language models behind Triton.\n\n"
    "[bold]erlab reproduce[/bold] runs the whole study on this machine; the other commands do a part of it.",
)

_SYSTEMS, _V1_SYSTEMS = (", ".join(paper.SYSTEMS[version]) for version in ("v2", "v1"))


@app.command()
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
    from erlab import pipeline, steps

    settings = _settings(set_) | ({"text": text} if text else {})
    study = pipeline.Study(profile, prompts, seed, results, figures, _running(triton, upstream), settings)
    selected = steps.select(study.steps, tuple(only or ()), start)
    if list_ or dry_run:
        _show_states(pipeline.survey(study, selected, force), study.results_folder, why=dry_run)
        if dry_run:
            _show_plan(study)
        return
    from erlab.notebook import NotebookError

    try:
        pipeline.reproduce(study, selected, force)
    except NotebookError as e:
        _leave(str(e), 1)


@app.command()
def figures(
    more: MoreRecords = None,
    records: RecordFiles = None,
    out: Figures = None,
    profile: Profile = "laptop",
    style: Annotated[
        str, typer.Option(help="Sizes of fonts and lines: paper, notebook or talk.", metavar="STYLE")
    ] = "paper",
    width: Annotated[
        str | None, typer.Option(help="Width of each figure, such as 3.5in or 86mm; its own if not given.")
    ] = None,
    format: Annotated[str, typer.Option(help="File formats: any of pdf, png, svg, pgf.")] = "pdf,png",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Draw each of several records over the others, not joined.")
    ] = False,
):
    """Draw Figs. 1 to 7 and Table I from request records, with the plotted numbers as CSV.

    Several runs of a system under the same load get a 95 % confidence band.
    Where --width is too narrow for panels side by side, they are stacked; Fig. 1 and Table I then span two columns.

    Examples:

    \b
      erlab figures                                      from the laptop study's records
      erlab figures --records run.parquet --out .        from any records
      erlab figures --width 3.5in --format pdf,pgf       for a column of a paper
      erlab figures --records a.parquet b.parquet --overlay --style talk
    """
    from erlab import figures as paper_figures
    from erlab import paths
    from erlab.figures import style as look

    files = [*(records or ()), *(more or ())]
    found = _overlaid(files) if overlay else _read(files, profile)
    formats = [name.strip() for name in format.split(",")]
    for name in formats:
        if name not in look.FORMATS:
            raise ErlabError(f"--format must name some of {', '.join(look.FORMATS)}. Got {name!r}.")
    with look.using(style, look.inches(width)):
        for file in paper_figures.save_all(found, paths.figures(out), formats=formats):
            print(file)
    for name, reason in paper_figures.missing(found).items():
        print(f"{name}: left out, {reason}")


def _overlaid(files: list[Path]):
    """Each of these records under a name of its own."""
    from erlab import figures as paper_figures
    from erlab import records

    if len(files) < 2:
        raise ErlabError(f"--overlay needs at least two --records. Got {len(files)}.")
    if len({file.resolve() for file in files}) < len(files):
        raise ErlabError(f"--overlay needs each of --records once. Got {', '.join(map(str, files))}.")
    short = [file.stem for file in files]
    names = short if len(set(short)) == len(files) else [str(file.with_suffix("")) for file in files]
    return paper_figures.overlay({name: records.read(file) for name, file in zip(names, files)})


@app.command()
def claims(
    more: MoreRecords = None,
    records: RecordFiles = None,
    profile: Profile = "laptop",
    version: Annotated[
        str | None, typer.Option("--paper", help="Only the claims of this version: v2 or v1.", metavar="VERSION")
    ] = None,
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="Only this claim; repeat for more.", metavar="CLAIM")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Show what each verdict was computed from, too.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the request records of one claim to a file.", metavar="FILE", callback=options.FILE),
    ] = None,
):
    """Test the paper's claims on request records: verdict, margin over the threshold, and how sure it is.

    Examples:

    \b
      erlab claims --paper v2 --records data/results/laptop/records
      erlab claims --id v2-ttft-8b --rows              one claim alone, with its numbers
      erlab claims --id v2-ttft-8b --out its.parquet   its requests, to be looked at
    """
    from erlab import claims as paper_claims
    from erlab import records as request_records

    chosen = paper_claims.select(version, id_)
    if out and len(chosen) != 1:
        raise ErlabError(f"--out needs one claim: --id CLAIM. Got {len(chosen)} claims.")
    found = _read([*(records or ()), *(more or ())], profile)
    ledger = paper_claims.ledger(found, chosen)
    _print_table("The paper's claims", paper_claims.shown(ledger).astype(object), lines=True)
    for claim in chosen if rows else ():
        print(f"{claim} rests on the assumptions: {ledger.loc[ledger['id'] == claim, 'assumptions'].iloc[0]}")
        _print_table(f"{claim} was computed from", paper_claims.cells(found, claim).astype(object))
    if out:
        request_records.save(out, paper_claims.rows(found, chosen[0]))
        print(f"{out}: erlab claims --id {chosen[0]} --records {out} judges it again.")


@app.command()
def doctor(profile: Profile = "laptop", results: Results = None):
    """Say what this machine has, what can't run on it, and what the study costs. Exit status 2 if it can't run.

    Example:

    \b
      erlab doctor --profile laptop
    """
    from erlab import environment

    _print_table("This machine", environment.table(environment.inspect(results, profile)).reset_index())
    _print_table(f"Profile {profile}", environment.plan(profile, results).reset_index())
    environment.require_ready(profile, results)
    print(f"Profiles that fit: {', '.join(environment.fitting(results))}")


@app.command()
def serve(
    system: Annotated[str, typer.Option(help=f"A system of Table I: {_SYSTEMS}.", metavar="LETTER")],
    profile: Profile = "laptop",
    results: Results = None,
    port: Annotated[
        int | None,
        typer.Option(help="Where users ask; a free one if not given.", parser=options.whole, callback=options.PORT),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="How the gateway chooses, a name in erlab.routing.policies.", metavar="NAME", callback=options.POLICY
        ),
    ] = None,
    generalist: Annotated[
        str | None, typer.Option(help="With --policy outlier: the expert of what fits no cluster.", metavar="MODEL")
    ] = None,
    strong: Annotated[
        str | None, typer.Option(help="With --policy strong_weak: the expert of the difficult.", metavar="MODEL")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="With --policy strong_weak: from what difficulty on, 0 to 1; 0.5 if not given.",
            parser=options.real,
            callback=options.SHARE,
        ),
    ] = None,
    triton: Triton = None,
    upstream: Upstream = None,
    container: Annotated[
        str | None,
        typer.Option(
            help="On GPUs: run Triton by docker or podman, or print how.",
            metavar="docker|podman|print",
            callback=options.CONTAINER,
        ),
    ] = None,
    apart: Annotated[bool, typer.Option("--apart", help="On GPUs: a Triton server for each expert.")] = False,
):
    """Start a system (Triton, and the gateway of a router system) and keep it up until Ctrl-C.

    A router system needs its router: erlab reproduce --only 02. On GPUs Triton is this machine's own or, without one,
    that in NVIDIA's container.

    Examples:

    \b
      erlab serve --system E --port 8001
      erlab serve --system E --policy outlier --generalist E-expert-0
      erlab serve --system E --profile gpu --upstream http://127.0.0.1:8000
      erlab serve --system D --profile dgx-h100 --container print
    """
    from erlab import live
    from erlab.deployment import Folders

    to, folders = profiles.profile(profile), Folders.of(profile, results)
    if container == "print":
        for command in live.commands(system, to, folders, apart):
            print(command)
        return
    given = {"policy": policy, "generalist": generalist, "strong": strong, "threshold": threshold}
    choice = {name: value for name, value in given.items() if value is not None}
    with live.serve(system, to, folders, port, _running(triton, upstream), container, apart, **choice) as running:
        asked = " ".join(f"--model {name}" for name in running.models)
        print(f"System {system} answers at {running.address} (KServe v2 gRPC), models: {', '.join(running.models)}.")
        if attached := _running(triton, upstream):
            print(f"Behind it: {attached}, which erlab did not start.")
        print(f"Load it: erlab users --address {running.address} {asked} --users 8 --profile {profile}")
        print("Ctrl-C stops it.", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends a service stops it the same way
        try:
            while not (failure := running.failure()):
                time.sleep(1)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"System {system} is stopped.") from None
        raise ErlabError(failure)


@app.command()
def gpu(
    profile: Profile = "gpu",
    case: Annotated[
        list[str] | None, typer.Option(help="8B, 8B-shared or 70B-FP8; repeat for more. All that fit if not given.")
    ] = None,
    users: Annotated[
        list[int] | None,
        typer.Option(
            help="Concurrent users; repeat for more. 1 to 256 if not given.",
            parser=options.whole,
            callback=options.COUNT,
        ),
    ] = None,
    upstream: Upstream = None,
    seed: Seed = 0,
    results: Results = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the summary, instead of data/measured.", callback=options.FOLDER)
    ] = None,
):
    """Measure experts on this machine's GPU, users to gateway to engine, beside the simulation of the same GPU.

    Examples:

    \b
      erlab gpu                                       all cases, 1 to 256 users
      erlab gpu --case 8B --users 1 --users 64        one case, two loads
      erlab gpu --profile gpu-vllm                    with vLLM, whatever else is there
      erlab gpu --case 8B --upstream http://127.0.0.1:8000   a server of yours that has an 8B model
    """
    from erlab import gpu as one_gpu
    from erlab import paths
    from erlab.deployment import Folders

    to = profiles.profile(profile)
    found = one_gpu.measure(to, Folders.of(profile, results), case, users, seed, upstream)
    shown = found.summary.drop(columns="served").astype(object)
    _print_table(f"{found.about['machine']}, {', '.join(found.about['engines'])}", shown)
    for name, served in found.about["served"].items():
        print(f"{name}: {served}")
    print(f"predicted: {found.about['predicted by'] or 'nothing, an H100 or H200 (SXM) and aiconfigurator are needed'}")
    if doubt := found.about["doubt"]:
        print(f"Doubtful: {doubt}.")
    for file in one_gpu.save(found, out or paths.DATA / "measured"):
        print(file)


@app.command()
def route(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to decide on.", metavar="PROMPT")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A prompt a line, or a .jsonl file with the field 'text'.", metavar="FILE")
    ] = None,
    router: Annotated[
        Path | None, typer.Option(help="Folder of a saved router, instead of the study's.", metavar="DIR")
    ] = None,
    profile: Profile = "laptop",
    results: Results = None,
):
    """Show where the router sends a prompt, and why: the nearest clusters, their terms, which of these it holds.

    Examples:

    \b
      erlab route "Who pays if the tenant breaks the lease?"
      erlab route --file prompts.txt --profile smoke
    """
    from erlab.deployment import Folders
    from erlab.routing import PromptRouter, explain

    if bool(prompts) == bool(file):
        raise ErlabError("Either prompts or --file must be given.")
    texts = explain.read_texts(file) if file else prompts
    folder = router or Folders.of(profiles.profile(profile).name, results).router
    if not (folder / "router.json").is_file():
        raise ErlabError(f"No router in {folder}: erlab reproduce --only 02 trains one, --router names another folder.")
    decisions = explain.explain(PromptRouter.load(folder), texts)
    domains = explain.top_domains(folder)
    if file:
        _print_table(f"Decisions of {folder}", explain.decisions_table(decisions, domains))
    else:
        for decision in decisions:
            _print_table(explain.title(decision), explain.nearest_table(decision, domains))


@app.command()
def users(
    address: Annotated[
        str,
        typer.Option(
            help="A KServe v2 gRPC server: Triton or a gateway.", metavar="HOST:PORT", callback=options.TRITON
        ),
    ],
    count: Annotated[
        int,
        typer.Option("--users", help="How many ask at the same time.", parser=options.whole, callback=options.COUNT),
    ] = 8,
    model: Annotated[
        list[str] | None, typer.Option(help="Whom they ask in turn; repeat for more. router if not given.")
    ] = None,
    profile: Profile = "laptop",
    prompts: Prompts = None,
    text: TextColumn = None,
    seed: Seed = 0,
    name: Annotated[str, typer.Option(help="What the records call the system.")] = "custom",
    out: NewRecords = Path("users.parquet"),
):
    """Let closed-loop users ask a running system; write their request records and print a summary.

    Example:

    \b
      erlab users --address 127.0.0.1:8001 --users 32 --out load.parquet
    """
    from erlab import datasets, live, metrics, records

    to, models = profiles.profile(profile), tuple(model or ("router",))
    corpus = datasets.load(prompts, seed=seed, text=text)
    with _requests_bar() as progress:
        rows, run = live.load(address, models, count, to, corpus, name, seed, progress)
    records.write(out, rows, run)
    found = records.read(out)
    columns = ["users", "requests", "failed", "ttft_median_s", "tpot_median_ms", "e2e_median_s", "output_throughput"]
    _print_table(f"{count} users of {address}", metrics.summarise(found.requests)[columns].astype(object))
    print(out)


@app.command()
def simulate(
    system: Annotated[str, typer.Option(help=f"{_SYSTEMS} of paper v2; {_V1_SYSTEMS} of v1.", metavar="NAME")],
    version: Annotated[str, typer.Option("--paper", help="The paper's version: v2 or v1.")] = "v2",
    users: Annotated[
        list[int] | None,
        typer.Option(
            help="Concurrent users; repeat for more. 1 to 1,000 if not given.",
            parser=options.whole,
            callback=options.COUNT,
        ),
    ] = None,
    seed: Seed = 0,
    kv_gib: Annotated[
        float | None,
        typer.Option(
            help="KV cache on each GPU; what the weights leave if not given.",
            parser=options.real,
            callback=options.number("be a number above 0 and at most 10000", lambda gib: 0 < gib <= 10_000),
        ),
    ] = None,
    era: Annotated[
        str | None, typer.Option(help="Software: 0.13 (TensorRT-LLM then), none (kernels of today).")
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            help="Engines of the system, instead of all eight GPUs' worth.",
            parser=options.whole,
            callback=options.COUNT,
        ),
    ] = None,
    gateway_ms: Annotated[
        float,
        typer.Option(
            help="What a router system's gateway takes.",
            parser=options.real,
            callback=options.number("be a number from 0 to 60000", lambda ms: 0 <= ms <= 60_000),
        ),
    ] = 2.0,
    policy: Annotated[
        str | None,
        typer.Option(
            help="How a router system chooses, such as spill; nearest if not given.", callback=options.POLICY
        ),
    ] = None,
    steps: Annotated[str, typer.Option(help="Iteration times: measured (kernels), roofline (the limit).")] = "measured",
    cluster: Annotated[
        str | None, typer.Option(help="Where loads are simulated: dask:HOST:PORT or ray:HOST:PORT.", metavar="CLUSTER")
    ] = None,
    out: NewRecords = Path("simulated.parquet"),
):
    """Simulate a system of the paper on its DGX H100; write request records and print a summary.

    Examples:

    \b
      erlab simulate --system D                              all loads of the paper
      erlab simulate --system E --users 600 --users 1000     two loads
      erlab simulate --system D --users 400 --kv-gib 4.5 --policy spill
      erlab simulate --system TP8 --paper v1 --era none
    """
    from erlab import metrics, records, simulation

    it, setup = simulation.of_paper(version, system, kv_gib, replicas, era, steps, gateway_ms / 1e3)
    if policy is not None and not it.router:
        raise ErlabError(f"--policy is for router systems, {system} is a baseline. Got {policy!r}.")
    policy = "nearest" if policy is None else policy
    found = simulation.sweep({system: it}, users or paper.LOADS, setup=setup, seed=seed, cluster=cluster, policy=policy)
    records.save(out, found)
    columns = ["users", "requests", "ttft_median_s", "ttft_p99_s", "tpot_median_ms", "e2e_median_s"]
    table = metrics.summarise(found.requests)[[*columns, "output_throughput"]]
    _print_table(f"{it.title}: {setup.machine}", table.astype(object))
    print(out)


def _running(triton: str | None, upstream: str | None) -> str | None:
    """The one address of --triton and --upstream."""
    if upstream and triton:
        raise ErlabError(f"--upstream must not stand beside --triton. Got {upstream!r} and {triton!r}.")
    return upstream or triton


def _settings(given: list[str] | None) -> dict[str, object]:
    from erlab.pipeline import literal

    values = {}
    for setting in given or ():
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ErlabError(f"--set must be NAME=VALUE. Got {setting!r}.")
        if name in values:
            raise ErlabError(f"--set must name each parameter once. Got {name} twice.")
        values[name] = literal(text)
    return values


def _read(files: list[Path] | None, profile: str):
    from erlab import paths, records

    kept = paths.results(profiles.profile(profile).name) / "records"
    if not files and not kept.exists():
        raise ErlabError(f"No records in {kept}: erlab reproduce makes them, --records names others.")
    return records.read(*(files or [kept]))


@contextlib.contextmanager
def _requests_bar() -> Iterator[Callable[[int], None]]:
    """Yields what counts ended requests, in a terminal only."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.completed} requests"), TimeElapsedColumn()
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bars:
        task = bars.add_task("")
        yield lambda ended: bars.update(task, completed=ended)


def _show_states(states: list, results: Path, why: bool) -> None:
    from erlab.terminal import duration

    will = {"stale": "runs", "missing": "runs", "maybe": "may run", "cached": "cached", "left out": "left out"}
    lengths = ["depends on the server" if s.minutes is None else duration(s.minutes) for s in states]
    rows = [(s.step.name, will[s.state] if why else s.state, n, s.reason) for s, n in zip(states, lengths)]
    _print_rows(str(results), ("step", "state", "takes about", "why"), rows)
    if why:
        due = [s.minutes for s in states if s.state in ("stale", "missing")]
        known, unknown = sum(n for n in due if n is not None), None in due
        theirs = ", and what the server takes" if unknown else ""
        print(f"About {duration(known)} in all{theirs}; nothing was written." if due else "Nothing has to run.")


def _show_plan(study) -> None:
    """What building and serving engines will take, where that is worth reading first."""
    from erlab.deployment import Folders
    from erlab.engines.families import family

    if study.triton:
        print(f"\n{study.triton} serves the models: no engine is built and no server of theirs is started.")
        return
    to, folders = profiles.profile(study.profile), Folders.of(study.profile, study.results)
    if text := family(to).describe(to, folders, study.extra.get("weights")):
        print(f"\n{text}")


def _print_table(title: str, frame, lines: bool = False) -> None:
    """A data frame as a table; unknown values are left empty."""
    import pandas as pd

    def text(value) -> str:
        return "" if pd.isna(value) else f"{value:.4g}" if isinstance(value, float) else str(value)

    rows = [[text(value) for value in row] for row in frame.itertuples(index=False)]
    _print_rows(title, tuple(map(str, frame.columns)), rows, lines)


def _print_rows(title: str, columns: tuple[str, ...], rows: list, lines: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_lines=lines)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    console.print(table) if console.is_terminal else Console(width=160).print(table)


def main() -> None:
    app(prog_name="erlab")
