"""Gateway in its own process.

    with Gateway(fleet.from_table(fleet.read("fleet.toml"))) as gateway:
        print(gateway.address, gateway.http)  # KServe v2 and OpenAI clients can query the model `router` here
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.errors import ErlabError
from erlab.gateway import fleet, kserve
from erlab.gateway.fleet import FleetConfig

_LISTEN_SECONDS = 60.0  # for the process to import its modules and listen, or to change to another description


class Gateway:
    """A running gateway, as a context manager. It ends with this process.

    Args:
        config: Description of the gateway, without domains.
        timeout: Seconds for an expert to become ready.
        key: Bearer token that clients must send, instead of the configured variable's.
        waits: Whether to wait until an expert is ready.
        log: Where the process's own messages go; None keeps them for the error of a gateway that does not start.

    Attributes:
        address: HOST:PORT of the KServe v2 gRPC face, or None.
        http: URL of the OpenAI-compatible face, without /v1, or None.
        key: The key that clients must send, or None.

    Raises:
        ErlabError: The gateway does not start, or no expert is ready in time.
    """

    def __init__(
        self,
        config: FleetConfig,
        timeout: float = 60.0,
        key: str | None = None,
        waits: bool = True,
        log: IO | None = None,
    ):
        self.config, self._timeout, self._waits, self._log = config, timeout, waits, log
        self._environment = os.environ | ({config.key_variable: key} if key else {})  # others can read arguments
        self.key = key or config.key

    @classmethod
    def of(
        cls,
        router: str | Path | None,
        upstream: str | None,
        experts_of_clusters: tuple[str, ...],
        policy: str = "nearest",
        timeout: float = 60.0,
        key: str | None = None,
        **settings: object,
    ) -> Self:
        """Return the gateway of `fleet.from_clusters` with these arguments."""
        config = fleet.from_clusters(router, upstream, experts_of_clusters, policy=policy, **settings)
        return cls(config, timeout, key)

    def __enter__(self) -> Self:
        self._errors = self._log or tempfile.TemporaryFile("w+")
        # In its own session Ctrl-C reaches only the parent, which then stops it; the open stdin ties it to the parent.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "erlab.gateway"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        try:
            addresses = self._tell(self.config)
            self.address, self.http = addresses.get("address"), addresses.get("http")
            if self._waits:
                self._wait_ready(time.monotonic() + self._timeout)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        try:
            self._process.wait(self.config.limits.drain_seconds + 2)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()  # no effect if it has ended
            self._process.wait()
            for file in (self._process.stdin, self._process.stdout, *(() if self._log else (self._errors,))):
                file.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def reload(self, config: FleetConfig) -> None:
        """Change to another description's experts, router and policy; requests in flight end at their experts.

        Raises:
            ErlabError: The description cannot be used, or changes something else; the former one stays in use.
        """
        fleet.check_reload(self.config, config)
        self._tell(config)
        self.config = config

    def _tell(self, config: FleetConfig) -> dict:
        """Send a description to the process and return its answer; raises ErlabError with the error it answers."""
        try:
            self._process.stdin.write(config.json().encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, and has printed why
        ready, _, _ = select.select([self._process.stdout], [], [], _LISTEN_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise ErlabError(f"The gateway did not start{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ErlabError(answer["error"])
        return answer

    def _wait_ready(self, end: float) -> None:
        """Wait until the gateway and the server behind it are ready."""
        while why := self._not_ready():
            if not self.alive():
                raise ErlabError(f"The gateway ended while starting{self._last_words()}")
            if time.monotonic() > end:
                servers = ", ".join(dict.fromkeys(expert.location.server for expert in self.config.experts))
                raise ErlabError(f"No server behind the gateway was ready in {self._timeout:g} s ({why}): {servers}.")
            time.sleep(0.05)

    def _not_ready(self) -> str | None:
        """Return why the gateway is not ready, None if it is."""
        try:
            if self.address is None:
                return urllib.request.urlopen(f"{self.http}/health/ready", timeout=1).read() and None
            with grpc.insecure_channel(self.address, options=kserve.CHANNEL_OPTIONS) as channel:
                headers = [("authorization", f"Bearer {self.key}")] if self.key else None
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                ready = stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=1, metadata=headers).ready
                return None if ready else "it is not ready"
        except grpc.RpcError as e:
            return f"{e.code().name}: {e.details()}"
        except urllib.error.URLError as e:
            return str(e.reason)

    def _last_words(self) -> str:
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return f" within {_LISTEN_SECONDS:g} s."
        lines = []
        if not self._log:
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
        # A killed process leaves nothing.
        return ": " + (" | ".join(lines[-5:]) or f"its process ended with exit status {status}.")
