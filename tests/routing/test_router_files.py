"""Tests of saved routers: round trips, damaged and malicious files."""

import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from erlab.errors import ErlabError
from erlab.routing import CompiledRouter, PromptRouter, explain, storage

SAVED = Path(__file__).with_name("saved_routers")  # routers of format version 1, and their decisions


@pytest.fixture
def folder(texts, tmp_path):
    return PromptRouter(clusters=4, dimensions=10).fit(texts).save(tmp_path / "router")


def edit(folder, **changes):
    path = folder / "router.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_arrays(folder, arrays):
    """Replace the arrays and update the checksum, as an attacker would."""
    data = save(arrays)
    (folder / "arrays-0.safetensors").write_bytes(data)
    edit(folder, arrays={"file": "arrays-0.safetensors", "sha256": hashlib.sha256(data).hexdigest()})


def test_round_trip(texts, tmp_path):
    router = PromptRouter(clusters=4, dimensions=10).fit(texts)
    loaded = PromptRouter.load(router.save(tmp_path / "router"))
    before, after = router.route(texts), loaded.route(texts)
    for name in ("cluster", "distance", "margin", "runner_up", "costs", "outlier"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert loaded.get_params() == router.get_params() and loaded.terms_ == router.terms_
    PromptRouter.load(loaded.save(tmp_path / "again"))


@pytest.mark.parametrize("name", ["words_kmeans", "words_gaussian", "characters_capacity", "static_balanced"])
def test_saved_routers_of_earlier_versions_decide_the_same(name, tmp_path):
    saved = json.loads((SAVED / "decisions.json").read_text())
    for load in (CompiledRouter.load, PromptRouter.load):
        routing = load(SAVED / name).route(saved["prompts"])
        for i, expected in enumerate(saved["decisions"][name]):
            for field, value in routing.row(i)._asdict().items():
                value = list(value) if field == "order" else value
                assert value == (pytest.approx(expected[field]) if isinstance(value, float) else expected[field]), field
    again = PromptRouter.load(SAVED / name).save(tmp_path / name)
    before, after = ({f.name: f.read_bytes() for f in folder.iterdir()} for folder in (SAVED / name, again))
    assert before == after


def test_saving_replaces_an_older_router_only(texts, folder):
    PromptRouter(clusters=2, dimensions=5).fit(texts).save(folder)
    assert PromptRouter.load(folder).clusters == 2
    assert len(list(folder.iterdir())) == 2
    (folder / "router.json").rename(folder / "precious.txt")
    with pytest.raises(ErlabError, match="must be empty or hold an older router"):
        PromptRouter().fit(texts).save(folder)


def test_unwritable_folders_are_reported(texts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ErlabError, match="file.*cannot be written"):
        PromptRouter(clusters=2).fit(texts).save(tmp_path / "file")


def test_damaged_arrays_are_refused(folder):
    path = next(folder.glob("*.safetensors"))
    data = path.read_bytes()
    for wrong in (data[:-1], b"", data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(wrong)
        with pytest.raises(ErlabError, match=f"{path.name}: truncated or changed"):
            PromptRouter.load(folder)
    path.unlink()
    with pytest.raises(ErlabError, match=f"{path.name}: the router cannot be read"):
        PromptRouter.load(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "schema"),
        ('{"schema": "other"}', "schema"),
        ('{"schema": "erlab.router", "version": 2}', "version must be 1.*Got 2"),
        ('{"schema": "erlab.router", "version": 1}', "must name an arrays file in the same folder. Got None"),
        ('{"schema": "erlab.router", "version": 1, "arrays": {"file": "../arrays-x"}}', "must name an arrays file"),
    ],
)
def test_invalid_descriptions_are_refused(folder, text, message):
    (folder / "router.json").write_text(text)
    with pytest.raises(ErlabError, match=f"router.json: .*{message}"):
        PromptRouter.load(folder)


