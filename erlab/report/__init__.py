"""Report of a study: verdicts, figures, systems and provenance.

report.html is one self-contained page, report.md the same text in Markdown.

    from erlab import report
    from erlab.results import claims, records

    study = records.read("data/results/laptop/records")
    report.build("data/results/laptop", study, "figures", claims.ledger(study), manifest)
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from erlab import figures, paper, textfiles
from erlab.errors import ErlabError
from erlab.figures import FigureData, curves, fig7, style, table1
from erlab.report import links
from erlab.results import claims, metrics, selection, tables
from erlab.results.checks import CHECKS
from erlab.results.claims import HOLDS, NOISE, NOT_RUNNABLE
from erlab.results.records import Records, at_hand
from erlab.serving import profiles

_PAGES = ("report.md", "report.html")  # each has a template of its name
_SUMMARY = {
    "system": "System",
    "source": "Source",
    "users": "Users",
    "requests": "Requests",
    "failed": "Failed",
    "ttft_median_s": "TTFT median (s)",
    "ttft_p95_s": "TTFT p95 (s)",
    "tpot_median_ms": "TPOT median (ms)",
    "e2e_median_s": "Response median (s)",
    "e2e_p95_s": "Response p95 (s)",
    "routing_median_ms": "Routing decision median (ms)",
    "output_throughput": "Output tokens/s",
    "request_throughput": "Requests/s",
}
_SURVIVAL = {
    "statement": "Claim",
    "by default": "Verdict by default",
    "survives": "Survives changes",
    "flips at": "Flips at",
}
_OVERHEAD = {
    "users": "Users",
    "requests": "Requests",
    "lost": "Lost",
    "tokens_missing": "Missing tokens",
    "disordered": "Out of order",
    "added p50 ms": "Added median (ms)",
    "added p99 ms": "Added p99 (ms)",
    "added at the start p50 ms": "Added median when all users start (ms)",
    "time scale": "Time scale",
}
_TARGETS = {name: name.capitalize() for name in ("against", "compared", "target", "reached", "met")}
_DATASETS = {
    "source": "Dataset",
    "config": "Configuration",
    "split": "Split",
    "domain": "Domain",
    "rows": "Prompts",
    "licence": "Licence",
    "commit": "Commit",
    "missing": "Left out",
}
_CLUSTERS = {
    "cluster": "Cluster",
    "share": "Share of prompts",
    "top_domain": "Most from",
    "purity": "Purity",
    "terms": "Terms",
}


def build(
    folder: str | Path, records: Records, figures_folder: str | Path, ledger: pd.DataFrame, manifest: Mapping
) -> Path:
    """Write report.html and report.md.

    Links are relative paths to the present files of both folders. A section without data says what is missing.

    Args:
        figures_folder: Folder of the figures that `figures.save_all` drew from the same records.
    """
    folder, figures_folder = Path(folder).resolve(), Path(figures_folder).resolve()
    try:
        requests = selection.systems(records)
    except ErlabError:
        requests = records.requests.iloc[:0]
    data = figures.data(records)
    shown = _figures(data, figures_folder, folder) + _older(records)
    content = dict(
        titles=paper.TITLE,
        arxiv=paper.ARXIV,
        sources=_provenances(records),
        profiles=_profiles(records),
        facts=_facts(records),
        died=selection.died(records),
        simulated=records.requests["source"].eq("simulated").any(),
        counts=_counts(ledger),
        claims=_claims(ledger, folder, shown),
        chip={HOLDS: "yes", NOT_RUNNABLE: "unknown"},
        figures=shown,
        systems=_table(table1.shown(data.tables["table1"])) if "table1" in data.tables else None,
        clusters=_clusters(data.tables["fig1"]) if "fig1" in data.tables else None,
        datasets=_datasets(manifest),
        recipes=_picture(folder / "routing" / "frontier.png"),
        summary=_summary(records, requests, folder) if len(requests) else None,
        assumptions=_assumptions(records),
        overhead=_saved_table(folder / "overhead" / "added.csv", _OVERHEAD),
        added=_picture(folder / "overhead" / "overhead.png"),
        survival=_saved_table(folder / "beyond" / "survival.csv", _SURVIVAL),
        sensitivity=_picture(folder / "beyond" / "sensitivity.png"),
        targets=_saved_table(folder / "validation" / "targets.csv", _TARGETS, percent=("target", "reached")),
        validated=[_picture(folder / "validation" / f"{name}.png") for name in ("published", "h200")],
        pictures=[p.relative_to(folder).as_posix() for p in folder.glob("*/*.png")],
        links=links.beside(folder, figures_folder),
        commands=_commands(manifest),
        manifest=manifest,
    )
    for name in _PAGES:
        html = name.endswith(".html")
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=html,
            finalize=_printable if html else _markdown,
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        page = textfiles.save(folder / name, environment.get_template(f"{name}.j2").render(content))
    return page


def build_study(folder: Path, figures_folder: Path) -> Path:
    """Build the report of a study from its results folder: records, claims and manifest."""
    manifest = json.loads(textfiles.read(folder / "manifest.json"))
    return build(folder, at_hand(folder / "records"), figures_folder, claims.read(folder), manifest)


def _printable(value: object) -> object:
    """Return a value for the HTML page; lone surrogates in names cannot be encoded and are replaced."""
    return value.encode(errors="replace").decode() if type(value) is str else value


def _markdown(value: object) -> object:
    """Return a value for the Markdown page, escaped unless it is marked safe; None is empty."""
    return value if isinstance(value, Markup) else "" if value is None else tables.escaped(str(value))


def _provenances(records: Records) -> dict[str, str]:
    """Return machine, commit and seeds of the numbers of each source."""
    parts = records.requests.groupby("source")
    return {name: style.provenance(records, rows).removeprefix(f"{name} ") for name, rows in parts}


def _counts(ledger: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count the verdicts by source, those within noise separately; source "neither" if no source can test a claim."""
    sources = _sources(ledger).fillna("neither")
    noisy = ledger["confidence"].eq(NOISE).fillna(False).astype(bool)
    words = ledger["verdict"].where(~noisy, ledger["verdict"] + f", {NOISE}")
    counted = ((source, rows.value_counts()) for source, rows in words.groupby(sources))
    return {source: counts.sort_index(ascending=False).to_dict() for source, counts in counted}


