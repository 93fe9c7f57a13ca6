"""What `erlab gateway --print` prints: parsed as YAML, verified by systemd, consistent with the fleet's file."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from erlab.commands.app import app

FLEET = """\
[gateway]
http_port = 9090
[limits]
drain_seconds = 20
[experts.a]
url = "grpc://127.0.0.1:1/m"  # with 'quotes': and "more"
key_variable = "A_KEY"
"""


@pytest.fixture
def printed(tmp_path):
    """The text for a kind of deployment, of a gateway whose folder has a difficult name."""
    folder = tmp_path / "my $gateway 100%"
    folder.mkdir()
    (folder / "fleet.toml").write_text(FLEET)

    def show(kind, *options):
        return CliRunner().invoke(app, ["gateway", "--config", str(folder / "fleet.toml"), "--print", kind, *options])

    return show


def test_kubernetes_manifests_agree_with_the_file(printed):
    done = printed("kubernetes")
    assert done.exit_code == 0, done.stderr
    settings, deployment, service = yaml.safe_load_all(done.stdout)
    assert settings["data"]["fleet.toml"] == FLEET
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {port["name"]: port["port"] for port in service["spec"]["ports"]} == {"grpc": 8001, "http": 9090}
    assert container["args"][-4:] == ["--port", "8001", "--http-port", "9090"] and "0.0.0.0" in container["args"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/health/ready", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": "http"}
    assert pod["spec"]["terminationGracePeriodSeconds"] >= 20
    names = [variable["name"] for variable in container["env"]]
    assert names == ["ERLAB_API_KEY", "A_KEY"]
    assert {v["valueFrom"]["secretKeyRef"]["key"] for v in container["env"]} == set(names)
    (mount,) = container["volumeMounts"]
    assert mount["subPath"] in settings["data"]
    assert {volume["name"] for volume in pod["spec"]["volumes"]} == {mount["name"]}


def test_without_http_the_grpc_port_is_probed(printed):
    *_, deployment, service = yaml.safe_load_all(printed("kubernetes", "--no-http").stdout)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["tcpSocket"] == {"port": "grpc"}
    assert [port["name"] for port in service["spec"]["ports"]] == ["grpc"]


def test_the_dockerfile_starts_the_gateway_on_all_addresses(printed):
    lines = [line for line in printed("docker").stdout.splitlines() if line and not line.startswith("#")]
    instructions = dict(line.split(maxsplit=1) for line in lines)
    assert list(instructions) == ["FROM", "COPY", "RUN", "WORKDIR", "USER", "EXPOSE", "STOPSIGNAL", "CMD"]
    assert instructions["FROM"] == "python:3.12-slim" and instructions["EXPOSE"] == "8001 9090"
    command = json.loads(instructions["CMD"])
    assert command[:4] == ["erlab", "gateway", "--config", "fleet.toml"] and "0.0.0.0" in command


def test_systemd_accepts_the_unit(printed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [shutil.which("true")])  # systemd looks for the program
    done = printed("systemd")
    assert "EnvironmentFile=" in done.stdout and "A_KEY" in done.stdout and "kill -HUP" in done.stdout
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "erlab-gateway.service"
    unit.write_text(done.stdout)
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0 and not checked.stderr, checked.stderr


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("swarm", "", "--print must be docker, systemd or kubernetes. Got 'swarm'."),
        ("docker", '[router]\nfolder = "/usr"\n', "/usr: must lie in "),
        ("kubernetes", '[router]\nfolder = "/usr"\n', "/usr: must lie in "),
        ("docker", "[ruoter]\n", "did you mean 'router'?"),
    ],
)
def test_what_cannot_be_deployed_is_one_line(tmp_path, kind, change, said):
    (tmp_path / "fleet.toml").write_text(change + FLEET)
    done = CliRunner().invoke(app, ["gateway", "--config", str(tmp_path / "fleet.toml"), "--print", kind])
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
