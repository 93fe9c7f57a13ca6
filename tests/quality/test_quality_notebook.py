"""The quality notebook runs as committed, on a file of outcomes."""

import papermill

from erlab import paths
from erlab.quality import examples, outcomes


def test_the_notebook_runs_on_a_table(tmp_path):
    file = tmp_path / "outcomes.parquet"
    outcomes.save(file, outcomes.conformed(examples.frame(120), "example"))
    done = papermill.execute_notebook(
        paths.NOTEBOOKS / "10_quality.ipynb",
        tmp_path / "done.ipynb",
        {"outcomes": str(file), "folds": 2, "clusters": 4},
        cwd=str(tmp_path),
        progress_bar=False,
    )
    shown = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 7
    assert "120 prompts, 3 experts" in shown[0]["text"]
