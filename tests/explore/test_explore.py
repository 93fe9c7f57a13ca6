"""Notebook explore: settings, their curves, figures and files, error lines and widgets."""

import json
import shlex
from dataclasses import asdict, replace

import numpy as np
import papermill
import pytest
from typer.testing import CliRunner

from erlab import paper, paths, simulation
from erlab.commands.app import app
from erlab.errors import ErlabError
from erlab.explore import panel
from erlab.explore import settings as explore
from erlab.explore.settings import Setting
from erlab.results import metrics
from erlab.simulation import assumptions, beyond, components

ROOF = Setting(users=10, steps="roofline")  # needs no kernel tables
SHOWN_EVERYWHERE = {"text/plain", "text/html", "image/png"}  # in JupyterLab, Notebook 7 and VS Code alike
ALL = [(version, name) for version, systems in paper.SYSTEMS.items() for name in systems]


@pytest.mark.parametrize("version, name", ALL)
def test_an_unchanged_setting_is_the_system_of_the_paper(version, name):
    assert explore.system(replace(ROOF, paper=version, system=name)) == paper.SYSTEMS[version][name]


def test_every_change_reaches_the_system():
    changed = replace(ROOF, system="A", precision="INT8", tensor_parallel=2, kv_gib=10)
    system = explore.system(changed)
    assert (system.expert.precision.name, system.expert.tensor_parallel, system.count) == ("INT8", 2, 4)
    bytes_per_token = 2 * 80 * 8 * 128  # keys and values, layers, KV heads, head size; one byte each
    assert system.expert.kv_tokens == 2 * 10 * 2**30 // bytes_per_token


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(system="A", tensor_parallel=3), "8 KV heads of Llama 3 70B"),
        (dict(paper="v1", system="13B-FP16", tensor_parallel=5), "divide 8 GPUs"),
        (dict(system="B", tensor_parallel=1), "does not fit 1 H100"),
        (dict(kv_gib=60), "weights and reserve leave"),
        (dict(kv_gib=0), "'gib'"),
        (dict(system="A", policy="spill"), "baseline A"),
        (dict(system="A", clusterer="kmeans"), "baseline A"),
        (dict(system="Z"), "'system'"),
        (dict(paper="v3"), "'paper'"),
        (dict(precision="FP4"), "'precision'"),
        (dict(policy="nonsense"), "'policy'"),
        (dict(users=0), "'users'"),
        (dict(gateway_ms=-1.0), "'gateway_ms'"),
    ],
)
def test_a_setting_that_cannot_be_served_is_refused_in_one_line(changes, reason):
    with pytest.raises(ErlabError) as refused:
        explore.system(replace(ROOF, **changes))
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_curves_equal_those_of_a_sweep_with_the_same_changes():
    setting = replace(ROOF, system="E", kv_gib=5.0, gateway_ms=20.0, policy="least_outstanding", seed=3)
    system = assumptions.with_kv_pool(paper.SYSTEMS["v2"]["E"], 5.0)
    setup = simulation.Setup(steps="roofline", era=None, gateway=0.02)
    swept = simulation.sweep({"E": system}, [1, 10], setup=setup, seed=3, policy="least_outstanding")
    expected = metrics.summarise(swept.requests)
    summary = explore.summary(setting)
    for column in explore.CURVES:
        assert summary[column].tolist() == expected[column].tolist()
    assert explore.summary(setting) is summary, "cached"


def test_real_clusters_are_less_even_than_equal_ones():
    def largest_share(setting: Setting) -> float:
        return explore.simulate(setting, [100]).cluster.value_counts(normalize=True).max()

    assert largest_share(replace(ROOF, clusterer="ward")) > 1.5 * largest_share(ROOF)


