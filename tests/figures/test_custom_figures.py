"""Figures of any records: sizes, formats, confidence bands, overlays, and plotted numbers against stored ones."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_hex
from typer.testing import CliRunner

from erlab import figures, report
from erlab.commands.app import app
from erlab.errors import ErlabError
from erlab.figures import curves, fig4, fig6, fig7, style
from erlab.results import claims, confidence, metrics, records

STORED = Path(__file__).parent / "stored_curves.csv"


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Write a parquet file with few columns: a system of the user and one of the paper."""
    rows = [
        dict(run_id=f"{system}{users}", system=system, source="measured", users=users, status="ok", output_tokens=20,
             t_submit=i * 10**8, t_first=i * 10**8 + first * 10**6, t_last=i * 10**8 + (first + 19 * 5) * 10**6)
        for system, slow in (("mine", 2), ("C", 1)) for users in (1, 8) for i in range(users)
        for first in [slow * (40 + 3 * i)]
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("foreign") / "by hand.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_figures_of_a_foreign_file_have_the_given_width_and_formats(foreign, tmp_path):
    done = run("figures", "--records", foreign, "--width", "89mm", "--format", "pdf,svg,pgf", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "fig2: left out, No request's input_tokens is known." in done.output
    for name in ("fig4", "fig5", "fig6", "fig7"):
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", (tmp_path / f"{name}.pdf").read_bytes())
        assert float(box[1]) == pytest.approx(89 / 25.4 * 72, abs=0.01)
        svg = (tmp_path / f"{name}.svg").read_text()
        assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) == pytest.approx(89 / 25.4 * 72, abs=0.01)
        assert "<text" not in svg, "text is drawn as outlines, which need no font"
        assert "\\pgfqpoint{3.503937in}" in (tmp_path / f"{name}.pgf").read_text()
        assert not any(sys.prefix.encode() in file.read_bytes() for file in tmp_path.glob(f"{name}.*"))
    numbers = pd.read_csv(tmp_path / "fig6.csv").set_index(["system", "users"]).e2e_median_s
    assert numbers["mine", 1] == pytest.approx(0.08 + 0.095) and numbers["C", 8] == pytest.approx(0.0505 + 0.095)


def test_pgf_files_have_only_characters_of_latex_fonts():
    """LaTeX stops at characters that its fonts lack, such as Greek letters outside of formulas."""
    data = figures.data(synthetic.both(synthetic.make("AE", (1, 8)), synthetic.preliminary((1,))))
    for name in ("fig1", "fig2", "fig3", "fig4", "table1"):
        text = style.render(figures.show(name, data), "pgf").decode()
        assert not re.sub("[\0-\xff–]", "", text), name


def test_plotted_numbers_equal_the_stored_ones():
    """`stored_curves.csv` guards the definitions of the metrics."""
    plotted = curves_of(synthetic.both(synthetic.make("CDE", (1, 8, 64), failing=0.02), synthetic.preliminary((1, 8))))
    stored = pd.read_csv(STORED)
    assert plotted["curve"].tolist() == stored["curve"].tolist()
    np.testing.assert_allclose(plotted["value"].astype(float), stored["value"], rtol=1e-6)


def curves_of(study: records.Records) -> pd.DataFrame:
    """Return all plotted numbers of Figs. 3 to 7, one per row."""
    rows = []
    for name in ("fig3", "fig4", "fig5", "fig6", "fig7"):
        table = figures.FIGURES[name].data(study)
        keys = [c for c in ("half", "precision", "max_batch_size", "system", "users") if c in table]
        values = [c for c in table if re.search(r"_(s|ms)$|throughput$", c)]
        long = table.melt(keys, values)
        curve = name + " " + long[[*keys, "variable"]].astype(str).agg(" ".join, axis=1)
        rows.append(pd.DataFrame({"value": long["value"], "curve": curve}))
    return pd.concat(rows, ignore_index=True)[["curve", "value"]]


def test_repeated_runs_have_a_confidence_band_and_single_runs_none():
    several = synthetic.both(*(synthetic.make("CD", (1, 8), seed=s) for s in range(3)), synthetic.make("E", (1, 8)))
    table = fig7.data(several)
    assert table.set_index("system").runs.to_dict() == {"C": 3, "D": 3, "E": 1}
    assert table.query("system == 'E'").band_low.isna().all()
    known = table[table.system != "E"]
    assert (known.band_low < known.output_throughput).all() and (known.output_throughput < known.band_high).all()
    for module in (fig4, fig7):
        ax = module.plot(module.data(several)).axes[0]
        drawn = [c for c in ax.collections if isinstance(c, FillBetweenPolyCollection)]
        assert {to_hex(c.get_facecolor()[0]) for c in drawn} == {"#009e73", "#d55e00"}
    line = style.provenance(several, several.requests)
    assert "AMD EPYC (scale model: each core stands for a GPU), 1 to 3 seeds ·" in line
    cell = ["system", "users"]
    pooled, runs = (metrics.summarise(several.requests, by) for by in (cell, [*cell, "run_id"]))
    expected = confidence.bands(pooled, runs, "e2e_median_s", cell)
    low = fig6.data(several).dropna(subset="band_low").set_index(["system", "users"]).band_low.astype(float)
    assert low.to_dict() == pytest.approx(expected.set_index(cell).low.to_dict())


def test_overlaid_records_share_a_panel_and_a_systems_colour(tmp_path):
    one, other = synthetic.make("CD", (1, 8)), synthetic.make("D", (1, 8, 64), source="simulated")
    overlaid = figures.overlay({"one": one, "other": other})
    fig = fig7.plot(fig7.data(overlaid))
    assert len(fig.axes) == 1
    lines = [line for line in fig.axes[0].get_lines() if len(line.get_xdata()) > 1]
    drawn = [(line.get_color(), len(line.get_xdata())) for line in lines]
    assert drawn == [("#009E73", 2), ("#D55E00", 2), ("#D55E00", 3)]
    assert lines[1].get_linestyle() != lines[2].get_linestyle()
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend == ["C", "D (router)", "one, measured", "other, simulated"]
    table = fig4.data(overlaid)
    others = table[table.label == "other, simulated"].drop(columns="label").reset_index(drop=True)
    pd.testing.assert_frame_equal(others, fig4.data(other), check_dtype=False)


def test_overlaid_files_of_the_same_name_are_labelled_with_their_folders(foreign, tmp_path):
    records.save(tmp_path / foreign.name, records.read(foreign))
    copy = tmp_path / foreign.name
    done = run("figures", "--records", foreign, copy, "--overlay", "--format", "svg", "--out", tmp_path)
    assert done.exit_code == 0 and set(pd.read_csv(tmp_path / "fig7.csv").label) == {
        f"{file.with_suffix('')}, measured" for file in (foreign, tmp_path / foreign.name)
    }


def test_narrow_figures_stack_their_panels_and_diagrams_span_two_columns():
    simulated = synthetic.make("AD", (1, 100), source="simulated")
    data = figures.data(synthetic.both(synthetic.make(), simulated, synthetic.preliminary()))
    with style.using("paper", 3.5):
        for name in ("fig3", "fig4", "fig7"):
            fig = figures.show(name, data)
            fig.draw_without_rendering()
            left = {round(ax.get_position().x0, 2) for ax in fig.axes}
            assert fig.get_figwidth() == 3.5 and len(left) == 1 and len(fig.axes) == 2
            page = fig.bbox
            assert all(page.x0 - 1 <= t.get_window_extent().x0 and t.get_window_extent().x1 <= page.x1 + 1
                       for legend in fig.legends for t in legend.get_texts())  # fmt: skip
        assert figures.show("fig1", data).get_figwidth() == pytest.approx(7.16)


def test_an_added_figure_is_drawn_by_the_command_and_shown_in_the_report(tmp_path, monkeypatch):
    added = SimpleNamespace(
        CAPTION="Slowest first tokens.",
        data=lambda found: curves.summary(found, "ttft_p99_s"),
        plot=lambda table: curves.draw(table, "ttft_p99_s", "p99 time to first token (s)"),
    )
    monkeypatch.setitem(figures.FIGURES, "fig8", added)
    study = synthetic.make("CD", (1, 8))
    records.save(tmp_path / "records.parquet", study)
    done = run("figures", "--records", tmp_path / "records.parquet", "--out", tmp_path / "figures")
    assert done.exit_code == 0, done.output
    assert pd.read_csv(tmp_path / "figures" / "fig8.csv").ttft_p99_s.notna().all()
    report.build(tmp_path, study, tmp_path / "figures", claims.ledger(study, resamples=0), {})
    assert "![Slowest first tokens.](figures/fig8.png)" in (tmp_path / "report.md").read_text()


def test_figures_of_a_talk_are_scaled_figures_of_the_paper():
    table = fig7.data(synthetic.make("CD", (1, 8)))
    paper = fig7.plot(table)
    with style.using("talk"):
        talk = fig7.plot(table)
    factor = style.STYLES["talk"]
    for get in (lambda f: f.get_figwidth(), lambda f: f.axes[0].yaxis.label.get_fontsize(),
                lambda f: f.axes[0].get_lines()[0].get_linewidth()):  # fmt: skip
        assert get(talk) == pytest.approx(factor * get(paper))
    assert fig7.plot(table).get_figwidth() == paper.get_figwidth(), "the style ends with the block"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--style", "poster"), "The 'style' parameter of figures must be one of paper, notebook, talk. Got 'poster'."),
        (("--width", "wide"), "must be a length such as 3.5in, 89mm, 8.9cm or 252pt. Got 'wide'."),
        (("--width", "99in"), "must be between 1.5 and 40 inches. Got 99.0."),
        (("--format", "pdf,eps"), "--format must name some of pdf, png, svg, pgf. Got 'eps'."),
        (("--overlay",), "--overlay needs at least two --records. Got 1."),
        (("--only", "fig9"), "The 'only' parameter of figures.data must name figures of fig1, "),
        (("--paper", "v3"), "--paper must be v2, v1 or all. Got 'v3'."),
        (("--source", "real"), "--source must be measured or simulated. Got 'real'."),
        (("--system", "E"), "--system must be one of C, mine. Got 'E'."),
        (("--source", "simulated"), "No request is simulated."),
    ],
)
def test_wrong_options_are_reported(options, message, foreign, tmp_path):
    done = run("figures", "--records", foreign, "--out", tmp_path, *options)
    assert done.exit_code == 2 and message in done.output and not list(tmp_path.iterdir())


