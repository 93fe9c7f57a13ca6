"""Whether a step has to run again: what it depended on when it finished, against what it depends on now.

A step's marker, ``steps/<name>.json`` in the results folder, is removed when the step starts and written last, so that
its existence means complete. Only code counts in a notebook: outputs, tags, metadata and prose don't.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from erlab import fingerprint, textfiles
from erlab.errors import ErlabError


def code_cells(notebook: Path) -> list[str]:
    """The source of a notebook's code cells."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except FileNotFoundError:
        raise ErlabError(f"No notebook {notebook}: run erlab from a clone of its repository.") from None
    except (ValueError, KeyError, TypeError) as e:
        raise ErlabError(f"{notebook}: not a Jupyter notebook ({type(e).__name__}: {e}).") from None


def dependencies(cells: Iterable[str], parameters: Mapping, inputs: Mapping[str, str]) -> dict:
    """All that a step's result depends on, ready for JSON; `inputs` are hashes by file name."""
    cells = list(cells)
    code: dict[str, str] = {}
    for cell in cells:
        with contextlib.suppress(SyntaxError):  # shows when the cell runs
            code |= fingerprint.code_of(_python(cell))
    return {
        "notebook": fingerprint.of_text("\n\n".join(cells)),
        "parameters": json.loads(json.dumps(dict(parameters), sort_keys=True)),
        "code": dict(sorted(code.items())),
        "inputs": dict(sorted(inputs.items())),
    }


def _python(cell: str) -> str:
    """A cell without the lines that only IPython knows."""
    return "\n".join(line for line in cell.splitlines() if not line.lstrip().startswith(("%", "!")))


def hashes(places: Iterable[Path], results: Path) -> dict[str, str]:
    """The files at these places and their hashes; names inside the results folder are relative to it."""
    found = {file: digest for place in places for file, digest in fingerprint.of_tree(place).items()}
    return {_name(Path(file), results): digest for file, digest in found.items()}


def _name(file: Path, results: Path) -> str:
    return str(file.relative_to(results) if file.is_relative_to(results) else file)


def marker(results: Path, step: str) -> Path:
    return results / "steps" / f"{step}.json"


def load(results: Path, step: str) -> dict | None:
    """The marker of a finished step, None where there is none that can be read."""
    try:
        found = json.loads(marker(results, step).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if {"notebook", "parameters", "code", "inputs", "outputs"} <= found.keys() else None


def save(results: Path, step: str, content: Mapping) -> None:
    textfiles.save(marker(results, step), json.dumps(content, indent=1))


def remove(results: Path, step: str) -> None:
    marker(results, step).unlink(missing_ok=True)


def stale(found: Mapping | None, now: Mapping, results: Path) -> str | None:
    """Why a step with the marker `found` has to run again, None where nothing that it depends on has changed."""
    if not found:
        return "has not finished yet"
    if found["notebook"] != now["notebook"]:
        return "the notebook's code changed"
    if names := _differences(found["parameters"], now["parameters"]):
        before, after = found["parameters"].get(names[0]), now["parameters"].get(names[0])
        return f"parameter {names[0]} was {before!r}, is {after!r}"
    if names := _differences(found["code"], now["code"]):
        return f"{_few(names)} changed"
    if names := _differences(found["inputs"], now["inputs"]):
        return f"input {_few(names)} changed"
    for name, digest in found["outputs"].items():
        if not (results / name).is_file():
            return f"output {name} is missing"
        if fingerprint.of_file(results / name) != digest:
            return f"output {name} was changed"
    return None


def _differences(before: Mapping, after: Mapping) -> list[str]:
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
