"""Which prompts fit no cluster: the relative Mahalanobis distance (Ren et al. 2021), compiled to two products.

A prompt's squared Mahalanobis distance to the nearest cluster, with the covariance within clusters, less its distance
to all training prompts, with theirs. The second term takes out what is unusual of a prompt whatever the cluster, its
length for one, which is what makes plain distances fail on TF-IDF.
"""

import numpy as np

_SHRINKAGE = 0.01  # of the mean variance, added to each direction: covariances of few prompts are singular


class OutlierScore:
    """Higher scores fit worse. Arrays: centers (k, d), mean (d,), whitening matrices `within` and `around` (d, d)."""

    def __init__(self, centers: np.ndarray, mean: np.ndarray, within: np.ndarray, around: np.ndarray):
        self.centers, self.mean, self.within, self.around = centers, mean, within, around
        white = centers @ within
        self._squares, self._twice = (white**2).sum(axis=1), 2 * white.T

    @classmethod
    def fit(cls, vectors: np.ndarray, labels: np.ndarray, clusters: int) -> "OutlierScore":
        """From the training vectors (n, d) and their clusters (n,)."""
        mean = vectors.mean(axis=0)
        members = [vectors[labels == c] for c in range(clusters)]
        centers = np.stack([m.mean(axis=0) if len(m) else mean for m in members])
        return cls(centers, mean, _whitening(vectors - centers[labels]), _whitening(vectors - mean))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Scores (n,) of vectors (n, d)."""
        white = vectors @ self.within
        squared = (white**2).sum(axis=1)[:, None] + self._squares - white @ self._twice
        return squared.min(axis=1) - (((vectors - self.mean) @ self.around) ** 2).sum(axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"centers": self.centers, "mean": self.mean, "within": self.within, "around": self.around}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> "OutlierScore":
        centers, mean, within, around = (arrays[name] for name in ("centers", "mean", "within", "around"))
        if centers.ndim != 2 or mean.shape != centers.shape[1:] or {within.shape, around.shape} != {mean.shape * 2}:
            raise ValueError("the outliers' arrays do not match")
        return cls(centers, mean, within, around)


def _whitening(residuals: np.ndarray) -> np.ndarray:
    """The matrix W for which |x W|² is x's squared Mahalanobis length under the residuals' covariance."""
    covariance = residuals.T @ residuals / len(residuals)
    shrunk = covariance + np.eye(len(covariance)) * max(_SHRINKAGE * covariance.trace() / len(covariance), 1e-9)
    return np.linalg.cholesky(np.linalg.inv(shrunk))
