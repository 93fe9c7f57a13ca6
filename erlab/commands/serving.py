"""`erlab serve`, `erlab users` and `erlab route`: serving, load tests and routing decisions."""

import time
from pathlib import Path
from typing import Annotated

import typer

from erlab import paper
from erlab.commands import loads, options, printed
from erlab.commands.gateway import ready_to_paste
from erlab.commands.options import (
    NewRecords, Profile, Prompts, Results, Seed, SkipMissing, TextColumn, Triton, Upstream,
)  # fmt: skip
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
        typer.Option(
            help="Port of the KServe v2 gRPC server (default: a free one).",
            parser=options.whole,
            callback=options.PORT,
        ),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            help="Router systems: port of the OpenAI-compatible server (default: a free one).",
            parser=options.whole,
            callback=options.PORT,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Routing policy of a router system: {gateway policies} (default: nearest).",
            metavar="NAME",
            callback=options.one_of("gateway policies"),
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
      erlab serve --system E --port 8001 --http-port 8080
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
    routing |= {"http_port": http_port}
    routing = {name: value for name, value in routing.items() if value is not None}
    with live.serve(system, machine, folders, port, attached, container, apart, **routing) as running:
        model_options = " ".join(f"--model {name}" for name in running.models)
        models = ", ".join(running.models)
        http = running.gateway.http if running.gateway else None
        faces = f"{running.address} (KServe v2 gRPC)" + (f" and {http}/v1 (OpenAI-compatible)" if http else "")
        printed.line(f"System {system} answers at {faces}, models: {models}.")
        key = running.gateway and running.gateway.key and running.gateway.config.key_variable
        for command in ready_to_paste(running.address, http, key, running.models[0]):
            printed.line(command)
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
        list[int] | None,
        typer.Option(
            "--users",
            help="Concurrent users of a closed loop; repeat for several loads (default: 8).",
            parser=options.whole,
            callback=options.COUNT,
        ),
    ] = None,
    rate: loads.Rate = None,
    constant_rate: loads.ConstantRate = None,
    trace: loads.TraceFile = None,
    speed: loads.Speed = None,
    length_factor: loads.LengthFactor = None,
    trace_format: loads.TraceFormat = None,
    trace_columns: loads.TraceColumns = None,
    block_tokens: loads.BlockTokens = None,
    duration: loads.Duration = None,
    requests: loads.Requests = None,
    think: loads.Think = None,
    warmup: loads.Warmup = None,
    repeat: options.Repeat = 1,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model to query; repeat for several, which users take in turn (default: router)."),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="Machine profile whose token lengths, requests per user and deadline are used: "
            f"{', '.join(profiles.PROFILES)}.",
            metavar="NAME",
        ),
    ] = "laptop",
    prompts: Prompts = None,
    text: TextColumn = None,
    skip_missing: SkipMissing = False,
    seed: Seed = 0,
    name: Annotated[str, typer.Option(help="Name of the system in the records.")] = "custom",
    out: NewRecords = Path("users.parquet"),
):
    """Load-test a running server with users in closed or open loop; write request records and print a summary.

    Prompts are cut or extended to the lengths of the profile's workload or of the trace. Exit status 1 if every request
    failed.

    Examples:

    \b
      erlab users --address 127.0.0.1:8001 --users 1 --users 8 --users 32
      erlab users --address 127.0.0.1:8001 --users 8 --think 3s --duration 5min --warmup 30s
      erlab users --address 127.0.0.1:8001 --rate 2.5 --requests 500 --repeat 3
      erlab users --address 127.0.0.1:8001 --trace azure.csv --speed 2 --length-factor 0.05 --duration 5min
    """
    from erlab.experiments import cell, live
    from erlab.prompts import datasets
    from erlab.results import metrics, records

    models = tuple(model or ("router",))
    shape = loads.make(
        count, rate, constant_rate, trace, speed, length_factor, trace_format, trace_columns, block_tokens,
        duration, requests, think, warmup,
    )  # fmt: skip
    corpus, origins = datasets.load_with_origins(prompts, seed=seed, text=text, skip_missing=skip_missing)
    for missing in (origin.missing for origin in origins if origin.missing):
        printed.line(f"Left out: {missing}")
    rows, runs = [], []
    for load in dict.fromkeys(count or [8]) if shape.closed else [1]:
        for each in range(seed, seed + repeat):
            with printed.requests_bar() as progress:
                made, run = live.load(
                    address, models, load, profiles.profile(profile), corpus, name, each, progress, shape
                )
            rows, runs = rows + made, [*runs, run]
    records.write(out, rows, *runs)
    found = records.read(out)
    columns = ["users", "runs", "requests", "failed", "ttft_median_s", "ttft_p99_s", "tpot_median_ms", "tpot_p99_ms"]
    columns += ["e2e_median_s", "e2e_p99_s", "output_throughput"]
    printed.table(f"{address}, {shape.title()}", metrics.summarise(found.requests)[columns].astype(object))
    loads.note_cut(found.runs)
    if reason := cell.why_invalid(rows, restarts=0):
        printed.leave(f"{reason} Records: {out}", 1)
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
