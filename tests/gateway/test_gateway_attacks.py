"""Attacks on the gateway's gRPC port: memory stays bounded, others are answered, half-open connections end."""

import gzip
import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager

import grpc
import hpack
import psutil
import pytest
from fake_triton import FakeTriton, decoded, obedient, stream
from tritonclient.grpc import service_pb2

from erlab.gateway import Gateway, Limits, kserve
from erlab.gateway.wire.grpc_server import SERVICE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
STREAM = f"/{SERVICE}/ModelStreamInfer".encode()
QUICK = Limits(header_seconds=1, keepalive_seconds=3, idle_seconds=3)  # keepalive: a busy machine is no dead peer


async def flood(request):
    """200 MB, more than any client may have queued."""
    for _ in range(4000):
        yield "x" * 50_000


@pytest.fixture(scope="module")
def attacked(router_folder):
    """A gateway process whose experts `e` and `flood` may be asked by name."""
    with FakeTriton({"e": obedient, "flood": flood}) as fake:
        with Gateway.of(router_folder, fake.address, ("e", "flood"), limits=QUICK) as gateway:
            fine(gateway)
            yield gateway


def fine(gateway):
    """Assert that an ordinary client is answered."""
    with grpc.insecure_channel(gateway.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        data = kserve.request("e", "one two", 4).SerializeToString()
        assert [kserve.text(r.infer_response) for r in decoded(stream(channel, data, timeout=60))] == ["one", "two"]


@contextmanager
def bounded(gateway, megabytes):
    """Assert that the gateway's memory grows by less than this within the block, and that others are answered."""
    process, over = psutil.Process(gateway.pid), threading.Event()
    before = most = process.memory_info().rss

    def watch():
        nonlocal most
        while not over.wait(0.02):
            most = max(most, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
        fine(gateway)
    finally:
        over.set()
        watching.join()
    grown = (most - before) / 1e6
    assert grown < megabytes, f"{grown:.0f} MB"
    assert gateway.alive()


def frame(kind, flags, number, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, number) + payload


def head(path=STREAM, *more, encoder=None):
    """The header block of a call."""
    pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a")]
    pairs += [(b"te", b"trailers"), (b"content-type", b"application/grpc"), *more]
    return (encoder or hpack.Encoder()).encode(pairs)


def message(data, compressed=0):
    return struct.pack(">BI", compressed, len(data)) + data


def chunks(number, data, flags=0):
    """DATA frames."""
    parts = [data[at : at + 16384] for at in range(0, len(data), 16384)]
    return b"".join(frame(DATA, flags if at == len(parts) - 1 else 0, number, part) for at, part in enumerate(parts))


@contextmanager
def connected(gateway, settings=b""):
    """A connection on which only preface and settings are sent."""
    host, _, port = gateway.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as opened:
        opened.sendall(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(SETTINGS, ACK, 0))
        yield opened


def send(connection, data):
    """Send what the gateway takes: it may hang up on an attack at any time."""
    try:
        connection.sendall(data)
        return True
    except OSError:
        return False


def ended(connection, seconds=60):
    """Whether the other side closes the connection in time, whatever it sends until then."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def odd(count):
    return range(1, 2 * count, 2)


@pytest.mark.parametrize("size", [5_000_000, 100_000_000])
def test_400_gzip_requests_that_inflate_beyond_the_limit(attacked, size):
    bomb = message(gzip.compress(bytes(size)), compressed=1)
    begin = head(STREAM, (b"grpc-encoding", b"gzip"))
    with bounded(attacked, 100), connected(attacked) as connection:
        threading.Thread(target=ended, args=(connection,), daemon=True).start()  # it reads, else windows would end it
        for number in odd(400):
            calls = frame(HEADERS, END_HEADERS, number, begin) + chunks(number, bomb[:60_000])
            if not send(connection, calls + (chunks(number, bomb[60_000:], END_STREAM) if size < 10_000_000 else b"")):
                break
        fine(attacked)


def test_200_requests_that_are_never_finished(attacked):
    begun = struct.pack(">BI", 0, 4_000_000) + bytes(60_000)
    with bounded(attacked, 60), connected(attacked) as connection:
        for number in odd(200):
            send(connection, frame(HEADERS, END_HEADERS, number, head()) + chunks(number, begun))
        fine(attacked)
    with bounded(attacked, 60), ExitStack() as stack:  # no message at all, no headers' end at all
        for _ in range(100):
            connection = stack.enter_context(connected(attacked))
            send(connection, b"".join(frame(HEADERS, END_HEADERS, number, head()) for number in odd(10)))
            send(connection, frame(HEADERS, 0, 21, head()))
        fine(attacked)


def test_unfinished_calls_end_at_their_deadline(router_folder):
    """A call without a request, a call with half of one, and a client that reads no answers."""
    limits = Limits(seconds=2, stall_seconds=1)
    with FakeTriton({"e": obedient, "flood": flood}) as fake:
        with Gateway.of(router_folder, fake.address, ("e", "flood"), limits=limits) as gateway:
            flooded = message(kserve.request("flood", "x", 4).SerializeToString())
            with grpc.insecure_channel(gateway.address) as channel:
                for path, said in (STREAM, "for 2 s"), (f"/{SERVICE}/ModelInfer".encode(), "within 2 s"):
                    never = threading.Event()
                    call = channel.stream_stream(path.decode())(iter(lambda: never.wait() and None, None), timeout=60)
                    with pytest.raises(grpc.RpcError) as late:
                        next(call)
                    never.set()
                    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED and said in late.value.details()
            with connected(gateway, struct.pack(">HI", 4, 0)) as connection:  # no window: nothing can be sent to it
                send(connection, frame(HEADERS, END_HEADERS, 1, head()) + chunks(1, flooded, END_STREAM))
                send(connection, frame(HEADERS, END_HEADERS, 3, head()) + chunks(3, message(bytes(9))[:9]))
                fake.wait(lambda: fake.in_flight["flood"] == 1)
                fake.wait(lambda: fake.in_flight["flood"] == 0)
                while True:
                    size = struct.unpack(">I", b"\0" + connection.recv(3, socket.MSG_WAITALL))[0]
                    kind, flags, number = struct.unpack(">BBI", connection.recv(6, socket.MSG_WAITALL))
                    connection.recv(size, socket.MSG_WAITALL) if size else b""
                    if number == 3 and (kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM)):
                        break


def test_200_streams_that_are_never_read(attacked):
    """Each would get 200 MB."""
    asked = message(kserve.request("flood", "x", 4).SerializeToString())
    with bounded(attacked, 150), ExitStack() as stack:
        for window in (0, 2**31 - 1):  # the stream's, or else the connection's is what holds it back
            connection = stack.enter_context(connected(attacked, struct.pack(">HI", 4, window)))
            for number in odd(100):
                send(connection, frame(HEADERS, END_HEADERS, number, head()) + chunks(number, asked, END_STREAM))
        fine(attacked)
        time.sleep(1)  # for what would pile up
        fine(attacked)


def call(n, *more, encoder=None):
    """The headers of a call; all calls of a connection have the same encoder, or each its own."""
    return frame(HEADERS, END_HEADERS, 2 * n + 3, head(STREAM, *more, encoder=encoder))


def reset(n):
    return frame(RST_STREAM, 0, 2 * n + 3, struct.pack(">I", 8))


@pytest.mark.parametrize(
    "request_, count", [(b"x", 100_000), (kserve.request("e", "hang" + " " * 3_000_000, 4).SerializeToString(), 100)]
)
def test_one_stream_of_requests_whose_answers_are_not_read(attacked, request_, count):
    """Small ones that are refused in a hundred bytes each, and large ones, none of which ends."""
    sent = 0

    def requests():
        nonlocal sent
        while sent < count:
            sent += 1
            yield request_

    with bounded(attacked, 60), grpc.insecure_channel(attacked.address) as channel:
        unread = channel.stream_stream(STREAM.decode())(requests())
        last = -1
        while sent > last:  # until no more is taken
            last = sent
            time.sleep(1)
        assert 0 < sent < count
        fine(attacked)
        unread.cancel()


FLOODS = {
    "WINDOW_UPDATE +1": lambda n, _: frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)),
    "WINDOW_UPDATE +1 of a stream": lambda n, _: frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 1)),
    "DATA of a byte": lambda n, _: frame(DATA, 0, 1, b"\0"),
    "DATA of none": lambda n, _: frame(DATA, 0, 1),
    "SETTINGS of 100 entries": lambda n, _: frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535 + n % 2) * 100),
    "PING": lambda n, _: frame(PING, 0, 0, struct.pack(">Q", n)),
    "RST_STREAM after HEADERS": lambda n, _: call(n) + reset(n),
    "an unknown method each": lambda n, _: frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 3, head(b"/no/such")),
    "header table churn": lambda n, encoder: call(n, (b"x-%d" % n, b"v" * 1000), encoder=encoder) + reset(n),
    "CONTINUATION without end": lambda n, _: frame(CONTINUATION if n else HEADERS, 0, 3, b"\0\1a\1b" if n else head()),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_floods(attacked, kind):
    with bounded(attacked, 100), ExitStack() as stack:
        for _ in range(3):
            connection, encoder = stack.enter_context(connected(attacked)), hpack.Encoder()
            threading.Thread(target=ended, args=(connection,), daemon=True).start()
            send(connection, frame(HEADERS, END_HEADERS, 1, head(encoder=encoder)))
            for batch in range(20):
                if not send(connection, b"".join(FLOODS[kind](batch * 200 + n, encoder) for n in range(200))):
                    break
            fine(attacked)


@pytest.mark.parametrize("path", [b"/\xff\xfe", b"/\xc3(/x", b"", b"no slash"])
def test_an_invalid_path_fails_only_its_own_call(attacked, path):
    with grpc.insecure_channel(attacked.address) as channel:
        hanging = channel.unary_stream(STREAM.decode())(kserve.request("e", "hang", 4).SerializeToString())
        next(hanging)
        with connected(attacked) as connection:
            send(connection, frame(HEADERS, END_HEADERS, 1, head(path)) + chunks(1, message(b"x"), END_STREAM))
            fine(attacked)
            fine(attacked)
        assert hanging.is_active() and hanging.cancel()


@pytest.mark.parametrize("words", [b"", b"PRI", PREFACE, PREFACE + frame(SETTINGS, 0, 0)], ids=str)
def test_grpc_connections_without_a_request_are_closed(attacked, words):
    files = psutil.Process(attacked.pid).num_fds()
    host, _, port = attacked.address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            connection.sendall(words)
        assert ended(connection)
        end = time.monotonic() + 60
        while psutil.Process(attacked.pid).num_fds() > files + 2:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_connection_that_answers_no_pings_is_closed(attacked):
    """It has a call that is answered without end, and pings are not answered: as after a cable is cut."""
    with connected(attacked) as connection:
        asked = message(kserve.request("e", "hang", 4).SerializeToString())
        send(connection, frame(HEADERS, END_HEADERS, 1, head()) + chunks(1, asked))
        assert ended(connection)


def test_more_connections_and_calls_than_allowed_are_refused(router_folder):
    limits = Limits(connections=10, calls=5)
    with FakeTriton({"e": obedient}) as fake, Gateway.of(router_folder, fake.address, ("e",), limits=limits) as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            hanging = kserve.request("e", "hang", 4).SerializeToString()
            calls = [channel.unary_stream(STREAM.decode())(hanging) for _ in range(5)]
            assert [len(next(call)) > 0 for call in calls] == [True] * 5
            with pytest.raises(grpc.RpcError) as caught:
                stream(channel, hanging)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with ExitStack() as stack:
                others = [stack.enter_context(connected(gateway)) for _ in range(20)]
                end = time.monotonic() + 60
                while sum(ended(other, seconds=0.01) for other in others) < 10:
                    assert time.monotonic() < end
            calls[0].cancel()
            fake.wait(lambda: fake.in_flight["e"] == 4)
            assert all(call.is_active() for call in calls[1:])
            data = service_pb2.ModelInferRequest.SerializeToString(kserve.request("e", "one", 4))
            end = time.monotonic() + 60
            while True:
                try:
                    assert len(stream(channel, data)) == 1
                    break
                except grpc.RpcError:  # until the cancelled call's place is free
                    assert time.monotonic() < end
