"""Progress: from where work is done to where it shows."""

import io
import os
import subprocess
import sys
import termios

import nbformat
from nbclient import NotebookClient
from rich.console import Console

from erlab import progress
from erlab.study.terminal import Display


def shown(tmp_path, monkeypatch, **console):
    out = io.StringIO()
    display = Display(2, Console(file=out, width=200, **console))
    monkeypatch.setenv(progress.CHANNEL, str(tmp_path / "channel"))
    with display:
        display.begin("04_baselines", "input changed", 2)
        with display.following("04_baselines", tmp_path / "channel"):
            display.cell("04_baselines", 1, 5)
            progress.report(1, 3, "system C, 8 users")
            progress.report(2, 3, "system C, 16 users")
        display.end("04_baselines", "done in 2 min")
    return out.getvalue()


def test_plain_lines_where_it_is_no_terminal(tmp_path, monkeypatch):
    assert shown(tmp_path, monkeypatch, force_terminal=False).splitlines() == [
        "04_baselines: running, input changed; about 2 min",
        "  1/3 system C, 8 users",
        "  2/3 system C, 16 users",
        "04_baselines: done in 2 min",
    ]


def test_bars_in_a_terminal(tmp_path, monkeypatch):
    text = shown(tmp_path, monkeypatch, force_terminal=True)
    assert "04_baselines: done in 2 min" in text and "\x1b[" in text and "  1/3 system" not in text


WORK = "from erlab import progress; progress.report(0, 2, 'engine a'); progress.report(2, 2, 'engines')"


def test_a_bar_in_a_notebook_run_by_hand(monkeypatch):
    monkeypatch.delenv(progress.CHANNEL, raising=False)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WORK)])
    NotebookClient(book, timeout=60).execute()
    shown = [output.output_type for output in book.cells[0].outputs]
    (widgets,) = book.metadata.widgets.values()
    texts = [str(widget["state"].get("value")) for widget in widgets["state"].values()]
    assert shown == ["display_data"] and any("engines:" in text for text in texts) and any("2/2" in t for t in texts)


def test_a_bar_in_a_terminal_and_nothing_in_a_file(tmp_path):
    seen, inside = os.openpty()
    termios.tcsetwinsize(inside, (24, 80))
    environment = {name: value for name, value in os.environ.items() if name != progress.CHANNEL}
    subprocess.run([sys.executable, "-c", WORK], stderr=inside, env=environment, check=True, timeout=60)
    assert b"engine a: " in os.read(seen, 10_000)
    for end in (seen, inside):
        os.close(end)
    with open(tmp_path / "errors", "w") as file:
        subprocess.run([sys.executable, "-c", WORK], stderr=file, env=environment, check=True, timeout=60)
    assert (tmp_path / "errors").read_text() == ""
