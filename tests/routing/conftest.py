import sys
from importlib.util import find_spec

import pytest
from datasets import Dataset
from domain_prompts import make_prompts

if (spec := find_spec("triton")) and spec.origin is None:
    sys.modules["triton"] = None  # the folder tests/triton would pass for torch's optional package of that name


@pytest.fixture(scope="session")
def prompts() -> Dataset:
    return Dataset.from_list(make_prompts(400, seed=1))


@pytest.fixture(scope="session")
def texts(prompts) -> list[str]:
    return list(prompts["text"])
