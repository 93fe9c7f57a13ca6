"""Triton model repositories: one folder per model, with ``config.pbtxt`` and version ``1``.

An expert is served by one Python-backend model (`text_model`) or by TensorRT-LLM's ensemble (`write_trtllm`); clients
see the same tensors. Configurations are `ModelConfig` protobuf messages, so that a wrong field or type fails here and
not in the server. A model's folder is written beside the repository and renamed into it, so that a server never sees a
part.

>>> import tempfile
>>> folder = write(Path(tempfile.mkdtemp()) / "repository", text_model("expert_0", {"cores": "0"}), "# code")
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
    TYPE_BOOL,
    TYPE_FP16,
    TYPE_FP32,
    TYPE_INT32,
    TYPE_INT64,
    TYPE_STRING,
    TYPE_UINT64,
    ModelConfig,
    ModelDynamicBatching,
    ModelEnsembling,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
    ModelTensorReshape,
    ModelTransactionPolicy,
)

from erlab import paper, spec
from erlab.errors import ErlabError
from erlab.spec import require

# Tensors of TensorRT-LLM's ensemble that clients use; with the batch axis, shape (1, 1).
TEXT_INPUTS = (
    ModelInput(name="text_input", data_type=TYPE_STRING, dims=[1]),
    ModelInput(name="max_tokens", data_type=TYPE_INT32, dims=[1]),
    ModelInput(name="stream", data_type=TYPE_BOOL, dims=[1], optional=True),
)
TEXT_OUTPUTS = (ModelOutput(name="text_output", data_type=TYPE_STRING, dims=[-1]),)
BACKEND_MODELS = Path("/app/all_models/inflight_batcher_llm")  # TensorRT-LLM's own Triton models in NVIDIA's container
PARTS = ("", "-preprocessing", "-tensorrt_llm", "-postprocessing")  # suffixes of the ensemble's models
GREEDY = {"greedy": "true"}  # tells the gateway that the most likely token is always taken
_ON_CPU = ModelInstanceGroup(count=1, kind=ModelInstanceGroup.KIND_CPU)


def limits(expert: spec.Expert) -> dict[str, str]:
    """Return the parameters of a Python-backend model that bound an expert's requests."""
    names = ("max_batch_size", "max_sequence_tokens", "max_input_tokens", "max_output_tokens")
    return {name: str(getattr(expert, name)) for name in names}


def text_model(name: str, parameters: Mapping[str, str]) -> ModelConfig:
    """Return a greedy Python-backend model on the CPU with the tensors of TensorRT-LLM's ensemble."""
    return ModelConfig(
        name=name,
        backend="python",
        max_batch_size=1,  # one prompt per request; the engine does in-flight batching
        input=TEXT_INPUTS,
        output=TEXT_OUTPUTS,
        instance_group=[_ON_CPU],
        model_transaction_policy=ModelTransactionPolicy(decoupled=True),
        parameters=_parameters({**parameters, **GREEDY}),
    )


def write_trtllm(
    repository: Path,
    name: str,
    engine: Path,
    expert: spec.Expert,
    gpus: tuple[int, ...],
    tokenizer: Path,
    kv_fraction: float = paper.FREE_FRACTION,
    backend_models: Path = BACKEND_MODELS,
) -> Path:
    """Write the four models that serve a TensorRT-LLM engine: an ensemble and its three parts.

    The parts ``NAME-preprocessing``, ``NAME-tensorrt_llm`` and ``NAME-postprocessing`` belong to one ensemble, so that
    distinct experts can share a server in orchestrator mode. Answers have exactly `max_tokens` tokens, as on the
    laptop, since no end-of-sequence token is configured.

    Args:
        tokenizer: Tokenizer folder, of real weights or written by `engines.tokenizer`.
        kv_fraction: Share of the free GPU memory for the KV cache, in (0, 1], up to the expert's `kv_tokens`.
    """
    engine, tokenizer = Path(engine).resolve(), Path(tokenizer).resolve()
    for what, folder in (("engine", engine), ("tokenizer", tokenizer)):
        if not folder.is_dir():
            raise ErlabError(f"{folder}: no such {what} folder.")
    tp = expert.tensor_parallel
    distinct = len(gpus) == len(set(gpus)) == tp and all(gpu >= 0 for gpu in gpus)
    require(distinct, "gpus", "write_trtllm", f"be as many distinct GPU numbers as the expert takes, {tp}", gpus)
    require(0 < kv_fraction <= 1, "kv_fraction", "write_trtllm", "lie in (0, 1]", kv_fraction)
    _, before, model, after = (f"{name}{part}" for part in PARTS)
    write(repository, _preprocessing(before, expert, tokenizer), _code(backend_models, "preprocessing"))
    write(repository, _engine_model(model, engine, expert, gpus, kv_fraction))
    write(repository, _postprocessing(after, expert, tokenizer), _code(backend_models, "postprocessing"))
    return write(repository, _ensemble(name, before, model, after))


