"""TensorRT-LLM's models in a repository: against its own tensors, against each other, and run by the real server.

The real server runs the ensembles with stand-ins for the tokenizer and the engine, which the machine lacks.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from erlab import paper, spec
from erlab.errors import ErlabError
from erlab.gateway import kserve
from erlab.serving.engines import tiny_kind
from erlab.serving.triton import Server, repository
from erlab.serving.triton.server import available

THEIRS = json.loads(Path(__file__).with_name("inflight_batcher_llm.json").read_text())
EXPERT, BASELINE = paper.SYSTEMS["v2"]["D"].expert, paper.SYSTEMS["v2"]["A"].expert


@pytest.fixture
def folders(tmp_path):
    """An engine's and a tokenizer's."""
    for name in ("engine", "tokenizer"):
        (tmp_path / name).mkdir()
    return {"engine": tmp_path / "engine", "tokenizer": tmp_path / "tokenizer"}


def read(models) -> dict[str, ModelConfig]:
    """All configurations of a repository by folder name, parsed as Triton parses them: unknown fields are errors."""
    files = models.glob("*/config.pbtxt")
    return {f.parent.name: text_format.Parse(f.read_text(), ModelConfig()) for f in files}


def described(tensor, output=False) -> str:
    """A tensor in the words of inflight_batcher_llm.json."""
    text = f"{DataType.Name(tensor.data_type).removeprefix('TYPE_')} {list(tensor.dims)}"
    if not output:
        text += "" if tensor.optional else " *"
        text += " ~" if tensor.allow_ragged_batch else ""
    return text + (" []" if tensor.HasField("reshape") else "")


def problems(models: dict[str, ModelConfig], ensemble: str) -> list[str]:
    """What is inconsistent in an ensemble: by Triton's rules, each step's inputs are there, of its type and dims."""
    config, found, made = models[ensemble], [], {}

    def note(name, tensor, step):
        if name in made:
            found.append(f"{name} is made twice")
        made[name] = (tensor.data_type, list(tensor.dims), step)

    def differ(one, other):
        return len(one) != len(other) or any(a != b and -1 not in (a, b) for a, b in zip(one, other))

    for tensor in config.input:
        note(tensor.name, tensor, "")
    for step in config.ensemble_scheduling.step:
        inner = models.get(step.model_name)
        if inner is None:
            return [f"no model {step.model_name}"]
        if config.max_batch_size > inner.max_batch_size:
            found.append(f"{inner.name} takes smaller batches")
        inputs, outputs = {t.name: t for t in inner.input}, {t.name: t for t in inner.output}
        found += [f"{inner.name} needs {n}" for n, t in inputs.items() if not t.optional and n not in step.input_map]
        for name, source in step.input_map.items():
            if name not in inputs:
                found.append(f"{inner.name} has no input {name}")
            elif source not in made:
                found.append(f"nothing makes {source}")
            elif made[source][0] != inputs[name].data_type or differ(made[source][1], inputs[name].dims):
                found.append(f"{source} is no {name} of {inner.name}")
        for name, target in step.output_map.items():
            if name not in outputs:
                found.append(f"{inner.name} has no output {name}")
            else:
                note(target, outputs[name], inner.name)
    for tensor in config.output:
        kind, dims, _ = made.get(tensor.name, (None, [], ""))
        if kind != tensor.data_type or differ(dims, tensor.dims):
            found.append(f"no output {tensor.name}")
    used = {source for step in config.ensemble_scheduling.step for source in step.input_map.values()}
    unused = made.keys() - used - {tensor.name for tensor in config.output}
    return found + [f"nothing uses {name}" for name in sorted(unused)]


def test_eight_distinct_experts_share_a_server_each_with_its_gpu_and_its_own_models(tmp_path, folders):
    names = [f"D-expert-{i}" for i in range(8)]
    for i, name in enumerate(names):
        engine = tmp_path / f"engine-{i}"
        engine.mkdir()
        repository.write_trtllm(tmp_path / "models", name, engine, EXPERT, (i,), folders["tokenizer"])
    models = read(tmp_path / "models")
    assert len(models) == 8 * 4 and all(config.name == folder for folder, config in models.items())
    parameters = [models[f"{name}-tensorrt_llm"].parameters for name in names]
    assert [p["gpu_device_ids"].string_value for p in parameters] == list("01234567")
    assert [p["gpt_model_path"].string_value for p in parameters] == [str(tmp_path / f"engine-{i}") for i in range(8)]
    for name in names:
        assert problems(models, name) == []
        asked = {step.model_name for step in models[name].ensemble_scheduling.step}
        assert asked == {f"{name}-{part}" for part in ("preprocessing", "tensorrt_llm", "postprocessing")}


def test_a_tensor_parallel_baseline_is_one_engine_on_its_gpus(tmp_path, folders):
    folder = repository.write_trtllm(tmp_path / "models", "A-replica-1", expert=BASELINE, gpus=(4, 5, 6, 7), **folders)
    models = read(tmp_path / "models")
    assert folder == tmp_path / "models" / "A-replica-1" and problems(models, "A-replica-1") == []
    config = models["A-replica-1-tensorrt_llm"]
    assert (config.backend, config.max_batch_size) == ("tensorrtllm", 256)
    assert config.model_transaction_policy.decoupled
    values = {key: value.string_value for key, value in config.parameters.items()}
    assert values["gpu_device_ids"] == "4,5,6,7" and values["gpt_model_type"] == "inflight_fused_batching"
    assert values["exclude_input_in_output"] == "true" and float(values["kv_cache_free_gpu_mem_fraction"]) == 0.9
    assert "max_tokens_in_paged_kv_cache" not in values
    few = replace(BASELINE, kv_tokens=50_000)
    repository.write_trtllm(tmp_path / "models", "A", expert=few, gpus=(3, 2, 1, 0), kv_fraction=0.2, **folders)
    values = {k: v.string_value for k, v in read(tmp_path / "models")["A-tensorrt_llm"].parameters.items()}
    assert (values["gpu_device_ids"], values["max_tokens_in_paged_kv_cache"]) == ("3,2,1,0", "50000")
    assert values["kv_cache_free_gpu_mem_fraction"] == "0.2"


@pytest.mark.parametrize("part", ["preprocessing", "tensorrt_llm", "postprocessing"])
def test_each_model_has_the_tensors_that_its_code_knows(tmp_path, folders, part):
    repository.write_trtllm(tmp_path / "models", "E", expert=EXPERT, gpus=(0,), **folders)
    ours, theirs = read(tmp_path / "models")[f"E-{part}"], THEIRS[part]
    inputs = {t.name: described(t) for t in ours.input}
    outputs = {t.name: described(t, output=True) for t in ours.output}
    assert inputs.items() <= theirs["inputs"].items() and outputs.items() <= theirs["outputs"].items()
    assert {name for name, text in theirs["inputs"].items() if "*" in text} <= inputs.keys()
    assert set(theirs["looked_up"]) <= inputs.keys() | outputs.keys()
    assert set(theirs["parameters"]) <= ours.parameters.keys()
    assert ours.parameters.keys() <= set(theirs.get("known_parameters", ours.parameters.keys()))
    assert not any("${" in p.string_value for p in ours.parameters.values())
    assert [(group.count, group.Kind.Name(group.kind)) for group in ours.instance_group] == [(1, "KIND_CPU")]


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda m: m["E"].ensemble_scheduling.step[0].input_map.pop("QUERY"), "E-preprocessing needs QUERY"),
        (lambda m: m["E"].ensemble_scheduling.step[2].input_map.update(TOKENS_BATCH="_typo"), "nothing makes _typo"),
        (lambda m: m["E"].ensemble_scheduling.step.reverse(), "nothing makes _output_ids"),
        (lambda m: setattr(m["E-tensorrt_llm"].output[0], "data_type", 9), "_output_ids is no TOKENS_BATCH of E-post"),
        (lambda m: m["E-postprocessing"].output[0].dims.append(3), "no output text_output"),
        (lambda m: m.pop("E-tensorrt_llm"), "no model E-tensorrt_llm"),
    ],
)
def test_the_check_of_ensembles_sees_what_is_wrong(tmp_path, folders, harm, problem):
    repository.write_trtllm(tmp_path / "models", "E", expert=EXPERT, gpus=(0,), **folders)
    models = copy.deepcopy(read(tmp_path / "models"))
    assert problems(models, "E") == []
    harm(models)
    assert any(text.startswith(problem) for text in problems(models, "E"))


def test_a_request_to_the_ensemble_is_one_to_the_laptops_expert_but_for_the_name(tmp_path, folders):
    repository.write_trtllm(tmp_path / "models", "big", expert=EXPERT, gpus=(0,), **folders)
    cpu = spec.Expert(paper.LLAMA_3_8B, spec.FLOAT32, cores=1)
    tiny_kind.write_tiny(tmp_path / "models", "small", folders["engine"], cpu, (0,))
    models = read(tmp_path / "models")
    assert models["big"].input == models["small"].input and models["big"].output == models["small"].output
    assert models["big"].max_batch_size == models["small"].max_batch_size
    one, other = (kserve.request(name, "What is a watt?", 16, request_id="7") for name in ("big", "small"))
    assert one != other
    other.model_name = "big"
    assert one == other
    sent = {tensor.name: (tensor.datatype.replace("BYTES", "STRING"), list(tensor.shape)) for tensor in one.inputs}
    taken = {t.name: (DataType.Name(t.data_type).removeprefix("TYPE_"), [1, *t.dims]) for t in models["big"].input}
    assert sent == taken


@pytest.mark.parametrize("gpus", [(), (0,), (0, 1, 2, 2), (0, 1, 2, -1), (0, 1, 2, 3, 4)])
def test_gpus_that_contradict_the_expert_are_refused(tmp_path, folders, gpus):
    with pytest.raises(ErlabError, match="'gpus' .* as many distinct GPU numbers as the expert takes, 4"):
        repository.write_trtllm(tmp_path / "models", "A", expert=BASELINE, gpus=gpus, **folders)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("missing", ["engine", "tokenizer"])
def test_a_missing_folder_is_named(tmp_path, folders, missing):
    with pytest.raises(ErlabError, match=f"nowhere: no such {missing} folder"):
        repository.write_trtllm(
            tmp_path / "models", "A", expert=EXPERT, gpus=(0,), **folders | {missing: tmp_path / "nowhere"}
        )
    with pytest.raises(ErlabError, match="'kv_fraction'"):
        repository.write_trtllm(tmp_path / "models", "A", expert=EXPERT, gpus=(0,), kv_fraction=1.5, **folders)
    assert not (tmp_path / "models").exists()


# Stand-ins for what the server runs: bytes are tokens, and the engine answers with the prompt's, backwards, in turn.
PREPROCESSING = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        assert parameters["multimodal_model_path"]["string_value"] == ""

    def execute(self, requests):
        return [pb_utils.InferenceResponse(self.tensors(request)) for request in requests]

    def tensors(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy()[0][0]
        tokens = np.frombuffer(text, dtype=np.uint8).astype(np.int32)[None]
        lengths = pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy()
        return [
            pb_utils.Tensor("INPUT_ID", tokens),
            pb_utils.Tensor("REQUEST_INPUT_LEN", np.array([[tokens.size]], dtype=np.int32)),
            pb_utils.Tensor("REQUEST_OUTPUT_LEN", lengths),
            pb_utils.Tensor("OUT_END_ID", np.array([[0]], dtype=np.int32)),
        ]
"""
ENGINE = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            get = lambda name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            tokens, count = get("input_ids")[0][::-1], int(get("request_output_len").ravel()[0])
            assert get("input_lengths").ravel()[0] == len(tokens) and get("streaming").ravel()[0]
            sender = request.get_response_sender()
            for i in range(count):
                output = np.array([[[tokens[i % len(tokens)]]]], dtype=np.int32)
                tensors = [
                    pb_utils.Tensor("output_ids", output),
                    pb_utils.Tensor("sequence_length", np.array([[1]], dtype=np.int32)),
                ]
                flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if i == count - 1 else 0
                sender.send(pb_utils.InferenceResponse(tensors), flags=flags)
