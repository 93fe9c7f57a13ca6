"""In-flight batching without eviction: FIFO queue, bounded batch and bounded KV cache.

Engines that compute tokens and engines that emulate their timing share it.

>>> batch = Batch(max_batch_size=1, max_sequence_tokens=64)
>>> for name in "ab":
...     batch.queue(BatchedSequence(name, prompt_tokens=5, max_tokens=2))
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
class BatchedSequence:
    """A request in an engine."""

    id: Hashable
    prompt_tokens: int
    max_tokens: int
    tokens: int = 0

    @property
    def reserved(self) -> int:
        return self.prompt_tokens + self.max_tokens


class Batch:
    """Waiting and running sequences of an engine. Not thread-safe.

    Args:
        max_batch_size: Most running sequences.
        max_sequence_tokens: Most tokens of a prompt and its output together.
        kv_tokens: Tokens of the KV cache, of which running sequences reserve prompt + max_tokens, so that none is
            evicted; None for enough for a full batch.
        max_num_tokens: Most tokens of a step that admits more than one prompt.
    """

    late_seconds = 0.0  # sum of the time by which emulated steps ended late

    def __init__(
        self, max_batch_size: int, max_sequence_tokens: int, kv_tokens: int | None = None, max_num_tokens: int = 2048
    ):
        self.max_batch_size, self.max_sequence_tokens = max_batch_size, max_sequence_tokens
        self.kv_tokens = max_batch_size * max_sequence_tokens if kv_tokens is None else kv_tokens
        self.max_num_tokens = max_num_tokens
        for name in ("max_batch_size", "max_sequence_tokens", "max_num_tokens"):
            require(getattr(self, name) >= 1, name, "Engine", "be at least 1", getattr(self, name))
        allowed = f"hold one request of {max_sequence_tokens} tokens"
        require(self.kv_tokens >= max_sequence_tokens, "kv_tokens", "Engine", allowed, kv_tokens)
        self._waiting: deque[BatchedSequence] = deque()
        self._running: list[BatchedSequence] = []
        self.kv_tokens_in_use = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def queue(self, sequence: BatchedSequence) -> None:
        """Queue a sequence; ErlabError where it exceeds the limits. Ids of requests in flight must differ."""
        prompt, answer = sequence.prompt_tokens, sequence.max_tokens
        require(prompt >= 1, "prompt_ids", "a request", "have at least 1 token", prompt)
        require(answer >= 1, "max_tokens", "a request", "be at least 1", answer)
        allowed = f"keep prompt + answer within {self.max_sequence_tokens} tokens"
        require(sequence.reserved <= self.max_sequence_tokens, "max_tokens", "a request", allowed, answer)
        self._waiting.append(sequence)

    def cancel(self, request_id: Hashable) -> None:
        """Remove a request, waiting or running; ignore unknown and finished ids."""
        for sequence in [s for s in self._running if s.id == request_id]:
            self.leave(sequence)
        self._waiting = deque(s for s in self._waiting if s.id != request_id)

    def admit(self) -> int:
        """Move sequences from the head of the queue into the batch while they fit; return their prompt tokens.

        A sequence that does not fit blocks those behind it. Admitted sequences follow the running ones.
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
        """Add a token to every running sequence and remove finished sequences from the batch.

        Returns:
            For each running sequence: request id, index of the token from 0, whether it is the last.
        """
        emitted = [(s, s.tokens, s.tokens + 1 == s.max_tokens) for s in self._running]
        for sequence, _, last in emitted:
            sequence.tokens += 1
            if last:
                self.leave(sequence)
        return [(sequence.id, number, last) for sequence, number, last in emitted]

    def enter(self, sequence: BatchedSequence) -> None:
        self.kv_tokens_in_use += sequence.reserved
        self._running.append(sequence)

    def leave(self, sequence: BatchedSequence) -> None:
        self._running.remove(sequence)
        self.kv_tokens_in_use -= sequence.reserved
