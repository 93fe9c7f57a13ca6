"""The description of a gateway: its file, the experts of each cluster, shares by weight, and changes at run time."""

import json
import os
import threading
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import replace

import grpc
import pytest
from fake_openai import FakeOpenAI
from fake_triton import COURT, GATES, KITCHEN, STREAM, FakeTriton, decoded, echo, obedient
from local import Local

from erlab.errors import ErlabError
from erlab.gateway import Gateway, fleet, kserve
from erlab.gateway.core import Decider, ServedExpert
from erlab.gateway.fleet import ExpertConfig, FleetConfig
from erlab.gateway.limits import Limits
from erlab.routing.compiled import Row

EXPERT = {"url": "grpc://127.0.0.1:1/m"}
FULL = """
[gateway]
host = "0.0.0.0"
port = 8001
http = false
workers = 2
hosts = ["llm.example.com"]
log = "access.jsonl"

[router]
prompts = "owner/name"
clusters = 4
features = "characters"

[policy]
name = "strong_weak"
strong = "big"
threshold = 0.75

[limits]
queue = 7
seconds = 20

[experts.big]
url = "https://big.example.com/v1"
model = "owner/Big-70B"
price = [0.5, 1.5]
key_variable = "BIG_KEY"

[experts.math]
url = "grpc://[::1]:8001/llama"
domains = ["mathematics"]
clusters = [3]
weight = 2.5
"""


def test_a_file_describes_a_gateway(tmp_path):
    (tmp_path / "fleet.toml").write_text(FULL)
    config = fleet.from_table(fleet.read(tmp_path / "fleet.toml"), folder=tmp_path)
    assert [expert.location for expert in config.experts] == [
        ("https://big.example.com/v1", "owner/Big-70B"),
        ("[::1]:8001", "llama"),
    ]
    assert config.experts[0].price == (0.5, 1.5) and config.experts[1].weight == 2.5
    assert (config.policy, config.special_expert) == ("strong_weak", "big")
    assert config.policy_parameters == {"threshold": 0.75}
    assert (config.port, config.http_port, config.workers) == (8001, None, 2)
    assert config.limits == Limits(queue=7, seconds=20)
    assert config.log == str(tmp_path / "access.jsonl")
    router = config.router
    assert router.trains and (router.prompts, router.clusters, router.features) == ("owner/name", 4, "characters")
    assert router.folder == str(tmp_path / "router")
    assert fleet.from_json(config.json()) == config and "\n" not in config.json()


def table(**parts):
    return {"experts": {"a": EXPERT, "b": EXPERT}} | parts


@pytest.mark.parametrize(
    "content, said",
    [
        ({}, "'experts' parameter of the gateway must name at least one expert"),
        (table(gatway={}), "fleet: must not have the key 'gatway'; did you mean 'gateway'?"),
        (table(gateway={"prot": 1}), r"fleet: \[gateway\]: must not have the key 'prot'; did you mean 'port'?"),
        (table(gateway={"port": "x"}), r"fleet: \[gateway\]: 'port' must be a whole number. Got 'x'"),
        (table(gateway={"port": 70000}), "'port' parameter of the gateway must be from 0 to 65535. Got 70000"),
        (table(gateway={"workers": 0}), "'workers' parameter of the gateway must be at least 1. Got 0"),
        (table(gateway={"http": False, "grpc": False}), "'grpc' parameter of the gateway must be open, or the HTTP"),
        (table(gateway={"origins": ["x.example"]}), "'origins' .* be https://HOST or http://HOST:PORT each"),
        (table(limits={"ques": 1}), r"fleet: \[limits\]: must not have the key 'ques'; did you mean 'queue'?"),
        (table(limits={"queue": -1}), r"'queue' parameter of \[limits\] must be at least 0. Got -1"),
        (table(router={"folder": "r", "cluster": 3}), "did you mean 'clusters'?"),
        (table(policy={"name": "nerest"}), "'policy' parameter of the gateway must be one of nearest"),
        (table(policy={"name": "outlier"}), "'generalist' parameter of the gateway must name an expert"),
        (table(policy={"name": "outlier", "generalist": "c"}), "'generalist' .* must be one of a, b. Got 'c'"),
        (table(policy={"generalist": "a"}), "'generalist' .* must stand only where the policy is outlier. Got 'a'"),
        (table(policy={"name": "spill", "factor": 0.5}), "'factor' .* at least 1, and only where the policy is spill"),
        (table(policy={"free": 2}), "'free' .* and only where the policy is spill. Got 2"),
        (table(experts={"a": {}}), r"fleet: \[experts.a\]: must have the key 'url'"),
        (table(experts={"a": {"url": "http://x/v1"}}), "'url' parameter of expert 'a' must be grpc://HOST:PORT/MODEL"),
        (table(experts={"a": {"url": "grpc://x/m"}}), "server's address must be HOST:PORT"),
        (table(experts={"router": EXPERT}), "'name' parameter of an expert must be printable text other than 'router'"),
        (table(experts={"a": EXPERT | {"weight": 0}}), "'weight' parameter of expert 'a' must be more than 0. Got 0"),
        (table(experts={"a": EXPERT | {"price": [1]}}), "'price' parameter of expert 'a' must be two numbers from 0"),
        (table(experts={"a": EXPERT | {"cluster": [1]}}), "did you mean 'clusters'?"),
        (table(experts=[1]), "fleet: 'experts' must be a table. Got"),
    ],
)
def test_a_wrong_file_is_one_line(content, said):
    with pytest.raises(ErlabError, match=said) as caught:
        fleet.from_table(content)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("fleet: ")


