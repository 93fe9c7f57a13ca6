"""Emulated experts keep time: steps by arithmetic on a clock of the test's own, and behind the real Triton server."""

import threading
import time

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2_grpc

from erlab import paper, spec
from erlab.errors import ErlabError
from erlab.experiments import telemetry
from erlab.gateway import kserve
from erlab.serving.engines import emulated
from erlab.serving.engines.emulated_engine import EmulatedEngine, StepTable
from erlab.serving.triton import Server
from erlab.serving.triton.server import available
from erlab.simulation.system import Setup, step_times

# A step of one request takes 10 ms, of three 20 ms, linear between; each prompt token adds 0.1 ms.
TABLE = StepTable((1, 3), (0,), ((10.0,), (20.0,)), (0,), (1, 1000), ((0.1, 100.0),))
ROOFLINE = Setup(steps="roofline", era=None)


class Clock:
    """Time that passes by sleeping only, and by `lost` seconds at the next look."""

    def __init__(self):
        self.now, self.lost = 100.0, 0.0

    def __call__(self):
        self.now, self.lost = self.now + self.lost, 0.0
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def make(clock, scale=1.0, batch=3, kv_tokens=None, table=TABLE):
    return EmulatedEngine(table, scale, batch, 1000, kv_tokens, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_steps_last_as_tabulated_times_the_scale(scale):
    clock = Clock()
    engine = make(clock, scale)
    engine.submit("a", b"x" * 50, 3)
    ends, numbers = [], []
    for _ in range(3):
        numbers.append(engine.step())
        ends.append(round((clock.now - 100) * 1e3 / scale, 6))
        if len(ends) == 1:
            engine.submit("b", b"x" * 100, 2)
    assert ends == [5, 5 + 10 + 10, 5 + 20 + 15]  # prompt; one decodes beside 100 prompt tokens; two decode
    assert numbers == [[("a", 0, False)], [("a", 1, False), ("b", 0, False)], [("a", 2, True), ("b", 1, True)]]
    assert (engine.running, engine.waiting, engine.kv_tokens_in_use, engine.late_seconds) == (0, 0, 0, 0)


def test_decode_time_depends_on_the_mean_context():
    table = StepTable((1,), (0, 1000), ((0.001, 1.0),), (0,), (1,), ((5.0,),))
    clock = Clock()
    engine = make(clock, table=table)
    engine.submit("a", b"x" * 100, 9)
    engine.submit("b", b"x" * 300, 9)
    engine.step()
    began = clock.now
    engine.step()
    assert clock.now - began == pytest.approx((101 + 301) / 2 * 1e-6, rel=0.01)
    engine.cancel("b")
    began = clock.now
    engine.step()
    assert clock.now - began == pytest.approx(102 * 1e-6, rel=0.02)


def test_a_short_delay_is_caught_up_and_a_stop_is_not():
    clock = Clock()
    engine = make(clock)
    engine.submit("a", b"x" * 10, 9)
    engine.step()
    clock.lost = 0.004  # less than a step of 10 ms
    engine.step()
    assert clock.now == pytest.approx(100.001 + 0.010)
    clock.lost = 5.0
    engine.step()
    assert clock.now == pytest.approx(100.011 + 5 + 0.010)
    assert engine.late_seconds == 0


def test_lateness_is_summed():
    clock = Clock()
    engine = EmulatedEngine(TABLE, 1.0, 3, 1000, clock=clock, sleep=lambda s: clock.sleep(s + 0.003))
    engine.submit("a", b"x" * 10, 2)
    engine.step()
    engine.step()
    assert engine.late_seconds == pytest.approx(0.006)


def test_an_idle_engine_starts_with_the_next_request():
    clock = Clock()
    engine = make(clock)
    engine.submit("a", b"x" * 10, 1)
    engine.step()
    clock.now = 200.0
    assert engine.step() == [] and clock.now == 200.0
    engine.submit("b", b"x" * 10, 1)
    engine.step()
    assert clock.now == pytest.approx(200.001)


def test_the_kv_pool_limits_running_requests():
    engine = make(Clock(), kv_tokens=1000)
    for name in "ab":
        engine.submit(name, b"x" * 400, 200)
    assert [r for r, _, _ in engine.step()] == ["a"] and engine.waiting == 1


@given(st.integers(1, 400), st.floats(1, 2040), st.integers(0, 300), st.integers(1, 9000))
def test_the_table_is_interpolated_between_its_points(batch, context, decoding, tokens):
    table = StepTable((1, 64, 256), (1, 2047), ((5, 6), (7, 9), (9, 15)), (0, 256), (1, 8192), ((4, 200), (1, 180)))
    assert 5 <= table.decode(batch, context) <= 15
    assert table.decode(batch, context) <= table.decode(batch + 1, context + 1)
    assert 1 <= table.prefill(decoding, tokens) <= 200
    assert table.prefill(decoding, tokens) <= table.prefill(decoding, tokens + 1)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"batches": (3, 1)}, "batches"),
        ({"decode_ms": ((1.0,),)}, "decode_ms"),
        ({"prefill_ms": ((-1.0, 1),)}, "prefill_ms"),
    ],
)
def test_invalid_tables_are_refused(change, named):
    parts = {name: getattr(TABLE, name) for name in TABLE.__dataclass_fields__}
    with pytest.raises(ErlabError, match=named):
        StepTable(**parts | change)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"batches": 3}'])
