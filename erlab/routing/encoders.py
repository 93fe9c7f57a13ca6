"""Compiled features: from prompt to vector by dictionary look-up and one small product, without scikit-learn.

An encoder gives the vectors of the pipeline it was compiled from. It knows its arrays and its settings (plain JSON)
and can be made from them again, which is all that saving and loading need.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from erlab.routing.text import words


class WordTable:
    """A row of `table` a word: a prompt is the sum of its words' rows, scaled to length one; zeros if it knows none.

    TF-IDF, SVD and normalisation are linear up to the final length, so a word's row is its inverse document
    frequency times its row of the SVD's components; TF-IDF's own normalisation cancels.
    """

    kind = "words"

    def __init__(self, vocabulary: Sequence[str], table: np.ndarray):
        self.vocabulary = list(vocabulary)
        self.table = np.ascontiguousarray(table, dtype=np.float64)
        self._row = {word: row for row, word in enumerate(self.vocabulary)}

    @property
    def dimensions(self) -> int:
        return self.table.shape[1]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the prompts, shape (len(texts), dimensions), float64."""
        vectors = np.zeros((len(texts), self.dimensions))
        for vector, text in zip(vectors, texts, strict=True):
            counts = Counter(filter(self._row.__contains__, words(text)))
            if counts:
                rows = list(map(self._row.__getitem__, counts))
                found = np.fromiter(counts.values(), np.float64, len(counts)) @ self.table.take(rows, axis=0)
                length = np.sqrt(found @ found)
                if length > 0:
                    np.divide(found, length, out=vector)
        return vectors

    def settings(self) -> dict:
        return {"vocabulary": self.vocabulary}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"table": self.table}

    @classmethod
    def restore(cls, settings: dict, arrays: dict[str, np.ndarray]) -> "WordTable":
        vocabulary, table = settings["vocabulary"], arrays["table"]
        if not (isinstance(vocabulary, list) and all(isinstance(w, str) for w in vocabulary)):
            raise ValueError("the vocabulary is no list of words")
        if table.ndim != 2 or len(table) != len(vocabulary) or table.shape[1] < 1:
            raise ValueError("the table does not match the vocabulary")
        return cls(vocabulary, table)


ENCODERS = {encoder.kind: encoder for encoder in (WordTable,)}
