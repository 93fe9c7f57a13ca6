"""A gateway serves routers trained on outcomes: its core decides for the experts by their names."""

import asyncio

import pytest

from erlab.errors import ErlabError
from erlab.gateway import fleet
from erlab.gateway.classify import Classifier
from erlab.gateway.core import Decider, ServedExpert
from erlab.gateway.fleet import ExpertConfig, FleetConfig, RouterConfig
from erlab.gateway.limits import Limits
from erlab.quality import routers
from erlab.routing import CompiledRouter


def described(*names):
    experts = tuple(ExpertConfig(name, f"http://127.0.0.1:1/v1#{name}") for name in names)
    return FleetConfig(experts, RouterConfig("router"))


@pytest.mark.parametrize("name", ["expert_router", "polyrouter_ridge"])
def test_the_gateway_decides_for_named_experts(name, example, tmp_path):
    router = routers.train(name, example, clusters=6, dimensions=20)
    loaded = CompiledRouter.load(router.save(tmp_path / "router"))
    config = described("lawyer", "generalist", "cook", "another")  # in any order, beside others
    served = [ServedExpert(expert.name, None, Limits()) for expert in config.experts]
    places = fleet.places(config, len(loaded.centers_), loaded.experts_)
    texts = example.texts[:40].tolist()

    async def decide():
        classify, decide = Classifier(loaded), Decider(served, places)
        rows = [row for row, _ in await asyncio.gather(*map(classify, texts))]
        first = [decide(row)[0].name for row in rows]
        served[1].up = False
        return first, [decide(row)[0].name for row in rows]

    first, without = asyncio.run(decide())
    predicted = router.head_.scores(router.embed(texts))
    assert first == [router.experts_[e] for e in predicted.argmax(axis=1)]
    predicted[:, router.experts_.index("generalist")] = -1
    assert without == [router.experts_[e] for e in predicted.argmax(axis=1)]


def test_a_fleet_without_one_of_the_experts_is_refused(example):
    router = routers.train("modem", example, dimensions=20)
    with pytest.raises(ErlabError, match="name those that the router was trained for: cook, generalist, lawyer"):
        fleet.places(described("lawyer", "cook"), 3, router.experts_)