def _ensemble(name: str, before: str, model: str, after: str) -> ModelConfig:
    """Return the ensemble: text to tokens, tokens to tokens, tokens to text. Tensors with "_" are internal."""
    step = ModelEnsembling.Step
    steps = [
        step(
            model_name=before,
            model_version=-1,
            input_map={"QUERY": "text_input", "REQUEST_OUTPUT_LEN": "max_tokens"},
            output_map={
                "INPUT_ID": "_input_ids",
                "REQUEST_INPUT_LEN": "_input_lengths",
                "REQUEST_OUTPUT_LEN": "_output_lengths",
            },
        ),
        step(
            model_name=model,
            model_version=-1,
            input_map={
                "input_ids": "_input_ids",
                "input_lengths": "_input_lengths",
                "request_output_len": "_output_lengths",
                "streaming": "stream",
            },
            output_map={"output_ids": "_output_ids", "sequence_length": "_sequence_lengths"},
        ),
        step(
            model_name=after,
            model_version=-1,
            input_map={"TOKENS_BATCH": "_output_ids", "SEQUENCE_LENGTH": "_sequence_lengths"},
            output_map={"OUTPUT": "text_output"},
        ),
    ]
    return ModelConfig(
        name=name,
        platform="ensemble",
        max_batch_size=1,
        input=TEXT_INPUTS,
        output=TEXT_OUTPUTS,
        ensemble_scheduling=ModelEnsembling(step=steps),
    )


def _preprocessing(name: str, expert: spec.Expert, tokenizer: Path) -> ModelConfig:
    """Return the preprocessing model. Its code looks up all these tensors; a text request uses a few."""
    outputs = (
        ("INPUT_ID", TYPE_INT32, [-1]),
        ("REQUEST_INPUT_LEN", TYPE_INT32, [1]),
        ("DECODER_INPUT_ID", TYPE_INT32, [-1]),
        ("REQUEST_DECODER_INPUT_LEN", TYPE_INT32, [1]),
        ("BAD_WORDS_IDS", TYPE_INT32, [2, -1]),
        ("STOP_WORDS_IDS", TYPE_INT32, [2, -1]),
        ("EMBEDDING_BIAS", TYPE_FP32, [-1]),
        ("REQUEST_OUTPUT_LEN", TYPE_INT32, [-1]),
        ("OUT_END_ID", TYPE_INT32, [1]),
        ("OUT_PAD_ID", TYPE_INT32, [1]),
        ("OUT_PROMPT_TABLE_EXTRA_IDS", TYPE_UINT64, [-1]),
        ("PIXEL_VALUES", TYPE_FP16, [-1, -1, -1, -1]),
        ("IMAGE_SIZES", TYPE_INT64, [-1, 2]),
    )
    return ModelConfig(
        name=name,
        backend="python",
        max_batch_size=expert.max_batch_size,
        input=[
            ModelInput(name="QUERY", data_type=TYPE_STRING, dims=[1]),
            ModelInput(name="REQUEST_OUTPUT_LEN", data_type=TYPE_INT32, dims=[1]),
            ModelInput(name="EMBEDDING_BIAS_WORDS", data_type=TYPE_STRING, dims=[-1], optional=True),
            ModelInput(name="EMBEDDING_BIAS_WEIGHTS", data_type=TYPE_FP32, dims=[-1], optional=True),
        ],
        output=[ModelOutput(name=output, data_type=kind, dims=dims) for output, kind, dims in outputs],
        instance_group=[_ON_CPU],
        dynamic_batching=ModelDynamicBatching(),
        parameters=_parameters(
            {"tokenizer_dir": str(tokenizer), "add_special_tokens": "true", "multimodal_model_path": ""}
        ),
    )


