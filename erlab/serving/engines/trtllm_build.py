"""Builds TensorRT-LLM engines with care: what cannot work is said before hours are spent, what is there stays.

    build(expert, folder)              # the commands that ran
    engine = load(folder, expert)      # what Triton serves

The programs run on this machine or, where they are missing, in NVIDIA's container. A build's folder ends up as
``checkpoint/``, ``engine/``, ``tokenizer/``, ``build.log`` and a marker beside checkpoint and engine, written last:
what has a marker is whole and is not made again for the same command.
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

from erlab import machine
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
from erlab.serving.engines.trtllm_machine import Device, devices, only_api, require_devices, require_disk, tool, tools
from erlab.simulation.hardware import GPUS
from erlab.spec import Expert

FORMAT = 1  # of the markers; rises when the same command would give another engine


def plan(
    expert: Expert, folder: str | Path, weights: str | Path | None = None, examples: Path = EXAMPLES
) -> tuple[Command, ...]:
    """The commands that are due for the expert's engine in `folder`, none where it is whole. Changes nothing.

    The memory it checks is that of this machine's GPUs, of an H100 where there are none. Raises ErlabError where that
    does not suffice, for weights of another model, and for a folder that holds other things.
    """
    folder = Path(folder).expanduser().resolve()
    made = api_commands(expert, folder, weights) if only_api(examples) else commands(expert, folder, weights, examples)
    found = devices()
    memory(expert, found[0].gpu if found else GPUS["H100"])
    if weights is not None:
        require_weights(Path(weights).expanduser().resolve(), expert.model)
    _require_own(folder)
    due = tuple(c for c in made if not _is_done(c, expert, found, weights is not None))
    return made if due and due[0] is made[0] else due  # an engine is never older than its checkpoint


def check(due: Sequence[tuple[Expert, Path, Sequence[Command]]]) -> str | None:
    """Refuse what cannot be built here: (expert, folder, its due commands) an engine. Which container engine is to run
    the programs, None where they are installed.

    Raises ErlabError where driver, GPUs, programs or disk do not suffice, with advice.
    """
    due = [(expert, folder, commands) for expert, folder, commands in due if commands]
    if not due:
        return None
    found = devices()
    for expert, _, _ in due:
        require_devices(expert, found)
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
    """Build the expert's engine in `folder`, as far as it isn't there; the commands that ran.

    A build that was interrupted or failed goes on where it stopped. `timeout`: seconds a command may take. What the
    tools print goes to ``build.log``. Raises ErlabError, before anything runs, as `plan` and `check` do, and with the
    tool's own last lines where it fails.
    """
    folder = Path(folder).expanduser().resolve()
    due = plan(expert, folder, weights, examples)
    container = check([(expert, folder, due)])
    found, folders = devices(), [folder, *([Path(weights).expanduser().resolve()] if weights is not None else [])]
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
            _mark(command, expert, found, time.monotonic() - start)
        except BaseException:
            shutil.rmtree(command.writes, ignore_errors=True)
            raise
    _put_tokenizer(folder / "tokenizer", expert, weights)
    return due


def load(folder: str | Path, expert: Expert) -> Path:
    """The engine in `folder` that `build` made for `expert`, ready to be served on this machine.

    Raises ErlabError where it is not whole, or was built for another expert, GPU or version of TensorRT-LLM.
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
    found = devices()
    if found and about["gpu"] != found[0].gpu.name:
        here = found[0].gpu.name
        raise ErlabError(f"{folder}: built for {about['gpu']}, but this machine has {here}. Build it here.")
    try:
        installed = version("tensorrt_llm")
    except PackageNotFoundError:
        installed = None  # it will be served elsewhere, in a container
    if installed and built_with and installed != built_with:
        raise ErlabError(f"{folder}: built with TensorRT-LLM {built_with}, but {installed} is installed. Build again.")
    return engine


def _put_tokenizer(to: Path, expert: Expert, weights: str | Path | None) -> None:
    """The tokenizer beside the engine: the weights' own, or bytes for dummies."""
    if weights is not None:
        to.mkdir(exist_ok=True)
        for pattern in ("tokenizer*", "special_tokens_map.json"):
            for file in Path(weights).expanduser().glob(pattern):
                shutil.copy(file, to)
    elif not (to / "tokenizer_config.json").is_file():
        from erlab.serving.engines import tokenizer  # torch comes with it, which plans need not wait for

        tokenizer.write(to, expert.model.vocab)


def _require_own(folder: Path) -> None:
    own = {"checkpoint", "checkpoint.json", "engine", "engine.json", "build.log", "timing.cache", "tokenizer"}
    own |= {"model", "build.py"}
    if folder.exists() and (others := sorted({p.name.removeprefix(".") for p in folder.iterdir()} - own)):
        raise ErlabError(f"{folder}: not a TensorRT-LLM build folder (it holds {others[0]}). Choose another.")


def _run(command: Command, log: Path, timeout: float, container: str | None, folders: Sequence[Path]) -> None:
    """Run it in a session of its own, so that its workers end with it, printing to the end of `log`."""
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
            raise ErlabError(_said(command, log, begin, f"did not end within {timeout:g} s")) from None
        finally:
            if process.poll() != 0:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # workers of one that failed may still be there
                process.wait()
                if container:
                    nvidia.remove(container, name)
    if code:
        raise ErlabError(_said(command, log, begin, f"failed with status {code}"))


def _said(command: Command, log: Path, begin: int, how: str) -> str:
    """What happened, with the last lines that the command printed."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return f"{tool(command)} {how}, saying: {' | '.join(lines[-3:]) or 'nothing'}. Its log: {log}."


def _missing(command: Command, expert: Expert, real: bool) -> str | None:
    """The first file that the command should have written and has not, or left empty."""
    engine = command.writes.name == "engine"
    suffix = "engine" if engine else "safetensors"
    ranks = range(expert.tensor_parallel) if engine or real else ()
    names = ["config.json", *(f"rank{i}.{suffix}" for i in ranks)]
    return next((n for n in names if not (f := command.writes / n).is_file() or not f.stat().st_size), None)


def _marker(command: Command) -> Path:
    return command.writes.with_name(f"{command.writes.name}.json")


def _mark(command: Command, expert: Expert, found: tuple[Device, ...], seconds: float) -> None:
    about = {
        "format": FORMAT,
        "argv": list(command.argv),
        "expert": _spec(expert),
        "gpu": found[0].gpu.name,
        "seconds": round(seconds, 1),
    }
    marker = _marker(command)
    aside = marker.with_name(f".{marker.name}")
    aside.write_text(json.dumps(about, indent=2) + "\n")
    os.replace(aside, marker)


def _is_done(command: Command, expert: Expert, found: tuple[Device, ...], real: bool) -> bool:
    try:
        about = json.loads(_marker(command).read_text())
        same = about["format"] == FORMAT and about["argv"] == list(command.argv)
        here = not found or about["gpu"] == found[0].gpu.name  # an engine runs on the kind of GPU it was built on
    except (OSError, ValueError, KeyError):
        return False
    return same and here and _missing(command, expert, real) is None


def _spec(expert: Expert) -> dict:
    """What of the expert goes into its engine: the size of the KV pool is chosen when it is served."""
    return asdict(replace(expert, kv_tokens=None))
