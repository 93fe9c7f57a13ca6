"""A fake server, and a gateway before it."""

import pytest
from fake_triton import COURT, KITCHEN, FakeTriton, obedient

from erlab.gateway import Gateway
from erlab.routing import PromptRouter


@pytest.fixture
def fake():
    with FakeTriton({"expert_0": obedient, "expert_1": obedient}) as running:
        yield running


@pytest.fixture(scope="session")
def router_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("users") / "router"
    PromptRouter(clusters=2).fit(KITCHEN + COURT).save(folder)
    return folder


@pytest.fixture
def gateway(fake, router_folder):
    with Gateway.of(router_folder, fake.address, ("expert_0", "expert_1")) as running:
        yield running
