"""The whole study, for real, at its smallest scale: notebooks, Triton, gateway, users, figures, claims, report."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from attacks import assert_strangers_are_refused
from leftovers import nobodys_shared_memory
from typer.testing import CliRunner

from erlab import fingerprint, paper, users
from erlab.commands.app import app
from erlab.experiments import capacity
from erlab.prompts.workload import Request
from erlab.results import records
from erlab.routing import PromptRouter
from erlab.serving import profiles
from erlab.serving.triton import server

pytestmark = [
    pytest.mark.skipif(bool(server.available()), reason=f"the embedded Triton cannot run here: {server.available()}"),
    pytest.mark.timeout(900),
]


ERLAB = Path(sys.executable).with_name("erlab")


def erlab(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([ERLAB, *arguments], capture_output=True, text=True, timeout=800)


def smoke(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    where = ("--profile", "smoke", "--results", str(folder), "--figures", str(folder / "figures"))
    return erlab("reproduce", *where, *arguments)


def test_every_notebook_was_executed_to_its_end(study):
    for i in range(10):
        (file,) = (study / "notebooks").glob(f"{i:02d}_*.ipynb")
        cells = [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"]
        assert all(c.execution_count for c in cells)
        assert file.with_suffix(".html").stat().st_size > 10_000


def test_every_request_ended_well_in_exactly_one_row(study):
    found = records.read(study / "records")
    assert (found.requests.status == "ok").all(), found.requests.error.dropna().unique()
    assert not found.requests.duplicated(["run_id", "user", "turn"]).any()
    assert set(found.requests.system) >= set("ABCDE")
    made = found.requests.groupby(["source", "run_id", "users"]).size().reset_index(name="rows")
    loads = {"measured": profiles.profile("smoke").workload, "simulated": paper.WORKLOAD}
    expected = [loads[source].turns_for(n) * n for source, n in zip(made.source, made.users)]
    assert made.rows.tolist() == expected and set(made.source) == set(loads)


def test_users_are_a_closed_loop(study):
    """A user's next prompt leaves when the last answer is complete, so never more than N are in flight."""
    requests = records.read(study / "records").requests.sort_values(["run_id", "user", "turn"])
    previous = requests.groupby(["run_id", "user"]).t_last.shift()
    later = previous.notna()
    assert (requests.t_submit[later] >= previous[later]).all()
    assert (requests.t_submit < requests.t_first).all() and (requests.t_first <= requests.t_last).all()
    measured = requests[requests.source == "measured"]
    assert measured.token_times.map(lambda t: list(t) == sorted(t)).all()


def test_all_systems_got_the_same_requests(study):
    requests = records.read(study / "records" / "baselines", study / "records" / "router").requests
    asked = requests.set_index(["users", "user", "turn", "system"])[["prompt_id", "input_tokens", "output_tokens"]]
    for _, rows in asked.groupby(["users", "user", "turn"]):
        assert len(rows.drop_duplicates()) == 1


def test_records_of_router_systems_name_the_expert_of_each_request(study):
    requests = records.read(study / "records").requests
    routed = requests.system.isin(capacity.ROUTERS)
    for column in ("cluster", "expert", "distance", "margin", "policy", "t_routed"):
        assert requests[column][routed].notna().all() and requests[column][~routed].isna().all(), column
    assert (requests.t_routed >= requests.t_submit)[routed].all() and (requests.t_routed <= requests.t_first)[routed].all()
    placed = requests[routed].groupby(["source", "system", "cluster"]).expert.nunique()
    assert (placed == 1).all(), "a cluster belongs to one expert"