def test_an_unknown_style_is_refused():
    with pytest.raises(ErlabError), style.using("poster"):
        pass


@pytest.fixture(scope="module")
def both_versions(tmp_path_factory):
    """Write records of both versions of the paper, measured and simulated."""
    parts = [synthetic.make("CD", (1, 8), source=source) for source in ("measured", "simulated")]
    older = synthetic.make(("TP8",), (1, 8), paper="v1", speed={"TP8": (5.0, 0.1)})
    path = tmp_path_factory.mktemp("versions") / "records.parquet"
    records.save(path, synthetic.both(*parts, older))
    return path


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ((), {("C", "measured"), ("C", "simulated"), ("D", "measured"), ("D", "simulated")}),
        (("--paper", "v1"), {("TP8", "measured")}),
        (("--paper", "all", "--source", "measured"), {("C", "measured"), ("D", "measured"), ("TP8", "measured")}),
        (("--system", "D", "--source", "simulated"), {("D", "simulated")}),
    ],
)
def test_the_command_draws_the_studys_version_or_what_options_choose(options, drawn, both_versions, tmp_path):
    done = run("figures", "--records", both_versions, "--out", tmp_path, "--only", "fig6", "--format", "svg", *options)
    assert done.exit_code == 0, done.output
    assert {file.name for file in tmp_path.iterdir()} == {"fig6.svg", "fig6.csv"}
    table = pd.read_csv(tmp_path / "fig6.csv")
    assert set(zip(table.system, table.source)) == drawn


def test_the_columns_that_figures_read_give_the_same_tables(both_versions):
    names = [*figures.FIGURES, *figures.MORE]
    few, all_columns = (figures.data(records.read(both_versions, columns=c), names) for c in (figures.COLUMNS, None))
    assert few.missing == all_columns.missing
    for name, table in all_columns.tables.items():
        pd.testing.assert_frame_equal(few.tables[name], table)
        assert few.tables[name].attrs["provenance"] == table.attrs["provenance"]


def test_a_figure_without_footer_and_fig7_on_linear_axes():
    table = fig7.data(synthetic.make("CD", (1, 8)))
    with style.using(footer=False, linear=True):
        fig = fig7.plot(table)
    assert fig.get_supxlabel() == "" and fig.axes[0].get_xscale() == fig.axes[0].get_yscale() == "linear"
    assert "measured on" in fig7.plot(table).get_supxlabel()
