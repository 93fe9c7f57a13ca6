"""A router as a folder: `router.json` and one safetensors file that it names with its SHA-256.

Reading one never runs code: JSON and raw numbers, no pickle; and it takes no more memory than a small multiple of the
files, whose sizes are bounded. `router.json` is replaced last and whole, and the arrays' file carries its checksum in
its name, so a folder holds the old router or the new one, never half of each.
"""

import hashlib
import json
import stat
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from erlab import textfiles
from erlab.errors import ErlabError

SCHEMA, VERSION = "erlab.router", 1
MANIFEST = "router.json"
_MOST_BYTES, _MOST_ARRAY_BYTES = 32 * 2**20, 2 * 2**30  # of the manifest: a million words
_LARGEST = 1e12  # of an array's numbers: vectors have length one, and squares of squares must stay finite


def save(folder: str | Path, content: dict, arrays: dict[str, np.ndarray]) -> Path:
    """Write `content` (plain JSON) and `arrays` into `folder`, which may hold an older router but nothing else."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / MANIFEST).is_file():
            raise ErlabError(f"{folder}: not empty and no router's folder, so no router is written there.")
        data = save_arrays({name: np.ascontiguousarray(a) for name, a in arrays.items()})
        digest = hashlib.sha256(data).hexdigest()
        file = f"arrays-{digest[:16]}.safetensors"
        manifest = {"schema": SCHEMA, "version": VERSION, "arrays": {"file": file, "sha256": digest}, **content}
        text = json.dumps(manifest, ensure_ascii=False).encode()
        for path, size in (folder / file, len(data)), (folder / MANIFEST, len(text)):
            _bound(path, size)
        textfiles.save(folder / file, data)
        textfiles.save(folder / MANIFEST, text)
        for stale in folder.glob("arrays-*.safetensors"):
            if stale.name != file:
                stale.unlink()
    except OSError as e:
        raise ErlabError(f"{folder}: the router cannot be written there ({e.strerror or e}).") from None
    return folder


def load(folder: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The content and arrays that `save` wrote; ErlabError naming the file that is absent, damaged or newer."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(_read(path).decode())
    except (ValueError, RecursionError):
        raise ErlabError(f"{path}: not a router's description (no JSON).") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ErlabError(f"{path}: not a router's description (its schema is not {SCHEMA!r}).")
    if manifest.get("version") != VERSION:
        got = manifest.get("version")
        raise ErlabError(f"{path}: its version must be {VERSION}, which this erlab reads. Got {got!r}.")
    named = manifest.get("arrays")
    file = named.get("file") if isinstance(named, dict) else None
    if not isinstance(file, str) or Path(file).name != file or not file.startswith("arrays-"):
        raise ErlabError(f"{path}: it names no arrays file of its own folder. Got {file!r}.")
    data = _read(path.with_name(file))
    if hashlib.sha256(data).hexdigest() != named.get("sha256"):
        raise ErlabError(f"{path.with_name(file)}: truncated or changed (SHA-256 differs from the one in {MANIFEST}).")
    try:
        arrays = load_arrays(data)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise ErlabError(f"{path.with_name(file)}: no safetensors file ({e}).") from None
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise ErlabError(f"{path.with_name(file)}: array {name!r} must be float32 or float64. Got {array.dtype}.")
        if not (np.isfinite(array) & (abs(array) <= _LARGEST)).all():
            allowed = f"finite numbers of at most {_LARGEST:g}"
            raise ErlabError(f"{path.with_name(file)}: array {name!r} holds values that are not {allowed}.")
    return manifest, arrays


def _read(path: Path) -> bytes:
    """The content of a regular file of bounded size: a pipe would block, a device would never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ErlabError(f"{path}: the router cannot be read (no regular file).")
        _bound(path, status.st_size)
        return path.read_bytes()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise ErlabError(f"{path}: the router cannot be read ({getattr(e, 'strerror', None) or e}).") from None


def _bound(path: Path, size: int) -> None:
    most = _MOST_BYTES if path.name == MANIFEST else _MOST_ARRAY_BYTES
    if size > most:
        raise ErlabError(f"{path}: must have at most {most:,} bytes. Got {size:,}.")
