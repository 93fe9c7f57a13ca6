"""Emulated expert as a model of Triton's Python backend.

A model's ``1/model.py`` imports `TritonPythonModel` from here. The i-th token of an answer is the text of i and a
space, so that a client sees lost and reordered tokens. Each response ends with the times (ns, time.monotonic) at which
the request arrived and the response was sent, so that a client on this machine can separate the expert's time from the
rest. A prompt has one token per byte and a start token, as in `erlab.prompts.workload`.
"""

import time

from erlab.errors import ErlabError
from erlab.serving.engines.emulated_engine import EmulatedEngine, StepTable
from erlab.serving.engines.python_backend import TextModel, number


class TritonPythonModel(TextModel):
    computes = False
    cancel_checks = 16  # affordable, since it computes nothing

    def load(self, name: str, parameters: dict[str, str]) -> EmulatedEngine:
        try:
            scale = float(parameters.get("time_scale", ""))
        except ValueError:
            got = parameters.get("time_scale")
            raise ErlabError(f"The 'time_scale' parameter of model {name} must be a number. Got {got!r}.") from None
        return EmulatedEngine(
            StepTable.from_json(parameters.get("step_times", "")),
            scale,
            number(name, parameters, "max_batch_size"),
            number(name, parameters, "max_sequence_tokens"),
            number(name, parameters, "kv_tokens"),
        )

    def encode(self, text: str) -> bytes:
        return b"\0" + text.encode()

    def decode(self, tokens: list[int]) -> str:
        return "".join(f"{number} " for number in tokens)

    def text(self, tokens: list[int], arrived: float) -> str:
        return f"{self.decode(tokens)}{int(arrived * 1e9)} {time.monotonic_ns()}"
