"""Heads: the costs of all clusters for a prompt's vector; the lowest cost decides. `HEADS` is the registry.

`Centers` serves clusterers that predict the nearest centre, `Posterior` those that give probabilities. Heads of
routers that are trained on outcomes (`erlab.quality`) have one cluster per expert and predict the experts' scores, see
`ExpertScores`. A head is saved as its `kind` and `arrays` and created from them by `restore`.
"""

from abc import ABC, abstractmethod

import numpy as np
from scipy.special import expit, log_expit, log_softmax


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


class ExpertScores(Centers, ABC):
    """Base of heads with one cluster per expert: cost is the expert's price minus its predicted score.

    The cluster of an expert is the set of prompts that the router sends there.

    Args:
        centers: Mean vector of the training prompts of each expert, (e, d).
        prices: Score that an expert must gain to be chosen over one of price 0, (e,).
    """

    parts: tuple[str, ...] = ()  # further arrays, named as the attributes

    @abstractmethod
    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Return the predicted scores (n, e) of vectors (n, d)."""

    def costs(self, vectors: np.ndarray, distances: np.ndarray) -> np.ndarray:
        return self.prices - self.scores(vectors)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("centers", "prices", *self.parts)}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> "ExpertScores":
        head = cls(**arrays)
        experts, dimensions = head.centers.shape
        if not head.prices.shape == head.scores(np.zeros((1, dimensions)))[0].shape == (experts,):
            raise ValueError("the shapes of the experts' scores, prices and features do not match")
        return head


class LinearScores(ExpertScores):
    """Score is linear in the vector.

    Args:
        centers, prices: As in `ExpertScores`.
        weights: (d, e).
        bias: (e,).
    """

    kind = "linear scores"
    parts = "weights", "bias"

    def __init__(self, centers: np.ndarray, prices: np.ndarray, weights: np.ndarray, bias: np.ndarray):
        super().__init__(centers, prices)
        self.weights, self.bias = np.ascontiguousarray(weights), bias
        if bias.shape != self.weights.shape[1:]:
            raise ValueError("the shapes of weights and bias do not match")

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        return vectors @ self.weights + self.bias


class LogisticScores(LinearScores):
    """Score is a probability whose log-odds are linear in the vector."""

    kind = "logistic scores"

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        return expit(super().scores(vectors))


class LogScores(LinearScores):
    """Score is the logarithm of a logistic probability, so that differences are logarithms of ratios."""

    kind = "log scores"

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        return log_expit(super().scores(vectors))


class CascadeScores(LogisticScores):
    """First expert by price, lowest first, whose score reaches the threshold; else the one of the highest price.

    Args:
        centers, prices, weights, bias: As in `LogisticScores`.
        threshold: (1,).
    """

    kind = "cascade"
    parts = "weights", "bias", "threshold"

    def __init__(self, centers, prices, weights, bias, threshold: np.ndarray):
        super().__init__(centers, prices, weights, bias)
        self.threshold = threshold

    def costs(self, vectors: np.ndarray, distances: np.ndarray) -> np.ndarray:
        turn = self.prices.argsort(kind="stable").argsort().astype(float)
        return np.where(self.scores(vectors) >= self.threshold, turn, 2 * len(turn) - turn)


class NetworkScores(LinearScores):
    """Score is linear in a hidden layer of rectified linear units.

    Args:
        centers, prices: As in `ExpertScores`.
        hidden: (d, h).
        hidden_bias: (h,).
        weights: (h, e).
        bias: (e,).
    """

    kind = "network scores"
    parts = "hidden", "hidden_bias", "weights", "bias"

    def __init__(self, centers, prices, hidden: np.ndarray, hidden_bias: np.ndarray, weights, bias):
        super().__init__(centers, prices, weights, bias)
        self.hidden, self.hidden_bias = np.ascontiguousarray(hidden), hidden_bias

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        return super().scores(np.maximum(vectors @ self.hidden + self.hidden_bias, 0))


class NeighbourScores(ExpertScores):
    """Score is the mean score of the nearest training prompts.

    Args:
        centers, prices: As in `ExpertScores`.
        examples: Vectors of the training prompts, of length one, (m, d).
        table: Their scores, (m, e).
        neighbours: Number of neighbours, 1 to m, (1,).
    """

    kind = "neighbour scores"
    parts = "examples", "table", "neighbours"

    def __init__(self, centers, prices, examples: np.ndarray, table: np.ndarray, neighbours: np.ndarray):
        super().__init__(centers, prices)
        self.examples, self.table, self.neighbours = np.ascontiguousarray(examples), table, neighbours
        if not (neighbours.shape == (1,) and 1 <= neighbours[0] <= len(examples) == len(table)):
            raise ValueError("the number of neighbours must be from 1 to the number of examples")

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        last = int(self.neighbours[0]) - 1
        similar = [np.argpartition(-(self.examples @ vector), last)[: last + 1] for vector in vectors]
        return np.array([self.table[rows].mean(axis=0) for rows in similar]).reshape(len(vectors), -1)


class ClusterScores(ExpertScores):
    """Score is the expert's mean score in the prompt's cluster.

    Args:
        centers, prices: As in `ExpertScores`.
        table: Scores of the experts by cluster, (k, e).
        clusters: Arrays of the head that finds the cluster among k, named ``clusters.*`` in a file.
    """

    kind = "cluster scores"

    def __init__(self, centers, prices, table: np.ndarray, **clusters: np.ndarray):
        super().__init__(centers, prices)
        parts = {name.removeprefix("clusters."): array for name, array in clusters.items()}
        self.table, self.clusters = table, (Posterior if "squares" in parts else Centers).restore(parts)
        if len(table) != len(self.clusters.centers):
            raise ValueError("the scores do not match the clusters")

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        return self.table[self.clusters.costs(vectors, self.clusters.distances(vectors)).argmin(axis=1)]

    def arrays(self) -> dict[str, np.ndarray]:
        clusters = {f"clusters.{name}": array for name, array in self.clusters.arrays().items()}
        return {**super().arrays(), "table": self.table, **clusters}


HEADS = {
    head.kind: head
    for head in (
        Centers,
        Posterior,
        LinearScores,
        LogisticScores,
        LogScores,
        CascadeScores,
        NetworkScores,
        NeighbourScores,
        ClusterScores,
    )
}
