"""Features: scikit-learn transformers from prompts to vectors. `FEATURES` is the registry.

`words` are the paper's features, `characters` use n-grams instead of words, `minilm` is a sentence-embedding model,
`static` a table of token vectors distilled from that model on the training prompts. All use only the first
`text.CONSIDERED` characters of a prompt. `fit` also creates the encoder (`erlab.routing.encoders`) that computes the
same vectors at run time.
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import solve
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, normalize

from erlab.errors import ErlabError
from erlab.routing import minilm
from erlab.routing.encoders import CharacterTable, TokenTable, WordTable, token_counts
from erlab.routing.text import considered, words


class Features(TransformerMixin, BaseEstimator):
    """Base class of features; subclasses implement `fit`, which sets `encoder_`, and `transform`.

    Args:
        dimensions: Largest number of dimensions of the vectors.
        model: Sentence-embedding model, see `minilm.find`.

    Attributes:
        family: Kind of features in the comparison of recipes.
        needs_model: Whether a sentence-embedding model is used.
        encoder_: Compiled form (after `fit`).
    """

    family: str
    needs_model = False

    def __init__(self, dimensions: int = 100, seed: int = 0, model: str | None = None):
        self.dimensions = dimensions
        self.seed = seed
        self.model = model


class _Lexical(Features):
    """TF-IDF, truncated SVD and normalisation; `pipeline_` is the fitted scikit-learn pipeline."""

    family = "TF-IDF"

    def fit(self, texts: Sequence[str], y: object = None) -> "_Lexical":
        self.fit_transform(texts)
        return self

    def fit_transform(self, texts: Sequence[str], y: object = None) -> np.ndarray:
        tfidf = self._vectorizer(len(texts))
        try:
            weights = tfidf.fit_transform(texts)
        except ValueError:  # no feature at all
            weights = np.empty((len(texts), 0))
        if weights.shape[1] < 2:
            raise ErlabError(f"The {len(texts)} prompts hold fewer than two different {self.unit}: nothing to learn.")
        svd = TruncatedSVD(min(self.dimensions, *weights.shape), random_state=self.seed)
        with np.errstate(invalid="ignore", divide="ignore"):  # identical prompts: the explained variance is 0 / 0
            vectors = Normalizer(copy=False).fit_transform(svd.fit_transform(weights))
        self.pipeline_ = Pipeline([("tfidf", tfidf), ("svd", svd), ("normalizer", Normalizer())])
        table = tfidf.idf_[:, None] * svd.components_.T
        self.encoder_ = self._compiled(tfidf.get_feature_names_out().tolist(), table)
        return vectors

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        return self.pipeline_.transform(texts)


class WordFeatures(_Lexical):
    """TF-IDF of words without stop words and numbers, the paper's features (c-BTM)."""

    unit = "words besides stop words and numbers"

    def _vectorizer(self, count: int) -> TfidfVectorizer:
        return TfidfVectorizer(analyzer=words)

    def _compiled(self, vocabulary: list[str], table: np.ndarray) -> WordTable:
        return WordTable(vocabulary, table)


class CharacterFeatures(_Lexical):
    """TF-IDF of character n-grams within words: independent of the language, covers parts of unknown words.

    With 100 prompts or more, n-grams of a single prompt are left out.

    Attributes:
        sizes: Shortest and longest n-gram.
    """

    unit = "groups of characters"
    sizes = (3, 4)

    def _vectorizer(self, count: int) -> TfidfVectorizer:
        rare = 2 if count >= 100 else 1
        return TfidfVectorizer(preprocessor=considered, analyzer="char_wb", ngram_range=self.sizes, min_df=rare)

    def _compiled(self, vocabulary: list[str], table: np.ndarray) -> CharacterTable:
        return CharacterTable(vocabulary, self.sizes, table)


class StaticFeatures(Features):
    """Token vectors distilled from a sentence-embedding model; a prompt is the sum of its tokens' vectors.

    Each token starts with the model's vector of this token alone. Ridge regression then moves the vectors, as little as
    possible, so that the weighted sums of the training prompts approximate the model's vectors of these prompts:

        table = start + B' (B B' + strength I)^-1 (vectors - B start)

    where B holds the prompts' shares of weighted tokens, (n, vocabulary). Rare tokens weigh more: a / (a + frequency),
    the SIF weights of Arora et al. (2017). The table is reduced to its principal `dimensions`. Model2Vec and
    `StaticEmbedding.from_distillation` use the start and the weights without the regression.
    """

    family = "static embedding"
    needs_model = True
    smoothing = 1e-3  # a of the SIF weights
    strength = 2.0  # relative to the mean of the diagonal of B B'

    def fit(self, texts: Sequence[str], y: object = None) -> "StaticFeatures":
        folder = minilm.find(self.model)
        tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
        counts = token_counts(tokenizer, texts)
        if not counts.nnz:
            raise ErlabError(f"The {len(texts)} prompts hold no text: nothing to learn.")
        vectors = minilm.sentence_model(folder).encode(texts)
        vectors -= vectors.mean(axis=0)
        start = minilm.token_vectors(folder)
        start = start - start.mean(axis=0)
        frequency = (np.asarray(counts.sum(axis=0)).ravel() + 1) / (counts.sum() + counts.shape[1])
        weights = self.smoothing / (self.smoothing + frequency)
        shares = normalize(counts.multiply(weights).tocsr(), norm="l1")
        sums = shares @ start
        start *= (sums * vectors).sum() / (sums**2).sum()
        kernel = (shares @ shares.T).toarray()
        kernel[np.diag_indices_from(kernel)] += self.strength * kernel.trace() / len(texts)
        moves = solve(kernel, vectors - shares @ start, assume_a="pos", overwrite_a=True)
        table = weights[:, None] * (start + shares.T @ moves)
        with np.errstate(invalid="ignore", divide="ignore"):  # identical prompts, as above
            components = TruncatedSVD(min(self.dimensions, *vectors.shape), random_state=0).fit(vectors).components_
        self.encoder_ = TokenTable(tokenizer, (table @ components.T).astype(np.float32))
        return self

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        return self.encoder_.encode(texts)


class SentenceFeatures(Features):
    """Vectors of a sentence-embedding model in float32; the encoder is the model with 8-bit weights."""

    family = "sentence embedding"
    needs_model = True

    def fit(self, texts: Sequence[str], y: object = None) -> "SentenceFeatures":
        self.encoder_ = minilm.quantized_model(self.model)
        return self

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        return minilm.sentence_model(minilm.find(self.model)).encode(texts)


FEATURES: dict[str, type[Features]] = {
    "words": WordFeatures,
    "characters": CharacterFeatures,
    "static": StaticFeatures,
    "minilm": SentenceFeatures,
}
