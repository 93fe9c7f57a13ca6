"""Access log: one JSON object per request, without the prompt's text unless wanted.

    {"time": "2024-05-01T12:00:00.000+00:00", "client": "http:10.0.0.9", "model": "router", "characters": 41,
     "status": "ok", "ms": 812.4, "expert": "math", "cluster": 3, "policy": "nearest", "distance": 0.71, "margin": 0.2,
     "classify_ms": 0.3, "queue_ms": 0.0, "first_ms": 61.2}

`status` is "ok", "cancelled" or the kind of an error (`erlab.gateway.errors.Kind`), whose message is in `error`. All
times count from the arrival of the request, except for `classify_ms` and `queue_ms`, which are durations. Workers
append to the same file; each line is one system call.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone

from erlab.gateway.errors import RequestError

_STDERR = 2
_logger = logging.getLogger(__name__)


class AccessLog:
    """Access log in a file, "-" for standard error; `prompts`: whether it holds the prompts."""

    def __init__(self, path: str, prompts: bool = False):
        self._path, self._prompts, self._file = path, prompts, None
        self.reopen()

    def reopen(self) -> None:
        """Open the file, again if another program has moved it; raises OSError."""
        file = _STDERR if self._path == "-" else os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        self.close()
        self._file = file

    def close(self) -> None:
        if self._file not in (None, _STDERR):
            os.close(self._file)

    @contextmanager
    def request(self, model: str, text: str, client: str, received_ns: int) -> Iterator[dict]:
        """Yield the entry of a request, to which values may be added, and write it at the end."""
        entry = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "client": client}
        entry |= {"model": model, "characters": len(text), "status": "cancelled", "ms": None}
        entry |= {"prompt": text} if self._prompts else {}
        try:
            yield entry
            entry["status"] = "ok"
        except RequestError as e:
            entry |= {"status": e.kind, "error": str(e)}
            raise
        finally:
            entry["ms"] = _ms(time.monotonic_ns() - received_ns)
            if first_ns := entry.pop("first_ns", None):
                entry["first_ms"] = _ms(first_ns - received_ns)
            if entry.get("margin") == math.inf:
                entry["margin"] = None  # one cluster has no runner-up, and JSON no infinity
            try:
                os.write(self._file, (json.dumps(entry) + "\n").encode())
            except OSError as e:  # a request does not fail because the disk is full
                with suppress(OSError):
                    _logger.error("The access log cannot be written: %s", e.strerror)


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)
