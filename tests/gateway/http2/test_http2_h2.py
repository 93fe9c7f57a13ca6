"""What is legal in HTTP/2 and rarely done, with the `h2` package at the other end."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from peers import METHOD, listening, until
from receivers import RecordingReceiver

from erlab.gateway.wire.http2 import Channel, frames

pytest.importorskip("h2")
from h2.config import H2Configuration  # noqa: E402
from h2.connection import H2Connection  # noqa: E402
from h2.settings import SettingCodes  # noqa: E402

HEADERS = [(":status", "200"), ("content-type", "application/grpc")]


class Peer:
    """h2's side of a connection: sends its frames and records its events."""

    def __init__(self, reader, writer):
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.events = []
        self._reader, self._writer = reader, writer
        self.h2.initiate_connection()

    def say(self):
        self._writer.write(self.h2.data_to_send())

    def end(self, stream):
        self.h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        self.say()

    def answer(self, stream, messages):
        """Answer by these messages."""
        self.h2.send_headers(stream, HEADERS)
        self.h2.send_data(stream, b"".join(map(frames.message, messages)))
        self.end(stream)

    async def hear(self, kind, stream=1):
        """The events of this kind so far, after waiting for one on the stream (None: of the connection)."""
        while True:
            self.say()
            data = await asyncio.wait_for(self._reader.read(65536), 20)
            assert data, self.events
            new = self.h2.receive_data(data)
            self.events += new
            self.say()
            if any(type(e).__name__ == kind and getattr(e, "stream_id", None) == stream for e in new):
                return [e for e in self.events if type(e).__name__ == kind]

    async def messages(self, stream=1):
        """All that was sent on the stream until it ended, windows widened as it came."""
        data, seen, ended = b"", 0, False
        while not ended:
            if seen == len(self.events):
                came = await asyncio.wait_for(self._reader.read(65536), 20)
                assert came, self.events
                self.events += self.h2.receive_data(came)
            for event in self.events[seen:]:
                if getattr(event, "stream_id", None) == stream:
                    ended = ended or type(event).__name__ == "StreamEnded"
                    if type(event).__name__ == "DataReceived":
                        data += event.data
                        if event.flow_controlled_length:
                            self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            seen = len(self.events)
            self.say()
        found = []
        while data:
            size = int.from_bytes(data[1:5], "big")
            found.append(data[5 : 5 + size])
            data = data[5 + size :]
        return found


@asynccontextmanager
async def served(answer):
    """A channel to an h2 server that runs `answer(peer)` for its only connection."""

    async def talk(reader, writer):
        await answer(Peer(reader, writer))
        await reader.read()

    async with listening(talk) as address, Channel(address) as channel:
        yield channel


def test_answers_of_an_h2_server():
    """Padded, in frames of a few bytes, headers in continuations, pings and settings in between."""

    async def answer(peer):
        peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1, SettingCodes.INITIAL_WINDOW_SIZE: 10})
        asked = b"".join(await peer.messages())
        peer.h2.send_headers(1, [*HEADERS, *((f"x-{i}", "y" * 900) for i in range(30))])
        peer.h2.ping(b"12345678")
        body = frames.message(asked) + frames.message(b"")
        for at in range(0, len(body), 7):
            peer.h2.send_data(1, body[at : at + 7], pad_length=at % 200)
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 50})
        peer.end(1)
        await peer.hear("PingAckReceived", None)

    async def main():
        async with served(answer) as channel:
            receiver = RecordingReceiver()
            await channel.begin(METHOD, receiver, data=b"x" * 500, timeout=60).ended()
            assert receiver.messages == [b"x" * 500, b""]

    asyncio.run(main())


@pytest.mark.parametrize("window", [1, 7, 100])
def test_messages_pass_windows_of_a_few_bytes(window):
    async def answer(peer):
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        await peer.hear("SettingsAcknowledged", None)
        peer.answer(1, await peer.messages(1))
        peer.answer(3, await peer.messages(3))
        lengths = [len(e.data) for e in peer.events if type(e).__name__ == "DataReceived" and e.stream_id == 3]
        assert max(lengths) <= window

    async def main():
        async with served(answer) as channel:
            assert await channel.unary(METHOD, b"hello", timeout=60) == b"hello"
            assert await channel.unary(METHOD, b"x" * 300, timeout=60) == b"x" * 300

    asyncio.run(main())


def test_a_changed_window_applies_at_once():
    size = 200_000

    async def answer(peer):
        got = 0
        while got < 65535:
            got = sum(len(e.data) for e in await peer.hear("DataReceived"))
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})  # which makes the window negative
        await peer.hear("SettingsAcknowledged", None)
        peer.h2.increment_flow_control_window(100_000)
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 70_000})
        while got < 70_000:
            got = sum(len(e.data) for e in await peer.hear("DataReceived"))
        assert got == 70_000
        peer.h2.increment_flow_control_window(300_000, 1)
        peer.h2.increment_flow_control_window(300_000)
        await peer.hear("StreamEnded")
        assert sum(len(e.data) for e in peer.events if type(e).__name__ == "DataReceived") == size + 5
        peer.answer(1, [b"%d" % size])

    async def main():
        async with served(answer) as channel:
            assert await channel.unary(METHOD, bytes(size), timeout=60) == b"%d" % size

    asyncio.run(main())


def test_header_tables_follow_h2s_encoder():
    async def answer(peer):
        for stream in range(1, 41, 2):
            await peer.messages(stream)
            fields = [("x-trace", str(stream)), ("x-size", "y" * (stream * 40))]
            peer.h2.send_headers(stream, [*HEADERS, *fields])
            peer.h2.send_data(stream, frames.message(b"%d" % stream))
            peer.h2.send_headers(stream, [("grpc-status", "0"), *fields], end_stream=True)
            peer.say()

    async def main():
        async with served(answer) as channel:
            got = [await channel.unary(METHOD, b"", timeout=60) for _ in range(20)]
            assert got == [b"%d" % stream for stream in range(1, 41, 2)]

    asyncio.run(main())


def test_a_cancelled_call_resets_its_stream_with_cancel():
    async def answer(peer):
        await peer.messages()
        peer.h2.send_headers(1, HEADERS)
        peer.h2.send_data(1, frames.message(b"one"))
        [reset] = await peer.hear("StreamReset")
        assert reset.error_code == frames.CANCEL
        peer.answer(3, await peer.messages(3))

    async def main():
        async with served(answer) as channel:
            receiver = RecordingReceiver()
            call = channel.begin(METHOD, receiver, data=b"")
            await until(lambda: receiver.messages)
            call.cancel()
            assert await channel.unary(METHOD, b"two", timeout=60) == b"two"

    asyncio.run(main())


def test_calls_reconnect_after_an_h2_server_closes_its_connection():
    async def answer(peer):
        peer.answer(1, await peer.messages())
        peer.h2.close_connection(last_stream_id=1)
        peer.say()

    async def main():
        async with served(answer) as channel:
            for i in range(3):
                assert await channel.unary(METHOD, b"%d" % i, timeout=60) == b"%d" % i

    asyncio.run(main())
