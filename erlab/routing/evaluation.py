"""Evaluation of routers against the prompts' known domains.

Only the supervised router is trained on domains. A cluster represents the most frequent domain of its training prompts.
`summary` describes one router; `compare` measures recipes, which combine features and a clusterer. `RECIPES` is their
registry.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score
from threadpoolctl import threadpool_limits

from erlab.errors import ErlabError
from erlab.routing.clusterers import SUPERVISED
from erlab.routing.features import FEATURES
from erlab.routing.router import PromptRouter

POINTS = 400  # prompts in the projection of a summary
RECIPES = {
    "paper": {"features": "words", "clusterer": "kmeans"},
    "words, balanced": {"features": "words", "clusterer": "balanced"},
    "characters, k-means": {"features": "characters", "clusterer": "kmeans"},
    "characters, balanced": {"features": "characters", "clusterer": "balanced"},
    "characters, supervised": {"features": "characters", "clusterer": SUPERVISED},
    "static, k-means": {"features": "static", "clusterer": "kmeans"},
    "static, spherical": {"features": "static", "clusterer": "spherical"},
    "static, gaussian": {"features": "static", "clusterer": "gaussian"},
    "static, Ward": {"features": "static", "clusterer": "ward"},
    "static, balanced": {"features": "static", "clusterer": "balanced"},
    "static, capacity": {"features": "static", "clusterer": "capacity"},
    "static, supervised": {"features": "static", "clusterer": SUPERVISED},
    "MiniLM, k-means": {"features": "minilm", "clusterer": "kmeans"},
    "MiniLM, balanced": {"features": "minilm", "clusterer": "balanced"},
    "MiniLM, supervised": {"features": "minilm", "clusterer": SUPERVISED},
}
SENT = 0.05  # share of unseen prompts above the outlier threshold
_TIMED = 300  # prompts whose decisions are timed one by one


def summary(router: PromptRouter, prompts: Dataset) -> dict:
    """Describe the clusters of a router.

    Args:
        prompts: Columns domain, text and split ("train" or "held_back").

    Returns:
        Plain JSON types, below 40 KB; None where a split has no prompts:

        - prompts: number of prompts per split; dimensions
        - clusters: one dictionary per cluster with its size (training prompts), share, top_domain, purity, domains
          {name: count} and terms
        - purity, nmi, ari: of the training prompts
        - held_back_accuracy: `macro_accuracy` of the held-back prompts
        - largest_to_mean: `largest_to_mean` per split
        - points: x, y, cluster and domain of at most 400 training prompts, projected by t-SNE, which preserves
          neighbourhoods, not distances

    Raises:
        ErlabError: There are no training prompts.
    """
    split, domains, texts = _columns(prompts)
    train, held_back = split == "train", split == "held_back"
    if not train.any():
        raise ErlabError("The 'prompts' parameter of summary must hold prompts of the split 'train'. Got none.")
    clusters = router.predict(texts[train])
    tops = top_domains(clusters, domains[train], router.clusters)
    unseen = router.predict(texts[held_back])
    return {
        "prompts": {"train": int(train.sum()), "held_back": int(held_back.sum())},
        "dimensions": router.dimensions_,
        "clusters": _clusters(clusters, domains[train], router.terms_),
        "purity": purity(clusters, domains[train]),
        "nmi": float(normalized_mutual_info_score(domains[train], clusters)),
        "ari": float(adjusted_rand_score(domains[train], clusters)),
        "held_back_accuracy": macro_accuracy(unseen, domains[held_back], tops),
        "largest_to_mean": {
            "train": largest_to_mean(clusters, router.clusters),
            "held_back": largest_to_mean(unseen, router.clusters),
        },
        "points": _points(router, texts[train], clusters, domains[train]),
    }


def _columns(prompts: Dataset) -> tuple[np.ndarray, ...]:
    """Return the columns split, domain and text."""
    return tuple(np.asarray(prompts[c][:], dtype=object) for c in ("split", "domain", "text"))


def top_domains(clusters: np.ndarray, domains: np.ndarray, count: int) -> list[str | None]:
    """Return the most frequent domain of each cluster; first by name among equals, None for an empty cluster."""
    return [_top(Counter(domains[clusters == c].tolist())) for c in range(count)]


def _top(counts: Counter) -> str | None:
    return min(counts, key=lambda domain: (-counts[domain], domain), default=None)


def purity(clusters: np.ndarray, domains: np.ndarray) -> float:
    """Return the share of prompts in a cluster of their own domain (Manning et al. 2008, section 16.3)."""
    majorities = sum(max(Counter(domains[clusters == c].tolist()).values()) for c in np.unique(clusters))
    return majorities / len(clusters)


def macro_accuracy(clusters: np.ndarray, domains: np.ndarray, tops: list[str | None]) -> float | None:
    """Return the routing accuracy averaged over domains.

    The accuracy of a domain is the share of its prompts in a cluster whose top domain it is; 0 without such a cluster.

    Returns:
        Macro accuracy, 0 to 1; None without prompts.
    """
    if not len(clusters):
        return None
    correct = np.array([tops[c] == d for c, d in zip(clusters, domains, strict=True)])
    return float(np.mean([correct[domains == d].mean() for d in np.unique(domains)]))


def largest_to_mean(clusters: np.ndarray, count: int) -> float | None:
    """Return the largest of `count` clusters relative to the mean (1: even load), or None without prompts."""
    if not len(clusters):
        return None
    return float(np.bincount(clusters, minlength=count).max() * count / len(clusters))


def _clusters(clusters: np.ndarray, domains: np.ndarray, terms: list[list[str]]) -> list[dict]:
    rows = []
    for c, words in enumerate(terms):
        counts = Counter(domains[clusters == c].tolist())
        size, top = counts.total(), _top(counts)
        rows.append(
            {
                "cluster": c,
                "size": size,
                "share": size / len(clusters),
                "top_domain": top,
                "purity": counts[top] / size if size else None,
                "domains": dict(counts.most_common()),
                "terms": words,
            }
        )
    return rows


def _points(router: PromptRouter, texts: np.ndarray, clusters: np.ndarray, domains: np.ndarray) -> dict:
    """Project a random sample of prompts, drawn with the router's seed, by t-SNE with cosine distances."""
    chosen = np.sort(np.random.default_rng(router.seed).permutation(len(texts))[:POINTS])
    plane = np.zeros((len(chosen), 2))
    if len(chosen) > 2:
        perplexity = min(30, (len(chosen) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="random", metric="cosine", random_state=router.seed)
        with threadpool_limits(1):  # more OpenMP threads spin on busy cores; the projection is the same
            plane = tsne.fit_transform(router.embed(texts[chosen]))
    x, y = plane.astype(float).round(3).T.tolist()
    return {"x": x, "y": y, "cluster": clusters[chosen].tolist(), "domain": domains[chosen].tolist()}


def compare(
    prompts: Dataset,
    *,
    recipes: Mapping[str, Mapping] = RECIPES,
    clusters: int = 12,
    seeds: Sequence[int] = range(5),
    other: Dataset | None = None,
    unknown: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda recipe: None,
) -> pd.DataFrame:
    """Measure recipes on held-back prompts.

    Args:
        prompts: Columns domain, text and split, as for `summary`.
        recipes: Parameters of `PromptRouter` by name of the recipe.
        other: Prompts of the same domains from other sources (columns domain and text).

    Returns:
        One row per recipe, means over the fits; NA in columns whose prompts are not given:

        - purity, nmi, ari: of the training prompts
        - unseen, other: macro routing accuracy of held-back and other prompts
        - exact: unseen with the fitted transformer instead of its compiled encoder (MiniLM without 8-bit weights)
        - load: largest cluster relative to the mean, held-back prompts
        - stability: mean adjusted Rand index between the fits' decisions on held-back prompts
        - outliers: area under the ROC curve of unknown against held-back prompts
        - sent: share of unknown prompts above the threshold that 5 % of the held-back prompts exceed
        - p50_ms, batch_ms: median time of a single decision, and time per prompt in a batch
        - fit_s: time of a fit, without the vectors of the sentence-embedding model
        - size_mb: size of the saved router, without the sentence-embedding model

    Raises:
        ErlabError: No prompts are held back, or `PromptRouter.fit` fails.
    """
    split, domains, texts = _columns(prompts)
    train, held_back = split == "train", split == "held_back"
    require_held_back(split)
    seeds = list(seeds)
    rows = {}
    for name, parameters in recipes.items():
        progress(name)
        fits = []
        for seed in seeds:
            router = PromptRouter(clusters, seed=seed, **parameters)
            if not fits and FEATURES[router.features].needs_model:  # cache the model's vectors
                PromptRouter(clusters, features=router.features, restarts=1).fit(texts[train])
            start = time.perf_counter()
            router.fit(texts[train], domains[train])
            fits.append((router, time.perf_counter() - start))
        rows[name] = _measures(fits, domains[train], texts[held_back], domains[held_back], other, unknown)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("recipe")


def require_held_back(split: Sequence[str]) -> None:
    """Raise ErlabError if no prompt has the split held_back."""
    if "held_back" not in split:
        raise ErlabError(f"None of the {len(split)} prompts is held back for the comparison; more prompts are needed.")


def _measures(fits, train_domains, held_texts, held_domains, other, unknown) -> dict:
    """Return the row of a recipe in `compare`."""
    vectors = _Vectors()
    measures, decisions = [], []
    for router, seconds in fits:
        tops = top_domains(router.labels_, train_domains, router.clusters)
        unseen = router.decide(vectors.of(router, "held", held_texts))
        decisions.append(unseen.cluster)
        measure = {
            "purity": purity(router.labels_, train_domains),
            "nmi": normalized_mutual_info_score(train_domains, router.labels_),
            "ari": adjusted_rand_score(train_domains, router.labels_),
            "unseen": macro_accuracy(unseen.cluster, held_domains, tops),
            "exact": _exact(router, held_texts, held_domains, tops),
            "load": largest_to_mean(unseen.cluster, router.clusters),
            "fit_s": seconds,
        }
        if other is not None:
            clusters = router.decide(vectors.of(router, "other", other["text"][:])).cluster
            measure["other"] = macro_accuracy(clusters, np.asarray(other["domain"][:], dtype=object), tops)
        if unknown is not None:
            inside = router.outlier_score_(vectors.of(router, "held", held_texts))
            outside = router.outlier_score_(vectors.of(router, "unknown", unknown))
            is_unknown = np.repeat([0, 1], [len(inside), len(outside)])
            measure["outliers"] = roc_auc_score(is_unknown, np.concatenate([inside, outside]))
            measure["sent"] = float((outside > np.quantile(inside, 1 - SENT)).mean())
        measures.append(measure)
    pairs = [adjusted_rand_score(a, b) for a, b in combinations(decisions, 2)]
    router = fits[0][0]
    row = {name: float(np.mean([m[name] for m in measures])) for name in measures[0]}
    row |= {"stability": float(np.mean(pairs)) if pairs else None, **latency(router, held_texts)}
    with tempfile.TemporaryDirectory() as folder:
        row["size_mb"] = sum(f.stat().st_size for f in router.save(Path(folder) / "r").iterdir()) / 1e6
    order = "purity nmi ari unseen exact other load stability outliers sent p50_ms batch_ms fit_s size_mb".split()
    return {name: row.get(name) for name in order}


def _exact(router: PromptRouter, texts: np.ndarray, domains: np.ndarray, tops: list[str | None]) -> float:
    """Return the `macro_accuracy` of decisions on the fitted transformer's vectors."""
    return macro_accuracy(router.decide(router.features_.transform(list(texts))).cluster, domains, tops)


class _Vectors:
    """Vectors of prompts, computed once per encoder: fits with one sentence-embedding model share an encoder."""

    def __init__(self):
        self._cache = {}

    def of(self, router: PromptRouter, name: str, texts: Sequence[str]) -> np.ndarray:
        key = id(router.encoder_), name
        if key not in self._cache:
            self._cache[key] = router.embed(texts)
        return self._cache[key]


def confusion(router: PromptRouter, prompts: Dataset) -> pd.DataFrame:
    """Tabulate the domains to which a router sends the held-back prompts.

    Returns:
        One row per domain, one column per top domain of the clusters; shares that sum to 1 in each row.
    """
    rows = prompts.to_pandas()
    train, held_back = (rows[rows["split"] == split] for split in ("train", "held_back"))
    tops = top_domains(router.labels_, train["domain"].to_numpy(), router.clusters)
    sent = [tops[c] for c in router.predict(held_back["text"])]
    sent = pd.Series(sent, index=held_back.index, name="sent to", dtype=object)
    return pd.crosstab(held_back["domain"], sent, normalize="index")


def latency(router: PromptRouter, texts: Sequence[str]) -> dict[str, float]:
    """Time decisions on at most 300 prompts: p50_ms of single prompts, batch_ms per prompt of a batch."""
    sample = list(texts[:: max(1, len(texts) // _TIMED)][:_TIMED])
    for text in sample[:20]:
        router.route([text])
    times = []
    for text in sample:
        start = time.perf_counter_ns()
        router.route([text])
        times.append(time.perf_counter_ns() - start)
    start = time.perf_counter_ns()
    router.route(sample)
    batch = (time.perf_counter_ns() - start) / len(sample)
    return {"p50_ms": float(np.median(times)) / 1e6, "batch_ms": batch / 1e6}
