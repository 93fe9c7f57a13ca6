"""Progress of long tasks: a bar in a notebook or terminal, lines for `erlab reproduce`.

Nothing is shown if the output is a file or pipe.

>>> report(1, 3, "system C, 8 users")  # doctest: +SKIP
"""

import json
import os

CHANNEL = "ERLAB_PROGRESS"  # environment variable: file that `erlab reproduce` reads

_bar = None


def report(done: int, total: int, label: str) -> None:
    """Report that `done` of `total` parts are finished; `label` names the next part."""
    if channel := os.environ.get(CHANNEL):
        with open(channel, "a", encoding="utf-8") as file:
            file.write(json.dumps({"done": done, "total": total, "label": label}) + "\n")
    else:
        _show(done, total, label)


def _show(done: int, total: int, label: str) -> None:
    global _bar
    # Imported here: most processes that import this module report to the channel.
    from tqdm.auto import tqdm
    from tqdm.notebook import tqdm_notebook

    if _bar is None or _bar.total != total or _bar.n > done:
        if _bar is not None:
            _bar.close()
        in_notebook = issubclass(tqdm, tqdm_notebook)  # shown, although it is not a terminal
        _bar = tqdm(total=total, disable=False if in_notebook else None)  # None: off if stderr is no terminal
    _bar.set_description(label, refresh=False)
    _bar.n = done
    _bar.refresh()
    if done >= total:
        _bar.close()
        _bar = None
