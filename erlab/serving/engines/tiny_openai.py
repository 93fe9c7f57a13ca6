"""OpenAI-compatible server of a tiny engine.

    python -m erlab.serving.engines.tiny_openai --engine DIR --name NAME --port PORT [--device cuda]

POST /v1/completions (streamed or not, one text prompt), GET /v1/models, /health and /metrics. It serves GPUs without
vLLM or trtllm-serve, and stands for them in tests. An answer has exactly `max_tokens` tokens. A streamed event holds
one token; a character of several tokens comes with its last.
"""

import argparse
import asyncio
import codecs
import json
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from aiohttp import web

from erlab.errors import ErlabError
from erlab.serving.engines import tiny
from erlab.serving.engines.tiny_engine import TinyEngine

_DONE = b"data: [DONE]\n\n"


@dataclass(eq=False)
class _Completion:
    prompt: list[int]
    max_tokens: int
    tokens: asyncio.Queue = field(default_factory=asyncio.Queue)  # texts, then None, or an ErlabError
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))


class _Stepper:
    """Engine thread: takes requests, steps while there are any, passes tokens to the event loop after each step."""

    def __init__(self, engine: TinyEngine):
        self.engine = engine
        self.totals = {"erlab_requests_total": 0, "erlab_output_tokens_total": 0}
        self._inbox: SimpleQueue[tuple[str, _Completion]] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def submit(self, request: _Completion) -> None:
        self._inbox.put(("submit", request))

    def cancel(self, request: _Completion) -> None:
        self._inbox.put(("cancel", request))

    def _run(self) -> None:
        engine = self.engine
        try:
            while True:
                self._take(wait=not (engine.running or engine.waiting))
                # A token is a byte, see tiny.decode.
                emitted = [(r, r.decoder.decode(bytes([token]), last), last) for r, token, last in engine.step()]
                self._loop.call_soon_threadsafe(self._hand_over, emitted)
        except Exception:  # such as GPU out of memory: a server without its engine must not go on listening
            traceback.print_exc()
            os._exit(1)

    def _take(self, wait: bool) -> None:
        while True:
            try:
                what, request = self._inbox.get(block=wait)
            except Empty:
                return
            wait = False
            if what == "cancel":
                self.engine.cancel(request)
                continue
            try:
                self.engine.submit(request, request.prompt, request.max_tokens)
            except ErlabError as e:
                self._loop.call_soon_threadsafe(request.tokens.put_nowait, e)

    def _hand_over(self, emitted: list[tuple[_Completion, str, bool]]) -> None:
        for request, text, last in emitted:
            request.tokens.put_nowait(text)
            self.totals["erlab_output_tokens_total"] += 1
            if last:
                request.tokens.put_nowait(None)
                self.totals["erlab_requests_total"] += 1


def application(engine: TinyEngine, name: str) -> web.Application:
    """Return the aiohttp application that serves an engine as the model `name`."""
    server = _Server(engine, name)
    app = web.Application()
    app.on_startup.append(server.start)
    app.add_routes(
        [
            web.post("/v1/completions", server.complete),
            web.get("/v1/models", server.models),
            web.get("/health", server.health),
            web.get("/metrics", server.metrics),
        ]
    )
    return app


class _Server:
    def __init__(self, engine: TinyEngine, name: str):
        self._engine, self._name = engine, name

    async def start(self, app: web.Application) -> None:
        self._stepper = _Stepper(self._engine)

    async def complete(self, http: web.Request) -> web.StreamResponse:
        try:
            body = await http.json()
            request, streams, usage = self._checked(body)
        except ErlabError as e:
            return _refusal(str(e))
        except ValueError:
            return _refusal("The body must be JSON.")
        head = {"id": "cmpl-tiny", "object": "text_completion", "created": int(time.time()), "model": self._name}
        self._stepper.submit(request)
        try:
            first = await request.tokens.get()
            if isinstance(first, ErlabError):
                return _refusal(str(first))
            counts = _usage(request)
            if not streams:
                texts = [first]
                while (text := await request.tokens.get()) is not None:
                    texts.append(text)
                return web.json_response(head | {"choices": [_choice("".join(texts), "length")], "usage": counts})
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(http)
            text, left = first, request.max_tokens
            while text is not None:
                left -= 1
                await response.write(_event(head | {"choices": [_choice(text, None if left else "length")]}))
                text = await request.tokens.get()
            await response.write((_event(head | {"choices": [], "usage": counts}) if usage else b"") + _DONE)
            return response
        except (asyncio.CancelledError, ConnectionError):
            self._stepper.cancel(request)
            raise

    def _checked(self, body: object) -> tuple[_Completion, bool, bool]:
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
            raise ErlabError("The 'prompt' must be one text.")
        if body.get("model") != self._name:
            raise ErlabError(f"The 'model' must be {self._name}. Got {body.get('model')!r}.")
        max_tokens = 16 if body.get("max_tokens") is None else body["max_tokens"]
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
            raise ErlabError(f"'max_tokens' must be a whole number from 1. Got {max_tokens!r}.")
        stream = body.get("stream")
        if not (stream is None or isinstance(stream, bool)):
            raise ErlabError(f"'stream' must be true, false or null. Got {stream!r}.")
        options = body.get("stream_options") or {}
        usage = isinstance(options, dict) and bool(options.get("include_usage"))
        return _Completion(tiny.encode(body["prompt"]), max_tokens), bool(stream), usage

    async def models(self, http: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._name, "object": "model"}]})

    async def health(self, http: web.Request) -> web.Response:
        return web.Response()

    async def metrics(self, http: web.Request) -> web.Response:
        """Answer with Prometheus metrics, named as the tiny engine's in Triton."""
        engine = self._engine
        gauges = {
            "erlab_running_requests": engine.running,
            "erlab_waiting_requests": engine.waiting,
            "erlab_kv_tokens": engine.kv_tokens_in_use,
        }
        lines = [f"# TYPE {name} gauge\n{name}{{model=\"{self._name}\"}} {value}\n" for name, value in gauges.items()]
        lines += [
            f"# TYPE {name} counter\n{name}{{model=\"{self._name}\"}} {value}\n"
            for name, value in self._stepper.totals.items()
        ]
        return web.Response(text="".join(lines))


def _choice(text: str, finish: str | None) -> dict:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


def _usage(request: _Completion) -> dict:
    prompt, output = len(request.prompt), request.max_tokens
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _event(content: dict) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def _refusal(message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m erlab.serving.engines.tiny_openai", description=__doc__.splitlines()[0])
    parser.add_argument("--engine", required=True, type=Path, metavar="DIR", help="Engine folder.")
    parser.add_argument("--name", required=True, help="Model name.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--max-batch-size", default=8, type=int)
    parser.add_argument("--max-sequence-tokens", default=2048, type=int)
    parser.add_argument("--kv-tokens", type=int, help="Tokens of the KV cache (default: enough for a full batch).")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu).")
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    batch = options.max_batch_size
    if options.kv_tokens:  # each request has a slot of its own, and a GPU allocates all slots at once
        batch = max(1, min(batch, options.kv_tokens // options.max_sequence_tokens))
    engine = TinyEngine(options.engine, batch, options.max_sequence_tokens, options.kv_tokens, device=options.device)
    app = application(engine, options.name)
    web.run_app(
        app, host=options.host, port=options.port, access_log=None, handler_cancellation=True, shutdown_timeout=0.1,
        print=None,
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except ErlabError as error:
        sys.exit(f"erlab: {error}")
