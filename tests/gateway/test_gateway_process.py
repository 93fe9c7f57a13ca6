"""The gateway as a process: how it starts, what it says when it cannot, and that it always ends."""

import os
import signal
import subprocess
import sys

import grpc
import psutil
import pytest
from fake_triton import GATES, KITCHEN, STREAM, FakeTriton, decoded, stream
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.errors import ErlabError
from erlab.gateway import Gateway
from erlab.triton import client

EXPERTS = ("expert_0", "expert_1")


def ask(text):
    return client.request("router", text, 4).SerializeToString()


def children():
    return psutil.Process().children(recursive=True)


def test_a_port_in_use_is_named_in_one_line(fake, gateway, router_folder):
    port = int(gateway.address.rpartition(":")[2])
    with pytest.raises(ErlabError, match=rf"listen on 127.0.0.1:{port}: the port is in use\.$"):
        with Gateway(router_folder, fake.address, EXPERTS, port=port):
            pass
    assert [child.pid for child in children()] == [gateway.pid]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"experts_of_clusters": ("a", "b", "c")}, "'--experts' parameter of the gateway must name 1 to 2"),
        ({"experts_of_clusters": ("a", "")}, "'--experts' parameter of the gateway must name 1 to 2"),
        ({"policy": "farthest"}, "'policy' parameter of Decider must be one of nearest"),
        ({"upstream": "nowhere"}, "must be HOST:PORT"),
        ({"upstream": "127.0.0.1:1", "timeout": 0.5}, "127.0.0.1:1 behind .* was not ready in 0.5 s .UNAVAILABLE"),
    ],
)
def test_what_keeps_it_from_starting_is_said(fake, router_folder, change, said):
    parameters = {"router": router_folder, "upstream": fake.address, "experts_of_clusters": EXPERTS} | change
    before = children()
    with pytest.raises(ErlabError, match=said) as caught:
        with Gateway(**parameters):
            pass
    assert "\n" not in str(caught.value)
    assert children() == before


def test_a_missing_router_is_named(fake, tmp_path):
    with pytest.raises(ErlabError, match=str(tmp_path / "none")):
        with Gateway(tmp_path / "none", fake.address, EXPERTS):
            pass


def test_fewer_experts_than_clusters_share_them(fake, router_folder):
    with Gateway(router_folder, fake.address, ("expert_1",)) as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            for prompt in KITCHEN[0], "the court":
                said = decoded(stream(channel, ask(prompt)))[0].infer_response.parameters
                assert said["erlab_expert"].string_param == "expert_1"


def test_ctrl_c_in_the_body_ends_it(fake, router_folder):
    with pytest.raises(KeyboardInterrupt):
        with Gateway(router_folder, fake.address, EXPERTS) as gateway:
            process = psutil.Process(gateway.pid)
            assert gateway.alive()
            raise KeyboardInterrupt
    assert not process.is_running() and not gateway.alive()


def test_it_ends_requests_in_flight_before_it_stops(fake, router_folder):
    with Gateway(router_folder, fake.address, EXPERTS) as gateway, grpc.insecure_channel(gateway.address) as channel:
        call = channel.unary_stream(STREAM)(ask("wait drain"), timeout=10)
        fake.wait(lambda: fake.in_flight.total() == 1)
        os.kill(gateway.pid, signal.SIGTERM)
        with grpc.insecure_channel(gateway.address) as late:  # refused once it drains
            stub = service_pb2_grpc.GRPCInferenceServiceStub(late)
            with pytest.raises(grpc.RpcError):
                while True:
                    stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)
        fake.loop.call_soon_threadsafe(GATES["drain"].set)
        assert [client.text(r.infer_response) for r in decoded(list(call))] == ["late"]
        assert psutil.Process(gateway.pid).wait(10) == 0


def test_it_dies_with_its_parent(fake, router_folder):
    script = (
        "import sys; from erlab.gateway import Gateway\n"
        f"with Gateway({str(router_folder)!r}, {fake.address!r}, {EXPERTS!r}) as g: print(g.pid, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        process = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    process.wait(10)


def test_one_that_is_killed_is_seen(fake, router_folder):
    with Gateway(router_folder, fake.address, EXPERTS) as gateway:
        assert gateway.alive()
        os.kill(gateway.pid, signal.SIGKILL)
        psutil.Process(gateway.pid).wait(10)
        assert not gateway.alive()
