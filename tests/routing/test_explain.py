"""What `erlab route` says about a decision, and the files it reads."""

import json

import pytest

from erlab.errors import ErlabError
from erlab.routing import PromptRouter
from erlab.routing.explain import describe, explain, read_texts


@pytest.fixture(scope="module")
def router(texts):
    return PromptRouter(clusters=4, dimensions=20).fit(texts)


def test_the_explanation_is_the_decision(router, texts):
    routing = router.route(texts[:20])
    decisions = explain(router, texts[:20], nearest=2)
    json.dumps(decisions, allow_nan=False)
    for i, decision in enumerate(decisions):
        first, second = decision["clusters"]
        assert first["cluster"] == decision["cluster"] == routing.cluster[i]
        assert second["cluster"] == routing.runner_up[i]
        assert second["cost"] - first["cost"] == pytest.approx(decision["margin"])
        assert decision["outlier"] is None
        assert set(first["held"]) == set(first["terms"]) & set(texts[i].split())


def test_the_words_that_decided_are_marked(router, texts):
    decision = explain(router, ["Bake  the\npasta in an oven with garlic"])[0]
    text = describe(decision)
    assert text.startswith("Bake the pasta in an oven with garlic\n")
    marked = {word.strip("[]") for word in text.split() if word.startswith("[")}
    assert marked == {t for c in decision["clusters"] for t in c["held"]} and marked


def test_outliers_single_clusters_and_empty_prompts_are_described(router, texts):
    import copy

    calibrated = copy.copy(router).calibrate(texts, 0.01)
    decisions = explain(calibrated, ["", "pasta oven garlic"])
    assert [type(d["outlier"]) for d in decisions] == [bool, bool]
    assert describe(decisions[0]).startswith("(empty)")
    single = PromptRouter(clusters=1).fit(texts)
    assert "only cluster" in describe(explain(single, ["pasta"])[0])
    assert len(describe(explain(router, ["pasta " * 100])[0]).splitlines()[0]) == 100


def test_files_of_prompts(tmp_path):
    lines, rows = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("first prompt\n\n  second\u2028prompt \n")
    rows.write_text('{"text": "first\\nprompt", "id": 1}\n\n{"text": ""}\n')
    assert read_texts(lines) == ["first prompt", "second\u2028prompt"]
    assert read_texts(rows) == ["first\nprompt", ""]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"text": "x"}\nno json', r"a.jsonl:2: must be a JSON object with the field 'text'"),
        ("a.jsonl", b"[]", r"a.jsonl:1: must be a JSON object"),
        ("a.jsonl", b'{"text": 3}', r"a.jsonl:1: the field 'text' must be text. Got 3"),
        ("a.txt", b"\xff\xfe", r"a.txt: no readable text file \(not UTF-8\)"),
        ("a.txt", b" \n", r"a.txt: holds no prompts"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ErlabError, match=message):
        read_texts(tmp_path / name)
    with pytest.raises(ErlabError, match="absent.txt: no readable text file"):
        read_texts(tmp_path / "absent.txt")
