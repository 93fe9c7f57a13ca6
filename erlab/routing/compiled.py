"""`CompiledRouter`: says for a prompt which cluster it belongs to and how surely, from what a `PromptRouter` learned.

It decides without scikit-learn, which takes longer to import than a gateway to start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from erlab.errors import ErlabError
from erlab.routing import storage
from erlab.routing.difficulty import Difficulty
from erlab.routing.encoders import ENCODERS
from erlab.routing.heads import HEADS
from erlab.routing.outliers import OutlierScore


class Row(NamedTuple):
    """One prompt's decision (see `Routing`); `order` lists all clusters, best first."""

    cluster: int
    distance: float
    margin: float
    runner_up: int
    order: tuple[int, ...]
    outlier: bool = False
    difficulty: float | None = None


@dataclass(frozen=True)
class Routing:
    """Decisions for n prompts among k clusters, as arrays.

    cluster: (n,) int, the one of least cost. distance: (n,) to its centre (Euclidean; vectors have length one, or zero
    where the router knows nothing in the prompt). margin: (n,) how much more the runner-up costs; infinite if k is 1.
    runner_up: (n,) int, -1 if k is 1. costs: (n, k), what is decided by: the distances themselves for nearest-centre
    recipes. outlier: (n,) bool, beyond the calibrated threshold, or a prompt in which the router knows nothing; all
    False before `PromptRouter.calibrate`.
    difficulty: (n,) from 0 to 1, or None before `PromptRouter.fit_difficulty`.
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
        """Prompt i's decision in plain Python values, as policies take it."""
        order = tuple(np.argsort(self.costs[i], kind="stable").tolist())
        difficulty = None if self.difficulty is None else float(self.difficulty[i])
        distance, margin = float(self.distance[i]), float(self.margin[i])
        return Row(order[0], distance, margin, int(self.runner_up[i]), order, bool(self.outlier[i]), difficulty)


class CompiledRouter:
    """What `PromptRouter.save` wrote, ready to decide: `load` makes one. Its attributes are those that a `PromptRouter`
    learns, without `labels_` and `features_`."""

    @property
    def centers_(self) -> np.ndarray:
        """The clusters' centres, (clusters, dimensions_)."""
        return self.head_.centers

    @property
    def dimensions_(self) -> int:
        """Dimensions of the space that the prompts really gave."""
        return self.head_.centers.shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The prompts' vectors, (n, dimensions_), of length one or zero."""
        return self.encoder_.encode(checked(texts))

    def route(self, texts: Sequence[str]) -> Routing:
        """Decide for each prompt, by its first `text.CONSIDERED` characters. Text without known features, such as empty
        text, is decided as the zero vector."""
        return self.decide(self.embed(texts))

    def decide(self, vectors: np.ndarray) -> Routing:
        """The decisions for prompts of which `embed` gave the vectors, (n, dimensions_)."""
        distances = self.head_.distances(vectors)
        costs = self.head_.costs(vectors, distances)
        rows = np.arange(len(costs))
        cluster = costs.argmin(axis=1)
        distance = distances[rows, cluster]
        outlier = np.zeros(len(rows), dtype=bool)
        if self.threshold_ is not None:
            unknown = ~vectors.any(axis=1)  # as close to all clusters as to none, which the score does not tell
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
        """How badly each prompt fits the cluster it fits best, (n,); see `outliers`."""
        return self.outlier_score_(self.embed(texts))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A router as saved, ready to decide; ErlabError naming the file if it is wrong, damaged or newer."""
        content, arrays = storage.load(folder)
        router = cls()
        try:
            router._restore(content, arrays)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as e:
            raise ErlabError(f"{Path(folder) / storage.MANIFEST}: not a complete router ({e}).") from None
        return router

    def _restore(self, content: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
        """Become the router with this saved content."""
        parts = {part: {} for part in ("encoder", "head", "outliers")}
        for name, array in arrays.items():
            part, _, name = name.partition(".")
            parts.setdefault(part, {})[name] = array
        self.encoder_ = ENCODERS[content["encoder"]["kind"]].restore(content["encoder"], parts["encoder"])
        self.head_ = HEADS[content["head"]["kind"]].restore(parts["head"])
        self.outlier_score_ = OutlierScore.restore(parts["outliers"])
        clusters = content["parameters"]["clusters"]
        if type(clusters) is not int or clusters < 1:
            raise ValueError(f"the number of clusters must be a whole number from 1. Got {clusters!r:.40}")
        shape = clusters, self.encoder_.dimensions
        if not self.centers_.shape == self.outlier_score_.centers.shape == shape:
            raise ValueError("centres and features differ in shape")
        self.difficulty_ = Difficulty.restore(parts["difficulty"]) if "difficulty" in parts else None
        if self.difficulty_ is not None and self.difficulty_.weights.shape != shape[1:]:
            raise ValueError("difficulty and features differ in shape")
        self.terms_, self.threshold_ = content["terms"], content["threshold"]
        if not (isinstance(self.terms_, list) and len(self.terms_) == clusters):
            raise ValueError("the clusters' terms are missing")
        if not all(isinstance(terms, list) and all(isinstance(t, str) for t in terms) for terms in self.terms_):
            raise ValueError("the clusters' terms are no lists of text")
        if not (self.threshold_ is None or isinstance(self.threshold_, float) and np.isfinite(self.threshold_)):
            raise ValueError("the outliers' threshold is no finite number")


def checked(texts: Sequence[str]) -> list[str]:
    """The prompts as a list; ErlabError if they are no sequence of texts."""
    if isinstance(texts, str):
        raise ErlabError("The 'texts' parameter of PromptRouter must be a list of prompts. Got one text.")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ErlabError(f"The 'texts' parameter of PromptRouter must hold text. Got {text!r:.80} at {i}.")
    return texts
