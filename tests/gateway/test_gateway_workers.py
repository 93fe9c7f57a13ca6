"""Several processes on one port: all of them serve, their numbers add up, and they end together."""

import socket
import urllib.request

import grpc
import psutil
import pytest
from fake_triton import FakeTriton, decoded, echo, stream

from erlab.errors import ErlabError
from erlab.gateway import Gateway, kserve


def test_workers_share_the_ports_and_end_together(router_folder):
    with FakeTriton({"e": echo}) as fake:
        with Gateway.of(router_folder, fake.address, ("e",), http_port=0, workers=2) as gateway:
            workers = psutil.Process(gateway.pid).children()
            assert len(workers) == 2
            data, served = kserve.request("router", "one two", 4).SerializeToString(), 0
            before = [sum(worker.cpu_times()[:2]) for worker in workers]
            while min(sum(w.cpu_times()[:2]) - b for w, b in zip(workers, before)) < 0.03 or served < 20:
                options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own each time
                with grpc.insecure_channel(gateway.address, options=options) as channel:
                    answers = decoded(stream(channel, data))
                assert [kserve.text(r.infer_response) for r in answers] == ["one", "two"]
                served += 1
                assert served < 2000
            with urllib.request.urlopen(gateway.http + "/metrics", timeout=60) as answer:
                lines = answer.read().decode().splitlines()
            totals = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("erlab_requests_total")]
            assert sum(totals) == served
            workers[0].kill()
            psutil.Process(gateway.pid).wait(60)
            assert not gateway.alive()
        psutil.wait_procs(workers, 60)
        assert not any(worker.is_running() for worker in workers)


def test_a_port_in_use_is_named(router_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ErlabError, match=f"127.0.0.1:{port}: the port is in use"):
            with Gateway.of(router_folder, "127.0.0.1:1", ("e",), port=port, workers=2):
                pass
