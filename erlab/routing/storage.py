"""Folder of a saved router: `router.json` and the safetensors file that it names with its SHA-256.

Reading never runs code (JSON and raw numbers, no pickle), and needs at most a small multiple of the files' bounded
size as memory. Saving is atomic: the arrays' file has its checksum in its name and `router.json` is replaced last, so
a folder holds the old router or the new one, never parts of both.
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
_MAX_MANIFEST_BYTES, _MAX_ARRAY_BYTES = 32 * 2**20, 2 * 2**30  # the manifest holds the vocabulary: a million words
_MAX_VALUE = 1e12  # vectors have length one, and the fourth power of a value must stay finite


def save(folder: str | Path, content: dict, arrays: dict[str, np.ndarray]) -> Path:
    """Save a router, replacing an older one.

    Args:
        folder: New or empty folder, or one with an older router.
        content: Plain JSON types.
        arrays: float32 or float64.

    Raises:
        ErlabError: The folder holds something else, cannot be written, or a file would be too large.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / MANIFEST).is_file():
            raise ErlabError(f"{folder}: must be empty or hold an older router. Got a folder with other files.")
        data = save_arrays({name: np.ascontiguousarray(a) for name, a in arrays.items()})
        digest = hashlib.sha256(data).hexdigest()
        file = f"arrays-{digest[:16]}.safetensors"
        manifest = {"schema": SCHEMA, "version": VERSION, "arrays": {"file": file, "sha256": digest}, **content}
        text = json.dumps(manifest, ensure_ascii=False).encode()
        for path, size in (folder / file, len(data)), (folder / MANIFEST, len(text)):
            _check_size(path, size)
        textfiles.save(folder / file, data)
        textfiles.save(folder / MANIFEST, text)
        for stale in folder.glob("arrays-*.safetensors"):
            if stale.name != file:
                stale.unlink()
    except OSError as e:
        raise ErlabError(f"{folder}: the router cannot be written there ({e.strerror or e}).") from None
    return folder


def load(folder: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Load the content and arrays of a saved router.

    Raises:
        ErlabError: A file is missing, invalid, damaged, too large or of a newer version; the message names the file.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(_read(path).decode())
    except (ValueError, RecursionError):
        raise ErlabError(f"{path}: not the description of a router (not JSON).") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ErlabError(f"{path}: not the description of a router (the schema is not {SCHEMA!r}).")
    if manifest.get("version") != VERSION:
        got = manifest.get("version")
        raise ErlabError(f"{path}: the version must be {VERSION} for this version of erlab. Got {got!r}.")
    reference = manifest.get("arrays")
    file = reference.get("file") if isinstance(reference, dict) else None
    if not isinstance(file, str) or Path(file).name != file or not file.startswith("arrays-"):
        raise ErlabError(f"{path}: must name an arrays file in the same folder. Got {file!r}.")
    data = _read(path.with_name(file))
    if hashlib.sha256(data).hexdigest() != reference.get("sha256"):
        raise ErlabError(f"{path.with_name(file)}: truncated or changed (SHA-256 differs from the one in {MANIFEST}).")
    try:
        arrays = load_arrays(data)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise ErlabError(f"{path.with_name(file)}: not a safetensors file ({e}).") from None
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise ErlabError(f"{path.with_name(file)}: array {name!r} must be float32 or float64. Got {array.dtype}.")
        if not (np.isfinite(array) & (abs(array) <= _MAX_VALUE)).all():
            allowed = f"finite numbers of at most {_MAX_VALUE:g}"
            raise ErlabError(f"{path.with_name(file)}: array {name!r} holds values that are not {allowed}.")
    return manifest, arrays


def _read(path: Path) -> bytes:
    """Read a regular file of bounded size: a pipe would block, a device would never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ErlabError(f"{path}: the router cannot be read (not a regular file).")
        _check_size(path, status.st_size)
        return path.read_bytes()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise ErlabError(f"{path}: the router cannot be read ({getattr(e, 'strerror', None) or e}).") from None


def _check_size(path: Path, size: int) -> None:
    limit = _MAX_MANIFEST_BYTES if path.name == MANIFEST else _MAX_ARRAY_BYTES
    if size > limit:
        raise ErlabError(f"{path}: must have at most {limit:,} bytes. Got {size:,}.")
