"""From prompts to vectors: scikit-learn transformers, each with the compiled encoder that decides with it.

`FEATURES` names them: `words` is the paper's recipe, `characters` its strongest relative, `minilm` a sentence-embedding
model, `static` a table of token vectors distilled from that model on the training prompts. All look at a prompt's
first `text.CONSIDERED` characters only, when they learn and when they decide.
"""

from collections.abc import Callable, Sequence

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
from erlab.routing.text import considered
from erlab.routing.words import words


class _Lexical(TransformerMixin, BaseEstimator):
    """TF-IDF, truncated SVD, normalisation. Learned: `pipeline_` (scikit-learn's) and `encoder_`, its compiled form."""

    def __init__(self, dimensions: int = 100, seed: int = 0):
        self.dimensions = dimensions
        self.seed = seed

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
        with np.errstate(invalid="ignore", divide="ignore"):  # prompts all alike: 0 / 0 is explained
            vectors = Normalizer(copy=False).fit_transform(svd.fit_transform(weights))
        self.pipeline_ = Pipeline([("tfidf", tfidf), ("svd", svd), ("normalizer", Normalizer())])
        table = tfidf.idf_[:, None] * svd.components_.T
        self.encoder_ = self._compiled(tfidf.get_feature_names_out().tolist(), table)
        return vectors

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        return self.pipeline_.transform(texts)


class WordFeatures(_Lexical):
    """The paper's: c-BTM's words (no stop words, no numbers), TF-IDF, truncated SVD, normalisation."""

    unit = "words besides stop words and numbers"

    def _vectorizer(self, count: int) -> TfidfVectorizer:
        return TfidfVectorizer(analyzer=words)

    def _compiled(self, vocabulary: list[str], table: np.ndarray) -> WordTable:
        return WordTable(vocabulary, table)


class CharacterFeatures(_Lexical):
    """Character n-grams within words instead of words: no stop words, no language assumed, parts of unknown words
    count. From 100 prompts on, n-grams of a single prompt are left out."""

    unit = "groups of characters"
    sizes = (3, 4)

    def _vectorizer(self, count: int) -> TfidfVectorizer:
        rare = 2 if count >= 100 else 1
        return TfidfVectorizer(preprocessor=considered, analyzer="char_wb", ngram_range=self.sizes, min_df=rare)

    def _compiled(self, vocabulary: list[str], table: np.ndarray) -> CharacterTable:
        return CharacterTable(vocabulary, self.sizes, table)


class StaticFeatures(TransformerMixin, BaseEstimator):
    """A vector a token, distilled from a sentence-embedding model: a prompt is the sum of its tokens' vectors.

    Tokens start with the model's vectors of each token alone. Ridge regression then moves them, as little as possible,
    so that the training prompts' weighted sums come close to the model's own vectors of these prompts:

        table = start + B' (B B' + strength I)^-1 (vectors - B start)

    with B the prompts' shares of weighted tokens, (n, vocabulary). Rare tokens weigh more: a / (a + frequency), the SIF
    weights of Arora et al. (2017). The table's principal `dimensions` are kept. Model2Vec and
    `StaticEmbedding.from_distillation` stop at the start and weights; the regression is solved exactly in seconds.
    Learned: `encoder_`.
    """

    smoothing = 1e-3  # a of the SIF weights
    strength = 2.0  # times the mean of B B's diagonal

    def __init__(self, dimensions: int = 100, model: str | None = None):
        self.dimensions = dimensions
        self.model = model

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
        first = shares @ start
        start *= (first * vectors).sum() / (first**2).sum()
        kernel = (shares @ shares.T).toarray()
        kernel[np.diag_indices_from(kernel)] += self.strength * kernel.trace() / len(texts)
        moves = solve(kernel, vectors - shares @ start, assume_a="pos", overwrite_a=True)
        table = weights[:, None] * (start + shares.T @ moves)
        with np.errstate(invalid="ignore", divide="ignore"):  # as above
            components = TruncatedSVD(min(self.dimensions, *vectors.shape), random_state=0).fit(vectors).components_
        self.encoder_ = TokenTable(tokenizer, (table @ components.T).astype(np.float32))
        return self

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        return self.encoder_.encode(texts)


class SentenceFeatures(TransformerMixin, BaseEstimator):
    """A sentence-embedding model's own vectors, in float32. Learned: `encoder_`, the model with 8-bit weights."""

    def __init__(self, model: str | None = None):
        self.model = model

    def fit(self, texts: Sequence[str], y: object = None) -> "SentenceFeatures":
        self.encoder_ = minilm.quantized_model(self.model)
        return self

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        return minilm.sentence_model(minilm.find(self.model)).encode(texts)


FEATURES: dict[str, Callable[[int, int, str | None], TransformerMixin]] = {
    "words": lambda dimensions, seed, model: WordFeatures(dimensions, seed),
    "characters": lambda dimensions, seed, model: CharacterFeatures(dimensions, seed),
    "static": lambda dimensions, seed, model: StaticFeatures(dimensions, model),
    "minilm": lambda dimensions, seed, model: SentenceFeatures(model),
}
