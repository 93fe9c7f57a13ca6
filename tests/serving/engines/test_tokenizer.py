import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from erlab.errors import ErlabError
from erlab.serving.engines import tiny, tokenizer

VOCAB = 32_000


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """As TensorRT-LLM's pre- and postprocessing load it."""
    folder = tokenizer.write(tmp_path_factory.mktemp("tokenizer"), VOCAB)
    return AutoTokenizer.from_pretrained(folder, legacy=False, padding_side="left", trust_remote_code=True)


@given(text=st.text(max_size=60))
def test_a_prompt_has_the_tokens_it_has_on_the_laptop(loaded, text):
    assert loaded.encode(text) == tiny.encode(text)
    assert loaded.decode(loaded.encode(text, add_special_tokens=False)) == tiny.decode(list(text.encode()))


def test_every_token_an_engine_may_choose_shows_as_text(loaded):
    texts = loaded.batch_decode([[i] for i in range(VOCAB)], skip_special_tokens=False)
    assert all(texts) and texts[ord("a")] == "a" and texts[10] == "\n" and texts[-1] == f"<{VOCAB - 1}>"


def test_its_special_tokens_are_those_of_the_preprocessing_model(loaded):
    assert len(loaded) == loaded.vocab_size == VOCAB
    assert loaded.encode(loaded.eos_token, add_special_tokens=False) == [tiny.EOS] == [loaded.eos_token_id]
    assert loaded.encode(loaded.pad_token, add_special_tokens=False) == [tiny.PAD]


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path):
    with pytest.raises(ErlabError, match="'vocab' .* at least 259. Got 256"):
        tokenizer.write(tmp_path, 256)
