"""Routing recipes compared on a study's prompts, for notebook 02.

    profile, folders = profiles.profile("laptop"), paths.Folders.of("laptop")
    table = recipes.compare(profile, folders, workload.stored(folders))
    figures.style.save(figures.routing.frontier(table), folders.routing, "frontier")
"""

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import pandas as pd
from datasets import Dataset

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.paths import Folders
from erlab.progress import report
from erlab.prompts import datasets
from erlab.routing import PromptRouter, evaluation
from erlab.routing.evaluation import RECIPES
from erlab.spec import Profile, require

QUICK_PROMPTS, QUICK_SEEDS, SEEDS = 100, 2, 5  # prompts per domain, 80 % for training; fits per recipe
UNKNOWN = "unknown"  # domain of outliers, which no recipe is trained on
CORE = tuple("banking_support cooking finance law math medicine music python_code security spanish sql travel".split())
_FAMILIES = {"words": "TF-IDF", "characters": "TF-IDF", "static": "static embedding", "minilm": "sentence embedding"}
_BALANCED = ("balanced", "capacity")
_TARGETS = {  # by measure: column, sign of better values, targets of TF-IDF, static and sentence embeddings
    "macro routing accuracy, unseen prompts": ("unseen", 1, (0.85, 0.93, 0.96)),
    "one decision, p50 (ms)": ("p50_ms", -1, (0.3, 0.1, 8.0)),
    "largest / mean load, unseen prompts": ("load", -1, (1.3, 1.3, 1.3)),
    "outlier AUROC": ("outliers", 1, (0.9, 0.9, 0.9)),
    "stability between seeds": ("stability", 1, (0.9, 0.9, 0.9)),
    "accuracy that 8-bit weights cost": ("cost", -1, (None, None, 0.005)),
}
_SHOWN = {
    "unseen": "accuracy, unseen",
    "other": "accuracy, other sources",
    "purity": "purity, trained",
    "nmi": "NMI",
    "ari": "ARI",
    "load": "largest / mean",
    "stability": "stability",
    "outliers": "outlier AUROC",
    "sent": "outliers sent",
    "p50_ms": "one decision (ms)",
    "batch_ms": "in a batch (ms)",
    "fit_s": "training (s)",
    "size_mb": "saved (MB)",
}


def compared(prompts: Dataset, per_domain: int | None = None) -> tuple[Dataset, list[str]]:
    """Select the prompts that recipes are compared on, and the outliers.

    Domains without training prompts are left out. If all `CORE` domains are present, for which the targets are stated,
    the other domains are left out too.

    Args:
        prompts: Columns as of `prompts.datasets.load`.
        per_domain: Largest number of prompts per domain; None takes all.

    Returns:
        The selected prompts, and the texts of the domain `UNKNOWN`.
    """
    rows = prompts.to_pandas()
    domains = set(rows["domain"][rows["split"] == "train"])
    unknown = rows["domain"] == UNKNOWN if domains != {UNKNOWN} else pd.Series(False, index=rows.index)
    chosen = rows[rows["domain"].isin(CORE if domains >= set(CORE) else domains) & ~unknown]
    if per_domain is not None:
        chosen = chosen.groupby("domain").head(per_domain)
    return Dataset.from_pandas(chosen, preserve_index=False), rows["text"][unknown].tolist()


