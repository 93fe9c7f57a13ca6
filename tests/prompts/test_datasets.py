"""Prompts: the own generator, every kind of source, the split, and each bad input by its message."""

import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets as hf
import huggingface_hub
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from erlab import parquet, paths
from erlab.errors import ErlabError
from erlab.prompts import datasets
from erlab.prompts import grammar as prompts

SHARED = Path(paths.ROOT).parent / "shared" / "prompts"


def jsonl(path: Path, *rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(dataset) -> list[tuple]:
    return list(zip(dataset["id"], dataset["domain"], dataset["text"], dataset["split"]))


def splits(dataset) -> dict[str, str]:
    return dict(zip(dataset["text"], dataset["split"]))


# The project's own prompts


def test_own_prompts_are_many_distinct_and_varied():
    own = datasets.load()
    assert own.num_rows == len(set(own["text"])) == 4000
    assert len(Counter(own["domain"])) >= 8 and set(Counter(own["domain"]).values()) == {500}
    lengths = np.array([len(text) for text in own["text"]])
    assert lengths.min() < 20 and 80 < np.median(lengths) < 200 and 1000 < lengths.max() < 2000
    assert len({p.text for p in prompts.generate(3000, seed=5)}) == 3000 * len(prompts.domains())


def test_own_prompts_follow_the_seed_and_a_longer_run_begins_with_a_shorter_one():
    assert rows(datasets.load(per_domain=20, seed=1)) == rows(datasets.load(per_domain=20, seed=1))
    assert set(datasets.load(per_domain=20, seed=1)["text"]) != set(datasets.load(per_domain=20, seed=2)["text"])
    assert set(prompts.generate(20, 1)) < set(prompts.generate(30, 1))


def test_every_entry_of_the_grammar_can_be_written():
    """No unknown slot, no unfilled brace, no wrong article, one capital at the beginning unless typed casually."""
    for prompt in prompts.generate(1500, seed=9):
        assert not re.search(r"[{}]|\ba [aeio](?!ne)| {2}|^\s|\s$", prompt.text), prompt
    grammar = prompts._grammar()
    frames = " ".join(frame for style in grammar["style"] for frame in style["frames"])
    asked = {slot.rpartition(".")[2] for slot in re.findall(r"\{([\w.]+)\}", frames)}
    for domain in prompts.domains():
        words = grammar["shared"] | grammar[domain]
        inner = re.findall(r"\{([\w.]+)\}", " ".join(e for entries in grammar[domain].values() for e in entries))
        assert asked | set(inner) <= set(words)
        assert set(inner) | asked >= set(grammar[domain]), "a list that nothing asks for"


def test_domains_share_words():
    own = datasets.load(per_domain=300)
    used = {d: set() for d in prompts.domains()}
    for domain, text in zip(own["domain"], own["text"]):
        used[domain] |= set(re.findall(r"[a-z]+", text.lower()))
    for word in "bank bar cell charge culture key note python record scale stock table".split():
        assert sum(word in words for words in used.values()) >= 2, word


def test_clusters_find_the_domains_but_not_all_of_them():
    own = datasets.load(per_domain=100)
    recipe = make_pipeline(TfidfVectorizer(stop_words="english"), TruncatedSVD(100, random_state=0), Normalizer())
    clusters = KMeans(8, n_init=5, random_state=0).fit_predict(recipe.fit_transform(own["text"]))
    table = pd.crosstab(clusters, own.to_pandas()["domain"])
    assert 0.5 < table.max(axis=1).sum() / own.num_rows < 0.95


def test_more_prompts_than_the_grammar_has_are_refused(monkeypatch):
    tiny = {"style": [{"name": "only", "weight": 1, "frames": ["{a}"]}], "shared": {}, "d": {"a": ["one", "two"]}}
    monkeypatch.setattr(prompts, "_grammar", lambda: tiny)
    with pytest.raises(ErlabError, match=r"The 'per_domain' parameter must be at most about \d, .* for d\. Got 9\."):
        list(prompts.generate(9))


# The split and the draw


def test_the_split_of_a_text_depends_on_nothing_but_the_text(tmp_path):
    texts = [f"Prompt number {i}" for i in range(3000)]
    few = datasets.load(jsonl(tmp_path / "few.jsonl", *({"text": t} for t in texts[:100])))
    many = datasets.load(jsonl(tmp_path / "many.jsonl", *({"text": t} for t in reversed(texts))), seed=7)
    assert splits(few).items() <= splits(many).items()
    held_back = list(splits(many).values()).count("held_back")
    assert abs(held_back - 600) < 5 * np.sqrt(3000 * 0.2 * 0.8)


def test_duplicate_texts_are_dropped_so_that_the_splits_are_disjoint(tmp_path):
    jsonl(tmp_path / "a.jsonl", {"domain": "first", "text": "Same"}, {"domain": "first", "text": " Same\n"})
    jsonl(tmp_path / "b.jsonl", {"domain": "second", "text": "Same"}, {"domain": "second", "text": "same"})
    assert {(row[1], row[2]) for row in rows(datasets.load(tmp_path))} == {("first", "Same"), ("second", "same")}


def test_per_domain_draws_with_the_seed_and_independent_of_the_files_order(tmp_path):
    lines = [{"domain": "xyz"[i % 3], "text": f"Prompt {i}"} for i in range(90)]
    forward, backward = jsonl(tmp_path / "f.jsonl", *lines), jsonl(tmp_path / "b.jsonl", *lines[::-1])
    drawn = datasets.load(forward, per_domain=10, seed=1)
    assert Counter(drawn["domain"]) == {"x": 10, "y": 10, "z": 10}
    assert list(drawn["text"]) == list(datasets.load(backward, per_domain=10, seed=1)["text"])
    assert list(drawn["text"]) != list(datasets.load(forward, per_domain=10, seed=2)["text"])
    whole = list(datasets.load(forward, seed=1)["text"])
    assert sorted(drawn["text"], key=whole.index) == list(drawn["text"])


def test_ids_are_kept_and_made_unique(tmp_path):
    file = jsonl(
        tmp_path / "law__x.jsonl",
        {"id": "a", "text": "One"},
        {"id": "a", "text": "Two"},
        {"id": 7, "text": "Three"},
        {"text": "Four"},
    )
    ids = datasets.load(file)["id"]
    assert len(set(ids)) == 4 and {"a", "7", "law__x-4"} < set(ids)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1))
