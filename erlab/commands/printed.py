"""Output of the commands: lines, tables, progress and error lines.

Names, terms and paths may come from untrusted files: control characters are printed as replacement characters.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import typer

from erlab.study import ends
from erlab.textfiles import printable


def leave(message: str, status: int) -> NoReturn:
    """Print an error line and exit with this status."""
    with contextlib.suppress(OSError):  # the reader may be gone
        print(f"erlab: {printable(' '.join(message.split()))}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Python would flush again at exit
        ends.silence(1)
    raise typer.Exit(status)


def line(text: object) -> None:
    """Print one or several lines."""
    with _output():
        print("\n".join(map(printable, str(text).split("\n"))))


def status(text: str) -> None:
    """Show the current step on one line that the next one replaces, in a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{printable(text)}", end="", file=sys.stderr, flush=True)


def table(title: str, frame, lines: bool = False) -> None:
    """Print a data frame as a table; unknown values are empty."""
    import pandas as pd

    def text(value) -> str:
        return "" if pd.isna(value) else f"{value:.4g}" if isinstance(value, float) else str(value)

    rows = [[text(value) for value in row] for row in frame.itertuples(index=False)]
    text_table(title, tuple(map(str, frame.columns)), rows, lines)


def text_table(title: str, columns: tuple[str, ...], rows: list, lines: bool = False) -> None:
    """Print a table of texts; `lines` separates its rows by lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left", show_lines=lines)
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
    console = Console()
    with _output():
        console.print(table) if console.is_terminal else Console(width=160).print(table)


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Flush what is printed within; an error names the output."""
    try:
        yield
        sys.stdout.flush()
    except OSError as e:
        e.filename = "the output"
        raise


@contextlib.contextmanager
def requests_bar() -> Iterator[Callable[[int], None]]:
    """Yield a function that shows the number of finished requests, in a terminal only."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn("line"), TextColumn("{task.completed} requests"), TimeElapsedColumn()
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bars:
        task = bars.add_task("")
        yield lambda ended: bars.update(task, completed=ended)
