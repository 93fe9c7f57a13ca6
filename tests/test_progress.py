"""Progress: from where work is done to where it shows."""

import io

from rich.console import Console

from erlab import progress
from erlab.terminal import Display


def shown(tmp_path, monkeypatch, **console):
    out = io.StringIO()
    display = Display(2, Console(file=out, width=200, **console))
    monkeypatch.setenv(progress.CHANNEL, str(tmp_path / "channel"))
    with display:
        display.begin("04_baselines", "input changed", 2)
        with display.following(tmp_path / "channel"):
            display.cell(1, 5)
            progress.report(1, 3, "system C, 8 users")
            progress.report(2, 3, "system C, 16 users")
        display.end("04_baselines: done in 2 min")
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


def test_a_bar_in_a_notebook_run_by_hand(monkeypatch, capsys):
    monkeypatch.delenv(progress.CHANNEL, raising=False)
    progress.report(0, 2, "engine a")
    progress.report(2, 2, "engines")
    err = capsys.readouterr().err
    assert "engine a: " in err and "2/2" in err
    assert progress._bar is None
