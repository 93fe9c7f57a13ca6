"""Compiled decisions: from prompts' vectors to distances and costs of the clusters; the least cost decides.

`Centers` serves every clusterer that predicts by the nearest centre, `Posterior` those that give probabilities.
Like encoders, heads know their arrays and can be made from them again.
"""

import numpy as np
from scipy.special import log_softmax


class Centers:
    """Cost = Euclidean distance to the cluster's centre; with prices, distance squared plus the cluster's price."""

    kind = "centers"

    def __init__(self, centers: np.ndarray, prices: np.ndarray | None = None):
        self.centers = np.ascontiguousarray(centers, dtype=np.float64)
        self.prices = prices
        self._squares = (self.centers**2).sum(axis=1)
        self._twice = np.ascontiguousarray(2 * self.centers.T)

    def distances(self, vectors: np.ndarray) -> np.ndarray:
        """Euclidean distances (n, k) of n vectors to the centres."""
        squared = (vectors**2).sum(axis=1)[:, None] + self._squares - vectors @ self._twice
        return np.sqrt(np.maximum(squared, 0, out=squared), out=squared)

    def costs(self, vectors: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Costs (n, k) of n vectors with these distances."""
        return distances if self.prices is None else distances**2 + self.prices

    def arrays(self) -> dict[str, np.ndarray]:
        prices = {} if self.prices is None else {"prices": self.prices}
        return {"centers": self.centers, **prices}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> "Centers":
        centers, prices = arrays["centers"], arrays.get("prices")
        if centers.ndim != 2 or (prices is not None and prices.shape != centers.shape[:1]):
            raise ValueError("centres and prices do not match")
        return cls(centers, prices)


class Posterior(Centers):
    """Cost = -log P(cluster | vector), where log P is, up to a constant, a quadratic of each coordinate:
    vector² @ squares + vector @ weights + bias. The centres are the clusters' means."""

    kind = "posterior"

    def __init__(self, centers: np.ndarray, squares: np.ndarray, weights: np.ndarray, bias: np.ndarray):
        super().__init__(centers)
        self.squares, self.weights = np.ascontiguousarray(squares), np.ascontiguousarray(weights)  # as when restored
        self.bias = bias

    @classmethod
    def of_logistic(cls, centers: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> "Posterior":
        """weights: (k, d), bias: (k,) of a multinomial logistic regression."""
        return cls(centers, np.zeros_like(weights.T), weights.T, bias)

    @classmethod
    def of_gaussians(cls, shares: np.ndarray, means: np.ndarray, variances: np.ndarray) -> "Posterior":
        """shares: (k,), means and variances: (k, d) of a mixture of Gaussians with diagonal covariances."""
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
            raise ValueError("centres, squares, weights and bias do not match")
        return cls(centers, squares, weights, bias)


HEADS = {head.kind: head for head in (Centers, Posterior)}