def test_the_figure_shows_the_summaries_and_the_second_dashed():
    settings = ROOF, replace(ROOF, system="E")
    axes = explore.picture(*settings).axes
    assert [ax.get_ylabel() for ax in axes] == list(explore.CURVES.values())
    for ax, column in zip(axes, explore.CURVES):
        for line, setting in zip(ax.lines, settings, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [1, 10])
            np.testing.assert_array_equal(line.get_ydata(), explore.summary(setting)[column].astype(float))
        assert ax.lines[0].get_linestyle() == "-" and ax.lines[1].get_linestyle() == "--"


def test_without_kernel_times_the_roofline_is_used_and_named(monkeypatch):
    monkeypatch.setattr(components, "unavailable", lambda: "aiconfigurator is not installed")
    setting = Setting(users=1)
    assert explore.step_source(setting) == "roofline" and "roofline" in explore.provenance(setting)
    assert explore.summary(setting).equals(explore.summary(replace(ROOF, users=1)))
    explore.summary.cache_clear()


def test_the_fewest_gpus_serve_the_load_and_one_engine_less_does_not():
    setting, users = replace(ROOF, system="A", precision="FP16"), 100
    alone = explore.simulate(replace(setting, tensor_parallel=2), [users], count=1)
    limits = beyond.LatencyLimits("", 1000.0, metrics.percentile(metrics.tpot(alone), 99) * 0.7)
    table = explore.what_it_takes(setting, users, limits.ttft_s, limits.tpot_ms, most=8)
    by_size = table.set_index("tensor parallelism")
    assert "does not fit 1 H100" in by_size["why not"][1]
    assert by_size["engines"][2] > 1
    for size, row in by_size.dropna(subset=["GPUs"]).iterrows():
        assert row["GPUs"] == size * row["engines"]
        for count in range(1, row["engines"] + 1):
            rows = explore.simulate(replace(setting, tensor_parallel=size), [users], count)
            assert beyond.holds(rows, limits) == (count == row["engines"])
    assert explore.answer(table).startswith(f"GPUs needed: {table['GPUs'].min()} (")


def test_unreachable_limits_have_no_solution():
    table = explore.what_it_takes(ROOF, 5, ttft_s=1e-6, tpot_ms=1e-6, most=2)
    assert table["GPUs"].isna().all() and (table["why not"] != "").all()
    assert explore.answer(table) == "No number of GPUs tried serves this load within these limits."


@pytest.mark.parametrize("version, name", ALL)
def test_a_spec_restores_its_system(version, name):
    system = explore.system(replace(ROOF, paper=version, system=name))
    assert explore.from_spec(explore.spec(system)) == system


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"expert": {"model": {}, "precision": {}}}'])
def test_other_text_is_refused_as_a_spec(text):
    with pytest.raises(ErlabError, match="Not a system as written by settings.spec"):
        explore.from_spec(text)


@pytest.mark.parametrize("name", ["A", "D"])
def test_the_command_is_accepted_by_reproduce(name, tmp_path):
    words = shlex.split(explore.command(replace(ROOF, system=name, seed=2)))
    done = CliRunner().invoke(app, [*words[1:], "--results", str(tmp_path), "--dry-run"])
    assert words[0] == "erlab" and done.exit_code == 0, done.output