def test_any_unicode_text_round_trips(tmp_path_factory, texts):
    file = jsonl(tmp_path_factory.mktemp("any") / "any.jsonl", *({"text": t} for t in texts))
    assert set(datasets.load(file)["text"]) == {t.strip() for t in texts}


# Sources


def test_a_folder_is_read_at_any_depth_and_other_files_are_left_alone(tmp_path):
    jsonl(tmp_path / "math__a.jsonl", {"text": "1 + 1"}, {"domain": "", "text": "2 + 2"})
    jsonl(tmp_path / "deep" / "er" / "x.jsonl", {"domain": "music", "text": "Do re mi"})
    (tmp_path / "README.md").write_text("no prompts")
    (tmp_path / "MANIFEST.csv").write_bytes(b"\xff")
    jsonl(tmp_path / ".cache" / "hidden.jsonl", {"text": "hidden"})
    before = sorted(tmp_path.rglob("*"))
    assert {row[1:3] for row in rows(datasets.load(tmp_path))} == {
        ("math", "1 + 1"),
        ("math", "2 + 2"),
        ("music", "Do re mi"),
    }
    assert sorted(tmp_path.rglob("*")) == before
    assert list(datasets.inputs(tmp_path)) == [f"{tmp_path.name}/deep/er/x.jsonl", f"{tmp_path.name}/math__a.jsonl"]


