"""OpenAI-compatible servers (vLLM, trtllm-serve, tiny engines) behind the interface of a Triton server.

    with OpenAIServers(repository, ("E-expert-0", "E-expert-1")) as server:
        Gateway.of(router, server.grpc, server.upstreams)

`repository` has one folder per model, written by `openai_models.write`, and each model gets a server. The servers start
one after the other, since each checks how much GPU memory is free, and each must answer a request of one token. A
gateway without a router serves all models over KServe v2 at `grpc`, so that the users of a baseline use the same
protocol and translation as all others; a routing gateway forwards to `upstreams`. `ExternalOpenAI` is the same for a
running server. `keeper` removes the servers at the end.

Servers listen on the loopback only. vLLM up to 0.27 also opens the port of a torch.distributed store on all interfaces,
which none of its options closes; use a firewall on a machine with hostile neighbours.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from erlab.errors import ErlabError
from erlab.gateway import Gateway
from erlab.serving.servers import ModelServer, ServerGroup
from erlab.serving.triton import private
from erlab.serving.triton.process import ServerProcess, launch
from erlab.serving.triton.server import free_ports
from erlab.spec import require

PORT = "{port}"  # stands in a command for the port, which is chosen at the start
METRICS = {"trtllm-serve": "/prometheus/metrics", "vllm": "/metrics", "embedded": "/metrics"}  # page of each kind
_KILL_SECONDS = 30  # how long a server may take to end
_LINES = 3  # last lines of the log in an error
_OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}  # no downloads, no telemetry


class OpenAIServer(ServerProcess):
    """One server process.

    Args:
        place: Folder that `openai_models.write` wrote; its name is the model's.

    Attributes:
        kind: Server program, a key of `openai_models.KINDS`.
        base: URL, which ends in /v1; None before the start.
    """

    def __init__(self, place: Path, timeout: float = 1800.0):
        file = Path(place) / "server.json"
        if not file.is_file():
            raise ErlabError(f"{file}: no such file. Run notebook 01_build_engines first (erlab reproduce --only 01).")
        self.model, self._about, self._timeout = Path(place).name, json.loads(file.read_text()), timeout
        self.kind, self.base = self._about["kind"], None

    @property
    def metrics(self) -> str:
        """URL of the page of Prometheus metrics."""
        return self.base.removesuffix("/v1") + self._about["metrics"]

    def start(self) -> None:
        (port,) = free_ports((None,))
        self.base = f"http://127.0.0.1:{port}/v1"
        command = [str(port) if part == PORT else part for part in self._about["argv"]]
        with private.folder("erlab-openai-") as (folder, lock):
            self.log = folder.with_suffix(".log")
            with open(self.log, "wb") as output:
                self._keeper = launch(command, folder, lock, _KILL_SECONDS, os.environ | _OFFLINE, output)

    def wait(self) -> None:
        """Wait until the server has answered a request; ErlabError with the end of its log where it does not."""
        deadline = time.monotonic() + self._timeout
        while True:
            reason = probe(self.base, self.model)
            if reason is None:
                return
            if not self.alive():
                raise ErlabError(f"{self.kind} did not start {self.model}: {self._complaint()}")
            if time.monotonic() > deadline:
                late = f"did not answer within {self._timeout:g} s ({reason})"
                raise ErlabError(f"{self.kind} with {self.model} {late}: {self._complaint()}")
            time.sleep(0.1)

    def _complaint(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{' | '.join(lines[-_LINES:]) or 'it said nothing'}. Its log: {self.log}."


class OpenAIServers(ServerGroup):
    """One server per model and a gateway without a router in front of them."""

    def __init__(self, repository: Path, models: Sequence[str], port: int | None = None):
        require(len(models) > 0, "models", "OpenAIServers", "name at least one model", models)
        self.models, self._port = tuple(models), port
        self._servers = [OpenAIServer(Path(repository) / model) for model in self.models]

    @property
    def upstreams(self) -> tuple[str, ...]:
        return tuple(f"{server.base}#{server.model}" for server in self._servers)

    @property
    def metrics(self) -> dict[str, str]:
        return {server.model: server.metrics for server in self._servers}

    @property
    def engine(self) -> str:
        return self._servers[0].kind + version(self._servers[0].base)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self._servers:
                stack.enter_context(server)
            front = stack.enter_context(Gateway.of(None, None, self.upstreams, port=self._port or 0, names=self.models))
            self.grpc, self._front = front.address, front
            self._stack = stack.pop_all()
        return self

    def alive(self) -> bool:
        return self._front.alive() and super().alive()


class ExternalOpenAI(ModelServer):
    """A running OpenAI-compatible server, whose one model stands for all.

    Args:
        models: Names under which the gateway in front serves the model.
        port: Port of that gateway; None lets the system choose.
    """

    def __init__(self, url: str, models: Sequence[str], port: int | None = None):
        self._base, self.models, self._port = base(url), tuple(models), port

    @property
    def upstreams(self) -> tuple[str, ...]:
        return (f"{self._base}#{self._model}",) * len(self.models)

    @property
    def metrics(self) -> dict[str, str]:
        pages = (self._base.removesuffix("/v1") + path for path in sorted(set(METRICS.values())))
        return {page: page for page in pages}

    @property
    def engine(self) -> str:
        return f"OpenAI-compatible server{version(self._base)}"

    def __enter__(self) -> Self:
        self._model = served(self._base)
        if reason := probe(self._base, self._model):
            raise ErlabError(f"The model {self._model} at {self._base} does not answer: {reason}")
        self._front = Gateway.of(None, None, self.upstreams, port=self._port or 0, names=self.models)
        self._front.__enter__()
        self.grpc = self._front.address
        return self

    def __exit__(self, *_) -> None:
        self._front.__exit__()

    def alive(self) -> bool:
        return self._front.alive() and probe(self._base, self._model) is None


def base(url: str) -> str:
    """Return the base URL of a server, which ends in /v1; ErlabError where `url` is not http://HOST:PORT."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.path.rstrip("/") in ("", "/v1")
        known = known and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise ErlabError(f"An OpenAI-compatible server's address must be http://HOST:PORT. Got {url!r}.")
    return f"{parts.scheme}://{parts.netloc}/v1"


def served(base: str) -> str:
    """Return the first model of the server at a base URL; ErlabError where none answers."""
    try:
        with urllib.request.urlopen(f"{base}/models", timeout=10) as response:
            return json.loads(response.read())["data"][0]["id"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as e:
        raise ErlabError(f"No OpenAI-compatible server answers at {base} ({e}).") from None


def version(base: str) -> str:
    """Return a space and the version of a server, as vLLM and trtllm-serve state it; else an empty text."""
    try:
        with urllib.request.urlopen(base.removesuffix("/v1") + "/version", timeout=10) as response:
            return f" {json.loads(response.read())['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def probe(base: str, model: str) -> str | None:
    """Return why a model does not answer a request of one token; None if it does."""
    body = json.dumps({"model": model, "prompt": "ready?", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{base}/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return None if json.loads(response.read()).get("choices") else "an answer without text"
    except urllib.error.HTTPError as e:
        return f"HTTP status {e.code}"
    except (OSError, ValueError) as e:
        return str(e)
