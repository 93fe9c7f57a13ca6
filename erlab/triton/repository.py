"""Writes Triton model repositories: a folder a model, with ``config.pbtxt`` and version ``1``.

Configurations are `ModelConfig` protobuf messages from first to last, so a wrong field or type fails here and not in
the server. A model's folder is written beside the repository and renamed into it: a server never sees half a model.

>>> import tempfile
>>> from erlab import paper, spec
>>> expert = spec.Expert(paper.LLAMA_3_8B, spec.FLOAT32, cores=1)
>>> engine, repository = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp()) / "repository"
>>> folder = write_tiny(repository, "expert_0", engine, expert, cores=(0,))
>>> sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
['1/model.py', 'config.pbtxt']
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import (
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
    ModelTransactionPolicy,
    TYPE_BOOL,
    TYPE_INT32,
    TYPE_STRING,
)

from erlab import spec
from erlab.errors import ErlabError
from erlab.spec import require

# The tensors of TensorRT-LLM's ensemble that erlab's clients use; with the batch axis a client sends shape (1, 1).
TEXT_INPUTS = (
    ModelInput(name="text_input", data_type=TYPE_STRING, dims=[1]),
    ModelInput(name="max_tokens", data_type=TYPE_INT32, dims=[1]),
    ModelInput(name="stream", data_type=TYPE_BOOL, dims=[1], optional=True),
)
TEXT_OUTPUTS = (ModelOutput(name="text_output", data_type=TYPE_STRING, dims=[-1]),)


def write_tiny(repository: Path, name: str, engine: Path, expert: spec.Expert, cores: tuple[int, ...]) -> Path:
    """Write the model that serves a tiny Llama's engine folder on these CPU cores (none: unpinned); its folder.

    Raises ErlabError where the engine folder is missing or the cores are not as many distinct ones as the expert's.
    """
    engine = Path(engine).resolve()
    if not engine.is_dir():
        raise ErlabError(f"{engine}: no such engine folder.")
    distinct = len(set(cores)) == len(cores) and all(core >= 0 for core in cores)
    require(distinct, "cores", "write_tiny", "be distinct CPU numbers from 0", cores)
    counted = not cores or expert.cores in (None, len(cores))
    require(counted, "cores", "write_tiny", f"be as many as the expert's {expert.cores}", cores)
    parameters = {
        "engine_dir": str(engine),
        "max_batch_size": str(expert.max_batch_size),
        "max_sequence_tokens": str(expert.max_sequence_tokens),
        "max_input_tokens": str(expert.max_input_tokens),
        "max_output_tokens": str(expert.max_output_tokens),
        "kv_tokens": "" if expert.kv_tokens is None else str(expert.kv_tokens),
        "cores": ",".join(map(str, cores)),
    }
    return write(repository, text_model(name, parameters), "from erlab.engines.tiny_backend import TritonPythonModel\n")


def text_model(name: str, parameters: Mapping[str, str]) -> ModelConfig:
    """A Python-backend model on the CPU that takes a prompt and streams text, as TensorRT-LLM's ensemble does."""
    return ModelConfig(
        name=name,
        backend="python",
        max_batch_size=1,  # one prompt a request: Triton refuses more; in-flight batching is the engine's own
        input=TEXT_INPUTS,
        output=TEXT_OUTPUTS,
        instance_group=[ModelInstanceGroup(count=1, kind=ModelInstanceGroup.KIND_CPU)],
        model_transaction_policy=ModelTransactionPolicy(decoupled=True),
        parameters={key: ModelParameter(string_value=value) for key, value in parameters.items()},
    )


def write(repository: Path, config: ModelConfig, code: str | None = None) -> Path:
    """Write one model (`code` becomes ``1/model.py``), replacing what the repository held under its name."""
    fits = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", config.name) is not None
    require(fits, "name", "write", "be letters, digits, '_', '-' and '.', not '.' first", config.name)
    repository = Path(repository).resolve()
    repository.mkdir(parents=True, exist_ok=True)
    folder = repository / config.name
    aside = repository.with_name(f".{repository.name}.{config.name}.{os.getpid()}")
    replaced = aside.with_name(f"{aside.name}.replaced")
    try:
        (aside / "1").mkdir(parents=True)
        (aside / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
        if code is not None:
            (aside / "1" / "model.py").write_text(code, encoding="utf-8")
        if folder.exists():
            folder.rename(replaced)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return folder
