"""Comparison of experts measured on one GPU with their simulation."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from erlab import machine, provenance, textfiles
from erlab.results import metrics
from erlab.results.records import Records
from erlab.simulation import components, measured
from erlab.simulation.hardware import GPUS
from erlab.spec import System


@dataclass(frozen=True)
class Comparison:
    """Measured experts beside their simulation.

    Attributes:
        summary: One row per case and load, see `tabulate`.
        about: Provenance. ``doubt`` says what is physically impossible in the summary, None if nothing is.
    """

    summary: pd.DataFrame
    about: dict

    def save(self, folder: Path) -> list[Path]:
        """Write the summary as CSV and its provenance as JSON, named after the machine; return the files."""
        name = re.sub(r"[^a-z0-9]+", "-", self.about["machine"].lower()).strip("-")
        return [
            textfiles.save(Path(folder) / f"{name}.csv", self.summary.to_csv(index=False, float_format="%.6g")),
            textfiles.save(Path(folder) / f"{name}.json", json.dumps(self.about, indent=1) + "\n"),
        ]


def compare(records: Records, systems: dict[str, System], seed: int, external: bool) -> Comparison:
    """Compare measured cases with their simulation.

    Args:
        external: Whether an external server was measured, of which no KV cache size is known.
    """
    runs = records.runs
    summary, predicted = tabulate(records, systems)
    about = {
        "machine": runs.machine.iloc[0],
        "engines": sorted(set(runs.engine.dropna())),
        "cpu": machine.hardware()["cpu"],
        "commit": provenance.commit(),
        "packages": {name: provenance.version(name) for name in ("erlab", "torch", "vllm", "tensorrt_llm")},
        "seed": seed,
        "measured": sorted(set(runs.started))[-1],
        "served": dict(zip(runs.system, runs.title)),
        "simulated": {name: system.title for name, system in systems.items()},
        "predicted by": predicted,
        "KV tokens": {name: None if external else system.expert.kv_tokens for name, system in systems.items()},
        "doubt": doubt(summary),
    }
    return Comparison(summary, about)


def tabulate(records: Records, systems: dict[str, System]) -> tuple[pd.DataFrame, str | None]:
    """Tabulate the measured cases beside their simulation.

    Returns:
        One row per case and load, with predictions and the share of the memory bandwidth (`measured.compare`) if the
        machine has one known GPU; and the name of the simulation, None if nothing was simulated.
    """
    title = records.runs.machine.iloc[0]
    known = next((name for name in GPUS if re.search(rf"\b{name}\b(?!.*(PCIe|NVL))", title)), None)  # only SXM
    setup = measured.vllm(known) if known and not components.unavailable() else None
    parts = []
    for case, system in systems.items():
        rows = records.requests[records.requests.system == case]
        if setup:
            part = measured.compare(rows, system, setup)
        else:
            part = metrics.summarise(rows).rename(
                columns={"output_throughput": "throughput", "tpot_median_ms": "tpot_ms", "ttft_median_s": "ttft_s"}
            )[["users", "requests", "failed", *measured.COMPARED]]
        part.insert(0, "case", case)
        part.insert(1, "served", records.runs.title[records.runs.system == case].iloc[0])
        parts.append(part)
    predicted = setup and f"simulation of {setup.software.backend} {setup.software.version} on one {setup.gpu}"
    return pd.concat(parts, ignore_index=True), predicted


def doubt(summary: pd.DataFrame) -> str | None:
    """Return why a smaller model than the case's must have answered; None if that does not follow.

    It follows if decoding would read more bytes than the memory can deliver.
    """
    if "bandwidth_share" not in summary or not (summary["bandwidth_share"] > 1).fillna(False).any():
        return None
    case, served = summary.loc[summary["bandwidth_share"].fillna(0).idxmax(), ["case", "served"]]
    return f"faster than the memory allows an expert of case {case}: what answered ({served}) is a smaller model"
