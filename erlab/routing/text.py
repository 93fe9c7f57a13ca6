"""Text of a prompt that is classified: its beginning, tokens and words.

Training and decisions use the same functions. `words` follows c-BTM's published recipe: scikit-learn's default tokens
without its English stop words and without tokens that begin with a digit (kernelmachine/cbtm replaces the latter by a
token that is itself a stop word).

>>> words("The 3 cells divide in 24h, the cells DIVIDE")
['cells', 'divide', 'cells', 'divide']
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from scipy.sparse import csr_matrix

CONSIDERED = 8192  # characters at the beginning of a prompt (about 2,000 tokens) from which features are computed
_TOKENS = re.compile(r"\b\w\w+\b").findall


def considered(text: str) -> str:
    """Return the classified beginning of a prompt in lower case; its length bounds the time of a decision."""
    return text[:CONSIDERED].lower()


def tokens(text: str) -> list[str]:
    """Return scikit-learn's default tokens: lower case, at least two word characters.

    >>> tokens("The 3 cells divide in 24h")
    ['the', 'cells', 'divide', 'in', '24h']
    """
    return _TOKENS(considered(text))


def encodable(text: str) -> str:
    """Return the classified beginning of a prompt as valid Unicode for subword tokenizers.

    Unpaired surrogates are replaced, since tokenizers accept UTF-8 only; case is kept, since they handle it themselves.
    """
    return text[:CONSIDERED].encode(errors="replace").decode()


def words(text: str) -> list[str]:
    """Return the words of a prompt in order, with repetitions, without stop words and numbers."""
    stop_words = _stop_words()
    return [t for t in tokens(text) if t not in stop_words and not t[0].isdigit()]


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # slow to import, and decisions do not need it

    return ENGLISH_STOP_WORDS


def top_terms(texts: Iterable[str], labels: Sequence[int], clusters: int, count: int = 8) -> list[list[str]]:
    """Find the words that distinguish each cluster from the others.

    A word's score is the share of the cluster's prompts that contain it, times the logarithm of the ratio of this share
    to the share among all prompts. Words of a single prompt are left out.
    """
    vocabulary: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        distinct = {vocabulary.setdefault(w, len(vocabulary)) for w in words(text)}
        rows += [row] * len(distinct)
        columns += distinct
    labels = np.asarray(labels)
    if not vocabulary:
        return [[] for _ in range(clusters)]
    contains = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(labels), len(vocabulary)))
    member = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))), shape=(clusters, len(labels)))
    sizes = np.bincount(labels, minlength=clusters)
    share = (member @ contains).toarray() / np.maximum(sizes, 1)[:, None]
    frequency = np.asarray(contains.sum(axis=0)).ravel()
    score = share * np.log(np.maximum(share, 1e-12) * len(labels) / frequency)
    score[:, frequency < 2] = 0
    names = np.array(list(vocabulary), dtype=object)
    return [[names[i] for i in np.argsort(-s, kind="stable")[:count] if s[i] > 0] for s in score]
