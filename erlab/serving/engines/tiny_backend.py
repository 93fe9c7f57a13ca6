"""Tiny engine as a model of Triton's Python backend.

A model's ``1/model.py`` imports `TritonPythonModel` from here. All its threads run on the cores that its configuration
names.
"""

import os

# Threads that wait for each other must not spin: server and clients may need their cores. OpenMP reads this once, when
# torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# ruff: noqa: E402
from pathlib import Path

import torch

from erlab.errors import ErlabError
from erlab.serving.engines import tiny
from erlab.serving.engines.python_backend import TextModel, number
from erlab.serving.engines.tiny_engine import TinyEngine

# Experts yield the cores to server, gateway and users, which on a GPU machine have a CPU of their own. Otherwise tokens
# wait in Triton until the batch is empty and arrive all at once.
_NICE = 10


class TritonPythonModel(TextModel):
    encode = staticmethod(tiny.encode)
    decode = staticmethod(tiny.decode)

    def load(self, name: str, parameters: dict[str, str]) -> TinyEngine:
        """Pin, load and warm up the engine; ErlabError where a parameter is wrong."""
        cores = _pin(name, parameters.get("cores", ""))
        os.nice(_NICE)
        engine = TinyEngine(
            Path(parameters.get("engine_dir", "")),
            number(name, parameters, "max_batch_size"),
            number(name, parameters, "max_sequence_tokens"),
            number(name, parameters, "kv_tokens") if parameters.get("kv_tokens") else None,
            threads=cores,
        )
        engine.submit("warm-up", tiny.encode("warm up")[: number(name, parameters, "max_input_tokens")], 1)
        engine.step()
        return engine


def _pin(model: str, cores: str) -> int:
    """Pin this process to a list of cores such as "0,1" ("" for none) and return the number of threads."""
    if not cores:
        return torch.get_num_threads()
    if not all(core.isdecimal() for core in cores.split(",")):
        raise ErlabError(f"The 'cores' parameter of model {model} must be numbers with commas between. Got {cores!r}.")
    numbers = {int(core) for core in cores.split(",")}
    if hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, numbers)
        except OSError:
            here = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            raise ErlabError(f"The 'cores' parameter of model {model} must be among {here}. Got {cores!r}.") from None
    return len(numbers)
