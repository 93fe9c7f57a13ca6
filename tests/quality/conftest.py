"""Outcome tables of the tests: the project's example, and real ones where the folder is there."""

import pytest

from erlab import paths
from erlab.quality import evaluation, examples, importers, outcomes


@pytest.fixture(scope="session")
def example():
    return examples.outcomes(300)


@pytest.fixture(scope="session")
def judged(example):
    """The evaluation of all routers on the example."""
    return evaluation.evaluate(example, folds=2, clusters=6)


@pytest.fixture
def real():
    """Real outcomes by file name."""

    def read(name):
        path = paths.ROOT.parent / "shared" / "outcomes" / name
        if not path.is_file():
            pytest.skip("the folder of real outcomes is not beside the repository")
        return outcomes.of_table(importers.read([path]), name)

    return read