def test_missing_folders_and_binary_descriptions_are_refused(tmp_path):
    with pytest.raises(ErlabError, match="router.json: the router cannot be read"):
        PromptRouter.load(tmp_path)
    (tmp_path / "router.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ErlabError, match="not JSON"):
        PromptRouter.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"clusters": 4, "unknown": 1}},
        {"parameters": {"clusters": "4"}},
        {"parameters": []},
        {"encoder": {"kind": "pickle"}},
        {"encoder": {"kind": "words"}},
        {"encoder": {"kind": "words", "vocabulary": ["one"]}},
        {"encoder": {"kind": "words", "vocabulary": [1]}},
        {"encoder": None},
        {"terms": []},
        {"head": {"kind": "other"}},
        {"head": {"kind": "posterior"}},
        {"threshold": "0.5"},
    ],
    ids=str,
)
def test_incomplete_descriptions_are_refused(folder, changes):
    edit(folder, **changes)
    with pytest.raises(ErlabError, match="router.json: not a complete router"):
        PromptRouter.load(folder)


def test_arrays_of_wrong_shape_are_refused(folder):
    _, arrays = storage.load(folder)
    table, centers = arrays["encoder.table"], arrays["head.centers"]
    wrong = [
        {name: array for name, array in arrays.items() if name != left_out} for left_out in arrays
    ] + [
        {**arrays, "head.centers": centers[:3]},
        {**arrays, "head.prices": np.zeros(3)},
        {**arrays, "encoder.table": table[:, :3]},
        {**arrays, "encoder.table": table[0]},
        {**arrays, "outliers.within": arrays["outliers.within"][:3]},
        {**arrays, "outliers.centers": arrays["outliers.centers"][:3]},
    ]
    for bad in wrong:
        replace_arrays(folder, bad)
        with pytest.raises(ErlabError, match="not a complete router"):
            PromptRouter.load(folder)
    replace_arrays(folder, {**arrays, "head.centers": centers * np.nan})
    with pytest.raises(ErlabError, match="'head.centers' holds values that are not finite"):
        PromptRouter.load(folder)


