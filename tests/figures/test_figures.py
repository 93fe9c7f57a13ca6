"""Figures of the paper: plotted numbers against arithmetic, files, and legibility in print and without colours."""

import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.text import Text

from erlab import figures
from erlab.errors import ErlabError
from erlab.figures import cdf, fig1, fig2, fig3, fig4, fig5, fig6, fig7, plane, slo, style, table1, timeline
from erlab.results import records

MS = 10**6


@pytest.fixture(scope="module")
def study():
    return synthetic.both(synthetic.make(failing=0.01), synthetic.preliminary())


@pytest.fixture(scope="module")
def two_sources():
    simulated = synthetic.make(source="simulated", loads=(1, 10, 50, 100, 200))
    return synthetic.both(synthetic.make(loads=(1, 4, 16)), simulated)


@pytest.fixture(scope="module")
def data(study):
    return figures.data(study)


@pytest.fixture(scope="module")
def drawn(data, study):
    """Draw each figure of the study and lay it out."""
    with style.context():
        drawn = {name: figures.show(name, data) for name in figures.FIGURES}
        drawn |= {name: module.plot(module.data(study)) for name, module in figures.MORE.items()}
        for fig in drawn.values():
            fig.draw_without_rendering()
    return drawn


def hand_written(*rows):
    common = dict(run_id="r", source="measured", status="ok", t_submit=0)
    return synthetic.from_rows([common | row for row in rows])


def test_plotted_medians_equal_those_of_the_requests(study):
    requests = study.requests
    for system, users in (("A", 4), ("E", 64)):
        rows = requests[(requests.system == system) & (requests.users == users) & (requests.status == "ok")]
        times = (rows.t_first - rows.t_submit).to_numpy(float) / 1e9
        cell = fig4.data(study).query("system == @system and users == @users").iloc[0]
        assert cell.ttft_median_s == pytest.approx(np.median(times))
        assert cell.ttft_p95_s == pytest.approx(np.percentile(times, 95))


def test_fig5_to_fig7_of_two_requests_by_hand():
    two = hand_written(
        dict(system="X", users=2, t_first=100 * MS, t_last=200 * MS, output_tokens=11),
        dict(system="X", users=2, t_first=100 * MS, t_last=500 * MS, output_tokens=21),
    )
    assert fig5.data(two).tpot_median_ms.item() == 15
    assert fig5.data(two).tpot_q1_ms.item() == 12.5
    assert fig6.data(two).e2e_median_s.item() == pytest.approx(0.35)
    assert fig7.data(two).output_throughput.item() == pytest.approx(64)


def test_shares_within_limits_front_and_distribution_by_hand():
    """MLPerf's limits are 2 s to the first token and 200 ms per output token; a failed request is not within them."""
    seconds = ((1, 2, 11), (1, 4, 11), (3, 4, 11), (1, 1, 1))  # to the first and the last token; tokens
    rows = [dict(system="X", users=4, t_first=a * 10**9, t_last=b * 10**9, output_tokens=n) for a, b, n in seconds]
    late = [dict(run_id="q", system=s, users=1, t_first=9 * 10**9, t_last=t * 10**9, output_tokens=n)
            for s, t, n in (("X", 10, 90), ("Y", 10, 900))]  # fmt: skip
    few = hand_written(*rows, *late, dict(system="X", users=4, status="error"))
    table = slo.data(few).set_index(["system", "users"])
    assert table.within.to_dict() == {("X", 1): 0, ("X", 4): 2 / 5, ("Y", 1): 0}
    assert (table.band_low <= table.within).all() and (table.within <= table.band_high).all()
    low, high = table.loc[("X", 4), ["band_low", "band_high"]]
    assert (low, high) == pytest.approx((0.1176, 0.7693), abs=1e-3), "Wilson's interval of 2 in 5"
    front = plane.data(few).set_index(["system", "users"]).ttft_pareto
    assert front.to_dict() == {("X", 1): False, ("X", 4): True, ("Y", 1): True}
    shares = cdf.data(few).query("system == 'X'").set_index("share").ttft_s
    assert set(shares) == {9} and cdf.data(few).users.eq(1).all(), "the largest load of most systems"


