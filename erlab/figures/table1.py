"""Table I: systems, their counterparts in the paper, and their numbers of requests."""

import pandas as pd
from matplotlib.figure import Figure

from erlab.figures import curves, style
from erlab.results import metrics, selection, tables
from erlab.results.records import Records

CAPTION = "Table I: the systems, their counterparts in the paper, and the requests sent to them."
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
    """Describe each system and count its requests.

    Returns:
        One row per (paper, system, source): fields of its runs' descriptions (NA if unknown), router, loads, requests,
        failed. `attrs`: provenance.
    """
    requests, keys = selection.systems(records), ["paper", "system", "source"]
    counted = requests[keys].assign(router=requests["cluster"].notna(), failed=~metrics.finished(requests))
    counts = counted.groupby(keys, dropna=False).agg({"router": ["any", "size"], "failed": "sum"}).to_numpy()
    runs = requests.drop_duplicates([*keys, "users", "run_id"])
    runs = runs.assign(**{f: selection.described(records, runs, f) for f in _FIELDS})
    rows = []
    for ((paper, system, source), group), (router, count, failed) in zip(runs.groupby(keys, dropna=False), counts):
        loads = sorted(group["users"].unique())
        rows.append(
            {"paper": paper, "system": system, "source": source}
            | {f: _common(group[f]) for f in _FIELDS}
            | {"router": bool(router)}
            | {"loads": f"{loads[0]}–{loads[-1]}" if len(loads) > 1 else f"{loads[0]}"}
            | {"requests": int(count), "failed": int(failed)}
        )
    table = pd.DataFrame(rows)
    table.attrs = {"provenance": curves.attributes(records)["provenance"]}
    return table


def files(table: pd.DataFrame) -> dict[str, str]:
    """Write the table as Markdown."""
    return {"table1.md": tables.markdown(shown(table))}


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Select the columns of Table I under their headings."""
    return table[list(_SHOWN)].rename(columns={k: v.replace("\n", " ") for k, v in _SHOWN.items()})


@style.context()
def plot(table: pd.DataFrame) -> Figure:
    """Draw the table."""
    text = table[list(_SHOWN)].astype(object).where(table[list(_SHOWN)].notna(), "–")
    text = text.map(lambda value: f"{value:,}" if isinstance(value, int) else str(value))
    for column in ("plays", "title"):
        text[column] = text[column].str.replace(", ", "\n", n=1)
    fig = style.figure(style.DOUBLE, 0.4 + 0.3 * (len(text) + 1), diagram=True)
    ax = fig.subplots()
    ax.axis("off")
    total = sum(_WIDTHS)
    grid = ax.table(text.to_numpy(), colLabels=list(_SHOWN.values()), colWidths=[w / total for w in _WIDTHS],
                     cellLoc="left", colLoc="left", edges="horizontal", bbox=[0, 0, 1, 1])  # fmt: skip
    grid.auto_set_font_size(False)
    grid.set_fontsize(7 * fig.get_figwidth() / style.DOUBLE)
    for (row, _), cell in grid.get_celld().items():
        cell.set(linewidth=0.5, edgecolor="#999999")
        cell.PAD = 0.03
        if row == 0:
            cell.set_text_props(weight="bold")
    style.note(fig, table.attrs["provenance"])
    return fig


def _common(values: pd.Series):
    """Return the known value; several ones joined by commas, NA for none, and integers as int."""
    known = sorted(values.dropna().unique(), key=str)
    known = [int(v) if isinstance(v, float) and v.is_integer() else v for v in known]
    if len(known) > 1:
        return ", ".join(map(str, known))
    return known[0] if known else pd.NA