def _engine_model(
    name: str, engine: Path, expert: spec.Expert, gpus: tuple[int, ...], kv_fraction: float
) -> ModelConfig:
    """Return the model of the C++ backend, which does in-flight batching; Triton's batcher passes requests on."""
    scalar = {"dims": [1], "reshape": ModelTensorReshape()}
    parameters = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(engine),
        "gpu_device_ids": ",".join(map(str, gpus)),
        "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "kv_cache_free_gpu_mem_fraction": str(kv_fraction),
        "exclude_input_in_output": "true",  # otherwise every answer begins with its prompt
        "enable_kv_cache_reuse": "false",  # otherwise a repeated prompt is not computed again
        "enable_chunked_context": "false",
        "max_beam_width": "1",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
    }
    if expert.kv_tokens is not None:
        parameters["max_tokens_in_paged_kv_cache"] = str(expert.kv_tokens)
    return ModelConfig(
        name=name,
        backend="tensorrtllm",
        max_batch_size=expert.max_batch_size,
        input=[
            ModelInput(name="input_ids", data_type=TYPE_INT32, dims=[-1], allow_ragged_batch=True, optional=True),
            ModelInput(name="input_lengths", data_type=TYPE_INT32, **scalar),
            ModelInput(name="request_output_len", data_type=TYPE_INT32, **scalar),
            ModelInput(name="streaming", data_type=TYPE_BOOL, optional=True, **scalar),
        ],
        output=[
            ModelOutput(name="output_ids", data_type=TYPE_INT32, dims=[-1, -1]),
            ModelOutput(name="sequence_length", data_type=TYPE_INT32, dims=[-1]),
        ],
        instance_group=[_ON_CPU],  # of the backend's code; gpu_device_ids places the engine
        model_transaction_policy=ModelTransactionPolicy(decoupled=True),
        dynamic_batching=ModelDynamicBatching(preferred_batch_size=[expert.max_batch_size]),
        parameters=_parameters(parameters),
    )


def _postprocessing(name: str, expert: spec.Expert, tokenizer: Path) -> ModelConfig:
    """Return the postprocessing model: one instance, since two would reorder the tokens of a stream.

    Special tokens become text, since dummy weights choose any token and each must be visible.
    """
    return ModelConfig(
        name=name,
        backend="python",
        max_batch_size=expert.max_batch_size,
        input=[
            ModelInput(name="TOKENS_BATCH", data_type=TYPE_INT32, dims=[-1, -1]),
            ModelInput(name="SEQUENCE_LENGTH", data_type=TYPE_INT32, dims=[-1]),
        ],
        output=[ModelOutput(name="OUTPUT", data_type=TYPE_STRING, dims=[-1])],
        instance_group=[_ON_CPU],
        dynamic_batching=ModelDynamicBatching(),
        parameters=_parameters({"tokenizer_dir": str(tokenizer), "skip_special_tokens": "false"}),
    )


def _code(backend_models: Path, model: str) -> str:
    """Return a model.py that runs the code of the backend on the server."""
    path = str(Path(backend_models) / model / "1" / "model.py")
    return (
        "from importlib.util import module_from_spec, spec_from_file_location\n\n"
        f"spec = spec_from_file_location({model!r}, {path!r})\n"
        "module = module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "TritonPythonModel = module.TritonPythonModel\n"
    )


def _parameters(values: Mapping[str, str]) -> dict[str, ModelParameter]:
    return {key: ModelParameter(string_value=value) for key, value in values.items()}


def write(repository: Path, config: ModelConfig, code: str | None = None) -> Path:
    """Write one model, replacing one of the same name; `code` becomes ``1/model.py``. Return its folder."""
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
