"""`erlab gateway` as a user runs it: checks before the start, the printed commands, reload, end."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fake_openai import FakeOpenAI
from fake_triton import COURT, KITCHEN, FakeTriton, echo
from typer.testing import CliRunner

from erlab.commands.app import app
from erlab.gateway import fleet, prepare
from erlab.gateway.fleet import ExpertConfig, FleetConfig, RouterConfig

ERLAB = Path(sys.executable).with_name("erlab")


def run(*arguments):
    return CliRunner().invoke(app, ["gateway", *map(str, arguments)])


@pytest.fixture(scope="module")
def servers():
    with FakeOpenAI() as web, FakeTriton({"m": echo}) as triton:
        yield web, triton


@pytest.fixture
def written(servers, router_folder, tmp_path):
    """A fleet's file with an expert of each kind."""
    web, triton = servers
    (tmp_path / "router").symlink_to(router_folder)
    experts = f'[experts.web]\nurl = "{web.base}#m"\n[experts.triton]\nurl = "grpc://{triton.address}/m"\n'
    (tmp_path / "fleet.toml").write_text(f'[router]\nfolder = "router"\n{experts}')
    return tmp_path / "fleet.toml"


class Started:
    """`erlab gateway` as a process: the lines that it printed."""

    def __init__(self, *arguments):
        command = [ERLAB, "gateway", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def __enter__(self):
        self.lines = []
        self.until("SIGHUP")
        self.http = re.search(r"(http://\S+)/v1", self.lines[0])[1]
        self.grpc = self.lines[0].split()[4]
        return self

    def until(self, words):
        while True:
            line = self.process.stdout.readline()
            assert line, self.lines
            self.lines.append(line.rstrip("\n"))
            if words in line:
                return self.lines[-1]

    def __exit__(self, *_):
        self.process.terminate()
        self.process.stdout.read()
        self.status = self.process.wait(60)
        self.process.stdout.close()

    def ask(self, prompt, model="router"):
        data = json.dumps({"prompt": prompt, "model": model}).encode()
        request = urllib.request.Request(f"{self.http}/v1/completions", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.headers["x-erlab-expert"], json.loads(answer.read())["choices"][0]["text"]


def test_printed_commands_reload_and_end(written, homes):
    with Started("--config", written) as started:
        assert "models: router, web, triton." in started.lines[0]
        variables = os.environ | {"PATH": f"{ERLAB.parent}:{os.environ['PATH']}"}
        commands = started.lines[1:-1]
        assert [command.split()[0] for command in commands] == ["curl", "python", "python"]
        asked = [subprocess.Popen(["bash", "-c", c], env=variables, stdout=-1, text=True) for c in commands]
        assert all("pasta" in process.communicate(timeout=60)[0] for process in asked)
        assert {started.ask(prompt)[0] for prompt in homes.values()} == {"web", "triton"}
        text = written.read_text()
        written.write_text(text.replace("[experts.web]", "[experts.web]\nweihgt = 2"))
        started.process.send_signal(signal.SIGHUP)
        line = started.until("Not reloaded")
        assert "must not have the key 'weihgt'; did you mean 'weight'?" in line and "former experts stay" in line
        assert {started.ask(prompt)[0] for prompt in homes.values()} == {"web", "triton"}
        written.write_text(text[: text.index("[experts.triton]")])
        started.process.send_signal(signal.SIGHUP)
        assert started.until("Reloaded") == "Reloaded: web."
        assert {started.ask(prompt)[0] for prompt in homes.values()} == {"web"}
        assert started.ask("hello", "web") == ("web", "hello")
        with pytest.raises(urllib.error.HTTPError):
            started.ask("hello", "triton")
    assert started.status == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("/v1#m", "/v1#other"), "has no model 'other'. It lists m, tagged:latest."),
        (('/m"', '/other"'), "has no model 'other'. It lists none."),
        (("grpc://127.0.0.1", "grpc://127.0.0.2"), "127.0.0.2:"),
        (("[router]", "[ruoter]"), "must not have the key 'ruoter'; did you mean 'router'?"),
        (("[experts.web]", "[experts.web]\nclusters = [0]"), "Got none for cluster 1."),
        (("[experts.web]", "[experts.web]\ndomains = ['law']"), "no cluster of the domain 'law'; it has no domains."),
        (("[experts.web]", "[experts.web]\nkey_variable = 'NOT_SET'"), "variable NOT_SET must hold the key of expert"),
        (("[router]", "[policy]\nname = 'outlier'\ngeneralist = 'web'\n[router]"), "needs a router with an outlier"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(written, change, said):
    text = written.read_text()
    assert change[0] in text
    written.write_text(text.replace(*change))
    done = run("--config", written)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--config FILE or --expert NAME=URL must be given"),
        (("--expert", "http://x"), "--expert must be NAME=URL. Got 'http://x'."),
        (("--expert", "a=http://x#m", "--expert", "a=http://y#m"), "--expert must name each expert once. Got a twice."),
        (("--expert", "a=ftp://x/m"), "must be grpc://HOST:PORT/MODEL (Triton) or http://"),
        (("--config", "/none.toml"), "/none.toml: cannot be read (No such file or directory)."),
        (("--expert", "a=grpc://127.0.0.1:1/m", "--port", "0"), "--port must be a whole number from 1 to 65535"),
        (("--expert", "a=grpc://127.0.0.1:1/m", "--no-grpc", "--no-http"), "be open, or the HTTP face"),
        (("--expert", "a=grpc://127.0.0.1:1/m", "--router", "/none"), "/none/router.json: the router cannot be read"),
    ],
)
def test_wrong_options_are_one_line(arguments, said):
    done = run(*arguments)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_dry_run_shows_who_serves_which_cluster(written, router):
    text = written.read_text()
    written.write_text(text.replace("[experts.web]", "[experts.web]\nprice = [0.25, 1]\nclusters = [0]\nweight = 3"))
    written.write_text(written.read_text().replace("[experts.triton]", "[experts.triton]\nclusters = [0, 1]"))
    done = run("--config", written, "--dry-run")
    assert done.exit_code == 0, done.stderr
    for shown in ("web (75%)", "triton (25%)", "0.25, 1", router.terms_[0][0], "OpenAI-compatible", "answers"):
        assert shown in done.stdout


