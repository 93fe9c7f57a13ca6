"""In-flight batching: the same tokens as transformers whatever else is in the batch, first come first served."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erlab.errors import ErlabError
from erlab.serving.engines import tiny
from erlab.serving.engines.tiny_engine import TinyEngine
from erlab.spec import BF16, INT8_CPU, Model

SLOT = 96  # max_sequence_tokens
MODEL = Model("test", hidden=128, layers=2, heads=4, kv_heads=2, intermediate=192, vocab=260, max_positions=512)


def run(engine, arrivals):
    """Step until all is done. `arrivals`: {step: [(id, prompt, max_tokens)]}. Tokens by id, and ids as admitted."""
    answers, admitted, step = {}, [], 0
    while engine.running or engine.waiting or any(at >= step for at in arrivals):
        for request in arrivals.get(step, ()):
            engine.submit(*request)
        for request_id, token, last in engine.step():
            if request_id not in answers:
                admitted.append(request_id)
            answers.setdefault(request_id, []).append((token, last))
        assert engine.running <= engine.max_batch_size
        assert engine.kv_tokens_in_use <= engine.kv_tokens
        step += 1
    assert engine.kv_tokens_in_use == 0
    for answer in answers.values():
        assert [last for _, last in answer] == [False] * (len(answer) - 1) + [True]
    return {i: [token for token, _ in answer] for i, answer in answers.items()}, admitted


requests = st.lists(
    st.tuples(st.integers(0, 12), st.text(min_size=0, max_size=15), st.integers(1, 10)), min_size=1, max_size=7
)
bounds = st.tuples(st.integers(1, 6), st.integers(SLOT, 3 * SLOT), st.integers(1, 120))


@settings(max_examples=30, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests=requests, bounds=bounds)
def test_tokens_equal_those_of_transformers_under_any_arrivals(engine_folder, answers, requests, bounds):
    batch, kv_tokens, step_tokens = bounds
    arrivals, wanted = {}, {}
    for i, (step, text, tokens) in enumerate(requests):
        arrivals.setdefault(step, []).append((i, tiny.encode(text), tokens))
        wanted[i] = answers(tiny.encode(text), tokens)
    engine = TinyEngine(engine_folder, batch, SLOT, kv_tokens, step_tokens)
    got, admitted = run(engine, arrivals)
    assert got == wanted
    assert admitted == [i for step in sorted(arrivals) for i, *_ in arrivals[step]]


def test_tokens_equal_those_of_transformers_in_a_large_batch(engine_folder, answers):
    rng = random.Random(0)
    asked = [(i, [rng.randrange(256) for _ in range(rng.randrange(2, 60))], rng.randrange(1, 30)) for i in range(40)]
    arrivals = {}
    for request in asked:
        arrivals.setdefault(rng.randrange(20), []).append(request)
    got, _ = run(TinyEngine(engine_folder, 32, SLOT), arrivals)
    for i, prompt, tokens in rng.sample(asked, 12):
        assert got[i] == answers(prompt, tokens)


@pytest.mark.parametrize("engine_folder", [INT8_CPU], ids=lambda p: p.name, indirect=True)
def test_threads_change_nothing(engine_folder, answers):
    # Prompts long enough for torch to split elementwise work among threads, were it allowed to.
    rng = random.Random(0)
    asked = [(i, [rng.randrange(256) for _ in range(300 + 17 * i)], 12) for i in range(4)]
    got, _ = run(TinyEngine(engine_folder, 4, 512, threads=3), {0: asked[:2], 3: asked[2:]})
    assert got == {i: answers(prompt, tokens) for i, prompt, tokens in asked}


def test_a_reused_slot_has_no_state_of_its_last_request(engine_folder):
    engine = TinyEngine(engine_folder, 1, SLOT)
    first, _ = run(engine, {0: [("a", tiny.encode("some prompt"), 20)]})
    run(engine, {0: [("b", tiny.encode("another, rather longer prompt than that"), 50)]})
    again, _ = run(engine, {0: [("a", tiny.encode("some prompt"), 20)]})
    assert again == first


def admitted_a_step(engine, prompts, max_tokens=4):
    """Submit prompts of these sizes at once; the sizes of those that enter at each step."""
    sizes = dict(enumerate(prompts))
    for i, size in sizes.items():
        engine.submit(i, [tiny.BOS] * size, max_tokens)
    seen, steps = set(), []
    while engine.running or engine.waiting:
        new = {i for i, _, _ in engine.step()} - seen
        seen |= new
        steps.append([sizes[i] for i in sorted(new)])
    return steps


def test_requests_join_as_soon_as_others_leave(engine_folder):
    # Two at a time, each for 4 steps.
    assert admitted_a_step(TinyEngine(engine_folder, 2, SLOT), [5, 6, 7]) == [[5, 6], [], [], [], [7], [], [], []]


def test_requests_do_not_overtake_one_that_waits_for_memory(engine_folder):
    # 100 tokens of cache: 40 + 4 fits, then 60 + 4 must wait for them, and 5 + 4, which would fit, waits behind it.
    engine = TinyEngine(engine_folder, 8, SLOT, kv_tokens=100)
    assert admitted_a_step(engine, [40, 60, 5])[:5] == [[40], [], [], [], [60, 5]]


def test_a_step_admits_prompts_within_its_token_limit(engine_folder):
    # 10 + 20 tokens fill a step of 30. Then 2 running + 25 fit, but + 3 more do not.
    engine = TinyEngine(engine_folder, 8, SLOT, max_num_tokens=30)
    assert admitted_a_step(engine, [10, 20, 25, 4, 2])[:3] == [[10, 20], [25], [4, 2]]


def test_a_prompt_above_the_token_limit_enters_alone(engine_folder):
    engine = TinyEngine(engine_folder, 8, SLOT, max_num_tokens=30)
    assert admitted_a_step(engine, [5, 50, 60, 5])[:4] == [[5], [50], [60], [5]]


def test_memory_and_place_of_a_cancelled_request_are_free_at_once(engine_folder, answers):
    engine = TinyEngine(engine_folder, 1, SLOT)
    for name in "abc":
        engine.submit(name, tiny.encode(name), 5)
    assert [i for i, _, _ in engine.step()] == ["a"]
    engine.cancel("a")  # running
    engine.cancel("b")  # waiting
    engine.cancel("nobody")
    assert (engine.running, engine.waiting, engine.kv_tokens_in_use) == (0, 1, 0)
    got, _ = run(engine, {})
    assert got == {"c": answers(tiny.encode("c"), 5)}


def test_an_idle_step_does_nothing(engine_folder):
    assert TinyEngine(engine_folder, 1, SLOT).step() == []


@pytest.mark.parametrize(
    "prompt, max_tokens, named", [([], 1, "prompt_ids"), ([1], 0, "max_tokens"), ([1] * 90, 7, "within 96 tokens")]
)
def test_a_request_that_can_never_run_is_refused(engine_folder, prompt, max_tokens, named):
    engine = TinyEngine(engine_folder, 1, SLOT)
    with pytest.raises(ErlabError, match=named):
        engine.submit("a", prompt, max_tokens)
    assert engine.waiting == 0


@pytest.mark.parametrize(
    "sizes, named",
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"kv_tokens": SLOT - 1}, "kv_tokens"),
        ({"max_num_tokens": 0}, "max_num_tokens"),
    ],
)
def test_an_engine_without_room_is_refused(engine_folder, sizes, named):
    with pytest.raises(ErlabError, match=named):
        TinyEngine(engine_folder, **{"max_batch_size": 1, "max_sequence_tokens": SLOT} | sizes)


def test_bfloat16_chooses_what_transformers_finds_best_within_rounding(tmp_path):
    folder = tiny.build(tmp_path / "engine", MODEL, BF16, seed=7)
    model = tiny.reference(folder)
    asked = {i: tiny.encode(text) for i, text in enumerate(("a", "What is a watt?", "boil " * 9))}
    got, _ = run(TinyEngine(folder, 2, SLOT), {0: [(i, prompt, 8) for i, prompt in asked.items()]})
    for i, prompt in asked.items():
        logits = model(torch.tensor([prompt + got[i]])).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits[range(8), got[i]]
        assert (logits.max(-1).values - chosen).max() < 0.1  # of a spread of about 1; bfloat16 has 8 bits


def test_everything_is_computed_on_the_device_given(tmp_path):
    folder = tiny.build(tmp_path / "engine", MODEL, BF16, seed=7)
    network = TinyEngine(folder, 2, SLOT, device="meta")._network  # whose tensors only know where they are
    assert {t.device.type for layer in network.layers for t in (layer.keys, layer.qkv[0])} == {"meta"}
    with pytest.raises(RuntimeError, match="item"):  # the very last operation, which reads the chosen token
        network.next_tokens([(0, 0, [1, 2, 3]), (1, 0, [4])])


def test_int8_engines_need_a_cpu(tmp_path):
    folder = tiny.build(tmp_path / "engine", MODEL, INT8_CPU, seed=7)
    with pytest.raises(ErlabError, match="'device' parameter of an int8 engine must be cpu. Got 'cuda'"):
        TinyEngine(folder, 2, SLOT, device="cuda")
