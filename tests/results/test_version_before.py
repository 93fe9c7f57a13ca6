"""Records that the version of commit a9084c6 wrote are drawn into the CSV files that it drew from them."""

from pathlib import Path

import pytest

from erlab import figures
from erlab.results import records

FOLDER = Path(__file__).parent / "version_before"


@pytest.fixture(scope="module")
def tables():
    return figures.data(records.read(FOLDER / "records.parquet")).tables


@pytest.mark.parametrize("name", [file.stem for file in sorted(FOLDER.glob("*.csv"))])
def test_old_records_give_the_same_table(tables, name):
    assert tables[name].to_csv(index=False) == (FOLDER / f"{name}.csv").read_text(encoding="utf-8")
