"""Models for the real server, small enough to start in a fraction of a second."""

import pytest

from erlab.serving.triton import Server, repository
from erlab.serving.triton.server import available

# Answers with the prompt's words, one per response; after "wait" it sends nothing more and never finishes.
ECHO = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.unfinished = []

    def execute(self, requests):
        for request in requests:
            words = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().ravel()[0].split()
            count = int(pb_utils.get_input_tensor_by_name(request, "max_tokens").as_numpy().ravel()[0])
            sender = request.get_response_sender()
            for i in range(count):
                word = words[i % len(words)]
                last = i == count - 1 and word != b"wait"
                response = pb_utils.InferenceResponse([pb_utils.Tensor("text_output", np.array([word], dtype=object))])
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
                if word == b"wait":
                    self.unfinished.append(sender)
                    break
"""


@pytest.fixture(scope="session")
def echo(tmp_path_factory):
    """A repository with the models "echo" and "other"."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    for name in ("echo", "other"):
        repository.write(folder, repository.text_model(name, {}), ECHO)
    return folder


@pytest.fixture(scope="session")
def server(echo):
    """A running server that tests may ask but not harm."""
    if reason := available():
        pytest.skip(f"no embedded Triton: {reason}")
    with Server(echo) as running:
        yield running
