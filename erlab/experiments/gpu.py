"""The day a GPU is there: experts on it under rising loads, beside the simulation of the same GPU. `erlab gpu` runs it.

    found = measure(profiles.profile("gpu"), Folders.of("gpu"))
    save(found, paths.DATA / "measured")

Users, gateway and engine are the study's own. Three cases: one 8B expert that has the GPU to itself, several that share
it, and a 70B expert in FP8 with the KV cache that an H100 leaves it. One expert stands for the paper's eight wherever it
is alone. What several on one GPU should take is not simulated, and what is simulated is vLLM, whatever was measured.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from erlab import machine, paper, provenance, textfiles
from erlab.errors import ErlabError
from erlab.experiments import cells
from erlab.paths import Folders
from erlab.progress import report
from erlab.prompts import workload
from erlab.results import metrics, records
from erlab.routing import training
from erlab.serving import deployment, external, scaling
from erlab.serving.engines.kinds import kind
from erlab.simulation import components, measured
from erlab.simulation.hardware import GPUS
from erlab.spec import Profile, System, require

CASES = {"8B": ("E", True), "8B-shared": ("E", False), "70B-FP8": ("D", True)}  # row of Table I, whether alone


@dataclass(frozen=True)
class Measured:
    """`summary`: a row a case and load, see `table`. `about`: where it comes from; its ``doubt`` is None where all is
    within what physics allows."""

    summary: pd.DataFrame
    about: dict


def systems(to: Profile, cases: Iterable[str] | None = None) -> dict[str, System]:
    """The cases' systems as they run here; where none are named, all that fit, beginning with the smallest."""
    found = {}
    for case in cases or [case for case, (row, _) in CASES.items() if row in to.systems]:
        _require_known(case)
        try:
            found[case] = _system(case, to)
        except ErlabError as e:
            if cases or not found:
                raise
            report(0, 1, f"case {case} is left out: {e}")
    return found


def _require_known(case: str) -> None:
    require(case in CASES, "case", "gpu", f"be one of {', '.join(CASES)}", case)


def _system(case: str, to: Profile) -> System:
    row, alone = CASES[case]
    system = scaling.scale(paper.SYSTEMS["v2"][row], to, 1)
    if alone and system.count > 1:
        pool = paper.kv_pool_tokens(system.expert)  # what it has on an H100 of its own
        system = replace(system, count=1, expert=replace(system.expert, kv_tokens=pool))
    return replace(system, name=case)


def measure(
    to: Profile,
    folders: Folders,
    cases: Iterable[str] | None = None,
    loads: Iterable[int] | None = None,
    seed: int = 0,
    upstream: str | None = None,
) -> Measured:
    """Measure the cases (all that fit if None) under the loads (the profile's if None), and compare.

    Prompts, router and engines are made where they are missing; finished loads are kept. `upstream`: http://HOST:PORT
    of a server that runs already and plays the expert of one case. Raises ErlabError where nothing can serve.
    """
    require(to.gpus == 1, "profile", "gpu", "be one of a single GPU", to.name)
    cases = list(cases or ())
    alone = [case for case, (_, one) in CASES.items() if one]
    allowed = f"be the one that the server at {upstream} plays, {' or '.join(alone)}"
    require(not upstream or len(cases) == 1 and cases[0] in alone, "case", "gpu", allowed, ", ".join(cases))
    for case in cases:
        _require_known(case)
    if upstream:
        external.model(upstream)  # refuses a server that doesn't answer before anything is made
    elif reason := kind(to).available():
        raise ErlabError(f"Nothing here can serve experts on a GPU: {reason}.")
    if not folders.prompts.is_file():
        training.prepare_prompts(to, folders, seed=seed)
    if not (folders.router / "router.json").is_file():
        training.train_router(to, folders, workload.stored(folders), seed=seed)
    chosen = systems(to, cases)
    if not upstream:
        deployment.build_engines(to, folders, seed, wanted=[system.expert for system in chosen.values()])
    found = cells.measure("gpu", chosen, to, folders, loads, seed, triton=upstream)
    summary, predicted = table(found, chosen)
    versions = {name: provenance.version(name) for name in ("erlab", "torch", "vllm", "tensorrt_llm")}
    about = {
        "machine": found.runs.machine.iloc[0],
        "engines": sorted(set(found.runs.engine.dropna())),
        "cpu": machine.hardware()["cpu"],
        "commit": provenance.commit(),
        "packages": versions,
        "seed": seed,
        "measured": sorted(set(found.runs.started))[-1],
        "served": dict(zip(found.runs.system, found.runs.title)),
        "simulated": {name: system.title for name, system in chosen.items()},
        "predicted by": predicted,
        "KV tokens": {name: None if upstream else system.expert.kv_tokens for name, system in chosen.items()},
        "doubt": _doubt(summary),
    }
    return Measured(summary, about)


def table(found: records.Records, chosen: dict[str, System]) -> tuple[pd.DataFrame, str | None]:
    """A row a case and load: what was measured, and for an expert alone on a GPU that the simulation knows, what that
    says and the share of the memory's bandwidth (`measured.compare`); and what was simulated, None if nothing was."""
    title = found.runs.machine.iloc[0]
    known = next((name for name in GPUS if re.search(rf"\b{name}\b(?!.*(PCIe|NVL))", title)), None)  # SXM alone
    setup = measured.vllm(known) if known and not components.unavailable() else None
    parts = []
    for case, system in chosen.items():
        rows = found.requests[found.requests.system == case]
        if setup:
            part = measured.compare(rows, system, setup)
        else:
            part = metrics.summarise(rows).rename(
                columns={"output_throughput": "throughput", "tpot_median_ms": "tpot_ms", "ttft_median_s": "ttft_s"}
            )[["users", "requests", "failed", *measured.COMPARED]]
        part.insert(0, "case", case)
        part.insert(1, "served", found.runs.title[found.runs.system == case].iloc[0])
        parts.append(part)
    predicted = setup and f"simulation of {setup.software.backend} {setup.software.version} on one {setup.gpu}"
    return pd.concat(parts, ignore_index=True), predicted


def _doubt(summary: pd.DataFrame) -> str | None:
    """What is wrong where decoding reads more than the memory gives: a smaller model than the case's has answered."""
    if "bandwidth_share" not in summary or not (summary["bandwidth_share"] > 1).fillna(False).any():
        return None
    case, served = summary.loc[summary["bandwidth_share"].fillna(0).idxmax(), ["case", "served"]]
    return f"faster than the memory allows an expert of case {case}: what answered ({served}) is a smaller model"


def save(found: Measured, folder: Path) -> list[Path]:
    """Write the summary as CSV and where it comes from as JSON, named after the machine; the files."""
    name = re.sub(r"[^a-z0-9]+", "-", found.about["machine"].lower()).strip("-")
    return [
        textfiles.save(Path(folder) / f"{name}.csv", found.summary.to_csv(index=False, float_format="%.6g")),
        textfiles.save(Path(folder) / f"{name}.json", json.dumps(found.about, indent=1) + "\n"),
    ]
