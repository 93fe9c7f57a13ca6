"""Prompts and router of a study: chosen, trained, and kept in its folder for the steps after."""

import json
from pathlib import Path

from datasets import Dataset

from erlab import datasets, output
from erlab.deployment import Folders
from erlab.records import save_table
from erlab.routing import PromptRouter, evaluation
from erlab.spec import Profile


def prepare_prompts(to: Profile, folders: Folders, source: str | Path | None = None, seed: int = 0) -> Dataset:
    """Load the study's prompts (see `datasets.load`), keep them as parquet for the steps after, and return them."""
    prompts = datasets.load(source, seed=seed, per_domain=to.prompts_per_domain)
    save_table(prompts.data.table.combine_chunks(), folders.prompts)
    return prompts


def train_router(
    to: Profile, folders: Folders, prompts: Dataset, clusters: int | None = None, seed: int = 0
) -> tuple[PromptRouter, dict]:
    """Fit the paper's recipe on the training prompts; save the router and its summary; return both."""
    train = prompts.filter(lambda split: split == "train", input_columns="split")
    router = PromptRouter(clusters=to.clusters if clusters is None else clusters, seed=seed).fit(train["text"])
    router.save(folders.router)
    summary = evaluation.summary(router, prompts)
    output.save(folders.router_summary, json.dumps(summary))
    return router, summary
