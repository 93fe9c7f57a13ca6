"""Users, gateway and the real Triton server together."""

import os
import signal

import grpc
import psutil
import pytest
from fake_triton import STREAM, decoded, plan, stream

from erlab import users
from erlab.gateway import Gateway, kserve
from erlab.serving.triton import Server, repository
from erlab.serving.triton.server import available

pytestmark = pytest.mark.skipif(available() is not None, reason=f"no embedded Triton: {available()}")

# Answers with its name and the prompt's words, one a response; never answers "hang".
MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.name, self.unanswered = args["model_name"], []

    def execute(self, requests):
        for request in requests:
            words = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().ravel()[0].split()
            sender = request.get_response_sender()
            if words[0] == b"hang":
                self.unanswered.append(sender)
                continue
            for word in (self.name.encode(), *words):
                text = pb_utils.Tensor("text_output", np.array([word], dtype=object))
                last = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if word is words[-1] else 0
                sender.send(pb_utils.InferenceResponse([text]), flags=last)
"""
EXPERTS = ("expert_0", "expert_1")


@pytest.fixture(scope="module")
def running(tmp_path_factory, router_folder):
    folder = tmp_path_factory.mktemp("models")
    for name in EXPERTS:
        repository.write(folder, repository.text_model(name, {}), MODEL)
    with Server(folder) as server, Gateway.of(router_folder, server.grpc, EXPERTS) as gateway:
        yield server, gateway


def test_every_request_of_a_closed_loop_is_answered_by_its_expert(running):
    server, gateway = running
    requests = plan("boil the pasta", "the court and the law", users=16)
    routed = users.run(gateway.address, ("router",), requests, timeout=30)
    direct = users.run(server.grpc, EXPERTS, requests, timeout=30)
    for rows in (routed, direct):
        assert [(row["user"], row["turn"]) for row in rows] == [(u, t) for u in range(16) for t in range(2)]
        assert [(row["status"], row["output_tokens"]) for row in rows] == [("ok", 4), ("ok", 6)] * 16
    assert len({row["expert"] for row in routed}) == 2
    assert all(row["t_submit"] <= row["t_routed"] <= row["t_first"] <= row["t_last"] for row in routed)
    with grpc.insecure_channel(gateway.address) as channel:
        answers = decoded(stream(channel, kserve.request("router", "boil the pasta", 9).SerializeToString()))
    texts = [kserve.text(answer.infer_response) for answer in answers]
    assert texts == [routed[0]["expert"], "boil", "the", "pasta"]
    assert answers[0].infer_response.parameters["erlab_expert"].string_param == routed[0]["expert"]


def test_an_unknown_model_is_named(running):
    for address in (running[0].grpc, running[1].address):
        (row,) = users.run(address, ("nobody",), plan("one"), timeout=60)
        assert row["status"] == "error" and "'nobody'" in row["error"]


def test_a_hanging_expert_ends_by_deadline_and_a_killed_gateway_in_errors(running, router_folder):
    server, _ = running
    with Gateway.of(router_folder, server.grpc, EXPERTS) as gateway:
        rows = users.run(gateway.address, ("router",), plan("hang", "one", users=2), timeout=3)
        assert [row["status"] for row in rows] == ["timeout", "ok"] * 2
        with grpc.insecure_channel(gateway.address) as channel:
            hanging = channel.unary_stream(STREAM)(kserve.request("router", "hang", 1).SerializeToString())
            os.kill(gateway.pid, signal.SIGKILL)
            with pytest.raises(grpc.RpcError) as caught:
                next(hanging)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        psutil.Process(gateway.pid).wait(60)