def test_jsonl_with_byte_order_mark_blank_lines_and_windows_ends(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes('\ufeff{"text": "Grüße\u2028日本"}\r\n\r\n   \n{"text": "b"}'.encode())
    assert set(datasets.load(file)["text"]) == {"Grüße\u2028日本", "b"}


def test_parquet_file_folder_and_categories(tmp_path):
    frame = pd.DataFrame({"prompt": ["Uno", "Dos"], "domain": pd.Categorical(["es", "es"]), "score": [1, 2]})
    frame.to_parquet(tmp_path / "one.parquet")
    pd.DataFrame({"text": pd.Categorical(["Tres"])}).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    assert {row[1:3] for row in rows(datasets.load(tmp_path / "one.parquet"))} == {("es", "Uno"), ("es", "Dos")}
    both = rows(datasets.load(tmp_path))
    assert {row[1:3] for row in both} == {("es", "Uno"), ("es", "Dos"), ("train", "Tres")}


def test_csv_with_quotes_line_breaks_and_columns_of_its_own(tmp_path):
    file = tmp_path / "law__x.csv"
    file.write_bytes('\ufeffid,question,domain\r\n7,"Who, ""you"",\nor me?",\r\n\r\n8,Grüße 日本,travel\r\n'.encode())
    assert sorted(row[:3] for row in rows(datasets.load(file))) == [
        ("7", "law", 'Who, "you",\nor me?'),
        ("8", "travel", "Grüße 日本"),
    ]
    assert sorted(datasets.load(tmp_path)["id"]) == ["7", "8"], "a folder of nothing but .csv files"
    jsonl(tmp_path / "a.jsonl", {"text": "One"})
    assert list(datasets.load(tmp_path)["text"]) == ["One"], "beside others a .csv file is their list"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1))
def test_csv_written_by_pandas_round_trips(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("any") / "any.csv"
    pd.DataFrame({"text": texts, "id": range(len(texts))}).to_csv(file, index=False, quoting=csv.QUOTE_ALL)
    assert set(datasets.load(file)["text"]) == {t.strip() for t in texts}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,id\na,1\nb\n", "a.csv:3: must have 2 fields, as the header. Got 1."),
        (b'text\n"a\nb"\n"open', "a.csv:4: must be values separated by ',' (unexpected end of data)."),
        (b"text\na\n\xff\n", "a.csv: must be UTF-8 text. Got the byte 0xff at 7."),
        (b"text,text\na,b\n", "a.csv:1: must name each column once. Got text, text."),
        (b"question,answer\na,b\n", "a.csv:1: has no column 'text'; name the prompts' one with the 'text' parameter"),
        (b"text,id\na,1\n ,2\n", "a.csv:3: the field 'text' must not be empty."),
        (b'"a\nb",c\nx,y\n', "parameter, out of a\ufffdb, c (--text NAME)."),
        (b"a" * 200_000 + b",b\nx,y\n", f"parameter, out of {'a' * 300} (--text NAME)."),
        (b"text\n" + b"x" * 200_000, "a.csv:2: the field 'text' must have at most 100,000 characters. Got 200,000."),
        (b"text\n", "holds no prompts."),
        (b"", "holds no prompts."),
    ],
)
def test_a_bad_csv_line_is_named(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ErlabError) as error:
        datasets.load(tmp_path / "a.csv")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_column_of_prompts_is_guessed_only_where_there_is_one(tmp_path):
    one = jsonl(tmp_path / "one.jsonl", {"id": "x", "domain": "d", "question": "Why?", "n": 3})
    assert datasets.load(one)["text"][0] == "Why?"
    preferred = jsonl(tmp_path / "two.jsonl", {"text": "This", "title": "That"})
    assert datasets.load(preferred)["text"][0] == "This"
    assert datasets.load(preferred, text="title")["text"][0] == "That"
    several = [{"question": "Why?", "answer": "So."}]
    pd.DataFrame(several).to_parquet(tmp_path / "three.parquet")
    for file in (jsonl(tmp_path / "three.jsonl", *several), tmp_path / "three.parquet"):
        with pytest.raises(ErlabError, match="with the 'text' parameter, out of question, answer"):
            datasets.load(file)
        assert datasets.load(file, text="question")["text"][0] == "Why?"