def test_pickles_are_not_loaded(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    data = pickle.dumps(Bomb())
    (folder / "arrays-0.safetensors").write_bytes(data)
    edit(folder, arrays={"file": "arrays-0.safetensors", "sha256": hashlib.sha256(data).hexdigest()})
    with pytest.raises(ErlabError, match="not a safetensors file"):
        PromptRouter.load(folder)
    assert not (tmp_path / "exploded").exists()


def test_decisions_are_equal_in_another_process(texts, folder):
    code = (
        "import sys, json; from erlab.routing import PromptRouter;"
        "print(json.dumps(PromptRouter.load(sys.argv[1]).predict(json.load(sys.stdin)).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == PromptRouter.load(folder).predict(texts).tolist()


def named(folder, name):
    edit(folder, arrays={"file": name, "sha256": "0" * 64})


def instead(folder, kind):
    """Replace the arrays or the description by a pipe, device, folder or huge file."""
    file, kind = kind.split(":")
    path = folder / "router.json" if file == "description" else next(folder.glob("arrays-*"))
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:  # a sparse file of one terabyte
        with open(path, "wb") as file:
            file.truncate(2**40)


HOSTILE = {
    "a NUL in the arrays' name": (lambda f: named(f, "arrays-\0"), "cannot be read"),
    "a surrogate in the arrays' name": (lambda f: named(f, "arrays-\ud800"), "cannot be read"),
    "a long name": (lambda f: named(f, "arrays-" + "x" * 5000), "cannot be read"),
    **{
        f"{file}:{kind}": (lambda f, what=f"{file}:{kind}": instead(f, what), says)
        for file in ("description", "arrays")
        for kind, says in (
            ("fifo", "not a regular file"),
            ("device", "not a regular file"),
            ("folder", "not a regular file"),
            ("huge", "must have at most"),
        )
    },
    "a threshold NaN": (lambda f: edit(f, threshold=float("nan")), "threshold must be a finite number"),
    "an infinite threshold": (lambda f: edit(f, threshold=float("inf")), "threshold must be a finite number"),
    "no clusters": (lambda f: edit(f, parameters={"clusters": 0}, terms=[]), "number of clusters must be"),
    "clusters of 1e200": (lambda f: edit(f, parameters={"clusters": 1e200}), "number of clusters must be"),
    "terms that are numbers": (lambda f: edit(f, terms=[[1], [2], [3], [4]]), "must be lists of text"),
    "terms that are a text each": (lambda f: edit(f, terms=["a", "b", "c", "d"]), "must be lists of text"),
    "a hub's model": (
        lambda f: edit(f, encoder={"kind": "sentences", "model": "someone/evil", "sha256": "0" * 64}),
        "'someone/evil' is neither a folder nor in the local Hugging Face cache",
    ),
    "a model of no name": (lambda f: edit(f, encoder={"kind": "sentences", "model": 7, "sha256": None}), "be text"),
    "another model's checksum": (
        lambda f: edit(f, encoder={"kind": "sentences", "model": None, "sha256": "0" * 64}),
        "the model's SHA-256 must be 0000",
    ),
}


@pytest.fixture
def no_network(monkeypatch):
    """Fail on any name resolution or connection."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("network access"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("network access"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_malicious_routers_are_refused_in_one_line(folder, name, no_network):
    spoil, says = HOSTILE[name]
    spoil(folder)
    for loads in (PromptRouter, CompiledRouter):
        with pytest.raises(ErlabError) as e:
            loads.load(folder)
        assert says in str(e.value) and "\n" not in str(e.value)


def test_extreme_arrays_are_refused(folder):
    _, arrays = storage.load(folder)
    centers = arrays["head.centers"]
    for bad, says in (
        ({"head.centers": centers * 1e200}, "not finite numbers of at most 1e"),
        ({"head.centers": centers.astype(np.int8)}, "must be float32 or float64. Got int8"),
        ({"encoder.table": np.zeros((0, 2**40))}, "not a complete router"),
        ({"head.centers": np.zeros((4, 0)), "outliers.centers": np.zeros((4, 0))}, "not a complete router"),
    ):
        replace_arrays(folder, {**arrays, **bad})
        with pytest.raises(ErlabError, match=says):
            PromptRouter.load(folder)
    header = b'{"a":{"dtype":"F64","shape":[1099511627776],"data_offsets":[0,8]}}'
    for data in (len(header).to_bytes(8, "little") + header + bytes(8), (2**63).to_bytes(8, "little"), b"\xff" * 64):
        (folder / "arrays-0.safetensors").write_bytes(data)
        edit(folder, arrays={"file": "arrays-0.safetensors", "sha256": hashlib.sha256(data).hexdigest()})
        with pytest.raises(ErlabError, match="not a safetensors file"):
            PromptRouter.load(folder)


def test_tokens_outside_the_table_are_refused(folder):
    """Tokenizer with token ID 1,000,000 and a table of two rows."""
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1_000_000}, "unk_token": "a"}
    edit(folder, encoder={"kind": "tokens", "tokenizer": json.dumps({"version": "1.0", "model": model})})
    manifest, arrays = storage.load(folder)
    replace_arrays(folder, {**arrays, "encoder.table": np.zeros((2, 10))})
    with pytest.raises(ErlabError, match="the table does not match the tokenizer"):
        PromptRouter.load(folder)


def test_routers_too_large_to_load_are_not_saved(folder, monkeypatch):
    router, before = PromptRouter.load(folder), sorted(folder.iterdir())
    monkeypatch.setattr(storage, "_MAX_MANIFEST_BYTES", 100)
    with pytest.raises(ErlabError, match="router.json: must have at most 100 bytes"):
        router.save(folder)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("content", ['{"clusters": [[]]}', "[" * 10_000, '{"clusters": [{"cluster": 1e999}]}', None])
def test_unreadable_summaries_give_no_domains(folder, content):
    os.mkfifo(folder / "summary.json") if content is None else (folder / "summary.json").write_text(content)
    assert explain.top_domains(folder) == {}
