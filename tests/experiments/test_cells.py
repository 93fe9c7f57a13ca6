"""Experiments resume cell by cell and choose baselines by arithmetic; servers and users are stand-ins here.

The real path is run by tests/test_study.py.
"""

import contextlib
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from erlab import users
from erlab.errors import ErlabError
from erlab.experiments import cell, cells, overviews, table1
from erlab.figures import style
from erlab.paths import Folders
from erlab.prompts import workload
from erlab.results import claims, records, selection
from erlab.routing import training
from erlab.serving import deployment, profiles, scaling
from erlab.serving.deployment import Running
from erlab.serving.triton import Server, repository
from erlab.serving.triton.server import available
from erlab.users import OwnLatency, processes

SMOKE = profiles.profile("smoke")
MS = 1_000_000


@pytest.fixture
def folders(tmp_path):
    folders = Folders(tmp_path)
    training.prepare_prompts(SMOKE, folders)
    table1.save({k: 8 for k in "ABCDE"}, folders)
    return folders


@pytest.fixture
def world(monkeypatch):
    """A world without servers: counts what is started, measured and tested; `dies_at` users, the server is dead.

    Every answer takes `first` ms to its first token and 10 ms to each of the ten others. `troubles` happen to the next
    measurements, in turn: "restart" of the server, or "refuse", so that no request ends well.
    """
    state = SimpleNamespace(started=[], measured=[], tested=[], dies_at=None, first=20, troubles=[])
    server = SimpleNamespace(restarts=5, metrics={}, engine=None)

    @contextlib.contextmanager
    def serve(key, system, to, folders, triton, holder):
        state.started.append(key)
        failure = lambda: "The Triton server died." if state.measured[-1][1] == state.dies_at else None  # noqa: E731
        yield SimpleNamespace(address=key, models=("m",), server=server, failure=failure)

    def run(address, models, requests, *, timeout):
        state.measured.append((address, len(requests)))
        first, trouble = state.first * MS, state.troubles.pop(0) if state.troubles else None
        server.restarts += trouble == "restart"
        failed = {"status": "error", "error": "UNAVAILABLE: connection refused"} if trouble == "refuse" else {}
        return [
            {"user": u, "turn": t, "status": "ok", "t_submit": 0, "output_tokens": 11}
            | {"t_first": first, "t_last": first + 100 * MS}
            | failed
            for u, mine in enumerate(requests)
            for t in range(len(mine))
        ]

    def self_test(requests, at, *, engines, seconds):
        state.tested.append((len(requests), *at))
        return OwnLatency(1.5, 1.9, 0.5, 0.9, 0.0, 0.0, 100.0)

    monkeypatch.setattr(users, "self_test", self_test)
    monkeypatch.setattr(deployment, "serve", serve)
    monkeypatch.setattr(users, "run", run)
    return state


def baselines(folders):
    return {k: s for k, s in table1.systems(SMOKE, folders).items() if not s.router}


def test_every_request_of_every_cell_has_a_row(folders, world):
    found = cells.measure("baselines", baselines(folders), SMOKE, folders)
    expected = {(s, n): n * SMOKE.workload.turns_for(n) for s in "ABC" for n in SMOKE.loads}
    assert found.requests.groupby(["system", "users"]).size().to_dict() == expected
    assert sorted(world.started) == ["A", "B", "C"], "one server a system, not a cell"
    assert found.runs.plays.tolist()[0] == "Llama 3 70B FP8, TP 4, 2 replicas"


def test_finished_cells_are_not_measured_again(folders, world):
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1])
    world.started.clear(), world.measured.clear()
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1, 4])
    assert world.measured == [("A", 4), ("B", 4), ("C", 4)]
    world.started.clear()
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1, 4])
    assert world.started == [], "nothing to do starts no server"


