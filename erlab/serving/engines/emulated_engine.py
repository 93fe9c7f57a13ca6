"""Engine that emulates the timing of another one: in-flight batching whose steps only take time.

A step lasts as long as the tabulated step of the real engine, times a scale; then every running request has one more
token. `batching` decides which requests run.

>>> table = StepTable((1, 8), (0, 2048), ((5.0, 6.0), (6.0, 9.0)), (0, 8), (1, 1024), ((7.0, 30.0), (2.0, 26.0)))
>>> table.decode(8, 1024), table.prefill(0, 1)
(7.5, 7.0)
>>> StepTable.from_json(table.to_json()) == table
True
"""

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

from erlab.errors import ErlabError
from erlab.serving.engines.batching import Batch, BatchedSequence
from erlab.spec import require


@dataclass(frozen=True)
class StepTable:
    """Step times of an engine (ms), interpolated linearly; outside the grid the nearest point counts.

    Attributes:
        batches: Decoding requests, ascending: rows of `decode_ms`.
        contexts: Mean tokens per decoding request, ascending: columns of `decode_ms`.
        decoding: Decoding requests, ascending: rows of `prefill_ms`.
        prompts: Prompt tokens, ascending: columns of `prefill_ms`.
    """

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    decode_ms: tuple[tuple[float, ...], ...]
    decoding: tuple[int, ...]
    prompts: tuple[int, ...]
    prefill_ms: tuple[tuple[float, ...], ...]

    def __post_init__(self):
        for name in ("batches", "contexts", "decoding", "prompts"):
            points = getattr(self, name)
            rising = len(points) > 0 and list(points) == sorted(set(points))
            require(rising, name, "StepTable", "be rising numbers", points)
        for name, rows, columns in (
            ("decode_ms", self.batches, self.contexts),
            ("prefill_ms", self.decoding, self.prompts),
        ):
            table = getattr(self, name)
            fits = len(table) == len(rows) and all(len(row) == len(columns) for row in table)
            require(fits, name, "StepTable", f"have {len(rows)} rows of {len(columns)}", [len(row) for row in table])
            least = min(map(min, table))
            require(least >= 0, name, "StepTable", "be at least 0 ms", least)

    def decode(self, batch: int, context: float) -> float:
        """Return the time (ms) of a step that decodes `batch` requests of `context` tokens on average."""
        return _between(self.batches, self.contexts, self.decode_ms, batch, context)

    def prefill(self, batch: int, tokens: int) -> float:
        """Return the time (ms) that `tokens` prompt tokens add to a step that decodes `batch` requests."""
        return _between(self.decoding, self.prompts, self.prefill_ms, batch, tokens)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StepTable":
        """Return the table that `to_json` wrote; ErlabError for any other text."""
        try:
            parts = json.loads(text)
            nested = {"decode_ms", "prefill_ms"}
            return cls(**{k: tuple(map(tuple, v)) if k in nested else tuple(v) for k, v in parts.items()})
        except (ValueError, TypeError, AttributeError) as e:
            raise ErlabError(f"The step times must be the JSON of a StepTable. Got {text[:40]!r} ({e}).") from None


def _between(rows: Sequence, columns: Sequence, values: Sequence[Sequence[float]], row: float, column: float) -> float:
    """Interpolate linearly in both directions; numpy would be slower for single values."""
    i, u = _place(rows, row)
    j, v = _place(columns, column)
    upper = values[min(i + 1, len(rows) - 1)]
    k = min(j + 1, len(columns) - 1)
    return (1 - u) * ((1 - v) * values[i][j] + v * values[i][k]) + u * ((1 - v) * upper[j] + v * upper[k])


def _place(points: Sequence, at: float) -> tuple[int, float]:
    """Return the index of the point at or before `at`, and the position between it and the next, from 0 to 1."""
    i = max(bisect_right(points, at) - 1, 0)
    if i == len(points) - 1 or at <= points[0]:
        return i, 0.0
    return i, (at - points[i]) / (points[i + 1] - points[i])


class EmulatedEngine(Batch):
    """Engine whose steps sleep for the times of a table.

    `late_seconds` is the sum of the time by which steps ended late, because the process did not get a core. Lateness
    below one step is caught up by the next; more is lost.
    """

    def __init__(
        self,
        table: StepTable,
        time_scale: float,
        max_batch_size: int,
        max_sequence_tokens: int,
        kv_tokens: int | None = None,
        max_num_tokens: int = 8192,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        super().__init__(max_batch_size, max_sequence_tokens, kv_tokens, max_num_tokens)
        require(time_scale > 0, "time_scale", "Engine", "be above 0", time_scale)
        self._table, self._scale = table, time_scale
        self._clock, self._sleep = clock, sleep
        self._end = 0.0  # due end of the last step
        self._context = 0  # tokens of the running requests, including prompts

    def submit(self, request_id: Hashable, prompt: Sequence, max_tokens: int) -> None:
        """Queue a request, of which only the prompt's length matters; ErlabError where it exceeds the limits."""
        self.queue(BatchedSequence(request_id, len(prompt), max_tokens))

    def step(self) -> list[tuple[Hashable, int, bool]]:
        """Admit requests and sleep until the step ends: (request id, index of the token, whether it is the last)."""
        decoding, context = self.running, self._context
        prompt_tokens = self.admit()
        if not self.running:
            return []
        step_s = self._table.prefill(decoding, prompt_tokens) if prompt_tokens else 0.0
        if decoding:
            step_s += self._table.decode(decoding, context / decoding)
        step_s *= self._scale / 1e3
        now = self._clock()
        continues = decoding and now - self._end < step_s
        self._end = (self._end if continues else now) + step_s
        if (left := self._end - now) > 0:
            self._sleep(left)
        self.late_seconds += max(0.0, self._clock() - self._end)
        self._context += self.running  # before finished requests are removed with all their tokens
        return self.tokens()

    def enter(self, sequence: BatchedSequence) -> None:
        super().enter(sequence)
        self._context += sequence.prompt_tokens

    def leave(self, sequence: BatchedSequence) -> None:
        super().leave(sequence)
        self._context -= sequence.prompt_tokens + sequence.tokens
