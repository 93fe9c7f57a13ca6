"""What clients see of a gateway process in front of a fake Triton."""

import asyncio
import time

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from fake_triton import COURT, KITCHEN, STREAM, FakeTriton, decoded, echo, stream
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.gateway import Gateway, fleet, kserve
from erlab.gateway.server import serving

EXPERTS = ("expert_0", "expert_1")


def ask(text, model="router", request_id=""):
    return kserve.request(model, text, 4, request_id=request_id).SerializeToString()


def test_each_prompt_goes_to_its_clusters_expert(channel, router):
    prompts = KITCHEN + COURT
    routing = router.route(prompts)
    assert set(routing.cluster) == {0, 1}
    for i, prompt in enumerate(prompts):
        before = time.monotonic_ns()
        responses = decoded(stream(channel, ask(prompt)))
        after = time.monotonic_ns()
        assert [kserve.text(r.infer_response) for r in responses] == prompt.split()
        said = responses[0].infer_response.parameters
        assert said["erlab_cluster"].int64_param == routing.cluster[i]
        assert said["erlab_expert"].string_param == EXPERTS[routing.cluster[i]]
        assert responses[0].infer_response.model_name == EXPERTS[routing.cluster[i]]
        assert said["erlab_distance"].double_param == pytest.approx(routing.distance[i])
        assert said["erlab_margin"].double_param == pytest.approx(routing.margin[i])
        assert said["erlab_policy"].string_param == "nearest"
        received, routed = said["erlab_received_ns"].int64_param, said["erlab_routed_ns"].int64_param
        assert before <= received <= routed <= after
        assert 0 < said["erlab_classify_ns"].int64_param <= routed - received
        assert 0 <= said["erlab_queue_ns"].int64_param <= after - routed
        assert not any(r.infer_response.parameters for r in responses[1:])


def test_bytes_are_forwarded_and_relayed_as_they_came(channel, fake):
    fake.received.clear(), fake.sent.clear()
    request = ask(KITCHEN[0], request_id="7")
    responses = stream(channel, request, metadata=[("x-trace", "12"), ("x-data-bin", bytes(range(7)))])
    assert fake.metadata[-1]["x-trace"] == "12" and fake.metadata[-1]["x-data-bin"] == bytes(range(7))
    assert fake.received[0].startswith(request) and len(fake.received) == 1
    assert responses[0].startswith(fake.sent[0]) and responses[1:] == fake.sent[1:]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_requests_may_come_compressed(channel, fake, compression):
    fake.received.clear()
    request = ask(KITCHEN[0] + " again" * 100)
    responses = channel.stream_stream(STREAM)(iter([request]), timeout=60, compression=compression)
    assert len(list(responses)) == len(KITCHEN[0].split()) + 100
    assert fake.received[0].startswith(request)


def test_an_expert_is_a_model_of_its_own_name(channel, fake):
    fake.received.clear(), fake.sent.clear()
    request = ask("one two", "expert_1")
    responses = stream(channel, request)
    assert fake.received[0].startswith(request) and responses == fake.sent
    assert [kserve.text(r.infer_response) for r in decoded(responses)] == ["one", "two"]
    assert not any(r.infer_response.parameters for r in decoded(responses))  # nothing was decided
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    answer = stub.ModelInfer(kserve.request("expert_1", "three four", 4))
    assert (kserve.text(answer), answer.model_name) == ("three four", "expert_1")
    (failed,) = decoded(stream(channel, ask("fail", "expert_1", "7")))
    assert (failed.error_message, failed.infer_response.id) == ("out of memory", "7")


def test_requests_on_one_stream_are_answered_concurrently(channel):
    """The first request can only end when the second has been answered."""
    responses = decoded(stream(channel, ask("wait beside", request_id="1"), ask("open beside", request_id="2")))
    got = [(kserve.text(r.infer_response), r.infer_response.id) for r in responses]
    assert sorted(got) == [("early", "2"), ("late", "1")]


@pytest.mark.parametrize(
    "text, texts, error",
    [
        ("fail", [], "out of memory"),
        ("abort", [], "UNAVAILABLE: connection reset"),
        ("half", ["half"], "UNAVAILABLE: connection reset"),
        ("nothing", [], "ended the stream without an answer"),
    ],
)
def test_a_failing_expert_is_reported_with_its_name(channel, text, texts, error):
    *answered, failed = decoded(stream(channel, ask(text, request_id="7")))
    assert [kserve.text(r.infer_response) for r in answered] == texts
    assert error in failed.error_message
    assert (answered or [failed])[0].infer_response.parameters["erlab_expert"].string_param in EXPERTS


def test_bad_requests_are_refused_and_the_stream_goes_on(channel):
    no_text = service_pb2.ModelInferRequest(model_name="router", id="8").SerializeToString()
    responses = decoded(stream(channel, b"\xff\xff\xff", no_text, ask(KITCHEN[0])))
    errors = sorted(r.error_message for r in responses if r.error_message)
    assert len(errors) == 2
    assert "'text_input' tensor" in errors[0] and "inference.ModelInferRequest message" in errors[1]
    assert [kserve.text(r.infer_response) for r in responses if not r.error_message] == KITCHEN[0].split()
    for data in (b"\xff\xff\xff", no_text):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(data)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_router_is_a_model_like_others(channel):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    assert stub.ModelReady(service_pb2.ModelReadyRequest(name="router")).ready
    assert stub.ModelReady(service_pb2.ModelReadyRequest(name="expert_1")).ready
    assert not stub.ModelReady(service_pb2.ModelReadyRequest(name="nobody")).ready
    metadata = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="router"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("router", ["1"], "python")
    config = stub.ModelConfig(service_pb2.ModelConfigRequest(name="router")).config
    assert (config.name, config.backend, config.max_batch_size) == ("router", "python", 1)
    answer = stub.ModelInfer(kserve.request("router", KITCHEN[0], 4))
    assert kserve.text(answer) == KITCHEN[0]
    assert answer.parameters["erlab_expert"].string_param == answer.model_name


