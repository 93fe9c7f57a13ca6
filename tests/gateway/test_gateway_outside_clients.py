"""Benchmark clients that others wrote drive the gateway, and what they measure agrees with what it counts itself.

They run where they are on the PATH, best each in an environment of its own: `pip install aiperf==0.13.0` and
`pip install guidellm==0.8.1`.
"""

import asyncio
import json
import shutil

import outside
import pytest
from fake_triton import COURT, KITCHEN, FakeTriton, count
from under_load import metrics

from erlab.gateway import Gateway
from erlab.results import imports

REQUESTS, TOKENS, STREAMS = 40, 12, 4
PROMPTS = ((KITCHEN + COURT) * REQUESTS)[:REQUESTS]


async def paced(request):
    async for token in count(request):
        await asyncio.sleep(0.01)
        yield f"{token} "


@pytest.fixture(scope="module")
def gateway(router_folder):
    with FakeTriton({"kitchen": paced, "court": paced}) as fake:
        with Gateway.of(router_folder, fake.address, ("kitchen", "court"), http_port=0) as running:
            yield running


def aiperf(gateway, folder):
    """Its result file."""
    return outside.aiperf(gateway.http, PROMPTS, folder, TOKENS, STREAMS)


def guidellm(gateway, folder):
    """Its result file."""
    rows = [json.dumps({"prompt": prompt, "output_tokens_count": TOKENS}) + "\n" for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(rows))
    command = ["--backend", f"kind=openai_http,target={gateway.http},model=router,request_format=/v1/completions"]
    command += ["--profile", f"kind=concurrent,streams={STREAMS}", "--data", "kind=json_file,path=prompts.jsonl"]
    command += ["--constraint", f"kind=max_requests,count={REQUESTS}", "--disable-progress"]
    outside.run(["guidellm", "run", *command, "--output", "kind=json,path=benchmarks.json"], folder)
    return folder / "benchmarks.json"


def told(gateway):
    """The gateway's own counts: requests answered, and the sums of their seconds to the first and to the last token."""
    values = metrics(gateway)
    names = ("requests_total", "first_seconds_sum", "upstream_seconds_sum")
    return [sum(v for k, v in values.items() if k.startswith(f"erlab_{name}")) for name in names]


@pytest.mark.parametrize("client", [aiperf, guidellm])
def test_its_numbers_agree_with_the_gateways(gateway, tmp_path, client):
    if not shutil.which(client.__name__):
        pytest.skip(f"{client.__name__} is not on the PATH")
    before = told(gateway)
    found = imports.read(client(gateway, tmp_path), system="gateway")
    answered, first, last = (after - b for after, b in zip(told(gateway), before))
    rows = found.requests
    assert len(rows) == answered == REQUESTS and set(rows["status"]) == {"ok"}
    assert set(rows["output_tokens"]) == {TOKENS} and set(rows["users"]) == {STREAMS}
    theirs = [(rows[t] - rows["t_submit"]).mean() / 1e6 for t in ("t_first", "t_last")]
    ours = [seconds / REQUESTS * 1e3 for seconds in (first, last)]
    print(f"{client.__name__}: to the first, last token {theirs} ms, the gateway's own {ours} ms")
    for their, our in zip(theirs, ours):
        assert our < their < 1.5 * our + 50  # it sees what the gateway does, and its own way there and back
