"""Progress of a run: bars in a terminal, plain lines elsewhere."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from erlab.textfiles import printable

_POLL_SECONDS = 0.2


class Display:
    """Lines for finished steps and, in a terminal only, bars for running steps."""

    def __init__(self, total: int, console: Console | None = None):
        self.console = console or Console()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._steps = self._bars.add_task("steps", total=total)
        self._running = {}  # bar of each running step

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bars.stop()

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def begin(self, step: str, reason: str, minutes: float | None) -> None:
        """Show that a step starts; `minutes` are None if they depend on an attached server."""
        self._running[step] = self._bars.add_task(step, total=None)
        expected = "its time depends on the server" if minutes is None else f"about {duration(minutes)}"
        self.line(f"{step}: running, {reason}; {expected}")

    def cell(self, step: str, done: int, total: int) -> None:
        """Show the number of finished code cells, in a terminal only."""
        self._move(step, done, total, "notebook cells")

    def update(self, step: str, done: int, total: int, label: str) -> None:
        """Show the progress that a step's notebook reports."""
        self._move(step, done, total, label)
        if not self.console.is_terminal:
            prefix = f"{step} " if len(self._running) > 1 else ""
            self.line(f"  {prefix}{done}/{total} {label}")

    def _move(self, step: str, done: int, total: int, label: str) -> None:
        self._bars.update(self._running[step], completed=done, total=total, description=printable(f"{step} · {label}"))

    def end(self, step: str, text: str) -> None:
        """Show the end of a step."""
        if step in self._running:
            self._bars.remove_task(self._running.pop(step))
        self._bars.advance(self._steps)
        self.line(f"{step}: {text}")

    @contextlib.contextmanager
    def following(self, step: str, channel: Path) -> Iterator[None]:
        """Show as a step's progress what `erlab.progress.report` writes to a file within this context."""
        ended = threading.Event()
        channel.touch()

        def follow():
            with channel.open(encoding="utf-8") as file:
                rest = ""
                while True:
                    last_read = ended.wait(_POLL_SECONDS)
                    *lines, rest = (rest + file.read()).split("\n")
                    for line in lines:
                        self.update(step, **json.loads(line))
                    if last_read:
                        return

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def duration(minutes: float) -> str:
    """Format a duration for reading.

    >>> duration(0.05), duration(2.4), duration(90)
    ('3 s', '2 min', '1.5 h')
    """
    if minutes < 1:
        return f"{max(1, round(minutes * 60))} s"
    return f"{round(minutes)} min" if minutes < 60 else f"{minutes / 60:.1f} h"
