"""How good a router's clusters are, measured against the prompts' known domains.

Domains are never shown to a router, the supervised one aside; a cluster plays the domain that most of its training
prompts have. `summary` describes one router, `compare` many recipes in one table.
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
from erlab.routing.router import PromptRouter

POINTS = 400
RECIPES = {
    "paper": {"features": "words", "clusterer": "kmeans"},
    "words, balanced": {"features": "words", "clusterer": "balanced"},
    "characters, k-means": {"features": "characters", "clusterer": "kmeans"},
    "characters, balanced": {"features": "characters", "clusterer": "balanced"},
    "characters, supervised": {"features": "characters", "clusterer": "supervised"},
    "static, k-means": {"features": "static", "clusterer": "kmeans"},
    "static, spherical": {"features": "static", "clusterer": "spherical"},
    "static, gaussian": {"features": "static", "clusterer": "gaussian"},
    "static, Ward": {"features": "static", "clusterer": "ward"},
    "static, balanced": {"features": "static", "clusterer": "balanced"},
    "static, capacity": {"features": "static", "clusterer": "capacity"},
    "static, supervised": {"features": "static", "clusterer": "supervised"},
    "MiniLM, k-means": {"features": "minilm", "clusterer": "kmeans"},
    "MiniLM, balanced": {"features": "minilm", "clusterer": "balanced"},
    "MiniLM, supervised": {"features": "minilm", "clusterer": "supervised"},
}
SENT = 0.05  # share of the domains' own prompts that an outliers' threshold sends away
_TIMED = 300  # prompts decided one by one for the latency


def summary(router: PromptRouter, prompts: Dataset) -> dict:
    """What a router's clusters hold, in plain JSON types (below 40 KB), from `prompts` with the columns domain, text
    and split ("train" or "held_back").

    clusters: per cluster its size among the training prompts, share, top_domain, purity, domains {name: count} and
    terms; purity, nmi, ari of the training prompts; held_back_accuracy: `macro_accuracy` of the others;
    largest_to_mean {split: load ratio}; points: x, y, cluster, domain of at most 400 training prompts in a plane
    that keeps neighbours together (t-SNE; its distances mean nothing else). None where a split has no prompts.
    """
    split, domains, texts = (np.asarray(prompts[c][:], dtype=object) for c in ("split", "domain", "text"))
    train, held = split == "train", split == "held_back"
    if not train.any():
        raise ErlabError("The 'prompts' parameter of summary must hold prompts of the split 'train'. Got none.")
    clusters = router.predict(texts[train])
    tops = top_domains(clusters, domains[train], router.clusters)
    unseen = router.predict(texts[held])
    return {
        "prompts": {"train": int(train.sum()), "held_back": int(held.sum())},
        "dimensions": router.dimensions_,
        "clusters": _clusters(clusters, domains[train], router.terms_),
        "purity": purity(clusters, domains[train]),
        "nmi": float(normalized_mutual_info_score(domains[train], clusters)),
        "ari": float(adjusted_rand_score(domains[train], clusters)),
        "held_back_accuracy": macro_accuracy(unseen, domains[held], tops),
        "largest_to_mean": {
            "train": largest_to_mean(clusters, router.clusters),
            "held_back": largest_to_mean(unseen, router.clusters),
        },
        "points": _points(router, texts[train], clusters, domains[train]),
    }


def top_domains(clusters: np.ndarray, domains: np.ndarray, count: int) -> list[str | None]:
    """Each cluster's most frequent domain, the alphabetically first among equals; None for an empty cluster."""
    return [_top(Counter(domains[clusters == c].tolist())) for c in range(count)]


def _top(counts: Counter) -> str | None:
    return min(counts, key=lambda domain: (-counts[domain], domain), default=None)


def purity(clusters: np.ndarray, domains: np.ndarray) -> float:
    """Share of the prompts that have their cluster's most frequent domain (Manning et al. 2008, section 16.3)."""
    most = sum(max(Counter(domains[clusters == c].tolist()).values()) for c in np.unique(clusters))
    return most / len(clusters)


def macro_accuracy(clusters: np.ndarray, domains: np.ndarray, tops: list[str | None]) -> float | None:
    """Mean over the domains of the share of their prompts that land in a cluster of that domain (`tops`).

    A domain that is the top of no cluster counts with 0. None without prompts."""
    if not len(clusters):
        return None
    right = np.array([tops[c] == d for c, d in zip(clusters, domains, strict=True)])
    return float(np.mean([right[domains == d].mean() for d in np.unique(domains)]))


