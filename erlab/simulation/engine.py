"""In-flight batching of one engine, from event to event.

Each iteration decodes one token for every running sequence and, within a token budget, prefills the prompts at the
head of the queue (first come, first served). As in TensorRT-LLM: `max_num_tokens` tokens and `max_batch_size`
sequences an iteration, chunked context or whole prompts, a paged KV cache in blocks, and two policies for it:

- ``guaranteed_no_evict``: a request starts when the pool holds all the tokens it will ever need;
- ``max_utilization``: it starts when the pool holds its prompt and the others' next tokens; when blocks run out the
  one started last is evicted, returns to the head of the queue and computes prompt and answer so far again.

With `schedules_ahead` (vLLM since 0.14, TensorRT-LLM's overlap scheduler) the host chooses the next batch while the GPU
works on this one, so a request that arrives during an iteration sits out the next one as well. The first iteration
after idling has none before it: what arrives meanwhile joins the second.

Nothing changes between two events (a sequence ends, a prompt arrives, blocks run out) but contexts, which grow by one
a step: those iterations are one subtraction in `StepTimes.row`, never a loop. An engine knows no users and no clock
of its own; `erlab.simulation.system` moves it along.
"""

from array import array
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from operator import add

from erlab.simulation.steptimes import MAX_BATCH, MAX_TOKENS, StepTimes
from erlab.spec import require

POLICIES = ("guaranteed_no_evict", "max_utilization")


@dataclass(frozen=True)
class Batching:
    """How the engine forms its batches. Defaults: TensorRT-LLM's, blocks of 64 tokens."""

    max_num_tokens: int = 8192
    chunked_context: bool = False
    policy: str = "guaranteed_no_evict"
    block_tokens: int = 64
    schedules_ahead: bool = False

    def __post_init__(self):
        allowed = f"be 1 to {MAX_TOKENS}, what step times are known for"
        require(1 <= self.max_num_tokens <= MAX_TOKENS, "max_num_tokens", "Batching", allowed, self.max_num_tokens)
        require(self.block_tokens >= 1, "block_tokens", "Batching", "be at least 1", self.block_tokens)
        require(self.policy in POLICIES, "policy", "Batching", f"be one of {', '.join(POLICIES)}", self.policy)


@dataclass
class Requests:
    """All requests of a run as columns: tokens in and out (lists that eviction rewrites), and what happened, in ns;
    -1 until it does. `widest` is the longest prompt, `longest` the most tokens of any request."""

    prompt: list[int]
    output: list[int]
    first: array
    last: array
    widest: int
    longest: int

    @classmethod
    def of(cls, prompt: list[int], output: list[int]) -> "Requests":
        unset = array("q", [-1]) * len(prompt)
        return cls(list(prompt), list(output), unset, unset[:], max(prompt), max(map(add, prompt, output)))


