"""What is legal in HTTP/2 and rarely done, with the `h2` package at the other end."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from peers import HEADERS, PEER, service, serving

from erlab.http2 import Channel, frames
from erlab.http2.calls import Kept

pytest.importorskip("h2")
from h2.config import H2Configuration  # noqa: E402
from h2.connection import H2Connection  # noqa: E402
from h2.settings import SettingCodes  # noqa: E402


class Peer:
    """h2's side of a connection: what it has to say is sent, and its events are kept."""

    def __init__(self, reader, writer, client):
        self.h2 = H2Connection(H2Configuration(client_side=client, header_encoding="utf-8"))
        self.events = []
        self._reader, self._writer = reader, writer
        self.h2.initiate_connection()

    def say(self):
        self._writer.write(self.h2.data_to_send())

    async def hear(self, kind, stream=1):
        """The events of this kind on the stream so far, after waiting for one more."""
        while True:
            self.say()
            data = await asyncio.wait_for(self._reader.read(65536), 20)
            assert data, self.events
            new = self.h2.receive_data(data)
            self.events += new
            self.say()
            if any(type(e).__name__ == kind and getattr(e, "stream_id", stream) == stream for e in new):
                return [e for e in self.events if type(e).__name__ == kind]

    async def messages(self, stream=1):
        """All that was sent on the stream until it ended, windows widened as it came."""
        data, at = b"", 0
        while not any(type(e).__name__ == "StreamEnded" and e.stream_id == stream for e in self.events):
            self.say()
            came = await asyncio.wait_for(self._reader.read(65536), 20)
            assert came, self.events
            self.events += self.h2.receive_data(came)
            for event in self.events[at:]:
                if type(event).__name__ == "DataReceived" and event.stream_id == stream:
                    data += event.data
                    if event.flow_controlled_length:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            at = len(self.events)
        found = []
        while data:
            size = int.from_bytes(data[1:5], "big")
            found.append(data[5 : 5 + size])
            data = data[5 + size :]
        return found


@asynccontextmanager
async def asking(handler=service):
    """An h2 client of our server."""
    async with serving(handler) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        yield Peer(reader, writer, client=True)
        writer.close()


def test_padding_priorities_and_continuations_change_nothing():
    async def main():
        async with asking() as peer:
            long = [*HEADERS, *((f"x-{i}", "y" * 900) for i in range(12))]  # of 11 kB, in several frames
            peer.h2.send_headers(1, long, priority_weight=7, priority_depends_on=0, priority_exclusive=True)
            body = frames.message(b"one") + frames.message(b"two")
            for at in range(len(body)):
                peer.h2.send_data(1, body[at : at + 1], pad_length=at * 9)
            peer.h2.prioritize(1, weight=3)
            peer.h2.end_stream(1)
            assert await peer.messages() == [b"one", b"two"]

    asyncio.run(main())


@pytest.mark.parametrize("window", [1, 7, 100])
def test_windows_of_a_few_bytes_only_take_longer(window):
    async def main():
        async with asking() as peer:
            peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
            peer.say()
            await peer.hear("SettingsAcknowledged")
            peer.h2.send_headers(1, HEADERS)
            peer.h2.send_data(1, frames.message(b"x" * 300), end_stream=True)
            assert await peer.messages() == [b"x" * 300]
            lengths = [len(e.data) for e in peer.events if type(e).__name__ == "DataReceived"]
            assert max(lengths) <= window

    asyncio.run(main())


def test_a_window_changed_midway_counts_at_once():
    async def main():
        async with asking() as peer:
            peer.h2.send_headers(1, [*HEADERS[:2], (":path", f"{PEER}Sizes"), *HEADERS[3:]])
            peer.h2.send_data(1, frames.message(b"100000 3"), end_stream=True)
            peer.say()
            got = 0
            while got < 65535:
                got = sum(len(e.data) for e in await peer.hear("DataReceived"))
            peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})  # which makes the window negative
            await peer.hear("SettingsAcknowledged")
            peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 70_000})
            peer.h2.increment_flow_control_window(100_000)
            while got < 70_000:
                got = sum(len(e.data) for e in await peer.hear("DataReceived"))
            assert got == 70_000
            peer.h2.increment_flow_control_window(300_000, 1)
            peer.h2.increment_flow_control_window(300_000)
            await peer.hear("StreamEnded")
            assert sum(len(e.data) for e in peer.events if type(e).__name__ == "DataReceived") == 3 * 100_005

    asyncio.run(main())


@pytest.mark.parametrize(
    "change, status",
    [
        ({":method": "GET"}, "405"),
        ({"content-type": "application/json"}, "415"),
        ({"grpc-encoding": "snappy"}, "12"),
        ({":path": f"{PEER}None"}, "12"),
    ],
)
def test_what_is_no_call_is_told_so(change, status):
    async def main():
        async with asking() as peer:
            peer.h2.send_headers(1, list((dict(HEADERS) | change).items()))
            peer.h2.send_data(1, frames.message(b"one"))  # and there would be more
            await peer.hear("StreamEnded")
            if not any(type(e).__name__ == "StreamReset" for e in peer.events):
                await peer.hear("StreamReset")
            said = dict(h for e in peer.events if type(e).__name__ == "ResponseReceived" for h in e.headers)
            assert status in (said[":status"], said.get("grpc-status"))
            assert change.get("grpc-encoding") is None or said["grpc-accept-encoding"] == "deflate,gzip,identity"

    asyncio.run(main())


def test_an_h2_server_answers_our_client_in_its_own_ways():
    """Padded, in frames of a few bytes, headers in continuations, pings and settings in between."""

    async def main():
        done = asyncio.Event()

        async def answer(reader, writer):
            peer = Peer(reader, writer, client=False)
            peer.h2.update_settings({3: 1, 4: 10})  # one stream at a time, ten bytes at a time
            asked = b"".join(await peer.messages())
            peer.h2.send_headers(1, [(":status", "200"), *((f"x-{i}", "y" * 900) for i in range(30))])
            peer.h2.ping(b"12345678")
            body = frames.message(asked) + frames.message(b"")
            for at in range(0, len(body), 7):
                peer.h2.send_data(1, body[at : at + 7], pad_length=at % 200)
            peer.h2.update_settings({4: 50})
            peer.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
            peer.say()
            await done.wait()
            writer.close()

        listener = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with Channel("127.0.0.1:{}".format(listener.sockets[0].getsockname()[1])) as channel:
            kept = Kept()
            await channel.begin("/a/B", kept, data=b"x" * 500, timeout=20).ended()
            assert kept.messages == [b"x" * 500, b""]
            done.set()
        listener.close()

    asyncio.run(main())
