"""Prompts that arrive together are classified together, slow routers off the loop; policies see the live state."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest
from fake_triton import COURT, KITCHEN

from erlab.gateway.classify import Classifier
from erlab.gateway.core import Decider, ServedExpert
from erlab.gateway.errors import RequestError
from erlab.gateway.limits import Limits
from erlab.routing.compiled import Row


class Watched:
    """A router that notes each batch's size and thread, takes `seconds` for one, and longer while its gate is shut."""

    def __init__(self, router, seconds=0.0):
        self._router, self._seconds, self.centers_ = router, seconds, router.centers_
        self.batches, self.threads, self.gate = [], set(), threading.Event()
        self.gate.set()

    def route(self, texts):
        self.batches.append(len(texts))
        self.threads.add(threading.get_ident())
        time.sleep(self._seconds)
        self.gate.wait(60)
        return self._router.route(texts)


def classify(watched, *waves):
    """The rows of waves of prompts, each wave's tasks started when the one before is classified."""

    async def main():
        classifier = Classifier(watched)
        watched.batches.clear(), watched.threads.clear()
        rows = []
        for wave in waves:
            rows += await asyncio.gather(*(classifier(text) for text in wave))
        return classifier.slow, [row for row, _ in rows], [ns for _, ns in rows]

    return asyncio.run(main())


def test_concurrent_prompts_are_one_batch_and_a_single_prompt_does_not_wait(router):
    watched, prompts = Watched(router), KITCHEN + COURT
    slow, rows, _ = classify(watched, prompts, ["salt"], ["law"])
    assert watched.batches == [len(prompts), 1, 1]
    assert [row.cluster for row in rows] == router.predict([*prompts, "salt", "law"]).tolist()
    assert not slow and watched.threads == {threading.get_ident()}


def test_the_first_batch_of_a_burst_proceeds_while_the_last_is_classified(router):
    prompts = [f"{text} {n}" for n in range(10) for text in KITCHEN + COURT]
    told, seen = [], []  # who has heard; how many had when each batch began

    async def main():
        classifier = Classifier(SimpleNamespace(route=lambda texts: seen.append(len(told)) or router.route(texts)))
        seen.clear()

        async def hear(text):
            row, _ = await classifier(text)
            told.append(text)
            return row.cluster

        return await asyncio.gather(*map(hear, prompts))

    assert asyncio.run(main()) == router.predict(prompts).tolist()
    assert told == prompts and len(seen) > 2
    assert all(earlier < later for earlier, later in zip(seen, seen[1:]))


def test_a_slow_router_runs_in_a_thread_and_batches_waiting_prompts(router):
    watched = Watched(router, seconds=0.005)

    async def main():
        classifier = Classifier(watched)
        watched.batches.clear(), watched.threads.clear(), watched.gate.clear()
        first = asyncio.create_task(classifier("salt"))
        while not watched.batches:
            await asyncio.sleep(0)
        others = [asyncio.create_task(classifier(text)) for text in KITCHEN]  # while the first is at work
        for _ in range(20):
            await asyncio.sleep(0)
        held = not first.done()
        watched.gate.set()
        rows = [row for row, _ in await asyncio.gather(*others)]
        return classifier.slow, held, rows

    slow, held, rows = asyncio.run(main())
    assert slow and held and watched.batches == [1, len(KITCHEN)]
    assert [row.cluster for row in rows] == router.predict(KITCHEN).tolist()
    assert threading.get_ident() not in watched.threads


def test_a_slow_machine_does_not_make_a_router_count_as_slow(router):
    waits = iter([0.002] * 12)
    held_up = SimpleNamespace(route=lambda texts: (time.sleep(next(waits, 0)), router.route(texts))[1])
    assert not Classifier(held_up).slow


def test_a_long_prompt_does_not_block_the_event_loop(router):
    watched = Watched(router)
    classify(watched, ["salt " * 10_000])
    assert threading.get_ident() not in watched.threads


def test_a_cancelled_request_does_not_block_its_batch(router):
    async def main():
        classifier = Classifier(router)
        gone, stays = asyncio.create_task(classifier("salt")), asyncio.create_task(classifier("law"))
        await asyncio.sleep(0)
        gone.cancel()
        return (await stays)[0].cluster

    assert asyncio.run(main()) == router.predict(["law"])[0]


def test_a_router_that_fails_is_each_requests_error(router):
    broken = SimpleNamespace(route=router.route)

    async def main():
        classifier = Classifier(broken)
        broken.route = lambda texts: 1 / 0
        failed = await asyncio.gather(classifier("salt"), classifier("law"), return_exceptions=True)
        broken.route = router.route
        return failed, await classifier("law")

    failed, _ = asyncio.run(main())
    assert [type(e) for e in failed] == [ZeroDivisionError] * 2


def row(*order):
    return Row(order[0], 0.1, 0.2, order[1], order)


def test_policies_see_the_experts_health_and_load():
    experts = [ServedExpert(name, None, Limits()) for name in "abc"]
    nearest = Decider(experts, [(0,), (1,), (2,)])
    least = Decider(experts, [(0,), (1,), (2,)], "least_outstanding")
    assert nearest(row(1, 2, 0))[0].name == "b"
    experts[1].up = False
    assert nearest(row(1, 2, 0))[0].name == "c"
    assert nearest(row(1, 2, 0), avoid=experts[2])[0].name == "a"
    experts[2].outstanding = 3
    assert least(row(2, 0, 1))[1].expert == "a"
    experts[0].up = experts[2].up = False
    with pytest.raises(RequestError, match="None of the 3 experts is up"):
        nearest(row(0, 1, 2))


def test_outliers_and_difficult_prompts_go_to_their_own_experts():
    experts = [ServedExpert(name, None, Limits()) for name in "abg"]
    outlier = Decider(experts, [(0,), (1,)], "outlier", 2)
    strong = Decider(experts, [(0,), (1,)], "strong_weak", 2)
    usual = Row(1, 0.1, 0.2, 0, (1, 0), outlier=False, difficulty=0.1)
    odd = usual._replace(outlier=True, difficulty=0.9)
    for decide in outlier, strong:
        assert [decide(row)[0].name for row in (usual, odd)] == ["b", "g"]
        assert decide(odd, avoid=experts[2])[0].name == "b"
    experts[0].up = experts[1].up = False
    assert outlier(odd)[0].name == "g"
    with pytest.raises(RequestError, match="None of the 2 experts is up"):
        outlier(usual)
