"""What the gateway costs: the same requests to the same experts both ways, nothing lost, and sums that add up."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from erlab.errors import ErlabError
from erlab.experiments import overhead, overhead_tables
from erlab.figures import overhead as pictures
from erlab.paths import Folders
from erlab.results import metrics, records, selection
from erlab.routing import PromptRouter, training
from erlab.serving import profiles
from erlab.serving.triton.server import available
from erlab.simulation.components import unavailable
from erlab.spec import Emulation

SMOKE = profiles.profile("smoke")
MS = 1_000_000
missing = available() or unavailable()
needs_both = pytest.mark.skipif(bool(missing), reason=f"nothing can be emulated here: {missing}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = Folders(tmp_path_factory.mktemp("overhead"))
    training.prepare_prompts(SMOKE, folders)
    prompts = pd.read_parquet(folders.prompts)
    PromptRouter(clusters=3).fit(prompts.text[prompts.split == "train"].tolist()).save(folders.router)
    return folders


@pytest.fixture(scope="module")
def measured(folders):
    short = replace(Emulation().workload, least_requests=8)
    to = replace(SMOKE, emulation=Emulation((2, 40), 1.0, short))
    return overhead.measure(to, folders)


@needs_both
def test_no_request_is_lost_and_no_token_out_of_order(measured):
    requests = measured.requests
    assert requests.groupby(["system", "users"]).size().to_dict() == {
        (f"emulated-E-{way}", n): requests_of for way in overhead.WAYS for n, requests_of in ((2, 8), (40, 80))
    }
    assert (requests.status == "ok").all() and (requests.disordered == 0).all()
    table = overhead_tables.added(measured)
    assert (table[["lost", "tokens_missing", "disordered"]] == 0).all(axis=None)
    assert table.requests.tolist() == [16, 160] and set(table["time scale"]) == {1.0}


@needs_both
def test_both_ways_send_the_same_requests_to_the_same_experts(measured):
    key = ["users", "user", "turn"]
    direct, gateway = (
        measured.requests[measured.requests.system == f"emulated-E-{way}"].set_index(key).sort_index()
        for way in overhead.WAYS
    )
    for column in ("prompt_id", "input_tokens", "output_tokens", "expert"):
        assert direct[column].equals(gateway[column]), column
    assert gateway.expert.nunique() == 3 and gateway.cluster.notna().all() and direct.cluster.isna().all()


@needs_both
def test_the_parts_sum_to_the_time_to_first_token(measured):
    """Request by request: to the gateway + classify + queue + the expert + the rest is the time to first token."""
    rows = measured.requests[measured.requests.cluster.notna()]
    ttft = metrics.ttft(rows) * 1e3
    assert (overhead_tables.outside(rows) < ttft).all() and (overhead_tables.outside(rows) > 0).all()
    assert (rows.expert_ns > 0).all()
    parts = overhead_tables.parts(measured)
    assert (parts["p50 ms"] >= 0).all() and (parts["p50 ms"] <= parts["p99 ms"]).all()
    counted = rows[rows.turn >= overhead_tables.WARMUP].groupby("users").head(5)
    for i, whole in ttft[counted.index].items():
        alone = overhead_tables.parts(records.Records(measured.requests.loc[[i]], measured.runs))
        assert alone.drop("client wait", level="part")["p50 ms"].sum() == pytest.approx(whole, abs=0.01)


@needs_both
def test_records_of_emulated_experts_are_labelled_and_in_no_figure(measured, folders):
    assert measured.requests.machine.str.startswith("emulated experts (H100, 1 times slower) on ").all()
    assert set(measured.requests.source) == {"measured"} and set(measured.runs.experiment) == {"emulated"}
    assert not list(folders.records.rglob("*.parquet"))
    with pytest.raises(ErlabError, match="No records of any system"):
        selection.systems(measured)
    nameless = records.Records(measured.requests, pd.DataFrame())
    with pytest.raises(ErlabError, match="No records of any system"):
        selection.systems(nameless)


@needs_both
def test_the_figure_is_saved_with_its_numbers(measured, folders):
    picture = pictures.show(folders, measured)
    folder = folders.overhead.root
    assert pd.read_csv(folder / "overhead.csv").users.tolist() == [2, 2, 40, 40]
    assert (folder / "overhead.png").read_bytes() == picture._repr_png_()
    assert "emulated experts (H100, 1 times slower)" in picture.get_supxlabel()
    assert measured.runs.client.notna().all(), "the users tested themselves here too"


@needs_both
def test_finished_loads_are_not_measured_again(measured, folders, monkeypatch):
    monkeypatch.setattr(overhead, "Server", None)
    to = replace(SMOKE, emulation=Emulation((2, 40), 1.0, replace(Emulation().workload, least_requests=8)))
    assert len(overhead.measure(to, folders).requests) == len(measured.requests)


def found(*rows, tokens_asked=20):
    """Records of one load, both ways, from (way, turn, t_first in ms, expert's ms, tokens, disordered, status)."""
    frame = pd.DataFrame(
        [
            {"run_id": way, "users": 2, "turn": turn, "t_submit": 0, "t_first": first * MS, "expert_ns": own * MS}
            | {"output_tokens": tokens, "disordered": disordered, "status": status}
            for way, turn, first, own, tokens, disordered, status in rows
        ]
    ).convert_dtypes()
    common = {"users": 2, "tokens_asked": tokens_asked, "time_scale": 5.0, "machine": "m"}
    cpu = {"direct": None, "gateway": 1.0}
    runs = [common | {"run_id": way, "way": way, "gateway_cpu_s": cpu[way]} for way in overhead.WAYS]
    return records.Records(frame, pd.DataFrame(runs))


def test_added_latency_is_the_time_outside_of_the_experts_after_the_first_turn():
    given = found(
        ("direct", 0, 900, 100, 10, 0, "ok"),
        ("direct", 1, 102, 100, 10, 0, "ok"),
        ("gateway", 0, 990, 100, 10, 3, "ok"),
        ("gateway", 1, 55, 50, 5, 0, "error"),
        ("gateway", 1, 157, 150, 4, 0, "ok"),
    )
    table = overhead_tables.added(given).loc[2]
    assert table["added p50 ms"] == pytest.approx(7 - 2) and table["added at the start p50 ms"] == pytest.approx(90)
    assert (table.requests, table.lost, table.tokens_missing, table.disordered) == (5, 1, 1, 3)


def test_where_nothing_was_measured_the_tables_are_empty(tmp_path):
    nothing = records.at_hand(tmp_path)
    assert overhead_tables.added(nothing).empty and overhead_tables.parts(nothing).empty
    assert pictures.show(Folders(Path(tmp_path)), nothing) == "Nothing was measured here."
