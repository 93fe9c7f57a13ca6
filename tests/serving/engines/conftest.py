import pytest
import torch

from erlab.serving.engines import tiny
from erlab.spec import FLOAT32, INT8_CPU, Model

MODEL = Model("test", hidden=128, layers=3, heads=4, kv_heads=2, intermediate=192, vocab=260, max_positions=512)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=[FLOAT32, INT8_CPU], ids=lambda p: p.name)
def engine_folder(request, tmp_path_factory):
    """An engine of each precision."""
    return tiny.build(tmp_path_factory.mktemp("engines") / request.param.name, MODEL, request.param, seed=7)


@pytest.fixture(scope="session")
def answers(engine_folder):
    """What transformers answers: a function of prompt ids and a number of tokens."""
    model = tiny.reference(engine_folder)

    def answer(prompt: list[int], tokens: int) -> list[int]:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
        return out[0, len(prompt) :].tolist()

    return answer