class Engine:
    """One engine: `arrive` puts a request in its queue, `start` begins an iteration (or a stretch of equal ones) and
    says when it ends, `finish` applies it and names the requests that got their last token."""

    def __init__(self, times: StepTimes, requests: Requests, batching: Batching, max_batch_size: int, pool_tokens: int):
        longest = requests.longest
        blocks = pool_tokens // batching.block_tokens
        allowed = f"be 1 to {MAX_BATCH}, what step times are known for"
        require(1 <= max_batch_size <= MAX_BATCH, "max_batch_size", "Engine", allowed, max_batch_size)
        limit = f"be at most {times.longest}, the longest context of the step times"
        require(longest <= times.longest, "prompt + output", "Engine", limit, longest)
        limit = f"hold the longest request of {longest} tokens in blocks of {batching.block_tokens}"
        require(blocks * batching.block_tokens >= longest, "pool_tokens", "Engine", limit, pool_tokens)
        if batching.chunked_context:
            allowed = f"be above max_batch_size = {max_batch_size}, so that a prompt can proceed beside a full batch"
            roomy = batching.max_num_tokens > max_batch_size
            require(roomy, "max_num_tokens", "Batching", allowed, batching.max_num_tokens)
        else:
            widest, what = requests.widest, "the longest prompt"
            if batching.policy == "max_utilization":
                widest, what = longest - 1, "the longest prompt and the answer so far, which an evicted request reads"
            allowed = f"be at least {widest}, {what}, without chunked context"
            require(batching.max_num_tokens >= widest, "max_num_tokens", "Batching", allowed, batching.max_num_tokens)
        self.queue: deque[int] = deque()
        self._coming: deque[tuple[int, int]] = deque()  # where batches are chosen ahead: when, request; not yet in queue
        self.running = 0  # sequences that decode
        self.context = 0  # tokens their KV caches hold
        self.free = self.blocks = blocks
        self.end: int | None = None  # when the current stretch ends; None between two
        self.version = 0  # of the stretch, so that a shortened one's old end can be told
        self.least_free = blocks
        self._times, self._requests = times, requests
        self._budget, self._chunked = batching.max_num_tokens, batching.chunked_context
        self._evicts = batching.policy == "max_utilization"
        self._block, self._max_batch = batching.block_tokens, max_batch_size
        self._ahead, self._woken = batching.schedules_ahead, False  # whether the last iteration was the first after idling
        self._iteration = 0  # how many have run
        self._ends: list[tuple[int, int]] = []  # heap: iteration after which a sequence ends, request
        self._active: dict[int, int] = {}  # request: that iteration; in the order they started (kept to evict the last)
        self._grows = [0] * batching.block_tokens  # sequences that need a block when iteration % block is this
        self._partial: tuple[int, int] | None = None  # a request whose prompt is cached in part, and how much
        self._prefilled: list[int] = []  # requests whose prompt ends with this iteration
        self._begun = self._before = 0  # when the stretch began, and the last iteration that has ended
        self._steps = 0  # its iterations
        self._row: array | None = None  # the running sum of its iterations' times,
        self._at = self._begun_row = 0  # where in it the stretch begins, and the entry there

    @property
    def unfinished(self) -> int:
        """Requests that wait or run here."""
        waiting = len(self.queue) + len(self._coming)
        return waiting + self.running + len(self._prefilled) + (self._partial is not None)

    def arrive(self, request: int, now: int) -> bool:
        """Queue a request. True where the engine must be looked at again: it is idle, or its stretch became shorter."""
        waited = bool(self.queue or self._coming)
        if self._ahead:
            self._coming.append((now, request))
        else:
            self.queue.append(request)
        if self.end is None:
            return True
        full = self.running >= min(self._max_batch, self._budget)
        if waited or full or self._steps == 1:
            return False
        first = bisect_left(self._row, now - self._begun + self._begun_row, self._at + 1, self._at + self._steps)
        steps = first - self._at + self._ahead
        if steps >= self._steps:
            return False
        self._steps = steps
        self.end = self._begun + self._row[self._at + steps] - self._begun_row
        self.version += 1
        return True

    def start(self, now: int) -> int | None:
        """Begin what runs next and return when it ends; None where nothing is to do."""
        if self._ahead:
            self._let_in(now)
        evicted = self._evicts and self._make_room()
        prompts = 0
        if self.queue or self._partial is not None:
            prompts, tokens, begun = self._admit(evicted)
        self._begun = now
        running = self.running
        if prompts:
            context = self.context // running if running else 0
            self._steps = 1
            self.end = now + self._times.mixed(running, context, prompts, tokens, begun, len(self._prefilled))
        elif running:
            self._row = self._times.row(running)
            self._at = at = self.context // running
            self._begun_row = self._row[at]
            waits = self._coming and not self.queue and running < self._max_batch
            self._steps = steps = 1 if evicted or waits else self._until_event()
            self.end = now + self._row[at + steps] - self._begun_row
        else:
            return None
        self.version += 1
        return self.end

    def _let_in(self, now: int) -> None:
        """Queue what came before this iteration's batch was chosen: by the start of the iteration before it."""
        idle = not (self.queue or self.running or self._partial)
        chosen = now if idle or self._woken else self._before
        while self._coming and self._coming[0][0] <= chosen:
            self.queue.append(self._coming.popleft()[1])
        self._woken = idle

    def _until_event(self) -> int:
        """Iterations until a sequence ends or the pool has no block for the next token."""
        ends, active = self._ends, self._active
        if not self._evicts:
            return ends[0][0] - self._iteration
        while active.get(ends[0][1]) != ends[0][0]:
            heappop(ends)  # was evicted
        steps = ends[0][0] - self._iteration
        if self.free >= self.running * (steps // self._block + 1):
            return steps
        cycles, left = divmod(self.free, self.running)
        possible = cycles * self._block
        while possible < steps and left >= (need := self._grows[(self._iteration + possible) % self._block]):
            left -= need
            possible += 1
        return min(steps, possible)

    def _make_room(self) -> bool:
        """Evict those started last until the pool has blocks for everybody's next token; whether any was."""
        evicted = False
        while self.free < self._grows[self._iteration % self._block]:
            request, end = self._active.popitem()
            left = end - self._iteration
            done = self._requests.output[request] - left
            held = self._requests.prompt[request] + done - 1
            self._forget(held)
            self._requests.prompt[request] += done
            self._requests.output[request] = left
            self.queue.appendleft(request)
            evicted = True
        return evicted

    def _forget(self, held: int) -> None:
        """Give back a sequence's blocks and its part of the sums; it holds `held` tokens."""
        self.running -= 1
        self.context -= held
        if self._evicts:
            self.free += -(-held // self._block)
            self._grows[(self._iteration - held) % self._block] -= 1
        else:
            self.free += -(-(held + 1) // self._block)  # it has ended: all of its tokens but the last

    def _admit(self, evicted: bool) -> tuple[int, int, int]:
        """Take prompts from the queue's head: how many, their tokens this iteration, the first one's cached ones."""
        budget, sequences = self._budget - self.running, self.running
        prompts = tokens = begun = 0
        prompt, output = self._requests.prompt, self._requests.output
        if self._partial is not None:
            request, begun = self._partial
            tokens = min(budget, prompt[request] - begun)
            prompts, budget, sequences = 1, budget - tokens, sequences + 1
            self._partial = (request, begun + tokens)
            if begun + tokens == prompt[request]:
                self._partial = None
                self._prefilled.append(request)
        queue = self.queue
        while queue and not evicted and self._partial is None and sequences < self._max_batch and budget > 0:
            request = queue[0]
            length = prompt[request]
            if length > budget and not self._chunked:
                break
            if self._evicts:
                blocks, room = -(-length // self._block), self.free - self._grows[self._iteration % self._block]
            else:
                blocks, room = -(-(length + output[request]) // self._block), self.free
            if blocks > room:
                break
            queue.popleft()
            self.free -= blocks
            if length <= budget:
                self._prefilled.append(request)
            else:
                length = budget
                self._partial = (request, length)
            prompts, tokens, budget, sequences = prompts + 1, tokens + length, budget - length, sequences + 1
        if self.free < self.least_free:
            self.least_free = self.free
        return prompts, tokens, begun

    def finish(self) -> list[int]:
        """Apply the stretch that ends now; the requests that got their last token, in the order they ended."""
        now, steps, requests = self.end, self._steps, self._requests
        if self._ahead:
            self._before = self._begun
            if steps > 1:
                self._before += self._row[self._at + steps - 1] - self._begun_row
        evicts, ends, active = self._evicts, self._ends, self._active
        if evicts:
            cycles, rest = divmod(steps, self._block)
            self.free -= cycles * self.running
            self.free -= sum(self._grows[(self._iteration + j) % self._block] for j in range(rest))
            self.least_free = min(self.least_free, self.free)
        self._iteration = iteration = self._iteration + steps
        self.context += steps * self.running
        prompts, outputs, done = requests.prompt, requests.output, []
        while ends and ends[0][0] <= iteration:
            end, request = heappop(ends)
            if evicts:
                if active.get(request) != end:
                    continue  # was evicted
                del active[request]
            self._forget(prompts[request] + outputs[request] - 1)
            done.append(request)
        for request in self._prefilled:
            if requests.first[request] < 0:
                requests.first[request] = now
            held, output = prompts[request], outputs[request]
            self.running += 1
            self.context += held
            if evicts:
                self._grows[(iteration - held) % self._block] += 1
            if output == 1:
                self._forget(held)
                done.append(request)
            else:
                end = iteration + output - 1
                heappush(ends, (end, request))
                if evicts:
                    active[request] = end
        self._prefilled.clear()
        self.end = None
        for request in done:
            requests.last[request] = now
        return done
