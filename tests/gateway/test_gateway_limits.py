"""Failing, hanging and full experts, limits, and refused clients."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import fake_triton
import grpc
import pytest
from fake_triton import GATES, STREAM, Abort, FakeTriton, ModelError, decoded, echo, obedient, stream
from local import Local
from tritonclient.grpc import service_pb2, service_pb2_grpc

from erlab.gateway import Gateway, health, kserve
from erlab.gateway.core import Decider, Dispatcher, Plan, ServedExpert
from erlab.gateway.limits import Limits
from erlab.gateway.metrics import Metrics
from erlab.gateway.wire.interface import Unpaused

EXPERTS = ("expert_0", "expert_1")


def ask(text, request_id=""):
    return kserve.request("router", text, 4, request_id=request_id).SerializeToString()


def told(response):
    """A response's error, its expert, its text."""
    infer = response.infer_response
    return response.error_message, infer.parameters["erlab_expert"].string_param, kserve.text(infer)


def opened(gateway):
    return grpc.insecure_channel(gateway.address)


def test_requests_in_flight_and_waiting_are_limited(router):
    limits = Limits(in_flight=2, queue=1)
    with FakeTriton({"e": obedient}) as fake, Local(router, fake.address, ("e",), limits=limits) as gateway:
        with opened(gateway) as channel:
            call = channel.stream_stream(STREAM)(iter([ask("wait full", str(i)) for i in range(4)]), timeout=60)
            refused = service_pb2.ModelStreamInferResponse.FromString(next(call))
            fake.wait(lambda: fake.in_flight["e"] == 2)
            fake.loop.call_soon_threadsafe(GATES["full"].set)
            answered = decoded(list(call))
        assert refused.error_message == "RESOURCE_EXHAUSTED: e has 2 requests in flight and 1 waiting; try later"
        assert refused.infer_response.parameters["erlab_expert"].string_param == "e"
        assert [kserve.text(r.infer_response) for r in answered] == ["late"] * 3
        assert len({refused.infer_response.id} | {r.infer_response.id for r in answered}) == 4
        waited = sorted(r.infer_response.parameters["erlab_queue_ns"].int64_param for r in answered)
        assert waited[0] < waited[2] and fake.most_in_flight["e"] == 2
        with opened(gateway) as channel:  # all places were given back
            requests = [ask("one") for _ in range(3)]
            assert [told(r)[2] for r in decoded(stream(channel, *requests))] == ["one"] * 3


def test_a_cancelled_waiting_request_frees_its_place_in_the_queue(router):
    limits = Limits(in_flight=1, queue=1)
    with FakeTriton({"e": obedient}) as fake, Local(router, fake.address, ("e",), limits=limits) as gateway:
        with opened(gateway) as channel:
            first = channel.unary_stream(STREAM)(ask("hang"), timeout=60)
            next(first)
            waiting = channel.unary_stream(STREAM)(ask("one"), timeout=60)
            while not told(decoded(stream(channel, ask("two")))[0])[0].startswith("RESOURCE_EXHAUSTED"):
                pass
            waiting.cancel()
            last = channel.unary_stream(STREAM)(ask("three"), timeout=60)
            first.cancel()
            assert [told(r)[2] for r in decoded(list(last))] == ["three"]
        assert b"one" not in b"".join(fake.received)


@pytest.mark.parametrize("failure", [ModelError("out of memory"), Abort("connection reset"), None])
def test_a_failure_before_the_first_token_is_retried_on_the_next_choice(router, homes, failure):
    async def failing(request):
        if failure:
            raise failure
        return
        yield

    with FakeTriton({"expert_0": failing, "expert_1": echo}) as fake:
        with Local(router, fake.address, EXPERTS) as gateway, opened(gateway) as channel:
            answers = decoded(stream(channel, ask(homes[0])))
            assert [told(r)[2] for r in answers] == homes[0].split()
            assert told(answers[0])[1] == "expert_1" and not any(r.error_message for r in answers)


