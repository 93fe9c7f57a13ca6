"""Encoders: compiled features that turn a prompt into a vector without scikit-learn. `ENCODERS` is the registry.

An encoder returns the same vectors as the transformer from which it was compiled (`erlab.routing.features`), by a
dictionary look-up and one small matrix product. It is saved as its `kind`, `settings` (JSON) and `arrays` and created
from them by `restore`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer

from erlab.routing.minilm import QuantizedModel
from erlab.routing.text import considered, encodable, tokens

_CACHED_WORDS, _CACHED_LENGTH = 20_000, 64


class _Table:
    """Base of encoders with one table row per feature.

    The vector of a prompt is the sum of the rows of its features, repeated features included, scaled to length one; it
    is zero for a prompt without known features.
    """

    def __init__(self, table: np.ndarray):
        self.table = np.ascontiguousarray(table)

    @property
    def dimensions(self) -> int:
        return self.table.shape[1]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of prompts, (len(texts), dimensions), float64."""
        vectors = np.zeros((len(texts), self.dimensions))
        for vector, text in zip(vectors, texts, strict=True):
            total = self.sum(text)
            length = np.sqrt(total @ total)
            if length > 0:
                np.divide(total, length, out=vector)
        return vectors

    def _weighted_sum(self, counts: Mapping[int, int]) -> np.ndarray:
        """Return the sum of table rows, each multiplied by its count."""
        if not counts:
            return np.zeros(self.dimensions)
        rows = self.table.take(list(counts), axis=0)
        return np.fromiter(counts.values(), np.float64, len(counts)) @ rows

    def arrays(self) -> dict[str, np.ndarray]:
        return {"table": self.table}


class WordTable(_Table):
    """Features are the words of a prompt (`text.words`).

    TF-IDF, SVD and normalisation are linear up to the final length. The row of a word is its inverse document frequency
    times its row of the SVD components; the normalisation of TF-IDF cancels. Stop words are not in the vocabulary, so
    `text.tokens` is enough.
    """

    kind = "words"

    def __init__(self, vocabulary: Sequence[str], table: np.ndarray):
        super().__init__(table)
        self.vocabulary = list(vocabulary)
        self._row = {word: row for row, word in enumerate(self.vocabulary)}

    def sum(self, text: str) -> np.ndarray:
        return self._weighted_sum(_row_counts(self._row, tokens(text)))

    def settings(self) -> dict:
        return {"vocabulary": self.vocabulary}

    @classmethod
    def restore(cls, settings: dict, arrays: dict[str, np.ndarray]) -> "WordTable":
        return cls(_vocabulary(settings, arrays), arrays["table"])


class CharacterTable(_Table):
    """Features are character n-grams within words (scikit-learn's char_wb).

    No n-gram crosses a word boundary, so a prompt is the sum of its words' vectors, which are cached.
    """

    kind = "characters"

    def __init__(self, vocabulary: Sequence[str], sizes: tuple[int, int], table: np.ndarray):
        super().__init__(table)
        self.vocabulary, self.sizes = list(vocabulary), tuple(sizes)
        self._row = {ngram: row for row, ngram in enumerate(self.vocabulary)}
        self._cached_word = lru_cache(_CACHED_WORDS)(self._word)

    def sum(self, text: str) -> np.ndarray:
        counts = Counter(considered(text).split())
        if not counts:
            return np.zeros(self.dimensions)
        vectors = [self._cached_word(w) if len(w) <= _CACHED_LENGTH else self._word(w) for w in counts]
        return np.fromiter(counts.values(), np.float64, len(counts)) @ np.array(vectors)

    def _word(self, word: str) -> np.ndarray:
        return self._weighted_sum(_row_counts(self._row, _ngrams(word, *self.sizes)))

    def settings(self) -> dict:
        return {"vocabulary": self.vocabulary, "sizes": list(self.sizes)}

    @classmethod
    def restore(cls, settings: dict, arrays: dict[str, np.ndarray]) -> "CharacterTable":
        sizes = settings["sizes"]
        if not (isinstance(sizes, list) and len(sizes) == 2 and all(type(s) is int and 1 <= s <= 9 for s in sizes)):
            raise ValueError("the sizes of the n-grams must be two integers from 1 to 9")
        return cls(_vocabulary(settings, arrays), sizes, arrays["table"])


class TokenTable(_Table):
    """Features are the tokens of a language model's tokenizer (Hugging Face `tokenizers`).

    Args:
        tokenizer: Content of a tokenizer.json.
        table: (vocabulary, dimensions).
    """

    kind = "tokens"

    def __init__(self, tokenizer: str, table: np.ndarray):
        super().__init__(table)
        self.tokenizer = tokenizer
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def sum(self, text: str) -> np.ndarray:
        return self._weighted_sum(Counter(self._tokenizer.encode(encodable(text), add_special_tokens=False).ids))

    def settings(self) -> dict:
        return {"tokenizer": self.tokenizer}

    @classmethod
    def restore(cls, settings: dict, arrays: dict[str, np.ndarray]) -> "TokenTable":
        try:
            encoder = cls(settings["tokenizer"], arrays["table"])
        except Exception as e:  # the tokenizers package raises bare Exception
            raise ValueError(f"the tokenizer cannot be read: {e}") from None
        ids = encoder._tokenizer.get_vocab().values()
        if encoder.table.ndim != 2 or not len(encoder.table) == len(ids) == max(ids, default=-1) + 1:
            raise ValueError("the table does not match the tokenizer")
        return encoder


def token_counts(tokenizer: str, texts: Sequence[str]) -> csr_matrix:
    """Count the tokens of each prompt; (len(texts), vocabulary)."""
    reader = TokenTable(tokenizer, np.zeros((0, 1)))._tokenizer
    ids = [e.ids for e in reader.encode_batch(list(map(encodable, texts)), add_special_tokens=False)]
    pointers = np.cumsum([0, *map(len, ids)])
    columns = np.fromiter(chain.from_iterable(ids), np.int64, pointers[-1])
    counts = csr_matrix((np.ones(len(columns)), columns, pointers), shape=(len(ids), reader.get_vocab_size()))
    counts.sum_duplicates()
    return counts


def _ngrams(word: str, shortest: int, longest: int) -> Iterator[str]:
    """Yield the n-grams of a word as scikit-learn's char_wb does: padded by spaces, a short word once as a whole.

    >>> list(_ngrams("tax", 3, 5))
    [' ta', 'tax', 'ax ', ' tax', 'tax ', ' tax ']
    """
    padded = f" {word} "
    for n in range(shortest, longest + 1):
        yield from (padded[start : start + n] for start in range(max(1, len(padded) - n + 1)))
        if n >= len(padded):
            return


def _row_counts(rows: Mapping[str, int], features: Iterable[str]) -> Counter[int]:
    """Count the table rows of features; unknown features are left out."""
    counts = Counter(map(rows.get, features))
    counts.pop(None, None)
    return counts


def _vocabulary(settings: dict, arrays: dict[str, np.ndarray]) -> list[str]:
    """Return the vocabulary if it is valid and matches the table."""
    vocabulary, table = settings["vocabulary"], arrays["table"]
    if not (isinstance(vocabulary, list) and all(isinstance(w, str) for w in vocabulary)):
        raise ValueError("the vocabulary must be a list of words")
    if table.ndim != 2 or len(table) != len(vocabulary) or table.shape[1] < 1:
        raise ValueError("the table does not match the vocabulary")
    return vocabulary


ENCODERS = {encoder.kind: encoder for encoder in (WordTable, CharacterTable, TokenTable, QuantizedModel)}
