"""Commands in NVIDIA's container of Triton with TensorRT-LLM, by docker or podman.

Ports are published on the loopback only.

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

IMAGE = "nvcr.io/nvidia/tritonserver:25.12-trtllm-python-py3"  # the last release that builds engines; TensorRT-LLM 1.2
CONTAINERS = {"docker": ("--gpus", "all"), "podman": ("--device", "nvidia.com/gpu=all")}  # options that pass GPUs


def container(name: str | None = None) -> str | None:
    """Return a container engine that answers, None where none is installed.

    Args:
        name: docker or podman; None for the first that is installed, docker before podman.

    Raises:
        ErlabError: The engine does not answer, or the named one is not installed.
    """
    for engine in (name,) if name else CONTAINERS:
        if machine.find(engine):
            try:
                command = engine, "info"
                done = subprocess.run(command, env=machine.environment(), capture_output=True, text=True, timeout=60)
                reason = done.stderr.strip() or f"status {done.returncode}"
            except (OSError, subprocess.TimeoutExpired) as e:
                done, reason = None, str(e)
            if done is None or done.returncode:
                raise ErlabError(f"{engine} is installed but cannot be reached: {reason.splitlines()[-1].rstrip('.')}")
            return engine
    if name:
        raise ErlabError(f"{name} is not installed here.")
    return None


def gives_gpus() -> bool:
    """Return whether NVIDIA's container toolkit is installed, which docker and podman need to pass GPUs."""
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
    """Return the command that runs `argv` in NVIDIA's container with all GPUs.

    Args:
        engine: docker or podman.
        folders: Mounted folders, at the same paths inside, or a mapping from paths inside to paths outside.
        as_user: Whether it runs as this user and may write to the folders; else they are read-only.
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
    """Return the value of --mount: CSV fields, so that paths may have any character (``-v`` splits at a colon)."""
    fields = ["type=bind", f"src={outside}", f"dst={inside}", *["readonly"] * readonly]
    quoted = ('"' + field.replace('"', '""') + '"' if set(field) & set(',"\n') else field for field in fields)
    return ",".join(quoted)


def remove(engine: str, name: str) -> None:
    """Remove a container, running or not."""
    subprocess.run((engine, "rm", "-f", name), env=machine.environment(), capture_output=True)
