"""Gateway in its own process.

    with Gateway(folder / "router", "127.0.0.1:8001", ("expert_0", "expert_1") * 4) as gateway:
        print(gateway.address)  # KServe v2 gRPC clients can query the model `router` here
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.gateway.limits import DRAIN_SECONDS, Limits

_LISTEN_SECONDS = 60.0  # for the process to import its modules and listen


class Gateway:
    """A running gateway, as a context manager. It ends with this process.

    Args:
        router: Folder of a saved PromptRouter; None for no routing (`erlab.gateway.passthrough`).
        upstream: HOST:PORT of Triton's gRPC port.
        experts_of_clusters: Expert of each cluster, as `erlab.gateway.server.Settings.experts`.
        policy: Name in `erlab.routing.policies.POLICIES`.
        port: Port of the gRPC face on loopback; None lets the system choose.
        timeout: Seconds for the server behind the gateway to become ready.
        limits: Bounds on concurrency, time and size, of each worker.
        key: Bearer token that clients must send.
        http_port: Port of the HTTP face on loopback; 0 lets the system choose, None for no such face.
        workers: Processes that share the ports (`erlab.gateway.workers`).
        generalist: Expert for prompts that fit no cluster (policy "outlier").
        strong: Expert for difficult prompts (policy "strong_weak").
        names: Without a router: name under which each expert is served.
        threshold: Difficulty from which `strong` serves a prompt, 0 to 1; None for 0.5.

    Attributes:
        address: HOST:PORT of the KServe v2 gRPC face.
        http: URL of the OpenAI-compatible face, without /v1, or None.

    Raises:
        ErlabError: The gateway does not start, or the server behind it is not ready in time.
    """

    def __init__(
        self,
        router: Path | None,
        upstream: str | None,
        experts_of_clusters: tuple[str, ...],
        policy: str = "nearest",
        port: int | None = None,
        timeout: float = 60.0,
        limits: Limits = Limits(),
        key: str | None = None,
        http_port: int | None = None,
        workers: int = 1,
        generalist: str | None = None,
        strong: str | None = None,
        names: tuple[str, ...] = (),
        threshold: float | None = None,
    ):
        self.upstream, self._timeout = kserve.address(upstream) if upstream else None, timeout
        self._command = [sys.executable, "-m", "erlab.gateway", "--until-stdin-closes"]
        self._command += ["--router", str(router)] if router else ["--names", ",".join(names)]
        self._command += ["--experts", ",".join(experts_of_clusters)]
        self._command += ["--policy", policy, "--port", str(port or 0)]
        self._command += ["--upstream", upstream] if upstream else []
        self._command += ["--http-port", str(http_port)] if http_port is not None else []
        self._command += ["--workers", str(workers)]
        self._command += ["--generalist", generalist] if generalist else []
        self._command += ["--strong", strong] if strong else []
        self._command += ["--threshold", str(threshold)] if threshold is not None else []
        for name, value in asdict(limits).items():
            self._command += [f"--{name.replace('_', '-')}", str(value)]
        self._key = key

    def __enter__(self) -> "Gateway":
        self._errors = tempfile.TemporaryFile("w+")
        # In its own session Ctrl-C reaches only the parent, which then stops it; the open stdin ties it to the parent.
        self._process = subprocess.Popen(
            self._command,
            env=os.environ | ({"ERLAB_API_KEY": self._key} if self._key else {}),  # other users can read arguments
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        try:
            addresses = self._read_addresses()
            self.address, self.http = addresses["address"], addresses.get("http")
            self._wait_ready(time.monotonic() + self._timeout)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        try:
            self._process.wait(DRAIN_SECONDS + 2)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()  # no effect if it has ended
            self._process.wait()
            for file in (self._process.stdin, self._process.stdout, self._errors):
                file.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def _read_addresses(self) -> dict[str, str]:
        ready, _, _ = select.select([self._process.stdout], [], [], _LISTEN_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise ErlabError(f"The gateway did not start{self._last_words()}")
        return json.loads(line)

    def _wait_ready(self, end: float) -> None:
        """Wait until the server behind the gateway is ready, asked through the gateway."""
        with grpc.insecure_channel(self.address, options=kserve.CHANNEL_OPTIONS) as channel:
            headers = [("authorization", f"Bearer {self._key}")] if self._key else None
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while True:
                try:
                    if stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=1, metadata=headers).ready:
                        return
                    why = "it is not ready"
                except grpc.RpcError as e:
                    why = f"{e.code().name}: {e.details()}"
                if not self.alive():
                    raise ErlabError(f"The gateway ended while starting{self._last_words()}")
                if time.monotonic() > end:
                    late = f"was not ready in {self._timeout:g} s ({why})"
                    raise ErlabError(f"The server at {self.upstream} behind the gateway {late}.")
                time.sleep(0.05)

    def _last_words(self) -> str:
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return f" within {_LISTEN_SECONDS:g} s."
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        own = [line.removeprefix("erlab: ") for line in lines if line.startswith("erlab: ")]
        # gRPC logs beside the gateway's own error; a killed process leaves nothing.
        return ": " + (" | ".join(own or lines[-5:]) or f"its process ended with exit status {status}.")
