"""Table I: the systems measured, what of the paper each plays, and how many requests it answered."""

import pandas as pd
from matplotlib.figure import Figure

from erlab.figures import style
from erlab.results import metrics, selection, tables
from erlab.results.records import Records

CAPTION = "Table I: the systems, what of the paper each plays, and the requests it was given."
_FIELDS = ["plays", "title", "precision", "count", "cores", "max_batch_size", "kv_tokens"]
_SHOWN = {
    "system": "System",
    "plays": "In the paper",
    "title": "Here",
    "source": "Source",
    "max_batch_size": "Batch\nlimit",
    "kv_tokens": "KV\ntokens",
    "loads": "Users",
    "requests": "Requests",
    "failed": "Failed",
}
_WIDTHS = [0.65, 1.5, 1.5, 0.75, 0.5, 0.7, 0.55, 0.65, 0.5]


def data(records: Records) -> pd.DataFrame:
    """A row a (paper, system, source): what its runs' descriptions say (NA if they don't), loads, requests, failed."""
    requests, keys = selection.systems(records), ["paper", "system", "source"]
    counted = requests[keys].assign(router=requests["cluster"].notna(), failed=~metrics.finished(requests))
    counts = counted.groupby(keys, dropna=False).agg({"router": ["any", "size"], "failed": "sum"}).to_numpy()
    runs = requests.drop_duplicates([*keys, "users", "run_id"])
    runs = runs.assign(**{f: selection.described(records, runs, f) for f in _FIELDS})
    rows = []
    for ((paper, system, source), mine), (router, count, failed) in zip(runs.groupby(keys, dropna=False), counts):
        loads = sorted(mine["users"].unique())
        rows.append(
            {"paper": paper, "system": system, "source": source}
            | {f: _only(mine[f]) for f in _FIELDS}
            | {"router": bool(router)}
            | {"loads": f"{loads[0]}–{loads[-1]}" if len(loads) > 1 else f"{loads[0]}"}
            | {"requests": int(count), "failed": int(failed)}
        )
    return pd.DataFrame(rows)


def files(records: Records) -> dict[str, str]:
    """The same table as Markdown."""
    return {"table1.md": tables.markdown(shown(data(records)))}


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns and headings for readers."""
    return frame[list(_SHOWN)].rename(columns={k: v.replace("\n", " ") for k, v in _SHOWN.items()})


@style.context()
def plot(records: Records) -> Figure:
    """The table, drawn."""
    frame = data(records)
    text = frame[list(_SHOWN)].astype(object).where(frame[list(_SHOWN)].notna(), "–")
    text = text.map(lambda value: f"{value:,}" if isinstance(value, int) else str(value))
    for column in ("plays", "title"):
        text[column] = text[column].str.replace(", ", "\n", n=1)
    fig = style.figure(style.DOUBLE, 0.4 + 0.3 * (len(text) + 1), diagram=True)
    ax = fig.subplots()
    ax.axis("off")
    total = sum(_WIDTHS)
    table = ax.table(text.to_numpy(), colLabels=list(_SHOWN.values()), colWidths=[w / total for w in _WIDTHS],
                     cellLoc="left", colLoc="left", edges="horizontal", bbox=[0, 0, 1, 1])  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(7 * fig.get_figwidth() / style.DOUBLE)
    for (row, _), cell in table.get_celld().items():
        cell.set(linewidth=0.5, edgecolor="#999999")
        cell.PAD = 0.03
        if row == 0:
            cell.set_text_props(weight="bold")
    style.footer(fig, records, selection.systems(records))
    return fig


def _only(values: pd.Series):
    """What the runs say, where they agree; several values joined. A whole number is one though others are unknown."""
    found = sorted(values.dropna().unique(), key=str)
    found = [int(v) if isinstance(v, float) and v.is_integer() else v for v in found]
    if len(found) > 1:
        return ", ".join(map(str, found))
    return found[0] if found else pd.NA
