"""Reference implementation of in-flight batching: one engine, one iteration at a time.

Written for clarity: it touches every running sequence and counts all blocks in every iteration.
"""

import math

from erlab.simulation.engine import Batching
from erlab.simulation.steptimes import StepTimes


def plain_run(times: StepTimes, batching: Batching, max_batch: int, pool_tokens: int, requests, log=None):
    """Serve requests and add their times of first and last token.

    Args:
        requests: Dicts with `at` (ns, or ("after", i) for the answer to request i), `prompt` and `output` (tokens).
        log: List that gets one dict per iteration.
    """
    block, evicts = batching.block_tokens, batching.policy == "max_utilization"
    pool = pool_tokens // block
    for i, r in enumerate(requests):
        r.update(index=i, todo=r["prompt"], done=0, cached=0, first=None, last=None)
    waiting, running, partial = [], [], None  # requests; `running` in the order they started
    coming, before, woken = [], 0, False  # arrived too late; start of the last iteration; whether it was idle
    now = 0

    def blocks(tokens):
        return math.ceil(tokens / block)

    def held():
        if not evicts:
            started = running + ([partial] if partial else [])
            return sum(blocks(r["prompt"] + r["output"]) for r in started)
        return sum(blocks(r["cached"]) for r in running) + (blocks(partial["todo"]) if partial else 0)

    due = sorted((r["at"], i) for i, r in enumerate(requests) if not isinstance(r["at"], tuple))
    follows = {r["at"][1]: i for i, r in enumerate(requests) if isinstance(r["at"], tuple)}
    while True:
        idle = not waiting and not running and partial is None
        if idle and not coming:
            if not due:
                return requests
            now = max(now, due[0][0])
        while due and due[0][0] <= now:
            coming.append(due.pop(0))
        while coming and (not batching.schedules_ahead or idle or woken or coming[0][0] <= before):
            waiting.append(requests[coming.pop(0)[1]])
        woken, before = idle, now
        growth = lambda: sum(blocks(r["cached"] + 1) - blocks(r["cached"]) for r in running)  # noqa: E731
        evicted = False
        while evicts and pool - held() < growth():
            victim = running.pop()
            victim.update(todo=victim["cached"] + 1, cached=0)
            waiting.insert(0, victim)
            evicted = True
        budget, chunks, ended, begun = batching.max_num_tokens - len(running), [], [], 0
        if partial:
            begun = partial["cached"]
            take = min(budget, partial["todo"] - begun)
            partial["cached"] += take
            chunks.append(take)
            budget -= take
            if partial["cached"] == partial["todo"]:
                ended.append(partial)
                partial = None
        reserved = sum(blocks(r["todo"]) if evicts else blocks(r["prompt"] + r["output"]) for r in ended)
        while waiting and not evicted and partial is None and budget > 0:
            r = waiting[0]
            if len(running) + len(ended) >= max_batch or (r["todo"] > budget and not batching.chunked_context):
                break
            need = blocks(r["todo"]) if evicts else blocks(r["prompt"] + r["output"])
            if need > pool - held() - reserved - (growth() if evicts else 0):
                break
            waiting.pop(0)
            take = min(budget, r["todo"])
            r["cached"] = take
            chunks.append(take)
            budget -= take
            if take == r["todo"]:
                ended.append(r)
                reserved += need
            else:
                partial = r
        batch, total = len(running), sum(r["cached"] for r in running)
        context = total // batch if batch else 0
        if chunks:
            now += times.mixed(batch, context, len(chunks), sum(chunks), (begun,) if begun else (), len(ended))
        else:
            now += times.decode(batch, context)
        if log is not None:
            log.append(dict(now=now, batch=batch, prefill=sum(chunks), used=held() + reserved, pool=pool))
        for r in running:
            r["cached"] += 1
        for r in running + ended:
            r["done"] += 1
            if r["first"] is None:
                r["first"] = now
            if r["done"] == r["output"]:
                r["last"] = now
        for r in running + ended:
            if r["last"] is not None and r["index"] in follows:
                due.append((now, follows[r["index"]]))
        due.sort()
        running = [r for r in running + ended if r["last"] is None]
