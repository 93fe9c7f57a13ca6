"""The package's layout: imports run down its layers, and no modules import each other in a circle."""

from graphlib import TopologicalSorter

import grimp
from importlinter.api import read_configuration
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from erlab import paths

CONFIGURATION = str(paths.ROOT / "pyproject.toml")


def test_imports_run_down_the_layers(capfd):
    status = lint_imports(config_filename=CONFIGURATION, no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capfd.readouterr().out


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions and for type checkers count; a package that loads its own modules does not."""
    graph = grimp.build_graph("erlab", cache_dir=None)
    imports = {
        module: {other for other in graph.find_modules_directly_imported_by(module) if not module.startswith(f"{other}.")}
        for module in graph.modules
    }
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_the_layers_are_the_rooms():
    layers = read_configuration(CONFIGURATION)["contracts_options"][0]["layers"]
    named = {name.strip() for layer in layers for name in layer.split(":")}
    there = {p.stem for p in (paths.ROOT / "erlab").glob("[!_]*") if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert named == there
