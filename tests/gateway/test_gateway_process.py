"""The gateway as a process: how it starts, what it says when it cannot, and that it always ends."""

import json
import os
import signal
import subprocess
import sys
import time

import grpc
import psutil
import pytest
from fake_triton import COURT, GATES, KITCHEN, STREAM, FakeTriton, decoded, echo, stream
from local import Local
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab import paper
from erlab.errors import ErlabError
from erlab.gateway import Gateway, kserve
from erlab.paths import Folders
from erlab.routing import PromptRouter
from erlab.serving import deployment, profiles

EXPERTS = ("expert_0", "expert_1")
# What a process says of itself on SIGUSR1: its libraries of linear algebra and their threads, and what it has imported.
TELLING = """
import json, os, signal, sys

def tell(*_):
    from threadpoolctl import threadpool_info
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    with open(os.environ["TOLD"] + ".part", "w") as file:
        json.dump({"blas": blas, "imported": list(sys.modules)}, file)
    os.replace(file.name, os.environ["TOLD"])

signal.signal(signal.SIGUSR1, tell)
"""


def ask(text):
    return kserve.request("router", text, 4).SerializeToString()


def children():
    return set(psutil.Process().children(recursive=True))


def test_a_port_in_use_is_named_in_one_line(fake, gateway, router_folder):
    port, before = int(gateway.address.rpartition(":")[2]), children()
    with pytest.raises(ErlabError, match=rf"listen on 127.0.0.1:{port}: the port is in use\.$"):
        with Gateway.of(router_folder, fake.address, EXPERTS, port=port):
            pass
    assert not children() - before


def test_an_address_of_no_one_here_is_not_called_a_port_in_use(router, fake):
    with pytest.raises(ErlabError, match=r"listen on 192\.0\.2\.1:0: .*cannot assign requested address\.$"):
        with Local(router, fake.address, EXPERTS, host="192.0.2.1"):  # of a network that is for documents only
            pass


@pytest.mark.parametrize(
    "change, said",
    [
        ({"experts_of_clusters": ("a", "b", "c")}, "'experts' .* must be 1 to 2, as the router has 2 clusters"),
        ({"experts_of_clusters": ("a", "")}, "'name' parameter of an expert must be printable text"),
        ({"experts_of_clusters": ("http://x:port/v1#m",)}, r"or http://HOST:PORT/v1#MODEL .* Got 'http://x:port/v1#m'"),
        ({"policy": "farthest"}, "'policy' parameter of the gateway must be one of nearest"),
        ({"policy": "outlier"}, "'generalist' parameter of the gateway must name an expert where the"),
        ({"upstream": "nowhere"}, "must be HOST:PORT"),
        ({"upstream": "127.0.0.1:1", "timeout": 0.5}, "No server .* was ready in 0.5 s .UNAVAILABLE.*: 127.0.0.1:1"),
    ],
)
def test_what_keeps_it_from_starting_is_said(fake, router_folder, change, said):
    parameters = {"router": router_folder, "upstream": fake.address, "experts_of_clusters": EXPERTS} | change
    before = children()
    with pytest.raises(ErlabError, match=said) as caught:
        with Gateway.of(**parameters):
            pass
    assert "\n" not in str(caught.value)
    assert not children() - before


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"policy": "outlier", "generalist": "g"}, "needs a router with an outlier threshold .* Got one without"),
        ({"policy": "strong_weak"}, "'strong' parameter of the gateway must name an expert where the policy is strong"),
        ({"policy": "strong_weak", "strong": "s"}, "needs a router with a difficulty score .* Got one without"),
        ({"generalist": "g"}, "'generalist' parameter of the gateway must .* only there. Got 'g'"),
        ({"threshold": 0.3}, "'threshold' parameter of the gateway must .* where the policy is strong_weak. Got 0.3"),
        ({"policy": "strong_weak", "strong": "s", "threshold": 30.0}, "'threshold' .* be from 0 to 1.* Got 30.0"),
    ],
)
def test_policies_without_what_they_need_are_refused(router, fake, settings, said):
    with pytest.raises(ErlabError, match=said):
        with Local(router, fake.address, EXPERTS, **settings):
            pass


def test_a_served_system_chooses_among_its_own_models(tmp_path, router):
    """What it cannot choose by is said before any engine starts; here is none."""
    folders = Folders(tmp_path)
    router.save(folders.router)
    for key, choice, said in [
        ("A", {"policy": "outlier"}, "System A has no gateway, so it takes no policy."),
        ("A", {"threshold": 0.3}, "System A has no gateway, so it takes no threshold."),
        ("E", {"generalist": "x"}, "must be one of E-expert-0, E-expert-1.* Got 'x'"),
        ("E", {"policy": "farthest"}, "'policy' parameter of the gateway must be one of nearest"),
        ("E", {"policy": "strong_weak", "strong": "E-expert-1"}, "needs a router with a difficulty score"),
    ]:
        with pytest.raises(ErlabError, match=said):
            with deployment.serve(key, paper.SYSTEMS["v2"][key], profiles.profile("smoke"), folders, **choice):
                pass


def test_a_missing_router_is_named(fake, tmp_path):
    with pytest.raises(ErlabError, match=str(tmp_path / "none")):
        with Gateway.of(tmp_path / "none", fake.address, EXPERTS):
            pass


