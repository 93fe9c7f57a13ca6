"""The tiny engine behind the real Triton server: streams, refusals, cancellation, failures, metrics."""

import re
import threading
import time
import urllib.request

import grpc
import numpy as np
import psutil
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import service_pb2_grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import serialize_byte_tensor

from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving.engines import tiny, tiny_kind
from erlab.serving.triton import Server, repository
from erlab.serving.triton.server import available
from erlab.spec import INT8_CPU, Expert, Model

MODEL = Model("test", hidden=128, layers=2, heads=4, kv_heads=2, intermediate=192, vocab=260, max_positions=4096)
MAX_INPUT, MAX_OUTPUT = 48, 3000
DEADLINE = 60  # seconds, for answers that take a fraction of one

pytestmark = pytest.mark.skipif(bool(available()), reason=f"no embedded Triton: {available()}")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("engines") / "int8", MODEL, INT8_CPU, seed=7)


def expert(**limits):
    limits = {"max_batch_size": 4, "max_input_tokens": MAX_INPUT, "max_output_tokens": MAX_OUTPUT} | limits
    return Expert(MODEL, INT8_CPU, cores=1, **limits)


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "models"
    core = min(psutil.Process().cpu_affinity())
    tiny_kind.write_tiny(folder, "expert", engine, expert(), cores=(core,))
    tiny_kind.write_tiny(folder, "one", engine, expert(max_batch_size=1), cores=())
    tiny_kind.write_tiny(folder, "counted", engine, expert(), cores=())
    with Server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def wanted(engine):
    """What transformers writes: a function of a prompt and a number of tokens."""
    model = tiny.reference(engine)

    def answer(text, tokens):
        prompt = torch.tensor([tiny.encode(text)])
        output = model.generate(prompt, max_new_tokens=tokens, do_sample=False)
        return tiny.decode(output[0, prompt.shape[1] :].tolist())

    return answer


