"""`erlab figures`, `claims`, `import` and `export`: figures and verdicts from request records, and other formats."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from erlab.commands import options, printed
from erlab.commands.options import Figures, MoreRecords, NewRecords, Profile, RecordFiles
from erlab.errors import ErlabError
from erlab.results.formats import CLIENTS
from erlab.serving import profiles


def figures(
    more: MoreRecords = None,
    records: RecordFiles = None,
    out: Figures = None,
    profile: Profile = "laptop",
    style: Annotated[
        str, typer.Option(help="Font and line sizes: paper, notebook or talk.", metavar="STYLE")
    ] = "paper",
    width: Annotated[
        str | None, typer.Option(help="Width of every figure, such as 3.5in or 86mm (default: each figure's own).")
    ] = None,
    format: Annotated[str, typer.Option(help="File formats, separated by commas: pdf, png, svg, pgf.")] = "pdf,png",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Draw several records as separate curves instead of joining them.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Figure: fig1 to fig7, table1, {figures}; repeat for several (default: Figs. 1 to 7 and Table I).",
            metavar="NAME",
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            "--paper",
            help="Version of the paper: v2, v1 or all (default: v2, or v1 if the records have no other).",
            metavar="VERSION",
            callback=options.must("be v2, v1 or all", ("v2", "v1", "all").__contains__),
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Requests to draw: measured or simulated (default: both).",
            metavar="SOURCE",
            callback=options.must("be measured or simulated", ("measured", "simulated").__contains__),
        ),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="System to draw, such as D; repeat for several (default: all).", metavar="NAME"),
    ] = None,
    footer: Annotated[
        bool, typer.Option("--footer/--no-footer", help="Write machine, repetitions and commit under each figure.")
    ] = True,
    linear: Annotated[bool, typer.Option("--linear", help="Draw Fig. 7 on linear axes.")] = False,
):
    """Draw Figs. 1 to 7 and Table I from request records; write the plotted numbers as CSV.

    Several runs of a system at the same load get a 95 % confidence band.
    If --width is too narrow for panels side by side, they are stacked; Fig. 1 and Table I then span two columns.

    Examples:

    \b
      erlab figures                                      records of the laptop study
      erlab figures --records run.parquet --out .        any records
      erlab figures --width 3.5in --format pdf,pgf       one column of a paper
      erlab figures --only fig6 --system D --system E --source simulated --no-footer
      erlab figures --records a.parquet b.parquet --overlay --style talk
    """
    from erlab import figures as paper_figures
    from erlab import paths
    from erlab.figures import style as look
    from erlab.results import selection

    files = [*(records or ()), *(more or ())]
    found = _overlaid(files) if overlay else _read(files, profile, paper_figures.COLUMNS)
    version = version or selection.main_version(found) or "all"
    found = found if version == "all" else selection.of_paper(found, version)
    found = selection.only(found, source, system or ())
    formats = [name.strip() for name in format.split(",")]
    for name in formats:
        if name not in look.FORMATS:
            raise ErlabError(f"--format must name some of {', '.join(look.FORMATS)}. Got {name!r}.")
    data = paper_figures.data(found, only or None)
    with look.using(style, look.inches(width), footer, linear):
        for file in paper_figures.save_all(data, paths.figures(out), formats):
            printed.line(file)
    for name, reason in data.missing.items():
        printed.line(f"{name}: left out, {reason}")


def _overlaid(files: list[Path]):
    """Read several records and name each after its file."""
    from erlab import figures as paper_figures
    from erlab import paths
    from erlab.results import records

    if len(files) < 2:
        raise ErlabError(f"--overlay needs at least two --records. Got {len(files)}.")
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise ErlabError(f"--overlay needs each of --records once. Got {', '.join(map(str, files))}.")
    return paper_figures.overlay(
        {name: records.read(file, columns=paper_figures.COLUMNS) for name, file in zip(paths.names(files), files)}
    )


def claims(
    more: MoreRecords = None,
    records: RecordFiles = None,
    profile: Profile = "laptop",
    version: Annotated[
        str | None,
        typer.Option("--paper", help="Version of the paper: v2 or v1 (default: claims of both).", metavar="VERSION"),
    ] = None,
    id_: Annotated[
        list[str] | None,
        typer.Option("--id", help="Claim to test; repeat for several (default: all).", metavar="CLAIM"),
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Show also the numbers behind each verdict.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the request records behind one claim.", metavar="FILE", callback=options.PARQUET),
    ] = None,
):
    """Test the paper's claims on request records: verdict, margin over the threshold, confidence.

    Examples:

    \b
      erlab claims --paper v2 --records data/results/laptop/records
      erlab claims --id v2-ttft-8b --rows                one claim and its numbers
      erlab claims --id v2-ttft-8b --out claim.parquet   the requests behind a claim
    """
    from erlab.results import claims as paper_claims
    from erlab.results import records as request_records

    chosen = paper_claims.select(version, id_)
    if out and len(chosen) != 1:
        raise ErlabError(f"--out needs one claim: --id CLAIM. Got {len(chosen)} claims.")
    found = _read([*(records or ()), *(more or ())], profile)
    ledger = paper_claims.ledger(found, chosen)
    printed.table("The paper's claims", paper_claims.shown(ledger).astype(object), lines=True)
    for claim in chosen if rows else ():
        printed.line(f"{claim} depends on the assumptions: {ledger.loc[ledger['id'] == claim, 'assumptions'].iloc[0]}")
        printed.table(f"Numbers behind {claim}", paper_claims.cells(found, claim).astype(object))
    if out:
        request_records.save(out, paper_claims.rows(found, chosen[0]))
        printed.line(f"{out}: test it again with erlab claims --id {chosen[0]} --records {out}")


def import_(
    files: Annotated[list[Path], typer.Argument(help="Result files of one system.", metavar="FILE...")],
    system: Annotated[
        str, typer.Option(help="Name of the measured system in the records.", metavar="NAME", callback=options.TEXT)
    ],
    machine: Annotated[
        str, typer.Option(help="Machine that it ran on, as figures name it.", metavar="TEXT", callback=options.TEXT)
    ],
    out: NewRecords = Path("imported.parquet"),
):
    """Convert results of other benchmark clients into request records.

    The format is recognized by the content. Entries that are no request are left out and listed.
    Files that are read (and versions that were tried on real files):

    \b
      CLIENTS

    Example:

    \b
      erlab import profile_export.jsonl --system vLLM --machine "8 H100" --out vllm.parquet
      erlab figures --records vllm.parquet --out my_figures
    """
    from erlab.results import imports, metrics, records

    found = imports.read_all(files, system=system, machine=machine)
    records.save(out, found)
    columns = ["users", "requests", "failed", "ttft_median_s", "tpot_median_ms", "e2e_median_s", "output_throughput"]
    clients = ", ".join(found.runs["client"].unique())
    printed.table(f"{system}, measured by {clients}", metrics.summarise(found.requests)[columns].astype(object))
    for run in found.runs.drop_duplicates("file").itertuples():
        if run.left_out:
            printed.line(f"{run.file}: left out: {run.left_out}")
    printed.line(out)


def _clients() -> str:
    """List the clients whose results are read, one per line, and the versions whose files were tried."""
    lines = [f"{client}: {form.file} ({form.tried or 'by its documentation'})" for client, form in CLIENTS.items()]
    return "\n      ".join(lines)


import_.__doc__ = import_.__doc__.replace("CLIENTS", _clients())


def export(
    more: MoreRecords = None,
    records: RecordFiles = None,
    profile: Profile = "laptop",
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="File format: csv, jsonl (null where unknown) or parquet (default: that of --out's ending, else csv).",
            metavar="FORMAT",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File (default: records.FORMAT).", metavar="FILE", callback=options.FILE)
    ] = None,
):
    """Write request records as CSV, JSON lines or one parquet file, one row per request.

    Times are in ns since the start of the run.

    Examples:

    \b
      erlab export --records data/results/laptop/records --out laptop.csv
      erlab export run.parquet --out run.jsonl
    """
    from erlab.results import exports

    ending = out.suffix[1:] if out else ""
    form = form or (ending if ending in exports.FORMATS else "csv")
    if form not in exports.FORMATS:
        raise ErlabError(f"--format must be one of {', '.join(exports.FORMATS)}. Got {form!r}.")
    found = _read([*(records or ()), *(more or ())], profile)
    printed.line(exports.write(found, out or Path(f"records.{form}"), form))


def _read(files: list[Path] | None, profile: str, columns: Collection[str] | None = None):
    from erlab import paths
    from erlab.results import records

    folder = paths.results(profiles.profile(profile).name) / "records"
    if not files and not folder.exists():
        raise ErlabError(f"No records in {folder}: erlab reproduce makes them, --records names others.")
    return records.read(*(files or [folder]), columns=columns)