def test_fewer_experts_than_clusters_share_them(fake, router_folder):
    with Gateway.of(router_folder, fake.address, ("expert_1",)) as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            for prompt in KITCHEN[0], "the court":
                said = decoded(stream(channel, ask(prompt)))[0].infer_response.parameters
                assert said["erlab_expert"].string_param == "expert_1"


def test_the_generalist_and_the_strong_expert_answer_their_prompts(tmp_path):
    """Through gateway processes: what is far from both clusters, and what was learnt to be difficult."""
    router = PromptRouter(clusters=2).fit(KITCHEN + COURT).calibrate(KITCHEN + COURT, share=0.2)
    router.fit_difficulty(KITCHEN + COURT, [True] * len(KITCHEN) + [False] * len(COURT))
    router.save(tmp_path / "router")
    prompts = [*KITCHEN, *COURT, "qwerty uiop", "the egg and the court"]
    rows = [router.route(prompts).row(i) for i in range(len(prompts))]
    assert {row.outlier for row in rows} == {row.difficulty >= 0.5 for row in rows} == {True, False}
    hardest = max(row.difficulty for row in rows)
    assert sum(row.difficulty >= 0.5 for row in rows) > 1
    cases = [
        ("outlier", {"generalist": "extra"}, [row.outlier for row in rows]),
        ("strong_weak", {"strong": "extra"}, [row.difficulty >= 0.5 for row in rows]),
        ("strong_weak", {"strong": "extra", "threshold": hardest - 1e-9}, [row.difficulty == hardest for row in rows]),
    ]
    with FakeTriton(dict.fromkeys([*EXPERTS, "extra"], echo)) as fake:
        for policy, choice, special in cases:
            with Gateway.of(tmp_path / "router", fake.address, EXPERTS, policy, **choice) as gateway:
                with grpc.insecure_channel(gateway.address) as channel:
                    said = [decoded(stream(channel, ask(prompt)))[0].infer_response for prompt in prompts]
            wanted = ["extra" if is_special else EXPERTS[row.cluster] for row, is_special in zip(rows, special)]
            assert [response.parameters["erlab_expert"].string_param for response in said] == wanted
            assert [response.model_name for response in said] == wanted


@pytest.fixture
def told(fake, router_folder, tmp_path, monkeypatch):
    """What a gateway says of itself that has routed a prompt."""
    (tmp_path / "sitecustomize.py").write_text(TELLING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TOLD", str(tmp_path / "told.json"))
    with Gateway.of(router_folder, fake.address, EXPERTS) as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            assert len(stream(channel, ask(KITCHEN[0]))) == len(KITCHEN[0].split())  # all it needs is loaded
        os.kill(gateway.pid, signal.SIGUSR1)
        end = time.monotonic() + 60
        while not (tmp_path / "told.json").exists():
            assert time.monotonic() < end and gateway.alive()
            time.sleep(0.02)
    return json.loads((tmp_path / "told.json").read_text())


def test_it_classifies_on_one_thread(told):
    """BLAS's own threads would spin for every small product: several times the CPU for nothing."""
    assert told["blas"] and {pool["num_threads"] for pool in told["blas"]} == {1}, told["blas"]


def test_it_imports_nothing_that_only_training_or_showing_needs(told):
    """Each takes from a third of a second to several to import, and the gateway starts anew for each system."""
    heavy = {"sklearn", "pandas", "pyarrow", "datasets", "matplotlib", "torch", "scipy.stats"}
    assert {"numpy", "grpc"} <= set(told["imported"]) and not heavy & set(told["imported"])


def test_ctrl_c_in_the_body_ends_it(fake, router_folder):
    with pytest.raises(KeyboardInterrupt):
        with Gateway.of(router_folder, fake.address, EXPERTS) as gateway:
            process = psutil.Process(gateway.pid)
            assert gateway.alive()
            raise KeyboardInterrupt
    assert not process.is_running() and not gateway.alive()


def test_it_ends_requests_in_flight_before_it_stops(fake, router_folder):
    with Gateway.of(router_folder, fake.address, EXPERTS) as gateway, grpc.insecure_channel(gateway.address) as channel:
        call = channel.unary_stream(STREAM)(ask("wait drain"), timeout=60)
        fake.wait(lambda: fake.in_flight.total() == 1)
        os.kill(gateway.pid, signal.SIGTERM)
        with grpc.insecure_channel(gateway.address) as late:  # refused once it drains
            stub = service_pb2_grpc.GRPCInferenceServiceStub(late)
            with pytest.raises(grpc.RpcError):
                while True:
                    stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)
        fake.loop.call_soon_threadsafe(GATES["drain"].set)
        assert [kserve.text(r.infer_response) for r in decoded(list(call))] == ["late"]
        assert psutil.Process(gateway.pid).wait(60) == 0


def test_it_dies_with_its_parent(fake, router_folder):
    script = (
        "from erlab.gateway import Gateway\n"
        f"with Gateway.of({str(router_folder)!r}, {fake.address!r}, {EXPERTS!r}) as gateway:\n"
        "    print(gateway.pid, flush=True), input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        process = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    process.wait(60)


def test_one_that_is_killed_is_seen(fake, router_folder):
    with Gateway.of(router_folder, fake.address, EXPERTS) as gateway:
        assert gateway.alive()
        os.kill(gateway.pid, signal.SIGKILL)
        psutil.Process(gateway.pid).wait(60)
        assert not gateway.alive()