def _sources(ledger: pd.DataFrame) -> pd.Series:
    """Return the source of each row's numbers, also if they cannot test its claim; NA if there are none."""
    texts = ledger["basis"].astype("string").fillna(ledger["reason"].astype("string"))
    return texts.str.extract("^(measured|simulated)")[0]


def _claims(ledger: pd.DataFrame, folder: Path, figures: list[dict]) -> list[dict]:
    """Return the ledger's rows with what the pages add: source, noise, anchor, figure, links and sensitivity."""
    ledger = ledger.assign(on=_sources(ledger).fillna(""))
    rows = ledger.astype(object).where(ledger.notna(), None).to_dict("records")
    survival = _rows(folder / "beyond" / "survival.csv", "claim")
    for i, row in enumerate(rows):
        row |= {"anchor": f"{row['id']}-{i + 1}", "first": i == 0 or rows[i - 1]["id"] != row["id"]}
        own = f"{row['figure']}-{row['paper']}"
        row["shown"] = own if own in [f["name"] for f in figures] else row["figure"]
        row["shown_in"] = row["source"]
        row["noise"] = row["confidence"] == NOISE
        cells = folder / "claims" / f"{row['id']}.csv"
        row["cells"] = links.address(cells, folder) if cells.is_file() else None
        row["survival"] = survival.get(row["id"]) if row["on"] == "simulated" else None
        row["assumptions"] = row["assumptions"].split(", ")
    return rows


def _summary(records: Records, requests: pd.DataFrame, folder: Path) -> dict:
    """Return the metrics per system and load, each row with links to the files of its requests."""
    table = curves.cells(records)
    files = links.record_files(folder)
    runs = requests.groupby(metrics.CELL, dropna=False)["run_id"].unique()
    shown = _table(table[list(_SUMMARY)].rename(columns=_SUMMARY))
    for row, ids in zip(shown["rows"], runs):
        row.append(sorted({files[i] for i in ids if i in files}))
    return shown


def _commands(manifest: Mapping) -> list[str]:
    """Return the known commands that reproduce this study."""
    checkout = [f"git checkout {manifest['commit']}"] if manifest.get("commit") else []
    again = [textfiles.printable(str(manifest["command"]))] if "command" in manifest else []
    return [*checkout, "python -m pip install -e .", *again]


def _profiles(records: Records) -> list[str]:
    """Return descriptions of the measured runs' profiles."""
    runs = records.runs
    if "profile" not in runs:
        return []
    measured = runs[runs["source"] == "measured"] if "source" in runs else runs
    return [_profile(name, rows) for name, rows in measured.groupby("profile")]


def _profile(name: str, runs: pd.DataFrame) -> str:
    if "attached" in runs and runs["attached"].eq(True).all():
        return f"{name}, with an attached server that erlab did not start{selection.by_one(runs['model'])}"
    return f"{name}: {profiles.PROFILES[name].description}" if name in profiles.PROFILES else name


def _facts(records: Records) -> dict[str, str]:
    """Return numbers of requests, runs, systems and loads by source."""
    requests, runs = records.requests, records.runs
    failed = int((~metrics.finished(requests)).sum())
    facts = {"Requests": f"{len(requests):,}, of which {failed:,} failed"}
    for source, rows in requests.groupby("source"):
        counts = f"{rows['run_id'].nunique():,} runs of {rows['system'].nunique()} systems, {len(rows):,} requests"
        loads = ", ".join(map(str, sorted(rows["users"].unique())))
        machines = selection.basis(source, rows["machine"]).partition(" on ")[2]
        machines += selection.by_one(selection.of_attached(records, rows))
        facts[source.capitalize()] = f"{machines}: {counts}; {loads} users"
    if "seconds" in runs and len(runs):
        facts["Time of the runs"] = f"{runs['seconds'].sum() / 60:.1f} min, first started {runs['started'].min()}"
    return facts


