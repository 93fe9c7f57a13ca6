"""Options that several commands share, and checks of option values.

A wrong value is one line that names the option. Parsers of numbers return text that is no number unchanged, so that the
option's callback refuses it with the allowed values.
"""

import contextlib
import importlib
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from erlab.errors import ErlabError
from erlab.serving import profiles
from erlab.spec import MOST_USERS


def must(allowed: str, fits: Callable[[object], bool]) -> Callable:
    """Return an option callback that refuses wrong values.

    Args:
        allowed: Allowed values, as they follow "must" in the error.
        fits: Whether a value is allowed; called for every value of a repeated option.
    """

    def check(option: typer.CallbackParam, given):
        for value in given if isinstance(given, (list, tuple)) else [given]:
            if value is not None and not fits(value):
                got = repr(value) if isinstance(value, str) else value
                raise ErlabError(f"{option.opts[0]} must {allowed}. Got {got}.")
        return given

    return check


def whole(text: str | int) -> int | str:
    """Parse a whole number; return other text unchanged for `number` to refuse."""
    with contextlib.suppress(ValueError):
        return int(text)
    return text


def real(text: str | float) -> float | str:
    """Parse a decimal number; return other text unchanged for `number` to refuse."""
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def number(allowed: str, fits: Callable[[float], bool]) -> Callable:
    """Return the callback (`must`) of an option whose parser is `whole` or `real`."""
    return must(allowed, lambda given: not isinstance(given, str) and fits(given))


def one_of(names: str | Callable[[], Iterable[str]]) -> Callable:
    """Return the callback of an option that takes one of these names, which are looked up only if it is given.

    Args:
        names: A registry (`names_of`), or a function that returns the names.
    """

    def check(option: typer.CallbackParam, given: str | None):
        known = () if given is None else names_of(names) if isinstance(names, str) else tuple(names())
        return must(f"be one of {', '.join(known)}", known.__contains__)(option, given)

    return check


def each_of(registry: str) -> Callable:
    """Return the callback of a repeated option that takes names in a registry."""

    def check(option: typer.CallbackParam, given: list[str] | None):
        for name in given or ():
            one_of(registry)(option, name)
        return given

    return check


_REGISTRIES = {  # slow to import: they bring numpy
    "policies": ("erlab.routing.policies", "POLICIES"),
    "gateway policies": ("erlab.routing.policies", "gateway_policies"),
    "traces": ("erlab.prompts.traces", "TRACES"),
    "figures": ("erlab.figures", "MORE"),
    "importers": ("erlab.quality.importers", "IMPORTERS"),
    "routers": ("erlab.quality.routers", "RULES"),
    "features": ("erlab.routing.features", "FEATURES"),
    "clusterers": ("erlab.routing.clusterers", "CLUSTERERS"),
}


def names_of(registry: str) -> tuple[str, ...]:
    """Return the names in a registry."""
    module, attribute = _REGISTRIES[registry]
    found = getattr(importlib.import_module(module), attribute)
    return tuple(found() if callable(found) else found)


class Command(typer.core.TyperCommand):
    """Command whose options' help may contain the names in a registry, such as ``{policies}``."""

    def format_help(self, ctx, formatter):
        from typer import rich_utils

        rich_utils.DEFAULT_STRING = "(default: {})"  # as in help texts
        for option in self.params:
            for registry in _REGISTRIES:
                if (mark := f"{{{registry}}}") in (option.help or ""):
                    option.help = option.help.replace(mark, ", ".join(names_of(registry)))
        super().format_help(ctx, formatter)


def _containers() -> Iterable[str]:
    from erlab.serving import nvidia

    return (*nvidia.CONTAINERS, "print")


def _is_folder(path: Path) -> bool:
    try:
        str(path).encode()  # notebooks and pyarrow accept no other names
    except UnicodeError:
        return False
    there = (place for place in (path, *path.parents) if place.exists() or place.is_symlink())
    return all(place.is_dir() for place in there)


