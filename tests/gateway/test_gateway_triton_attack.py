"""Through the gateway nobody makes a real Triton behind it load code, lose a model, map memory or log elsewhere."""

import json

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab import paper
from erlab.gateway import Gateway, kserve
from erlab.serving.engines import emulated
from erlab.serving.engines.emulated_engine import StepTable
from erlab.serving.triton import Server
from erlab.serving.triton.server import available

pytestmark = pytest.mark.skipif(available() is not None, reason=f"no embedded Triton: {available()}")

TIMES = StepTable((1, 64), (1, 4096), ((1.0, 1.0),) * 2, (0, 1, 64), (1, 4096), ((1.0, 1.0),) * 3)
MODEL = """
open({marker!r}, "w").close()


class TritonPythonModel:
    def execute(self, requests):
        return []
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attack") / "models"
    for name in ("emulated-0", "emulated-1"):
        emulated.write(folder, name, paper.SYSTEMS["v2"]["E"].expert, TIMES, kv_tokens=100_000, time_scale=1.0)
    with Server(folder) as running:
        yield running


@pytest.fixture(scope="module", params=["router", "names"])
def stub(request, server, router_folder):
    way = {"router": router_folder} if request.param == "router" else {"router": None, "names": ("emulated-0",)}
    with Gateway.of(upstream=server.grpc, experts_of_clusters=("emulated-0",), **way) as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def load(marker, name):
    """A request to load a model that comes with the request."""
    request = service_pb2.RepositoryModelLoadRequest(model_name=name)
    request.parameters["config"].string_param = json.dumps({"backend": "python", "max_batch_size": 0})
    request.parameters["file:1/model.py"].bytes_param = MODEL.format(marker=str(marker)).encode()
    return request


def unload(_, name):
    return service_pb2.RepositoryModelUnloadRequest(model_name=name)


def log(marker, _):
    request = service_pb2.LogSettingsRequest()
    request.settings["log_file"].string_param = str(marker)
    return request


def trace(marker, _):
    request = service_pb2.TraceSettingRequest()
    request.settings["trace_file"].value.append(str(marker))
    return request


def memory(_, name):
    return service_pb2.SystemSharedMemoryRegisterRequest(name=name, key="/erlab-attack", byte_size=8)


@pytest.mark.parametrize(
    "method, request_",
    [
        ("RepositoryModelLoad", load),
        ("RepositoryModelUnload", unload),
        ("LogSettings", log),
        ("TraceSetting", trace),
        ("SystemSharedMemoryRegister", memory),
    ],
)
@pytest.mark.parametrize("name", ["emulated-0", "new"])
def test_methods_that_change_the_server_are_refused_by_name(stub, server, tmp_path, method, request_, name):
    marker = tmp_path / "marker"
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request_(marker, name), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert f"The method {method} is refused. This gateway answers only" in caught.value.details()
    with grpc.insecure_channel(server.grpc) as direct:
        theirs = service_pb2_grpc.GRPCInferenceServiceStub(direct)
        assert theirs.ModelReady(service_pb2.ModelReadyRequest(name="emulated-0")).ready
        assert not theirs.ModelReady(service_pb2.ModelReadyRequest(name="new")).ready
    assert not marker.exists()


def test_only_the_gateways_models_are_served(stub):
    for ask in (
        lambda: stub.ModelConfig(service_pb2.ModelConfigRequest(name="emulated-1")),
        lambda: stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="emulated-1")),
        lambda: stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="emulated-1")),
        lambda: stub.ModelInfer(kserve.request("emulated-1", "one", 4)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND and "'emulated-1'" in caught.value.details()
    told = stub.ModelStatistics(service_pb2.ModelStatisticsRequest()).model_stats
    assert {stats.name for stats in told} == {"emulated-0"}
    assert stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="emulated-0")).name == "emulated-0"
    assert stub.ModelConfig(service_pb2.ModelConfigRequest(name="emulated-0")).config.backend
    listed = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest()).models
    assert "emulated-1" not in {model.name for model in listed}


def test_tensors_in_shared_memory_are_refused_before_the_server_sees_them(stub):
    request = kserve.request("emulated-0", "one", 4)
    request.inputs[0].parameters["shared_memory_region"].string_param = "anybodys"
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert "allows no shared memory" in caught.value.details()
    request = kserve.request("emulated-0", "one", 4)
    answers = list(stub.ModelStreamInfer(iter([request])))
    assert len(answers) == 4 and not any(answer.error_message for answer in answers)
