"""Prompt router: learns clusters of prompts and assigns new prompts to them.

The default is the paper's recipe as c-BTM published it (kernelmachine/cbtm, metaseq/scripts/train_clusterer.py): stop
words and numbers removed, TF-IDF, truncated SVD to 100 dimensions, normalisation, k-means, nearest centre.
scikit-learn fits the router; decisions use a compiled form that gives the same results and is all that is saved.

>>> router = PromptRouter(clusters=2).fit(["boil the pasta", "salt the pasta", "sue the landlord", "landlord law"])
>>> routing = router.route(["fresh pasta"])
>>> routing.cluster.shape, bool(routing.margin[0] > 0)
((1,), True)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from erlab.routing.clusterers import CLUSTERERS, SUPERVISED, fit_supervised
from erlab.routing.compiled import CompiledRouter, check_texts
from erlab.routing.features import FEATURES
from erlab.routing.scores import Difficulty, OutlierScore
from erlab.routing.text import top_terms
from erlab.spec import require


class PromptRouter(CompiledRouter, TransformerMixin, ClusterMixin, BaseEstimator):
    """scikit-learn clusterer of prompts.

    Args:
        clusters: Number of clusters, at least 1.
        features: Name in `features.FEATURES`.
        clusterer: Name in `clusterers.CLUSTERERS`, or "supervised", which needs the prompts' domains in `fit`.
        dimensions: Dimensions of the vectors, at least 1; fewer if the prompts have fewer features (`dimensions_`).
        restarts: Restarts of the clusterer, at least 1; the best one is used.
        model: Sentence-embedding model for features that need one, see `minilm.find`.

    Attributes:
        encoder_, head_: Compiled decision.
        centers_: Centres of the clusters, (clusters, dimensions_).
        labels_: Clusters of the training prompts, (n,); not in a loaded router.
        terms_: Words that distinguish each cluster, highest score first.
        outlier_score_: `scores.OutlierScore` of the training prompts.
        threshold_: Outlier score above which a prompt is an outlier; None before `calibrate`.
        difficulty_: `scores.Difficulty`; None before `fit_difficulty`.
        features_: Fitted transformer; not in a loaded router.

    >>> router = PromptRouter(clusters=2).fit(["boil pasta", "salt the pasta", "sue the landlord", "landlord law"])
    >>> pasta, law = router.predict(["fresh pasta", "my landlord"])
    >>> bool(pasta != law)
    True
    """

    def __init__(
        self,
        clusters: int = 8,
        features: str = "words",
        clusterer: str = "kmeans",
        dimensions: int = 100,
        restarts: int = 10,
        seed: int = 0,
        model: str | None = None,
    ):
        self.clusters = clusters
        self.features = features
        self.clusterer = clusterer
        self.dimensions = dimensions
        self.restarts = restarts
        self.seed = seed
        self.model = model

    def fit(self, texts: Sequence[str], y: Sequence | None = None) -> "PromptRouter":
        """Learn the clusters of training prompts.

        Args:
            y: Domains of the prompts, used by the supervised router only: cluster c is the c-th domain by name.

        Raises:
            ErlabError: A parameter is not allowed, or fewer prompts differ than there are clusters.
        """
        texts = check_texts(texts)
        self.check(len(set(texts)))
        self.features_ = FEATURES[self.features](self.dimensions, self.seed, self.model)
        vectors = self.features_.fit_transform(texts)
        if self.clusterer == SUPERVISED:
            self.labels_ = self._domain_labels(y, len(texts))
            self.head_ = fit_supervised(vectors, self.labels_)
        else:
            distinct = len(np.unique(vectors.round(9), axis=0))
            allowed = f"be at most {distinct}, the prompts that differ in their features"
            require(self.clusters <= distinct, "clusters", "PromptRouter", allowed, self.clusters)
            with threadpool_limits(1):  # more OpenMP threads spin on busy cores; the clusters are the same
                self.labels_, self.head_ = CLUSTERERS[self.clusterer](vectors, self.clusters, self.restarts, self.seed)
        self.encoder_ = self.features_.encoder_
        self.outlier_score_ = OutlierScore.fit(vectors, self.labels_, self.clusters)
        self.terms_ = top_terms(texts, self.labels_, self.clusters)
        self.threshold_ = self.difficulty_ = None
        return self

    def calibrate(self, texts: Sequence[str], share: float = 0.05) -> "PromptRouter":
        """Set the outlier threshold so that a share of held-back prompts exceeds it.

        Args:
            share: Between 0 and 1, both excluded.
        """
        require(0 < share < 1, "share", "calibrate", "lie between 0 and 1", share)
        require(len(texts) > 0, "texts", "calibrate", "hold prompts", len(texts))
        self.threshold_ = float(np.quantile(self.outlier_scores(texts), 1 - share))
        return self

    def fit_difficulty(self, texts: Sequence[str], hard: Sequence[bool]) -> "PromptRouter":
        """Learn the difficulty of prompts, see `scores.Difficulty`."""
        require(len(hard) == len(texts), "hard", "fit_difficulty", f"hold {len(texts)} values", len(hard))
        values = sorted({bool(h) for h in hard})
        require(values == [False, True], "hard", "fit_difficulty", "hold both True and False", values)
        self.difficulty_ = Difficulty.fit(self.embed(texts), np.asarray(hard, dtype=bool))
        return self

    def check(self, distinct: int) -> None:
        """Raise ErlabError for parameters that `fit` rejects for this number of distinct prompts."""
        for name in ("clusters", "dimensions", "restarts"):
            value = getattr(self, name)
            require(isinstance(value, int | np.integer) and value >= 1, name, "PromptRouter", "be at least 1", value)
        for name, names in ("features", FEATURES), ("clusterer", [*CLUSTERERS, SUPERVISED]):
            value = getattr(self, name)
            require(value in names, name, "PromptRouter", f"be one of {', '.join(names)}", value)
        allowed = f"be at most the {distinct} distinct prompts"
        require(self.clusters <= distinct, "clusters", "PromptRouter", allowed, self.clusters)

    def _domain_labels(self, y: Sequence | None, count: int) -> np.ndarray:
        got = None if y is None else len(y)
        require(got == count, "y", "the supervised PromptRouter", f"hold the {count} prompts' domains", got)
        domains, labels = np.unique(np.asarray(y, dtype=object).astype(str), return_inverse=True)
        allowed = f"be the number of domains, at least 2: {len(domains)}"
        require(self.clusters == len(domains) > 1, "clusters", "the supervised PromptRouter", allowed, self.clusters)
        return labels

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of n prompts, (n, dimensions_), of length one or zero."""
        check_is_fitted(self, "encoder_")
        return super().embed(texts)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Return the clusters of n prompts, (n,) int."""
        return self.route(texts).cluster

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """Return the distances of n prompts to every centre, (n, clusters), like scikit-learn's KMeans."""
        return self.head_.distances(self.embed(texts))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        return tags

    def save(self, folder: str | Path) -> Path:
        """Save the compiled router into a folder: JSON and safetensors with checksums, no pickle."""
        check_is_fitted(self, "encoder_")
        return super().save(folder)

    def _parameters(self) -> Mapping:
        return self.get_params()

    def _restore(self, content: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
        self.set_params(**content["parameters"])
        super()._restore(content, arrays)
