"""Which code a piece of source reaches, and when hashes change."""

import os
import subprocess
import sys

import pytest

from erlab import fingerprint


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package "erlab" of a few modules; a dict of name to path."""
    root = tmp_path / "erlab"
    files = {
        "__init__.py": "",
        "top.py": "from . import left\n\ndef f():\n    from erlab.sub import inner\n",
        "left.py": '"""Mentions erlab.never in prose."""\nVALUE = 1\n',
        "sub/__init__.py": "from .inner import x\n",
        "sub/inner.py": "from ..deep import y as x\n",
        "deep.py": "y = 1\n",
        "process/__init__.py": "",
        "process/__main__.py": "import erlab.worker\n",
        "worker.py": "",
        "starts.py": "COMMAND = ['python', '-m', 'erlab.process']\n",
        "page.py": "",
        "page.html": "<p>",
        "never.py": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(fingerprint, "PACKAGE", root)
    return root


@pytest.mark.parametrize(
    ("source", "reached"),
    [
        ("import numpy", set()),
        ("from erlab import top", {"erlab", "erlab.top", "erlab.left", "erlab.sub", "erlab.sub.inner", "erlab.deep"}),
        ("from erlab.sub.inner import x", {"erlab", "erlab.sub", "erlab.sub.inner", "erlab.deep"}),
        ("import erlab\nerlab.left.VALUE", {"erlab", "erlab.left"}),
        ("from erlab import sub as s\ns.inner.x", {"erlab", "erlab.sub", "erlab.sub.inner", "erlab.deep"}),
        (
            "from erlab import starts",
            {"erlab", "erlab.starts", "erlab.process", "erlab.process.__main__", "erlab.worker"},
        ),
    ],
)
def test_what_source_reaches(package, source, reached):
    assert set(fingerprint.code_of(source)) == reached


def test_what_is_known_not_to_run_is_left_out(package):
    assert set(fingerprint.code_of("from erlab import top", ["erlab.sub"])) == {"erlab", "erlab.top", "erlab.left"}
    assert "erlab.sub" in fingerprint.code_of("from erlab import top", ["erlab.su", "erlab.sub.inner"])


def test_only_the_changed_module_has_another_hash(package):
    before = fingerprint.code_of("from erlab import top")
    (package / "deep.py").write_text("y = 12\n")
    after = fingerprint.code_of("from erlab import top")
    assert {name for name in before if before[name] != after[name]} == {"erlab.deep"}


CODE = """
class Point:
    x: int = 0

    def moved(self, by: int = 1) -> "Point":
        return Point(self.x + by)
"""


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("y = 1\n", "# the answer\n\ny   =   1\n", True),
        ("y = 1\n", '"""What it is."""\n\ny = 1\n', True),
        ("y = 1\n", "y: int = 1\n", False),  # an annotated name of a class is a field
        (CODE, CODE.replace("moved(", "\\\n    moved("), True),
        (CODE, CODE.replace("        return", '        """Another one."""\n        return'), True),
        (CODE, CODE.replace('-> "Point"', ""), True),
        (CODE, CODE.replace("by: int", "by: float"), True),
        (CODE, CODE.replace("x: int", "x: float"), True),
        (CODE, CODE.replace("= 1", "= 2"), False),
        (CODE, CODE.replace("x: int = 0", "x: int = 0\n    z: int = 0"), False),
    ],
)
def test_code_is_compared_by_its_meaning(package, before, after, same):
    (package / "deep.py").write_text(before)
    digest = fingerprint.of_code("erlab.deep")
    (package / "deep.py").write_text(after)
    assert (fingerprint.of_code("erlab.deep") == digest) == same


def test_a_modules_template_counts(package):
    before = fingerprint.of_code("erlab.page")
    (package / "page.html").write_text("<p>new")
    assert fingerprint.of_code("erlab.page") != before


def test_reaches_all_that_python_imports():
    """The real package: whatever importing a module loads is among what it is said to reach."""
    script = "import sys, erlab.study.pipeline; print(*[m for m in sys.modules if m.split('.')[0] == 'erlab'])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= set(fingerprint.code_of("import erlab.study.pipeline"))


def test_a_tree_is_its_visible_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    (tmp_path / "a" / ".aside").write_text("2")
    assert fingerprint.of_tree(tmp_path / "a") == {str(tmp_path / "a" / "x"): fingerprint.of_text("1")}
    assert fingerprint.of_tree(tmp_path / "absent") == {}


def test_a_huge_file_is_known_by_its_size_and_time(tmp_path):
    engine = tmp_path / "rank0.engine"
    with engine.open("wb") as file:
        file.truncate(400 * 2**30)  # a hole: on no disk is there so much
    first = fingerprint.of_file(engine)
    assert fingerprint.of_file(engine) == first
    os.utime(engine, ns=(1, 1))
    second = fingerprint.of_file(engine)
    with engine.open("r+b") as file:
        file.truncate(399 * 2**30)
    os.utime(engine, ns=(1, 1))
    assert len({first, second, fingerprint.of_file(engine)}) == 3
