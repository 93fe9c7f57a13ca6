"""Health of the experts: probes that take an expert out of service and back in.

Only a probe, a real inference of one token, changes whether an expert is up. The gateway probes an expert when a
request failed, or when a request has waited `Limits.stall_seconds` for a sign of life; an expert that answers in time
is never probed. Triton leaves the streams of an expert that died hanging, even after it has loaded the expert again. So
a stream that was silent before a probe was sent, and still is when the probe has been answered, is lost and ends.
"""

import asyncio
import math
from collections.abc import Iterable

from erlab.gateway.core import ServedExpert
from erlab.gateway.errors import RequestError
from erlab.gateway.limits import Limits

_TICK_SECONDS = 0.25  # between two looks at an expert's signs of life, and between two probes of one that is down


async def watch(expert: ServedExpert, limits: Limits) -> None:
    """Probe the expert whenever it is suspected, until cancelled."""
    loop, stall = asyncio.get_running_loop(), limits.stall_seconds
    while True:
        try:
            async with asyncio.timeout(_TICK_SECONDS):
                await expert.suspected.wait()
        except TimeoutError:
            heard = [expert.heard] if expert.running else []
            if expert.up and loop.time() - min([*heard, *expert.leases.values()], default=math.inf) <= stall:
                continue
        expert.suspected.clear()
        probed = loop.time()
        try:
            async with asyncio.timeout(stall):
                await expert.upstream.probe()
            expert.up, expert.heard, expert.down_reason = True, loop.time(), ""
            # Responses that the probe has overtaken by chance arrive within about as long.
            await asyncio.sleep(max(_TICK_SECONDS, expert.heard - probed))
            _end(expert, [lease for lease, heard in expert.leases.items() if heard < probed - stall])
        except (RequestError, TimeoutError) as e:
            if expert.heard <= probed:  # else it answers other requests: busy, not down
                expert.up = False
                expert.down_reason = str(e) or f"no answer to a probe in {stall:g} s"
                _end(expert, list(expert.leases))
            await asyncio.sleep(_TICK_SECONDS)


def _end(expert: ServedExpert, leases: Iterable[asyncio.Timeout]) -> None:
    """End requests that the expert has lost."""
    now = asyncio.get_running_loop().time()
    for lease in leases:
        del expert.leases[lease]
        if not lease.expired():
            lease.reschedule(now)