def test_an_unknown_parameter_of_a_policy_is_named():
    with pytest.raises(ErlabError, match="must be some of threshold, factor, free. Got 'fre'"):
        replace(config(a={}), policy_parameters={"fre": 3})


def config(**experts):
    return FleetConfig(tuple(ExpertConfig(n, "grpc://127.0.0.1:1/m", **about) for n, about in experts.items()))


def test_each_cluster_has_an_expert_or_says_so():
    assert fleet.places(config(a={}, b={}), 5) == ((0,), (1,), (0,), (1,), (0,))
    shared = config(a={"clusters": (0, 1)}, b={"clusters": (1, 2)}, by_name={})
    assert fleet.places(shared, 3) == ((0,), (0, 1), (1,))
    outlier = replace(config(a={}, g={}), policy="outlier", special_expert="g")
    assert fleet.places(outlier, 2) == ((0,), (0,))
    with pytest.raises(ErlabError, match="must have an expert. Got none for clusters 3, 4"):
        fleet.places(shared, 5)
    with pytest.raises(ErlabError, match=r"'clusters' parameter of expert 'a' must be from 0 to 0.* Got \[0, 1\]"):
        fleet.places(shared, 1)
    assert fleet.places(config(a={}, b={}), 2, ("b", "a")) == ((1,), (0,))
    with pytest.raises(ErlabError, match="'experts' .* that the router was trained for: a, c. Got 'a, b'"):
        fleet.places(config(a={}, b={}), 2, ("a", "c"))
    domains = {0: "law", 1: "cooking", 2: "law"}
    found = fleet.resolved(config(a={"domains": ("law",), "clusters": (1,)}, b={"domains": ("cooking",)}), domains)
    assert [expert.clusters for expert in found.experts] == [(0, 1, 2), (1,)]
    with pytest.raises(ErlabError, match="no cluster of the domain 'cocking'; did you mean 'cooking'?"):
        fleet.resolved(config(a={"domains": ("cocking",)}), domains)


def test_experts_share_a_cluster_by_weight():
    experts = [ServedExpert(name, None, Limits()) for name in "abc"]
    decide = Decider(experts, [(0, 1), (2,)], weights=(3.0, 1.0, 1.0))
    kitchen, court = Row(0, 0.1, 0.2, 1, (0, 1)), Row(1, 0.1, 0.2, 0, (1, 0))
    turns = [decide(row)[0].name for _ in range(200) for row in (kitchen, court)]
    counts = Counter(turns[::2])
    assert abs(counts["a"] - 150) <= 2 and counts["a"] + counts["b"] == 200 and set(turns[1::2]) == {"c"}
    assert {decide(kitchen, avoid=experts[0])[0].name for _ in range(20)} == {"b"}  # not the next cluster's expert
    experts[1].up = False
    assert {decide(kitchen)[0].name for _ in range(20)} == {"a"}
    experts[0].up, experts[0].down_reason, experts[1].down_reason = False, "refused", "silent"
    assert decide(kitchen)[0].name == "c"
    experts[2].up = False
    with pytest.raises(ErlabError, match=r"None of the 3 experts is up \(a: refused; b: silent\)"):
        decide(kitchen)


