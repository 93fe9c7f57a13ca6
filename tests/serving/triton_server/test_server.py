import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

import erlab
from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving.triton import Server, repository
from erlab.serving.triton import server as module
from erlab.serving.triton.external import ExternalTriton

pytestmark = pytest.mark.skipif(bool(module.available()), reason=f"no embedded Triton: {module.available()}")


class Traces:
    """What a server has of the machine, noted while it runs."""

    def __init__(self, server):
        keeper = psutil.Process(server._keeper.pid)
        self.processes = [keeper, *keeper.children(recursive=True)]
        self.stubs = {name: process.pid for process, name in server._stubs().items()}
        self.ports = [int(address.rpartition(":")[2]) for address in (server.grpc, *server.metrics)]
        self.folder = server._folder

    def here(self):
        """What of it is there, by kind."""
        running = [p for p in self.processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        with socket.socket() as probe:
            listening = [port for port in self.ports if probe.connect_ex(("127.0.0.1", port)) == 0]
        shared = list(Path("/dev/shm").glob(f"{self.folder.name}*"))
        return [kind for kind, what in zip(KINDS, (running, listening, shared, self.folder.exists())) if what]


KINDS = ["processes", "ports", "shared memory", "folder"]


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Servers keep their temporary files here."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def noted(monkeypatch):
    """The traces of a server, noted again and again while it starts, for starts that fail."""
    traces = []
    listens = Server._listens

    def note(self, ports):
        with suppress(psutil.Error):  # it may end at any moment
            traces.append(Traces(self))
        return listens(self, ports)

    monkeypatch.setattr(Server, "_listens", note)
    return traces


def until(condition, seconds=60.0):
    """Wait for a condition of other processes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def model(method, body):
    return f"class TritonPythonModel:\n    def {method}:\n        {body}\n"


def answer(server, model, text="a b", tokens=2):
    return list(kserve.generate(server.grpc, model, text, tokens, timeout=20))


def test_a_server_answers_on_all_its_addresses_and_leaves_nothing(echo, temporary):
    with Server(echo) as server:
        traces = Traces(server)
        assert server.models == server.upstreams == ("echo", "other") and server.restarts == 0 and server.alive()
        assert (server._folder / "python" / "erlab").resolve() == Path(erlab.__file__).parent
        assert [answer(server, model) for model in server.models] == [["a", "b"]] * 2
        assert b"nv_inference" in urllib.request.urlopen(f"http://{next(iter(server.metrics))}/metrics").read()
        assert traces.here() == KINDS and len(traces.processes) == 4
    assert traces.here() == [] and list(temporary.iterdir()) == []
    assert not server.alive()


def test_only_the_named_models_are_loaded_and_the_log_is_kept_where_asked(echo, tmp_path):
    with Server(echo, ["other"], log=tmp_path / "logs" / "triton.log") as server:
        assert answer(server, "other") == ["a", "b"] and list(Traces(server).stubs) == ["other"]
    assert "successfully loaded 'other'" in (tmp_path / "logs" / "triton.log").read_text()


def test_a_model_that_fails_to_load_is_reported_with_the_servers_message(echo, tmp_path, temporary, noted):
    models = tmp_path / "models"
    code = model("initialize(self, args)", "raise ValueError('no such engine: blue')")
    repository.write(models, repository.text_model("broken", {}), code)
    repository.write(models, repository.text_model("echo", {}), (echo / "echo" / "1" / "model.py").read_text())
    with pytest.raises(ErlabError, match="'broken'.*ValueError: no such engine: blue") as error:
        with Server(models):
            pytest.fail("a server with a broken model must not start")
    log = Path(re.search(r"Its log: (.*)\.$", str(error.value))[1])
    assert "no such engine: blue" in log.read_text() and list(temporary.iterdir()) == [log]
    assert noted[-1].here() == []


def test_a_model_that_never_gets_ready_ends_at_the_timeout(tmp_path, noted):
    code = model("initialize(self, args)", "import time; time.sleep(1000)")
    repository.write(tmp_path / "models", repository.text_model("slow", {}), code)
    with pytest.raises(ErlabError, match="not ready within 4 s.*slow"):
        with Server(tmp_path / "models", timeout=4):
            pytest.fail("a server whose model hangs must not start")
    assert "slow" in noted[-1].stubs and noted[-1].here() == []


def test_a_model_that_does_not_answer_the_probe_ends_at_the_timeout(tmp_path, monkeypatch):
    probe = Server._probe  # a server may take any time to start: what is left of it is half a second
    monkeypatch.setattr(Server, "_probe", lambda self, name, _: probe(self, name, time.monotonic() + 0.5))
    code = model("execute(self, requests)", "self.kept = requests[0].get_response_sender()")
    repository.write(tmp_path / "models", repository.text_model("mute", {}), code)
    with pytest.raises(ErlabError, match="mute at .*DEADLINE_EXCEEDED"):
        with Server(tmp_path / "models"):
            pytest.fail("a server whose model is mute must not start")


SLOW = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for flags in (0, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL):
                tensor = pb_utils.Tensor("text_output", np.array([b"word"], dtype=object))
                sender.send(pb_utils.InferenceResponse([tensor]), flags=flags)
                time.sleep(0.5)
"""


def test_a_request_in_flight_is_answered_before_the_server_ends(tmp_path):
    repository.write(tmp_path / "models", repository.text_model("slow", {}), SLOW)
    with Server(tmp_path / "models") as server:
        traces = Traces(server)
        in_flight = kserve.generate(server.grpc, "slow", "a", 2, timeout=20)
        assert next(in_flight) == "word"
    assert list(in_flight) == ["word"] and traces.here() == []


def test_a_killed_expert_is_loaded_again(echo):
    with Server(echo) as server:
        traces = Traces(server)
        in_flight = kserve.generate(server.grpc, "echo", "one wait", 5, timeout=60)
        assert [next(in_flight), next(in_flight)] == ["one", "wait"]
        os.kill(traces.stubs["echo"], signal.SIGKILL)
        until(lambda: server.restarts == 1)
        assert answer(server, "echo") == answer(server, "other") == ["a", "b"]
        after = Traces(server)
        assert after.stubs["echo"] != traces.stubs["echo"]
        if traces.processes[1].is_running():  # Triton may abort when a stub dies; then the watch starts it again
            assert after.stubs["other"] == traces.stubs["other"]
        os.kill(after.stubs["echo"], signal.SIGKILL)
        until(lambda: server.restarts == 2)
        assert answer(server, "echo") == ["a", "b"] and server.alive()
        in_flight.close()
    assert after.here() == []


def test_a_killed_server_is_started_again_on_its_ports(echo):
    with Server(echo) as server:
        traces = Traces(server)
        traces.processes[1].kill()
        until(lambda: server.restarts == 1)
        assert answer(server, "echo") == answer(server, "other") == ["a", "b"]
        assert traces.here() == ["ports"], "the keeper tidied up after the one that was killed"
        again = Traces(server)
    assert again.here() == []
    assert Path(server.log).is_file(), "the log of a server that died is kept"


@pytest.mark.parametrize("which", ["server", "model"])
def test_restarts_are_counted_as_soon_as_a_process_has_died(echo, which):
    """A measurement that ends before the watch thread has checked still learns of the death."""
    with Server(echo) as server:
        traces = Traces(server)
        assert server.restarts == 0
        victim = traces.processes[1] if which == "server" else psutil.Process(traces.stubs["echo"])
        victim.kill()
        until(lambda: module._ended(victim))
        assert server.restarts == 1
        assert answer(server, "echo") == answer(server, "other") == ["a", "b"] and server.restarts == 1


def test_a_server_that_keeps_dying_is_not_started_again(echo, monkeypatch):
    monkeypatch.setattr("erlab.serving.triton.server._RELAUNCHES", 1)
    with Server(echo) as server:
        Traces(server).processes[1].kill()
        until(lambda: server.restarts == 1)
        traces = Traces(server)
        traces.processes[1].kill()
        until(lambda: not server.alive())
        assert traces.here() == [] and server.restarts == 2, "the last death is counted, too"


def test_the_server_ends_when_its_keeper_is_killed(echo):
    with Server(echo) as server:
        traces = Traces(server)
        traces.processes[0].kill()
        until(lambda: not traces.processes[1].is_running())
    until(lambda: traces.here() == [])


def test_ctrl_c_in_the_body_leaves_nothing(echo, temporary):
    with pytest.raises(KeyboardInterrupt):
        with Server(echo, ["echo"]) as server:
            traces = Traces(server)
            signal.raise_signal(signal.SIGINT)
    assert traces.here() == [] and list(temporary.iterdir()) == []


def test_ctrl_c_while_starting_leaves_nothing(echo, temporary, monkeypatch):
    noted = []

    def interrupted(self, *_):
        noted.append(Traces(self))
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "_probe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with Server(echo, ["echo"]):
            pytest.fail("an interrupted server must not start")
    assert len(noted[0].processes) == 3 and noted[0].here() == [] and list(temporary.iterdir()) == []


def test_the_server_ends_when_its_parent_is_killed(echo, temporary):
    script = (
        "import sys\nfrom erlab.serving.triton import Server\n"
        f"with Server({str(echo)!r}) as server:\n"
        "    print(server._keeper.pid, server._folder, flush=True)\n    sys.stdin.read()\n"
    )
    command, environment = [sys.executable, "-c", script], os.environ | {"TMPDIR": str(temporary)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as parent:
        pid, folder = parent.stdout.readline().split()
        processes = [psutil.Process(int(pid)), *psutil.Process(int(pid)).children(recursive=True)]
        assert len(processes) == 4 and Path(folder).is_dir()
        parent.kill()
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    assert list(temporary.iterdir()) == [] and not list(Path("/dev/shm").glob(f"{Path(folder).name}*"))


@contextmanager
def listener():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("name", ["grpc_port", "metrics_port"])
def test_a_port_in_use_is_named(echo, name):
    with listener() as port, pytest.raises(ErlabError, match=f"Port {port} .*in use"):
        Server(echo, **{name: port}).__enter__()


def test_a_port_that_is_taken_before_triton_binds_it_is_replaced(echo, monkeypatch):
    with socket.socket() as free, listener() as taken:
        free.bind(("127.0.0.1", 0))
        asked = free.getsockname()[1]
        free.close()
        choose, chosen = module.free_ports, []

        def unlucky(ports):
            chosen.append(choose(ports))
            if len(chosen) == 1:
                chosen[0][1] = taken
            return chosen[-1]

        monkeypatch.setattr(module, "free_ports", unlucky)
        with Server(echo, ["echo"], grpc_port=asked) as server:
            assert answer(server, "echo") == ["a", "b"]
            assert len(chosen) == 2 and server.grpc == f"127.0.0.1:{asked}"
            assert f"127.0.0.1:{taken}" not in server.metrics


def test_an_external_server_is_used_and_left_running(server):
    processes = Traces(server).processes
    with ExternalTriton(server.grpc, ["other"]) as external:
        assert (external.grpc, external.models, external.restarts) == (server.grpc, ("other",), 0)
        assert (external.upstreams, external.metrics, external.log) == (("other",), {}, None)
        assert external.alive() and answer(external, "other") == ["a", "b"]
    assert all(process.is_running() for process in processes) and server.alive()


def test_unusable_external_servers_are_refused(server):
    with pytest.raises(ErlabError, match="nobody at .*unknown model"):
        ExternalTriton(server.grpc, ["nobody"]).__enter__()
    with pytest.raises(ErlabError, match="HOST:PORT"):
        ExternalTriton("8001", ["echo"])
    with listener() as deaf:
        assert not ExternalTriton(f"127.0.0.1:{deaf}", ["echo"], timeout=0.5).alive()
        with pytest.raises(ErlabError, match="echo at"):
            ExternalTriton(f"127.0.0.1:{deaf}", ["echo"], timeout=0.5).__enter__()


def test_repositories_without_the_models_are_refused(echo, tmp_path):
    with pytest.raises(ErlabError, match="no model nobody there, only echo, other"):
        Server(echo, ["nobody"])
    with pytest.raises(ErlabError, match="no models there"):
        Server(tmp_path / "nowhere")
    with pytest.raises(ErlabError, match="'grpc_port'.*65535.*70000"):
        Server(echo, grpc_port=70000)


def test_a_machine_that_cannot_run_it_says_why_and_what_to_do(echo, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "Linux on x86-64 only; this is Linux on arm64" in module.available()
    with pytest.raises(ErlabError, match="arm64.*--triton HOST:PORT"):
        Server(echo).__enter__()
