"""Routing recipes compared on a study's prompts, for notebook 02: which recipes, which prompts, which targets.

    from erlab import comparison, deployment, experiments, profiles
    to, folders = profiles.profile("laptop"), paths.Folders.of("laptop")
    table = comparison.compare(to, folders, workload.stored(folders))
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

QUICK_PROMPTS, QUICK_SEEDS, SEEDS = 100, 2, 5  # prompts a domain, of which four fifths train; fits a recipe
UNKNOWN = "unknown"  # the domain of prompts that have none: outliers, which no recipe is trained on
CORE = tuple("banking_support cooking finance law math medicine music python_code security spanish sql travel".split())
_FAMILIES = {"words": "TF-IDF", "characters": "TF-IDF", "static": "static embedding", "minilm": "sentence embedding"}
_BALANCED = ("balanced", "capacity")
_TARGETS = {  # measure: its column, the sign of better, and the target of TF-IDF, static and sentence embeddings
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
    """The prompts that recipes are compared on, at most `per_domain` of each domain, and the texts of no domain.

    Domains of which no prompt is for training are left out, and where all twelve `CORE` domains are there, for which
    the targets are stated, so are the others.
    """
    rows = prompts.to_pandas()
    domains = set(rows["domain"][rows["split"] == "train"])
    unknown = rows["domain"] == UNKNOWN if domains != {UNKNOWN} else pd.Series(False, index=rows.index)
    chosen = rows[rows["domain"].isin(CORE if domains >= set(CORE) else domains) & ~unknown]
    if per_domain is not None:
        chosen = chosen.groupby("domain").head(per_domain)
    return Dataset.from_pandas(chosen, preserve_index=False), rows["text"][unknown].tolist()


def compare(
    to: Profile,
    folders: Folders,
    prompts: Dataset,
    recipes: str | Sequence[str] | None = None,
    seeds: int | None = None,
    clusters: int | None = None,
    other: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """`evaluation.compare` with as many clusters as domains, or `clusters` of one domain; also kept as CSV.

    recipes: None for the profile's few on a part of the prompts, "all", or names of `evaluation.RECIPES`; both of these
    use all prompts. seeds: fits a recipe (2 for a few recipes, 5 for all). other: prompts of the same domains from
    other sources (see `datasets.load`).
    """
    names, seeds = chosen(to, recipes, seeds)
    quick = recipes is None
    known, unknown = compared(prompts, QUICK_PROMPTS if quick else None)
    domains = known.unique("domain")
    if len(domains) == 1:  # nothing to tell apart: only load and speed say something
        names = [name for name in names if RECIPES[name]["clusterer"] != "supervised"]
    done = count()
    table = evaluation.compare(
        known,
        recipes={name: RECIPES[name] for name in names},
        clusters=len(domains) if len(domains) > 1 else clusters or to.clusters,
        seeds=range(seed, seed + seeds),
        other=_of_domains(other, domains, to, seed) if other else None,
        unknown=unknown or None,
        progress=lambda name: report(next(done), len(names), f"recipe {name}"),
    )
    report(len(names), len(names), "recipes")
    textfiles.save(folders.routing / "comparison.csv", table.to_csv())
    return table


def chosen(to: Profile, recipes: str | Sequence[str] | None, seeds: int | None) -> tuple[list[str], int]:
    """The recipes' names and the fits of each that `compare` takes; ErlabError for what it refuses."""
    fits = seeds is None or (isinstance(seeds, int) and seeds >= 1)
    require(fits, "seeds", "notebook 02", "be a whole number from 1", seeds)
    return _names(to, recipes), seeds or (QUICK_SEEDS if recipes is None else SEEDS)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The comparison to be read: what its prompts tell, under names that say what it is, best accuracy first."""
    known = table.dropna(axis=1, how="all").astype(float).sort_values("unseen", ascending=False, kind="stable")
    return known[[column for column in _SHOWN if column in known]].round(3).rename(columns=_SHOWN)


def targets(table: pd.DataFrame, prompts: Dataset) -> pd.DataFrame:
    """A row a target: what the most accurate recipe of balanced training in each family of features reached.

    The targets are stated for the `CORE` domains with 400 training prompts of each and five seeds; without these
    domains the table says so instead.
    """
    if not set(CORE) <= set(prompts.unique("domain")):
        return pd.DataFrame([{"left out": f"The targets are stated for prompts of {', '.join(CORE)}."}])
    table = table.assign(cost=table["exact"] - table["unseen"])
    rows = []
    for i, family in enumerate(dict.fromkeys(_FAMILIES.values())):
        mine = [n for n in table.index if _FAMILIES[RECIPES[n]["features"]] == family]
        mine = table.loc[[n for n in mine if RECIPES[n]["clusterer"] in _BALANCED]]
        if mine.empty:
            continue
        best = mine["unseen"].idxmax()
        for measure, (column, sign, wanted) in _TARGETS.items():
            reached, target = mine[column][best], wanted[i]
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
    """`evaluation.confusion` of the table's first recipe and of its most accurate one that is not told the domains, on
    the prompts that `compare` took for these `recipes`."""
    untold = [name for name in table.index if RECIPES[name]["clusterer"] != "supervised"]
    best = table.loc[untold, "unseen"].idxmax()
    known, _ = compared(prompts, QUICK_PROMPTS if recipes is None else None)
    rows = known.to_pandas()
    train = rows["text"][rows["split"] == "train"]
    found = {}
    for name in dict.fromkeys([untold[0], best]):
        router = PromptRouter(max(2, len(known.unique("domain"))), seed=seed, **RECIPES[name]).fit(train)
        found[name] = evaluation.confusion(router, known)
    return found


def _names(to: Profile, recipes: str | Sequence[str] | None) -> list[str]:
    if recipes is None:
        return list(to.compared_recipes)
    if recipes == "all":
        return list(RECIPES)
    names = [recipes] if isinstance(recipes, str) else recipes
    known = isinstance(names, list | tuple) and bool(names) and all(name in tuple(RECIPES) for name in names)
    require(known, "recipes", "notebook 02", f"be None, all or a list out of {'; '.join(RECIPES)}", recipes)
    return list(names)


def _of_domains(source: str | Path, domains: Iterable[str], to: Profile, seed: int) -> Dataset:
    found = datasets.load(source, seed=seed, per_domain=to.prompts_per_domain)
    rows = found.to_pandas()
    mine = rows[rows["domain"].isin(list(domains))]
    if mine.empty:
        raise ErlabError(f"{source}: holds no prompts of the domains {', '.join(sorted(domains))}.")
    return Dataset.from_pandas(mine, preserve_index=False)
