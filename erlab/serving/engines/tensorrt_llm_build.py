"""Build of TensorRT-LLM engines: checks first, then the commands that are due.

    build(expert, folder)              # returns the commands that ran
    engine = load(folder, expert)      # folder that Triton serves

The programs run on this machine or, where they are missing, in NVIDIA's container. An engine folder holds
``checkpoint/``, ``engine/``, ``tokenizer/``, ``build.log`` and the markers ``checkpoint.json`` and ``engine.json``. A
marker is written last: what has one is complete and not built again by the same command.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from erlab import machine, textfiles
from erlab.errors import ErlabError
from erlab.serving import nvidia
from erlab.serving.engines.tensorrt_llm import (
    EXAMPLES,
    Command,
    api_commands,
    commands,
    memory,
    require_weights,
    write_model,
)
from erlab.serving.engines.tensorrt_llm_machine import (
    Device,
    devices,
    only_api,
    require_devices,
    require_disk,
    tool,
    tools,
)
from erlab.simulation.hardware import GPUS
from erlab.spec import Expert

FORMAT = 1  # of the markers; increase when the same command gives another engine


def plan(
    expert: Expert, folder: str | Path, weights: str | Path | None = None, examples: Path = EXAMPLES
) -> tuple[Command, ...]:
    """Return the commands that are due for an engine, none where it is complete. Nothing is written.

    Raises:
        ErlabError: The engine does not fit this machine's GPUs (an H100 where there are none), the weights are of
            another model, or the folder has other files.
    """
    folder = Path(folder).expanduser().resolve()
    if only_api(examples):
        planned = api_commands(expert, folder, weights)
    else:
        planned = commands(expert, folder, weights, examples)
    gpus = devices()
    memory(expert, gpus[0].gpu if gpus else GPUS["H100"])
    if weights is not None:
        require_weights(Path(weights).expanduser().resolve(), expert.model)
    _require_own(folder)
    due = tuple(c for c in planned if not _is_done(c, expert, gpus, weights is not None))
    return planned if due and due[0] is planned[0] else due  # an engine is never older than its checkpoint


def check(due: Sequence[tuple[Expert, Path, Sequence[Command]]]) -> str | None:
    """Refuse engines that cannot be built on this machine.

    Args:
        due: Expert, engine folder and due commands of each engine.

    Returns:
        Container engine that runs the programs, None where they are installed.
    """
    due = [(expert, folder, commands) for expert, folder, commands in due if commands]
    if not due:
        return None
    gpus = devices()
    for expert, _, _ in due:
        require_devices(expert, gpus)
    container = tools([command for *_, commands in due for command in commands])
    require_disk(due[0][1], sum(command.disk_bytes for *_, commands in due for command in commands))
    return container


def build(
    expert: Expert,
    folder: str | Path,
    weights: str | Path | None = None,
    examples: Path = EXAMPLES,
    timeout: float = 4 * 3600,
) -> tuple[Command, ...]:
    """Build an engine, or finish a build that was interrupted. Programs print to ``build.log``.

    Raises:
        ErlabError: As for `plan` and `check`, before anything runs; with a program's last lines where it fails.
    """
    folder = Path(folder).expanduser().resolve()
    due = plan(expert, folder, weights, examples)
    container = check([(expert, folder, due)])
    gpus, folders = devices(), [folder, *([Path(weights).expanduser().resolve()] if weights is not None else [])]
    if due:
        folder.mkdir(parents=True, exist_ok=True)
    for command in due:
        _marker(command).unlink(missing_ok=True)
        shutil.rmtree(command.writes, ignore_errors=True)
    if any(command.script for command in due) and weights is None:
        write_model(folder / "model", expert)
        _put_tokenizer(folder / "model", expert, None)
    for command in due:
        if command.script:
            Path(command.argv[-1]).write_text(command.script, encoding="utf-8")
        try:
            start = time.monotonic()
            _run(command, folder / "build.log", timeout, container, folders)
            if missing := _missing(command, expert, weights is not None):
                log = folder / "build.log"
                raise ErlabError(f"{tool(command)} ended without {command.writes / missing}. Its log: {log}.")
            _mark(command, expert, gpus, time.monotonic() - start)
        except BaseException:
            shutil.rmtree(command.writes, ignore_errors=True)
            raise
    _put_tokenizer(folder / "tokenizer", expert, weights)
    return due


def load(folder: str | Path, expert: Expert) -> Path:
    """Return the folder of the engine that `build` built for an expert, checked for this machine.

    Raises:
        ErlabError: The engine is not complete, or was built for another expert, GPU or version of TensorRT-LLM.
    """
    folder = Path(folder).expanduser().resolve()
    engine = folder / "engine"
    try:
        about = json.loads((folder / "engine.json").read_text())
        built_with = json.loads((engine / "config.json").read_text()).get("version")
    except (OSError, ValueError) as e:
        raise ErlabError(f"{folder}: no complete TensorRT-LLM engine ({e}). Run 01_build_engines again.") from None
    if about.get("format") != FORMAT or about.get("expert") != _spec(expert):
        raise ErlabError(f"{folder}: this engine was built from another specification. Run 01_build_engines again.")
    gpus = devices()
    if gpus and about["gpu"] != gpus[0].gpu.name:
        here = gpus[0].gpu.name
        raise ErlabError(f"{folder}: built for {about['gpu']}, but this machine has {here}. Build it here.")
    try:
        installed = version("tensorrt_llm")
    except PackageNotFoundError:
        installed = None  # a container serves it
    if installed and built_with and installed != built_with:
        raise ErlabError(f"{folder}: built with TensorRT-LLM {built_with}, but {installed} is installed. Build again.")
    return engine


def _put_tokenizer(folder: Path, expert: Expert, weights: str | Path | None) -> None:
    """Write the tokenizer beside the engine: that of the weights, or bytes for dummy weights."""
    if weights is not None:
        folder.mkdir(exist_ok=True)
        for pattern in ("tokenizer*", "special_tokens_map.json"):
            for file in Path(weights).expanduser().glob(pattern):
                shutil.copy(file, folder)
    elif not (folder / "tokenizer_config.json").is_file():
        from erlab.serving.engines import tokenizer  # here, since it imports torch, which plans do not need

        tokenizer.write(folder, expert.model.vocab)


def _require_own(folder: Path) -> None:
    own = {"checkpoint", "checkpoint.json", "engine", "engine.json", "build.log", "timing.cache", "tokenizer"}
    own |= {"model", "build.py"}
    if folder.exists() and (others := sorted({p.name.removeprefix(".") for p in folder.iterdir()} - own)):
        raise ErlabError(f"{folder}: not a TensorRT-LLM build folder (it holds {others[0]}). Choose another.")


def _run(command: Command, log: Path, timeout: float, container: str | None, folders: Sequence[Path]) -> None:
    """Run a command in its own session, so that its workers end with it; its output is appended to `log`."""
    name = f"erlab-build-{uuid.uuid4().hex[:8]}"
    argv = nvidia.contained(container, command.argv, name, folders, as_user=True) if container else command.argv
    with log.open("ab") as out:
        out.write(f"$ {shlex.join(argv)}\n".encode())
        out.flush()
        begin = out.tell()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=machine.environment(),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ErlabError(_failure(command, log, begin, f"did not end within {timeout:g} s")) from None
        finally:
            if process.poll() != 0:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # workers of a failed command may still run
                process.wait()
                if container:
                    nvidia.remove(container, name)
    if code:
        raise ErlabError(_failure(command, log, begin, f"failed with status {code}"))


def _failure(command: Command, log: Path, begin: int, how: str) -> str:
    """Return the message of a failure with the last lines that the command printed."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return f"{tool(command)} {how}, saying: {' | '.join(lines[-3:]) or 'nothing'}. Its log: {log}."


