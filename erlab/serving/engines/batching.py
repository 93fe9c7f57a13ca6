"""Who is in an engine's batch: a first-come queue, a bounded batch and a bounded key-value cache.

The rules of in-flight batching without eviction, whatever computes the tokens or only keeps their time.

>>> batch = Batch(max_batch_size=1, max_sequence_tokens=64)
>>> for name in "ab":
...     batch.queue(Sequence(name, prompt_tokens=5, max_tokens=2))
>>> batch.admit(), batch.tokens(), batch.tokens()
(5, [('a', 0, False)], [('a', 1, True)])
>>> batch.running, batch.waiting, batch.kv_tokens_in_use
(0, 1, 0)
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from erlab.spec import require


@dataclass(eq=False)
class Sequence:
    """A request in the engine: the tokens of its prompt, at most how many of its answer, and how many it has."""

    id: Hashable
    prompt_tokens: int
    max_tokens: int
    tokens: int = 0

    @property
    def reserved(self) -> int:
        return self.prompt_tokens + self.max_tokens


class Batch:
    """`max_batch_size` sequences run at most; a prompt and its answer have at most `max_sequence_tokens` together;
    running sequences reserve prompt + max_tokens of `kv_tokens` (None: enough for a full batch), so that none is ever
    evicted; a step takes in one prompt, and more while all its tokens stay within `max_num_tokens`. Not thread-safe.
    """

    late_seconds = 0.0  # how much later than due steps have ended, summed, where they only keep time

    def __init__(
        self, max_batch_size: int, max_sequence_tokens: int, kv_tokens: int | None = None, max_num_tokens: int = 2048
    ):
        whole = max_batch_size * max_sequence_tokens
        self.max_batch_size, self.max_sequence_tokens = max_batch_size, max_sequence_tokens
        self.kv_tokens = whole if kv_tokens is None else kv_tokens
        self.max_num_tokens = max_num_tokens
        for name in ("max_batch_size", "max_sequence_tokens", "max_num_tokens"):
            require(getattr(self, name) >= 1, name, "Engine", "be at least 1", getattr(self, name))
        allowed = f"hold one request of {max_sequence_tokens} tokens"
        require(self.kv_tokens >= max_sequence_tokens, "kv_tokens", "Engine", allowed, kv_tokens)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.kv_tokens_in_use = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def queue(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises ErlabError where it can never run; ids of requests in flight must differ."""
        prompt, answer = sequence.prompt_tokens, sequence.max_tokens
        require(prompt >= 1, "prompt_ids", "a request", "have at least 1 token", prompt)
        require(answer >= 1, "max_tokens", "a request", "be at least 1", answer)
        allowed = f"keep prompt + answer within {self.max_sequence_tokens} tokens"
        require(sequence.reserved <= self.max_sequence_tokens, "max_tokens", "a request", allowed, answer)
        self._waiting.append(sequence)

    def cancel(self, request_id: Hashable) -> None:
        """Drop a request, waiting or running; unknown or finished ids are ignored."""
        for sequence in [s for s in self._running if s.id == request_id]:
            self.leave(sequence)
        self._waiting = deque(s for s in self._waiting if s.id != request_id)

    def admit(self) -> int:
        """Move into the batch what fits from the queue's head and return its prompt tokens.

        A sequence that does not fit holds back all behind it; those that enter stand behind those that run.
        """
        prompt_tokens, before = 0, self.running
        while self._waiting and self.running < self.max_batch_size:
            sequence = self._waiting[0]
            if self.kv_tokens_in_use + sequence.reserved > self.kv_tokens:
                break
            if prompt_tokens and before + prompt_tokens + sequence.prompt_tokens > self.max_num_tokens:
                break
            self.enter(self._waiting.popleft())
            prompt_tokens += sequence.prompt_tokens
        return prompt_tokens

    def tokens(self) -> list[tuple[Hashable, int, bool]]:
        """Give every running sequence a token: (request id, which of its tokens from 0, whether its last).

        Those that got their last one have left.
        """
        given = [(s, s.tokens, s.tokens + 1 == s.max_tokens) for s in self._running]
        for sequence, _, last in given:
            sequence.tokens += 1
            if last:
                self.leave(sequence)
        return [(sequence.id, number, last) for sequence, number, last in given]

    def enter(self, sequence: Sequence) -> None:
        self.kv_tokens_in_use += sequence.reserved
        self._running.append(sequence)

    def leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self.kv_tokens_in_use -= sequence.reserved
