"""Prefix cache of a simulated engine: prompt blocks that later requests with the same prefix need not prefill.

Blocks of running requests are shared; blocks that no running request uses stay until their memory is needed or the
cache is full, and the least recently used goes first, of one prompt the last block. As in vLLM, blocks are known from
the moment their prefill is scheduled. Blocks of answers are not kept.

>>> cache = PrefixCache(most=1)
>>> cache.acquire((1, 2))
>>> cache.release((1, 2))
2
>>> cache.shrink(room=8)
>>> cache.hits((1, 2, 3)), hit_rate([(1, 2), (1, 2, 3), (4,)])
(1, 0.33333333333333337)
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from erlab.errors import ErlabError


class PrefixCache:
    """Ids of the cached blocks; each id stands for itself and all blocks before it.

    Args:
        most: Largest number of unused blocks that are kept; None for as many as there is memory.
    """

    def __init__(self, most: int | None = None):
        self._most = most
        self._used: dict[int, int] = {}  # number of running requests by id
        self._unused: OrderedDict[int, None] = OrderedDict()  # least recently used first

    def hits(self, ids: Sequence[int]) -> int:
        """Return the number of leading blocks that are cached."""
        for i, block in enumerate(ids):
            if block not in self._used and block not in self._unused:
                return i
        return len(ids)

    def used(self, ids: Iterable[int]) -> int:
        """Return the number of blocks that running requests use."""
        return sum(block in self._used for block in ids)

    def acquire(self, ids: Iterable[int]) -> None:
        """Note that a request uses these blocks; those that are not cached are new."""
        for block in ids:
            self._unused.pop(block, None)
            self._used[block] = self._used.get(block, 0) + 1

    def release(self, ids: Sequence[int]) -> int:
        """Note the end of a request; return the number of blocks that no other request uses."""
        before = len(self._unused)
        for block in reversed(ids):
            self._used[block] -= 1
            if not self._used[block]:
                del self._used[block]
                self._unused[block] = None
        return len(self._unused) - before

    def shrink(self, room: int) -> None:
        """Drop unused blocks until they fit into `room` blocks."""
        limit = room if self._most is None else min(room, self._most)
        while len(self._unused) > limit:
            self._unused.popitem(last=False)


def hit_rate(prompts: Iterable[Sequence[int]]) -> float:
    """Return the share of blocks that an infinite cache has: all but the first of each id."""
    prompts = [ids for ids in prompts]
    total = sum(map(len, prompts))
    return 1 - len({block for ids in prompts for block in ids}) / total if total else 0.0


def blocks(prefix: Sequence[Sequence[int]], prompt: Sequence[int], size: int, block: int) -> tuple[list, int]:
    """Return the blocks of each prompt that a later request can use, and their tokens.

    Only whole blocks before the last token count, since a request prefills at least that one.

    Args:
        prefix: Ids of each prompt's blocks.
        prompt: Prompt tokens.
        size: Tokens per id.
        block: Tokens per block of the KV cache.

    Raises:
        ErlabError: Neither size divides the other.
    """
    if size % block and block % size:
        raise ErlabError(f"Prefix ids must be of a divisor or multiple of the KV block, {block} tokens. Got {size}.")
    unit = max(size, block)
    step = unit // size  # the id at the end of a KV block identifies it
    whole = (ids[step - 1 : (tokens - 1) // size : step] for ids, tokens in zip(prefix, prompt))
    return [tuple(dict.fromkeys(ids)) for ids in whole], unit


def summary(blocks: Sequence[Sequence[int]], unit: int, hits: Sequence[int], prompt: Sequence[int]) -> dict:
    """Return a run's hit rate and that of infinite caches shared by all engines, as shares of the prompt tokens."""
    total, counted = sum(map(int, prompt)), [hit for hit in hits if hit >= 0]
    most = hit_rate(blocks) * sum(map(len, blocks)) * unit
    return {"block_tokens": unit, "hit_rate": sum(counted) / total, "infinite_hit_rate": most / total}
