"""Training of a study's router: prepare prompts, fit, calibrate, save."""

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from datasets import Dataset

from erlab import parquet, textfiles
from erlab.paths import Folders
from erlab.prompts import datasets
from erlab.routing import PromptRouter, evaluation
from erlab.spec import Profile


def prepare_prompts(
    profile: Profile,
    folders: Folders,
    source: str | Path | None = None,
    seed: int = 0,
    text: str | None = None,
    skip_missing: bool = False,
) -> Dataset:
    """Load the prompts of a study (see `datasets.load`); save them and their origins for later steps."""
    prompts, origins = datasets.load_with_origins(
        source, seed=seed, per_domain=profile.prompts_per_domain, text=text, skip_missing=skip_missing
    )
    parquet.save(prompts.data.table.combine_chunks(), folders.prompts)
    textfiles.save(folders.origins, json.dumps([asdict(origin) for origin in origins], indent=1))
    return prompts


def origins_table(folders: Folders) -> pd.DataFrame:
    """Tabulate the datasets from which the prompts of a study were taken; one row per dataset."""
    table = pd.DataFrame(json.loads(textfiles.read(folders.origins))).set_index("source")
    return table.drop(columns="sha256").dropna(axis="columns", how="all").fillna("")


def train_router(
    profile: Profile, folders: Folders, prompts: Dataset, clusters: int | None = None, seed: int = 0
) -> tuple[PromptRouter, dict]:
    """Train the paper's router and save it with its summary.

    Args:
        profile: Gives the number of clusters if `clusters` is None.
        prompts: Columns text, domain and split; the router is fitted to the split train, its outlier threshold to
            held_back.

    Returns:
        The router and its summary (`evaluation.summary`).
    """
    rows = prompts.to_pandas()
    train, held_back = (rows["text"][rows["split"] == split] for split in ("train", "held_back"))
    router = PromptRouter(clusters=profile.clusters if clusters is None else clusters, seed=seed).fit(train)
    if len(held_back):
        router.calibrate(held_back)
    router.save(folders.router)
    summary = evaluation.summary(router, prompts)
    textfiles.save(folders.router_summary, json.dumps(summary))
    return router, summary


def check(profile: Profile, prompts: Dataset, clusters: int | None = None) -> None:
    """Raise ErlabError for prompts or clusters with which no router can be trained or evaluated."""
    splits = prompts["split"][:]
    PromptRouter(profile.clusters if clusters is None else clusters).check(splits.count("train"))
    evaluation.require_held_back(splits)


def clusters_table(summary: dict) -> pd.DataFrame:
    """Tabulate the size, most frequent domain and terms of the clusters; one row per cluster."""
    table = pd.DataFrame(summary["clusters"]).set_index("cluster")
    table = table.assign(terms=table.terms.map(", ".join), purity=table.purity.round(2), share=table.share.round(3))
    return table[["size", "share", "top_domain", "purity", "terms"]]


def quality_table(summary: dict) -> pd.DataFrame:
    """Tabulate how well the clusters match the domains (see `evaluation.summary`); one row per measure."""
    values = {
        "training prompts": summary["prompts"]["train"],
        "held-back prompts": summary["prompts"]["held_back"],
        "purity": summary["purity"],
        "normalized mutual information": summary["nmi"],
        "adjusted Rand index": summary["ari"],
        "macro routing accuracy, held-back prompts": summary["held_back_accuracy"],
        "largest cluster / mean, training prompts": summary["largest_to_mean"]["train"],
        "largest cluster / mean, held-back prompts": summary["largest_to_mean"]["held_back"],
    }
    return pd.DataFrame(values.items(), columns=["measure", "value"]).set_index("measure").round(3)
