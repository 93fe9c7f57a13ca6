"""`PromptRouter`: learns clusters of prompts and says, for a new prompt, which cluster it belongs to and how surely.

The default is the paper's recipe as c-BTM published it (kernelmachine/cbtm, metaseq/scripts/train_clusterer.py):
stop words and numbers removed, TF-IDF, truncated SVD to 100 dimensions, normalisation, k-means, nearest centre.
scikit-learn fits it; decisions run on a compiled form that gives the same answers and is all that is saved.

>>> router = PromptRouter(clusters=2).fit(["boil the pasta", "salt the pasta", "sue the landlord", "landlord law"])
>>> routing = router.route(["fresh pasta"])
>>> routing.cluster.shape, bool(routing.margin[0] > 0)
((1,), True)
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.validation import check_is_fitted

from erlab.errors import ErlabError
from erlab.routing import storage
from erlab.routing.encoders import ENCODERS, WordTable
from erlab.routing.text import top_terms, words
from erlab.spec import require


class Row(NamedTuple):
    """One prompt's decision; `order` lists all clusters, nearest first."""

    cluster: int
    distance: float
    margin: float
    runner_up: int
    order: tuple[int, ...]


@dataclass(frozen=True)
class Routing:
    """Decisions for n prompts among k clusters, as arrays.

    cluster: (n,) int, the nearest centre. distance: (n,) to that centre (Euclidean; vectors have length one, or zero
    where the router knows no word of the prompt). margin: (n,) how much farther the runner-up is; infinite if k is 1.
    runner_up: (n,) int, -1 if k is 1. distances: (n, k) to every centre.
    """

    cluster: np.ndarray
    distance: np.ndarray
    margin: np.ndarray
    runner_up: np.ndarray
    distances: np.ndarray

    def __len__(self) -> int:
        return len(self.cluster)

    def row(self, i: int) -> Row:
        """Prompt i's decision in plain Python numbers, as policies take it."""
        order = tuple(np.argsort(self.distances[i], kind="stable").tolist())
        return Row(order[0], float(self.distance[i]), float(self.margin[i]), int(self.runner_up[i]), order)