@pytest.mark.parametrize("change", ["seed", "limit", "prompts"])
def test_a_cell_is_measured_again_when_what_it_depends_on_changes(folders, world, change):
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1])
    world.measured.clear()
    seed = 1 if change == "seed" else 0
    if change == "limit":
        table1.save({k: 4 if k == "A" else 8 for k in "ABCDE"}, folders)
    if change == "prompts":
        training.prepare_prompts(SMOKE, folders, seed=3)
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1], seed=seed)
    assert world.measured == ([("A", 1)] if change == "limit" else [("A", 1), ("B", 1), ("C", 1)])


def test_a_dead_server_ends_the_sweep_and_its_cell_counts_as_unfinished(folders, world):
    world.dies_at = 4
    with pytest.raises(ErlabError, match="Triton server died.*run again to go on with A at 4"):
        cells.measure("baselines", baselines(folders), SMOKE, folders)
    kept = records.read(folders.records)
    assert set(kept.requests.users) == {1, 4}, "rows of the failed cell are kept"
    world.dies_at = None
    world.measured.clear()
    cells.measure("baselines", baselines(folders), SMOKE, folders)
    assert world.measured[0] == ("A", 4) and ("A", 1) not in world.measured


RESTARTED = r"The server was restarted while it was measured \(restarts: 1\)\."
REFUSED = r"None of \d+ requests ended well \(UNAVAILABLE: connection refused\)\."


@pytest.mark.parametrize("trouble", ["restart", "refuse"])
def test_an_invalid_cell_is_measured_again_at_once(folders, world, trouble):
    world.troubles = [None, trouble]
    found = cells.measure("baselines", baselines(folders), SMOKE, folders)
    assert world.measured[:3] == [("A", 1), ("A", 4), ("A", 4)] and len(world.measured) == 7
    assert (found.requests.status == "ok").all() and not selection.died(found)
    assert found.runs.restarts.tolist() == [0] * 6


@pytest.mark.parametrize("trouble, reason", [("restart", RESTARTED), ("refuse", REFUSED)])
def test_a_cell_that_stays_invalid_ends_the_sweep_and_the_next_one_measures_it_again(folders, world, trouble, reason):
    world.troubles = [None, trouble, trouble]
    with pytest.raises(ErlabError, match=f"^{reason} Finished loads are kept; run again to go on with A at 4 users.$"):
        cells.measure("baselines", baselines(folders), SMOKE, folders)
    kept = records.read(folders.records)
    (invalid,) = selection.died(kept)
    assert set(kept.requests.users) == {1, 4} and set(selection.systems(kept).users) == {1}
    assert re.fullmatch(reason, kept.runs.set_index("run_id").invalid[invalid])
    world.measured.clear()
    found = cells.measure("baselines", baselines(folders), SMOKE, folders)
    assert world.measured[0] == ("A", 4) and ("A", 1) not in world.measured
    assert not selection.died(found) and (found.requests.status == "ok").all()


def test_a_spoiled_preliminary_cell_never_leads_to_a_choice_without_runs(folders, world, monkeypatch):
    world.troubles = ["refuse", "refuse"]
    monkeypatch.setattr(deployment, "server", lambda *_: contextlib.nullcontext())
    with pytest.raises(ErlabError, match=REFUSED):
        cells.measure_preliminary(SMOKE, folders)
    found = cells.measure_preliminary(SMOKE, folders)
    assert set(table1.choose_batch_limits(found, SMOKE)) == set("ABCDE")


def test_a_cell_that_cannot_be_read_is_measured_again(folders, world):
    cells.measure("baselines", baselines(folders), SMOKE, folders)
    world.measured.clear()
    (folders.records / "baselines" / "B-0001users.parquet").write_bytes(b"PAR1")
    cells.measure("baselines", baselines(folders), SMOKE, folders)
    assert world.measured == [("B", 1)]


MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            text = pb_utils.Tensor("text_output", np.array([b"word"], dtype=object))
            last = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            request.get_response_sender().send(pb_utils.InferenceResponse([text]), flags=last)
