"""Event streams, cut anywhere, as WHATWG's standard reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erlab.gateway.errors import RequestError
from erlab.gateway.wire import events


def read(*pieces):
    """The data of the events in these pieces."""
    stream = events.Events()
    return [events.data(event) for piece in pieces for event in stream.take(piece)]


@pytest.mark.parametrize(
    "stream, said",
    [
        (b"data: one\n\ndata:two\n\n", [b"one", b"two"]),
        (b"data: one\r\n\r\ndata: two\r\n\r\n", [b"one", b"two"]),
        (b"data: one\r\rdata: two\r\r", [b"one", b"two"]),
        (b"\xef\xbb\xbfdata: one\n\n", [b"one"]),
        (b"data: {\ndata: }\n\n", [b"{\n}"]),
        (b"id: 7\nevent: x\nretry: 1\ndata: one\nother\n\n", [b"one"]),
        (b": keep-alive\n\ndata:\n\ndata\n\ndata: one\n\n", [b"", b"", b"", b"one"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"\n\n\ndata: one\n\n\n\ndata: two\n\n", [b"", b"one", b"", b"two"]),
        (b"data: one\n\ndata: cut", [b"one"]),
        (b"data: one\n\ndata: cut\n", [b"one"]),
        (b"\xef\xbb", []),
        ("data: é\u2028\n\n".encode(), ["é\u2028".encode()]),
    ],
)
def test_data_of_events(stream, said):
    assert read(stream) == said
    single = read(*(stream[i : i + 1] for i in range(len(stream))))  # blank lines may come apart
    assert [data for data in single if data] == [data for data in said if data]


texts = st.binary(max_size=8).map(lambda text: text.replace(b"\n", b"").replace(b"\r", b""))


@given(st.lists(texts, max_size=6), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 99), max_size=9))
def test_an_event_stream_split_anywhere_has_the_same_events(said, end, places):
    stream = b"\xef\xbb\xbf: begins" + 2 * end + b"".join(b"data: " + text + 2 * end for text in said)
    ends = sorted({place % len(stream) for place in places} | {len(stream)})
    pieces = [stream[start:stop] for start, stop in zip([0, *ends], ends)]
    assert [data for data in read(*pieces) if data] == [text for text in said if text]


def test_an_event_is_bounded():
    stream, piece = events.Events(), b"x" * 2**16
    with pytest.raises(RequestError, match="more than 4194304 bytes") as caught:
        for _ in range(events.EVENT_BYTES // len(piece) + 1):
            assert not stream.take(piece)
    assert caught.value.retriable