def test_the_notebook_runs_and_its_parameters_run_it_again(tmp_path):
    """papermill runs a small setting, then the parameters that it saved."""

    def run(name: str, **values) -> list:
        results = tmp_path / name
        values |= {"results": str(results)}
        done = papermill.execute_notebook(
            paths.NOTEBOOKS / "explore.ipynb", tmp_path / f"{name}.ipynb", values, cwd=tmp_path, progress_bar=False
        )
        outputs = [o for cell in done.cells if cell.cell_type == "code" for o in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error"]
        kinds = [kind for o in outputs for kind in o.get("data", {})]
        assert kinds.count("application/vnd.jupyter.widget-view+json") == 2
        assert set(kinds) <= SHOWN_EVERYWHERE | {"application/vnd.jupyter.widget-view+json"}
        return [(results / file).read_text() for file in ("parameters.json", "system.json", "curves.csv")]

    first = run("first", **asdict(replace(ROOF, kv_gib=4.5)), other={"system": "E", "steps": "roofline"})
    assert json.loads(first[0])["kv_gib"] == 4.5
    assert run("again", **json.loads(first[0])) == first


# ---- widgets


def test_only_core_widgets_are_used():
    """VS Code and Notebook 7 would have to download any others."""
    shown = panel.Panel(ROOF, replace(ROOF, system="E"))
    waiting, used = [shown, panel.Requirements(shown, users=5, ttft_s=10.0, tpot_ms=1000.0)], set()
    while waiting:
        widget = waiting.pop()
        used.add((widget._model_module, widget._view_module))
        waiting += getattr(widget, "children", ())
    assert used == {("@jupyter-widgets/controls", "@jupyter-widgets/controls")}
    assert shown.image.format == "png" and bytes(shown.image.value).startswith(b"\x89PNG")


def test_changing_a_control_changes_the_figure():
    shown = panel.Panel(ROOF, replace(ROOF, system="E"))
    before, control = bytes(shown.image.value), shown.controls[0].controls
    control["gateway_ms"].value = 100.0
    assert before.startswith(b"\x89PNG") and shown.image.value != before
    assert shown.settings[0] == replace(ROOF, gateway_ms=100.0)
    control["gateway_ms"].value = 2.0
    assert shown.image.value == before, "the same setting, the same bytes"
    shown.compare.value = False
    assert shown.image.value != before and len(shown.settings) == 1


def test_a_refused_setting_shows_a_line_and_the_other_setting_stays():
    shown = panel.Panel(ROOF, replace(ROOF, system="E"))
    shown.controls[0].controls["precision"].value = "FP16"
    assert "does not fit 1 H100" in shown.error.value and shown.image.layout.visibility == "visible"
    shown.compare.value = False
    assert shown.image.layout.visibility == "hidden"
    shown.controls[0].controls["precision"].value = ""
    assert not shown.error.value and shown.image.layout.visibility == "visible"


def test_another_paper_has_other_systems_and_a_baseline_has_no_router_options():
    shown = panel.Panel(replace(ROOF, policy="spill"))
    control = shown.controls[0].controls
    control["paper"].value = "v1"
    assert shown.settings[0].system == "TP8" and shown.settings[0].policy == "nearest"
    assert control["policy"].disabled and not shown.error.value
    control["system"].value = "13B-FP8"
    assert not control["policy"].disabled and shown.settings[0].policy == "spill"


@pytest.mark.parametrize(
    "changes",
    [dict(users=37), dict(kv_gib=4.2), dict(gateway_ms=3.3), dict(system="A", tensor_parallel=3)],
)
def test_values_outside_of_the_offered_ones_are_kept(changes):
    setting = replace(ROOF, **changes)
    assert panel.Panel(setting).settings == [setting]


def test_requirements_follow_the_panel():
    shown = panel.Panel(ROOF)
    search = panel.Requirements(shown, users=5, ttft_s=10.0, tpot_ms=1000.0)
    assert "GPUs needed: 1 (engines: 1, GPUs per engine: 1)" in search.answer.value
    assert "does not fit" not in search.table.value
    shown.controls[0].controls["precision"].value = "FP16"
    search.button.click()
    assert "GPUs needed: 2 (engines: 1, GPUs per engine: 2)" in search.answer.value
    assert "does not fit 1 H100" in search.table.value
    search.ttft.value = 0
    search.button.click()
    assert "must be above 0" in search.answer.value and not search.table.value


def test_a_setting_can_be_compared_with_itself(tmp_path):
    """As with `papermill notebooks/explore.ipynb out.ipynb -p system E`, whose other setting is E too."""
    shown = panel.Panel(ROOF, ROOF)
    assert bytes(shown.image.value).startswith(b"\x89PNG") and explore.numbers(*shown.settings).shape[1] == 2
    assert all(file.is_file() for file in explore.save(tmp_path, *shown.settings))
