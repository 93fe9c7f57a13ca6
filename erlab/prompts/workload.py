"""What users send: prompts cut or extended to the workload's token lengths, the same for every system under one load.

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

if TYPE_CHECKING:  # slow to import, and lengths alone do not need it
    from datasets import Dataset


@dataclass(frozen=True)
class Request:
    """One prompt of one user. `input_tokens` counts bytes and the begin-of-sequence token (see `requests`).

    `model`: who is asked; None where that depends on the user.
    """

    prompt_id: str
    domain: str
    text: str
    input_tokens: int
    max_tokens: int
    model: str | None = None


def sample(lengths: Lengths, rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw `n` token lengths, int64: log-normal, redrawn outside the limits, rounded.

    The shape stands for the input lengths of MLPerf's Llama 2 70B benchmark, which the paper's test set follows
    (Fig. 2); its parameters are assumptions, see `erlab.paper`. Drawing from the inverse of the truncated distribution
    is the same as redrawing and needs no loop.
    """
    low, high = _mass_at_limits(lengths)
    z = ndtri(rng.uniform(low, high, n))
    tokens = np.rint(lengths.median * np.exp(lengths.sigma * z))
    return np.clip(tokens, lengths.minimum, lengths.maximum).astype(np.int64)


def density(lengths: Lengths, x: np.ndarray) -> np.ndarray:
    """The probability density, per token, that `sample` draws from before it rounds; 0 outside the limits."""
    require(lengths.sigma > 0, "sigma", "density", "be above 0", lengths.sigma)
    x = np.asarray(x, float)
    inside = (x >= lengths.minimum) & (x <= lengths.maximum)
    x = np.where(inside, x, lengths.median)
    z = np.log(x / lengths.median) / lengths.sigma
    low, high = _mass_at_limits(lengths)
    return np.where(inside, np.exp(-(z**2) / 2) / (x * lengths.sigma * np.sqrt(2 * np.pi) * (high - low)), 0.0)


def _mass_at_limits(lengths: Lengths) -> np.ndarray:
    """The log-normal's cumulated probability at both limits."""
    if lengths.sigma == 0:
        return np.array([0.5, 0.5])
    return ndtr(np.log(np.array([lengths.minimum, lengths.maximum]) / lengths.median) / lengths.sigma)


def requests(prompts: "Dataset", workload: Workload, users: int, seed: int) -> list[list[Request]]:
    """The requests of each of `users` users, `workload.turns_for(users)` of them each.

    They depend on the arguments alone, so every system is asked the same under the same load. The held-back prompts
    of `prompts` (see `erlab.prompts.datasets.load`) are gone through in a random order, again and again where there are more
    requests than prompts, which keeps the domains' shares. A text is cut, or extended with further held-back
    prompts of its own domain, to the number of tokens drawn. Tokens are those of the laptop's byte-level tokenizer:
    one a UTF-8 byte, and one that begins the sequence; a character that the cut would split becomes full stops. Other
    tokenizers find fewer tokens in the same text.

    Raises ErlabError where no prompt is held back.
    """
    require(seed >= 0, "seed", "requests", "be at least 0", seed)
    turns = workload.turns_for(users)
    count = users * turns
    held_back = [i for i, split in enumerate(prompts["split"]) if split == "held_back"]
    if not held_back:
        raise ErlabError(f"None of the {len(prompts)} prompts is held back for the users; more prompts are needed.")
    chosen = prompts.select(held_back).to_dict()
    ids, domains, texts = chosen["id"], chosen["domain"], [text.encode() for text in chosen["text"]]

    rng = np.random.default_rng([seed, users])
    rounds = -(-count // len(ids))
    order = np.concatenate([rng.permutation(len(ids)) for _ in range(rounds)])[:count].tolist()
    inputs = sample(workload.input_tokens, rng, count).tolist()
    outputs = sample(workload.output_tokens, rng, count).tolist()
    following = _following(domains)
    made = []
    for i, tokens, max_tokens in zip(order, inputs, outputs):
        text = _fit(texts, following, i, max(1, tokens - 1))
        made.append(Request(ids[i], domains[i], text, len(text.encode()) + 1, max_tokens))
    return [made[u * turns : (u + 1) * turns] for u in range(users)]


def _following(domains: list[str]) -> list[int]:
    """For each prompt the index of its domain's next one, round and round."""
    first, last, following = {}, {}, [0] * len(domains)
    for i, domain in enumerate(domains):
        first.setdefault(domain, i)
        following[last.get(domain, i)] = i
        last[domain] = i
    for domain, i in last.items():
        following[i] = first[domain]
    return following


def _fit(texts: list[bytes], following: list[int], i: int, size: int) -> str:
    """Prompt `i` and as many of those that follow it as make `size` bytes of UTF-8, cut there."""
    whole = texts[i]
    while len(whole) < size:
        i = following[i]
        whole += b"\n\n" + texts[i]
    kept = whole[:size].decode(errors="ignore")
    return kept + "." * (size - len(kept.encode()))


def stored(folders: Folders) -> "Dataset":
    """The prompts that notebook 02 kept for the steps after it; ErlabError where it has not run."""
    import pandas as pd  # slow to import as well
    from datasets import Dataset

    if not folders.prompts.is_file():
        raise ErlabError(f"No {folders.prompts}: run notebook 02_train_router first (erlab reproduce --only 02).")
    return Dataset.from_pandas(pd.read_parquet(folders.prompts), preserve_index=False)