def test_timeline_shows_the_largest_load_of_a_router_per_expert():
    times = dict(t_routed=MS, queue_ns=2 * MS, t_first=10 * MS, t_last=50 * MS, cluster=0)
    rows = [
        dict(system="D", users=3, expert=expert, t_submit=at * MS)
        | {name: ns + at * MS if name.startswith("t_") else ns for name, ns in times.items()}
        for expert, at in (("b", 0), ("a", 5), ("b", 2))
    ]
    baseline = dict(run_id="q", system="A", users=9, t_first=MS, t_last=2 * MS)
    table = timeline.data(hand_written(*rows, baseline, dict(system="D", users=3, expert="a", status="error")))
    assert table[["expert", "row"]].to_numpy().tolist() == [["a", 0], ["b", 0], ["b", 1]]
    milliseconds = 1000 * table[["submitted_s", "routed_s", "sent_s", "first_s", "last_s"]].to_numpy()
    assert milliseconds[0].tolist() == pytest.approx([5, 6, 8, 15, 55])
    assert table.attrs["title"] == "D, measured, 3 users, 3 requests"
    times, count = timeline._in_flight(table)
    assert (count >= 0).all() and count.max() == 3 and count[-1] == 0


def test_fig2_counts_every_request_and_the_densities_integrate_to_one(study):
    table = fig2.data(study)
    width = table.to_tokens - table.from_tokens
    assert table.requests.sum() == (~study.requests.system.str.startswith("P-")).sum()
    assert (table.density * width).sum() == pytest.approx(1)
    assert (table.assumed_density * width).sum() == pytest.approx(1, abs=0.02)


def test_fig2_assumed_density_is_log_normal():
    shape = dict(median=40.0, sigma=0.8, minimum=1, maximum=10_000)
    rng = np.random.default_rng(0)
    rows = [
        dict(system="A", users=1, input_tokens=int(n)) for n in np.clip(rng.lognormal(math.log(40), 0.8, 3000), 1, 400)
    ]
    described = synthetic.from_rows(
        [dict(run_id="r", source="measured", status="ok", t_submit=0) | r for r in rows],
        [dict(run_id="r", workload={"input": shape, "output": shape})],
    )
    for row in fig2.data(described).itertuples():
        x = np.linspace(max(row.from_tokens, 1), row.to_tokens, 2001)
        density = np.exp(-((np.log(x / 40) / 0.8) ** 2) / 2) / (x * 0.8 * math.sqrt(2 * math.pi))
        share = (density[:-1] + density[1:]).sum() / 2 * (x[1] - x[0])
        assert row.assumed_density * (row.to_tokens - row.from_tokens) == pytest.approx(share, rel=1e-3, abs=1e-6)


def test_fig2_draws_no_line_for_an_unknown_workload(study):
    table = fig2.data(records.Records(study.requests, study.runs.assign(workload=None)))
    assert table.assumed_density.isna().all()
    assert not fig2.plot(table).axes[0].get_lines()


def test_fig3_alone_shows_the_preliminary_systems(study):
    table = fig3.data(study)
    assert set(zip(table.half, table.precision, table.max_batch_size)) == {
        (h, p, b) for h in ("half", "all") for p in ("float32", "int8") for b in (8, 16, 32)
    }
    for module in (fig4, fig5, fig6, fig7, table1):
        assert set(module.data(study).system) == set("ABCDE")
    cell = table.query(
        "half == 'all' and precision == 'int8' and max_batch_size == 16 and users == 8"
    ).e2e_median_s.item()
    rows = study.requests[(study.requests.system == "P-all-int8-b16") & (study.requests.users == 8)]
    assert cell == pytest.approx(((rows.t_last - rows.t_submit) / 1e9).median())


def test_fig1_names_the_expert_of_each_cluster_and_counts_its_requests(study):
    table = fig1.data(study)
    routed = study.requests[(study.requests.system == "D")]
    assert table.requests.sum() == len(routed)
    for row in table.itertuples():
        assert row.expert == f"D-expert{row.cluster % 2}"
        assert row.requests == (routed.cluster == row.cluster).sum()


def test_fig1_skips_a_described_run_without_requests(study):
    described = study.runs.drop_duplicates("system").query("system == 'D'")
    runs = pd.concat([described.assign(run_id="no requests", system="C2"), study.runs], ignore_index=True)
    assert set(fig1.data(records.Records(study.requests, runs)).system) == {"D"}


def test_table1_counts_requests_and_failures(study):
    table = table1.data(study)
    assert table.failed.sum() == (study.requests.status != "ok").sum()
    assert table.set_index("system").loads["C"] == "1–64"
    assert table1.files(table)["table1.md"].count("\n") == 2 + 5


def test_a_run_whose_system_died_is_left_out(study):
    dead = study.runs.run_id == "measured-B-64-s0"
    died = records.Records(study.requests, study.runs.assign(invalid=np.where(dead, "replica 0 ended.", None)))
    assert fig4.data(died).query("system == 'B'").users.max() == 32


