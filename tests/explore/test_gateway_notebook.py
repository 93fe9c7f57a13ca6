"""gateway.ipynb runs: it starts a gateway, asks it, loads it and stops it; emulated experts are ready to be asked."""

import papermill
import psutil
import pytest
from fake_triton import COURT, KITCHEN, FakeTriton, echo

from erlab import paths
from erlab.errors import ErlabError
from erlab.explore import trial
from erlab.gateway import prepare
from erlab.routing import PromptRouter
from erlab.serving.triton.server import available


def test_the_notebook_runs_and_leaves_no_process(tmp_path):
    PromptRouter(clusters=2).fit(KITCHEN + COURT).save(tmp_path / "router")
    parameters = {"config": str(tmp_path / "fleet.toml"), "users": 4, "seconds": 1}
    with FakeTriton({"expert-0": echo, "expert-1": echo}) as fake:
        experts = "".join(f'[experts.expert-{i}]\nurl = "grpc://{fake.address}/expert-{i}"\n' for i in range(2))
        (tmp_path / "fleet.toml").write_text(f'[router]\nfolder = "router"\n{experts}')
        executed = execute(tmp_path, parameters)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs), "the plot"
    tables = [output["data"]["text/plain"] for output in outputs if "text/plain" in output.get("data", {})]
    assert any("How do I salt pasta water?" in table for table in tables)
    assert any("ttft_ms" in table and "expert-1" in table for table in tables)
    assert not [p for p in psutil.Process().children(recursive=True) if "erlab.gateway" in " ".join(p.cmdline())]


def execute(folder, parameters):
    return papermill.execute_notebook(
        paths.NOTEBOOKS / "gateway.ipynb", folder / "out.ipynb", parameters, cwd=paths.NOTEBOOKS, progress_bar=False
    )


@pytest.mark.skipif(available() is not None, reason=f"no embedded Triton: {available()}")
def test_emulated_experts_answer(tmp_path):
    with trial._emulated(2, tmp_path) as described:
        assert [expert.name for expert in described.experts] == ["expert-0", "expert-1"]
        assert prepare.problems(described) == {} and described.router.trains


def test_a_wrong_description_starts_nothing(tmp_path):
    with pytest.raises(ErlabError, match="'experts' parameter of trial.start must be from 1 to 8. Got 9"):
        trial.start(experts=9, folder=tmp_path)
    (tmp_path / "fleet.toml").write_text("[experts.a]\nurl = 'x'\n")
    with pytest.raises(ErlabError, match="fleet.toml: .*'url' parameter of expert 'a'"):
        trial.start(tmp_path / "fleet.toml")