def test_a_failure_after_the_first_token_ends_the_answer_with_an_error(router, homes):
    async def breaks(request):
        yield "half"
        raise Abort("connection reset")

    with FakeTriton({"expert_0": breaks, "expert_1": echo}) as fake:
        with Local(router, fake.address, EXPERTS) as gateway, opened(gateway) as channel:
            half, error = decoded(stream(channel, ask(homes[0])))
            assert told(half) == ("", "expert_0", "half")
            assert error.error_message == "UNAVAILABLE: connection reset (expert_0)"


def test_an_expert_that_answers_garbage_is_replaced_and_comes_back(router, homes, monkeypatch):
    garbled, whole = {"expert_0"}, fake_triton.text_response

    def response(request, text):
        return b"\n\xff\xff" if request.model_name in garbled else whole(request, text)

    monkeypatch.setattr(fake_triton, "text_response", response)
    with FakeTriton(dict.fromkeys(EXPERTS, echo)) as fake:
        with Local(router, fake.address, EXPERTS) as gateway, opened(gateway) as channel:
            assert told(decoded(stream(channel, ask(homes[0])))[0])[:2] == ("", "expert_1")
            garbled.clear()
            end = time.monotonic() + 60
            while told(decoded(stream(channel, ask(homes[0])))[0])[1] != "expert_0":
                assert time.monotonic() < end


def test_a_silent_expert_is_taken_out_and_comes_back(router, homes):
    """Expert 0 stops answering, as a process that is killed or stopped within a server that lives on."""
    hangs = {"all": True}

    async def moody(request):
        if homes[0].split()[0] in str(request.raw_input_contents[0]):
            yield "begun"
        if hangs["all"]:
            await asyncio.Event().wait()
        yield "done"

    limits = Limits(stall_seconds=0.5)
    with FakeTriton({"expert_0": moody, "expert_1": echo}) as fake:
        with Local(router, fake.address, EXPERTS, limits=limits) as gateway, opened(gateway) as channel:
            begun = channel.unary_stream(STREAM)(ask(homes[0]), timeout=60)
            later = homes[0].partition(" ")[2]  # the same cluster, without the word that gets a first token
            waiting = channel.unary_stream(STREAM)(ask(later), timeout=60)
            *_, broken = decoded(list(begun))
            assert broken.error_message == "UNAVAILABLE: expert_0 stopped answering"
            moved = decoded(list(waiting))
            assert [told(r)[2] for r in moved] == later.split() and told(moved[0])[1] == "expert_1"
            assert told(decoded(stream(channel, ask(later)))[0])[1] == "expert_1"  # without trying expert 0
            fake.wait(lambda: fake.cancelled["expert_0"] >= 2)
            hangs["all"], end = False, time.monotonic() + 60
            while told(decoded(stream(channel, ask(later)))[0])[1] != "expert_0":
                assert time.monotonic() < end


def test_new_requests_do_not_count_as_signs_of_life(router, homes):
    """Triton, when an expert's process is stopped, fails what is sent to it then and leaves older streams hanging."""
    later = homes[0].partition(" ")[2]

    async def ill(request):
        if homes[0].split()[0] in str(request.raw_input_contents[0]):
            yield "begun"
            await asyncio.Event().wait()
        await asyncio.sleep(0.2)
        raise ModelError("not healthy")

    limits = Limits(stall_seconds=1000)  # only the failed probe ends the older stream
    with FakeTriton({"expert_0": ill, "expert_1": echo}) as fake:
        with Local(router, fake.address, EXPERTS, limits=limits) as gateway, opened(gateway) as channel:
            begun = channel.unary_stream(STREAM)(ask(homes[0]), timeout=60)
            next(begun)

            def go_on_asking():
                while not begun.done():
                    assert told(decoded(stream(channel, ask(later)))[0])[1] == "expert_1"

            with ThreadPoolExecutor() as pool:
                others = [pool.submit(go_on_asking) for _ in range(4)]
                (broken,) = decoded(list(begun))
            assert broken.error_message == "UNAVAILABLE: expert_0 stopped answering"
            assert [other.result() for other in others] == [None] * 4


