"""Tests of the explanations and prompt files of `erlab route`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erlab.errors import ErlabError
from erlab.routing import PromptRouter
from erlab.routing.explain import decisions_table, explain, nearest_table, one_line, read_texts, title, top_domains


@pytest.fixture(scope="module")
def router(texts):
    return PromptRouter(clusters=4, dimensions=20).fit(texts)


def test_explanation_matches_the_decision(router, texts):
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


def test_terms_in_the_prompt_are_marked(router):
    (decision,) = explain(router, ["Bake  the\npasta in an oven with garlic"])
    table = nearest_table(decision, {decision["cluster"]: "cooking"})
    assert list(table["cluster"]) == [c["cluster"] for c in decision["clusters"]] and len(table) == 3
    assert table["top domain"][0] == "cooking" and table["top domain"][1] == ""
    for row, cluster in zip(table["terms"], decision["clusters"], strict=True):
        assert [w.strip("[]") for w in row.split()] == cluster["terms"]
        assert [w.strip("[]") for w in row.split() if w.startswith("[")] == cluster["held"]
    assert decision["clusters"][0]["held"]
    line = title(decision)
    cluster = f"cluster {decision['cluster']}, margin {decision['margin']:.3f}"
    assert line == f"Bake the pasta in an oven with garlic → {cluster}"


def test_outliers_single_clusters_and_unknown_prompts_are_described(router, texts):
    import copy

    calibrated = copy.copy(router).calibrate(texts, 0.01)
    empty, pasta = explain(calibrated, ["", "pasta oven garlic"])
    assert [type(d["outlier"]) for d in (empty, pasta)] == [bool, bool]
    assert (empty["known"], pasta["known"]) == (False, True)
    assert title(empty).startswith("(empty) → cluster") and title(empty).endswith("(no known features)")
    assert empty["outlier"] and "outlier" not in title(empty)
    assert title(pasta | {"outlier": True}).endswith("(outlier: fits no cluster)")
    table = decisions_table([empty, pasta], {})
    assert table["matching terms"][0] == "(none known)"
    assert set(table["matching terms"][1].split()) <= set("pasta oven garlic".split())
    assert "outlier" not in decisions_table(explain(router, ["pasta"]), {})
    single = PromptRouter(clusters=1).fit(texts)
    assert title(explain(single, ["pasta"])[0]).endswith("cluster 0, the only one")


@given(st.text())
def test_any_prompt_is_shortened_to_one_printable_line(text):
    assert 0 < len(one_line(text, 40)) <= 40 and one_line(text, 40).isprintable()


def test_unprintable_characters_are_replaced():
    assert one_line("a\0b \x1b[31m \ud800 日本 🍝\u202e") == "a\ufffdb \ufffd[31m \ufffd 日本 🍝\ufffd"
    assert one_line("pasta " * 100) == ("pasta " * 100)[:99] + "…" and one_line(" \n") == "(empty)"


def test_top_domains_are_read_from_the_summary(tmp_path):
    assert top_domains(tmp_path) == {}
    rows = [{"cluster": 0, "top_domain": "law"}, {"cluster": 1, "top_domain": None}]
    (tmp_path / "summary.json").write_text(json.dumps({"clusters": rows}))
    assert top_domains(tmp_path) == {0: "law"}
    (tmp_path / "summary.json").write_text("[1]")
    assert top_domains(tmp_path) == {}


def test_text_and_jsonl_files_are_read(tmp_path):
    lines, rows = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("first prompt\n\n  second\u2028prompt \n")
    rows.write_text('{"text": "first\\nprompt", "id": 1}\n\n{"text": ""}\n')
    assert read_texts(lines) == ["first prompt", "second\u2028prompt"]
    assert read_texts(rows) == ["first\nprompt", ""]


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0c"])
def test_byte_order_marks_and_unicode_line_separators_are_accepted(tmp_path, end):
    (tmp_path / "a.txt").write_bytes(f"\ufeffone{end}two\r\nthree".encode())
    assert read_texts(tmp_path / "a.txt") == [f"one{end}two", "three"]
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "one\u2028two"}\r\n{"text": "three"}\r\n'.encode())
    assert read_texts(tmp_path / "a.jsonl") == ["one\u2028two", "three"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"text": "x"}\nno json', r"a.jsonl:2: must be a JSON object with the field 'text'"),
        ("a.jsonl", b"[]", r"a.jsonl:1: must be a JSON object"),
        ("a.jsonl", b'{"text": 3}', r"a.jsonl:1: the field 'text' must be text. Got 3"),
        ("a.txt", b"\xff\xfe", r"a.txt: must be UTF-8 text. Got the byte 0xff at 0"),
        ("a.txt", b" \n", r"a.txt: holds no prompts"),
    ],
)
def test_errors_name_the_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ErlabError, match=message):
        read_texts(tmp_path / name)
    with pytest.raises(ErlabError, match="absent.txt: cannot be read"):
        read_texts(tmp_path / "absent.txt")
