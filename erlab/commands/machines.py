"""`erlab gpu` and `erlab simulate`: measurements on one local GPU, simulations of the DGX H100."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from erlab import paper
from erlab.commands import loads, options, printed
from erlab.commands.options import NewRecords, Profile, Results, Seed, Upstream
from erlab.errors import ErlabError
from erlab.serving import profiles

_SYSTEMS, _V1_SYSTEMS = (", ".join(paper.SYSTEMS[version]) for version in ("v2", "v1"))


def gpu(
    profile: Profile = "gpu",
    case: Annotated[
        list[str] | None,
        typer.Option(help="Case: 8B, 8B-shared or 70B-FP8; repeat for several (default: all that fit the GPU)."),
    ] = None,
    users: Annotated[
        list[int] | None,
        typer.Option(
            help="Concurrent users; repeat for several loads (default: the profile's, 1 to 256).",
            parser=options.whole,
            callback=options.COUNT,
        ),
    ] = None,
    upstream: Upstream = None,
    seed: Seed = 0,
    results: Results = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the summary (default: data/measured).", callback=options.FOLDER)
    ] = None,
):
    """Measure experts on one local GPU and compare them with its simulation.

    Requests pass from users through the gateway to the engine.

    Examples:

    \b
      erlab gpu                                       all cases, 1 to 256 users
      erlab gpu --case 8B --users 1 --users 64        one case, two loads
      erlab gpu --profile gpu-vllm                    with vLLM, whichever engines are installed
      erlab gpu --case 8B --upstream http://127.0.0.1:8000   your own server of an 8B model
    """
    from erlab import paths
    from erlab.experiments import gpu as one_gpu
    from erlab.paths import Folders

    folders = Folders.of(profile, results)
    measured = one_gpu.measure(profiles.profile(profile), folders, case, users, seed, upstream)
    summary = measured.summary.drop(columns="served").astype(object)
    printed.table(f"{measured.about['machine']}, {', '.join(measured.about['engines'])}", summary)
    for name, served in measured.about["served"].items():
        printed.line(f"{name}: {served}")
    source = measured.about["predicted by"] or "nothing, an H100 or H200 (SXM) and aiconfigurator are needed"
    printed.line(f"predicted: {source}")
    if doubt := measured.about["doubt"]:
        printed.line(f"Doubtful: {doubt}.")
    for file in measured.save(out or paths.DATA / "measured"):
        printed.line(file)


def simulate(
    system: Annotated[str, typer.Option(help=f"System: {_SYSTEMS} of v2; {_V1_SYSTEMS} of v1.", metavar="NAME")],
    version: Annotated[str, typer.Option("--paper", help="Version of the paper: v2 or v1.")] = "v2",
    systems: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of further systems, one table systems.NAME each: model, precision, tensor_parallel, count, "
            "router.",
            metavar="FILE",
        ),
    ] = None,
    users: Annotated[
        list[int] | None,
        typer.Option(
            help="Concurrent users; repeat for several loads (default: the paper's, 1 to 1,000).",
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
    context: Annotated[
        int | None,
        typer.Option(
            help="With --trace: longest request, input and output tokens; longer ones are cut (default: the model's "
            "8192, up to 32768 for a model like Llama 3.1).",
            parser=options.whole,
            callback=options.number("be a whole number from 2048 to 32768", lambda tokens: 2048 <= tokens <= 32768),
        ),
    ] = None,
    seed: Seed = 0,
    kv_gib: Annotated[
        float | None,
        typer.Option(
            help="KV cache per GPU in GiB (default: what the weights leave).",
            parser=options.real,
            callback=options.number("be a number above 0 and at most 10000", lambda gib: 0 < gib <= 10_000),
        ),
    ] = None,
    era: Annotated[
        str | None,
        typer.Option(
            help="Serving software: 0.13 (TensorRT-LLM 0.13) or none (current kernels) "
            "(default: 0.13; none with --steps roofline)."
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            help="Number of engine replicas (default: as many as fit eight GPUs).",
            parser=options.whole,
            callback=options.COUNT,
        ),
    ] = None,
    gateway_ms: Annotated[
        float,
        typer.Option(
            help="Gateway delay of a router system in ms.",
            parser=options.real,
            callback=options.number("be a number from 0 to 60000", lambda ms: 0 <= ms <= 60_000),
        ),
    ] = 2.0,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Routing policy of a router system: {policies} (default: nearest).",
            metavar="NAME",
            callback=options.one_of("policies"),
        ),
    ] = None,
    prefix_caching: Annotated[
        bool,
        typer.Option(
            "--prefix-caching", help="With --trace: keep prompts in the KV cache for later ones with the same prefix ids."
        ),
    ] = False,
    prefix_pool: Annotated[
        int | None,
        typer.Option(
            help="With --prefix-caching: most tokens of unused prompts that are kept (default: all that fit).",
            parser=options.whole,
            callback=options.number("be a whole number from 0", lambda tokens: tokens >= 0),
        ),
    ] = None,
    steps: Annotated[str, typer.Option(help="Step times: measured (kernels) or roofline (lower bound).")] = "measured",
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Cluster that runs the simulations: dask:HOST:PORT or ray:HOST:PORT (default: this machine).",
            metavar="CLUSTER",
        ),
    ] = None,
    out: NewRecords = Path("simulated.parquet"),
):
    """Simulate a system of the paper on a DGX H100; write request records and print a summary.

    The load is a closed loop with the paper's lengths, unless a rate or a trace is given.

    Examples:

    \b
      erlab simulate --system D                              all loads of the paper
      erlab simulate --system E --users 600 --users 1000     two loads
      erlab simulate --system D --users 400 --kv-gib 4.5 --policy spill
      erlab simulate --system E --rate 40 --duration 10min --warmup 1min
      erlab simulate --system E --trace azure.csv --speed 10 --policy least_outstanding
      erlab simulate --system E --trace mooncake.jsonl --context 32768 --prefix-caching --policy longest_prefix
      erlab simulate --system TP8 --paper v1 --era none
      erlab simulate --systems my_systems.toml --system F    a system of your own
    """
    from erlab import simulation
    from erlab.prompts.loads import Load
    from erlab.results import metrics, records

    simulated, setup = simulation.of_paper(version, system, kv_gib, replicas, era, steps, gateway_ms / 1e3, systems)
    if policy is not None and not simulated.router:
        raise ErlabError(f"--policy is for router systems, {system} is a baseline. Got {policy!r}.")
    policy = "nearest" if policy is None else policy
    shape = loads.make(
        users, rate, constant_rate, trace, speed, length_factor, trace_format, trace_columns, block_tokens,
        duration, requests, think, warmup,
    )  # fmt: skip
    if prefix_caching and (shape.trace is None or shape.trace.prefix is None):
        raise ErlabError("--prefix-caching needs a --trace with prefix ids on every request.")
    if prefix_pool is not None and not prefix_caching:
        raise ErlabError(f"--prefix-pool is for --prefix-caching, which is missing. Got {prefix_pool}.")
    if policy == "longest_prefix" and not prefix_caching:
        raise ErlabError("--policy longest_prefix needs --prefix-caching.")
    if prefix_caching:
        cache = replace(setup.batching, prefix_caching=True, prefix_pool=prefix_pool)
        setup = replace(setup, batching=cache)
    if shape == Load():
        counts = users or paper.LOADS
        found = simulation.sweep({system: simulated}, counts, setup=setup, seed=seed, cluster=cluster, policy=policy)
    elif cluster is not None:
        raise ErlabError(f"--cluster simulates closed loops of the paper's requests only. Got {cluster!r}.")
    else:
        routing = {"policy": policy} if simulated.router else {}
        counts = (users or paper.LOADS) if shape.closed else [1]
        parts = [simulation.replay(simulated, shape, n, setup=setup, seed=seed, context=context, **routing) for n in counts]
        found = records.join(*parts)
    records.save(out, found)
    columns = ["users", "requests", "ttft_median_s", "ttft_p99_s", "tpot_median_ms", "tpot_p99_ms", "e2e_median_s"]
    table = metrics.summarise(found.requests)[[*columns, "output_throughput"]]
    title = f"{simulated.title}: {setup.machine}" + (f", {shape.title()}" if shape != Load() else "")
    printed.table(title, table.astype(object))
    if shape != Load():
        loads.note_cut(found.runs)
    if prefix_caching:
        rates = found.runs["prefix_cache"].item()
        shares = f"{rates['hit_rate']:.1%} of the prompt tokens; an infinite cache {rates['infinite_hit_rate']:.1%}"
        printed.line(f"Prefix cache: {shares}.")
    printed.line(out)
