"""A process of users. It talks with `erlab.users.processes` in lines: one of JSON with the job in, "ready" out when
the connection is up, the common start (monotonic ns) in, then each record out as JSON. It ends with its parent.
"""

import asyncio
import json
import sys
import time

from erlab.errors import reason
from erlab.gateway import kserve
from erlab.users.loop import METHOD, Ask, Finished, user
from erlab.users.wire import Channel

CONNECT_SECONDS = 10.0
_TIMER = 0.002  # seconds by which the event loop's timers may be late
_LIVE = "/inference.GRPCInferenceService/ServerLive"


def _asks(number: int, model: str, requests: list[dict], pauses: list[float]) -> list[Ask]:
    asks = []
    for turn, (request, pause) in enumerate(zip(requests, pauses, strict=True)):
        known = {key: request[key] for key in ("prompt_id", "domain", "input_tokens")}
        message = kserve.request(request["model"] or model, request["text"], request["max_tokens"])
        asks.append(Ask({"user": number, "turn": turn} | known, message.SerializeToString(), pause))
    return asks


async def _run(job: dict) -> None:
    begins = [one.pop("begin") for one in job["users"]]
    users = [_asks(**one) for one in job["users"]]
    await _until_live(job["address"], min(CONNECT_SECONDS, job["timeout"]))
    async with Channel(job["address"], METHOD, job["timeout"]) as channel:
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        start = int(await loop.run_in_executor(None, sys.stdin.readline))
        loop.add_reader(sys.stdin.fileno(), asyncio.current_task().cancel)  # the parent is gone
        await asyncio.sleep((start - time.monotonic_ns()) / 1e9 - _TIMER)
        while time.monotonic_ns() < start:
            pass
        finished: asyncio.Queue[Finished] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            for asks, begin in zip(users, begins):
                tasks.create_task(user(channel, asks, start + int(begin * 1e9), finished))
            for _ in range(sum(map(len, users))):
                row = (await finished.get()).row(start, job["stamped"])
                print(json.dumps(row), flush=True)
                await asyncio.sleep(0)  # one at a time: users go first
        loop.remove_reader(sys.stdin.fileno())


async def _until_live(address: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    async with Channel(address, _LIVE, patience) as channel:
        while (answer := await channel.ask(b"")).code != "OK":  # an empty message is the whole question
            if time.monotonic() > deadline:
                sys.exit(f"No KServe v2 gRPC server answers at {address}: {answer.code}: {answer.details}")
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    try:
        asyncio.run(_run(json.loads(sys.stdin.readline())))
    except Exception as e:
        sys.exit(reason(e))  # its last words, which the rows of its users' requests will have
