"""Markers of finished steps and their comparison with the present code and inputs.

A step's marker, ``steps/<name>.json`` in the results folder, records what the result depends on. It is removed when the
step starts and written last: a step with a marker is complete. While a step runs, ``steps/<name>.begun.json`` lists the
files at its output places that no run of it made; these are never removed. Only the code of a notebook counts, not
outputs, tags, metadata and prose.
"""

import ast
import contextlib
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from erlab import fingerprint, textfiles
from erlab.errors import ErlabError

_MAX_BYTES = 256 * 2**20  # size of a notebook


def read_notebook(notebook: Path) -> dict:
    """Return the JSON of a notebook of format 4; raise ErlabError for any other file."""
    if not notebook.exists():
        raise ErlabError(f"No notebook {notebook}: run erlab from a clone of its repository.")
    try:
        content = json.loads(textfiles.read(notebook, _MAX_BYTES))
    except (ValueError, RecursionError) as e:
        raise ErlabError(f"{notebook}: not a Jupyter notebook ({type(e).__name__}: {e}).") from None
    version = content.get("nbformat") if isinstance(content, dict) else None
    if type(version) is not int:
        raise ErlabError(f"{notebook}: not a Jupyter notebook (it names no format).")
    if version != 4:
        command = f"jupyter nbconvert --to notebook --nbformat 4 --inplace {shlex.quote(str(notebook))}"
        raise ErlabError(f"{notebook}: its nbformat must be 4; convert it with: {command}. Got {version}.")
    return content


def code_cells(notebook: Path) -> list[str]:
    """Return the source of a notebook's code cells."""
    try:
        cells = read_notebook(notebook)["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (KeyError, TypeError) as e:
        raise ErlabError(f"{notebook}: not a Jupyter notebook ({type(e).__name__}: {e}).") from None


def dependencies(
    cells: Iterable[str], parameters: Mapping, inputs: Mapping[str, str], without: Iterable[str] = ()
) -> dict:
    """Return everything that a step's result depends on, ready for JSON.

    Args:
        inputs: SHA-256 of each input file by name.
        without: Modules that the step does not run, see `fingerprint.code_of`.
    """
    cells = list(cells)
    sources = []
    for cell in cells:
        with contextlib.suppress(SyntaxError):  # the cell fails when it runs
            ast.parse(source := _python(cell))
            sources.append(source)
    return {
        "notebook": fingerprint.of_text("\n\n".join(cells)),
        "parameters": json.loads(json.dumps(dict(parameters), sort_keys=True)),
        "code": dict(sorted(fingerprint.code_of("\n".join(sources), without).items())),  # one cell's imports are all'
        "inputs": dict(sorted(inputs.items())),
    }


def _python(cell: str) -> str:
    """Return a cell without IPython's magic and shell lines."""
    return "\n".join(line for line in cell.splitlines() if not line.lstrip().startswith(("%", "!")))


def hashes(places: Iterable[Path], results: Path) -> dict[str, str]:
    """Return the SHA-256 of all files at or under these places by name, relative to the results folder if inside."""
    digests = {file: digest for place in places for file, digest in fingerprint.of_tree(place).items()}
    return {_name(Path(file), results): digest for file, digest in digests.items()}


def _name(file: Path, results: Path) -> str:
    return str(file.relative_to(results) if file.is_relative_to(results) else file)


def marker(results: Path, step: str) -> Path:
    """Return the path of a step's marker."""
    return results / "steps" / f"{step}.json"


def load(results: Path, step: str) -> dict | None:
    """Return the marker of a finished step, None if there is none or it cannot be read."""
    content = _object(marker(results, step)) or {}
    complete = all(isinstance(content.get(key), dict) for key in ("parameters", "code", "inputs", "outputs"))
    return content if complete and "notebook" in content else None


def begin(results: Path, step: str, places: Iterable[Path]) -> None:
    """Replace a step's marker by the list of files at its places that the step did not make."""
    present, own = times(places, results), made(results, step, places)
    others = {name: time for name, time in present.items() if name not in own}
    textfiles.save(_begun(results, step), json.dumps(others, indent=1))
    remove(results, step)


def save(results: Path, step: str, content: Mapping) -> None:
    """Write the marker of a finished step."""
    textfiles.save(marker(results, step), json.dumps(content, indent=1))
    _begun(results, step).unlink(missing_ok=True)


def remove(results: Path, step: str) -> None:
    """Remove a step's marker."""
    marker(results, step).unlink(missing_ok=True)


def made(results: Path, step: str, places: Iterable[Path]) -> set[str]:
    """Return the names of the files at its places that a step made.

    The marker records them. If the step was interrupted, they are the files that changed since it began.
    """
    if finished := load(results, step):
        return finished["outputs"].keys() - finished.get("others", ())
    others = _object(_begun(results, step))
    return set() if others is None else {n for n, time in times(places, results).items() if others.get(n) != time}


def times(places: Iterable[Path], results: Path) -> dict[str, int]:
    """Return the modification times of the files at these places in nanoseconds, by name as in `hashes`."""
    files = [f for place in places for f in ([place] if place.is_file() else place.rglob("*")) if f.is_file()]
    return {_name(file, results): file.stat().st_mtime_ns for file in files}


def _begun(results: Path, step: str) -> Path:
    return results / "steps" / f"{step}.begun.json"


def _object(file: Path) -> dict | None:
    """Return the JSON object in a file, None if it cannot be read."""
    try:
        content = json.loads(textfiles.read(file))
    except (ErlabError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def stale(finished: Mapping | None, now: Mapping, results: Path) -> str | None:
    """Return the reason to run a step again, or None if it is up to date.

    Args:
        finished: The step's marker (`load`).
        now: What its result depends on now (`dependencies`).
    """
    if not finished:
        return "has not finished yet"
    if finished["notebook"] != now["notebook"]:
        return "the notebook's code changed"
    if names := _differences(finished["parameters"], now["parameters"]):
        before, after = finished["parameters"].get(names[0]), now["parameters"].get(names[0])
        return f"parameter {names[0]} was {before!r}, is {after!r}"
    if names := _differences(finished["code"], now["code"]):
        return f"{few(names)} changed"
    if names := _differences(finished["inputs"], now["inputs"]):
        return f"input {few(names)} changed"
    for name, digest in finished["outputs"].items():
        if not (results / name).is_file():
            return f"output {name} is missing"
        if fingerprint.of_file(results / name) != digest:
            return f"output {name} was changed"
    return None


def _differences(before: Mapping, after: Mapping) -> list[str]:
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def few(names: list[str]) -> str:
    """Return the first three names and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