def ask(server, message):
    """The responses to one message, each as (text, error, whether final)."""
    with grpc.insecure_channel(server.grpc, options=kserve.CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return [
            (
                kserve.text(r.infer_response),
                r.error_message,
                r.infer_response.parameters["triton_final_response"].bool_param,
            )
            for r in stub.ModelStreamInfer(iter([message]), timeout=DEADLINE)
        ]


def metrics(server, model):
    page = urllib.request.urlopen(f"http://{next(iter(server.metrics))}/metrics").read().decode()
    return {name: float(value) for name, value in re.findall(rf'^(erlab_\w+){{model="{model}"}} (\S+)$', page, re.M)}


def await_metrics(server, model, condition):
    """The model's metrics once they are as awaited: they are published a few times a second."""
    deadline = time.monotonic() + DEADLINE
    while not condition(found := metrics(server, model)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def counted(server, model, requests):
    """The model's metrics once it has counted so many requests; a later page has all of theirs."""
    await_metrics(server, model, lambda m: m.get("erlab_requests_total", 0) >= requests)
    return metrics(server, model)


def test_a_stream_has_one_response_per_token(server, wanted):
    responses = ask(server, kserve.request("expert", "Hello, world", 12))
    assert "".join(text for text, _, _ in responses) == wanted("Hello, world", 12)
    assert [len(text) for text, _, _ in responses] == [1] * 12
    assert [final for _, _, final in responses] == [False] * 11 + [True]


def test_without_stream_the_answer_is_one_response(server, wanted):
    assert ask(server, kserve.request("expert", "Grüße", 12, stream=False)) == [(wanted("Grüße", 12), "", True)]


def test_stream_is_optional_and_off(server, wanted):
    message = kserve.request("expert", "Hello", 5)
    del message.inputs[2], message.raw_input_contents[2]
    assert ask(server, message) == [(wanted("Hello", 5), "", True)]


def test_simultaneous_requests_get_the_answers_they_would_get_alone(server, wanted):
    texts = [f"prompt {'x' * i}" for i in range(10)]
    answers = {}

    def user(text):
        answers[text] = "".join(kserve.generate(server.grpc, "expert", text, 30, timeout=DEADLINE))

    users = [threading.Thread(target=user, args=(text,)) for text in texts]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert answers == {text: wanted(text, 30) for text in texts}


def test_the_longest_prompt_and_answer_are_served(server):
    text = "a" * (MAX_INPUT - 1)  # and the start token
    assert len("".join(kserve.generate(server.grpc, "expert", text, MAX_OUTPUT, timeout=DEADLINE))) == MAX_OUTPUT


@pytest.mark.parametrize(
    "text, max_tokens, words",
    [
        ("", 5, ["'text_input'", "empty"]),
        ("a" * MAX_INPUT, 5, ["'text_input'", f"at most {MAX_INPUT} tokens", f"Got {MAX_INPUT + 1}"]),
        ("ü" * 30, 5, ["'text_input'", "Got 61"]),
        ("hi", 0, ["'max_tokens'", f"from 1 to {MAX_OUTPUT}", "Got 0"]),
        ("hi", -7, ["'max_tokens'", "Got -7"]),
        ("hi", MAX_OUTPUT + 1, ["'max_tokens'", f"Got {MAX_OUTPUT + 1}"]),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_in_one_clear_response(server, text, max_tokens, words):
    [(_, error, _)] = ask(server, kserve.request("expert", text, max_tokens))
    assert all(word in error for word in words) and "\n" not in error


def test_bytes_that_are_no_utf8_are_refused(server):
    message = kserve.request("expert", "hello", 5)
    message.raw_input_contents[0] = serialize_byte_tensor(np.array([b"ab\xff"], dtype=object)).item()
    [(_, error, _)] = ask(server, message)
    assert "'text_input' must be UTF-8" in error and "0xff at byte 2" in error


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_input_is_refused(server, missing):
    message = kserve.request("expert", "hello", 5)
    name = message.inputs[missing].name
    del message.inputs[missing], message.raw_input_contents[missing]
    [(_, error, _)] = ask(server, message)
    assert name in error or "expected" in error  # in our words or in Triton's


def test_two_prompts_in_a_request_are_refused(server):
    message = kserve.request("expert", "hello", 5)
    message.inputs[0].shape[:] = [2, 1]
    message.raw_input_contents[0] = serialize_byte_tensor(np.array([b"a", b"b"], dtype=object)).item()
    [(_, error, _)] = ask(server, message)
    assert error


def test_refused_requests_do_not_disturb_others(server, wanted):
    stream = kserve.generate(server.grpc, "expert", "steady", 200, timeout=DEADLINE)
    begun = next(stream)
    for _ in range(5):
        ask(server, kserve.request("expert", "", 5))
    assert begun + "".join(stream) == wanted("steady", 200)


def test_a_cancelled_request_frees_its_slot_for_the_next(server):
    # The only slot of "one" is occupied for 3000 tokens; a cancellation frees it.
    stream = kserve.generate(server.grpc, "one", "endless", MAX_OUTPUT, timeout=DEADLINE)
    next(stream)
    stream.close()
    assert len("".join(kserve.generate(server.grpc, "one", "next", 3, timeout=DEADLINE))) == 3
    counted(server, "one", 2)  # the first was the server's, whether it answers
    left = await_metrics(server, "one", lambda m: m["erlab_kv_tokens"] == m["erlab_running_requests"] == 0)
    assert left["erlab_requests_total"] == 2  # the cancelled one was never finished


def test_metrics_count_requests_tokens_and_times(server):
    names = ("requests", "output_tokens", "queue_seconds", "first_token_seconds", "end_to_end_seconds")
    before = counted(server, "counted", 1)  # the server's, whether it answers
    start = time.monotonic()
    for tokens in (5, 7, 11):
        list(kserve.generate(server.grpc, "counted", "count", tokens, timeout=DEADLINE))
    took = time.monotonic() - start
    after = counted(server, "counted", 4)
    gained = {name: after[f"erlab_{name}_total"] - before[f"erlab_{name}_total"] for name in names}
    assert gained["requests"] == 3 and gained["output_tokens"] == 5 + 7 + 11
    assert 0 < gained["queue_seconds"] < gained["first_token_seconds"] < gained["end_to_end_seconds"] < took


@pytest.mark.parametrize(
    "parameter, value, words",
    [
        ("engine_dir", "nowhere", "no complete engine"),
        ("max_batch_size", "many", "'max_batch_size'"),
        ("cores", "4000", "'cores'"),
    ],
)
def test_a_wrong_configuration_fails_to_load_in_one_clear_line(engine, tmp_path, parameter, value, words):
    good = tiny_kind.write_tiny(tmp_path / "good", "expert", engine, expert(), ())
    config = text_format.Parse((good / "config.pbtxt").read_text(), ModelConfig())
    config.parameters[parameter].string_value = value
    repository.write(tmp_path / "bad", config, (good / "1" / "model.py").read_text())
    with pytest.raises(ErlabError, match=words), Server(tmp_path / "bad"):
        pass


# A backend whose engine fails once, in its sixth step: after the warm-up's, the probe's and a few of ours.
FAILING = """
from erlab.serving.engines import tiny_backend
from erlab.serving.engines.tiny_backend import TritonPythonModel

class Failing(tiny_backend.TinyEngine):
    steps = 0
    def step(self):
        Failing.steps += 1
        if Failing.steps == 6:
            raise MemoryError("none left")
        return super().step()

tiny_backend.TinyEngine = Failing
"""


def test_a_failing_step_answers_everyone_in_flight_and_the_next_is_served(engine, tmp_path, wanted):
    folder = tiny_kind.write_tiny(tmp_path / "models", "expert", engine, expert(), ())
    (folder / "1" / "model.py").write_text(FAILING)
    with Server(tmp_path / "models") as server:
        responses = ask(server, kserve.request("expert", "hello", 50))
        assert 0 < len(responses) < 50
        assert "The engine failed: MemoryError: none left" in responses[-1][1]
        assert "".join(kserve.generate(server.grpc, "expert", "again", 9, timeout=DEADLINE)) == wanted("again", 9)
