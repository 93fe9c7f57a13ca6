"""In-flight batching of one simulated engine, from event to event.

Each iteration decodes one token for every running sequence and, within a token budget, prefills the prompts at the
head of the queue (first come, first served). As in TensorRT-LLM, an iteration has at most `max_num_tokens` tokens and
`max_batch_size` sequences, prompts are prefilled whole or in chunks, and the paged KV cache has one of two policies:

- ``guaranteed_no_evict``: a request starts when the pool has blocks for its prompt and its whole answer;
- ``max_utilization``: a request starts when the pool has blocks for its prompt and for the next token of the running
  sequences. When blocks run out, the sequence started last is evicted, returns to the head of the queue and prefills
  its prompt and its answer so far again.

With `schedules_ahead` (vLLM since 0.14, TensorRT-LLM's overlap scheduler) the host chooses the next batch while the GPU
runs the current one, so a request that arrives during an iteration is not part of the next one either. After idling no
iteration precedes the first, so requests that arrive during the first join the second.

Between two events (a sequence ends, a prompt arrives, blocks run out) only contexts change, by one token per iteration,
so all iterations between them cost one subtraction in `StepTimes.row`. An engine has no users and no clock;
`erlab.simulation.events` drives it.
"""

from array import array
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from operator import add

from erlab.simulation.prefixes import PrefixCache
from erlab.simulation.steptimes import MAX_BATCH, MAX_TOKENS, StepTimes
from erlab.spec import require

KV_POLICIES = ("guaranteed_no_evict", "max_utilization")


@dataclass(frozen=True)
class Batching:
    """Batching parameters of an engine; the defaults are those of TensorRT-LLM.

    Attributes:
        max_num_tokens: Tokens per iteration.
        chunked_context: Whether prompts may be prefilled in chunks.
        policy: KV cache policy, one of `KV_POLICIES`.
        block_tokens: Tokens per KV cache block.
        schedules_ahead: Whether a batch is chosen while the one before it runs.
        prefix_caching: Whether prompts that begin like earlier ones are prefilled in part (`erlab.simulation.prefixes`).
        prefix_pool: Most tokens of unused prompts that the KV cache keeps; None for all that it has room for.
    """

    max_num_tokens: int = 8192
    chunked_context: bool = False
    policy: str = "guaranteed_no_evict"
    block_tokens: int = 64
    schedules_ahead: bool = False
    prefix_caching: bool = False
    prefix_pool: int | None = None

    def __post_init__(self):
        allowed = f"be 1 to {MAX_TOKENS}, the range of the step times"
        require(1 <= self.max_num_tokens <= MAX_TOKENS, "max_num_tokens", "Batching", allowed, self.max_num_tokens)
        require(self.block_tokens >= 1, "block_tokens", "Batching", "be at least 1", self.block_tokens)
        require(self.policy in KV_POLICIES, "policy", "Batching", f"be one of {', '.join(KV_POLICIES)}", self.policy)
        pool = self.prefix_pool
        allowed = "be at least 0 tokens, and only with prefix_caching"
        require(pool is None or (self.prefix_caching and pool >= 0), "prefix_pool", "Batching", allowed, pool)


@dataclass
class Requests:
    """All requests of a run, as columns.

    Attributes:
        prompt: Prompt tokens; eviction adds the answer so far.
        output: Output tokens; eviction subtracts those generated before.
        first: Times of first tokens, ns; -1 before.
        last: Times of last tokens, ns; -1 before.
        widest: Tokens of the longest prompt.
        longest: Largest sum of prompt and output tokens.
        blocks: Ids of the blocks of each prompt that later requests can use, for prefix caching.
        unit: Tokens of these blocks.
        hits: Prompt tokens that were cached when the request started; -1 before.
    """

    prompt: list[int]
    output: list[int]
    first: array
    last: array
    widest: int
    longest: int
    blocks: list[tuple[int, ...]] | None = None
    unit: int = 0
    hits: array | None = None

    @classmethod
    def of(
        cls, prompt: list[int], output: list[int], blocks: list[tuple[int, ...]] | None = None, unit: int = 0
    ) -> "Requests":
        unset = array("q", [-1]) * len(prompt)
        longest = max(map(add, prompt, output))
        return cls(list(prompt), list(output), unset, unset[:], max(prompt), longest, blocks, unit, unset[:])


