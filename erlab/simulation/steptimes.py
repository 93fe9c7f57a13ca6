"""Iteration times of one engine, in integer nanoseconds.

A decode iteration of `b` sequences whose KV caches hold `total` tokens takes ``decode(b, total // b)``. While no
request arrives or finishes, each iteration adds one token to each sequence, so the mean context grows by exactly one.
The time of any number of iterations is therefore the difference of two entries of `row(b)`, a cumulative sum. Integers
make that difference equal, to the nanosecond, to the sum of the single iterations.

>>> from erlab.paper import SYSTEMS
>>> from erlab.simulation import components, hardware
>>> expert = SYSTEMS["v2"]["E"].expert
>>> times = StepTimes(components.roofline(expert, hardware.gpu("H100")), expert.max_sequence_tokens)
>>> row = times.row(8)
>>> row[103] - row[100] == sum(times.decode(8, c) for c in (100, 101, 102))
True
"""

from array import array
from collections.abc import Sequence

import numpy as np

from erlab.simulation.components import BATCHES, CHUNKS, CONTEXTS, LENGTHS, PREFIXES, PROMPTS, TOKENS, Components

NS = 1_000_000_000
MAX_TOKENS, MAX_BATCH = int(TOKENS[-1]), int(BATCHES[-1])  # limits of one iteration


class StepTimes:
    """Iteration times of one engine.

    Rows are computed on first use; all engines of the same kind share an instance.

    Args:
        parts: Tabulated times of the parts of an iteration.
        longest: Largest context, tokens.
        slower: Factors on the time of decoding and on the time that prefilling adds (`era.factors`).
        prefill_overhead: Seconds added to each iteration that prefills (host launches without CUDA graphs).
    """

    def __init__(
        self,
        parts: Components,
        longest: int,
        slower: tuple[float, float] = (1.0, 1.0),
        prefill_overhead: float = 0.0,
    ):
        self.longest = longest
        self._parts = parts
        self._decode_factor, self._prefill_factor = slower
        self._overhead = prefill_overhead * NS
        self._rows: dict[int, array] = {}
        self._attention: dict[int, list[float]] = {}
        self._prefix: dict[tuple[int, int], float] = {}
        self._body = (np.interp(np.arange(MAX_TOKENS + 1), TOKENS, parts.body) * NS).tolist()
        self._logits = (np.interp(np.arange(MAX_BATCH + 1), BATCHES, parts.logits) * NS).tolist()
        alone = map(float.__add__, self._body[1:], self._logits[1:])
        self._unattended = [0.0, *alone]  # time of decoding without attention, by batch size

    def row(self, batch: int) -> array:
        """Return the cumulative sum of decode times over contexts.

        ``row[c + k] - row[c]`` is the time (ns) of `k` decode iterations that start at mean context `c`.
        """
        row = self._rows.get(batch)
        if row is None:
            row = self._rows[batch] = self._make_row(batch)
        return row

    def _make_row(self, batch: int) -> array:
        high = min(int(np.searchsorted(BATCHES, batch)), len(BATCHES) - 1)
        low = max(high - 1, 0)
        share = 0.0 if high == low else (batch - BATCHES[low]) / (BATCHES[high] - BATCHES[low])
        attention = (1 - share) * self._parts.decode[low] + share * self._parts.decode[high]
        steps = np.interp(np.arange(self.longest + 1), CONTEXTS, attention) * NS
        steps += self._unattended[batch]
        steps *= self._decode_factor
        return array("q", np.r_[0, np.cumsum(np.rint(steps).astype(np.int64))].tobytes())

    def decode(self, batch: int, context: int) -> int:
        """Return the time (ns) of one decode iteration."""
        row = self.row(batch)
        return row[context + 1] - row[context]

    def mixed(
        self, batch: int, context: int, prompts: int, tokens: int, begun: Sequence[int] = (), finished: int = 0
    ) -> int:
        """Return the time (ns) of an iteration that decodes and prefills.

        Args:
            batch: Sequences that decode.
            context: Their mean context, tokens.
            prompts: Prompts that are prefilled.
            tokens: Prompt tokens that are prefilled, over all prompts.
            begun: Tokens that are cached already, of each prompt that has some.
            finished: Prompts that end in this iteration and get their first token.
        """
        rows = self._attention.get(prompts)
        if rows is None:
            rows = self._attention[prompts] = self._prefill_row(prompts)
        mean = tokens // prompts
        extra = self._body[batch + tokens] + self._logits[batch + finished] - self._unattended[batch] + rows[mean]
        for cached in begun:
            extra += self._cached(mean, cached)
        prefill = round(self._prefill_factor * extra + self._overhead)
        if not batch:
            return prefill
        row = self._rows.get(batch) or self.row(batch)
        return prefill + row[context + 1] - row[context]

    def _prefill_row(self, prompts: int) -> list[float]:
        """Return the attention time (ns) of `prompts` prompts by mean length."""
        counted = min(prompts, int(PROMPTS[-1]))
        surface = [np.interp(counted, PROMPTS, column) for column in self._parts.prefill.T]
        grid = np.interp(np.arange(MAX_TOKENS // prompts + 1), LENGTHS, surface)
        return (grid * (prompts / counted) * NS).tolist()

    def _cached(self, chunk: int, prefix: int) -> float:
        key = (chunk, prefix)
        if key not in self._prefix:
            columns = [np.interp(chunk, CHUNKS, column) for column in self._parts.prefix.T]
            self._prefix[key] = max(0.0, float(np.interp(prefix, PREFIXES, columns))) * NS
        return self._prefix[key]
