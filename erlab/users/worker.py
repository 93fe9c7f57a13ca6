"""Process of users, driven by `erlab.users.processes` over stdin and stdout, one line each:

the job as JSON (in), "ready" once connected (out), the common start in monotonic ns (in), each record as JSON and
"done" (out). It ends with its parent.
"""

import asyncio
import json
import sys
import time

from erlab.errors import reason
from erlab.gateway import kserve
from erlab.users.loop import METHOD, Ask, Finished, user
from erlab.users.wire import UserChannel

CONNECT_SECONDS = 10.0  # for the server to answer
DONE = "done"  # last line
_TIMER = 0.002  # seconds by which timers of the event loop may be late
_LIVE = "/inference.GRPCInferenceService/ServerLive"


def _asks(number: int, model: str, requests: list[dict], pauses: list[float], at: list[float]) -> list[Ask]:
    asks = []
    for request, pause, earliest in zip(requests, pauses, at, strict=True):
        known = {key: request[key] for key in ("prompt_id", "domain", "input_tokens")}
        message = kserve.request(request["model"] or model, request["text"], request["max_tokens"])
        asks.append(Ask({"user": number} | known, message.SerializeToString(), pause, earliest))
    return asks


async def _run(job: dict) -> None:
    users = [_asks(**one) for one in job["users"]]
    await _until_live(job["address"], min(CONNECT_SECONDS, job["timeout"]))
    async with UserChannel(job["address"], METHOD, job["timeout"]) as channel:
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        start = int(await loop.run_in_executor(None, sys.stdin.readline))
        loop.add_reader(sys.stdin.fileno(), asyncio.current_task().cancel)  # the parent has ended
        await asyncio.sleep((start - time.monotonic_ns()) / 1e9 - _TIMER)
        while time.monotonic_ns() < start:
            pass
        finished: asyncio.Queue[Finished | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            for asks in users:
                tasks.create_task(user(channel, asks, start, job["until"], finished))
            active = len(users)
            while active:
                if (ended := await finished.get()) is None:
                    active -= 1
                    continue
                print(json.dumps(ended.row(start, job["stamped"])), flush=True)
                await asyncio.sleep(0)  # users take precedence
            print(DONE, flush=True)
        loop.remove_reader(sys.stdin.fileno())


async def _until_live(address: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    async with UserChannel(address, _LIVE, patience) as channel:
        while (answer := await channel.ask(b"")).code != "OK":  # the request is an empty message
            if time.monotonic() > deadline:
                sys.exit(f"No KServe v2 gRPC server answers at {address}: {answer.code}: {answer.details}")
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    try:
        asyncio.run(_run(json.loads(sys.stdin.readline())))
    except Exception as e:
        sys.exit(reason(e))  # becomes the error of its users' requests
