"""Round trips and hostile files."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save

from erlab.errors import ErlabError
from erlab.routing import PromptRouter, storage


@pytest.fixture
def folder(texts, tmp_path):
    return PromptRouter(clusters=4, dimensions=10).fit(texts).save(tmp_path / "router")


def edit(folder, **changes):
    path = folder / "router.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_arrays(folder, arrays):
    """What a careful attacker does: arrays of his own, with the right checksum."""
    import hashlib

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


def test_saving_replaces_the_older_router_and_nothing_else(texts, folder):
    PromptRouter(clusters=2, dimensions=5).fit(texts).save(folder)
    assert PromptRouter.load(folder).clusters == 2
    assert len(list(folder.iterdir())) == 2
    (folder / "router.json").rename(folder / "precious.txt")
    with pytest.raises(ErlabError, match="not empty and no router's folder"):
        PromptRouter().fit(texts).save(folder)


def test_a_folder_that_cannot_be_written_is_named(texts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ErlabError, match="file.*cannot be written"):
        PromptRouter(clusters=2).fit(texts).save(tmp_path / "file")


def test_truncated_or_changed_arrays_are_refused(folder):
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
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "schema"),
        ('{"schema": "other"}', "schema"),
        ('{"schema": "erlab.router", "version": 2}', "version must be 1.*Got 2"),
        ('{"schema": "erlab.router", "version": 1}', "no arrays file of its own folder. Got None"),
        ('{"schema": "erlab.router", "version": 1, "arrays": {"file": "../arrays-x"}}', "no arrays file"),
    ],
)
def test_wrong_descriptions_are_refused(folder, text, message):
    (folder / "router.json").write_text(text)
    with pytest.raises(ErlabError, match=f"router.json: .*{message}"):
        PromptRouter.load(folder)


def test_absent_folder_and_binary_description(tmp_path):
    with pytest.raises(ErlabError, match="router.json: the router cannot be read"):
        PromptRouter.load(tmp_path)
    (tmp_path / "router.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ErlabError, match="no JSON"):
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


def test_arrays_that_do_not_fit_are_refused(folder):
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


def test_a_pickle_is_not_opened(folder, tmp_path):
    import hashlib

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    data = pickle.dumps(Bomb())
    (folder / "arrays-0.safetensors").write_bytes(data)
    edit(folder, arrays={"file": "arrays-0.safetensors", "sha256": hashlib.sha256(data).hexdigest()})
    with pytest.raises(ErlabError, match="no safetensors file"):
        PromptRouter.load(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_second_process_decides_the_same(texts, folder):
    code = (
        "import sys, json; from erlab.routing import PromptRouter;"
        "print(json.dumps(PromptRouter.load(sys.argv[1]).predict(json.load(sys.stdin)).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == PromptRouter.load(folder).predict(texts).tolist()