def compare(
    profile: Profile,
    folders: Folders,
    prompts: Dataset,
    recipes: str | Sequence[str] | None = None,
    seeds: int | None = None,
    clusters: int | None = None,
    other: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare routing recipes (`evaluation.compare`) and write the table as CSV.

    There are as many clusters as domains.

    Args:
        recipes: Names in `evaluation.RECIPES`, or "all"; None takes the profile's on a part of the prompts.
        seeds: Fits per recipe; by default 2 if `recipes` is None, else 5.
        clusters: Clusters if there is only one domain; the profile's by default.
        other: Prompts of the same domains from another source, see `datasets.load`.
        seed: First seed of the fits.

    Returns:
        One row per recipe.
    """
    names, seeds = chosen(profile, recipes, seeds)
    quick = recipes is None
    known, unknown = compared(prompts, QUICK_PROMPTS if quick else None)
    domains = known.unique("domain")
    if len(domains) == 1:  # only load and speed can be compared
        names = [name for name in names if RECIPES[name]["clusterer"] != "supervised"]
    done = count()
    table = evaluation.compare(
        known,
        recipes={name: RECIPES[name] for name in names},
        clusters=len(domains) if len(domains) > 1 else clusters or profile.clusters,
        seeds=range(seed, seed + seeds),
        other=_of_domains(other, domains, profile, seed) if other else None,
        unknown=unknown or None,
        progress=lambda name: report(next(done), len(names), f"recipe {name}"),
    )
    report(len(names), len(names), "recipes")
    textfiles.save(folders.routing / "comparison.csv", table.to_csv())
    return table


def chosen(profile: Profile, recipes: str | Sequence[str] | None, seeds: int | None) -> tuple[list[str], int]:
    """Return the names of the recipes and the fits per recipe; raise ErlabError for values that `compare` refuses."""
    fits = seeds is None or (isinstance(seeds, int) and seeds >= 1)
    require(fits, "seeds", "notebook 02", "be a whole number from 1", seeds)
    return _names(profile, recipes), seeds or (QUICK_SEEDS if recipes is None else SEEDS)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the comparison with readable column names, best accuracy first, without empty columns."""
    known = table.dropna(axis=1, how="all").astype(float).sort_values("unseen", ascending=False, kind="stable")
    return known[[column for column in _SHOWN if column in known]].round(3).rename(columns=_SHOWN)


def targets(table: pd.DataFrame, prompts: Dataset) -> pd.DataFrame:
    """Compare the best recipe with balanced training of each feature family with the targets, one row per target.

    The targets are stated for the `CORE` domains with 400 training prompts each and five seeds. Without these domains,
    the table says so instead.
    """
    if not set(CORE) <= set(prompts.unique("domain")):
        return pd.DataFrame([{"left out": f"The targets are stated for prompts of {', '.join(CORE)}."}])
    table = table.assign(cost=table["exact"] - table["unseen"])
    rows = []
    for i, family in enumerate(dict.fromkeys(_FAMILIES.values())):
        names = [n for n in table.index if _FAMILIES[RECIPES[n]["features"]] == family]
        balanced = table.loc[[n for n in names if RECIPES[n]["clusterer"] in _BALANCED]]
        if balanced.empty:
            continue
        best = balanced["unseen"].idxmax()
        for measure, (column, sign, values) in _TARGETS.items():
            reached, target = balanced[column][best], values[i]
            if target is not None and pd.notna(reached):
                rows.append(
                    {
                        "features": family,
                        "recipe": best,
                        "measure": measure,
                        "to reach": f"{'≥' if sign > 0 else '≤'} {target:g}",
                        "reached": round(float(reached), 4),
                        "met": "yes" if sign * reached >= sign * target else "no",
                    }
                )
    return pd.DataFrame(rows)


def confusions(
    table: pd.DataFrame, prompts: Dataset, recipes: str | Sequence[str] | None = None, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Compute confusion matrices (`evaluation.confusion`) of the first and the most accurate unsupervised recipe.

    Args:
        table: Table of `compare`.
        prompts: Prompts that `compare` got.
        recipes: Recipes that `compare` got.
        seed: Seed of the fits.
    """
    unsupervised = [name for name in table.index if RECIPES[name]["clusterer"] != "supervised"]
    best = table.loc[unsupervised, "unseen"].idxmax()
    known, _ = compared(prompts, QUICK_PROMPTS if recipes is None else None)
    rows = known.to_pandas()
    train = rows["text"][rows["split"] == "train"]
    matrices = {}
    for name in dict.fromkeys([unsupervised[0], best]):
        router = PromptRouter(max(2, len(known.unique("domain"))), seed=seed, **RECIPES[name]).fit(train)
        matrices[name] = evaluation.confusion(router, known)
    return matrices


def _names(profile: Profile, recipes: str | Sequence[str] | None) -> list[str]:
    if recipes is None:
        return list(profile.compared_recipes)
    if recipes == "all":
        return list(RECIPES)
    names = [recipes] if isinstance(recipes, str) else recipes
    known = isinstance(names, list | tuple) and bool(names) and all(name in tuple(RECIPES) for name in names)
    require(known, "recipes", "notebook 02", f"be None, all or a list out of {'; '.join(RECIPES)}", recipes)
    return list(names)


def _of_domains(source: str | Path, domains: Iterable[str], profile: Profile, seed: int) -> Dataset:
    rows = datasets.load(source, seed=seed, per_domain=profile.prompts_per_domain).to_pandas()
    matching = rows[rows["domain"].isin(list(domains))]
    if matching.empty:
        raise ErlabError(f"{source}: holds no prompts of the domains {', '.join(sorted(domains))}.")
    return Dataset.from_pandas(matching, preserve_index=False)