def test_all_experts_of_a_cluster_are_known_to_policies_that_look_at_load():
    experts = [ServedExpert(name, None, Limits()) for name in "ab"]
    least = Decider(experts, [(0, 1)], "least_outstanding", weights=(100.0, 1.0))
    experts[0].outstanding = 1
    assert least(Row(0, 0.1, 0.2, -1, (0,)))[0].name == "b"


def post(gateway, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{gateway.http}/v1/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers, json.loads(answer.read())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_change_loses_nothing_and_a_broken_one_changes_nothing(router_folder, workers):
    """A request that began before the change ends at its expert, which is gone for all others."""
    with FakeTriton({"old": obedient, "new": echo}) as fake:
        settings = {"http_port": 0, "workers": workers}
        with Gateway.of(router_folder, fake.address, ("old",), **settings) as gateway:
            with grpc.insecure_channel(gateway.address) as channel:
                call = channel.unary_stream(STREAM)(kserve.request("router", "wait change", 4).SerializeToString())
                fake.wait(lambda: fake.in_flight["old"] == 1)
                gateway.reload(fleet.from_clusters(router_folder, fake.address, ("new",), **settings))
                for _ in range(8):  # of either worker
                    headers, answer = post(gateway, {"prompt": KITCHEN[0]})
                    assert headers["x-erlab-expert"] == answer["model"] == "new"
                with pytest.raises(urllib.error.HTTPError):
                    post(gateway, {"prompt": "x", "model": "old"})
                for folder, experts, change, said in (
                    (router_folder.parent / "none", ("old",), {}, "none"),
                    (router_folder, ("a", "b", "c"), {}, "'experts' parameter of the gateway must be 1 to 2"),
                    (router_folder, ("old",), {"workers": 3}, "'workers' must not change"),
                ):
                    with pytest.raises(ErlabError, match=said):
                        gateway.reload(fleet.from_clusters(folder, fake.address, experts, **settings | change))
                    assert post(gateway, {"prompt": KITCHEN[0]})[1]["model"] == "new"
                fake.loop.call_soon_threadsafe(GATES["change"].set)
                assert [kserve.text(r.infer_response) for r in decoded(list(call))] == ["late"]


def test_an_expert_gets_its_own_key_and_not_the_clients(router, monkeypatch):
    monkeypatch.setenv("EXPERT_KEY", "sesame")
    with FakeOpenAI() as web, FakeTriton({"m": echo}) as triton:
        experts = ExpertConfig("web", f"{web.base}#m", (0, 1), key_variable="EXPERT_KEY"), ExpertConfig(
            "triton", f"grpc://{triton.address}/m", key_variable="EXPERT_KEY"
        )
        described = FleetConfig(experts, fleet.RouterConfig("in memory"), http_port=0)
        with Local(router, config=described, key="client's") as gateway:
            gateway.http = gateway.addresses["http"]
            for model in ("router", "triton"):
                data = json.dumps({"prompt": "x", "model": model}).encode()
                headers = {"Content-Type": "application/json", "Authorization": "Bearer client's"}
                request = urllib.request.Request(f"{gateway.http}/v1/completions", data, headers)
                urllib.request.urlopen(request, timeout=60).close()
        assert web.headers[-1]["Authorization"] == triton.metadata[-1]["authorization"] == "Bearer sesame"
    monkeypatch.delenv("EXPERT_KEY")
    with pytest.raises(ErlabError, match="variable EXPERT_KEY must hold the key of expert 'web'. It is not set"):
        with Local(router, config=described):
            pass


@pytest.mark.parametrize("prompts", [False, True])
def test_the_access_log_has_a_line_for_each_request(router, tmp_path, prompts):
    log = tmp_path / "access.jsonl"
    with FakeTriton({"e": obedient}) as fake:
        settings = {"http_port": 0, "log": str(log), "log_prompts": prompts}
        with Local(router, fake.address, ("e",), **settings) as gateway:
            gateway.http = gateway.addresses["http"]
            post(gateway, {"prompt": KITCHEN[0]})
            with pytest.raises(urllib.error.HTTPError):
                post(gateway, {"prompt": "fail"})
            os.rename(log, tmp_path / "rotated")
            config = fleet.from_clusters("in memory", fake.address, ("e",), **settings)
            with pytest.raises(ErlabError):  # a router in memory cannot be loaded; the log stays as it is
                gateway.reload(config)
            with grpc.insecure_channel(gateway.address) as channel:
                list(channel.unary_stream(STREAM)(kserve.request("e", "one two", 4).SerializeToString()))
    lines = [json.loads(line) for line in (tmp_path / "rotated").read_text().splitlines()]
    assert [line["model"] for line in lines] == ["router", "router", "e"]
    assert [line["status"] for line in lines] == ["ok", "unknown", "ok"]
    routed = lines[0]
    assert routed["expert"] == "e" and routed["characters"] == len(KITCHEN[0]) and routed["policy"] == "nearest"
    assert 0 <= routed["queue_ms"] <= routed["first_ms"] <= routed["ms"] and routed["cluster"] in (0, 1)
    assert lines[1]["error"] and "http:127.0.0.1" == routed["client"] and lines[2]["client"].startswith("grpc:")
    assert [line.get("prompt") for line in lines] == ([KITCHEN[0], "fail", "one two"] if prompts else [None] * 3)


def test_pages_of_the_given_origins_may_read_answers_and_no_others(router):
    with FakeTriton({"e": echo}) as fake:
        with Local(router, fake.address, ("e",), http_port=0, origins=("https://ok.example",), key="k") as gateway:
            url = gateway.addresses["http"]
            for origin, allowed in (("https://ok.example", "https://ok.example"), ("https://evil.example", None)):
                asked = "authorization, content-type, x-stainless-os"
                headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
                headers |= {"Access-Control-Request-Headers": asked}
                request = urllib.request.Request(f"{url}/v1/completions", headers=headers, method="OPTIONS")
                try:
                    with urllib.request.urlopen(request, timeout=60) as answer:
                        status, got = answer.status, answer.headers
                except urllib.error.HTTPError as e:
                    status, got = e.code, e.headers
                assert (status == 204) == bool(allowed) and got["Access-Control-Allow-Origin"] == allowed
                assert got["Access-Control-Allow-Headers"] == (asked if allowed else None)
                headers = {"Origin": origin, "Content-Type": "application/json", "Authorization": "Bearer k"}
                data = json.dumps({"prompt": COURT[0], "stream": True}).encode()
                request = urllib.request.Request(f"{url}/v1/completions", data, headers)
                with urllib.request.urlopen(request, timeout=60) as answer:
                    assert answer.headers["Access-Control-Allow-Origin"] == allowed
                    assert b"[DONE]" in answer.read()


def test_experts_that_all_fail_are_a_503_with_the_reason_until_one_is_back(router):
    with FakeOpenAI() as fake:
        port = int(fake.base.split(":")[2].split("/")[0])
        with Local(router, None, (f"{fake.base}#m",), http_port=0) as gateway:
            gateway.http = gateway.addresses["http"]
            assert post(gateway, {"prompt": "x"})[0]["x-erlab-expert"]
            fake.__exit__()
            down = threading.Event()
            while not down.is_set():
                with pytest.raises(urllib.error.HTTPError) as caught:
                    post(gateway, {"prompt": "x"})
                assert caught.value.code == 503
                message = json.loads(caught.value.read())["error"]["message"]
                if message.startswith("None of the 1 experts is up"):
                    assert "no connection (ConnectionRefusedError)" in message
                    down.set()
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{gateway.http}/health/ready", timeout=60)
            assert caught.value.code == 503 and json.loads(caught.value.read())["status"] == "down"
            with FakeOpenAI(port):
                while True:
                    try:
                        post(gateway, {"prompt": "x"})
                        break
                    except urllib.error.HTTPError as e:
                        assert e.code == 503
            with urllib.request.urlopen(f"{gateway.http}/health/ready", timeout=60) as answer:
                assert json.loads(answer.read())["status"] == "ok"