def _figures(data: FigureData, figures_folder: Path, folder: Path) -> list[dict]:
    """Describe each figure except Table I: name, title, caption, image as data URI or the reason why it is missing."""
    found = []
    for name, module in figures.FIGURES.items():
        if name == "table1":
            continue
        picture, reason = figures_folder / f"{name}.png", data.missing.get(name)
        if not reason and not picture.is_file():
            reason = f"{picture.name} is not in the folder of figures."
        found.append(
            {
                "name": name,
                "title": f"Fig. {name.removeprefix('fig')}",
                "caption": module.CAPTION,
                "reason": reason,
                "image": None if reason else _data_uri(picture.read_bytes()),
                "address": None if reason else links.address(picture, folder),
                "wide": not reason and _width(picture.read_bytes()) > style.COLUMN * style.DPI,
                "files": [] if reason else links.relative(figures_folder.glob(f"{name}[._]*"), folder),
            }
        )
    return found


def _older(records: Records) -> list[dict]:
    """Describe Fig. 7 of the paper's version 1 if the records hold its systems."""
    of_v1 = records.requests["paper"].eq("v1").fillna(False)
    if not of_v1.any():
        return []
    try:
        picture = style.render(fig7.plot(fig7.data(Records(records.requests[of_v1], records.runs))), "png")
    except ErlabError:
        return []
    caption = f"Systems of the paper's first version. {fig7.CAPTION}"
    wide = _width(picture) > style.COLUMN * style.DPI
    drawn = {"reason": None, "image": _data_uri(picture), "address": None, "wide": wide}
    return [{"name": "fig7-v1", "title": "Fig. 7, version 1", "caption": caption, "files": []} | drawn]


def _clusters(frame: pd.DataFrame) -> dict:
    """Return the clusters of Fig. 1 with the experts that served them."""
    experts = frame.dropna(subset="expert").groupby("cluster")["expert"].agg(", ".join)
    frame = frame.drop_duplicates("cluster")
    frame = frame.assign(share=frame["share"].map("{:.1%}".format))
    shown = frame[list(_CLUSTERS)].rename(columns=_CLUSTERS)
    return _table(shown.assign(**{"Served by": frame["cluster"].map(experts)}))


def _assumptions(records: Records) -> list[tuple[str, paper.Assumption, list[str]]]:
    """Return version, assumption and dependent claims for the paper's versions in the records."""
    versions = sorted(set(records.requests["paper"].dropna().unique()) & set(paper.ASSUMPTIONS), reverse=True)
    resting = {c.id: CHECKS[c.id].assumptions for c in paper.CLAIMS}
    return [
        (v, a, [c.id for c in paper.CLAIMS if c.paper == v and a.id in resting[c.id]])
        for v in versions
        for a in paper.ASSUMPTIONS[v]
    ]


def _datasets(manifest: Mapping) -> dict | None:
    """Tabulate what the prompts were taken from; None if the manifest does not say so."""
    entries = manifest.get("datasets")
    if not entries:
        return None
    return _table(pd.DataFrame(entries, dtype=object)[list(_DATASETS)].rename(columns=_DATASETS))


def _table(frame: pd.DataFrame) -> dict:
    """Convert a table to `columns` and `rows` of (text, whether it is a number)."""
    rows = [[_text(value) for value in row] for row in frame.itertuples(index=False)]
    return {"columns": list(frame.columns), "rows": rows}


def _text(value) -> tuple[str, bool]:
    if pd.isna(value):
        return "–", False
    if isinstance(value, float):
        return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"), True
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}", True
    return str(value), not isinstance(value, str)


def _saved_table(file: Path, columns: Mapping[str, str], percent: tuple[str, ...] = ()) -> dict | None:
    """Read the named columns of a CSV table that a notebook saved; None if the file is missing."""
    if not file.is_file():
        return None
    frame = pd.read_csv(file)
    frame = frame.assign(**{name: frame[name].map("{:.1%}".format) for name in percent})
    return _table(frame[[name for name in columns if name in frame]].rename(columns=columns))


def _rows(file: Path, key: str) -> dict[str, dict]:
    """Read the rows of a CSV table by the value of a column; empty if the file is missing."""
    return pd.read_csv(file).set_index(key).to_dict("index") if file.is_file() else {}


def _picture(file: Path) -> str | None:
    return _data_uri(file.read_bytes()) if file.is_file() else None


def _width(picture: bytes) -> int:
    """Return the width of a PNG in pixels, from its header."""
    return int.from_bytes(picture[16:20], "big")


def _data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
