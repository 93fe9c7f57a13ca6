"""What a result depends on, as SHA-256: files, and the package's code that a piece of source can reach.

Code is followed statically from its imports, those inside functions included, through the modules of this package.
A module that is only named in a string (``python -m erlab.x``, a Triton model's one line) counts too, and so does a
file of a module's name beside it (a template). Code is compared by its meaning: comments, formatting, docstrings and
type hints don't count.

>>> sorted(code_of("from erlab import errors"))
['erlab', 'erlab.errors']
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
LARGE = 2**30  # bytes
_NAMED = re.compile(rf"\b{PACKAGE.name}(?:\.\w+)+")


def of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 of a file's content; hashed again only after its size or time has changed. A file above `LARGE`, such as
    an engine of a 70B model, is not read: its size and time stand for it."""
    status = Path(path).stat()
    if status.st_size > LARGE:
        return of_text(f"{status.st_size} {status.st_mtime_ns}")
    return _of_file(Path(path), status.st_size, status.st_mtime_ns)


def of_tree(path: Path) -> dict[str, str]:
    """The files at or under `path` and their SHA-256, without hidden ones; empty where there are none."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    visible = [f for f in files if f.is_file() and not any(p.startswith(".") for p in f.relative_to(path.parent).parts)]
    return {str(f): of_file(f) for f in visible}


def of_code(module: str, without: Iterable[str] = ()) -> str:
    """Return one hash of the code of `module` (such as ``erlab.gateway``) and of all it can reach; see `code_of`."""
    return of_text(repr(sorted(code_of(f"import {module}", without).items())))


def code_of(source: str, without: Iterable[str] = ()) -> dict[str, str]:
    """Find the package's modules that a piece of source can reach.

    Args:
        source: Python code.
        without: Modules, or packages with all that is in them, that are known not to run: they are left out.

    Returns:
        The hash of each module by its name.
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
    """The file of one of the package's modules, None where there is no such module."""
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
    """A module's hash and the modules it mentions."""
    tree = ast.parse(file.read_bytes())
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    mentions = frozenset(_mentions(tree, package))
    return of_text(ast.dump(_Meaning().visit(tree))), mentions


class _Meaning(ast.NodeTransformer):
    """Drops what does not change what code does: docstrings and other lone strings, and type hints.

    A class's annotated names stay, for they are a dataclass's fields; what they are annotated with goes.
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
    """The package's modules that code inside `package` mentions, with the packages that they lie in."""
    found = set()
    for name in set(_names(tree, package)):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if _file(module := ".".join(parts[:end])):
                found.add(module)
        if _file(main := f"{name}.__main__"):
            found.add(main)
    return found


def _names(tree: ast.Module, package: str) -> Iterator[str]:
    """Dotted names that may be modules: imported ones, attributes of imported ones, and those in strings."""
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
    """An attribute's root, None where that is no name, and the names after it."""
    rest, node = [node.attr], node.value
    while isinstance(node, ast.Attribute):
        rest, node = [node.attr, *rest], node.value
    return node.id if isinstance(node, ast.Name) else None, ".".join(rest)
