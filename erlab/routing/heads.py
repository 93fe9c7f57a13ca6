"""Heads: the costs of all clusters for a prompt's vector; the lowest cost decides. `HEADS` is the registry.

`Centers` serves clusterers that predict the nearest centre, `Posterior` those that give probabilities. A head is saved
as its `kind` and `arrays` and created from them by `restore`.
"""

import numpy as np
from scipy.special import log_softmax


class Centers:
    """Cost is the Euclidean distance to the cluster's centre; with prices, squared distance plus price.

    Args:
        centers: (k, d).
        prices: (k,) or None.
    """

    kind = "centers"

    def __init__(self, centers: np.ndarray, prices: np.ndarray | None = None):
        self.centers = np.ascontiguousarray(centers, dtype=np.float64)
        self.prices = prices
        self._squares = (self.centers**2).sum(axis=1)
        self._twice = np.ascontiguousarray(2 * self.centers.T)

    def distances(self, vectors: np.ndarray) -> np.ndarray:
        """Return the Euclidean distances (n, k) of vectors (n, d) to the centres."""
        squared = (vectors**2).sum(axis=1)[:, None] + self._squares - vectors @ self._twice
        return np.sqrt(np.maximum(squared, 0, out=squared), out=squared)

    def costs(self, vectors: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Return the costs (n, k) of vectors (n, d), given their distances."""
        return distances if self.prices is None else distances**2 + self.prices

    def arrays(self) -> dict[str, np.ndarray]:
        prices = {} if self.prices is None else {"prices": self.prices}
        return {"centers": self.centers, **prices}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> "Centers":
        centers, prices = arrays["centers"], arrays.get("prices")
        if centers.ndim != 2 or (prices is not None and prices.shape != centers.shape[:1]):
            raise ValueError("the shapes of centres and prices do not match")
        return cls(centers, prices)


class Posterior(Centers):
    """Cost is -log P(cluster | vector), where log P is quadratic in each coordinate.

    Up to a constant, log P = vector² @ squares + vector @ weights + bias.

    Args:
        centers: Means of the clusters, (k, d).
        squares: (d, k).
        weights: (d, k).
        bias: (k,).
    """

    kind = "posterior"

    def __init__(self, centers: np.ndarray, squares: np.ndarray, weights: np.ndarray, bias: np.ndarray):
        super().__init__(centers)
        self.squares, self.weights = np.ascontiguousarray(squares), np.ascontiguousarray(weights)  # as after loading
        self.bias = bias

    @classmethod
    def of_logistic(cls, centers: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> "Posterior":
        """Create the head from weights (k, d) and bias (k,) of a multinomial logistic regression."""
        return cls(centers, np.zeros_like(weights.T), weights.T, bias)

    @classmethod
    def of_gaussians(cls, shares: np.ndarray, means: np.ndarray, variances: np.ndarray) -> "Posterior":
        """Create the head from shares (k,), means (k, d) and diagonal covariances (k, d) of a Gaussian mixture."""
        bias = np.log(shares) - 0.5 * (means**2 / variances + np.log(variances)).sum(axis=1)
        return cls(means, -0.5 / variances.T, (means / variances).T, bias)

    def costs(self, vectors: np.ndarray, distances: np.ndarray) -> np.ndarray:
        return -log_softmax(vectors**2 @ self.squares + vectors @ self.weights + self.bias, axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"centers": self.centers, "squares": self.squares, "weights": self.weights, "bias": self.bias}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> "Posterior":
        centers, squares, weights, bias = (arrays[name] for name in ("centers", "squares", "weights", "bias"))
        transposed = {squares.shape, weights.shape} == {centers.shape[::-1]}
        if centers.ndim != 2 or not transposed or bias.shape != centers.shape[:1]:
            raise ValueError("the shapes of centres, squares, weights and bias do not match")
        return cls(centers, squares, weights, bias)


HEADS = {head.kind: head for head in (Centers, Posterior)}