def test_data_are_computed_once_and_drawing_needs_no_records(study, tmp_path, monkeypatch):
    calls = []
    compute = fig7.data
    monkeypatch.setattr(fig7, "data", lambda records: calls.append(records) or compute(records))
    data = figures.data(study, ["fig7"])
    figures.save_all(data, tmp_path)
    figures.show("fig7", data)
    assert calls == [study] and data.missing == {}


def test_a_filtered_table_is_drawn_with_its_provenance_and_colours(data, drawn):
    fig = fig7.plot(data.tables["fig7"].query("system in ['B', 'D']"))
    whole = _legend_colors(drawn["fig7"])
    assert _legend_colors(fig) == {name: whole[name] for name in ("B", "D (router)")}
    assert fig.get_supxlabel() == drawn["fig7"].get_supxlabel()


def _legend_colors(fig):
    (legend,) = fig.legends
    return {text.get_text(): line.get_color() for text, line in zip(legend.get_texts(), legend.get_lines())}


def test_files_are_pdf_png_csv_and_the_csv_has_the_plotted_numbers(data, tmp_path):
    files = figures.save_all(data, tmp_path)
    expected = {f"{n}.{k}" for n in figures.FIGURES for k in ("pdf", "png", "csv")} | {"fig1_points.csv", "table1.md"}
    assert {f.name for f in files} == {f.name for f in tmp_path.iterdir()} == expected
    for name in expected:
        start = (tmp_path / name).read_bytes()[:5]
        assert not name.endswith(".pdf") or start == b"%PDF-"
        assert not name.endswith(".png") or start == b"\x89PNG\r"
    stored = pd.read_csv(tmp_path / "fig7.csv")
    assert np.allclose(stored.output_throughput, data.tables["fig7"].output_throughput.astype(float))
    for pdf in tmp_path.glob("*.pdf"):
        content = pdf.read_bytes()
        assert b"/FontFile2" in content and b"/Type3" not in content, "fonts are embedded as TrueType"
        assert b"CreationDate" not in content


@pytest.mark.parametrize("name", [*figures.FIGURES, *figures.MORE, "two sources"])
def test_text_is_legible_inside_the_page_and_outside_of_the_legend(name, drawn, two_sources):
    fig = drawn[name] if name in drawn else fig4.plot(fig4.data(two_sources))
    with style.context():
        fig.draw_without_rendering()
    page = fig.bbox
    texts = [t for t in fig.findobj(Text) if t.get_text().strip() and t.get_visible() and t not in _off_axis(fig)]
    assert texts
    for text in texts:
        assert text.get_fontsize() >= 7, text
        box = text.get_window_extent()
        assert box.x0 >= page.x0 - 1 and box.y0 >= page.y0 - 1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1, text
    for legend in fig.legends:
        area = legend.get_window_extent()
        assert not any(area.overlaps(ax.get_tightbbox()) for ax in fig.axes)
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
        assert not any(a.x1 > b.x0 for a, b in zip(boxes, boxes[1:])), "tick labels overlap"


def _off_axis(fig):
    """Return the labels of ticks beyond their axis, which are not drawn."""
    ticks = [(axis, tick) for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_major_ticks()]
    beyond = [
        t for axis, t in ticks if not min(axis.get_view_interval()) <= t.get_loc() <= max(axis.get_view_interval())
    ]
    return {label for tick in beyond for label in (tick.label1, tick.label2)}


def test_a_system_keeps_its_colour_in_every_figure(drawn):
    colors = {name: _legend_colors(drawn[name]) for name in ("fig4", "fig5", "fig6", "fig7")}
    assert all(of_figure == colors["fig4"] for of_figure in colors.values())
    assert len(set(colors["fig4"].values())) == 5
    alone = fig7.plot(fig7.data(synthetic.make("D", (1, 2))))
    assert _legend_colors(alone).items() <= colors["fig4"].items()


def test_other_systems_have_distinct_looks():
    looks = style.looks(["A", "other", "another", "D"])
    assert len({look.color for look in looks.values()}) == 4


def test_every_figure_states_its_provenance(drawn):
    for name, fig in drawn.items():
        line = fig._supxlabel.get_text().replace("\n", " ")
        assert re.fullmatch(
            r"measured on 2-core AMD EPYC \(scale model: each core stands for a GPU\), one seed · commit abc1234", line
        ), name


