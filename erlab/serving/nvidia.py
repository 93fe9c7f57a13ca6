"""NVIDIA's programs: this machine's own, outside of our virtual environment, or those in NVIDIA's container.

Folders have the same path inside the container as outside, and what it serves is published on the loopback only.

>>> import shlex
>>> print(shlex.join(contained("docker", ("trtllm-build", "--help"), "build", folders=("/engines",))))
docker run --rm --name build --gpus all --shm-size=16g --ulimit memlock=-1 --ulimit stack=67108864 --mount \
type=bind,src=/engines,dst=/engines,readonly nvcr.io/nvidia/tritonserver:25.12-trtllm-python-py3 trtllm-build --help
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from erlab import machine
from erlab.errors import ErlabError

IMAGE = "nvcr.io/nvidia/tritonserver:25.12-trtllm-python-py3"  # the last with engines; TensorRT-LLM 1.2
CONTAINERS = {"docker": ("--gpus", "all"), "podman": ("--device", "nvidia.com/gpu=all")}  # and how each gives GPUs


def container(name: str | None = None) -> str | None:
    """The container engine that answers, None where none is installed: docker before podman, or the one of that name.

    Raises ErlabError with its own words where it is installed and does not answer, and where the named one is missing.
    """
    for engine in (name,) if name else CONTAINERS:
        if machine.find(engine):
            try:
                done = subprocess.run((engine, "info"), env=machine.environment(), capture_output=True, text=True, timeout=60)
                said = done.stderr.strip() or f"status {done.returncode}"
            except (OSError, subprocess.TimeoutExpired) as e:
                done, said = None, str(e)
            if done is None or done.returncode:
                raise ErlabError(f"{engine} is installed but cannot be reached: {said.splitlines()[-1].rstrip('.')}")
            return engine
    if name:
        raise ErlabError(f"{name} is not installed here.")
    return None


def gives_gpus() -> bool:
    """Whether NVIDIA's container toolkit is here, without which docker and podman have no GPUs to give."""
    return bool(machine.find("nvidia-ctk") or machine.find("nvidia-container-cli"))


def contained(
    engine: str,
    argv: Sequence[str],
    name: str,
    folders: Sequence[str | Path] | Mapping[str | Path, str | Path] = (),
    ports: Sequence[int] = (),
    variables: Mapping[str, str] = {},
    as_user: bool = False,
) -> tuple[str, ...]:
    """The command that runs `argv` in NVIDIA's container with all GPUs.

    `name`: the container's, so that it can be removed. `folders`: what it may read, at the same paths inside; or a
    mapping from the paths inside to those outside. `ports`: published on 127.0.0.1.
    `variables`: environment variables. `as_user`: it may write into the folders as well, files of the user's.
    """
    places = folders if isinstance(folders, Mapping) else {folder: folder for folder in folders}
    user = ("--user", f"{os.getuid()}:{os.getgid()}", "-e", "HOME=/tmp", "-e", "USER=erlab") if as_user else ()
    return (
        *(engine, "run", "--rm", "--name", name, *CONTAINERS[engine]),
        *("--shm-size=16g", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864", *user),
        *(text for port in ports for text in ("-p", f"127.0.0.1:{port}:{port}")),
        *(text for inside, outside in places.items() for text in ("--mount", _mount(inside, outside, not as_user))),
        *(text for key, value in variables.items() for text in ("-e", f"{key}={value}")),
        *(IMAGE, *argv),
    )


def _mount(inside: str | Path, outside: str | Path, readonly: bool) -> str:
    """What follows --mount: fields of CSV, so that paths may have any character (``-v`` splits them at a colon)."""
    fields = ["type=bind", f"src={outside}", f"dst={inside}", *["readonly"] * readonly]
    quoted = ('"' + field.replace('"', '""') + '"' if set(field) & set(',"\n') else field for field in fields)
    return ",".join(quoted)


def remove(engine: str, name: str) -> None:
    """End a container that may still run."""
    subprocess.run((engine, "rm", "-f", name), env=machine.environment(), capture_output=True)
