"""Experts on one local GPU under rising loads, compared with their simulation (`erlab gpu`).

    comparison = measure(profiles.profile("gpu"), Folders.of("gpu"))
    comparison.save(paths.DATA / "measured")

Users, gateway and engine are the study's own. There are three cases: one 8B expert that has the GPU to itself, several
that share it, and a 70B expert in FP8 with the KV cache that an H100 leaves it. An expert alone on the GPU stands for
the paper's eight. Experts that share the GPU are not simulated. The simulation is of vLLM, whichever engine was
measured.
"""

from collections.abc import Iterable
from dataclasses import replace

from erlab import paper
from erlab.errors import ErlabError
from erlab.experiments import cells, gpu_comparison
from erlab.experiments.gpu_comparison import Comparison
from erlab.paths import Folders
from erlab.progress import report
from erlab.prompts import workload
from erlab.routing import training
from erlab.serving import deployment, external, scaling
from erlab.serving.engines.kinds import kind
from erlab.spec import Profile, System, require

CASES = {"8B": ("E", True), "8B-shared": ("E", False), "70B-FP8": ("D", True)}  # row of Table I, whether alone


def systems(profile: Profile, cases: Iterable[str] | None = None) -> dict[str, System]:
    """Return the systems of the cases as they run here.

    Args:
        cases: Names in `CASES`; None takes those that fit the GPU, the smallest first.
    """
    fitting = {}
    for case in cases or [case for case, (row, _) in CASES.items() if row in profile.systems]:
        _require_known(case)
        try:
            fitting[case] = _system(case, profile)
        except ErlabError as e:
            if cases or not fitting:
                raise
            report(0, 1, f"case {case} is left out: {e}")
    return fitting


def _require_known(case: str) -> None:
    require(case in CASES, "case", "gpu", f"be one of {', '.join(CASES)}", case)


def _system(case: str, profile: Profile) -> System:
    row, alone = CASES[case]
    system = scaling.scale(paper.SYSTEMS["v2"][row], profile, 1)
    if alone and system.count > 1:
        pool = paper.kv_pool_tokens(system.expert)  # as on an H100 of its own
        system = replace(system, count=1, expert=replace(system.expert, kv_tokens=pool))
    return replace(system, name=case)


def measure(
    profile: Profile,
    folders: Folders,
    cases: Iterable[str] | None = None,
    loads: Iterable[int] | None = None,
    seed: int = 0,
    upstream: str | None = None,
) -> Comparison:
    """Measure the cases and compare them with their simulation.

    Missing prompts, routers and engines are made first; finished loads are not measured again.

    Args:
        upstream: http://HOST:PORT of a running server that stands for the expert of one case; None starts engines.

    Raises:
        ErlabError: A parameter is not allowed, or nothing here can serve the experts.
    """
    require(profile.gpus == 1, "profile", "gpu", "be one of a single GPU", profile.name)
    cases = list(cases or ())
    alone = [case for case, (_, is_alone) in CASES.items() if is_alone]
    allowed = f"be the one that the server at {upstream} stands for, {' or '.join(alone)}"
    require(not upstream or len(cases) == 1 and cases[0] in alone, "case", "gpu", allowed, ", ".join(cases))
    for case in cases:
        _require_known(case)
    if upstream:
        external.model(upstream)  # refuses a server that doesn't answer before anything is made
    elif reason := kind(profile).available():
        raise ErlabError(f"Nothing here can serve experts on a GPU: {reason}.")
    if not folders.prompts.is_file():
        training.prepare_prompts(profile, folders, seed=seed)
    if not (folders.router / "router.json").is_file():
        training.train_router(profile, folders, workload.stored(folders), seed=seed)
    chosen = systems(profile, cases)
    if not upstream:
        deployment.build_engines(profile, folders, seed, wanted=[system.expert for system in chosen.values()])
    records = cells.measure("gpu", chosen, profile, folders, loads, seed, triton=upstream)
    return gpu_comparison.compare(records, chosen, seed, external=bool(upstream))
