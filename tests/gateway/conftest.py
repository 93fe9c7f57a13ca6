"""A router of two clusters, a fake server of two experts, and a gateway process between them and the tests."""

import grpc
import pytest
from fake_triton import COURT, KITCHEN, FakeTriton, echo, obedient

from erlab.gateway import Gateway
from erlab.routing import PromptRouter


@pytest.fixture(scope="session")
def router_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway") / "router"
    PromptRouter(clusters=2).fit(KITCHEN + COURT).save(folder)
    return folder


@pytest.fixture(scope="session")
def router(router_folder):
    return PromptRouter.load(router_folder)


@pytest.fixture(scope="session")
def homes(router):
    """A prompt of each cluster."""
    return {int(router.predict([prompt])[0]): prompt for prompt in (KITCHEN[0], COURT[0])}


@pytest.fixture(scope="module")
def fake():
    with FakeTriton({"expert_0": obedient, "expert_1": obedient, "other": echo}) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(fake, router_folder):
    with Gateway.of(router_folder, fake.address, ("expert_0", "expert_1")) as running:
        yield running


@pytest.fixture
def channel(gateway):
    with grpc.insecure_channel(gateway.address) as opened:
        yield opened
