"""Byte tokenizer for engines with dummy weights: one token per byte, and text for every other id.

The tokenizers of real models are gated downloads. With this one a prompt has as many tokens as on the laptop, and an
engine with dummy weights, which may choose any id of its vocabulary, streams text for each of them. transformers'
AutoTokenizer loads the folder, also in TensorRT-LLM's container.

>>> import tempfile
>>> from transformers import AutoTokenizer
>>> tokenizer = AutoTokenizer.from_pretrained(write(Path(tempfile.mkdtemp()) / "tokenizer", vocab=300))
>>> tokenizer.encode("Hi"), tokenizer.decode([72, 105, 299])
([256, 72, 105], 'Hi<299>')
"""

import functools
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from erlab.serving.engines.tiny import BOS, EOS, PAD, VOCAB
from erlab.spec import require

_SPECIAL = {
    "bos_token": ("<|begin_of_text|>", BOS),
    "eos_token": ("<|end_of_text|>", EOS),
    "pad_token": ("<|pad|>", PAD),
}


def write(folder: Path, vocab: int) -> Path:
    """Write a tokenizer of `vocab` ids (bytes, BOS, EOS, pad, fillers such as <259>) and return its folder."""
    require(vocab >= VOCAB, "vocab", "a byte tokenizer", f"be at least {VOCAB}", vocab)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer(vocab), encoding="utf-8")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    about |= {name: text for name, (text, _) in _SPECIAL.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")
    return folder


@functools.cache
def _tokenizer(vocab: int) -> str:
    """Return the tokenizer as JSON, cached because a large vocabulary takes a second."""
    ids = {character: byte for byte, character in enumerate(_characters())}
    ids |= {text: i for text, i in _SPECIAL.values()}
    ids |= {f"<{i}>": i for i in range(VOCAB, vocab)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))  # without merges a prompt stays bytes
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([text for text, _ in _SPECIAL.values()])
    begin, _ = _SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, BOS)])
    return tokenizer.to_str()


def _characters() -> list[str]:
    """Return the printable character that stands for each byte in a byte-level vocabulary.

    Printable bytes of Latin-1 stand for themselves, the others take the characters from 256 on, in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
