"""TOML files with known keys: types, the nearest name, and hostile files in one line."""

import pytest

from erlab import toml
from erlab.errors import ErlabError

KINDS = {"name": str, "rows": int, "share": float, "on": bool, "files": list[str], "more": dict}


def test_values_of_the_right_types_come_back():
    table = {"name": "a", "rows": 3, "share": 1, "on": False, "files": ["x", "y"], "more": {"any": 1}}
    assert toml.check(table, KINDS, "f.toml", required=["name"]) == table
    assert toml.check({"share": 0.5, "files": []}, KINDS, "f.toml") == {"share": 0.5, "files": []}


@pytest.mark.parametrize(
    "table, line",
    [
        ({"nmae": "a"}, "must not have the key 'nmae'; did you mean 'name'?"),
        ({"zzz": 1}, "must not have the key 'zzz'; known: name, rows, share, on, files, more."),
        ({"k" * 10**6: 1}, f"must not have the key '{'k' * 56}...; known: name, rows, share, on, files, more."),
        ({"rows": 1}, "must have the key 'name'."),
        ({"name": 1}, "'name' must be a string. Got 1."),
        ({"rows": True}, "'rows' must be a whole number. Got True."),
        ({"rows": 1.5}, "'rows' must be a whole number. Got 1.5."),
        ({"share": float("nan")}, "'share' must be a number. Got nan."),
        ({"on": 1}, "'on' must be true or false. Got 1."),
        ({"files": "x"}, "'files' must be a list, each item a string. Got 'x'."),
        ({"files": ["x", 2]}, "'files' must be a list, each item a string. Got ['x', 2]."),
        ({"more": [1]}, "'more' must be a table. Got [1]."),
        ([1], "must be a table. Got [1]."),
    ],
)
def test_a_wrong_key_or_type_is_one_line(table, line):
    with pytest.raises(ErlabError) as e:
        toml.check(table, KINDS, "f.toml", required=["name"])
    assert str(e.value) == f"f.toml: {line}"


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"a = 1\nb =\n", r"must be TOML \(Invalid value \(at line 2, column 4\)\)\.$"),
        (b"a = '\xff'", r"must be UTF-8 text\. Got the byte 0xff at 5\.$"),
        (b"a = " + b"[" * 10**5, r"must be TOML \(maximum recursion depth exceeded"),
        (b"a = " + b"9" * 5000, r"must be TOML \(Exceeds the limit"),
        (b"# line\n" * 10**6, r"must have at most 1,048,576 bytes\. Got 7,000,000\.$"),
    ],
)
def test_a_file_that_is_no_toml_is_one_line(tmp_path, content, expected):
    file = tmp_path / "f.toml"
    file.write_bytes(content)
    with pytest.raises(ErlabError, match=expected) as e:
        toml.read(file)
    assert "\n" not in str(e.value) and str(e.value).startswith(str(file))


def test_a_missing_file_a_folder_and_a_loop_of_links_are_one_line(tmp_path):
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    for name, line in (("none.toml", "No such file"), (".", "Got a folder"), ("loop.toml", "Too many levels")):
        with pytest.raises(ErlabError, match=line):
            toml.read(tmp_path / name)


def test_a_file_that_is_empty_holds_nothing(tmp_path):
    (tmp_path / "f.toml").write_text("")
    assert toml.read(tmp_path / "f.toml") == {}