def _missing(command: Command, expert: Expert, real: bool) -> str | None:
    """Return the first file that the command did not write, or left empty."""
    engine = command.writes.name == "engine"
    suffix = "engine" if engine else "safetensors"
    ranks = range(expert.tensor_parallel) if engine or real else ()
    names = ["config.json", *(f"rank{i}.{suffix}" for i in ranks)]
    return next((n for n in names if not (f := command.writes / n).is_file() or not f.stat().st_size), None)


def _marker(command: Command) -> Path:
    return command.writes.with_name(f"{command.writes.name}.json")


def _mark(command: Command, expert: Expert, gpus: tuple[Device, ...], seconds: float) -> None:
    about = {
        "format": FORMAT,
        "argv": list(command.argv),
        "expert": _spec(expert),
        "gpu": gpus[0].gpu.name,
        "seconds": round(seconds, 1),
    }
    textfiles.save(_marker(command), json.dumps(about, indent=2) + "\n")


def _is_done(command: Command, expert: Expert, gpus: tuple[Device, ...], real: bool) -> bool:
    try:
        about = json.loads(_marker(command).read_text())
        same = about["format"] == FORMAT and about["argv"] == list(command.argv)
        here = not gpus or about["gpu"] == gpus[0].gpu.name  # an engine runs on the kind of GPU it was built on
    except (OSError, ValueError, KeyError):
        return False
    return same and here and _missing(command, expert, real) is None


def _spec(expert: Expert) -> dict:
    """Return the fields of an expert that its engine depends on: all but the KV pool, chosen when it is served."""
    return asdict(replace(expert, kv_tokens=None))
