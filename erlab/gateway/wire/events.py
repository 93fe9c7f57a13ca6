"""Server-sent events (text/event-stream) in chunks cut at any byte, parsed as WHATWG's HTML standard says.

Lines end in LF, CR or CRLF. A byte order mark may begin the stream. Comments and fields other than `data` carry
nothing. An event ends with a blank line.

>>> stream = Events()
>>> stream.take(b"data: one\\r\\rdata: tw"), stream.take(b"o\\n\\n: still here\\n\\n")
([b'data: one\\n\\n'], [b'data: two\\n\\n', b': still here\\n\\n'])
>>> data(b"data: 1,\\ndata: 2\\n\\n"), data(b": still here\\n\\n")
(b'1,\\n2', b'')
"""

from erlab.gateway.errors import Kind, RequestError

EVENT_BYTES = 4 * 2**20  # of the largest event accepted
_BOM = b"\xef\xbb\xbf"


class Events:
    """Incremental splitter of a stream into events."""

    def __init__(self):
        self.rest = bytearray()  # bytes of an incomplete event
        self._begun = self._after_cr = False

    def take(self, data: bytes) -> list[bytes]:
        """Return the events that `data` completes, each with its blank line; lines end in LF.

        Raises RequestError if an event has more than EVENT_BYTES.
        """
        if not self._begun:
            data = bytes(self.rest) + data
            self.rest.clear()
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self.rest += data
                return []
            data, self._begun = data.removeprefix(_BOM), True
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]  # the CR before has ended the line
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if not self.rest and data.endswith(b"\n\n"):  # true for most reads
            whole = data
        else:
            searched = max(0, len(self.rest) - 1)
            self.rest += data
            end = self.rest.rfind(b"\n\n", searched) + 2
            if end < 2:
                if len(self.rest) > EVENT_BYTES:
                    large = f"An expert sent an event of more than {EVENT_BYTES} bytes"
                    raise RequestError(Kind.INTERNAL, large, retriable=True)
                return []
            whole = bytes(self.rest[:end])
            del self.rest[:end]
        return [event + b"\n\n" for event in whole.split(b"\n\n")[:-1]]


def data(event: bytes) -> bytes:
    """Return an event's data, its lines joined by LF; empty if it has none."""
    if event.startswith(b"data: ") and event.count(b"\n") == 2:
        return event[6:-2]
    fields = (line.partition(b":") for line in event.split(b"\n"))
    return b"\n".join(value.removeprefix(b" ") for name, _, value in fields if name == b"data")
