"""Sweeps over systems and loads, local or on a cluster.

The result does not depend on where the simulations run: local processes, Dask or Ray.

    from erlab import paper, simulation
    records = simulation.sweep(paper.SYSTEMS["v2"])                         # Figs. 2 and 4 to 7
    preliminary = simulation.sweep(simulation.preliminary_systems())        # Fig. 3
"""

import contextlib
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

import joblib
import pandas as pd

from erlab import paper, provenance
from erlab.errors import ErlabError
from erlab.progress import report
from erlab.results.records import Records
from erlab.simulation.system import Setup, simulate, step_times
from erlab.spec import System, Workload, require

SERIAL_REQUESTS = 500_000  # a smaller sweep ends before worker processes have started


def sweep(
    systems: Mapping[str, System],
    loads: Iterable[int] = paper.LOADS,
    *,
    setup: Setup = Setup(),
    seed: int = 0,
    workload: Workload = paper.WORKLOAD,
    jobs: int | None = None,
    cluster: str | None = None,
    **routing,
) -> Records:
    """Simulate every system under every load.

    Args:
        jobs: Worker processes, -1 for one per core (default: this process for up to `SERIAL_REQUESTS` requests, else
            -1).
        cluster: ``dask:HOST:PORT`` or ``ray:HOST:PORT`` instead of local processes.
        **routing: `shares`, `decisions` and `policy` of `simulate`, for router systems.

    Returns:
        Request records, ordered by system, then load.
    """
    loads = list(loads)
    require(bool(systems), "systems", "sweep", "name at least one system", list(systems))
    require(bool(loads) and min(loads) >= 1, "loads", "sweep", "be numbers of users from 1", loads)
    for system in systems.values():
        setup.pool(system.expert)
        step_times(system.expert, setup)  # stores the table that workers read
    cells = [(replace(system, name=name), n) for name, system in systems.items() for n in loads]
    if jobs is None:
        few = sum(n * workload.turns_for(n) for _, n in cells) <= SERIAL_REQUESTS
        jobs = 1 if few and cluster is None else -1
    parts = []
    with _backend(cluster):
        on_ray = cluster is not None and cluster.startswith("ray:")  # its backend returns no generator
        parallel = joblib.Parallel(jobs, return_as="list" if on_ray else "generator")
        options = dict(setup=setup, seed=seed, workload=workload)
        work = (
            joblib.delayed(simulate)(system, n, **options, **(routing if system.router else {})) for system, n in cells
        )
        for i, part in enumerate(parallel(work)):
            parts.append(part)
            report(i + 1, len(cells), f"simulated {cells[i][0].name}, {cells[i][1]} users")
    requests = pd.concat([part.requests for part in parts], ignore_index=True)
    runs = pd.concat([part.runs for part in parts], ignore_index=True)
    return Records(requests, runs.assign(commit=_commit()))


@lru_cache
def _commit() -> str | None:
    return provenance.commit()


@contextlib.contextmanager
def _backend(cluster: str | None):
    """Select joblib's backend for `cluster`; local processes for None."""
    if cluster is None:
        yield
        return
    kind, _, address = cluster.partition(":")
    try:
        if kind == "dask" and address:
            from dask.distributed import Client

            try:
                client = Client(address, set_as_default=True, timeout=10)
            except (OSError, ValueError) as e:
                raise ErlabError(f"No Dask scheduler answers at {address}: {e}") from None
            with client, joblib.parallel_config(backend="dask"):
                yield
        elif kind == "ray" and address:
            import ray
            from ray.util.joblib import register_ray

            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself tries for minutes
            except (OSError, ValueError, OverflowError) as e:
                raise ErlabError(f"No Ray cluster answers at {address}: {e}") from None
            register_ray()
            connected = ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
            with connected, joblib.parallel_config(backend="ray"):
                yield
        else:
            allowed = "dask:HOST:PORT or ray:HOST:PORT"
            raise ErlabError(f"The 'cluster' parameter of sweep must be {allowed}. Got {cluster!r}.")
    except ImportError:
        package = {"dask": "distributed", "ray": "ray"}[kind]
        raise ErlabError(f"The cluster {cluster!r} needs a package: pip install {package}") from None


def preliminary_systems(limits: Iterable[int] = paper.BATCH_LIMITS) -> dict[str, System]:
    """Return the systems of Fig. 3.

    They have one 70B engine on 4 ("half") or 8 ("all") GPUs, for each precision and batch limit.
    """
    systems = {}
    for share, tensor_parallel in (("half", 4), ("all", 8)):
        for letter in ("A", "B"):  # FP8 and FP16
            original = paper.SYSTEMS["v2"][letter]
            for limit in limits:
                expert = replace(original.expert, tensor_parallel=tensor_parallel, max_batch_size=limit)
                system = replace(original, expert=expert).preliminary(share)
                systems[system.name] = system
    return systems
