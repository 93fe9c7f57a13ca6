"""Whether a step has to run again: what it depended on when it finished, against what it depends on now.

A step's marker, ``steps/<name>.json`` in the results folder, is removed when the step starts and written last, so that
its existence means complete. Until then ``steps/<name>.begun.json`` stands for it, which names the files that lay
where the step writes and that no run of it made: they are never removed. Only code counts in a notebook: outputs, tags,
metadata and prose don't.
"""

import ast
import contextlib
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from erlab import fingerprint, textfiles
from erlab.errors import ErlabError

_MOST_BYTES = 256 * 2**20  # of a notebook


def read_notebook(notebook: Path) -> dict:
    """A notebook of format 4, as its JSON has it; ErlabError where the file is none."""
    if not notebook.exists():
        raise ErlabError(f"No notebook {notebook}: run erlab from a clone of its repository.")
    try:
        found = json.loads(textfiles.read(notebook, _MOST_BYTES))
    except (ValueError, RecursionError) as e:
        raise ErlabError(f"{notebook}: not a Jupyter notebook ({type(e).__name__}: {e}).") from None
    version = found.get("nbformat") if isinstance(found, dict) else None
    if type(version) is not int:
        raise ErlabError(f"{notebook}: not a Jupyter notebook (it names no format).")
    if version != 4:
        convert = f"jupyter nbconvert --to notebook --nbformat 4 --inplace {shlex.quote(str(notebook))}"
        raise ErlabError(f"{notebook}: its nbformat must be 4, which this converts it to: {convert}. Got {version}.")
    return found


def code_cells(notebook: Path) -> list[str]:
    """The source of a notebook's code cells."""
    try:
        cells = read_notebook(notebook)["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (KeyError, TypeError) as e:
        raise ErlabError(f"{notebook}: not a Jupyter notebook ({type(e).__name__}: {e}).") from None


def dependencies(cells: Iterable[str], parameters: Mapping, inputs: Mapping[str, str]) -> dict:
    """All that a step's result depends on, ready for JSON; `inputs` are hashes by file name."""
    cells = list(cells)
    sources = []
    for cell in cells:
        with contextlib.suppress(SyntaxError):  # shows when the cell runs
            ast.parse(source := _python(cell))
            sources.append(source)
    return {
        "notebook": fingerprint.of_text("\n\n".join(cells)),
        "parameters": json.loads(json.dumps(dict(parameters), sort_keys=True)),
        "code": dict(sorted(fingerprint.code_of("\n".join(sources)).items())),  # together: one cell's imports are all's
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
    found = _object(marker(results, step)) or {}
    whole = all(isinstance(found.get(key), dict) for key in ("parameters", "code", "inputs", "outputs"))
    return found if whole and "notebook" in found else None


def begin(results: Path, step: str, places: Iterable[Path]) -> None:
    """Replace a step's marker by the list of what lies at its places and is not its own."""
    there, own = times(places, results), made(results, step, places)
    others = {name: when for name, when in there.items() if name not in own}
    textfiles.save(_begun(results, step), json.dumps(others, indent=1))
    remove(results, step)


def save(results: Path, step: str, content: Mapping) -> None:
    textfiles.save(marker(results, step), json.dumps(content, indent=1))
    _begun(results, step).unlink(missing_ok=True)


def remove(results: Path, step: str) -> None:
    marker(results, step).unlink(missing_ok=True)


def made(results: Path, step: str, places: Iterable[Path]) -> set[str]:
    """The files at its places that a step's runs made, by their names: what its marker records or, where it was stopped,
    what came or changed since it began."""
    if found := load(results, step):
        return found["outputs"].keys() - found.get("others", ())
    others = _object(_begun(results, step))
    return set() if others is None else {n for n, when in times(places, results).items() if others.get(n) != when}


def times(places: Iterable[Path], results: Path) -> dict[str, int]:
    """When the files at these places were last written, in nanoseconds, by name as `hashes` names them."""
    files = [f for place in places for f in ([place] if place.is_file() else place.rglob("*")) if f.is_file()]
    return {_name(file, results): file.stat().st_mtime_ns for file in files}


def _begun(results: Path, step: str) -> Path:
    return results / "steps" / f"{step}.begun.json"


def _object(file: Path) -> dict | None:
    """A file's JSON object, None where there is none that can be read."""
    try:
        found = json.loads(textfiles.read(file))
    except (ErlabError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


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
        return f"{few(names)} changed"
    if names := _differences(found["inputs"], now["inputs"]):
        return f"input {few(names)} changed"
    for name, digest in found["outputs"].items():
        if not (results / name).is_file():
            return f"output {name} is missing"
        if fingerprint.of_file(results / name) != digest:
            return f"output {name} was changed"
    return None


def _differences(before: Mapping, after: Mapping) -> list[str]:
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def few(names: list[str]) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
