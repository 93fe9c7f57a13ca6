"""An OpenAI-compatible server without a model: answers with the prompt's words, or as the first word says."""

import asyncio
import json

from aiohttp import web
from in_thread import InThread

FLOOD, FLOODS = 50_000, 1000


class FakeOpenAI(InThread):
    """`with FakeOpenAI() as fake: fake.base` is its URL, which ends in /v1. Keeps the bodies it got.

    `scripts`: what the next requests are answered with instead, each a status, a content type, pieces of the body, and
    whether the connection stays open without an end after them.
    """

    def __init__(self, port: int = 0):
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.cancelled = 0
        self.flooded = 0  # events of FLOOD bytes
        self.status = 200
        self.scripts: list[tuple[int, str, list[bytes], bool]] = []
        self._port = port

    async def _serve(self, up):
        app = web.Application()
        app.add_routes([web.post("/v1/completions", self._answer), web.post("/v1/chat/completions", self._answer)])
        models = {"object": "list", "data": [{"id": "m"}, {"id": "tagged:latest"}]}
        app.add_routes([web.get("/v1/models", lambda request: self._list(models))])
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        self.base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        up.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _list(self, models: dict) -> web.Response:
        return web.json_response(models, status=self.status)

    async def _play(self, request: web.Request, status: int, kind: str, pieces: list[bytes], open_: bool):
        response = web.StreamResponse(status=status, headers={"Content-Type": kind})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.005)  # that they may arrive apart
        if open_:
            await asyncio.Event().wait()
        return response

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.scripts and body.get("prompt") != "ping":  # a probe
            return await self._play(request, *self.scripts.pop(0))
        words = (body.get("prompt") or body["messages"][-1]["content"]).split()
        if self.status != 200:
            return web.json_response({"error": {"message": f"status {self.status}"}}, status=self.status)
        if not body.get("stream"):
            choice = {"index": 0, "text": " ".join(words), "finish_reason": "stop"}
            return web.json_response({"id": "up", "object": "text_completion", "choices": [choice], "usage": None})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for i, word in enumerate(words):
                event = {"id": "up", "choices": [{"index": 0, "text": word, "delta": {"content": word}}]}
                await response.write(f"data: {json.dumps(event)}\n\n".encode())
                if words[0] == "half" or words[0] == "cut" and i == 1:
                    request.transport.abort() if words[0] == "half" else await response.write_eof()
                    return response
                if words[0] == "flood":
                    for _ in range(FLOODS):
                        text = {"choices": [{"index": 0, "text": "x" * FLOOD}]}
                        await response.write(f"data: {json.dumps(text)}\n\n".encode())
                        self.flooded += 1
                if words[0] == "hang":
                    await asyncio.Event().wait()
            await response.write(b"data: [DONE]\n\n")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return response
