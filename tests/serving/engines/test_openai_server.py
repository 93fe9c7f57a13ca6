"""OpenAI-compatible servers: the tiny server, and how vLLM and others are started, queried, lost and stopped."""

import asyncio
import json
import stat
import sys
from pathlib import Path

import psutil
import pytest
import requests
from aiohttp.test_utils import TestClient, TestServer
from transformers import AutoTokenizer, LlamaConfig

from erlab import paper, users
from erlab.errors import ErlabError
from erlab.gateway import kserve as client
from erlab.gateway.wire import messages, openai
from erlab.prompts.workload import Request
from erlab.serving.engines import openai_models, tiny, tiny_openai
from erlab.serving.engines.openai_server import ExternalOpenAI, OpenAIServer, OpenAIServers, base
from erlab.simulation.hardware import gpu
from erlab.spec import BF16, FLOAT32, FP8, GIB, Expert, Model
from erlab.users.loop import record

FAKE = Path(__file__).with_name("fake_vllm.py")
EXPERT = Expert(paper.LLAMA_3_8B, BF16, kv_tokens=65_536)
SMALL = Model("tiny", hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vocab=260, max_positions=4096)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("tiny") / "engine", SMALL, FLOAT32, seed=3)


@pytest.fixture
def vllm(tmp_path, engine, monkeypatch):
    """A `vllm` on PATH; returns what it was called with so far."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {FAKE} \"$@\"\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    calls = tmp_path / "calls.jsonl"
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("FAKE_VLLM_CALLS", str(calls))
    monkeypatch.setenv("FAKE_VLLM_ENGINE", str(engine))
    return lambda: [json.loads(line) for line in calls.read_text().splitlines()]


@pytest.fixture
def repository(tmp_path):
    """Two servers of one model."""
    folder = openai_models.build("vllm", EXPERT, tmp_path / "engines" / "8b", seed=0)
    for name in ("E-expert-0", "E-expert-1"):
        openai_models.write(tmp_path / "models", name, folder, EXPERT, gpu("H200"))
    return tmp_path / "models"


def reference(engine, prompt, tokens):
    import torch

    ids = tiny.encode(prompt)
    answer = tiny.reference(engine).generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)
    return tiny.decode(answer[0, len(ids) :].tolist())


def children():
    return set(psutil.Process().children(recursive=True))


def test_users_reach_each_model_by_its_name_and_nothing_is_left(vllm, repository, engine):
    before = children()
    with OpenAIServers(repository, ("E-expert-0", "E-expert-1")) as server:
        for model, upstream in zip(server.models, server.upstreams):
            pieces = list(client.generate(server.grpc, model, "What is a watt?", 12, timeout=30))
            assert "".join(pieces) == reference(engine, "What is a watt?", 12) and len(pieces) == 12
            url, _, name = upstream.partition("#")
            body = {"model": name, "prompt": "a", "max_tokens": 5}
            assert requests.post(f"{url}/completions", json=body).json()["usage"]["completion_tokens"] == 5
        with pytest.raises(ErlabError, match="no model 'E-expert-2' here, only E-expert-0, E-expert-1"):
            list(client.generate(server.grpc, "E-expert-2", "x", 1, timeout=30))
        assert "erlab_output_tokens_total" in requests.get(server.metrics["E-expert-0"]).text
        assert server.alive() and len(vllm()) == 2
        logs = [one.log for one in server._servers]
    assert not children() - before
    assert not any(log.exists() for log in logs)


def test_all_started_processes_listen_on_the_loopback_only(vllm, repository):
    before = children()
    with OpenAIServers(repository, ("E-expert-0",)) as server:
        opened = [c for process in children() - before for c in process.net_connections("inet")]
        listening = {c.laddr for c in opened if c.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)}  # TCP and UDP
    addresses = {f"{address.ip.removeprefix('::ffff:')}:{address.port}" for address in listening}  # IPv4-mapped or not
    assert {address.rpartition(":")[0] for address in addresses} == {"127.0.0.1"}
    assert {server.grpc, server._servers[0].base[7:-3]} <= addresses


def test_users_count_tokens_as_the_server_does(vllm, repository):
    asks = [[Request("p", "d", "What is a watt?", 16, 7)]]
    with OpenAIServers(repository, ("E-expert-0",)) as server:
        (row,) = users.run(server.grpc, server.models, asks, timeout=60)
    assert (row["status"], row["output_tokens"], len(row["token_times"])) == ("ok", 7, 7)
    two = openai.text_response("m", "", "two tokens")  # in one event
    answers = [messages.streamed(r) for r in (two, openai.count_response("m", "", 2))]
    row = record(0, [10, 20], answers, "ok", None, 30, 0)
    assert (row["output_tokens"], row["token_times"], row["t_last"]) == (2, [10], 10)


def test_a_server_that_dies_is_noticed_and_its_log_is_kept(vllm, repository):
    before = children()  # another test's server may be among them
    with OpenAIServers(repository, ("E-expert-0",)) as server:
        (keeper,) = [p for p in children() - before if "keeper.py" in " ".join(p.cmdline())]
        keeper.children()[0].kill()
        server._servers[0]._keeper.wait(60)
        assert not server.alive()
        log = server.log
    assert log.exists()
    log.unlink()


@pytest.mark.parametrize(
    "mode, said",
    [
        ("fail", "vllm did not start E-expert-0: .*CUDA out of memory"),
        ("hang", "did not answer within 3 s .*INFO loading weights"),
    ],
)
def test_a_server_that_does_not_start_is_reported_and_stopped(vllm, repository, monkeypatch, mode, said):
    monkeypatch.setenv("FAKE_VLLM", mode)
    before = children()
    with pytest.raises(ErlabError, match=said) as caught:
        with OpenAIServer(repository / "E-expert-0", timeout=3 if mode == "hang" else 60):
            pass
    assert "\n" not in str(caught.value) and not children() - before
    Path(str(caught.value).rpartition("Its log: ")[2].rstrip(".")).unlink()


def test_an_external_server_is_used_and_left_running(vllm, repository, engine):
    with OpenAIServer(repository / "E-expert-0") as theirs:
        with ExternalOpenAI(theirs.base.removesuffix("/v1"), ("C-replica-0", "C-replica-1")) as server:
            assert set(server.upstreams) == {f"{theirs.base}#E-expert-0"}
            for model in server.models:
                assert len(list(client.generate(server.grpc, model, "x", 4, timeout=30))) == 4
        assert theirs.alive()
    with pytest.raises(ErlabError, match="No OpenAI-compatible server answers at"):
        with ExternalOpenAI(theirs.base.removesuffix("/v1"), ("m",)):
            pass


@pytest.mark.parametrize("url", ["http://", "ftp://h:1", "http://h:1/v2", "http://h:0", "http://h:99999"])
def test_invalid_addresses_are_refused(url):
    with pytest.raises(ErlabError, match="must be http://HOST:PORT"):
        base(url)


def test_the_tiny_server_reports_errors_as_openai_does(vllm, repository):
    with OpenAIServer(repository / "E-expert-0") as server:
        url = f"{server.base}/completions"
        for body, said in (
            ({"model": "other", "prompt": "x"}, "'model' must be E-expert-0"),
            ({"model": "E-expert-0", "prompt": ["x"]}, "'prompt' must be one text"),
            ({"model": "E-expert-0", "prompt": "x", "max_tokens": 0}, "'max_tokens' must be a whole number"),
            ({"model": "E-expert-0", "prompt": "x", "max_tokens": True}, "'max_tokens' must be a whole number"),
            ({"model": "E-expert-0", "prompt": "x", "stream": "false"}, "'stream' must be true, false or null"),
            ({"model": "E-expert-0", "prompt": "x", "max_tokens": 5000}, "within 2048 tokens"),
        ):
            answer = requests.post(url, json=body)
            assert answer.status_code == 400 and said in answer.json()["error"]["message"]
        body = {"model": "E-expert-0", "prompt": "x", "max_tokens": 3, "stream": True}
        body["stream_options"] = {"include_usage": True}
        events = [line.removeprefix("data: ") for line in requests.post(url, json=body).text.splitlines() if line]
        usage = json.loads(events[3])["usage"]
        assert len(events) == 5 and events[4] == "[DONE]"
        assert usage == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        body = {"model": "E-expert-0", "prompt": "x", "max_tokens": None, "stream": None, "stream_options": None}
        assert requests.post(url, json=body).json()["usage"]["completion_tokens"] == 16


class _Spelling:
    """An engine that answers with the bytes of a text, a byte a step."""

    running = waiting = 0

    def submit(self, key, prompt, max_tokens):
        self.key, self.left, self.running = key, list("é€".encode()), 1

    def cancel(self, key):
        self.running = 0

    def step(self):
        token = self.left.pop(0)
        self.running = int(bool(self.left))
        return [(self.key, token, not self.left)]


def test_a_character_of_several_tokens_is_sent_whole():
    async def main():
        async with TestClient(TestServer(tiny_openai.application(_Spelling(), "m"))) as client:
            body = {"model": "m", "prompt": "x", "max_tokens": 5}
            whole = await (await client.post("/v1/completions", json=body)).json()
            streamed = await (await client.post("/v1/completions", json=body | {"stream": True})).text()
        events = [json.loads(line[6:]) for line in streamed.split("\n\n")[:5]]
        return whole["choices"][0]["text"], [event["choices"][0]["text"] for event in events]

    assert asyncio.run(main()) == ("é€", ["", "é", "", "", "€"])


# ---- how they are called


def flags(argv):
    return dict(zip(argv[3::2], argv[4::2]))


def test_the_vllm_command_has_the_limits_of_the_expert():
    expert = Expert(paper.LLAMA_3_70B, FP8, max_batch_size=128, kv_tokens=54_400)
    argv = openai_models.vllm(expert, Path("/models/70b"), "D-expert-0", 0.83, dummy=True)
    found = flags(argv)
    assert argv[-2:] == ("--no-enable-prefix-caching", "--disable-uvicorn-access-log")
    assert argv[1:3] == ("serve", "/models/70b")
    assert found["--quantization"] == found["--kv-cache-dtype"] == "fp8" and found["--load-format"] == "dummy"
    assert int(found["--num-gpu-blocks-override"]) * 16 == 54_400
    assert (found["--max-num-seqs"], found["--max-model-len"]) == ("128", "2048")
    narrow = flags(openai_models.vllm(EXPERT, Path("/m"), "E", 0.2, dummy=False))
    assert not {"--quantization", "--kv-cache-dtype", "--load-format"} & narrow.keys()
    assert all(flag.startswith("--") for flag in narrow)


def test_the_trtllm_serve_command_and_options(tmp_path):
    expert = Expert(paper.LLAMA_3_70B, FP8, kv_tokens=54_400)
    folder = openai_models.build("trtllm-serve", expert, tmp_path / "70b", seed=0)
    assert json.loads((folder / "hf_quant_config.json").read_text())["quantization"]["kv_cache_quant_algo"] == "FP8"
    file = openai_models.write(tmp_path / "models", "D-expert-0", folder, expert, gpu("H100"))
    found = json.loads(file.read_text())
    argv, given = found["argv"], flags(found["argv"])
    model = Path(argv[2])
    assert argv[:2] == ["trtllm-serve", "serve"] and model.name == "D-expert-0"  # which is what it calls the model
    assert (model / "config.json").is_file() and (model / "tokenizer.json").is_file()
    options = json.loads(Path(given["--extra_llm_api_options"]).read_text())
    cache = {"enable_block_reuse": False, "dtype": "fp8", "max_tokens": 54_400}
    assert options == {"kv_cache_config": cache, "load_format": "dummy"}
    assert found["metrics"] == "/prometheus/metrics"


def test_a_model_folder_has_the_real_shape_and_no_weights(tmp_path):
    folder = openai_models.build("vllm", EXPERT, tmp_path / "8b", seed=0)
    config = LlamaConfig.from_pretrained(folder)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (4096, 32, 128256)
    assert config.rope_parameters["rope_theta"] == 500_000 and str(config.dtype) == "torch.bfloat16"
    assert AutoTokenizer.from_pretrained(folder).encode("Hi") == [256, 72, 105]
    assert not list(folder.glob("*.safetensors"))
    again = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    openai_models.build("vllm", EXPERT, folder, seed=0)
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == again


def test_the_memory_share_is_that_of_weights_reserve_and_cache(tmp_path):
    folder = openai_models.build("vllm", EXPERT, tmp_path / "8b", seed=0)
    found = json.loads(openai_models.write(tmp_path / "m", "x", folder, EXPERT, gpu("H200")).read_text())
    cache = 65_536 * 131_072 / GIB  # 8 GiB
    wanted = (paper.weight_bytes(EXPERT) / GIB + 4 + cache) / (143_771 / 1024)
    assert found["share"] == pytest.approx(wanted, abs=1e-3)
    with pytest.raises(ErlabError, match="written for another expert"):
        openai_models.write(tmp_path / "m", "x", folder, Expert(paper.LLAMA_3_8B, FP8), gpu("H200"))
    with pytest.raises(ErlabError, match="no model of an OpenAI-compatible server"):
        openai_models.write(tmp_path / "m", "x", tmp_path, EXPERT, gpu("H200"))
