"""The methods and models that the gRPC door answers, with and without a router; all else is refused."""

import grpc
import pytest
from fake_triton import FakeTriton, decoded, echo, stream
from local import Local, Passing
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.gateway import kserve
from erlab.gateway.wire.grpc_server import METHODS, SERVICE

ALLOWED = {"ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig"}
ALLOWED |= {"ModelStatistics", "RepositoryIndex", "ModelInfer", "ModelStreamInfer"}
assert set(METHODS) == ALLOWED
PROTOCOL = {m.name for m in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
OTHERS = ["/grpc.health.v1.Health/Check", "/no.such/Method", f"/{SERVICE}/NoSuchMethod", "/"]
CODE = grpc.StatusCode


class Behind(FakeTriton):
    """A server that does whatever it is asked, and remembers the methods."""

    def __init__(self):
        super().__init__({"e": echo, "other": echo})
        self.called = []

    def service(self, details):
        self.called.append(details.method.rpartition("/")[2])
        return super().service(details) or grpc.unary_unary_rpc_method_handler(self._anything)

    async def _anything(self, data, context):
        return b""

    async def _ModelStatistics(self, data, context):
        name = service_pb2.ModelStatisticsRequest.FromString(data).name
        stats = service_pb2.ModelStatistics(name=name, inference_count=3)
        return service_pb2.ModelStatisticsResponse(model_stats=[stats]).SerializeToString()


@pytest.fixture(scope="module")
def behind():
    with Behind() as running:
        yield running


@pytest.fixture(scope="module", params=["router", "names"])
def gateway(request, behind, router):
    """(address, the models it has): one gateway with a router, one without."""
    if request.param == "router":
        with Local(router, behind.address, ("e",)) as running:
            yield running.address, ["e", "router"]
    else:
        with Passing(("mine",), behind.address, ("e",)) as running:
            yield running.address, ["mine"]


@pytest.fixture
def channel(gateway):
    with grpc.insecure_channel(gateway[0]) as opened:
        yield opened


@pytest.fixture
def stub(channel):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("path", [*(f"/{SERVICE}/{name}" for name in sorted(PROTOCOL - ALLOWED)), *OTHERS])
def test_other_methods_are_refused_with_a_list_of_those_allowed(channel, behind, path):
    behind.called.clear()
    for call in channel.unary_unary(path), lambda data: list(channel.stream_stream(path)(iter([data] * 3))):
        code, said = refused(lambda: call(b"x" * 100))
        assert code is CODE.UNIMPLEMENTED
        assert all(name in said for name in ALLOWED)
        assert path.rpartition("/")[2] in said or path in OTHERS
    assert not behind.called


def test_1000_unknown_calls_leave_nothing_open(channel):
    ask = channel.unary_unary("/no.such/Method")
    calls = [ask.future(b"") for _ in range(1000)]
    assert {call.code() for call in calls} == {CODE.UNIMPLEMENTED}


def test_only_the_gateways_models_are_known(gateway, stub, behind):
    models = gateway[1]
    for name in models:
        assert stub.ModelReady(service_pb2.ModelReadyRequest(name=name)).ready
        assert stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=name)).name == name
        assert stub.ModelConfig(service_pb2.ModelConfigRequest(name=name)).config.name == name
    listed = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True)).models
    assert [(m.name, m.state) for m in listed] == [(name, "READY") for name in models]
    behind.called.clear()
    assert not stub.ModelReady(service_pb2.ModelReadyRequest(name="other")).ready
    for method, request in [
        (stub.ModelMetadata, service_pb2.ModelMetadataRequest(name="other")),
        (stub.ModelConfig, service_pb2.ModelConfigRequest(name="other")),
        (stub.ModelStatistics, service_pb2.ModelStatisticsRequest(name="other")),
        (stub.ModelInfer, kserve.request("other", "one", 4)),
    ]:
        code, said = refused(lambda: method(request))
        assert code is CODE.NOT_FOUND and said == f"There is no model 'other' here, only {', '.join(models)}."
    assert not behind.called


def test_a_stream_reaches_only_the_gateways_models(gateway, channel, behind):
    behind.received.clear()
    asked = [kserve.request(name, "one two", 4, request_id=name) for name in (*gateway[1], "other")]
    answers = decoded(stream(channel, *(request.SerializeToString() for request in asked)))
    errors = [(r.infer_response.id, r.error_message) for r in answers if r.error_message]
    assert errors == [("other", f"NOT_FOUND: There is no model 'other' here, only {', '.join(gateway[1])}.")]
    assert len(behind.received) == len(gateway[1]) and len(answers) == 2 * len(gateway[1]) + 1


def test_statistics_are_those_of_the_experts(gateway, stub):
    for name in ("", gateway[1][-1]):
        told = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=name)).model_stats
        assert [(stats.name, stats.inference_count) for stats in told] == [("e", 3)]


def test_the_server_is_live_ready_and_itself(stub):
    assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
    assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
    about = stub.ServerMetadata(service_pb2.ServerMetadataRequest())
    assert about.name == "erlab" and not any("memory" in extension for extension in about.extensions)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("parameter", ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"])
def test_tensors_in_shared_memory_are_refused(gateway, channel, stub, behind, side, parameter):
    request = kserve.request(gateway[1][-1], "one", 4)
    tensor = request.inputs[0] if side == "inputs" else request.outputs.add(name="text_output")
    if parameter == "shared_memory_region":
        tensor.parameters[parameter].string_param = "anybodys"
    else:
        tensor.parameters[parameter].int64_param = 8
    behind.called.clear()
    code, said = refused(lambda: stub.ModelInfer(request))
    assert code is CODE.INVALID_ARGUMENT and repr(tensor.name) in said and repr(parameter) in said
    assert decoded(stream(channel, request.SerializeToString()))[0].error_message == said
    assert not behind.called


def test_a_gateway_without_triton_refuses_methods_of_triton(router):
    with Local(router, None, ("http://127.0.0.1:9/v1#m",)) as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
            assert stub.ModelReady(service_pb2.ModelReadyRequest(name="router")).ready
            assert not stub.ModelStatistics(service_pb2.ModelStatisticsRequest()).model_stats
            code, said = refused(lambda: stub.ModelConfig(service_pb2.ModelConfigRequest(name="router")))
            assert code is CODE.UNIMPLEMENTED and "is not on a Triton server, which could answer ModelConfig" in said
