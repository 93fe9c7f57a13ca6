"""`erlab serve`, `erlab users` and `erlab route`: serving, load tests and routing decisions."""

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
    system: Annotated[
        str, typer.Option(help=f"System of Table I: {', '.join(paper.SYSTEMS['v2'])}.", metavar="LETTER")
    ],
    profile: Profile = "laptop",
    results: Results = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port for users (default: a free one).", parser=options.whole, callback=options.PORT),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Routing policy, a name in erlab.routing.policies (default: nearest).",
            metavar="NAME",
            callback=options.POLICY,
        ),
    ] = None,
    generalist: Annotated[
        str | None,
        typer.Option(help="With --policy outlier: model for prompts outside of all clusters.", metavar="MODEL"),
    ] = None,
    strong: Annotated[
        str | None, typer.Option(help="With --policy strong_weak: model for difficult prompts.", metavar="MODEL")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="With --policy strong_weak: lowest difficulty for the strong model, 0 to 1 (default: 0.5).",
            parser=options.real,
            callback=options.SHARE,
        ),
    ] = None,
    triton: Triton = None,
    upstream: Upstream = None,
    container: Annotated[
        str | None,
        typer.Option(
            help="On GPUs: run Triton in docker or podman, or print the commands "
            "(default: Triton on this machine, else in a container).",
            metavar="docker|podman|print",
            callback=options.CONTAINER,
        ),
    ] = None,
    apart: Annotated[bool, typer.Option("--apart", help="On GPUs: one Triton server per expert.")] = False,
):
    """Start a system (Triton and, for router systems, the gateway) and keep it running until Ctrl-C.

    Router systems need a trained router: erlab reproduce --only 02. On GPUs, Triton runs on this machine if installed,
    else in NVIDIA's container.

    Examples:

    \b
      erlab serve --system E --port 8001
      erlab serve --system E --policy outlier --generalist E-expert-0
      erlab serve --system E --profile gpu --upstream http://127.0.0.1:8000
      erlab serve --system D --profile dgx-h100 --container print
    """
    from erlab.experiments import live
    from erlab.paths import Folders

    machine, folders = profiles.profile(profile), Folders.of(profile, results)
    if container == "print":
        for command in live.commands(system, machine, folders, apart):
            printed.line(command)
        return
    attached = options.attached_server(triton, upstream)
    routing = {"policy": policy, "generalist": generalist, "strong": strong, "threshold": threshold}
    routing = {name: value for name, value in routing.items() if value is not None}
    with live.serve(system, machine, folders, port, attached, container, apart, **routing) as running:
        model_options = " ".join(f"--model {name}" for name in running.models)
        models = ", ".join(running.models)
        printed.line(f"System {system} answers at {running.address} (KServe v2 gRPC), models: {models}.")
        if attached:
            printed.line(f"Upstream: {attached}, not started by erlab.")
        load_test = f"erlab users --address {running.address} {model_options} --users 8 --profile {profile}"
        printed.line(f"Load test: {load_test}")
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
        typer.Option(help="KServe v2 gRPC server: Triton or a gateway.", metavar="HOST:PORT", callback=options.TRITON),
    ],
    count: Annotated[
        int,
        typer.Option("--users", help="Concurrent users.", parser=options.whole, callback=options.COUNT),
    ] = 8,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to query; repeat to alternate between several (default: router).")
    ] = None,
    profile: Profile = "laptop",
    prompts: Prompts = None,
    text: TextColumn = None,
    seed: Seed = 0,
    name: Annotated[str, typer.Option(help="Name of the system in the records.")] = "custom",
    out: NewRecords = Path("users.parquet"),
):
    """Load-test a running server with closed-loop users; write request records and print a summary.

    Example:

    \b
      erlab users --address 127.0.0.1:8001 --users 32 --out load.parquet
    """
    from erlab.experiments import live
    from erlab.prompts import datasets
    from erlab.results import metrics, records

    models = tuple(model or ("router",))
    corpus = datasets.load(prompts, seed=seed, text=text)
    with printed.requests_bar() as progress:
        rows, run = live.load(address, models, count, profiles.profile(profile), corpus, name, seed, progress)
    records.write(out, rows, run)
    found = records.read(out)
    columns = ["users", "requests", "failed", "ttft_median_s", "tpot_median_ms", "e2e_median_s", "output_throughput"]
    printed.table(f"{address}, concurrent users: {count}", metrics.summarise(found.requests)[columns].astype(object))
    printed.line(out)


def route(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to route.", metavar="PROMPT")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="File with one prompt per line, or a .jsonl file with the field 'text'.", metavar="FILE"),
    ] = None,
    router: Annotated[
        Path | None, typer.Option(help="Folder of a saved router (default: the study's).", metavar="DIR")
    ] = None,
    profile: Profile = "laptop",
    results: Results = None,
):
    """Show the router's decisions: nearest clusters, their terms, and the terms that a prompt contains.

    Examples:

    \b
      erlab route "Who pays if the tenant breaks the lease?"
      erlab route --file prompts.txt --profile smoke
    """
    from erlab.paths import Folders
    from erlab.routing import CompiledRouter, explain

    if bool(prompts) == bool(file):
        raise ErlabError("Either PROMPT or --file must be given.")
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
