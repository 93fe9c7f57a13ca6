import dataclasses

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from erlab import paper, spec
from erlab.errors import ErlabError
from erlab.serving.engines import tiny_kind
from erlab.serving.triton import repository

EXPERT = spec.Expert(paper.LLAMA_3_8B, spec.FLOAT32, cores=2, max_batch_size=16, max_input_tokens=96, kv_tokens=4096)


def parse(folder) -> ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


@pytest.fixture
def engine(tmp_path):
    folder = tmp_path / 'engine with "quotes" and \\ and ü'
    folder.mkdir()
    return folder


def test_the_config_of_a_tiny_model_has_the_limits_of_the_expert(tmp_path, engine):
    folder = tiny_kind.write_tiny(tmp_path / "models", "expert_0", engine, EXPERT, (1, 0))
    config = parse(folder)
    assert folder == tmp_path / "models" / "expert_0"
    assert (config.name, config.backend, config.max_batch_size) == ("expert_0", "python", 1)
    assert config.model_transaction_policy.decoupled
    assert [(i.name, list(i.dims), i.optional) for i in config.input] == [
        ("text_input", [1], False),
        ("max_tokens", [1], False),
        ("stream", [1], True),
    ]
    assert {k: v.string_value for k, v in config.parameters.items()} == {
        "engine_dir": str(engine),
        "max_batch_size": "16",
        "max_sequence_tokens": str(96 + 1024),
        "max_input_tokens": "96",
        "max_output_tokens": "1024",
        "kv_tokens": "4096",
        "cores": "1,0",
        "greedy": "true",
    }
    unbounded = dataclasses.replace(EXPERT, kv_tokens=None)
    again = parse(tiny_kind.write_tiny(tmp_path / "models", "expert_0", engine, unbounded, ()))
    assert (again.parameters["kv_tokens"].string_value, again.parameters["cores"].string_value) == ("", "")


def test_a_config_read_back_is_the_message_that_was_written(tmp_path):
    config = repository.text_model("m", {"a": "x\n\"y\" {z}", "b": ""})
    assert parse(repository.write(tmp_path / "models", config)) == config


@pytest.mark.parametrize("cores", [(0,), (0, 0), (0, -1), (0, 1, 2)])
def test_cores_that_contradict_the_expert_are_refused(tmp_path, engine, cores):
    with pytest.raises(ErlabError, match="'cores'"):
        tiny_kind.write_tiny(tmp_path / "models", "m", engine, EXPERT, cores)


def test_a_missing_engine_is_refused_by_name(tmp_path):
    with pytest.raises(ErlabError, match="nowhere: no such engine folder"):
        tiny_kind.write_tiny(tmp_path / "models", "m", tmp_path / "nowhere", EXPERT, (0, 1))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".hidden", "a b"])
def test_names_that_are_no_folder_names_are_refused(tmp_path, name):
    with pytest.raises(ErlabError, match="'name'"):
        repository.write(tmp_path / "models", repository.text_model(name, {}))
    assert not (tmp_path / "models").exists()


def test_a_failed_write_leaves_the_old_model_and_no_partial_one(tmp_path, monkeypatch):
    models = tmp_path / "models"
    repository.write(models, repository.text_model("m", {"a": "old"}), "old = 1\n")

    def full_disk(self, *_, **__):
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full_disk)
        for name in ("m", "new"):
            with pytest.raises(OSError, match="No space"):
                repository.write(models, repository.text_model(name, {"a": "new"}), "new = 1\n")
    assert parse(models / "m").parameters["a"].string_value == "old"
    assert (models / "m" / "1" / "model.py").read_text() == "old = 1\n"
    assert [p.name for p in models.iterdir()] == ["m"] and [p.name for p in tmp_path.iterdir()] == ["models"]


def test_a_model_enters_the_repository_complete_and_replaces_all_of_the_old(tmp_path, monkeypatch):
    models = tmp_path / "models"
    repository.write(models, repository.text_model("m", {}), "old = 1\n")
    seen = []
    rename = type(models).rename
    monkeypatch.setattr(type(models), "rename", lambda self, to: (seen.append(files(models)), rename(self, to))[1])
    folder = repository.write(models, repository.text_model("m", {}))
    seen.append(files(models))
    old = ["m", "m/1", "m/1/model.py", "m/config.pbtxt"]
    assert seen == [old, [], ["m", "m/1", "m/config.pbtxt"]] and folder == models / "m"


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
