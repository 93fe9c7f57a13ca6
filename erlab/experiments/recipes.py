"""Comparison of routing recipes on the prompts of a study, for notebook 02.

    profile, folders = profiles.profile("laptop"), paths.Folders.of("laptop")
    table = recipes.compare(profile, folders, workload.stored(folders))
    style.save(routing.frontier(table), folders.routing, "frontier")
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
from erlab.routing.clusterers import SUPERVISED
from erlab.routing.evaluation import RECIPES
from erlab.routing.features import FEATURES
from erlab.spec import Profile, require

QUICK_PROMPTS, QUICK_SEEDS = 100, 2  # prompts per domain and fits per recipe for the recipes of the profile
SEEDS = 5  # fits per recipe otherwise
UNKNOWN = "unknown"  # domain of prompts that belong to none; recipes are not trained on them
CORE = tuple("banking_support cooking finance law math medicine music python_code security spanish sql travel".split())
_FAMILIES = ("TF-IDF", "static embedding", "sentence embedding")  # of features with targets
_BALANCED = ("balanced", "capacity")
_TARGETS = {  # measure: column, sign of an improvement, target of each family
    "macro routing accuracy, unseen prompts": ("unseen", 1, (0.85, 0.93, 0.96)),
    "one decision, p50 (ms)": ("p50_ms", -1, (0.3, 0.1, 8.0)),
    "largest / mean load, unseen prompts": ("load", -1, (1.3, 1.3, 1.3)),
    "outlier AUROC": ("outliers", 1, (0.9, 0.9, 0.9)),
    "stability between seeds": ("stability", 1, (0.9, 0.9, 0.9)),
    "accuracy that 8-bit weights cost": ("cost", -1, (None, None, 0.005)),
}
_LABELS = {  # column of a comparison: label
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


def select_prompts(prompts: Dataset, per_domain: int | None = None) -> tuple[Dataset, list[str]]:
    """Select the prompts on which recipes are compared.

    Domains without training prompts are left out. If all `CORE` domains are present, for which the targets are stated,
    all other domains are left out as well.

    Returns:
        The prompts of known domains, and the texts of unknown domain.
    """
    rows = prompts.to_pandas()
    domains = set(rows["domain"][rows["split"] == "train"])
    unknown = rows["domain"] == UNKNOWN if domains != {UNKNOWN} else pd.Series(False, index=rows.index)
    known = rows[rows["domain"].isin(CORE if domains >= set(CORE) else domains) & ~unknown]
    if per_domain is not None:
        known = known.groupby("domain").head(per_domain)
    return Dataset.from_pandas(known, preserve_index=False), rows["text"][unknown].tolist()


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
    """Measure recipes with `evaluation.compare` and save the table as CSV.

    Args:
        prompts: Columns domain, text and split; as many clusters as domains are trained.
        recipes: "all" or names in `evaluation.RECIPES`, compared on all prompts; None for the recipes of the profile,
            compared on at most 100 prompts per domain.
        seeds: Fits per recipe, at least 1 (default 2 if `recipes` is None, else 5).

    Raises:
        ErlabError: A parameter is not allowed, or no prompts are held back.
    """
    names, seeds = chosen(profile, recipes, seeds)
    known, unknown = select_prompts(prompts, QUICK_PROMPTS if recipes is None else None)
    domains = known.unique("domain")
    if len(domains) == 1:  # a supervised router needs at least two domains
        names = [name for name in names if RECIPES[name]["clusterer"] != SUPERVISED]
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
    """Check the parameters of `compare`; return the names of the recipes and the number of fits per recipe."""
    valid = seeds is None or (isinstance(seeds, int) and seeds >= 1)
    require(valid, "seeds", "notebook 02", "be a whole number from 1", seeds)
    return _names(profile, recipes), seeds or (QUICK_SEEDS if recipes is None else SEEDS)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Format a comparison for display: best accuracy first, readable names, no empty columns."""
    known = table.dropna(axis=1, how="all").astype(float).sort_values("unseen", ascending=False, kind="stable")
    return known[[column for column in _LABELS if column in known]].round(3).rename(columns=_LABELS)


def targets(table: pd.DataFrame, prompts: Dataset) -> pd.DataFrame:
    """Compare the most accurate balanced recipe of each family of features with the targets.

    The targets are stated for the `CORE` domains with 400 training prompts per domain and five seeds.

    Returns:
        One row per family and target, or a remark if the prompts lack one of the `CORE` domains.
    """
    if not set(CORE) <= set(prompts.unique("domain")):
        return pd.DataFrame([{"left out": f"The targets are stated for prompts of {', '.join(CORE)}."}])
    table = table.assign(cost=table["exact"] - table["unseen"])
    rows = []
    for i, family in enumerate(_FAMILIES):
        names = [n for n in table.index if FEATURES[RECIPES[n]["features"]].family == family]
        balanced = table.loc[[n for n in names if RECIPES[n]["clusterer"] in _BALANCED]]
        if balanced.empty:
            continue
        best = balanced["unseen"].idxmax()
        for measure, (column, sign, family_targets) in _TARGETS.items():
            reached, target = balanced[column][best], family_targets[i]
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
    """Compute `evaluation.confusion` of the first and of the most accurate unsupervised recipe."""
    unsupervised = [name for name in table.index if RECIPES[name]["clusterer"] != SUPERVISED]
    best = table.loc[unsupervised, "unseen"].idxmax()
    known, _ = select_prompts(prompts, QUICK_PROMPTS if recipes is None else None)
    rows = known.to_pandas()
    train = rows["text"][rows["split"] == "train"]
    tables = {}
    for name in dict.fromkeys([unsupervised[0], best]):
        router = PromptRouter(max(2, len(known.unique("domain"))), seed=seed, **RECIPES[name]).fit(train)
        tables[name] = evaluation.confusion(router, known)
    return tables


def _names(profile: Profile, recipes: str | Sequence[str] | None) -> list[str]:
    if recipes is None:
        return list(profile.compared_recipes)
    if recipes == "all":
        return list(RECIPES)
    names = [recipes] if isinstance(recipes, str) else recipes
    valid = isinstance(names, list | tuple) and bool(names) and all(name in tuple(RECIPES) for name in names)
    require(valid, "recipes", "notebook 02", f"be None, all or a list out of {'; '.join(RECIPES)}", recipes)
    return list(names)


def _of_domains(source: str | Path, domains: Iterable[str], profile: Profile, seed: int) -> Dataset:
    rows = datasets.load(source, seed=seed, per_domain=profile.prompts_per_domain).to_pandas()
    rows = rows[rows["domain"].isin(list(domains))]
    if rows.empty:
        raise ErlabError(f"{source}: holds no prompts of the domains {', '.join(sorted(domains))}.")
    return Dataset.from_pandas(rows, preserve_index=False)
