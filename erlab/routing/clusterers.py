"""Clusterers of vectors. `CLUSTERERS` is the registry.

A clusterer is a function of vectors (n, d), the number of clusters k, the number of restarts and a seed. It returns the
labels (n,) of the training vectors and the head (`erlab.routing.heads`) that assigns new ones. scikit-learn does the
work where it can. Balanced and spherical k-means are implemented here with Lloyd's algorithm: the package
k-means-constrained requires an ortools that conflicts with this environment's protobuf.
"""

from collections.abc import Callable

import numpy as np
from sklearn.cluster import AgglomerativeClustering, KMeans, kmeans_plusplus
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import euclidean_distances
from sklearn.mixture import GaussianMixture

from erlab.routing.balanced import assign
from erlab.routing.heads import Centers, Posterior
from erlab.spec import require

Clustering = tuple[np.ndarray, Centers]
SUPERVISED = "supervised"  # not in CLUSTERERS: it needs the prompts' domains
WARD_LIMIT = 20_000  # prompts; Ward's method needs all pairwise distances at once, 1.6 GB for this number
_STEPS = 100


def fit_kmeans(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Clustering:
    """k-means, the paper's clusterer: lowest inertia of all restarts, nearest centre."""
    kmeans = KMeans(k, n_init=restarts, random_state=seed).fit(vectors)
    return kmeans.labels_.astype(int), Centers(kmeans.cluster_centers_)


def fit_balanced(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Clustering:
    """k-means with at most ceil(n / k) training prompts per cluster; nearest centre for new prompts (c-BTM)."""
    labels, centers, _ = _best_lloyd(vectors, k, restarts, seed, _balanced_step)
    return labels, Centers(centers)


def fit_capacity(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Clustering:
    """Balanced k-means whose prices also apply to new prompts, so that they spread like the training prompts."""
    labels, centers, prices = _best_lloyd(vectors, k, restarts, seed, _balanced_step)
    return labels, Centers(centers, prices)


def fit_spherical(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Clustering:
    """k-means by cosine similarity (Dhillon and Modha 2001): centres have length one."""
    labels, centers, _ = _best_lloyd(vectors, k, restarts, seed, _nearest_step, scale=_unit)
    return labels, Centers(centers)


def fit_ward(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Clustering:
    """Ward's agglomerative clustering, deterministic; nearest mean for new prompts."""
    require(len(vectors) <= WARD_LIMIT, "texts", "the ward clusterer", f"be at most {WARD_LIMIT}", len(vectors))
    labels = AgglomerativeClustering(k).fit_predict(vectors)
    return labels.astype(int), Centers(_means(vectors, labels, np.zeros((k, vectors.shape[1]))))


def fit_gaussian(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Clustering:
    """Mixture of Gaussians with diagonal covariances, initialised by k-means; highest posterior probability."""
    start = KMeans(k, n_init=restarts, random_state=seed).fit(vectors)
    mixture = GaussianMixture(k, covariance_type="diag", reg_covar=1e-4, means_init=start.cluster_centers_)
    labels = mixture.set_params(random_state=seed).fit_predict(vectors)
    return labels.astype(int), Posterior.of_gaussians(mixture.weights_, mixture.means_, mixture.covariances_)


CLUSTERERS: dict[str, Callable[[np.ndarray, int, int, int], Clustering]] = {
    "kmeans": fit_kmeans,
    "balanced": fit_balanced,
    "capacity": fit_capacity,
    "spherical": fit_spherical,
    "ward": fit_ward,
    "gaussian": fit_gaussian,
}


def fit_supervised(vectors: np.ndarray, labels: np.ndarray) -> Posterior:
    """Fit a domain classifier instead of clusters (MoDEM): multinomial logistic regression.

    It is the upper bound for clusterers, which do not know the domains.

    Args:
        vectors: (n, d).
        labels: Domains as integers 0 to k - 1, (n,).
    """
    model = LogisticRegression(C=10.0, max_iter=2000).fit(vectors, labels)
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn returns one row for two classes
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    centers = _means(vectors, labels, np.zeros((len(weights), vectors.shape[1])))
    return Posterior.of_logistic(centers, weights, bias)


def _best_lloyd(vectors, k, restarts, seed, step, scale=lambda centers: centers):
    """Return labels, centres and prices of the restart with the lowest inertia."""
    seeds = np.random.SeedSequence(seed).generate_state(restarts).tolist()
    runs = [_lloyd(vectors, k, restart_seed, step, scale) for restart_seed in seeds]
    return min(runs, key=lambda run: run[0])[1:]


def _lloyd(vectors, k, seed, step, scale):
    """Iterate from k-means++ centres until no label changes; return inertia, labels, centres and prices."""
    centers = scale(kmeans_plusplus(vectors, k, random_state=seed)[0])
    labels, prices = None, np.zeros(k)
    for _ in range(_STEPS):
        previous, costs = labels, euclidean_distances(vectors, centers, squared=True)
        labels, prices = step(costs, prices)
        if previous is not None and (labels == previous).all():
            break
        centers = scale(_means(vectors, labels, centers))
    return costs[np.arange(len(costs)), labels].sum(), labels, centers, prices


def _balanced_step(costs: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return assign(costs, prices)


def _nearest_step(costs: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return costs.argmin(axis=1), prices


def _means(vectors: np.ndarray, labels: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Return the mean of each cluster, or the row of `empty` for a cluster without vectors."""
    return np.stack([vectors[labels == c].mean(axis=0) if (labels == c).any() else empty[c] for c in range(len(empty))])


def _unit(centers: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(centers, axis=1, keepdims=True)
    return centers / np.where(lengths > 0, lengths, 1)
