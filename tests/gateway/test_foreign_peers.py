"""Third-party clients and servers: each gets complete answers from the gateway, and its errors by name.

`h2load`, `nghttp`, `curl` and `node` run where they are on the PATH, `@grpc/grpc-js` where `node` finds it (NODE_PATH);
`.ci/run` installs them.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import grpc
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio
from fake_triton import STREAM, FakeTriton, obedient
from local import Local
from receivers import RecordingReceiver
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.gateway.wire import http2

PROMPT, ANSWER = "salt the pasta water", "saltthepastawater"
UNKNOWN = "There is no model 'nobody' here, only "
SECONDS = 120  # within which a peer's process must end
GRPC_HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")


@pytest.fixture(scope="module")
def served(router):
    with FakeTriton({"expert_0": obedient, "expert_1": obedient}) as fake:
        with Local(router, fake.address, ("expert_0", "expert_1"), http_port=0) as gateway:
            yield gateway


def message(model="router", prompt=PROMPT):
    return kserve.request(model, prompt, 8)


def responses(messages):
    """The joined text of stream responses, and the last error message."""
    decoded = [service_pb2.ModelStreamInferResponse.FromString(m) if isinstance(m, bytes) else m for m in messages]
    return "".join(kserve.text(r.infer_response) for r in decoded), decoded[-1].error_message


def program(*command, env=None):
    """Standard output of a program; skips the test where the program is not installed."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not on the PATH")
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def body(tmp_path):
    """A file with one gRPC message: a request to the router."""
    data = message().SerializeToString()
    (tmp_path / "request").write_bytes(b"\0" + len(data).to_bytes(4, "big") + data)
    return str(tmp_path / "request")


def test_grpcio_client(served):
    with grpc.insecure_channel(served.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert responses(list(stub.ModelStreamInfer(iter([message()]), timeout=60))) == (ANSWER, "")
        _, error = responses(list(stub.ModelStreamInfer(iter([message("nobody")]), timeout=60)))
        assert error.startswith(f"NOT_FOUND: {UNKNOWN}")
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message("nobody"), timeout=60)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND and UNKNOWN in caught.value.details()


def test_tritonclient_client(served):
    async def ask(model):
        tensors = []
        for name, datatype, value in (
            ("text_input", "BYTES", np.array([[PROMPT.encode()]], dtype=object)),
            ("max_tokens", "INT32", np.array([[8]], dtype=np.int32)),
            ("stream", "BOOL", np.array([[True]])),
        ):
            tensors.append(triton.InferInput(name, list(value.shape), datatype))
            tensors[-1].set_data_from_numpy(value)

        async def requests():
            yield {"model_name": model, "inputs": tensors}

        async with tritonclient.grpc.aio.InferenceServerClient(served.address) as client:
            answers = [answer async for answer in client.stream_infer(requests(), stream_timeout=60)]
        texts = [result.as_numpy("text_output").item().decode() for result, error in answers if result]
        return "".join(texts), [error.message() for _, error in answers if error]

    assert asyncio.run(ask("router")) == (ANSWER, [])
    text, (error,) = asyncio.run(ask("nobody"))
    assert text == "" and error.startswith(f"NOT_FOUND: {UNKNOWN}")


def test_grpcio_server_behind_our_client():
    async def ask(address, prompt):
        receiver = RecordingReceiver()
        async with http2.Channel(address) as channel:
            call = channel.begin(STREAM, receiver, timeout=60, data=message("e", prompt).SerializeToString())
            await call.ended()
        return responses(receiver.messages)

    with FakeTriton({"e": obedient}) as fake:
        assert asyncio.run(ask(fake.address, PROMPT)) == (ANSWER, "")
        assert asyncio.run(ask(fake.address, "fail")) == ("", "out of memory")
        with pytest.raises(http2.Failed, match="UNAVAILABLE: connection reset"):
            asyncio.run(ask(fake.address, "abort"))
        with pytest.raises(ErlabError, match="UNAVAILABLE: connection reset"):
            list(kserve.generate(fake.address, "e", "abort", 1, 60))


def test_h2load(served, body):
    url = f"http://{served.address}{STREAM}"
    report = program("h2load", "-n", "200", "-c", "4", "-m", "10", "-T", "60", *GRPC_HEADERS, "-d", body, url)
    assert "200 done, 200 succeeded, 0 failed, 0 errored, 0 timeout" in report, report
    assert "200 2xx, 0 3xx, 0 4xx, 0 5xx" in report


def test_nghttp(served, body):
    url = f"http://{served.address}{STREAM}"
    frames = program("nghttp", "-v", "-n", "-t", "60", *GRPC_HEADERS, "-d", body, url)
    assert ":status: 200" in frames and "grpc-status: 0" in frames, frames
    assert frames.index("recv DATA") < frames.index("grpc-status: 0")
    frames = program("nghttp", "-v", "-n", "-t", "60", *GRPC_HEADERS, "-d", body, f"{url}er")
    assert re.search("grpc-status: 12\n", re.sub("\x1b[^m]*m", "", frames)), frames  # UNIMPLEMENTED


@cache
def finds_grpc_js():
    if not shutil.which("node"):
        return False
    found = subprocess.run(["node", "-e", "require('@grpc/grpc-js')"], capture_output=True, timeout=SECONDS)
    return found.returncode == 0


def test_grpc_js(served):
    if not finds_grpc_js():
        pytest.skip("node does not find @grpc/grpc-js")

    def ask(model):
        script = str(Path(__file__).with_name("grpc_js.js"))
        *lines, status = program("node", script, served.address, message(model).SerializeToString().hex()).splitlines()
        return *responses([bytes.fromhex(line) for line in lines]), json.loads(status)["code"]

    assert ask("router") == (ANSWER, "", "OK")
    text, error, status = ask("nobody")
    assert (text, status) == ("", "OK") and error.startswith(f"NOT_FOUND: {UNKNOWN}")


def test_openai_client(served):
    with openai.OpenAI(base_url=served.addresses["http"] + "/v1", api_key="any", max_retries=0) as client:
        pieces = client.completions.create(model="router", prompt=PROMPT, max_tokens=8, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == ANSWER
        with pytest.raises(openai.NotFoundError, match="must be 'router' or an expert") as caught:
            client.completions.create(model="nobody", prompt=PROMPT)
        assert caught.value.code == "not_found"


def test_curl(served):
    def ask(model):
        request = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": 8, "stream": True})
        form = ("-sS", "-N", "-m", "60", "-w", "\n%{http_code}", "-H", "Content-Type: application/json")
        answer = program("curl", *form, "-d", request, served.addresses["http"] + "/v1/completions", env=no_proxy())
        content, _, status = answer.rpartition("\n")
        return content, int(status)

    content, status = ask("router")
    events = [line.removeprefix("data: ") for line in content.splitlines() if line]
    assert status == 200 and events[-1] == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == ANSWER
    content, status = ask("nobody")
    assert status == 404 and json.loads(content)["error"]["code"] == "not_found"


def no_proxy():
    return os.environ | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
