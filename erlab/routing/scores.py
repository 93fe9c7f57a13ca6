"""Learned scores of a prompt's vector, for policies with a special expert.

`OutlierScore` measures how badly a prompt fits every cluster (policy `outlier`), `Difficulty` the probability that it
needs the strong expert (policy `strong_weak`). Scores run without scikit-learn.
"""

import numpy as np
from scipy.special import expit

_SHRINKAGE = 0.01  # of the mean variance, added to each direction: covariances of few prompts are singular


class OutlierScore:
    """Relative Mahalanobis distance (Ren et al. 2021); a higher score fits worse.

    The score is the squared Mahalanobis distance to the nearest cluster, under the covariance within clusters, minus
    the squared distance to the mean of all training prompts, under their covariance. The second term removes what is
    unusual about a prompt regardless of the cluster, such as its length, for which plain distances fail on TF-IDF.

    Args:
        centers: Means of the clusters, (k, d).
        mean: Mean of all training prompts, (d,).
        within: Whitening matrix of the covariance within clusters, (d, d).
        around: Whitening matrix of the covariance of all prompts, (d, d).
    """

    def __init__(self, centers: np.ndarray, mean: np.ndarray, within: np.ndarray, around: np.ndarray):
        self.centers, self.mean, self.within, self.around = centers, mean, within, around
        white = centers @ within
        self._squares, self._twice = (white**2).sum(axis=1), 2 * white.T

    @classmethod
    def fit(cls, vectors: np.ndarray, labels: np.ndarray, clusters: int) -> "OutlierScore":
        """Fit to training vectors (n, d) and their clusters (n,)."""
        mean = vectors.mean(axis=0)
        members = [vectors[labels == c] for c in range(clusters)]
        centers = np.stack([m.mean(axis=0) if len(m) else mean for m in members])
        return cls(centers, mean, _whitening(vectors - centers[labels]), _whitening(vectors - mean))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return the scores (n,) of vectors (n, d)."""
        white = vectors @ self.within
        squared = (white**2).sum(axis=1)[:, None] + self._squares - white @ self._twice
        return squared.min(axis=1) - (((vectors - self.mean) @ self.around) ** 2).sum(axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"centers": self.centers, "mean": self.mean, "within": self.within, "around": self.around}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> "OutlierScore":
        """Create the score from `arrays`."""
        centers, mean, within, around = (arrays[name] for name in ("centers", "mean", "within", "around"))
        if centers.ndim != 2 or mean.shape != centers.shape[1:] or {within.shape, around.shape} != {mean.shape * 2}:
            raise ValueError("the shapes of the outlier score's arrays do not match")
        return cls(centers, mean, within, around)


class Difficulty:
    """Probability that a prompt needs the strong expert: logistic regression on its vector.

    P(hard | vector) = 1 / (1 + exp(-(vector @ weights + bias))). RouteLLM and Hybrid LLM learn this probability from
    prompts that the weak model answered worse; a threshold on it trades cost for quality.

    Args:
        weights: (d,).
        bias: (1,).
    """

    def __init__(self, weights: np.ndarray, bias: np.ndarray):
        self.weights, self.bias = weights, bias

    @classmethod
    def fit(cls, vectors: np.ndarray, hard: np.ndarray) -> "Difficulty":
        """Fit to vectors (n, d) and whether each prompt needed the strong expert, (n,) bool."""
        from sklearn.linear_model import LogisticRegression  # slow to import, and decisions do not need it

        model = LogisticRegression(C=10.0, max_iter=2000).fit(vectors, hard)
        return cls(model.coef_[0], model.intercept_)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return the probabilities (n,) of vectors (n, d)."""
        return expit(vectors @ self.weights + self.bias)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"weights": self.weights, "bias": self.bias}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> "Difficulty":
        """Create the score from `arrays`."""
        weights, bias = arrays["weights"], arrays["bias"]
        if weights.ndim != 1 or bias.shape != (1,):
            raise ValueError("the shapes of the difficulty's arrays do not match")
        return cls(weights, bias)


def _whitening(residuals: np.ndarray) -> np.ndarray:
    """Return W such that |x W|² is the squared Mahalanobis length of x under the residuals' covariance."""
    covariance = residuals.T @ residuals / len(residuals)
    shrunk = covariance + np.eye(len(covariance)) * max(_SHRINKAGE * covariance.trace() / len(covariance), 1e-9)
    return np.linalg.cholesky(np.linalg.inv(shrunk))
