"""How good a router's clusters are, measured against the prompts' known domains.

Domains are never shown to the router; a cluster plays the domain that most of its training prompts have.
"""

from collections import Counter

import numpy as np
from datasets import Dataset
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from erlab.errors import ErlabError
from erlab.routing.router import PromptRouter

POINTS = 400


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
