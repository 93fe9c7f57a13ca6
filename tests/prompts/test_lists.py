"""Dataset lists: local repositories, files, a hub on loopback, streams, what is missing, and mistakes in one line."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets as hf
import fake_hub
import pandas as pd
import pytest

from erlab import paths
from erlab.errors import ErlabError
from erlab.prompts import datasets, lists

SHIPPED = ("domains", "c4")


def save(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def listed(folder: Path, *entries: str, name: str = "list.toml") -> Path:
    return save(folder / name, "\n".join(f"[[dataset]]\n{entry}\n" for entry in entries))


def repository(folder: Path, shards: int = 2, rows: int = 100) -> Path:
    """A dataset repository as they lie on Hugging Face: parquet shards, and configurations in the README."""
    for config, word in (("easy", "sum"), ("hard", "proof")):
        (folder / config).mkdir(parents=True)
        for shard in range(shards):
            questions = [f"A {word} {shard}-{i}?" for i in range(rows)]
            contexts = [None if i % 2 else f"context {i}" for i in range(rows)]
            frame = pd.DataFrame({"question": questions, "context": contexts, "level": range(rows)})
            frame.to_parquet(folder / config / f"train-{shard:05d}-of-{shards:05d}.parquet", row_group_size=10)
    configs = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/train-*\n"
        for config in ("easy", "hard")
    )
    save(folder / "README.md", f"---\nlicense: mit\nconfigs:\n{configs}---\n# Questions\n")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# What a list names


def test_repositories_and_files_mix_and_each_is_described(tmp_path):
    repository(tmp_path / "maths")
    save(tmp_path / "law.jsonl", '{"text": "Who owns it?"}\n{"domain": "tax", "text": "Who pays?"}\n')
    file = listed(
        tmp_path,
        'domain = "mathematics"\nname = "./maths"\nconfig = "hard"\nsplit = "train"\ntext = "question"\nrows = 30\n'
        'licence = "MIT"',
        'path = "law.jsonl"',
        'domain = "law"\npath = "law.jsonl"',
    )
    prompts, origins = datasets.load_with_origins(file)
    assert Counter(prompts["domain"]) == {"mathematics": 30, "law": 1, "tax": 1}, "a domain holds for all its rows"
    assert all(text.startswith("A proof") for text, d in zip(prompts["text"], prompts["domain"]) if d == "mathematics")
    first = origins[0]
    assert (first.source, first.config, first.rows, first.licence) == ("./maths", "hard", 30, "MIT")
    assert first.commit is None and len(first.sha256) == 64 and first.missing is None
    assert [origin.rows for origin in origins] == [30, 2, 2]
    assert set(datasets.inputs(file)) == {
        "list.toml", "law.jsonl", "maths/README.md",
        *(f"maths/{c}/train-0000{i}-of-00002.parquet" for c in ("easy", "hard") for i in (0, 1)),
    }  # fmt: skip
    assert datasets.is_local(file)


def test_rows_are_drawn_with_the_seed_from_the_whole_split(tmp_path):
    repository(tmp_path / "maths")
    file = listed(tmp_path, 'name = "./maths"\nconfig = "easy"\nsplit = "train"\ntext = "question"\nrows = 40')
    drawn = [set(datasets.load(file, seed=seed)["text"]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and {len(texts) for texts in drawn} == {40}
    assert all(len({text.split()[2][0] for text in texts}) == 2 for texts in drawn), "of both shards"
    fewer = listed(tmp_path, 'name = "./maths"\nconfig = "easy"\nsplit = "train"\ntext = "question"\nrows = 10')
    assert set(datasets.load(fewer)["text"]) < drawn[0]


def test_a_template_joins_columns_and_an_empty_one_adds_nothing(tmp_path):
    repository(tmp_path / "maths", shards=1, rows=4)
    save(tmp_path / "own.csv", "q,n\nWhy?,3\nHow?,\n")
    (tmp_path / "own.parquet").write_bytes((tmp_path / "maths/easy/train-00000-of-00001.parquet").read_bytes())
    file = listed(
        tmp_path,
        'name = "./maths"\nconfig = "hard"\ntext = "{question}\\n{context}"',
        'path = "own.csv"\ntext = "{q} ({n})"',
        'path = "own.parquet"\ntext = "{level}: {question}"',
    )
    assert set(datasets.load(file)["text"]) == {
        "A proof 0-0?\ncontext 0", "A proof 0-1?", "A proof 0-2?\ncontext 2", "A proof 0-3?", "Why? (3)", "How? ()",
        *(f"{i}: A sum 0-{i}?" for i in range(4)),
    }  # fmt: skip
    assert set(datasets.load(tmp_path / "own.csv", text="{n}{q}{n}")["text"]) == {"3Why?3", "How?"}
    with pytest.raises(ErlabError, match=r"own\.csv:2: has no field 'm', only q, n\.$"):
        datasets.load(tmp_path / "own.csv", text="{q} {m}")


def test_rows_without_a_prompt_are_left_out_of_a_repository_and_counted(tmp_path):
    (tmp_path / "odd").mkdir()
    texts = ["One", "", None, "  ", "x" * 100_001, "Two"]
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "odd" / "train.parquet")
    prompts, origins = datasets.load_with_origins(listed(tmp_path, 'name = "./odd"'))
    assert set(prompts["text"]) == {"One", "Two"} and (origins[0].rows, origins[0].left_out) == (2, 4)
    with pytest.raises(ErlabError, match=r"train\.parquet: row 2: the field 'text' must not be empty"):
        datasets.load(listed(tmp_path, 'path = "odd/train.parquet"'))


def test_lengths_and_categories(tmp_path):
    texts = [
        "Bake the flour with butter in the oven",  # cooking
        "The judge in court ate butter",  # law: two words to one
        "A judge and nothing else",  # one word only
        "flour butter",  # too short
    ]
    save(tmp_path / "web.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = '[dataset.categories]\ncooking = ["Flour", "oven", "butter"]\nlaw = ["judge", "court"]'
    prompts, origins = datasets.load_with_origins(
        listed(tmp_path, f'path = "web.jsonl"\ncharacters = [15, 25]\n{words}')
    )
    assert dict(zip(prompts["domain"], prompts["text"])) == {
        "cooking": "Bake the flour with",
        "law": "The judge in court ate",
    }
    assert origins[0].left_out == 2
    with pytest.raises(ErlabError, match=r"list\.toml, dataset 1: holds no prompts that fit\.$"):
        datasets.load(listed(tmp_path, 'path = "web.jsonl"\ncharacters = [500, 500]'))


def test_the_hash_is_of_the_texts_in_any_order(tmp_path):
    lines = [json.dumps({"text": f"Prompt {i}"}) + "\n" for i in range(9)]
    save(tmp_path / "a.jsonl", "".join(lines))
    save(tmp_path / "b.jsonl", "".join(reversed(lines)))
    save(tmp_path / "c.jsonl", "".join(lines[1:]))
    hashes = [datasets.load_with_origins(tmp_path / f"{name}.jsonl")[1][0].sha256 for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_inputs_change_with_the_list_and_with_a_file_it_names(tmp_path):
    save(tmp_path / "own" / "a.jsonl", '{"text": "a"}\n')
    file = listed(tmp_path, 'path = "own"')
    first = datasets.inputs(file)
    save(tmp_path / "own" / "a.jsonl", '{"text": "b"}\n')
    second = datasets.inputs(file)
    assert {name for name in first if first[name] != second[name]} == {"own/a.jsonl"}
    assert datasets.inputs(listed(tmp_path, 'path = "own"\nrows = 3'))["list.toml"] != second["list.toml"]


def test_progress_names_each_dataset(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("erlab.progress.report", lambda *given: seen.append(given))
    save(tmp_path / "a.jsonl", '{"text": "a"}\n')
    datasets.load(listed(tmp_path, 'path = "a.jsonl"', 'domain = "b"\npath = "a.jsonl"'))
    assert seen == [(0, 2, "prompts: a.jsonl"), (1, 2, "prompts: a.jsonl"), (2, 2, "prompts loaded")]


def test_the_lists_of_this_project_name_known_keys_and_no_text():
    for name in SHIPPED:
        entries = lists.read(paths.DATA / "prompts" / f"{name}.toml")
        assert all(entry.name and entry.licence and entry.split and not entry.local for entry in entries)
    domains = [entry.domain for entry in lists.read(paths.DATA / "prompts" / "domains.toml")]
    assert len(set(domains)) == len(domains) == 12
    assert entries[0].stream and entries[0].characters and len(entries[0].categories) == 8


def test_real_prompts_as_a_list(tmp_path, real_prompts):
    names = ("math__gsm8k", "law__mmlu_law", "music__snips", "medicine__medmcqa")
    files = (f'domain = "{name[:4]}"\npath = "{real_prompts / name}.jsonl"\nrows = 50' for name in names)
    assert Counter(datasets.load(listed(tmp_path, *files))["domain"]) == {
        "math": 50,
        "law_": 50,
        "musi": 50,
        "medi": 50,
    }


# Streams and the hub


def test_a_stream_reads_no_row_beyond_those_asked_for(tmp_path, monkeypatch):
    pulled = []

    def rows(shards):
        for shard in shards:
            for i in range(100):
                pulled.append(shard)
                yield {"text": f"{shard}-{i}"}

    stream = hf.IterableDataset.from_generator(rows, gen_kwargs={"shards": list(range(8))})
    monkeypatch.setattr(hf, "load_dataset", lambda *_, **given: {"train": stream} if given["streaming"] else None)
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    order = []
    for seed in range(4):
        pulled.clear()
        file = listed(tmp_path, 'name = "owner/large"\nstream = true\nrows = 150')
        assert datasets.load(file, seed=seed).num_rows == 150 == len(pulled)
        assert len(set(pulled)) == 2
        order.append(tuple(dict.fromkeys(pulled)))
    assert len(set(order)) > 1, "the seed draws the files"


LOADS = """
import json
from dataclasses import asdict
from erlab.errors import ErlabError
from erlab.prompts import datasets
prompts, origins = datasets.load_with_origins("list.toml")
try:
    datasets.load("wrong.toml")