def test_text_that_is_no_table_is_refused(text):
    with pytest.raises(ErlabError, match="JSON of a StepTable"):
        StepTable.from_json(text)


@pytest.mark.parametrize("letter", ["A", "D", "E"])
def test_the_table_is_the_simulators(letter):
    expert = paper.SYSTEMS["v2"][letter].expert
    table, times = emulated.step_table(expert, ROOFLINE), step_times(expert, ROOFLINE)
    for batch, context in [(1, 1), (7, 300), (100, 777), (256, 2000)]:
        assert table.decode(batch, context) == pytest.approx(times.decode(batch, context) / 1e6, rel=0.05)
    for batch, tokens in [(0, 16), (0, 1000), (64, 274), (256, 512)]:
        added = times.mixed(batch, 1024, 1, tokens, finished=1) - (times.decode(batch, 1024) if batch else 0)
        assert table.prefill(batch, tokens) == pytest.approx(added / 1e6, rel=0.1)


def test_emulated_models_are_labelled(tmp_path):
    system = paper.SYSTEMS["v2"]["E"]
    names = emulated.write_system(tmp_path, "E", system, 20, ROOFLINE)
    assert names == tuple(f"emulated-E-expert-{i}" for i in range(8))
    config = (tmp_path / names[3] / "config.pbtxt").read_text()
    assert "Llama 3 8B FP16, TP 1, 8 experts on H100, 20 times slower; computes nothing" in config
    assert emulated.machine(20, "a laptop", ROOFLINE) == "emulated experts (H100, 20 times slower) on a laptop"


@pytest.mark.parametrize(
    "change, named",
    [({"name": "expert_0"}, "name"), ({"time_scale": 0}, "time_scale"), ({"kv_tokens": 9}, "kv_tokens")],
)
def test_invalid_models_are_refused(tmp_path, change, named):
    expert = paper.SYSTEMS["v2"]["E"].expert
    arguments = {"name": "emulated-x", "table": TABLE, "kv_tokens": 4096, "time_scale": 1.0} | change
    with pytest.raises(ErlabError, match=named):
        emulated.write(tmp_path, expert=expert, **arguments)


needs_triton = pytest.mark.skipif(bool(available()), reason=f"no embedded Triton: {available()}")
SMALL = spec.Expert(paper.LLAMA_3_8B, spec.FP16, max_batch_size=64, max_input_tokens=64, max_output_tokens=1000)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated") / "models"
    emulated.write(folder, "emulated-quick", SMALL, TABLE, 64 * 1064, time_scale=0.1)
    one = spec.Expert(paper.LLAMA_3_8B, spec.FP16, max_batch_size=1)
    emulated.write(folder, "emulated-one", one, TABLE, 2048, time_scale=30.0)
    with Server(folder) as running:
        yield running


