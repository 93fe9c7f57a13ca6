"""Prompts and router of a study: chosen, trained, and kept in its folder for the steps after."""

import json
from pathlib import Path

import pandas as pd
from datasets import Dataset

from erlab import textfiles
from erlab.paths import Folders
from erlab.prompts import datasets
from erlab.results.records import save_table
from erlab.routing import PromptRouter, evaluation
from erlab.spec import Profile


def prepare_prompts(
    to: Profile, folders: Folders, source: str | Path | None = None, seed: int = 0, text: str | None = None
) -> Dataset:
    """Load the study's prompts (see `datasets.load`), keep them as parquet for the steps after, and return them."""
    prompts = datasets.load(source, seed=seed, per_domain=to.prompts_per_domain, text=text)
    save_table(prompts.data.table.combine_chunks(), folders.prompts)
    return prompts


def train_router(
    to: Profile, folders: Folders, prompts: Dataset, clusters: int | None = None, seed: int = 0
) -> tuple[PromptRouter, dict]:
    """Fit the paper's recipe on the training prompts and the outliers' threshold on the others; save the router and its
    summary; return both."""
    rows = prompts.to_pandas()
    train, held = (rows["text"][rows["split"] == split] for split in ("train", "held_back"))
    router = PromptRouter(clusters=to.clusters if clusters is None else clusters, seed=seed).fit(train)
    if len(held):
        router.calibrate(held)
    router.save(folders.router)
    summary = evaluation.summary(router, prompts)
    textfiles.save(folders.router_summary, json.dumps(summary))
    return router, summary


def check(to: Profile, prompts: Dataset, clusters: int | None = None) -> None:
    """Refuse prompts or clusters of which no router can be made, or none be judged."""
    splits = prompts["split"][:]
    PromptRouter(to.clusters if clusters is None else clusters).check(splits.count("train"))
    evaluation.require_held_back(splits)


def clusters_table(summary: dict) -> pd.DataFrame:
    """A row a cluster: how many training prompts, which domain most of them have, and what it is about."""
    table = pd.DataFrame(summary["clusters"]).set_index("cluster")
    table = table.assign(terms=table.terms.map(", ".join), purity=table.purity.round(2), share=table.share.round(3))
    return table[["size", "share", "top_domain", "purity", "terms"]]


def quality_table(summary: dict) -> pd.DataFrame:
    """How well the clusters match the domains that the router never saw (see `routing.evaluation.summary`)."""
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
