"""Ways to cluster vectors. Each `fit_*` takes vectors (n, d), the number k, restarts and a seed; it returns labels (n,)
of the training vectors and the head that decides for new ones.

`CLUSTERERS` names them. scikit-learn does the work where it can; balanced and spherical k-means are Lloyd's iteration
here, since k-means-constrained's ortools and this environment's protobuf exclude each other.
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

Fitted = tuple[np.ndarray, Centers]
WARD_LIMIT = 20_000  # prompts; Ward's method needs all their distances at once, 1.6 GB for so many
_STEPS = 100


def fit_kmeans(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Fitted:
    """k-means, the paper's: the best of `restarts` starts by inertia, nearest centre."""
    kmeans = KMeans(k, n_init=restarts, random_state=seed).fit(vectors)
    return kmeans.labels_.astype(int), Centers(kmeans.cluster_centers_)


def fit_balanced(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Fitted:
    """k-means under the capacity ceil(n / k) while training; new prompts go to the nearest centre, as in c-BTM."""
    labels, centers, _ = _best_lloyd(vectors, k, restarts, seed, _balanced_step)
    return labels, Centers(centers)


def fit_capacity(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Fitted:
    """Balanced k-means that decides by the capacity's prices too: unseen prompts spread like the trained."""
    labels, centers, prices = _best_lloyd(vectors, k, restarts, seed, _balanced_step)
    return labels, Centers(centers, prices)


def fit_spherical(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Fitted:
    """k-means by cosine (Dhillon and Modha 2001): centres are scaled to length one after each step."""
    labels, centers, _ = _best_lloyd(vectors, k, restarts, seed, _nearest_step, scale=_unit)
    return labels, Centers(centers)


def fit_ward(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Fitted:
    """Ward's agglomerative clustering; new prompts go to the nearest mean. It draws nothing at random."""
    require(len(vectors) <= WARD_LIMIT, "texts", "the ward clusterer", f"be at most {WARD_LIMIT}", len(vectors))
    labels = AgglomerativeClustering(k).fit_predict(vectors)
    return labels.astype(int), Centers(_means(vectors, labels, np.zeros((k, vectors.shape[1]))))


def fit_gaussian(vectors: np.ndarray, k: int, restarts: int, seed: int) -> Fitted:
    """A mixture of Gaussians with diagonal covariances, started from k-means; the most probable one decides."""
    start = KMeans(k, n_init=restarts, random_state=seed).fit(vectors)
    mixture = GaussianMixture(k, covariance_type="diag", reg_covar=1e-4, means_init=start.cluster_centers_)
    labels = mixture.set_params(random_state=seed).fit_predict(vectors)
    return labels.astype(int), Posterior.of_gaussians(mixture.weights_, mixture.means_, mixture.covariances_)


CLUSTERERS: dict[str, Callable[[np.ndarray, int, int, int], Fitted]] = {
    "kmeans": fit_kmeans,
    "balanced": fit_balanced,
    "capacity": fit_capacity,
    "spherical": fit_spherical,
    "ward": fit_ward,
    "gaussian": fit_gaussian,
}


def fit_supervised(vectors: np.ndarray, labels: np.ndarray) -> Posterior:
    """A domain classifier in place of clusters, as in MoDEM: multinomial logistic regression on labels 0 to k - 1.
    What a router could reach that knew the domains: the upper bound to compare with."""
    model = LogisticRegression(C=10.0, max_iter=2000).fit(vectors, labels)
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    centers = _means(vectors, labels, np.zeros((len(weights), vectors.shape[1])))
    return Posterior.of_logistic(centers, weights, bias)


def _best_lloyd(vectors, k, restarts, seed, step, scale=lambda centers: centers):
    """The best of `restarts` runs by inertia: labels, centres, prices."""
    runs = [_lloyd(vectors, k, restart_seed, step, scale) for restart_seed in _seeds(seed, restarts)]
    return min(runs, key=lambda run: run[0])[1:]


def _seeds(seed: int, count: int) -> list[int]:
    return np.random.SeedSequence(seed).generate_state(count).tolist()


def _lloyd(vectors, k, seed, step, scale):
    """One run from k-means++ centres until no label changes: inertia, labels, centres, prices."""
    centers = scale(kmeans_plusplus(vectors, k, random_state=seed)[0])
    labels, prices = None, np.zeros(k)
    for _ in range(_STEPS):
        last, costs = labels, euclidean_distances(vectors, centers, squared=True)
        labels, prices = step(costs, prices)
        if last is not None and (labels == last).all():
            break
        centers = scale(_means(vectors, labels, centers))
    return costs[np.arange(len(costs)), labels].sum(), labels, centers, prices


def _balanced_step(costs: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return assign(costs, prices)


def _nearest_step(costs: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return costs.argmin(axis=1), prices


def _means(vectors: np.ndarray, labels: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Each cluster's mean; its row of `empty` where it has no vectors."""
    return np.stack([vectors[labels == c].mean(axis=0) if (labels == c).any() else empty[c] for c in range(len(empty))])


def _unit(centers: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(centers, axis=1, keepdims=True)
    return centers / np.where(lengths > 0, lengths, 1)