def said(role, content, who="role", what="content"):
    return {who: role, what: content}


TURNS = [said("system", "Be brief."), said("user", "Why?"), said("assistant", "So."), said("user", "Really?")]
OTHER = [said("human", "Why?", "from", "value"), said("gpt", "So.", "from", "value")]


@pytest.mark.parametrize(
    "row",
    [
        {"id": "x", "messages": TURNS, "source": "forum"},
        {"conversations": OTHER, "source": "forum", "model": "m"},
        {"chat": TURNS[1:], "tags": ["a", "b"]},
    ],
)
def test_a_conversation_is_its_first_user_turn(tmp_path, row):
    file = jsonl(tmp_path / "chat.jsonl", row, row | {"id": "y"})
    pd.DataFrame([row]).to_parquet(tmp_path / "chat.parquet")
    for source in (file, tmp_path / "chat.parquet"):
        assert datasets.load(source)["text"][:] == ["Why?"]


def test_the_texts_among_a_turns_parts_are_the_prompt(tmp_path):
    texts = [{"type": "text", "text": text} for text in ("What is", "this?")]
    file = jsonl(tmp_path / "a.jsonl", {"messages": [said("user", [texts[0], {"type": "image_url"}, texts[1]])]})
    assert datasets.load(file)["text"][:] == ["What is\nthis?"]


@pytest.mark.parametrize("turns", [[said("system", "Be brief.")], [said("user", None)], [said("user", 3)]])
def test_a_conversation_without_a_user_is_named(tmp_path, turns):
    file = jsonl(tmp_path / "a.jsonl", {"messages": TURNS}, {"messages": turns})
    with pytest.raises(ErlabError, match=r"a\.jsonl:2: the field 'messages' must have a turn of the user\. Got \[\{"):
        datasets.load(file)


@pytest.mark.parametrize(
    "row",
    [
        {"id": "x", "facts": {"a": 1}, "source": "forum"},
        {"id": "x", "facts": ["a"], "source": "forum"},
        {"chosen": TURNS, "rejected": TURNS, "source": "forum"},
        {"question": "Why?", "source": "forum"},
        {"facts": ["a"]},
    ],
)
def test_where_several_columns_may_hold_prompts_none_is_guessed(tmp_path, row):
    file = jsonl(tmp_path / "a.jsonl", row)
    pd.DataFrame([row]).to_parquet(tmp_path / "a.parquet")
    for source in (file, tmp_path / "a.parquet"):
        with pytest.raises(ErlabError) as error:
            datasets.load(source)
        said_so = f"name the prompts' one with the 'text' parameter, out of {', '.join(row)} (--text NAME)."
        assert str(error.value).endswith(said_so)
    if "chosen" in row:
        assert datasets.load(file, text="rejected")["text"][0] == "Why?"


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_may_have_semicolons_or_tabs(tmp_path, delimiter):
    rows_ = ["id|question|domain", '7|"Who; you\tor, me?"|law', "8|One, two|"]
    (tmp_path / "a.csv").write_text("\n".join(rows_).replace("|", delimiter))
    assert sorted(row[:3] for row in rows(datasets.load(tmp_path / "a.csv"))) == [
        ("7", "law", "Who; you\tor, me?"),
        ("8", "a", "One, two"),
    ]


