"""What `import erlab` offers: a dozen functions and classes to explore, each with an example.

    import erlab

    erlab.systems()                                       # the systems that can be simulated
    records = erlab.simulate("E", users=[1, 100, 600])    # request records
    erlab.summarise(records)                              # one row per load
    erlab.figure("fig4", records)                         # the figure
    erlab.claims(records)                                 # the paper's claims

A name that is also a package's is none of these: `erlab.gateway` and `erlab.users` are packages;
`erlab.start_gateway` and `erlab.load_test` run what they hold. Tables are DataFrames; names of times end in their unit.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa

from erlab import paper
from erlab.errors import ErlabError
from erlab.results import imports, metrics
from erlab.results import records as request_records
from erlab.results.records import Records
from erlab.spec import System, checked_loads, require
from erlab.users.ask import ask as ask

_SUMMARY = ["system", "source", "users", "requests", "failed", "ttft_median_s", "ttft_p99_s", "tpot_median_ms"]
_SUMMARY += ["e2e_median_s", "request_throughput", "output_throughput"]


def systems(file: str | Path | None = None) -> pd.DataFrame:
    """List the systems of the paper, and those that a TOML file describes (see `erlab.simulation.systems`).

    >>> import erlab
    >>> erlab.systems()[["system", "model", "engines", "router"]].head(2)
      system        model  engines  router
    0      A  Llama 3 70B        2   False
    1      B  Llama 3 70B        2   False
    """
    from erlab.simulation import systems as described

    of_paper = {name: system for version in paper.SYSTEMS.values() for name, system in version.items()}
    return described.table(of_paper | (described.read(file) if file else {}))


def simulate(
    system: str | System,
    users: int | Iterable[int] = paper.LOADS,
    *,
    file: str | Path | None = None,
    steps: str = "measured",
    **options,
) -> Records:
    """Simulate a system on the paper's DGX H100 under closed-loop users.

    Args:
        system: Name in `systems(file)`, or a `erlab.spec.System`.
        users: Concurrent users, one number or several (default: the paper's loads).
        file: TOML file of further systems.
        steps: Iteration times, measured (kernels) or roofline (lower limit).
        **options: Further arguments of `erlab.simulation.sweep`: seed, policy, shares, setup, workload.

    >>> import erlab
    >>> records = erlab.simulate("E", users=[1, 10], steps="roofline")
    >>> len(records.requests), sorted(set(records.requests["users"]))
    (62, [1, 10])
    """
    from erlab import simulation

    name = system.name if isinstance(system, System) else system
    version = next((v for v, of_paper in paper.SYSTEMS.items() if name in of_paper), "v2")
    if not isinstance(system, System):
        system, setup = simulation.of_paper(version, name, steps=steps, file=file)
        options.setdefault("setup", setup)
    loads = checked_loads([users] if isinstance(users, int) else users, "users")
    return simulation.sweep({name: system}, loads, **options)


def read_records(*paths: str | Path) -> Records:
    """Read request records: parquet files, and folders with such files.

    >>> import erlab, pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "e.parquet"
    >>> erlab.results.records.save(file, erlab.simulate("E", users=2, steps="roofline"))
    >>> len(erlab.read_records(file).requests)
    12
    """
    return request_records.read(*paths)


def import_results(*files: str | Path, system: str, machine: str | None = None) -> Records:
    """Read result files of other benchmark clients (`erlab.results.formats.CLIENTS`) as request records.

    >>> import erlab, json, pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "result.json"
    >>> columns = {"ttfts": [0.5], "itls": [[0.25]], "errors": [""], "input_lens": [9], "output_lens": [2]}
    >>> _ = file.write_text(json.dumps(columns | {"model_id": "m", "start_times": [7.0]}))
    >>> erlab.summarise(erlab.import_results(file, system="vLLM"))["ttft_median_s"].item()
    0.5
    """
    return imports.read_all(map(Path, files), system=system, machine=machine)


def summarise(records: Records, every: bool = False) -> pd.DataFrame:
    """Compute the metrics of each system and load.

    Args:
        records: Request records.
        every: Return all columns of `erlab.results.metrics.summarise`, with more percentiles.

    Returns:
        One row per system, source and load; throughputs are per second.

    >>> import erlab
    >>> table = erlab.summarise(erlab.simulate("E", users=[1, 10], steps="roofline"))
    >>> table[["system", "users", "requests", "failed"]]
      system  users  requests  failed
    0      E      1        12       0
    1      E     10        50       0
    """
    table = metrics.summarise(records.requests)
    return table if every else table[_SUMMARY]


def figure(name: str, records: Records):
    """Draw a figure of the paper, fig1 to fig7 or table1, from request records.

    Returns:
        A matplotlib figure, which Jupyter displays; `savefig` writes it.

    >>> import erlab
    >>> records = erlab.simulate("E", users=[1, 10], steps="roofline")
    >>> [axes.get_xlabel() for axes in erlab.figure("fig4", records).axes]
    ['Concurrent users']
    """
    from erlab import figures

    data = figures.data(records, [name])
    if name in data.missing:
        raise ErlabError(f"{name} cannot be drawn: {data.missing[name]}")
    return figures.show(name, data)


def claims(records: Records, version: str | None = None) -> pd.DataFrame:
    """Test the paper's claims on request records.

    Args:
        records: Request records.
        version: Version of the paper, v1 or v2 (default: claims of both).

    Returns:
        One row per claim and source: statement, test, what was found, verdict.

    >>> import erlab
    >>> ledger = erlab.claims(erlab.simulate("E", users=[1, 10], steps="roofline"), version="v2")
    >>> ledger.columns.tolist()
    ['claim', 'statement', 'test', 'tolerance', 'found', 'verdict', 'on']
    """
    from erlab.results import claims as of_paper

    return of_paper.shown(of_paper.ledger(records, of_paper.select(version)))


def load_prompts(source: str | Path | None = None, seed: int = 0, per_domain: int | None = None) -> pd.DataFrame:
    """Load prompts: the project's own, files, a folder or a Hugging Face dataset (`erlab.prompts.datasets.load`).

    Returns:
        One row per prompt: id, domain, text, and split (train for the router, held_back for users).

    >>> import erlab
    >>> prompts = erlab.load_prompts(per_domain=5)
    >>> len(prompts), prompts.columns.tolist()
    (40, ['id', 'domain', 'text', 'split'])
    """
    from erlab.prompts import datasets

    return datasets.load(source, seed=seed, per_domain=per_domain).to_pandas()


@contextmanager
def serve(system: str, profile: str = "laptop", port: int | None = None, **options) -> Iterator:
    """Start a system of Table I (Triton and, for router systems, the gateway); stop it on exit.

        with erlab.serve("A", profile="smoke") as running:
            print(erlab.ask("Hello", running.address, model=running.models[0]))

    Args:
        system: A to E.
        profile: Machine profile.
        port: Port for users (default: a free one).
        **options: Further arguments of `erlab.experiments.live.serve`.

    >>> import erlab
    >>> with erlab.serve("F") as running: ...
    Traceback (most recent call last):
        ...
    erlab.errors.ErlabError: The 'system' parameter of serve must be one of A, B, C, D, E. Got 'F'.
    """
    from erlab.experiments import live
    from erlab.paths import Folders, results
    from erlab.serving import profiles

    machine = profiles.profile(profile)
    with live.serve(system, machine, Folders(results(profile)), port, **options) as running:
        yield running


@contextmanager
def start_gateway(config: str | Path | Mapping, timeout: float = 60.0) -> Iterator:
    """Start the routing gateway in front of experts that run already; stop it on exit.

        with erlab.start_gateway("fleet.toml") as gateway:
            print(erlab.ask("What is a watt?", gateway.http))

    Args:
        config: TOML file, or its tables (`erlab.gateway.fleet.from_table`).
        timeout: Seconds for an expert to become ready.

    >>> import erlab
    >>> with erlab.start_gateway({"experts": {"math": {"urll": "http://127.0.0.1:8000"}}}) as gateway: ...
    Traceback (most recent call last):
        ...
    erlab.errors.ErlabError: fleet: [experts.math]: must not have the key 'urll'; did you mean 'url'?
    """
    from erlab.gateway import Gateway, fleet, prepare

    if isinstance(config, Mapping):
        described = fleet.from_table(config)
    else:
        described = fleet.from_table(fleet.read(config), str(config), Path(config).parent)
    ready = prepare.prepared(described)
    prepare.require_experts(ready.config)
    with Gateway(ready.config, timeout) as running:
        yield running


def load_test(
    address: str,
    users: int = 8,
    model: str | Iterable[str] = "router",
    prompts: str | Path | None = None,
    system: str = "custom",
    profile: str = "laptop",
    seed: int = 0,
) -> Records:
    """Load-test a running KServe v2 gRPC server with closed-loop users; `erlab users` has more kinds of loads.

    Args:
        address: HOST:PORT.
        users: Concurrent users.
        model: Model to query, or several, between which users alternate.
        prompts: Source of prompts, see `load_prompts`.
        system: Name of the system in the records.
        profile: Machine profile, whose lengths and deadline the requests have.
        seed: Random seed.

    >>> import erlab
    >>> from erlab.users.selftest import Echo
    >>> with Echo(first=0.01, gap=0.001) as server:
    ...     records = erlab.load_test(server.address, users=2, model="m", profile="smoke")
    >>> erlab.summarise(records)["failed"].item()
    0
    """
    from erlab.experiments import live
    from erlab.prompts import datasets
    from erlab.serving import profiles

    models = (model,) if isinstance(model, str) else tuple(model)
    require(bool(models), "model", "load_test", "name at least one model", model)
    corpus = datasets.load(prompts, seed=seed)
    rows, run = live.load(address, models, users, profiles.profile(profile), corpus, system, seed)
    return request_records.from_table(pa.Table.from_pylist(rows, schema=request_records.SCHEMA), run)


def __getattr__(name: str):
    if name == "PromptRouter":
        from erlab.routing import PromptRouter  # scikit-learn takes a second to import

        return PromptRouter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