def test_measured_and_simulated_have_separate_panels(two_sources):
    for module in (fig4, fig5, fig6, fig7):
        fig = module.plot(module.data(two_sources))
        assert [ax.get_title() for ax in fig.axes] == ["measured", "simulated"]
    assert style.provenance(two_sources, two_sources.requests).startswith(
        "measured on 2-core AMD EPYC (scale model: each core stands for a GPU), one seed; simulated on 8 H100, one seed"
    )


def test_records_written_by_hand_make_figures_2_to_7(tmp_path):
    study = synthetic.both(synthetic.make("AE", (1, 8)), synthetic.preliminary())
    needed = [
        "run_id",
        "system",
        "source",
        "users",
        "status",
        "t_submit",
        "t_first",
        "t_last",
        "output_tokens",
        "input_tokens",
    ]
    study.requests[needed].to_parquet(tmp_path / "few columns.parquet")
    data = figures.data(records.read(tmp_path / "few columns.parquet"))
    assert data.missing == {"fig1": "No run describes its router (router_summary)."}
    files = {f.name for f in figures.save_all(data, tmp_path / "figures", formats=("png",))}
    assert {f"fig{i}.png" for i in range(2, 8)} <= files and "fig1.png" not in files
    assert "commit unknown" in figures.show("fig4", data).get_supxlabel().replace("\n", " ")


def test_missing_figures_have_a_reason_and_the_others_are_drawn():
    data = figures.data(hand_written(dict(system="A", users=1, status="lost")))
    assert set(data.missing) == set(figures.FIGURES) - {"table1"} and set(data.tables) == {"table1"}
    assert "preliminary" in data.missing["fig3"] and "input_tokens" in data.missing["fig2"]
    assert figures.show("fig2", data) == "fig2 is left out: No request's input_tokens is known."


def test_one_load_and_equal_values_still_have_an_axis():
    one = hand_written(dict(system="A", users=3, t_first=30 * MS, t_last=150 * MS, output_tokens=7, input_tokens=5))
    for module in (fig2, fig4, fig5, fig6, fig7):
        fig = module.plot(module.data(one))
        assert len(fig.axes[0].get_yticks()) >= 2


def test_an_unknown_figure_is_refused_by_name(data):
    with pytest.raises(ErlabError, match="'only' parameter of figures.data must name figures of fig1, .*Got 'fig9'"):
        figures.data(synthetic.make("A", (1,)), ["fig9"])
    with pytest.raises(ErlabError, match="'name' parameter of figures.show must be one of fig1, .*Got 'fig9'"):
        figures.show("fig9", data)


def test_pyplot_keeps_no_figure_open(data):
    import matplotlib.pyplot as plt

    figures.show("fig7", data)
    assert plt.get_fignums() == []


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_from_records_are_drawn_as_they_are(tmp_path):
    """Nothing in a stranger's records is mathematics to be typeset, which a brace too many would break."""
    hostile = "$x_{ \\frac$ \x1b[31m 100%"
    found = synthetic.make(loads=(1, 4))
    names = {"machine", "expert", "title", "commit"}
    requests, runs = (
        frame.assign(**{name: frame[name].where(frame[name].isna(), hostile) for name in names & set(frame.columns)})
        for frame in (found.requests, found.runs)
    )
    figures.save_all(figures.data(type(found)(requests, runs)), tmp_path, formats=["png"])
    assert (tmp_path / "fig1.png").is_file() and (tmp_path / "fig4.png").is_file()


def test_a_pgf_leaves_matplotlibs_renderer_as_it_was(data):
    from matplotlib.backends.backend_pgf import RendererPgf

    before = RendererPgf.get_text_width_height_descent
    style.render(figures.show("fig7", data), "pgf")
    assert RendererPgf.get_text_width_height_descent is before


def test_importing_figures_loads_no_slow_module_that_it_does_not_need():
    """Some figures and formats need these modules, loading the package does not."""
    slow = {"asyncio", "matplotlib.pyplot", "matplotlib.backends.backend_pgf", "scipy", "seaborn", "unittest.mock"}
    code = f"import sys; from erlab import figures; print(*({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_latex_gets_names_as_text():
    """PGF files are typeset by LaTeX, where a system's name may hold no markup."""
    requests = synthetic.make(systems=("A",), loads=(1, 2))
    requests.requests["system"] = r"$a_1$ & {b}"
    table = figures.data(requests, ["fig4"]).tables["fig4"]
    assert rb"\$a\_1\$ \& \{b\}" in style.render(figures.FIGURES["fig4"].plot(table), "pgf")
