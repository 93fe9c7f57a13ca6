"""Compiled router: decides by the arrays that a trained `PromptRouter` saved.

It needs no scikit-learn, which takes longer to import than a gateway takes to start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from erlab.errors import ErlabError
from erlab.routing import storage
from erlab.routing.encoders import ENCODERS
from erlab.routing.heads import HEADS
from erlab.routing.scores import Difficulty, OutlierScore


class Row(NamedTuple):
    """Decision for one prompt, the input of policies.

    The fields are those of `Routing`; `order` lists all clusters by cost, lowest first.
    """

    cluster: int
    distance: float
    margin: float
    runner_up: int
    order: tuple[int, ...]
    outlier: bool = False
    difficulty: float | None = None


@dataclass(frozen=True)
class Routing:
    """Decisions for n prompts among k clusters.

    Attributes:
        cluster: Cluster of lowest cost, (n,) int.
        distance: Euclidean distance to the cluster's centre, (n,). Vectors have length one, or zero without known
            features.
        margin: Cost of the runner-up minus cost of the cluster, (n,); infinite if k is 1.
        runner_up: Cluster of second lowest cost, (n,) int; -1 if k is 1.
        costs: Costs of all clusters, (n, k); equal to the distances for nearest-centre clusterers.
        outlier: Whether the outlier score exceeds the threshold or the prompt has no known features, (n,) bool; all
            False before `PromptRouter.calibrate`.
        difficulty: Probability that the prompt needs the strong expert, (n,); None before
            `PromptRouter.fit_difficulty`.
    """

    cluster: np.ndarray
    distance: np.ndarray
    margin: np.ndarray
    runner_up: np.ndarray
    costs: np.ndarray
    outlier: np.ndarray
    difficulty: np.ndarray | None

    def __len__(self) -> int:
        return len(self.cluster)

    def row(self, i: int) -> Row:
        """Return the decision for prompt i in plain Python values."""
        order = tuple(np.argsort(self.costs[i], kind="stable").tolist())
        difficulty = None if self.difficulty is None else float(self.difficulty[i])
        distance, margin = float(self.distance[i]), float(self.margin[i])
        return Row(order[0], distance, margin, int(self.runner_up[i]), order, bool(self.outlier[i]), difficulty)


class CompiledRouter:
    """Router loaded from a folder that `save` wrote.

    It has the learned attributes of `PromptRouter` except `labels_` and `features_`.

    Attributes:
        experts_: Name of the expert of each cluster if the router was trained on the experts' outcomes
            (`erlab.quality`); None if the clusters are not tied to experts.
    """

    experts_: tuple[str, ...] | None = None

    @property
    def centers_(self) -> np.ndarray:
        """Centres of the clusters, (clusters, dimensions_)."""
        return self.head_.centers

    @property
    def dimensions_(self) -> int:
        """Dimensions of the vectors; fewer than requested if the training prompts have fewer features."""
        return self.head_.centers.shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of n prompts, (n, dimensions_), of length one or zero."""
        return self.encoder_.encode(check_texts(texts))

    def route(self, texts: Sequence[str]) -> Routing:
        """Decide for each prompt by its first `text.CONSIDERED` characters.

        A prompt without known features, such as an empty one, is decided as the zero vector.
        """
        return self.decide(self.embed(texts))

    def decide(self, vectors: np.ndarray) -> Routing:
        """Decide for vectors (n, dimensions_) of prompts, as `embed` returns them."""
        distances = self.head_.distances(vectors)
        costs = self.head_.costs(vectors, distances)
        rows = np.arange(len(costs))
        cluster = costs.argmin(axis=1)
        distance = distances[rows, cluster]
        outlier = np.zeros(len(rows), dtype=bool)
        if self.threshold_ is not None:
            unknown = ~vectors.any(axis=1)  # no known features: the outlier score says nothing about the zero vector
            outlier = unknown | (self.outlier_score_(vectors) > self.threshold_)
        difficulty = None if self.difficulty_ is None else self.difficulty_(vectors)
        if costs.shape[1] == 1:
            margin, runner_up = np.full(len(rows), np.inf), np.full(len(rows), -1)
            return Routing(cluster, distance, margin, runner_up, costs, outlier, difficulty)
        others = costs.copy()
        others[rows, cluster] = np.inf
        runner_up = others.argmin(axis=1)
        margin = others[rows, runner_up] - costs[rows, cluster]
        return Routing(cluster, distance, margin, runner_up, costs, outlier, difficulty)

    def outlier_scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the outlier scores of n prompts, (n,); see `scores.OutlierScore`."""
        return self.outlier_score_(self.embed(texts))

    def save(self, folder: str | Path) -> Path:
        """Save the router into a folder: JSON and safetensors with checksums, no pickle."""
        content = {
            "parameters": self._parameters(),
            "terms": self.terms_,
            "encoder": {"kind": self.encoder_.kind, **self.encoder_.settings()},
            "head": {"kind": self.head_.kind},
            "threshold": self.threshold_,
        }
        if self.experts_ is not None:
            content["experts"] = list(self.experts_)
        parts = {"encoder": self.encoder_, "head": self.head_, "outliers": self.outlier_score_}
        if self.difficulty_ is not None:
            parts["difficulty"] = self.difficulty_
        arrays = {f"{part}.{name}": a for part, owner in parts.items() for name, a in owner.arrays().items()}
        return storage.save(folder, content, arrays)

    def _parameters(self) -> Mapping:
        """Return the parameters of training that a saved router states."""
        return {"clusters": len(self.centers_)}

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load a saved router.

        Raises:
            ErlabError: A file is missing, invalid, damaged or of a newer version; the message names the file.
        """
        content, arrays = storage.load(folder)
        router = cls()
        try:
            router._restore(content, arrays)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as e:
            raise ErlabError(f"{Path(folder) / storage.MANIFEST}: not a complete router ({e}).") from None
        return router

    def _restore(self, content: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
        """Set the learned attributes from a saved router."""
        parts = {part: {} for part in ("encoder", "head", "outliers")}
        for name, array in arrays.items():
            part, _, name = name.partition(".")
            parts.setdefault(part, {})[name] = array
        self.encoder_ = ENCODERS[content["encoder"]["kind"]].restore(content["encoder"], parts["encoder"])
        self.head_ = HEADS[content["head"]["kind"]].restore(parts["head"])
        self.outlier_score_ = OutlierScore.restore(parts["outliers"])
        clusters = content["parameters"]["clusters"]
        if type(clusters) is not int or clusters < 1:
            raise ValueError(f"the number of clusters must be an integer from 1. Got {clusters!r:.40}")
        shape = clusters, self.encoder_.dimensions
        if not self.centers_.shape == self.outlier_score_.centers.shape == shape:
            raise ValueError("the shapes of centres and features do not match")
        self.difficulty_ = Difficulty.restore(parts["difficulty"]) if "difficulty" in parts else None
        if self.difficulty_ is not None and self.difficulty_.weights.shape != shape[1:]:
            raise ValueError("the shapes of difficulty and features do not match")
        self.terms_, self.threshold_ = content["terms"], content["threshold"]
        if not (isinstance(self.terms_, list) and len(self.terms_) == clusters):
            raise ValueError("the terms of the clusters are missing")
        if not all(isinstance(terms, list) and all(isinstance(t, str) for t in terms) for terms in self.terms_):
            raise ValueError("the terms of the clusters must be lists of text")
        if (experts := content.get("experts")) is not None:
            named = isinstance(experts, list) and all(isinstance(name, str) and name for name in experts)
            if not (named and len(set(experts)) == len(experts) == clusters):
                raise ValueError("the experts must be different names, one per cluster")
            self.experts_ = tuple(experts)
        if not (self.threshold_ is None or isinstance(self.threshold_, float) and np.isfinite(self.threshold_)):
            raise ValueError("the outlier threshold must be a finite number")


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return prompts as a list; ErlabError unless they are a sequence of text."""
    if isinstance(texts, str):
        raise ErlabError("The 'texts' parameter of PromptRouter must be a list of prompts. Got one text.")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ErlabError(f"The 'texts' parameter of PromptRouter must hold text. Got {text!r:.80} at {i}.")
    return texts