def test_every_figure_is_there_with_its_numbers(study):
    for name in [f"fig{i}" for i in range(1, 8)] + ["table1"]:
        assert (study / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (study / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_csv(study / "figures" / f"{name}.csv"))


def test_tables_beyond_the_paper_and_of_the_validation_are_saved(study):
    for name in ("policies", "autoscaling", "economics", "goodput", "largest_loads", "day_summary", "sensitivity", "survival"):
        assert len(pd.read_csv(study / "beyond" / f"{name}.csv")), name
    assert set(pd.read_csv(study / "beyond" / "sensitivity.csv").id) == {claim.id for claim in paper.CLAIMS}
    targets = pd.read_csv(study / "validation" / "targets.csv")
    assert (targets.met == "yes").all(), targets
    for picture in (study / "beyond" / "sensitivity.png", study / "validation" / "published.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_ledger_has_a_verdict_on_every_claim(study):
    ledger = pd.read_csv(study / "claims.csv")
    assert ledger.id.nunique() == 10 and (study / "claims.md").is_file()
    tested = ledger[ledger.verdict.isin(["holds", "does not hold"])]
    measured = tested[tested.basis.str.startswith("measured on")]
    simulated = tested[tested.basis.str.startswith("simulated on")]
    assert len(measured) + len(simulated) == len(tested)
    assert set(simulated.id) == set(ledger.id), "every claim can be tested at full scale"
    assert {"v2-ttft-baselines", "v2-tpot-8b", "v2-overhead-minimal"} <= set(measured.id)
    assert not measured.id.str.startswith("v1-").any(), "no v1 system runs on the laptop"


def test_the_report_stands_alone_and_its_links_lead_somewhere(study):
    html = (study / "report.html").read_text()
    for target in re.findall(r'(?:href|src)="([^"#]+)"', html):
        assert target.startswith(("data:", "https://arxiv.org/")) or (study / target).exists(), target[:80]
    assert html.count("data:image/") >= 7


def test_the_manifest_records_the_provenance(study):
    manifest = json.loads((study / "manifest.json").read_text())
    for key in ("commit", "dirty", "packages", "hardware", "seed", "parameters", "inputs"):
        assert key in manifest
    grammar = next(v for k, v in manifest["inputs"].items() if k.endswith("grammar.toml"))
    assert grammar == fingerprint.of_file(Path(fingerprint.PACKAGE).parent / "data" / "prompts" / "grammar.toml")


def test_an_unchanged_study_runs_nothing(study):
    before = {f: f.stat().st_mtime_ns for f in study.rglob("*") if f.is_file() and f.name != ".lock"}
    done = smoke(study)
    assert done.returncode == 0 and done.stdout.count(": cached") == 11, done.stdout + done.stderr
    assert {f: f.stat().st_mtime_ns for f in study.rglob("*") if f.is_file() and f.name != ".lock"} == before


def test_a_machine_without_the_wheels_runs_the_rest_and_says_what_is_left_out(study, tmp_path):
    """As on macOS: no Triton, no measured step times. What was measured before is not there any more; nothing fails."""
    (tmp_path / "sitecustomize.py").write_text(
        "import platform, sys\nplatform.machine = lambda: 'arm64'\nsys.modules['aiconfigurator'] = None\n"
    )
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    where = ("--profile", "smoke", "--results", str(folder), "--figures", str(folder / "figures"))
    command = [ERLAB, "reproduce", *where, "--only", "03", "--only", "09", "--force"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is measured, Triton cannot run here" in done.stdout
    assert "preliminary: simulated with the roofline, the limit, without measured step times" in done.stdout
    simulated = records.read(folder / "records" / "simulated" / "preliminary").requests
    assert set(simulated.machine) == {"DGX H100 (simulated, roofline limit)"}
    assert "09_validation: left out, aiconfigurator" in done.stdout
    assert json.loads((folder / "table1.json").read_text()) == dict.fromkeys("ABCDE", 8), "the largest limit"


def test_real_prompts_make_real_clusters(tmp_path, real_prompts):
    """A dataset list of real prompts, of which one is missing: named in terminal and manifest."""
    quick = ("--set", "recipes=['paper']", "--set", "seeds=1")
    listed = tmp_path / "list.toml"
    listed.write_text(f'[[dataset]]\npath = "{real_prompts}"\nlicence = "several"\n[[dataset]]\npath = "gone.jsonl"\n')
    done = smoke(tmp_path, "--only", "02", "--prompts", str(listed), "--skip-missing", *quick)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Left out: {tmp_path}/gone.jsonl: no such file or folder." in done.stdout
    taken, gone = json.loads((tmp_path / "manifest.json").read_text())["datasets"]
    assert taken["rows"] > 10_000 and taken["licence"] == "several" and gone["missing"] and gone["rows"] is None
    summary = json.loads((tmp_path / "router" / "summary.json").read_text())
    domains = {name for cluster in summary["clusters"] for name in cluster["domains"]}
    assert {"law", "math", "medicine", "music"} <= domains


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--set", "k=0"), "'k'"),
        (("--only", "02", "--set", "clusters=0"), "clusters"),
        (("--only", "02", "--set", "clusters=100000"), "clusters"),
        (("--only", "02", "--prompts", "nowhere"), "nowhere"),
        (("--only", "04"), "01_build_engines"),
        (("--only", "04", "--set", "loads=[0]"), "loads"),
        (("--triton", "nonsense",), "HOST:PORT"),
        (("--only", "12"), "'12'"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, arguments, says):
    where = ["--profile", "smoke", "--results", str(tmp_path), "--figures", str(tmp_path / "figures")]
    done = CliRunner().invoke(app, ["reproduce", *where, *arguments])
    assert done.exit_code == 2, done.output
    assert len(done.stderr.strip().splitlines()) == 1 and says in done.stderr and "Traceback" not in done.stdout


def test_a_system_is_served_with_the_requested_policy(study, tmp_path):
    """What fits no cluster goes to the generalist, and the rest where it belongs."""
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    texts = pd.read_parquet(folder / "prompts.parquet").text.str.slice(0, 100).tolist()  # the engines take little more
    routing = PromptRouter.load(folder / "router").route(texts)
    odd, usual = np.flatnonzero(routing.outlier & (routing.cluster % 2 == 0)), np.flatnonzero(~routing.outlier)
    chosen = [*odd[:5], *usual[:15]]
    assert len(chosen) > 15
    wanted = ["E-expert-1"] * (len(chosen) - 15) + [f"E-expert-{routing.cluster[i] % 2}" for i in usual[:15]]
    options = ("--system", "E", "--policy", "outlier", "--generalist", "E-expert-1")
    command = [ERLAB, "serve", "--profile", "smoke", "--results", folder, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            told = next(line for line in process.stdout if "answers at" in line)
            address = re.search(r"answers at (\S+) ", told)[1]
            asked = [[Request(str(i), "d", texts[i], 9, 2)] for i in chosen]
            rows = users.run(address, ("router",), asked, timeout=60)
            assert_strangers_are_refused(process.pid, tmp_path / "marker")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 130
        finally:
            process.kill()
    assert {row["status"] for row in rows} == {"ok"} and {row["policy"] for row in rows} == {"outlier"}
    assert [row["expert"] for row in rows] == wanted


def test_a_served_system_ends_with_its_terminal(tmp_path):
    before = nobodys_shared_memory()
    command = [ERLAB, "serve", "--profile", "smoke", "--system", "A", "--results", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any("Ctrl-C stops it" in line for line in process.stdout), process.stderr.read()
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGHUP)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.terminate()
    assert (process.returncode, errors) == (129, "erlab: System A is stopped.\n")
    _, alive = psutil.wait_procs(started, timeout=60)
    assert started and not alive and not nobodys_shared_memory() - before


def test_ctrl_c_keeps_finished_cells_and_leaves_nothing_running(study, tmp_path):
    """Interrupt a sweep after its first cell: no process and no shared memory stays, the next run goes on."""
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    where = ("--profile", "smoke", "--results", str(folder), "--figures", str(folder / "figures"))
    command = [ERLAB, "reproduce", *where, "--only", "04", "--set", "loads=[1]", "--force"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        lines = iter(running.stdout.readline, "")
        assert any(re.match(r"\s*1/3 ", line) for line in lines), running.stderr.read()
        started = psutil.Process(running.pid).children(recursive=True)
        os.kill(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and "same command again to resume" in errors and "Traceback" not in errors
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive, alive
    kept = records.read(folder / "records" / "baselines").requests
    assert kept.groupby(["system", "users"]).ngroups >= 1
    done = smoke(folder, "--only", "04", "--set", "loads=[1]")
    assert done.returncode == 0 and re.search(r"[12]/3 baselines: [12] of 3 cells are there", done.stdout), done.stdout
