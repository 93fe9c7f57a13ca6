"""A prompt's words as c-BTM published its recipe, and those that set clusters apart: what training needs.

scikit-learn's default tokens without its English stop words and without tokens that begin with a digit
(kernelmachine/cbtm turns those into a token that is itself a stop word).

>>> words("The 3 cells divide in 24h, the cells DIVIDE")
['cells', 'divide', 'cells', 'divide']
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from erlab.routing.text import tokens


def words(text: str) -> list[str]:
    """The words of the prompt's considered part in order, repeated as often as they occur."""
    return [t for t in tokens(text) if t not in ENGLISH_STOP_WORDS and not t[0].isdigit()]


def top_terms(texts: Iterable[str], labels: Sequence[int], clusters: int, count: int = 8) -> list[list[str]]:
    """For each cluster the words that set it apart, best first: share of its prompts that hold the word, times the
    logarithm of how much larger that share is than among all prompts. Words of a single prompt are left out."""
    vocabulary: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        held = {vocabulary.setdefault(w, len(vocabulary)) for w in words(text)}
        rows += [row] * len(held)
        columns += held
    labels = np.asarray(labels)
    if not vocabulary:
        return [[] for _ in range(clusters)]
    holds = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(labels), len(vocabulary)))
    member = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))), shape=(clusters, len(labels)))
    sizes = np.asarray(list(map(Counter(labels.tolist()).__getitem__, range(clusters))))
    share = (member @ holds).toarray() / np.maximum(sizes, 1)[:, None]
    among_all = np.asarray(holds.sum(axis=0)).ravel()
    score = share * np.log(np.maximum(share, 1e-12) * len(labels) / among_all)
    score[:, among_all < 2] = 0
    names = np.array(list(vocabulary), dtype=object)
    return [[names[i] for i in np.argsort(-s, kind="stable")[:count] if s[i] > 0] for s in score]
