"""One prompt to a server that speaks OpenAI's protocol: the answer, the gateway's decision in its headers, failures."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from erlab.errors import ErlabError
from erlab.users.ask import ask


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model, prompt = asked["model"], asked["messages"][0]["content"]
        body = {"choices": [{"message": {"content": f"{self.path} {prompt} {asked['max_tokens']}"}}]}
        self.send_response(503 if model == "down" else 200)
        if model != "plain":
            decision = {"expert": "law", "cluster": "many" if model == "odd" else 3, "margin": 0.5, "policy": "nearest"}
            for name, value in decision.items():
                self.send_header(f"x-erlab-{name}", str(value))
        self.end_headers()
        self.wfile.write(b"{}" if model == "empty" else json.dumps(body).encode())

    def log_message(self, *_): ...


@pytest.fixture(scope="module")
def address():
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_answer_says_where_the_prompt_went(address):
    answer = ask("Who pays?", f"{address}/v1", max_tokens=7)
    assert str(answer) == "/v1/chat/completions Who pays? 7"
    assert (answer.expert, answer.cluster, answer.margin, answer.policy) == ("law", 3, 0.5, "nearest")
    plain = ask("Who pays?", address, model="plain")
    assert (plain.model, plain.expert, plain.cluster) == ("plain", None, None)


@pytest.mark.parametrize("model, said", [("down", "503: {"), ("empty", "no answer ("), ("odd", "an unreadable decision (")])
def test_a_failure_is_one_line(address, model, said):
    with pytest.raises(ErlabError) as caught:
        ask("Who pays?", address, model=model)
    assert str(caught.value).startswith(f"{model} at {address}: ") and said in str(caught.value)


@pytest.mark.parametrize("nobody", ["http://127.0.0.1:1", "127.0.0.1:1", "nonsense"])
def test_a_server_that_is_not_there_is_named(nobody):
    with pytest.raises(ErlabError, match=nobody):
        ask("Who pays?", nobody, timeout=5)
