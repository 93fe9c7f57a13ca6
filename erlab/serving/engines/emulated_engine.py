"""An engine that keeps time like an H100 expert and computes nothing: in-flight batching by the clock.

A step lasts as long as a table says that the real engine's would, times a stated scale, and then every running request
has one more token, of which nothing is known but its number. The rules of who runs when are `erlab.serving.engines.batching`'s.

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
from erlab.serving.engines import batching
from erlab.serving.engines.batching import Batch
from erlab.spec import require


@dataclass(frozen=True)
class StepTable:
    """What an engine's steps take, in ms, between whose points values are interpolated linearly.

    `decode_ms[i][j]`: a step that gives `batches[i]` requests of `contexts[j]` tokens on average one token each.
    `prefill_ms[i][j]`: what taking in `prompts[j]` prompt tokens adds to a step that decodes `decoding[i]` requests.
    Outside the points the nearest one counts.
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
        """ms of a step in which `batch` requests of `context` tokens on average get a token each."""
        return _between(self.batches, self.contexts, self.decode_ms, batch, context)

    def prefill(self, batch: int, tokens: int) -> float:
        """ms that taking in `tokens` prompt tokens adds to a step that decodes `batch` requests."""
        return _between(self.decoding, self.prompts, self.prefill_ms, batch, tokens)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StepTable":
        """The table that `to_json` wrote; raises ErlabError where the text is none."""
        try:
            parts = json.loads(text)
            nested = {"decode_ms", "prefill_ms"}
            return cls(**{k: tuple(map(tuple, v)) if k in nested else tuple(v) for k, v in parts.items()})
        except (ValueError, TypeError, AttributeError) as e:
            raise ErlabError(f"The step times must be the JSON of a StepTable. Got {text[:40]!r} ({e}).") from None


def _between(rows: Sequence, columns: Sequence, values: Sequence[Sequence[float]], row: float, column: float) -> float:
    """Linear interpolation in both directions; a step asks twice, and numpy would take ten times as long."""
    i, u = _place(rows, row)
    j, v = _place(columns, column)
    upper = values[min(i + 1, len(rows) - 1)]
    k = min(j + 1, len(columns) - 1)
    return (1 - u) * ((1 - v) * values[i][j] + v * values[i][k]) + u * ((1 - v) * upper[j] + v * upper[k])


def _place(points: Sequence, at: float) -> tuple[int, float]:
    """The point at or before `at`, and how far it is to the next, from 0 to 1."""
    i = max(bisect_right(points, at) - 1, 0)
    if i == len(points) - 1 or at <= points[0]:
        return i, 0.0
    return i, (at - points[i]) / (points[i + 1] - points[i])


class Engine(Batch):
    """A `Batch` whose steps last as long as `table` says, times `time_scale`; sleeping is all that it does.

    `late_seconds` sums by how much steps ended late, because the machine had no time for this process. Lateness below
    a step is caught up, so that the pace stays right; more is lost, as it is for an engine that was stopped.
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
        self._end = 0.0  # of the last step, as it should have been
        self._context = 0  # tokens of the running requests, prompts included

    def submit(self, request_id: Hashable, prompt: Sequence, max_tokens: int) -> None:
        """Queue a request; only the prompt's length matters. Raises ErlabError where it can never run."""
        self.queue(batching.Sequence(request_id, len(prompt), max_tokens))

    def step(self) -> list[tuple[Hashable, int, bool]]:
        """Admit what fits, sleep until the step is over: (request id, number of its token from 0, whether its last)."""
        decoding, context = self.running, self._context
        prompt_tokens = self.admit()
        if not self.running:
            return []
        took = self._table.prefill(decoding, prompt_tokens) if prompt_tokens else 0.0
        if decoding:
            took += self._table.decode(decoding, context / decoding)
        took *= self._scale / 1e3
        now = self._clock()
        goes_on = decoding and now - self._end < took
        self._end = (self._end if goes_on else now) + took
        if (left := self._end - now) > 0:
            self._sleep(left)
        self.late_seconds += max(0.0, self._clock() - self._end)
        self._context += self.running  # before those that end leave with all that is theirs
        return self.tokens()

    def enter(self, sequence: batching.Sequence) -> None:
        super().enter(sequence)
        self._context += sequence.prompt_tokens

    def leave(self, sequence: batching.Sequence) -> None:
        super().leave(sequence)
        self._context -= sequence.prompt_tokens + sequence.tokens