def largest_to_mean(clusters: np.ndarray, count: int) -> float | None:
    """Prompts of the fullest cluster over the mean of all `count` clusters: 1 is an even load. None without prompts."""
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
    """A sample of the prompts, drawn with the router's seed, in a plane that keeps neighbours (t-SNE, cosine)."""
    chosen = np.sort(np.random.default_rng(router.seed).permutation(len(texts))[:POINTS])
    plane = np.zeros((len(chosen), 2))
    if len(chosen) > 2:
        perplexity = min(30, (len(chosen) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="random", metric="cosine", random_state=router.seed)
        with threadpool_limits(1):  # OpenMP's threads spin where cores are busy: many times slower, same picture
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
    """One row a recipe, means over fits with these seeds; NA where a column's prompts are not given.

    prompts: as for `summary`. other: prompts of the same domains from other sources (columns domain, text).
    unknown: prompts of no domain. Columns: purity, nmi, ari of the training prompts; unseen and other, macro routing
    accuracy; exact, unseen again, by the transformer that was fitted instead of its compiled encoder (MiniLM's is the
    model without 8-bit weights); load, largest cluster to mean on unseen prompts; stability, mean adjusted Rand index
    between the fits' decisions on unseen prompts; outliers, area under the ROC curve of unknown against unseen prompts;
    sent, share of the unknown ones beyond the threshold that sends 5 % of the unseen to a generalist; p50_ms of a
    single decision and batch_ms a prompt decided together; fit_s, a fit once a sentence model's vectors are known;
    size_mb as saved (a MiniLM router's folder leaves the model outside).

    Raises ErlabError where no prompts are held back, and where `PromptRouter.fit` does.
    """
    split, domains, texts = (np.asarray(prompts[c][:], dtype=object) for c in ("split", "domain", "text"))
    train, held = split == "train", split == "held_back"
    require_held_back(split)
    seeds = list(seeds)
    rows = {}
    for name, parameters in recipes.items():
        progress(name)
        fits = []
        for seed in seeds:
            router = PromptRouter(clusters, seed=seed, **parameters)
            if not fits and router.features in ("static", "minilm"):
                PromptRouter(clusters, features=router.features, restarts=1).fit(texts[train])  # the model's vectors
            start = time.perf_counter()
            router.fit(texts[train], domains[train])
            fits.append((router, time.perf_counter() - start))
        rows[name] = _row(fits, domains[train], texts[held], domains[held], other, unknown)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("recipe")


def require_held_back(split: Sequence[str]) -> None:
    """Refuse prompts of these splits where the router would see them all."""
    if "held_back" not in split:
        raise ErlabError(f"None of the {len(split)} prompts is held back to compare on: more are needed.")


def _row(fits, train_domains, held_texts, held_domains, other, unknown) -> dict:
    """One recipe's measures, means over its fits."""
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
            found = router.decide(vectors.of(router, "other", other["text"][:])).cluster
            measure["other"] = macro_accuracy(found, np.asarray(other["domain"][:], dtype=object), tops)
        if unknown is not None:
            inside = router.outlier_score_(vectors.of(router, "held", held_texts))
            outside = router.outlier_score_(vectors.of(router, "unknown", unknown))
            truth = np.repeat([0, 1], [len(inside), len(outside)])
            measure["outliers"] = roc_auc_score(truth, np.concatenate([inside, outside]))
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
    """`macro_accuracy` of what would be decided on the transformer's own vectors."""
    return macro_accuracy(router.decide(router.features_.transform(list(texts))).cluster, domains, tops)


class _Vectors:
    """Prompts' vectors, worked out once an encoder: fits of one sentence model share theirs."""

    def __init__(self):
        self._known = {}

    def of(self, router: PromptRouter, name: str, texts: Sequence[str]) -> np.ndarray:
        key = id(router.encoder_), name
        if key not in self._known:
            self._known[key] = router.embed(texts)
        return self._known[key]


def confusion(router: PromptRouter, prompts: Dataset) -> pd.DataFrame:
    """Where a fitted router sends the unseen prompts: a row a domain, a column a domain that some cluster stands for
    (`top_domains` of the prompts it was fitted on), shares that add up to 1 in each row. prompts: as for `summary`."""
    found = prompts.to_pandas()
    train, held = (found[found["split"] == split] for split in ("train", "held_back"))
    tops = top_domains(router.labels_, train["domain"].to_numpy(), router.clusters)
    sent = pd.Series([tops[c] for c in router.predict(held["text"])], index=held.index, name="sent to", dtype=object)
    return pd.crosstab(held["domain"], sent, normalize="index")


def latency(router: PromptRouter, texts: Sequence[str]) -> dict[str, float]:
    """p50_ms of deciding one prompt, over up to 300 of them after a warm-up, and batch_ms a prompt decided together."""
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
