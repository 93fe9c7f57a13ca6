"""`PromptRouter`: learns clusters of prompts and says, for a new prompt, which cluster it belongs to and how surely.

The default is the paper's recipe as c-BTM published it (kernelmachine/cbtm, metaseq/scripts/train_clusterer.py):
stop words and numbers removed, TF-IDF, truncated SVD to 100 dimensions, normalisation, k-means, nearest centre.
scikit-learn fits it; decisions run on a compiled form that gives the same answers and is all that is saved.

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

from erlab.routing import storage
from erlab.routing.clusterers import CLUSTERERS, fit_supervised
from erlab.routing.compiled import CompiledRouter, checked
from erlab.routing.difficulty import Difficulty
from erlab.routing.features import FEATURES
from erlab.routing.outliers import OutlierScore
from erlab.routing.words import top_terms
from erlab.spec import require


class PromptRouter(CompiledRouter, TransformerMixin, ClusterMixin, BaseEstimator):
    """A scikit-learn clusterer of texts.

    Parameters: `clusters` (k); `features`, a name of `features.FEATURES`; `clusterer`, a name of
    `clusterers.CLUSTERERS` or "supervised", which needs the prompts' domains in `fit`; `dimensions` of the vectors
    (fewer where the prompts have fewer features, see `dimensions_`); `restarts` of the clusterer, of which the best is
    kept; the `seed`; and, for features that need a sentence-embedding model, that `model` (see `minilm.find`).
    Learned: `encoder_` and `head_`, the compiled decision; `centers_` (k, dimensions_); `labels_` of the training
    prompts; `terms_`, the words that set each cluster apart; `outlier_score_` and, once calibrated, `threshold_`;
    `difficulty_`, once fitted; `features_`, the transformer (absent in a loaded router).
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
        """Learn from the prompts; ErlabError where they are fewer or less different than the clusters.

        y: the prompts' domains, which only the supervised router looks at: cluster c is the c-th domain by name.
        """
        texts = checked(texts)
        self.check(len(set(texts)))
        self.features_ = FEATURES[self.features](self.dimensions, self.seed, self.model)
        vectors = self.features_.fit_transform(texts)
        if self.clusterer == "supervised":
            self.labels_ = self._labels_of(y, len(texts))
            self.head_ = fit_supervised(vectors, self.labels_)
        else:
            different = len(np.unique(vectors.round(9), axis=0))
            allowed = f"be at most {different}, the prompts that differ in their features"
            require(self.clusters <= different, "clusters", "PromptRouter", allowed, self.clusters)
            cluster = CLUSTERERS[self.clusterer]
            # Threads wait by spinning: many times slower where cores are busy, and the clusters are the same.
            with threadpool_limits(1):
                self.labels_, self.head_ = cluster(vectors, self.clusters, self.restarts, self.seed)
        self.encoder_ = self.features_.encoder_
        self.outlier_score_ = OutlierScore.fit(vectors, self.labels_, self.clusters)
        self.terms_ = top_terms(texts, self.labels_, self.clusters)
        self.threshold_ = self.difficulty_ = None
        return self

    def calibrate(self, texts: Sequence[str], share: float = 0.05) -> "PromptRouter":
        """Set the outliers' threshold so that this share of `texts`, held-back prompts of the domains, is beyond it."""
        require(0 < share < 1, "share", "calibrate", "lie between 0 and 1", share)
        require(len(texts) > 0, "texts", "calibrate", "hold prompts", len(texts))
        self.threshold_ = float(np.quantile(self.outlier_scores(texts), 1 - share))
        return self

    def fit_difficulty(self, texts: Sequence[str], hard: Sequence[bool]) -> "PromptRouter":
        """Learn from prompts that needed the strong expert and others how difficult a prompt is; see `difficulty`."""
        require(len(hard) == len(texts), "hard", "fit_difficulty", f"hold {len(texts)} values", len(hard))
        kinds = sorted({bool(h) for h in hard})
        require(kinds == [False, True], "hard", "fit_difficulty", "hold both True and False", kinds)
        self.difficulty_ = Difficulty.fit(self.embed(texts), np.asarray(hard, dtype=bool))
        return self

    def check(self, distinct: int) -> None:
        """Refuse parameters that `fit` would for so many distinct prompts."""
        for name in ("clusters", "dimensions", "restarts"):
            value = getattr(self, name)
            require(isinstance(value, int | np.integer) and value >= 1, name, "PromptRouter", "be at least 1", value)
        for name, names in ("features", FEATURES), ("clusterer", [*CLUSTERERS, "supervised"]):
            value = getattr(self, name)
            require(value in names, name, "PromptRouter", f"be one of {', '.join(names)}", value)
        allowed = f"be at most the {distinct} distinct prompts"
        require(self.clusters <= distinct, "clusters", "PromptRouter", allowed, self.clusters)

    def _labels_of(self, y: Sequence | None, count: int) -> np.ndarray:
        got = None if y is None else len(y)
        require(got == count, "y", "the supervised PromptRouter", f"hold the {count} prompts' domains", got)
        domains, labels = np.unique(np.asarray(y, dtype=object).astype(str), return_inverse=True)
        allowed = f"be the number of domains, at least 2: {len(domains)}"
        require(self.clusters == len(domains) > 1, "clusters", "the supervised PromptRouter", allowed, self.clusters)
        return labels

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The prompts' vectors, (n, dimensions_), of length one or zero."""
        check_is_fitted(self, "encoder_")
        return super().embed(texts)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The prompts' clusters, (n,) int."""
        return self.route(texts).cluster

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """The prompts' distances to every centre, (n, clusters), as scikit-learn's KMeans gives them."""
        return self.head_.distances(self.embed(texts))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        return tags

    def save(self, folder: str | Path) -> Path:
        """Write the decision path into `folder`: JSON and safetensors with checksums, no pickle."""
        check_is_fitted(self, "encoder_")
        content = {
            "parameters": self.get_params(),
            "terms": self.terms_,
            "encoder": {"kind": self.encoder_.kind, **self.encoder_.settings()},
            "head": {"kind": self.head_.kind},
            "threshold": self.threshold_,
        }
        parts = {"encoder": self.encoder_, "head": self.head_, "outliers": self.outlier_score_}
        if self.difficulty_ is not None:
            parts["difficulty"] = self.difficulty_
        arrays = {f"{part}.{name}": a for part, owner in parts.items() for name, a in owner.arrays().items()}
        return storage.save(folder, content, arrays)

    def _restore(self, content: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
        self.set_params(**content["parameters"])
        super()._restore(content, arrays)