def test_a_stream_silent_across_a_probe_is_lost_and_a_unary_call_is_not(router):
    """As after an expert was loaded again: it answers, but not what the one before left unfinished."""
    limits = Limits(stall_seconds=0.2, seconds=20)
    with FakeTriton({"e": obedient}) as fake, Local(router, fake.address, ("e",), limits=limits) as gateway:
        with opened(gateway) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            whole = stub.ModelInfer.future(kserve.request("router", "wait patient", 1), timeout=20)
            begun, lost = decoded(stream(channel, ask("hang")))
            assert told(begun)[2] == "hang" and lost.error_message == "UNAVAILABLE: e stopped answering"
            (never,) = decoded(stream(channel, ask("wait never")))
            assert never.error_message == "UNAVAILABLE: e stopped answering"
            fake.wait(lambda: fake.in_flight["e"] == 1)
            assert not whole.done()
            fake.loop.call_soon_threadsafe(GATES["patient"].set)
            assert kserve.text(whole.result()) == "late"


def test_a_slow_reader_keeps_its_stream(router):
    async def flood(request):
        if b"ping" in request.raw_input_contents[0]:
            yield "pong"
            return
        for _ in range(400):
            yield "x" * 50_000

    limits = Limits(stall_seconds=0.5, seconds=20)
    with FakeTriton({"e": flood}) as fake, Local(router, fake.address, ("e",), limits=limits) as gateway:
        with opened(gateway) as channel:
            lazy = channel.unary_stream(STREAM)(ask("much"), timeout=20)
            next(lazy)
            probes = len(fake.received)
            fake.wait(lambda: len(fake.received) > probes + 1)  # its silence is noticed, and not held against it
            assert len(list(lazy)) == 399


class _Slow(Unpaused):
    """A client that takes its answer when it wants to, and an expert that has sent more of it before it heard so."""

    def __init__(self):
        self.ready, self.pieces, self.probes = asyncio.Event(), [], asyncio.Semaphore(0)

    def piece(self, data, routed=None):
        self.pieces.append(data)

    async def resumed(self):
        await self.ready.wait()

    async def probe(self):
        self.probes.release()

    async def ask(self, expert, sink):
        sink.piece(b"one")
        held = asyncio.create_task(sink.resumed())
        await asyncio.sleep(0)
        sink.piece(b"two")
        await held
        sink.piece(b"three")


def test_pieces_to_a_paused_reader_do_not_count_as_its_experts_silence():
    async def run():
        slow, limits = _Slow(), Limits(stall_seconds=0.05)
        expert = ServedExpert("e", slow, limits)
        dispatch = Dispatcher(Plan(None, Decider((expert,), [(0,)])), limits, Metrics())
        end = asyncio.get_running_loop().time() + 20
        tending = asyncio.create_task(health.watch(expert, limits))
        attempt = asyncio.create_task(dispatch.attempt(expert, slow.ask, slow, end))
        for _ in range(3):  # a second probe follows only when the first's verdict is done
            await asyncio.wait_for(slow.probes.acquire(), 20)
        slow.ready.set()
        await attempt
        tending.cancel()
        return slow.pieces

    assert asyncio.run(run()) == [b"one", b"two", b"three"]


NONE_UP = "UNAVAILABLE: None of the 1 experts is up (e: Stub process is not healthy.)"


def test_no_expert_up_is_reported_at_once(router):
    async def dead(request):
        raise ModelError("Stub process is not healthy.")
        yield

    with FakeTriton({"e": dead}) as fake, Local(router, fake.address, ("e",)) as gateway:
        with opened(gateway) as channel:
            assert told(decoded(stream(channel, ask("one")))[0])[0] == "Stub process is not healthy."
            end = time.monotonic() + 60
            while told(decoded(stream(channel, ask("one")))[0])[0] != NONE_UP:
                assert time.monotonic() < end
            with pytest.raises(grpc.RpcError) as caught:
                service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(kserve.request("router", "one", 1))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            fake.models["e"] = echo
            while told(decoded(stream(channel, ask("one")))[0])[0]:
                assert time.monotonic() < end