def _is_file(path: Path) -> bool:
    """Whether a file can be written there, checked before its content is computed."""
    folder = next((place for place in path.absolute().parents if place.exists()), None)
    with contextlib.suppress(OSError, UnicodeError), tempfile.TemporaryFile(dir=folder):
        str(path).encode()  # pyarrow accepts no other names
        return not path.is_dir() and _is_folder(path.parent)
    return False


def _is_address(text: str) -> bool:
    from erlab.serving import external

    with contextlib.suppress(ErlabError):
        return bool(external.checked(text))
    return False


def attached_server(triton: str | None, upstream: str | None) -> str | None:
    """Return the address given by --triton or --upstream; refuse both together."""
    if upstream and triton:
        raise ErlabError(f"--upstream must not stand beside --triton. Got {upstream!r} and {triton!r}.")
    return upstream or triton


TEXT = must("not be empty", bool)
COUNT = number(f"be a whole number from 1 to {MOST_USERS}", lambda count: 1 <= count <= MOST_USERS)
CONTAINER = one_of(_containers)
PORT = number("be a whole number from 1 to 65535", lambda port: 1 <= port <= 65535)
SHARE = number("be a number from 0 to 1", lambda share: 0 <= share <= 1)
FOLDER = must("be a folder, new or there already", _is_folder)
FILE = must("be a file, new or there already, where one can be written", _is_file)
PARQUET = must(
    "be a .parquet file, where one can be written (erlab export writes other formats)",
    lambda path: path.suffix == ".parquet" and _is_file(path),
)
TRITON = must("be HOST:PORT with a port from 1 to 65535", lambda text: "://" not in text and _is_address(text))
UPSTREAM = must("be http://HOST:PORT", lambda text: "://" in text and _is_address(text))

Profile = Annotated[
    str,
    typer.Option(help=f"Machine profile: {', '.join(profiles.PROFILES)}.", metavar="NAME"),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="Prompts: a folder of JSONL files, a JSONL, CSV or parquet file, a TOML list of datasets, or a Hugging "
        "Face dataset OWNER/NAME (default: the project's own prompts).",
        metavar="SOURCE",
        callback=TEXT,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        "--text",
        help="Column of the prompts, or a template such as '{question} {context}' (default: text).",
        metavar="NAME",
        callback=TEXT,
    ),
]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Leave out datasets of a list that are not available.")
]
Seed = Annotated[
    int,
    typer.Option(
        help="Random seed.",
        parser=whole,
        callback=number("be a whole number from 0 to 4294967295", lambda seed: 0 <= seed < 2**32),  # as numpy takes it
    ),
]
Repeat = Annotated[
    int,
    typer.Option(
        help="Repetitions of each measured load, with seeds from --seed on; figures then draw confidence bands.",
        parser=whole,
        callback=number("be a whole number from 1 to 1000", lambda repetitions: 1 <= repetitions <= 1000),
    ),
]
Results = Annotated[
    Path | None,
    typer.Option(help="Results folder (default: data/results/PROFILE).", callback=FOLDER),
]
Figures = Annotated[Path | None, typer.Option(help="Folder for the figures (default: figures).", callback=FOLDER)]


def _running(server: str, metavar: str, check: Callable):
    """Return the option that takes the address of a running server."""
    return typer.Option(help=f"Running {server} (default: erlab starts its own).", metavar=metavar, callback=check)


Triton = Annotated[str | None, _running("Triton server that holds the models", "HOST:PORT", TRITON)]
Upstream = Annotated[
    str | None, _running("OpenAI-compatible server that serves all experts", "http://HOST:PORT", UPSTREAM)
]
RecordFiles = Annotated[
    list[Path] | None,
    typer.Option("--records", help="Request records: a .parquet file or a folder; repeat for several.", metavar="PATH"),
]
MoreRecords = Annotated[
    list[Path] | None,
    typer.Argument(help="Request records, as with --records.", metavar="[PATH]...", show_default=False),
]
NewRecords = Annotated[Path, typer.Option("--out", help="Parquet file for the request records.", callback=PARQUET)]


def once(option: str, what: str, pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs of a repeated option; raises ErlabError if one names `what` twice."""
    values = {}
    for name, value in pairs:
        if name in values:
            raise ErlabError(f"{option} must name each {what} once. Got {name} twice.")
        values[name] = value
    return values
