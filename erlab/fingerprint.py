"""Hashes (SHA-256) of what a result depends on: files, and the package's code that a source can reach.

Imports, also those inside functions, are followed statically through the modules of this package. A module named in a
string (``python -m erlab.x``, the code of a Triton model) counts as imported, and a file with a module's name beside it
(a template) as part of the module. Comments, formatting, docstrings and type hints do not count.

>>> sorted(code_of("from erlab import errors"))
['erlab', 'erlab.errors']
"""

import ast
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
LARGE = 2**30  # bytes
_NAMED = re.compile(rf"\b{PACKAGE.name}(?:\.\w+)+")


def of_text(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def of_parts(parts: list) -> str:
    """Return the SHA-256 of values that JSON can hold; the order of keys does not count."""
    return of_text(json.dumps(parts, sort_keys=True))


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, cached until its size or time changes.

    A file above `LARGE`, such as an engine of a 70B model, is hashed by its size and time.
    """
    status = Path(path).stat()
    if status.st_size > LARGE:
        return of_text(f"{status.st_size} {status.st_mtime_ns}")
    return _of_file(Path(path), status.st_size, status.st_mtime_ns)


def of_tree(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each file at or under `path` that is not hidden."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    visible = [f for f in files if f.is_file() and not any(p.startswith(".") for p in f.relative_to(path.parent).parts)]
    return {str(f): of_file(f) for f in visible}


def of_code(module: str, without: Iterable[str] = ()) -> str:
    """Return one hash of a module, such as ``erlab.gateway``, and of all modules it can reach (see `code_of`)."""
    return of_text(repr(sorted(code_of(f"import {module}", without).items())))


def code_of(source: str, without: Iterable[str] = ()) -> dict[str, str]:
    """Find the package's modules that a source can reach.

    Args:
        without: Modules and packages to leave out, since they do not run.
    """
    left_out = tuple(without)
    reached: dict[str, str] = {}
    waiting = _mentions(ast.parse(source), "")
    while waiting:
        module = waiting.pop()
        if module in reached or f"{module}.".startswith(tuple(f"{name}." for name in left_out)):
            continue
        file = _file(module)
        status = file.stat()
        digest, mentions = _of_module(module, file, status.st_size, status.st_mtime_ns)
        companions = [of_file(f) for f in _companions(file)]
        reached[module] = of_text(" ".join([digest, *companions])) if companions else digest
        waiting |= mentions
    return reached


def _companions(file: Path) -> list[Path]:
    """Return the files that belong to a module: those of its name or, of a package, all that are no Python code."""
    named = file.parent.glob("*" if file.name == "__init__.py" else f"{file.stem}.*")
    return sorted(f for f in named if f.suffix != ".py" and f.is_file())


def _file(module: str) -> Path | None:
    """Return the file of a module of the package, None where there is no such module."""
    package, *parts = module.split(".")
    if package != PACKAGE.name:
        return None
    place = PACKAGE.joinpath(*parts)
    return next((f for f in (place / "__init__.py", place.with_suffix(".py")) if f.is_file()), None)


@functools.cache
def _of_file(path: Path, size: int, time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _of_module(module: str, file: Path, size: int, time: int) -> tuple[str, frozenset[str]]:
    """Return a module's hash and the modules it mentions."""
    tree = ast.parse(file.read_bytes())
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    mentions = frozenset(_mentions(tree, package))
    return of_text(ast.dump(_Meaning().visit(tree))), mentions


class _Meaning(ast.NodeTransformer):
    """Removal of docstrings, other constant expressions and type hints.

    Annotated names stay, since they are the fields of a dataclass; their annotations are removed.
    """

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        self.generic_visit(node)
        return None if isinstance(node.value, ast.Constant) else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node


def _mentions(tree: ast.Module, package: str) -> set[str]:
    """Return the modules, and packages around them, that code inside `package` mentions."""
    modules = set()
    for name in set(_names(tree, package)):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if _file(module := ".".join(parts[:end])):
                modules.add(module)
        if _file(main := f"{name}.__main__"):
            modules.add(main)
    return modules


def _names(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield dotted names that may be modules: imports, attributes of imports, and names in strings."""
    local = {}
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                top = alias.name.partition(".")[0]
                local[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            outer = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*outer, *([node.module] if node.module else [])])
            yield base
            for alias in node.names:
                yield f"{base}.{alias.name}"
                local[alias.asname or alias.name] = f"{base}.{alias.name}"
    docstrings = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            root, rest = _dotted(node)
            if root in local:
                yield f"{local[root]}.{rest}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from _NAMED.findall(node.value)


def _dotted(node: ast.Attribute) -> tuple[str | None, str]:
    """Return the root name of an attribute, None where it is no name, and the names after it."""
    rest, node = [node.attr], node.value
    while isinstance(node, ast.Attribute):
        rest, node = [node.attr, *rest], node.value
    return node.id if isinstance(node, ast.Name) else None, ".".join(rest)