def test_the_gateways_deadline_ends_a_request(router):
    with FakeTriton({"e": obedient}) as fake:
        for seconds in (1, 8, 64):  # on a busy machine the deadline may pass before the first token
            limits = Limits(seconds=seconds)
            with Local(router, fake.address, ("e",), limits=limits) as gateway, opened(gateway) as channel:
                *first, late = decoded(stream(channel, ask("hang"), timeout=120))
            assert late.error_message == f"DEADLINE_EXCEEDED: e did not end within {seconds} s"
            if first:
                break
        assert [told(response)[2] for response in first] == ["hang"]
        fake.wait(lambda: fake.in_flight.total() == 0)


def test_sizes_are_limited(router):
    limits = Limits(message_bytes=10_000, header_bytes=2_000)
    with FakeTriton({"e": echo}) as fake, Local(router, fake.address, ("e",), limits=limits) as gateway:
        with opened(gateway) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                stream(channel, ask("x" * 20_000))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.RpcError) as caught:
                stream(channel, ask("one"), metadata=[("x-long", "x" * 4_000)])
            assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
            assert not fake.received
            assert told(decoded(stream(channel, ask("one")))[0])[2] == "one"


def test_the_key_is_required_and_not_forwarded(router):
    with FakeTriton({"e": echo}) as fake, Local(router, fake.address, ("e",), key="s3cret") as gateway:
        with opened(gateway) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for headers in (None, [("authorization", "Bearer other")], [("authorization", "s3cret")]):
                for refused in (
                    lambda: stream(channel, ask("one"), metadata=headers),
                    lambda: stub.ServerLive(service_pb2.ServerLiveRequest(), metadata=headers),
                ):
                    with pytest.raises(grpc.RpcError) as caught:
                        refused()
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            brought = [("authorization", "Bearer s3cret"), ("x-trace", "12")]
            assert told(decoded(stream(channel, ask("one"), metadata=brought))[0])[2] == "one"
        assert fake.metadata[-1]["x-trace"] == "12" and "authorization" not in fake.metadata[-1]


def test_the_repository_lists_the_router(router):
    class Listing(FakeTriton):
        async def _RepositoryIndex(self, data, context):
            index = service_pb2.RepositoryIndexResponse.ModelIndex
            return service_pb2.RepositoryIndexResponse(models=[index(name="e", state="READY")]).SerializeToString()

    with Listing({"e": echo}) as fake, Local(router, fake.address, ("e",)) as gateway:
        with opened(gateway) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            listed = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest()).models
            assert [(m.name, m.state) for m in listed] == [("e", "READY"), ("router", "READY")]


def test_prompts_are_not_logged(router_folder):
    body = b'{"prompt": "hunter2"}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    wrong = [b"Content-Length: 9", b"Content-Length: x", b"Content-Length: 21\r\nContent-Encoding: gzip", b"hunter2"]
    with FakeTriton({"e": obedient}) as fake, Gateway.of(router_folder, fake.address, ("e",), http_port=0) as gateway:
        with opened(gateway) as channel:
            for word in ("one", "fail", "abort", "half", "nothing"):
                stream(channel, ask(f"{word} hunter2"))
        for header in wrong:
            with socket.create_connection(("127.0.0.1", int(gateway.http.rpartition(":")[2])), timeout=60) as raw:
                raw.sendall(head + header + b"\r\n\r\n" + body)
                answers = b"".join(iter(lambda: raw.recv(65536), b""))
            assert b" 400 " in answers, (header, answers)
        gateway._errors.seek(0)
        assert "hunter2" not in gateway._errors.read()


def test_limits_beyond_grpcios_range_are_clamped(router):
    limits = Limits(seconds=1e9, idle_seconds=1e9, keepalive_seconds=1e9, message_bytes=2**40, header_seconds=1e-9)
    with FakeTriton({"e": echo}) as fake, Local(router, fake.address, ("e",), limits=limits):
        pass


def test_limits_are_checked():
    with pytest.raises(Exception, match="'in_flight' parameter of .limits. must be at least 1. Got 0"):
        Limits(in_flight=0)
