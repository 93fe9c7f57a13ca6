"""Load of a run, measured or simulated: who sends requests of which lengths, and when.

In a closed loop a user sends the next request when the one before has been answered. In an open loop requests arrive
independently of answers, each from a user of its own. `erlab.prompts.traces` reads loads of production services.

>>> constant(2.0, 3).tolist()
[0.0, 0.5, 1.0]
>>> 95 < poisson(100.0, 10_000, seed=0).max() < 105
True
>>> fixed_lengths(users=2, turns=2, input_tokens=8, output_tokens=4).user.tolist()
[0, 0, 1, 1]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from erlab.errors import ErlabError
from erlab.prompts.workload import HeldBack, Request, sample
from erlab.spec import Workload, require


@dataclass(frozen=True)
class Traffic:
    """Requests of a load, grouped by user and ordered by turn.

    A request is sent `pause` seconds after the answer to its user's request before it, but not before its time `at`.

    Attributes:
        user: User of each request, from 0; shape (n,), like the next four.
        turn: Index of the request in its user's session.
        input_tokens: At least 1.
        output_tokens: At least 1.
        at: Earliest submission time, seconds.
        pause: Seconds between an answer and the user's next request: one number, or one per request.
        until: Time from which on no request is sent, seconds.
        prefix: Ids of each prompt's blocks; prompts share a prefix up to the last equal id. None if unknown.
        block_tokens: Tokens per block of `prefix`.
    """

    user: np.ndarray
    turn: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    at: np.ndarray
    pause: float | np.ndarray = 0.0
    until: float = math.inf
    prefix: Sequence[Sequence[int]] | None = None
    block_tokens: int = 0

    def __post_init__(self):
        n = len(self.user)
        require(n > 0, "user", "Traffic", "have at least one request", 0)
        columns = ["turn", "input_tokens", "output_tokens", "at"]
        columns += ["pause"] if isinstance(self.pause, np.ndarray) else []
        columns += ["prefix"] if self.prefix is not None else []
        for name in columns:
            length = len(getattr(self, name))
            require(length == n, name, "Traffic", f"have an entry for each of {n} requests", length)
        for name in ("at", "pause"):
            least = float(np.min(getattr(self, name)))
            require(least >= 0, name, "Traffic", "be at least 0 seconds", least)
        for name in ("input_tokens", "output_tokens"):
            require(getattr(self, name).min() >= 1, name, "Traffic", "be at least 1", int(getattr(self, name).min()))
        allowed = "be at least 1 where prefixes are known"
        require(self.prefix is None or self.block_tokens >= 1, "block_tokens", "Traffic", allowed, self.block_tokens)

    @property
    def users(self) -> int:
        return int(self.user.max()) + 1

    @property
    def pauses(self) -> np.ndarray:
        """Seconds between the answer before and each request, shape (n,)."""
        return np.broadcast_to(np.asarray(self.pause, float), len(self.user))


def closed_loop(workload: Workload, users: int, seed: int = 0, turns: int | None = None, think: float = 0.0) -> Traffic:
    """Draw the load of closed-loop users.

    It depends only on the arguments, so all systems get the same requests.

    Args:
        workload: Token lengths.
        users: Concurrent users.
        seed: Random seed.
        turns: Requests per user (default: `workload.turns_for(users)`).
        think: Mean time between an answer and the next request, seconds, drawn from an exponential distribution.
    """
    require(think >= 0, "think", "the load", "be at least 0 seconds", think)
    turns = workload.turns_for(users) if turns is None else turns
    rng = np.random.default_rng([seed, users])
    n = users * turns
    lengths = sample(workload.input_tokens, rng, n), sample(workload.output_tokens, rng, n)
    pause = np.random.default_rng([seed, users, 2]).exponential(think, n) if think else 0.0
    return Traffic(np.repeat(np.arange(users), turns), np.tile(np.arange(turns), users), *lengths, np.zeros(n), pause)


def fixed_lengths(users: int, turns: int, input_tokens: int, output_tokens: int) -> Traffic:
    """Make a closed-loop load whose requests have equal lengths."""
    require(users >= 1, "users", "the load", "be at least 1", users)
    require(turns >= 1, "turns", "the load", "be at least 1", turns)
    n = users * turns
    same = np.full(n, input_tokens), np.full(n, output_tokens)
    return Traffic(np.repeat(np.arange(users), turns), np.tile(np.arange(turns), users), *same, np.zeros(n))


def open_loop(at: Sequence[float], input_tokens: Sequence[int], output_tokens: Sequence[int]) -> Traffic:
    """Make an open-loop load with one user per request.

    Args:
        at: Submission times, seconds, ascending from 0.
        input_tokens: Prompt tokens of each request.
        output_tokens: Output tokens of each request.
    """
    at = np.asarray(at, float)
    n = len(at)
    rises = np.diff(at, prepend=0.0) >= 0  # False for NaN
    if not rises.all():
        i = int(np.argmin(rises))
        before = float(at[i - 1]) if i else 0.0
        raise ErlabError(f"The load trace must rise from 0 s. Got {float(at[i])} s after {before} s at request {i}.")
    return Traffic(np.arange(n), np.zeros(n, int), np.asarray(input_tokens), np.asarray(output_tokens), at)


def at_rate(workload: Workload, at: np.ndarray, seed: int = 0) -> Traffic:
    """Draw an open-loop load with the lengths of a workload and these submission times, seconds."""
    rng = np.random.default_rng([seed, len(at)])
    return open_loop(at, *(sample(lengths, rng, len(at)) for lengths in (workload.input_tokens, workload.output_tokens)))


def poisson(rate: float, count: int, seed: int) -> np.ndarray:
    """Draw `count` arrival times, in seconds, of a Poisson process with `rate` requests per second."""
    require(rate > 0, "rate", "poisson", "be above 0 requests a second", rate)
    return np.random.default_rng(seed).exponential(1 / rate, count).cumsum()


def constant(rate: float, count: int) -> np.ndarray:
    """Return `count` arrival times, in seconds, at `rate` requests per second from 0."""
    require(rate > 0, "rate", "constant", "be above 0 requests a second", rate)
    return np.arange(count) / rate


def first(traffic: Traffic, requests: int | None = None, seconds: float = math.inf) -> Traffic:
    """Return the first requests of a load by their times, and those before `seconds`."""
    order = np.argsort(traffic.at, kind="stable")[:requests]
    kept = np.zeros(len(traffic.user), bool)
    kept[order] = True
    return chosen(traffic, kept & (traffic.at < seconds))


def faster(traffic: Traffic, speed: float) -> Traffic:
    """Return the load with all times divided by `speed`."""
    require(speed > 0, "speed", "the load", "be above 0", speed)
    return replace(traffic, at=traffic.at / speed, pause=traffic.pauses / speed)


def resized(traffic: Traffic, factor: float) -> Traffic:
    """Return the load with all token lengths multiplied by `factor`, each at least 1."""
    require(factor > 0, "factor", "the load", "be above 0", factor)
    sizes = {
        name: np.maximum(1, np.rint(getattr(traffic, name) * factor)).astype(np.int64)
        for name in ("input_tokens", "output_tokens")
    }
    block = max(1, round(traffic.block_tokens * factor)) if traffic.prefix is not None else 0
    return replace(traffic, **sizes, block_tokens=block)


def cut(traffic: Traffic, longest: int, most_input: int | None = None, most_output: int | None = None) -> Traffic:
    """Return the load with prompts and outputs cut so that each request has at most `longest` tokens.

    An output keeps at most half of `longest`, a prompt what its output leaves; `most_input` and `most_output` bound
    them further.
    """
    output = np.minimum(traffic.output_tokens, min(most_output or longest, max(1, longest // 2)))
    prompt = np.minimum(np.minimum(traffic.input_tokens, longest - output), most_input or longest)
    return replace(traffic, input_tokens=prompt, output_tokens=output)


def chosen(traffic: Traffic, kept: np.ndarray) -> Traffic:
    """Return the requests of a load that a mask keeps, with users numbered without gaps."""
    require(bool(kept.any()), "duration", "the load", "leave at least one request", 0)
    columns = {name: getattr(traffic, name)[kept] for name in ("turn", "input_tokens", "output_tokens", "at")}
    columns["user"] = np.unique(traffic.user[kept], return_inverse=True)[1]
    columns["pause"] = traffic.pauses[kept]
    if traffic.prefix is not None:
        columns["prefix"] = [ids for ids, keep in zip(traffic.prefix, kept) if keep]
    return replace(traffic, **columns)


def schedule(traffic: Traffic) -> dict:
    """Return when users send their requests, as arguments of `erlab.users.run`."""
    edges = np.flatnonzero(np.diff(traffic.user)) + 1
    at, pauses = (
        [part.tolist() for part in np.split(column, edges)] for column in (traffic.at, traffic.pauses)
    )
    return {"at": at, "pauses": pauses, "until": traffic.until if traffic.until < math.inf else None}


def requests(prompts, traffic: Traffic, seed: int) -> list[list[Request]]:
    """Make the requests of each user: held-back prompts cut or extended to the load's lengths.

    Where prefixes are known, prompts whose leading ids are equal begin with the same text, one byte per token.

    Args:
        prompts: Columns as of `datasets.load`.
        traffic: The load.
        seed: Random seed of the prompts.
    """
    texts, rng = HeldBack(prompts), np.random.default_rng([seed, len(traffic.user), 3])
    order = texts.order(rng, len(traffic.user))
    sessions, blocks, roots = [[] for _ in range(traffic.users)], {}, {}
    lengths = zip(traffic.user.tolist(), traffic.input_tokens.tolist(), traffic.output_tokens.tolist())
    for r, (user, tokens, output) in enumerate(lengths):
        ids = traffic.prefix[r][: tokens // traffic.block_tokens] if traffic.prefix is not None else ()
        prompt = order[r]
        if ids:  # requests with a common prefix are of one domain
            prompt = roots[ids[0]] = texts.next_of_domain(roots[ids[0]]) if ids[0] in roots else prompt
        request = texts.request(prompt, tokens, output)
        sessions[user].append(_with_blocks(request, ids, traffic.block_tokens, blocks) if ids else request)
    return sessions


def _with_blocks(request: Request, ids: Sequence[int], size: int, blocks: dict[int, bytes]) -> Request:
    """Return a request whose blocks have the texts of `blocks`, to which its new blocks are added."""
    own = request.text.encode()
    edges = [size * i - 1 for i in range(1, len(ids) + 1)]  # the first token begins the sequence
    for identity, start, end in zip(ids, [0, *edges], edges):
        whole = own[start:end].decode(errors="ignore").encode()  # a character that an edge splits becomes full stops
        blocks.setdefault(identity, whole + b"." * (end - start - len(whole)))
    text = b"".join(blocks[identity] for identity in ids) + own[edges[-1] :].decode(errors="ignore").encode()
    return replace(request, text=(text + b"." * (len(own) - len(text))).decode())
