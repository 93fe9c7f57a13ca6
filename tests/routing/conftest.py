import pytest
from datasets import Dataset
from domain_prompts import make_prompts


@pytest.fixture(scope="session")
def prompts() -> Dataset:
    return Dataset.from_list(make_prompts(400, seed=1))


@pytest.fixture(scope="session")
def texts(prompts) -> list[str]:
    return list(prompts["text"])