def _inputs(text):
    tensors = [triton.InferInput("text_input", [1, 1], "BYTES"), triton.InferInput("max_tokens", [1, 1], "INT32")]
    tensors[0].set_data_from_numpy(np.array([[text.encode()]], dtype=object))
    tensors[1].set_data_from_numpy(np.array([[4]], dtype=np.int32))
    return tensors


def test_stock_tritonclient_works_unchanged(gateway, fake):
    answers = []
    with triton.InferenceServerClient(gateway.address) as stock:
        assert stock.is_server_live() and stock.is_server_ready() and stock.is_model_ready("router")
        assert stock.get_model_metadata("router").name == "router"
        stock.start_stream(lambda result, error: answers.append((result, error)))
        for i, prompt in enumerate(("salt water", "fail", "the court")):
            stock.async_stream_infer("router", _inputs(prompt), request_id=str(i))
        stock.stop_stream()
        got = [(r.get_response().id, r.as_numpy("text_output").item()) for r, e in answers if e is None]
        assert sorted(got) == [("0", b"salt"), ("0", b"water"), ("2", b"court"), ("2", b"the")]
        assert [e.message() for r, e in answers if e is not None] == ["out of memory"]
        before = fake.cancelled.total()
        stock.start_stream(lambda result, error: None)
        stock.async_stream_infer("router", _inputs("hang"))
        fake.wait(lambda: fake.in_flight.total() == 1)
        stock.stop_stream(cancel_requests=True)
        fake.wait(lambda: fake.in_flight.total() == 0)
        assert fake.cancelled.total() == before + 1


def test_stock_aio_tritonclient_works_unchanged(gateway, fake):
    async def requests(*prompts):
        for prompt in prompts:
            yield {"model_name": "router", "inputs": _inputs(prompt)}

    async def main():
        async with triton_aio.InferenceServerClient(gateway.address) as stock:
            assert await stock.is_model_ready("router")
            answers = [answer async for answer in stock.stream_infer(requests("salt water", "fail"))]
            assert sorted(r.as_numpy("text_output").item() for r, e in answers if e is None) == [b"salt", b"water"]
            assert [e.message() for r, e in answers if e is not None] == ["out of memory"]
            hanging = stock.stream_infer(requests("hang"))
            assert (await anext(hanging))[0].as_numpy("text_output").item() == b"hang"
            before = fake.cancelled.total()
            hanging.cancel()
            await asyncio.to_thread(fake.wait, lambda: fake.cancelled.total() == before + 1)
            before, pieces, seconds = fake.cancelled.total(), 0, 1.0
            while not pieces:  # on a busy machine the deadline may pass before the request reaches its expert
                with pytest.raises(grpc.aio.AioRpcError) as late:
                    async for _ in stock.stream_infer(requests("hang"), stream_timeout=seconds):
                        pieces += 1
                assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                seconds *= 2
            await asyncio.to_thread(fake.wait, lambda: fake.cancelled.total() > before and not fake.in_flight.total())

    asyncio.run(main())


def test_a_disconnected_grpc_client_cancels_its_requests(gateway, fake):
    before = fake.cancelled.total()
    channel = grpc.insecure_channel(gateway.address)
    call = channel.stream_stream(STREAM)(iter([ask("hang")] * 3))
    next(call)
    fake.wait(lambda: fake.in_flight.total() == 3)
    channel.close()
    fake.wait(lambda: fake.cancelled.total() == before + 3)


def test_a_server_that_goes_away_is_reported_and_found_again(router_folder):
    models = {name: echo for name in EXPERTS}
    with FakeTriton(models) as fake, Gateway.of(router_folder, fake.address, EXPERTS) as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            fake.__exit__()
            assert "UNAVAILABLE" in decoded(stream(channel, ask(KITCHEN[0])))[0].error_message
            assert "UNAVAILABLE" in decoded(stream(channel, ask("one", "expert_1")))[0].error_message
            with FakeTriton(models, port=int(fake.address.rpartition(":")[2])):
                end = time.monotonic() + 60
                while decoded(stream(channel, ask(KITCHEN[0])))[0].error_message:
                    assert time.monotonic() < end
            assert gateway.alive()


def test_nothing_leaks_over_500_requests(gateway, channel):
    process = psutil.Process(gateway.pid)
    ask_many = channel.stream_stream(STREAM)
    stream(channel, ask(KITCHEN[0]))
    before = process.num_fds()
    for i in range(50):
        assert len(stream(channel, *[ask("one two")] * 9)) == 18
        hanging = ask_many(iter([ask("hang")]))
        next(hanging)
        hanging.cancel()
    assert process.num_fds() <= before


def test_no_task_outlives_its_request(fake, router):
    async def main():
        config = fleet.from_clusters("in memory", fake.address, EXPERTS)
        async with serving(config, router) as service:
            async with grpc.aio.insecure_channel(service.addresses["address"]) as channel:
                call = channel.unary_stream(STREAM)

                async def one(text):
                    stream = call(ask(text))
                    await stream.read()
                    stream.cancel()

                await one("one")
                before = len(asyncio.all_tasks())
                await asyncio.gather(*(one(text) for text in ["one two", "hang", "fail", "half"] * 25))
                end = time.monotonic() + 60
                while len(asyncio.all_tasks()) > before or fake.in_flight.total():
                    assert time.monotonic() < end, asyncio.all_tasks()
                    await asyncio.sleep(0.01)

    asyncio.run(main())
