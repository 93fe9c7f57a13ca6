"""How likely a prompt needs the strong expert: the trained score behind the `strong_weak` policy.

RouteLLM and Hybrid LLM learn, from prompts where the weak model's answer was worse, the probability that it will be;
a threshold on it trades cost for quality. Here it is a logistic regression on the router's own vectors, so that it
costs a decision one product more.
"""

import numpy as np
from scipy.special import expit

from erlab.spec import require


class Difficulty:
    """P(hard | vector) = 1 / (1 + exp(-(vector @ weights + bias))). Arrays: weights (d,), bias (1,)."""

    def __init__(self, weights: np.ndarray, bias: np.ndarray):
        self.weights, self.bias = weights, bias

    @classmethod
    def fit(cls, vectors: np.ndarray, hard: np.ndarray) -> "Difficulty":
        """From vectors (n, d) and whether each prompt needed the strong expert, (n,) bool."""
        from sklearn.linear_model import LogisticRegression  # takes a second to import, and a gateway does not need it

        model = LogisticRegression(C=10.0, max_iter=2000).fit(vectors, hard)
        return cls(model.coef_[0], model.intercept_)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Scores (n,) from 0 to 1 of vectors (n, d)."""
        return expit(vectors @ self.weights + self.bias)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"weights": self.weights, "bias": self.bias}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray]) -> "Difficulty":
        weights, bias = arrays["weights"], arrays["bias"]
        if weights.ndim != 1 or bias.shape != (1,):
            raise ValueError("the difficulty's arrays do not match")
        return cls(weights, bias)


def threshold(scores: np.ndarray, share: float) -> float:
    """The cost knob: the score from which on `share` of the prompts with these scores go to the strong expert.

    >>> threshold(np.array([0.1, 0.2, 0.3, 0.9]), share=0.25) > 0.3
    True
    """
    require(0 <= share <= 1, "share", "threshold", "lie between 0 and 1", share)
    require(len(scores) > 0, "scores", "threshold", "hold numbers", len(scores))
    if share == 0:
        return float("inf")
    return float(np.quantile(scores, 1 - share, method="higher"))