class SimulatedEngine:
    """One engine with in-flight batching.

    `arrive` queues a request; `start` begins a stretch of iterations without an event and returns its end; `finish`
    applies the stretch and returns the requests that got their last token. Times are ns.

    Args:
        times: Iteration times.
        requests: Requests of the run, shared by all engines.
        batching: Batching parameters.
        max_batch_size: Running sequences.
        pool_tokens: Tokens that the KV cache holds.

    Raises:
        ErlabError: The longest request does not fit the step times, the pool or the token budget.
    """

    def __init__(self, times: StepTimes, requests: Requests, batching: Batching, max_batch_size: int, pool_tokens: int):
        longest = requests.longest
        blocks = pool_tokens // batching.block_tokens
        allowed = f"be 1 to {MAX_BATCH}, the range of the step times"
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
            widest, reason = requests.widest, "the longest prompt"
            if batching.policy == "max_utilization":
                widest = longest - 1
                reason = "the longest prompt and the answer so far, which an evicted request prefills"
            allowed = f"be at least {widest}, {reason}, without chunked context"
            require(batching.max_num_tokens >= widest, "max_num_tokens", "Batching", allowed, batching.max_num_tokens)
        self.queue: deque[int] = deque()
        self._coming: deque[tuple[int, int]] = deque()  # (arrival, request), too late for the batch chosen ahead
        self.running = 0  # sequences that decode
        self.context = 0  # tokens in their KV caches
        self.free = self.blocks = blocks
        self.end: int | None = None  # end of the current stretch; None between two
        self.version = 0  # of the stretch; invalidates the scheduled end of a stretch that was shortened
        self.least_free = blocks
        self._times, self._requests = times, requests
        self._budget, self._chunked = batching.max_num_tokens, batching.chunked_context
        self._evicts = batching.policy == "max_utilization"
        self._block, self._max_batch = batching.block_tokens, max_batch_size
        self._ahead = batching.schedules_ahead
        self._woken = False  # whether the last iteration was the first after idling
        self._iteration = 0  # number of iterations so far
        self._ends: list[tuple[int, int]] = []  # heap: iteration after which a sequence ends, request
        self._active: dict[int, int] = {}  # request: that iteration, in order of start; the last one is evicted first
        self._grows = [0] * batching.block_tokens  # sequences that need a new block, by iteration % block_tokens
        self._partial: tuple[int, int] | None = None  # request with a partly cached prompt, and its cached tokens
        self._prefilled: list[int] = []  # requests whose prompt ends with this iteration
        self._begun = self._before = 0  # start of the stretch, and of the last finished iteration
        self._steps = 0  # its iterations
        self._cache, self._per = None, 0  # prefix cache, KV blocks per block of it
        if batching.prefix_caching:
            require(requests.blocks is not None, "prefix_caching", "Batching", "be left out without known prefixes", True)
            pool = batching.prefix_pool
            self._cache = PrefixCache(None if pool is None else pool // requests.unit)
            self._per = requests.unit // batching.block_tokens
        self._row: array | None = None  # cumulative sum of its iteration times
        self._at = self._begun_row = 0  # index in `_row` at which the stretch begins, and the entry there

    @property
    def unfinished(self) -> int:
        """Number of waiting and running requests."""
        waiting = len(self.queue) + len(self._coming)
        return waiting + self.running + len(self._prefilled) + (self._partial is not None)

    @property
    def caches_prefixes(self) -> bool:
        return self._cache is not None

    def arrive(self, request: int, now: int) -> bool:
        """Queue a request; return whether a new event is due."""
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
        """Begin the next stretch; return its end, None without work."""
        if self._ahead:
            self._let_in(now)
        evicted = self._evicts and self._make_room()
        prompts = 0
        if self._cache:
            self._cache.shrink(self.free // self._per)
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
        """Queue requests that arrived before this batch was chosen."""
        idle = not (self.queue or self.running or self._partial)
        chosen = now if idle or self._woken else self._before
        while self._coming and self._coming[0][0] <= chosen:
            self.queue.append(self._coming.popleft()[1])
        self._woken = idle

    def _until_event(self) -> int:
        """Return the iterations until a sequence ends or blocks run out."""
        ends, active = self._ends, self._active
        if not self._evicts:
            return ends[0][0] - self._iteration
        while active.get(ends[0][1]) != ends[0][0]:
            heappop(ends)  # an evicted request
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
        """Evict the latest sequences until the next tokens have blocks."""
        evicted = False
        while self.free < self._grows[self._iteration % self._block]:
            request, end = self._active.popitem()
            left = end - self._iteration
            done = self._requests.output[request] - left
            held = self._requests.prompt[request] + done - 1
            self._forget(request, held)
            self._requests.prompt[request] += done
            self._requests.output[request] = left
            self.queue.appendleft(request)
            evicted = True
        return evicted

    def _forget(self, request: int, held: int) -> None:
        """Remove a sequence with `held` cached tokens and free its blocks."""
        self.running -= 1
        self.context -= held
        if self._cache:  # its blocks that others use are not freed
            blocks = self._requests.blocks[request]
            self.free += self._per * (self._cache.release(blocks) - len(blocks))
        if self._evicts:
            self.free += -(-held // self._block)
            self._grows[(self._iteration - held) % self._block] -= 1
        else:
            self.free += -(-(held + 1) // self._block)  # it has finished; its last token is not cached

    def _admit(self, evicted: bool) -> tuple[int, int, list[int]]:
        """Take prompts; return number, new tokens, and the cached tokens of those that have some."""
        budget, sequences = self._budget - self.running, self.running
        prompts = tokens = 0
        begun = []
        prompt, output = self._requests.prompt, self._requests.output
        if self._partial is not None:
            request, cached = self._partial
            begun.append(cached)
            tokens = min(budget, prompt[request] - cached)
            prompts, budget, sequences = 1, budget - tokens, sequences + 1
            self._partial = (request, cached + tokens)
            if cached + tokens == prompt[request]:
                self._partial = None
                self._prefilled.append(request)
        queue = self.queue
        while queue and not evicted and self._partial is None and sequences < self._max_batch and budget > 0:
            request = queue[0]
            hit = self.cached(request) if self._cache else 0
            length = prompt[request] - hit
            if length > budget and not self._chunked:
                break
            if self._evicts:
                blocks, room = -(-prompt[request] // self._block), self.free - self._grows[self._iteration % self._block]
            else:
                blocks, room = -(-(prompt[request] + output[request]) // self._block), self.free
            if self._cache:
                blocks -= self._per * self._cache.used(self._requests.blocks[request])
            if blocks > room:
                break
            queue.popleft()
            self.free -= blocks
            if self._cache:
                self._cache.acquire(self._requests.blocks[request])
                self._cache.shrink(self.free // self._per)
                if self._requests.hits[request] < 0:
                    self._requests.hits[request] = hit
            if hit:
                begun.append(hit)
            if length <= budget:
                self._prefilled.append(request)
            else:
                length = budget
                self._partial = (request, hit + length)
            prompts, tokens, budget, sequences = prompts + 1, tokens + length, budget - length, sequences + 1
        if self.free < self.least_free:
            self.least_free = self.free
        return prompts, tokens, begun

    def cached(self, request: int) -> int:
        """Return the tokens of a request's prompt that the prefix cache has."""
        return self._cache.hits(self._requests.blocks[request]) * self._requests.unit if self._cache else 0

    def finish(self) -> list[int]:
        """Apply the stretch that ends now; return completed requests in order."""
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
                    continue  # an evicted request
                del active[request]
            self._forget(request, prompts[request] + outputs[request] - 1)
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
                self._forget(request, held)
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