class PromptRouter(TransformerMixin, ClusterMixin, BaseEstimator):
    """A scikit-learn clusterer of texts.

    Parameters: `clusters` (k), `dimensions` of the reduced space (fewer where the prompts have fewer features; see
    `dimensions_`), `restarts` of k-means, of which the best is kept, and the `seed`.
    Learned: `encoder_` and `centers_` (k, dimensions_), the compiled decision; `labels_` of the training prompts;
    `terms_`, the words that set each cluster apart; `pipeline_`, scikit-learn's form (absent in a loaded router).
    """

    def __init__(self, clusters: int = 8, dimensions: int = 100, restarts: int = 10, seed: int = 0):
        self.clusters = clusters
        self.dimensions = dimensions
        self.restarts = restarts
        self.seed = seed

    def fit(self, texts: Sequence[str], y: object = None) -> "PromptRouter":
        """Learn from the prompts; ErlabError where they are fewer or less different than the clusters."""
        for name in ("clusters", "dimensions", "restarts"):
            value = getattr(self, name)
            require(isinstance(value, int | np.integer) and value >= 1, name, "PromptRouter", "be at least 1", value)
        texts = _checked(texts)
        distinct = len(set(texts))
        allowed = f"be at most the {distinct} distinct prompts"
        require(self.clusters <= distinct, "clusters", "PromptRouter", allowed, self.clusters)
        vocabulary = {word for text in texts for word in words(text)}
        if len(vocabulary) < 2:
            held = f"only {vocabulary.pop()!r}" if vocabulary else "no word"
            raise ErlabError(f"The {len(texts)} prompts hold {held} besides stop words and numbers: nothing to learn.")
        tfidf = TfidfVectorizer(analyzer=words)
        weights = tfidf.fit_transform(texts)
        svd = TruncatedSVD(min(self.dimensions, *weights.shape), random_state=self.seed)
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # the explained share of prompts that are all alike: 0 / 0
            vectors = Normalizer(copy=False).fit_transform(svd.fit_transform(weights))
        different = len(np.unique(vectors.round(9), axis=0))
        allowed = f"be at most {different}, the prompts that differ in more than stop words and numbers"
        require(self.clusters <= different, "clusters", "PromptRouter", allowed, self.clusters)
        kmeans = KMeans(self.clusters, n_init=self.restarts, random_state=self.seed).fit(vectors)
        self.pipeline_ = Pipeline([("tfidf", tfidf), ("svd", svd), ("normalizer", Normalizer()), ("kmeans", kmeans)])
        self.encoder_ = WordTable(tfidf.get_feature_names_out().tolist(), tfidf.idf_[:, None] * svd.components_.T)
        self._set_centers(kmeans.cluster_centers_)
        self.labels_ = kmeans.labels_.astype(int)
        self.terms_ = top_terms(texts, self.labels_, self.clusters)
        return self

    def _set_centers(self, centers: np.ndarray) -> None:
        self.centers_ = np.ascontiguousarray(centers, dtype=np.float64)
        self._squares = (self.centers_**2).sum(axis=1)
        self._twice = np.ascontiguousarray(2 * self.centers_.T)

    @property
    def dimensions_(self) -> int:
        """Dimensions of the space that the prompts really gave."""
        return self.centers_.shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The prompts' vectors, (n, dimensions_), of length one or zero."""
        check_is_fitted(self, "centers_")
        return self.encoder_.encode(_checked(texts))

    def route(self, texts: Sequence[str]) -> Routing:
        """Decide for each prompt. Empty or unknown text is the zero vector and goes to the centre nearest to it."""
        vectors = self.embed(texts)
        squared = (vectors**2).sum(axis=1)[:, None] + self._squares - vectors @ self._twice
        distances = np.sqrt(np.maximum(squared, 0, out=squared), out=squared)
        rows = np.arange(len(distances))
        cluster = distances.argmin(axis=1)
        distance = distances[rows, cluster]
        if distances.shape[1] == 1:
            return Routing(cluster, distance, np.full(len(rows), np.inf), np.full(len(rows), -1), distances)
        others = distances.copy()
        others[rows, cluster] = np.inf
        runner_up = others.argmin(axis=1)
        return Routing(cluster, distance, others[rows, runner_up] - distance, runner_up, distances)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The prompts' clusters, (n,) int."""
        return self.route(texts).cluster

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """The prompts' distances to every centre, (n, clusters), as scikit-learn's KMeans gives them."""
        return self.route(texts).distances

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        return tags

    def save(self, folder: str | Path) -> Path:
        """Write the decision path into `folder`: JSON and safetensors with checksums, no pickle."""
        check_is_fitted(self, "centers_")
        encoder = {"kind": self.encoder_.kind, **self.encoder_.settings()}
        content = {"parameters": self.get_params(), "terms": self.terms_, "encoder": encoder}
        return storage.save(folder, content, {"centers": self.centers_, **self.encoder_.arrays()})

    @classmethod
    def load(cls, folder: str | Path) -> "PromptRouter":
        """A router as saved, ready to decide; ErlabError naming the file if it is wrong, damaged or newer."""
        content, arrays = storage.load(folder)
        try:
            router = cls(**content["parameters"])
            centers, terms = arrays.pop("centers"), content["terms"]
            router.encoder_ = ENCODERS[content["encoder"]["kind"]].restore(content["encoder"], arrays)
            if centers.shape != (router.clusters, router.encoder_.dimensions):
                raise ValueError("centres and features differ in shape")
            if not (isinstance(terms, list) and len(terms) == router.clusters):
                raise ValueError("the clusters' terms are missing")
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ErlabError(f"{Path(folder) / storage.MANIFEST}: not a complete router ({e}).") from None
        router.terms_ = terms
        router._set_centers(centers)
        return router


def _checked(texts: Sequence[str]) -> list[str]:
    """The prompts as a list; ErlabError if they are no sequence of texts."""
    if isinstance(texts, str):
        raise ErlabError("The 'texts' parameter of PromptRouter must be a list of prompts. Got one text.")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ErlabError(f"The 'texts' parameter of PromptRouter must hold text. Got {text!r:.80} at {i}.")
    return texts