def test_a_router_is_trained_once_from_prompts_with_domains(servers, tmp_path):
    web, triton = servers
    rows = [{"domain": d, "text": t} for d, texts in (("kitchen", KITCHEN), ("court", COURT)) for t in texts]
    many = [row | {"text": f"{row['text']} {i}"} for i in range(10) for row in rows]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    experts = ExpertConfig("cook", f"{web.base}#m", domains=("kitchen",)), ExpertConfig(
        "judge", f"grpc://{triton.address}/m", domains=("court",)
    )
    described = RouterConfig(str(tmp_path / "router"), True, str(tmp_path / "prompts.jsonl"), clusters=2)
    ready = prepare.prepared(FleetConfig(experts, described))
    clusters = ready.router.route([KITCHEN[0], COURT[0]]).cluster.tolist()
    assert [expert.clusters for expert in ready.config.experts] == [(c,) for c in clusters]
    assert prepare.problems(ready.config) == {}
    table = ready.table().set_index("top domain")
    assert table["experts"].to_dict() == {"kitchen": "cook", "court": "judge"}
    assert table["training prompts"].sum() <= len(many)
    saved = (tmp_path / "router" / "router.json").stat().st_mtime_ns
    assert prepare.prepared(FleetConfig(experts, described)).config == ready.config
    assert (tmp_path / "router" / "router.json").stat().st_mtime_ns == saved  # not trained again
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many[:-1]))
    prepare.prepared(FleetConfig(experts, described))
    assert (tmp_path / "router" / "router.json").stat().st_mtime_ns > saved
    (tmp_path / "router" / "training.json").unlink()
    with pytest.raises(fleet.ErlabError, match="holds a router that no gateway trained"):
        prepare.prepared(FleetConfig(experts, described))


def test_an_expert_that_is_away_at_the_start_joins_when_it_is_there(written, servers):
    text = written.read_text()
    with FakeOpenAI() as late:
        port = int(late.base.split(":")[2].split("/")[0])
    shut = f"http://127.0.0.1:{port}/v1"
    written.write_text(text.replace(servers[0].base, shut))
    assert "does not answer (Connection refused)" in run("--config", written).stderr
    with Started("--config", written, "--unchecked", "--no-grpc") as started:
        assert len(started.lines) == 4, started.lines  # no command for tritonclient
        with pytest.raises(urllib.error.HTTPError) as caught:
            started.ask("hello", "web")
        assert caught.value.code == 503
        with FakeOpenAI(port):
            while True:
                try:
                    assert started.ask("hello", "web") == ("web", "hello")
                    break
                except urllib.error.HTTPError as e:
                    assert e.code == 503


def test_experts_are_asked_for_their_models(servers, router_folder):
    web, triton = servers
    urls = {
        "tag": f"{web.base}#tagged",  # Ollama's
        "shut": "http://127.0.0.1:9/v1#m",
        "triton": f"grpc://{triton.address}/m",
        "none": "grpc://127.0.0.1:9/m",
    }
    config = FleetConfig(tuple(ExpertConfig(name, url) for name, url in urls.items()))
    found = prepare.problems(config)
    assert found.keys() == {"shut", "none"} and "does not answer (Connection refused)" in found["shut"]
    assert "does not answer (UNAVAILABLE" in found["none"]
    web.status = 401
    try:
        assert "does not answer (HTTP status 401)" in prepare.problems(config)["tag"]
    finally:
        web.status = 200
