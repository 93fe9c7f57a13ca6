"""Notebooks as committed: no outputs, one parameters cell, short cells, links that lead somewhere."""

import ast
import re

import nbformat
import pytest

from erlab import paths

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda n: n.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_the_study_has_its_ten_notebooks():
    assert [n.stem[:2] for n in NOTEBOOKS if n.stem[0].isdigit()][:10] == [f"{i:02d}" for i in range(10)]


def test_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    assert all(not c.outputs and c.execution_count is None for c in notebook.cells if c.cell_type == "code")


def test_one_parameters_cell_of_plain_assignments(notebook):
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(isinstance(node, ast.Assign) for node in ast.parse(tagged[0].source).body)


def test_no_logic(notebook):
    """A cell makes a few calls: no function, class, loop or branch, at most 25 lines."""
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        assert len(cell.source.splitlines()) <= 25
        kinds = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.Try)
        found = [type(node).__name__ for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)]
        assert not found, f"{found} in:\n{cell.source}"


def test_every_code_cell_is_introduced(notebook):
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")


def test_links_lead_to_notebooks(notebook):
    for cell in (c for c in notebook.cells if c.cell_type == "markdown"):
        for target in re.findall(r"\]\((\w+\.ipynb)\)", cell.source):
            assert (paths.NOTEBOOKS / target).is_file(), target
