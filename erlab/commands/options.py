"""What the options of `erlab` allow, and those that several of its commands share.

What an option refuses is one line with its name: numbers come through a parser here, which leaves what is none to the
option's callback.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from erlab.errors import ErlabError
from erlab.serving import profiles
from erlab.spec import MOST_USERS


def must(allowed: str, fits: Callable[[object], bool]) -> Callable:
    """An option's callback, which refuses a given value (of several: any) that doesn't fit, by the option's name."""

    def check(option: typer.CallbackParam, given):
        for value in given if isinstance(given, (list, tuple)) else [given]:
            if value is not None and not fits(value):
                got = repr(value) if isinstance(value, str) else value
                raise ErlabError(f"{option.opts[0]} must {allowed}. Got {got}.")
        return given

    return check


def whole(text: str | int) -> int | str:
    """A whole number; what is none as it is, for `number` to refuse."""
    with contextlib.suppress(ValueError):
        return int(text)
    return text


def real(text: str | float) -> float | str:
    """A number with decimals; what is none as it is, for `number` to refuse."""
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def number(allowed: str, fits: Callable[[float], bool]) -> Callable:
    """`must` of an option whose parser is `whole` or `real`."""
    return must(allowed, lambda given: not isinstance(given, str) and fits(given))


def one_of(names: Callable[[], Iterable[str]]) -> Callable:
    """`must` of an option that takes one of these names, which are asked for where it is given."""

    def check(option: typer.CallbackParam, given: str | None):
        known = tuple(names()) if given is not None else ()
        return must(f"be one of {', '.join(known)}", known.__contains__)(option, given)

    return check


def _policies() -> Iterable[str]:
    from erlab.routing.policies import POLICIES  # numpy is slow to import, and help needs none of it

    return POLICIES


def _containers() -> Iterable[str]:
    from erlab.serving import nvidia

    return (*nvidia.CONTAINERS, "print")


def _is_folder(path: Path) -> bool:
    try:
        str(path).encode()  # notebooks and pyarrow take no other names
    except UnicodeError:
        return False
    return not any(place.exists() and not place.is_dir() for place in (path, *path.parents))


def _is_file(path: Path) -> bool:
    """Whether a file can be written there, which is known before what it is to hold has taken its time."""
    folder = next((place for place in path.absolute().parents if place.exists()), None)
    with contextlib.suppress(OSError, UnicodeError), tempfile.TemporaryFile(dir=folder):
        str(path).encode()  # pyarrow takes no other names
        return not path.is_dir() and _is_folder(path.parent)
    return False


def _is_address(text: str) -> bool:
    from erlab.serving import external

    with contextlib.suppress(ErlabError):
        return bool(external.checked(text))
    return False


def running(triton: str | None, upstream: str | None) -> str | None:
    """The one address of --triton and --upstream."""
    if upstream and triton:
        raise ErlabError(f"--upstream must not stand beside --triton. Got {upstream!r} and {triton!r}.")
    return upstream or triton


TEXT = must("not be empty", bool)
COUNT = number(f"be a whole number from 1 to {MOST_USERS}", lambda count: 1 <= count <= MOST_USERS)
POLICY, CONTAINER = one_of(_policies), one_of(_containers)
PORT = number("be a whole number from 1 to 65535", lambda port: 1 <= port <= 65535)
SHARE = number("be a number from 0 to 1", lambda share: 0 <= share <= 1)
FOLDER = must("be a folder, new or there already", _is_folder)
FILE = must("be a file, new or there already, where one can be written", _is_file)
TRITON = must("be HOST:PORT with a port from 1 to 65535", lambda text: "://" not in text and _is_address(text))
UPSTREAM = must("be http://HOST:PORT", lambda text: "://" in text and _is_address(text))

Profile = Annotated[
    str,
    typer.Option(help=f"Where the study runs, and how large: {', '.join(profiles.PROFILES)}.", metavar="NAME"),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="Prompts instead of the project's own: a folder of JSONL, a CSV or parquet file, "
        "a Hugging Face OWNER/NAME.",
        metavar="SOURCE",
        callback=TEXT,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option("--text", help="The column that holds the prompts, if not 'text'.", metavar="NAME", callback=TEXT),
]
Seed = Annotated[
    int,
    typer.Option(
        help="What all random draws start from.",
        parser=whole,
        callback=number("be a whole number from 0 to 4294967295", lambda seed: 0 <= seed < 2**32),  # as numpy takes it
    ),
]
Results = Annotated[
    Path | None,
    typer.Option(help="Folder of generated files, instead of data/results/PROFILE.", callback=FOLDER),
]
Figures = Annotated[Path | None, typer.Option(help="Folder of the figures, instead of figures.", callback=FOLDER)]
Triton = Annotated[
    str | None,
    typer.Option(
        help="A Triton server that holds the models, instead of an embedded one.",
        metavar="HOST:PORT",
        callback=TRITON,
    ),
]
Upstream = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server that you run, for all experts.",
        metavar="http://HOST:PORT",
        callback=UPSTREAM,
    ),
]
RecordFiles = Annotated[
    list[Path] | None,
    typer.Option("--records", help="Request records: a .parquet file or a folder; repeat for more.", metavar="PATH"),
]
MoreRecords = Annotated[
    list[Path] | None,
    typer.Argument(help="Request records, as with --records.", metavar="[PATH]...", show_default=False),
]
NewRecords = Annotated[Path, typer.Option("--out", help="Where the request records go.", callback=FILE)]