"""


@pytest.mark.skipif(available() is not None, reason=f"no embedded Triton: {available()}")
def test_a_cell_during_which_triton_was_killed_is_measured_again(folders, world, tmp_path, monkeypatch):
    repository.write(tmp_path / "models", repository.text_model("m", {}), MODEL)
    calls = []

    def run(*asked, **options):
        calls.append(asked[0])
        if len(calls) == 1:
            (triton,) = psutil.Process(server._keeper.pid).children()
            triton.kill()  # the users wait until it has been launched again
            triton.wait(60)
        return processes.run(*asked, **options)

    @contextlib.contextmanager
    def serve(*_, **__):
        yield Running(server.grpc, ("m",), server, None)

    monkeypatch.setattr(users, "run", run)
    monkeypatch.setattr(deployment, "serve", serve)
    with Server(tmp_path / "models") as server:
        found = cells.measure("baselines", {"A": baselines(folders)["A"]}, SMOKE, folders, loads=[4])
    assert len(calls) == 2 and (found.requests.status == "ok").all() and found.runs.restarts.tolist() == [0]


def test_interrupted_sweep_goes_on_where_it_stopped(folders, world, monkeypatch):
    real, calls = users.run, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(users, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cells.measure("baselines", baselines(folders), SMOKE, folders)
    monkeypatch.setattr(users, "run", real)
    world.measured.clear()
    cells.measure("baselines", baselines(folders), SMOKE, folders)
    assert world.measured == [("B", 4), ("C", 1), ("C", 4)]


def test_repetitions_have_other_seeds_and_their_own_files(folders, world):
    once = cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1])
    world.measured.clear()
    found = cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1], repeat=3, seed=0)
    assert world.measured == [(name, 1) for name in "ABC" for _ in range(2)]  # the first repetition is there
    assert found.runs.groupby("system")["seed"].apply(sorted).tolist() == [[0, 1, 2]] * 3
    assert found.runs["run_id"].is_unique and set(once.runs["run_id"]) < set(found.runs["run_id"])
    files = sorted(file.name for file in (folders.records / "baselines").iterdir())
    assert files[:3] == ["A-0001users-1.parquet", "A-0001users-2.parquet", "A-0001users.parquet"] and len(files) == 9
    assert found.runs["client"].notna().all() and overviews.cells(found).index.tolist() == [(name, 1) for name in "ABC"]
    assert len(overviews.telemetry(folders.infrastructure / "baselines")) == 3
    again = cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1])
    assert len(again.runs) == 3 and len(records.read(folders.records).runs) == 3  # the others are set aside


def test_records_of_unselected_loads_are_set_aside(folders, world):
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1, 4])
    found = cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1])
    assert set(found.requests.users) == {1} == set(records.read(folders.records).requests.users)
    world.measured.clear()
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1, 4])
    assert world.measured == [] and set(records.read(folders.records).requests.users) == {1, 4}


def test_there_is_one_self_test_per_load_and_every_run_records_the_client_latency(folders, world):
    found = cells.measure("baselines", baselines(folders), SMOKE, folders)
    assert world.tested == [(1, 0.02, 0.01), (4, 0.02, 0.01)], "not once a system"
    assert [own["ttft_p99"] for own in found.runs.client] == [1.9] * 6 and found.runs.client_invalid.isna().all()
    table = overviews.cells(found)
    assert (table["users add p50 ms"] == 1.5).all() and (table["client"] == "ok").all()
    assert cells.measure("baselines", baselines(folders), SMOKE, folders).runs.client.notna().all()
    assert len(world.tested) == 2, "nothing new, nothing tested"


def test_a_self_test_is_reused_for_systems_that_are_not_faster(folders, world):
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1])
    world.first = 30
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1], seed=1)
    assert len(world.tested) == 1
    world.first = 19
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1], seed=2)
    assert world.tested[1:] == [(1, 0.019, 0.01)]


def test_a_run_whose_users_were_too_slow_is_marked_but_neither_lost_nor_measured_again(folders, world):
    world.first = 12  # of which 1.5 ms are more than a tenth
    found = cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1])
    assert found.runs.client_invalid.str.contains("The users add 1.50 ms to the median time to first token").all()
    assert found.runs.invalid.isna().all() and found.runs.key.notna().all()
    assert overviews.cells(found).client.str.contains("1.50 ms").all()
    assert len(selection.systems(found)) == len(found.requests) and len(selection.marked(found)) == 3
    assert "in 3 of 3 runs the client-side latency" in style.provenance(found, found.requests)
    judged = claims.ledger(found, ["v2-tpot-comm"])
    assert "in 3 of 3 runs the client-side latency" in judged.basis.item() and judged.verdict.item() == claims.FAILS
    world.measured.clear()
    cells.measure("baselines", baselines(folders), SMOKE, folders, loads=[1])
    assert world.measured == []


@pytest.mark.parametrize("loads", [[0], ["8"], [1.5], [-1]])
def test_bad_loads_are_refused_before_anything_starts(folders, world, loads):
    with pytest.raises(ErlabError, match="'loads' parameter"):
        cells.measure("baselines", baselines(folders), SMOKE, folders, loads=loads)
    assert world.started == []


def test_the_limit_with_the_lowest_median_at_the_highest_load_is_chosen(tmp_path, folders):
    seconds = {"P-half-int8-b4": 3, "P-half-int8-b8": 2, "P-half-float32-b4": 4, "P-half-float32-b8": 5}
    seconds |= {"P-all-int8-b4": 9, "P-all-int8-b8": 9, "P-all-float32-b4": 1, "P-all-float32-b8": 7}
    to = replace(SMOKE, batch_limits=(4, 8))
    for name, system in scaling.preliminary_systems(to).items():
        for n in (1, 4):
            run = cell.describe("preliminary", name, system, to, n, 0, folders)
            common = {k: run[k] for k in ("run_id", "paper", "system", "source", "machine", "users")}
            last = seconds[name] if n == 4 else 10 - seconds[name]  # the low load says the opposite
            rows = [common | {"t_submit": 0, "t_last": last * 10**9 + i, "status": "ok"} for i in range(n)]
            rows.append(common | {"t_submit": 0, "t_last": 10**15, "status": "timeout"})
            records.write(tmp_path / "found" / f"{name}-{n}.parquet", rows, run)
    chosen = table1.choose_batch_limits(records.read(tmp_path / "found"), to)
    assert chosen == {"A": 8, "B": 4, "C": 4, "D": 8, "E": 4}


def test_without_triton_nothing_is_measured_and_the_rest_continues(folders, world, monkeypatch):
    said = []
    monkeypatch.setattr("erlab.serving.triton.server.available", lambda: "no wheel for this machine")
    monkeypatch.setattr(cells, "report", lambda *progress: said.append(progress[2]))
    found = cells.measure_preliminary(SMOKE, folders)
    assert found.requests.empty and world.started == []
    assert said == ["preliminary: nothing is measured, Triton cannot run here: no wheel for this machine"]
    assert table1.choose_batch_limits(found, SMOKE) == dict.fromkeys("ABCDE", max(SMOKE.batch_limits))


def test_steps_out_of_order_say_which_notebook_comes_first(tmp_path):
    empty = Folders(tmp_path)
    with pytest.raises(ErlabError, match="03_preliminary"):
        table1.systems(SMOKE, empty)
    with pytest.raises(ErlabError, match="02_train_router"):
        workload.stored(empty)
    with pytest.raises(ErlabError, match="01_build_engines"):
        name, system = next(iter(scaling.preliminary_systems(SMOKE).items()))
        deployment.write_repository({name: system}, "preliminary", SMOKE, empty)


def test_table1_is_written_atomically(folders):
    assert json.loads(folders.table1.read_text()) == {k: 8 for k in "ABCDE"}
    assert [f.name for f in folders.root.iterdir() if f.name.startswith(".")] == []
