"""`erlab serve`, `erlab users` and `erlab route`: a system that stays up, users for any, and where prompts go."""

import time
from pathlib import Path
from typing import Annotated

import typer

from erlab import paper
from erlab.commands import options, printed
from erlab.commands.options import NewRecords, Profile, Prompts, Results, Seed, TextColumn, Triton, Upstream
from erlab.errors import ErlabError
from erlab.serving import profiles


def serve(
    system: Annotated[str, typer.Option(help=f"A system of Table I: {', '.join(paper.SYSTEMS['v2'])}.", metavar="LETTER")],
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
    from erlab.experiments import live
    from erlab.paths import Folders

    to, folders = profiles.profile(profile), Folders.of(profile, results)
    if container == "print":
        for command in live.commands(system, to, folders, apart):
            printed.line(command)
        return
    given = {"policy": policy, "generalist": generalist, "strong": strong, "threshold": threshold}
    choice = {name: value for name, value in given.items() if value is not None}
    with live.serve(system, to, folders, port, options.running(triton, upstream), container, apart, **choice) as running:
        asked = " ".join(f"--model {name}" for name in running.models)
        models = ", ".join(running.models)
        printed.line(f"System {system} answers at {running.address} (KServe v2 gRPC), models: {models}.")
        if attached := options.running(triton, upstream):
            printed.line(f"Behind it: {attached}, which erlab did not start.")
        printed.line(f"Load it: erlab users --address {running.address} {asked} --users 8 --profile {profile}")
        printed.line("Ctrl-C stops it.")
        try:
            while not (failure := running.failure()):
                time.sleep(1)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"System {system} is stopped.") from None
        raise ErlabError(failure)


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
    from erlab.experiments import live
    from erlab.prompts import datasets
    from erlab.results import metrics, records

    to, models = profiles.profile(profile), tuple(model or ("router",))
    corpus = datasets.load(prompts, seed=seed, text=text)
    with printed.requests_bar() as progress:
        rows, run = live.load(address, models, count, to, corpus, name, seed, progress)
    records.write(out, rows, run)
    found = records.read(out)
    columns = ["users", "requests", "failed", "ttft_median_s", "tpot_median_ms", "e2e_median_s", "output_throughput"]
    printed.table(f"{count} users of {address}", metrics.summarise(found.requests)[columns].astype(object))
    printed.line(out)


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
    from erlab.paths import Folders
    from erlab.routing import CompiledRouter, explain

    if bool(prompts) == bool(file):
        raise ErlabError("Either prompts or --file must be given.")
    texts = explain.read_texts(file) if file else prompts
    folder = router or Folders.of(profiles.profile(profile).name, results).router
    if not (folder / "router.json").is_file():
        raise ErlabError(f"No router in {folder}: erlab reproduce --only 02 trains one, --router names another folder.")
    decisions = explain.explain(CompiledRouter.load(folder), texts)
    domains = explain.top_domains(folder)
    if file:
        printed.table(f"Decisions of {folder}", explain.decisions_table(decisions, domains))
    else:
        for decision in decisions:
            printed.table(explain.title(decision), explain.nearest_table(decision, domains))