"""
POSTPROCESSING = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            assert {tensor.name() for tensor in request.inputs()} == {"TOKENS_BATCH", "SEQUENCE_LENGTH"}
            tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
            text = np.array([bytes(beam.astype(np.uint8)) for batch in tokens for beam in batch], dtype=object)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", text)]))
        return responses
"""


@pytest.mark.skipif(bool(available()), reason=f"no embedded Triton: {available()}")
def test_the_real_server_runs_two_experts_ensembles(tmp_path, folders):
    theirs, models = tmp_path / "all_models", tmp_path / "models"
    for part, code in (("preprocessing", PREPROCESSING), ("postprocessing", POSTPROCESSING)):
        (theirs / part / "1").mkdir(parents=True)
        (theirs / part / "1" / "model.py").write_text(code)
    names = ("E-expert-0", "E-expert-1")
    for i, name in enumerate(names):
        repository.write_trtllm(models, name, expert=EXPERT, gpus=(i,), backend_models=theirs, **folders)
        engine = read(models)[f"{name}-tensorrt_llm"]
        engine.backend = "python"
        repository.write(models, engine, ENGINE)
    with Server(models, names) as server:
        for name in names:
            answer = list(kserve.generate(server.grpc, name, "abc", 7, timeout=60))
            assert [piece for piece in answer if piece] == list("cbacbac")