def test_a_long_field_of_another_column_is_allowed(tmp_path):
    (tmp_path / "a.csv").write_text(f"text,page\nWhy?,{'x' * 300_000}\n")
    before = csv.field_size_limit()
    assert datasets.load(tmp_path / "a.csv")["text"][:] == ["Why?"] and csv.field_size_limit() == before
    pd.DataFrame({"text": ["Why?"], "page": ["x" * 300_000]}).to_parquet(tmp_path / "a.parquet")
    assert datasets.load(tmp_path / "a.parquet")["text"][:] == ["Why?"]


def test_texts_in_parquet_that_are_no_utf8_are_one_line(tmp_path):
    offsets = pa.py_buffer(np.array([0, 2], np.int32).tobytes())
    bad = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    turn = pa.StructArray.from_arrays([bad, bad], ["role", "content"])
    turns = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), turn)
    for name, column in (("text", bad), ("messages", turns)):
        pq.write_table(pa.table({name: column}), tmp_path / "a.parquet")
        with pytest.raises(ErlabError, match=rf"a\.parquet: the column '{name}' must be UTF-8 text\.$"):
            datasets.load(tmp_path)


def test_a_small_file_of_many_rows_or_texts_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    again = pa.DictionaryArray.from_arrays(pa.nulls(1000, pa.int32()).fill_null(0), pa.array(["x" * 90_000]))
    pq.write_table(pa.table({"text": again}), tmp_path / "a.parquet", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    monkeypatch.setattr(parquet, "MAX_BYTES", 10_000_000)
    with pytest.raises(ErlabError, match=r"a\.parquet: must have at most 10,000,000 bytes of text\. Got 90,000,000\."):
        datasets.load(tmp_path)
    monkeypatch.setattr(parquet, "MAX_ROWS", 999)
    with pytest.raises(ErlabError, match=r"a\.parquet: must have at most 999 rows\. Got 1,000\."):
        datasets.load(tmp_path)


def test_inputs_are_the_files_digests(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", {"text": "a"})
    first = datasets.inputs(file)
    assert first == {"a.jsonl": hashlib.sha256(file.read_bytes()).hexdigest()}
    jsonl(file, {"text": "b"})
    assert datasets.inputs(file) != first
    assert list(datasets.inputs()) == ["data/prompts/grammar.toml"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no collection of real prompts beside the repository")
def test_real_prompts_are_all_read():
    drawn = datasets.load(SHARED, per_domain=50)
    counts = Counter(drawn["domain"])
    assert len(counts) == 15 and set(counts.values()) == {50}
    assert len(datasets.inputs(SHARED)) == len(list(SHARED.glob("*.jsonl")))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Hugging Face replaced by a folder: the name is looked up and loaded from there."""
    folder = tmp_path / "hub"
    folder.mkdir()
    pd.DataFrame({"question": ["Why?", "How?"], "label": [0, 1]}).to_parquet(folder / "train-00000-of-00001.parquet")
    pd.DataFrame({"question": ["Where?"], "label": [0]}).to_parquet(folder / "test-00000-of-00001.parquet")
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", False)
    asked, load_dataset = [], hf.load_dataset

    def info(self, name, revision, timeout):
        asked.append((name, revision))
        return SimpleNamespace(sha="c0ffee")

    def load(name, config, *, split, revision, streaming):
        assert config is split is None and not streaming
        asked.append((name, revision))
        return load_dataset(str(folder))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(hf, "load_dataset", load)
    return asked


def test_a_hugging_face_dataset_is_loaded_at_one_commit(hub):
    loaded = datasets.load("owner/name@v1")
    assert hub == [("owner/name", "v1"), ("owner/name", "c0ffee")]
    assert {row[1:3] for row in rows(loaded)} == {("name", "Why?"), ("name", "How?"), ("name", "Where?")}
    assert datasets.inputs("owner/name") == {"owner/name": "c0ffee"}
    with pytest.raises(ErlabError, match=r"owner/name \(\w+\): has no column 'prompt', only question, label"):
        datasets.load("owner/name", text="prompt")


def test_offline_mode_leaves_the_commit_unknown_and_the_load_to_the_cache(hub, monkeypatch):
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    assert datasets.load("owner/name").num_rows == 3 and hub == [("owner/name", None)]
    assert datasets.inputs("owner/name") == {"owner/name": None}


def test_no_network_is_one_line(monkeypatch):
    def info(*_, **__):
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    for ask in (datasets.load, datasets.inputs):
        with pytest.raises(
            ErlabError, match=r"^owner/name: no such file or folder, and not found .*not known\)\. Check the name, "
        ):
            ask("owner/name")


# Bad input

BAD_LINES = {
    b"no json": "a.jsonl:2: must be one JSON object (Expecting value)",
    b'{"text": "cut': "a.jsonl:2: must be one JSON object (Unterminated string",
    b"[" * 100_000: "a.jsonl:2: must be one JSON object",
    b"[1, 2]": "a.jsonl:2: must be one JSON object. Got [1, 2].",
    b'{"text": "\xff"}': "a.jsonl: must be UTF-8 text. Got the byte 0xff at 27.",
    b'{"text": ""}': "a.jsonl:2: the field 'text' must not be empty.",
    b'{"text": " \\n\\t"}': "a.jsonl:2: the field 'text' must not be empty.",
    b'{"text": "%s"}' % (b"x" * 100_001): "a.jsonl:2: the field 'text' must have at most 100,000 characters. Got 100,0",
    b'{"prompt": "x"}': "a.jsonl:2: has no field 'text', only prompt.",
    b'{"text": 5}': "a.jsonl:2: the field 'text' must be a string. Got 5.",
    b'{"text": null}': "a.jsonl:2: the field 'text' must be a string. Got None.",
    b'{"text": "x", "domain": ["a"]}': "a.jsonl:2: the field 'domain' must be a string. Got ['a'].",
    b'{"text": "x", "id": "%s"}' % (b"x" * 1001): "a.jsonl:2: the field 'id' must have at most 1,000 characters. Got",
    b'{"text": "\\ud800"}': "a.jsonl:2: must be valid Unicode. Got the lone surrogate '\\ud800'.",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:20].decode(errors="replace"))
def test_a_bad_line_is_named(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(ErlabError) as error:
        datasets.load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/{BAD_LINES[line]}") and "\n" not in str(error.value)


def test_sources_without_prompts(tmp_path):
    with pytest.raises(ErlabError, match=r"the folder holds no prompts \(\.jsonl, \.parquet or \.csv files\)"):
        datasets.load(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ErlabError, match="holds no prompts"):
        datasets.load(tmp_path)
    (tmp_path / "b.tsv").write_text("text\nx\n")
    with pytest.raises(ErlabError, match=r"b\.tsv: a file of prompts must end in \.jsonl, \.parquet or \.csv"):
        datasets.load(tmp_path / "b.tsv")
    with pytest.raises(ErlabError, match="nowhere: no such file or folder"):
        datasets.load(tmp_path / "nowhere")


def test_unreadable_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ErlabError, match=r"a\.parquet: no readable parquet file"):
        datasets.load(tmp_path)
    jsonl(tmp_path / "b.jsonl", {"text": "x"})
    (tmp_path / "b.jsonl").chmod(0)
    try:
        (tmp_path / "b.jsonl").read_bytes()
    except PermissionError:
        for ask in (datasets.load, datasets.inputs):
            with pytest.raises(ErlabError, match=r"b\.jsonl: can't be read \(Permission denied\)"):
                ask(tmp_path / "b.jsonl")


def test_bad_rows_of_a_table_and_bad_parameters(tmp_path):
    pd.DataFrame({"text": ["good", None]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ErlabError, match=r"a\.parquet: row 2: the field 'text' must be a string\. Got None"):
        datasets.load(tmp_path)
    with pytest.raises(ErlabError, match=r"The 'per_domain' parameter of load must be at least 1\. Got 0\."):
        datasets.load(per_domain=0)
