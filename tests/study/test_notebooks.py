"""Notebooks as committed: no outputs, one parameters cell, short cells, valid links, few dependencies."""

import ast
import re

import nbformat
import papermill
import pytest

import erlab
from erlab import paths
from erlab.study import cache

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
EXTENSIONS = "extend"  # the notebook that defines functions and classes, and reaches into the package's tables


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_knows_every_parameter(path):
    """It skips a line that it cannot parse, such as one with an equals sign in its comment."""
    cells = nbformat.read(path, as_version=4).cells
    (tagged,) = (c for c in cells if "parameters" in c.metadata.get("tags", []))
    assigned = {target.id for node in ast.parse(tagged.source).body for target in node.targets}
    assert papermill.inspect_notebook(path).keys() == assigned


def test_no_logic(notebook, request):
    """A cell makes a few calls: no function, class, loop or branch, at most 25 lines."""
    definitions = () if request.node.callspec.id == EXTENSIONS else (ast.FunctionDef, ast.ClassDef)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        assert len(cell.source.splitlines()) <= 25
        kinds = (*definitions, ast.For, ast.While, ast.If, ast.Try)
        found = [type(node).__name__ for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)]
        assert not found, f"{found} in:\n{cell.source}"


def test_every_code_cell_is_introduced(notebook):
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")


def test_links_lead_to_files(notebook):
    for cell in (c for c in notebook.cells if c.cell_type == "markdown"):
        for target in re.findall(r"\]\(([\w./]+\.(?:ipynb|py))\)", cell.source):
            assert (paths.NOTEBOOKS / target).is_file(), target


def test_imports_name_packages_of_the_first_level(notebook, request):
    if request.node.callspec.id == EXTENSIONS:
        pytest.skip("extensions are entries in tables of single modules")
    cells = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    nodes = [node for node in ast.walk(ast.parse(cells)) if isinstance(node, ast.ImportFrom)]
    assert all(len(node.module.split(".")) <= 2 for node in nodes if node.module.startswith("erlab"))


@pytest.mark.parametrize("package", ["erlab", *(f"erlab.{n}" for n in erlab._PACKAGES)])
def test_packages_offer_the_names_they_list(package):
    module = erlab if package == "erlab" else getattr(erlab, package.partition(".")[2])
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None and name in dir(module)
    with pytest.raises(AttributeError, match="nonsense"):
        module.nonsense


def modules(*cells: str) -> set[str]:
    """Return the modules that a notebook of these cells depends on."""
    return set(cache.dependencies(cells, {}, {})["code"])


def test_names_are_followed_from_one_cell_to_the_next():
    code = modules("from erlab import results as evaluation", "this is no Python", "evaluation.claims.ledger()")
    assert "erlab.results.claims" in code and "erlab.results.imports" not in code


@pytest.mark.parametrize("stem", ["06_figures", "07_claims"])
def test_figures_and_claims_do_not_depend_on_what_serves(stem):
    code = modules(*cache.code_cells(paths.NOTEBOOKS / f"{stem}.ipynb"))
    packages = ("erlab.serving", "erlab.gateway", "erlab.users", "erlab.experiments")
    assert not [name for name in code if name.startswith(packages)]


def test_the_parts_of_the_gpu_notebook_that_need_no_gpu_run(tmp_path):
    notebook = nbformat.read(paths.NOTEBOOKS / "gpu.ipynb", as_version=4)
    notebook.cells = [c for c in notebook.cells if "gpu" not in c.metadata.get("tags", [])]
    nbformat.write(notebook, tmp_path / "gpu.ipynb")
    parameters = {"profile": "gpu-vllm", "results": str(tmp_path / "results")}
    executed = papermill.execute_notebook(
        tmp_path / "gpu.ipynb", tmp_path / "out.ipynb", parameters, cwd=paths.NOTEBOOKS, progress_bar=False
    )
    printed = "".join(o.get("text", "") for c in executed.cells for o in c.get("outputs", ()))
    assert "vllm serve" in printed and "trtllm-build" in printed
