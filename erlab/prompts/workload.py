"""Requests of the users: prompts cut or extended to token lengths, the same for every system under a load.

>>> import numpy as np
>>> from erlab.paper import WORKLOAD
>>> lengths = sample(WORKLOAD.input_tokens, np.random.default_rng(0), 10_000)
>>> int(lengths.min()) >= 8, int(lengths.max()) <= 1023
(True, True)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, ndtri

from erlab.errors import ErlabError
from erlab.paths import Folders
from erlab.spec import Lengths, Workload, require

if TYPE_CHECKING:  # slow to import, and not needed to draw lengths
    from datasets import Dataset


@dataclass(frozen=True)
class Request:
    """One prompt of one user.

    Attributes:
        prompt_id: Id of the prompt that the text begins with.
        domain: Domain of the prompt.
        text: Prompt.
        input_tokens: UTF-8 bytes of the text and the begin-of-sequence token, see `requests`.
        max_tokens: Output tokens to generate.
        model: Model to query; None leaves it to the user's index.
    """

    prompt_id: str
    domain: str
    text: str
    input_tokens: int
    max_tokens: int
    model: str | None = None


def sample(lengths: Lengths, rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw token lengths: log-normal, redrawn outside the limits, rounded.

    The distribution approximates the input lengths of MLPerf's Llama 2 70B benchmark, which the paper's test set
    follows (Fig. 2); its parameters are assumptions, see `erlab.paper`. Drawing from the inverse of the truncated
    distribution equals redrawing and needs no loop.

    Returns:
        int64, shape (n,).
    """
    low, high = _mass_at_limits(lengths)
    z = ndtri(rng.uniform(low, high, n))
    tokens = np.rint(lengths.median * np.exp(lengths.sigma * z))
    return np.clip(tokens, lengths.minimum, lengths.maximum).astype(np.int64)


def _mass_at_limits(lengths: Lengths) -> np.ndarray:
    """Return the cumulative probability of the log-normal distribution at both limits."""
    if lengths.sigma == 0:
        return np.array([0.5, 0.5])
    return ndtr(np.log(np.array([lengths.minimum, lengths.maximum]) / lengths.median) / lengths.sigma)


def requests(prompts: "Dataset", workload: Workload, users: int, seed: int) -> list[list[Request]]:
    """Draw the requests of each user, `workload.turns_for(users)` per user.

    They depend only on the arguments, so every system gets the same requests under the same load. The held-back prompts
    are used in random order, repeatedly if there are more requests than prompts, which keeps the domains' shares. A
    text is cut, or extended with further held-back prompts of its domain, to the drawn number of tokens. Tokens are
    those of the laptop's byte-level tokenizer: one per UTF-8 byte, and one that begins the sequence; a character that
    the cut would split becomes full stops. Other tokenizers make fewer tokens of the same text.

    Args:
        prompts: Columns as of `datasets.load`.
        workload: Token lengths and requests per user.
        users: Concurrent users, at least 1.
        seed: Random seed, at least 0.

    Raises:
        ErlabError: No prompt is held back.
    """
    require(seed >= 0, "seed", "requests", "be at least 0", seed)
    turns = workload.turns_for(users)
    count = users * turns
    texts, rng = HeldBack(prompts), np.random.default_rng([seed, users])
    order = texts.order(rng, count)
    inputs = sample(workload.input_tokens, rng, count).tolist()
    outputs = sample(workload.output_tokens, rng, count).tolist()
    drawn = [texts.request(i, tokens, max_tokens) for i, tokens, max_tokens in zip(order, inputs, outputs)]
    return [drawn[u * turns : (u + 1) * turns] for u in range(users)]


class HeldBack:
    """The held-back prompts, cut or extended to token lengths as `requests` describes.

    Args:
        prompts: Columns as of `datasets.load`.

    Raises:
        ErlabError: No prompt is held back.
    """

    def __init__(self, prompts: "Dataset"):
        held_back = [i for i, split in enumerate(prompts["split"]) if split == "held_back"]
        if not held_back:
            raise ErlabError(f"None of the {len(prompts)} prompts is held back for the users; more prompts are needed.")
        chosen = prompts.select(held_back).to_dict()
        self._ids, self._domains = chosen["id"], chosen["domain"]
        self._texts = [text.encode() for text in chosen["text"]]
        self._following = _following(self._domains)

    def order(self, rng: np.random.Generator, count: int) -> list[int]:
        """Draw `count` prompts, all once before any a second time; return their indices."""
        n = len(self._ids)
        return np.concatenate([rng.permutation(n) for _ in range(-(-count // n))])[:count].tolist()

    def request(self, i: int, tokens: int, max_tokens: int) -> Request:
        """Make a request with prompt `i`, fitted to `tokens`."""
        text = self.fit(i, max(1, tokens - 1))
        return Request(self._ids[i], self._domains[i], text, len(text.encode()) + 1, max_tokens)

    def next_of_domain(self, i: int) -> int:
        """Return the index of the prompt after `i` of the same domain, cyclically."""
        return self._following[i]

    def fit(self, i: int, size: int) -> str:
        """Return prompt `i`, extended with its successors and cut to `size` bytes of UTF-8."""
        parts, missing = [self._texts[i]], size - len(self._texts[i])
        while missing > 0:
            i = self._following[i]
            parts.append(self._texts[i])
            missing -= len(self._texts[i]) + 2
        cut = b"\n\n".join(parts)[:size].decode(errors="ignore")
        return cut + "." * (size - len(cut.encode()))


def _following(domains: list[str]) -> list[int]:
    """Return for each prompt the index of the next one of its domain, cyclically."""
    first, last, following = {}, {}, [0] * len(domains)
    for i, domain in enumerate(domains):
        first.setdefault(domain, i)
        following[last.get(domain, i)] = i
        last[domain] = i
    for domain, i in last.items():
        following[i] = first[domain]
    return following


def stored(folders: Folders) -> "Dataset":
    """Return the prompts that notebook 02 wrote; raise ErlabError if it has not run."""
    import pandas as pd  # slow to import as well
    from datasets import Dataset

    if not folders.prompts.is_file():
        raise ErlabError(f"No {folders.prompts}: run notebook 02_train_router first (erlab reproduce --only 02).")
    return Dataset.from_pandas(pd.read_parquet(folders.prompts), preserve_index=False)
