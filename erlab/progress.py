"""How far a long piece of work has come: a bar in a notebook or terminal, lines for `erlab reproduce`.

Where nobody looks (the output goes to a file or pipe) nothing is shown.

>>> report(1, 3, "system C, 8 users")  # doctest: +SKIP
"""

import json
import os

CHANNEL = "ERLAB_PROGRESS"  # environment variable: the file that `erlab reproduce` follows

_bar = None


def report(done: int, total: int, label: str) -> None:
    """Say that `done` of `total` pieces are finished and what comes next (`label`)."""
    if channel := os.environ.get(CHANNEL):
        with open(channel, "a", encoding="utf-8") as file:
            file.write(json.dumps({"done": done, "total": total, "label": label}) + "\n")
    else:
        _show(done, total, label)


def _show(done: int, total: int, label: str) -> None:
    global _bar
    from tqdm.auto import tqdm
    from tqdm.notebook import tqdm_notebook

    if _bar is None or _bar.total != total or _bar.n > done:
        if _bar is not None:
            _bar.close()
        in_notebook = issubclass(tqdm, tqdm_notebook)  # never a terminal, yet shown
        _bar = tqdm(total=total, disable=False if in_notebook else None)  # None: where standard error is no terminal
    _bar.set_description(label, refresh=False)
    _bar.n = done
    _bar.refresh()
    if done >= total:
        _bar.close()
        _bar = None
