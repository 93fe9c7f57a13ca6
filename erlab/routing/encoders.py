"""Compiled features: from prompt to vector by dictionary look-up and one small product, without scikit-learn.

An encoder gives the vectors of the transformer it was compiled from (`erlab.routing.features`). It knows its settings
(plain JSON) and its arrays and can be made from them again, which is all that saving and loading need.
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

_REMEMBERED_WORDS, _REMEMBERED_LENGTH = 20_000, 64


class _Table:
    """A row of `table` a feature: a prompt's vector is the sum of its features' rows, as often as they occur, scaled to
    length one; zeros where it has none."""

    def __init__(self, table: np.ndarray):
        self.table = np.ascontiguousarray(table)

    @property
    def dimensions(self) -> int:
        return self.table.shape[1]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the prompts, shape (len(texts), dimensions), float64."""
        vectors = np.zeros((len(texts), self.dimensions))
        for vector, text in zip(vectors, texts, strict=True):
            found = self.sum(text)
            length = np.sqrt(found @ found)
            if length > 0:
                np.divide(found, length, out=vector)
        return vectors

    def _weigh(self, counts: Mapping[int, int]) -> np.ndarray:
        """The sum of rows, each times its count."""
        if not counts:
            return np.zeros(self.dimensions)
        rows = self.table.take(list(counts), axis=0)
        return np.fromiter(counts.values(), np.float64, len(counts)) @ rows

    def arrays(self) -> dict[str, np.ndarray]:
        return {"table": self.table}


class WordTable(_Table):
    """Features are `words.words`; other tokens are in no vocabulary, so a prompt's need no sorting out. TF-IDF, SVD
    and normalisation are linear up to the final length, so a word's row is its inverse document frequency times its row
    of the SVD's components; TF-IDF's own normalisation cancels."""

    kind = "words"

    def __init__(self, vocabulary: Sequence[str], table: np.ndarray):
        super().__init__(table)
        self.vocabulary = list(vocabulary)
        self._row = {word: row for row, word in enumerate(self.vocabulary)}

    def sum(self, text: str) -> np.ndarray:
        return self._weigh(_known(self._row, tokens(text)))

    def settings(self) -> dict:
        return {"vocabulary": self.vocabulary}

    @classmethod
    def restore(cls, settings: dict, arrays: dict[str, np.ndarray]) -> "WordTable":
        return cls(_vocabulary(settings, arrays), arrays["table"])


class CharacterTable(_Table):
    """Features are character n-grams within words (scikit-learn's char_wb). None crosses a word's border, so a prompt
    is the sum of its words' vectors, and each word's is worked out once."""

    kind = "characters"

    def __init__(self, vocabulary: Sequence[str], sizes: tuple[int, int], table: np.ndarray):
        super().__init__(table)
        self.vocabulary, self.sizes = list(vocabulary), tuple(sizes)
        self._row = {ngram: row for row, ngram in enumerate(self.vocabulary)}
        self._remembered = lru_cache(_REMEMBERED_WORDS)(self._word)

    def sum(self, text: str) -> np.ndarray:
        counts = Counter(considered(text).split())
        if not counts:
            return np.zeros(self.dimensions)
        vectors = [self._remembered(w) if len(w) <= _REMEMBERED_LENGTH else self._word(w) for w in counts]
        return np.fromiter(counts.values(), np.float64, len(counts)) @ np.array(vectors)

    def _word(self, word: str) -> np.ndarray:
        return self._weigh(_known(self._row, _ngrams(word, *self.sizes)))

    def settings(self) -> dict:
        return {"vocabulary": self.vocabulary, "sizes": list(self.sizes)}

    @classmethod
    def restore(cls, settings: dict, arrays: dict[str, np.ndarray]) -> "CharacterTable":
        sizes = settings["sizes"]
        if not (isinstance(sizes, list) and len(sizes) == 2 and all(type(s) is int and 1 <= s <= 9 for s in sizes)):
            raise ValueError("the n-grams' sizes are no two numbers from 1 to 9")
        return cls(_vocabulary(settings, arrays), sizes, arrays["table"])


class TokenTable(_Table):
    """Features are a language model's tokens, as its own tokenizer (Hugging Face `tokenizers`) cuts them."""

    kind = "tokens"

    def __init__(self, tokenizer: str, table: np.ndarray):
        """tokenizer: the text of a tokenizer.json."""
        super().__init__(table)
        self.tokenizer = tokenizer
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def sum(self, text: str) -> np.ndarray:
        return self._weigh(Counter(self._tokenizer.encode(encodable(text), add_special_tokens=False).ids))

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
    """How often each token occurs in each prompt, (len(texts), vocabulary)."""
    reader = TokenTable(tokenizer, np.zeros((0, 1)))._tokenizer
    ids = [e.ids for e in reader.encode_batch(list(map(encodable, texts)), add_special_tokens=False)]
    pointers = np.cumsum([0, *map(len, ids)])
    columns = np.fromiter(chain.from_iterable(ids), np.int64, pointers[-1])
    counts = csr_matrix((np.ones(len(columns)), columns, pointers), shape=(len(ids), reader.get_vocab_size()))
    counts.sum_duplicates()
    return counts


def _ngrams(word: str, shortest: int, longest: int) -> Iterator[str]:
    """A word's n-grams as scikit-learn's char_wb gives them: with a space at each end, a short word once as a whole.

    >>> list(_ngrams("tax", 3, 5))
    [' ta', 'tax', 'ax ', ' tax', 'tax ', ' tax ']
    """
    padded = f" {word} "
    for n in range(shortest, longest + 1):
        yield from (padded[start : start + n] for start in range(max(1, len(padded) - n + 1)))
        if n >= len(padded):
            return


def _known(rows: Mapping[str, int], features: Iterable[str]) -> Counter[int]:
    """How often each row occurs; features without one are left out."""
    counts = Counter(map(rows.get, features))
    counts.pop(None, None)
    return counts


def _vocabulary(settings: dict, arrays: dict[str, np.ndarray]) -> list[str]:
    """The vocabulary, if it is one and fits the table."""
    vocabulary, table = settings["vocabulary"], arrays["table"]
    if not (isinstance(vocabulary, list) and all(isinstance(w, str) for w in vocabulary)):
        raise ValueError("the vocabulary is no list of words")
    if table.ndim != 2 or len(table) != len(vocabulary) or table.shape[1] < 1:
        raise ValueError("the table does not match the vocabulary")
    return vocabulary


ENCODERS = {encoder.kind: encoder for encoder in (WordTable, CharacterTable, TokenTable, QuantizedModel)}
