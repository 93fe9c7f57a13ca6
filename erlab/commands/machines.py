"""`erlab gpu` and `erlab simulate`: experts measured on one GPU, and the paper's systems simulated on its machine."""

from pathlib import Path
from typing import Annotated

import typer

from erlab import paper
from erlab.commands import options, printed
from erlab.commands.options import NewRecords, Profile, Results, Seed, Upstream
from erlab.errors import ErlabError
from erlab.serving import profiles

_SYSTEMS, _V1_SYSTEMS = (", ".join(paper.SYSTEMS[version]) for version in ("v2", "v1"))


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
    from erlab import paths
    from erlab.experiments import gpu as one_gpu
    from erlab.paths import Folders

    to = profiles.profile(profile)
    found = one_gpu.measure(to, Folders.of(profile, results), case, users, seed, upstream)
    shown = found.summary.drop(columns="served").astype(object)
    printed.table(f"{found.about['machine']}, {', '.join(found.about['engines'])}", shown)
    for name, served in found.about["served"].items():
        printed.line(f"{name}: {served}")
    by = found.about["predicted by"] or "nothing, an H100 or H200 (SXM) and aiconfigurator are needed"
    printed.line(f"predicted: {by}")
    if doubt := found.about["doubt"]:
        printed.line(f"Doubtful: {doubt}.")
    for file in found.save(out or paths.DATA / "measured"):
        printed.line(file)


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
    from erlab import simulation
    from erlab.results import metrics, records

    it, setup = simulation.of_paper(version, system, kv_gib, replicas, era, steps, gateway_ms / 1e3)
    if policy is not None and not it.router:
        raise ErlabError(f"--policy is for router systems, {system} is a baseline. Got {policy!r}.")
    policy = "nearest" if policy is None else policy
    found = simulation.sweep({system: it}, users or paper.LOADS, setup=setup, seed=seed, cluster=cluster, policy=policy)
    records.save(out, found)
    columns = ["users", "requests", "ttft_median_s", "ttft_p99_s", "tpot_median_ms", "e2e_median_s"]
    table = metrics.summarise(found.requests)[[*columns, "output_throughput"]]
    printed.table(f"{it.title}: {setup.machine}", table.astype(object))
    printed.line(out)
