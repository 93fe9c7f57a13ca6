"""An OpenAI-compatible server that costs little: streams `max_tokens` tokens, one every PACE seconds.

    python stub_openai.py PACE    prints its port, serves until its stdin closes

GET /sent: when (time.time_ns()) it handed each token to the socket, by the client's X-Request-ID.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict

from aiohttp import web

TOKEN = {"id": "stub", "object": "text_completion", "created": 1, "model": "m"}
TOKEN["choices"] = [{"index": 0, "text": "tok "}]
CHAT = {"id": "stub", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHAT["choices"] = [{"index": 0, "delta": {"role": "assistant", "content": "tok "}, "finish_reason": None}]
SENT = defaultdict(list)


async def answer(request):
    body = json.loads(await request.read())
    token = CHAT if "messages" in body else TOKEN
    event = f"data: {json.dumps(token)}\n\n".encode()
    if not body.get("stream"):
        return web.json_response(TOKEN)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    sent = SENT[request.headers["X-Request-ID"]] if "X-Request-ID" in request.headers else []
    for _ in range(body.get("max_completion_tokens") or body.get("max_tokens") or 1):
        sent.append(time.time_ns())
        await response.write(event)
        await asyncio.sleep(float(sys.argv[1]))
    await response.write(b"data: [DONE]\n\n")
    return response


async def known(request):
    return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}], "model_path": "m"})


async def told(request):
    return web.json_response(SENT)


async def main():
    app = web.Application()
    app.router.add_post("/v1/{kind:.*}", answer)
    app.router.add_get("/sent", told)
    app.router.add_get("/{any:.*}", known)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