@needs_triton
def test_many_streams_get_every_token_in_order_and_none_too_early(server):
    answers, durations = {}, {}

    def user(i):
        began = time.monotonic()
        stamped = kserve.generate(server.grpc, "emulated-quick", "hello", 20 + i, timeout=60)
        answers[i] = [tuple(map(int, text.split())) for text in stamped]
        durations[i] = time.monotonic() - began

    users = [threading.Thread(target=user, args=(i,)) for i in range(40)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert len(durations) == 40
    for i, stamps in answers.items():
        assert durations[i] > (20 + i - 1) * 0.001  # at least 10 ms per step, times 0.1
        numbers, arrived, sent = zip(*stamps)
        assert numbers == tuple(range(20 + i)) and len(set(arrived)) == 1
        assert list(sent) == sorted(sent) and arrived[0] < sent[0]


@needs_triton
def test_a_whole_answer_and_a_refusal(server):
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        whole = kserve.request("emulated-quick", "hello", 3, stream=False)
        [answer] = stub.ModelStreamInfer(iter([whole]), timeout=60)
        *numbers, arrived, sent = kserve.text(answer.infer_response).split()
        assert numbers == ["0", "1", "2"] and int(arrived) < int(sent)
        [refusal] = stub.ModelStreamInfer(iter([kserve.request("emulated-quick", "x" * 64, 3)]), timeout=60)
        assert "at most 64 tokens" in refusal.error_message


@needs_triton
def test_a_cancelled_request_frees_its_slot_for_the_next(server):
    stream = kserve.generate(server.grpc, "emulated-one", "endless", 1000, timeout=60)
    next(stream)
    stream.close()
    # The first request would occupy the only place for 1000 steps of at least 0.3 s, far beyond this deadline.
    assert len(list(kserve.generate(server.grpc, "emulated-one", "next", 2, timeout=60))) == 2


@needs_triton
def test_gauges_start_at_zero_where_a_killed_expert_is_loaded_again(tmp_path):
    """Two requests run and one waits when it is killed; the counters go on, as Prometheus' counters do."""
    two = spec.Expert(paper.LLAMA_3_8B, spec.FP16, max_batch_size=2)
    emulated.write(tmp_path / "models", "emulated-slow", two, TABLE, 4096, time_scale=50.0)

    def gauges():
        rows = telemetry.read(f"http://{next(iter(server.metrics))}/metrics")
        found = {row["metric"]: row["value"] for row in rows if "emulated-slow" in row["labels"]}
        names = ("erlab_running_requests", "erlab_waiting_requests", "erlab_kv_tokens")
        return [found[name] for name in names], found["erlab_requests_total"]

    def until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    with Server(tmp_path / "models") as server, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        message = kserve.request("emulated-slow", "hello", 1000)
        calls = [stub.ModelStreamInfer(iter([message]), timeout=120) for _ in range(3)]
        until(lambda: gauges()[0][:2] == [2, 1])
        answered = gauges()[1]
        assert gauges()[0][2] > 0 and answered == 1  # the probe
        [process] = server._stubs()
        process.kill()
        until(lambda: server.restarts == 1)
        until(lambda: gauges() == ([0, 0, 0], answered))
        for call in calls:
            call.cancel()


@needs_triton
def test_a_wrong_scale_fails_to_load_in_one_clear_line(tmp_path):
    folder = emulated.write(tmp_path / "models", "emulated-x", SMALL, TABLE, 64 * 1064, 1.0)
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(config.replace('string_value: "1.0"', 'string_value: "often"'))
    with pytest.raises(ErlabError, match="'time_scale' parameter of model emulated-x must be a number. Got 'often'"):
        with Server(tmp_path / "models"):
            pass