except ErlabError as e:
    line = str(e)
left_out = datasets.load_with_origins("wrong.toml", skip_missing=True)[1]
print(json.dumps([
    prompts.to_pandas().groupby("domain").size().to_dict(), [asdict(o) for o in origins], datasets.inputs("list.toml"),
    line, [o.missing for o in left_out], datasets.inputs("wrong.toml", skip_missing=True),
]))
"""


def test_datasets_of_a_hub_are_loaded_at_their_commits_and_streams_leave_files_unread(tmp_path):
    """The real client of Hugging Face, against a hub on loopback."""
    large = tmp_path / "large"
    (large / "en").mkdir(parents=True)
    for shard in range(4):
        with gzip.open(large / "en" / f"train.{shard}.json.gz", "wt") as file:
            file.writelines(json.dumps({"text": f"{shard} {i}", "url": "x"}) + "\n" for i in range(200))
    save(
        large / "README.md", "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/*\n---\n"
    )
    with fake_hub.running() as hub:
        old = hub.add("open/maths", repository(tmp_path / "old", rows=20), "v1")
        new = hub.add("open/maths", repository(tmp_path / "new", rows=30), "main")
        web = hub.add("all/web", large, "main")
        keys = 'name = "open/maths"\nconfig = "hard"\nsplit = "train"\ntext = "question"\n'
        listed(
            tmp_path,
            f'{keys}domain = "old"\nrevision = "v1"',
            f'{keys}domain = "new"\nrows = 60',
            'name = "all/web"\nconfig = "en"\nsplit = "train"\nstream = true\nrows = 70',
        )
        missing = ('name = "no/where"', 'name = "open/maths"\nconfig = "none"', f'{keys}revision = "v9"')
        listed(tmp_path, keys, *missing, name="wrong.toml")
        env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", LOADS], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr[-3000:]
        counts, origins, inputs, line, left_out, skipped = json.loads(done.stdout.splitlines()[-1])
        fetched = {path for name, path in hub.fetched if name == "all/web" and path != "README.md"}
    assert counts == {"new": 20, "old": 40, "web": 70}, "40 of the 60 rows are in both commits"
    assert [origin["commit"] for origin in origins] == [old, new, web] and [o["rows"] for o in origins] == [40, 60, 70]
    assert inputs["open/maths@v1"] == old and inputs["open/maths"] == new and inputs["all/web"] == web
    assert len(fetched) <= 2, "one file for the types of its columns, one for the rows"
    assert line.startswith("wrong.toml, dataset 2: no/where: ") and line.endswith(
        " Leave it out with --skip-missing, or remove it from the list."
    )
    assert left_out[0] is None and [text.partition(":")[0] for text in left_out[1:]] == [
        "no/where",
        "open/maths",
        "open/maths",
    ]
    assert "none" in left_out[2] and skipped["no/where"] == skipped["open/maths@v9"] == "missing"


# Missing datasets and mistakes


def test_a_missing_dataset_is_named_and_can_be_skipped(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach it\nmore")

    monkeypatch.setattr(hf, "load_dataset", offline)
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    save(tmp_path / "a.jsonl", '{"text": "a"}\n')
    file = listed(tmp_path, 'path = "a.jsonl"', 'domain = "gone"\nname = "owner/gone"', 'path = "nowhere"')
    with pytest.raises(ErlabError) as e:
        datasets.load(file)
    assert type(e.value) is ErlabError and str(e.value) == (
        f"{file}, dataset 2: owner/gone: can't be loaded from Hugging Face (ConnectionError: Couldn't reach it). "
        "HF_HUB_OFFLINE is set: load it once without, with a network, and it stays in Hugging Face's cache. "
        "Leave it out with --skip-missing, or remove it from the list."
    )
    prompts, origins = datasets.load_with_origins(file, skip_missing=True)
    assert prompts["text"][:] == ["a"] and [origin.rows for origin in origins] == [1, None, None]
    assert origins[2].missing == f"{tmp_path}/nowhere: no such file or folder."
    assert datasets.inputs(file, skip_missing=True)["nowhere"] == "missing"
    with pytest.raises(
        ErlabError,
        match=r"dataset 3: .*nowhere: no such file or folder\. Leave it out with --skip-missing, or remove it from the list\.$",
    ):
        datasets.inputs(file)
    with pytest.raises(ErlabError, match="none of its datasets can be had; the first: owner/gone"):
        datasets.load(listed(tmp_path, 'name = "owner/gone"'), skip_missing=True)
    with pytest.raises(ErlabError, match="^owner/gone: can't be loaded"):
        datasets.load("owner/gone", skip_missing=True)


MISTAKES = {
    "": "must have at least one [[dataset]].",
    "[[datasets]]\n": "must not have the key 'datasets'; did you mean 'dataset'?",
    "[dataset]\nname = 'a/b'\n": "'dataset' must be a list, each item a table.",
    "[[dataset]]\n": ", dataset 1: must have either 'name' or 'path'.",
    "[[dataset]]\nname = 'a/b'\npath = 'c'\n": ", dataset 1: must have either 'name' or 'path'.",
    "[[dataset]]\nname = 'a/b'\nsplits = 'c'\n": ", dataset 1: must not have the key 'splits'; did you mean 'split'?",
    "[[dataset]]\nname = 'a/b'\nlicense = 'MIT'\n": "must not have the key 'license'; did you mean 'licence'?",
    "[[dataset]]\nname = 'a/b'\nrows = '9'\n": "'rows' must be a whole number. Got '9'.",
    "[[dataset]]\nname = 'a/b'\nrows = 0\n": "must have 'rows' from 1 to 10,000,000. Got 0.",
    "[[dataset]]\nname = 'a/b'\nrows = 99999999999999999999\n": "must have 'rows' from 1 to 10,000,000. Got 99999999",
    "[[dataset]]\nname = 'a/b'\nrows = nan\n": "'rows' must be a whole number. Got nan.",
    "[[dataset]]\nname = 'a/b'\nstream = true\n": "must have 'rows' to be streamed.",
    "[[dataset]]\nname = 'a b'\n": "must have a 'name' such as owner/name. Got 'a b'.",
    "[[dataset]]\nname = ''\n": "must not have an empty 'name'.",
    "[[dataset]]\npath = 'a'\nsplit = 'train'\n": "must not have 'split' for a local file.",
    "[[dataset]]\nname = './a'\nrevision = 'v1'\n": "must not have 'revision' for a local folder.",
    "[[dataset]]\nname = 'a/b'\ncharacters = [9, 3]\n": "= [least, most] from 1 to 100,000. Got [9, 3]",
    "[[dataset]]\nname = 'a/b'\ncharacters = [9]\n": "must have 'characters' = [least, most]",
    "[[dataset]]\nname = 'a/b'\ndomain = 'x'\n[dataset.categories]\ny = ['a', 'b']\n": "not have both 'domain' and",
    "[[dataset]]\nname = 'a/b'\n[dataset.categories]\ny = ['a']\n": "must have categories with a name and a list of at",
    "[[dataset]]\nname = 'a/b'\n[dataset.categories]\ny = 3\n": "must have categories with a name and a list of at",
    "[[dataset]]\nname = 'a/b'\n" + "# line\n" * 10**6: "must have at most 1,048,576 bytes. Got 7,",
    "[[dataset]": "must be TOML (",
}


@pytest.mark.parametrize("content", MISTAKES, ids=lambda content: content[:60])
def test_a_mistake_in_a_list_is_one_line_and_nothing_is_fetched(tmp_path, monkeypatch, content):
    monkeypatch.setattr(hf, "load_dataset", None)
    file = save(tmp_path / "list.toml", content)
    for ask in (datasets.load, datasets.inputs, datasets.is_local):
        with pytest.raises(ErlabError) as e:
            ask(file)
        assert str(e.value).startswith(str(file)) and MISTAKES[content] in str(e.value) and "\n" not in str(e.value)


def test_a_list_that_is_not_there_a_loop_and_bytes_are_one_line(tmp_path):
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    missing = "no such file or folder"
    for name, line in (("none.toml", missing), ("loop.toml", missing), ("bytes.toml", "must be UTF-8")):
        with pytest.raises(ErlabError, match=line):
            datasets.load(tmp_path / name)
    for source in ("data/none.toml", "~nobody/a", "~nobody", "x" * 5000):
        with pytest.raises(ErlabError, match=r"^[\w/.~]+: no such file or folder"):
            datasets.load(source)
        with pytest.raises(ErlabError, match="no such file or folder"):
            datasets.load(listed(tmp_path, f'path = "{source}"'))
