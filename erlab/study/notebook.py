"""Execution of notebooks with papermill, in kernels of this interpreter.

Several notebooks may run at the same time, each in a thread. Within `interruptible`, Ctrl-C interrupts the code in the
kernels, which get `GRACE` seconds to stop the servers that they started; then the kernels and all their child processes
end.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.utils import nb_kernel_name, nb_language

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.study import cache, ends

GRACE = 20.0  # seconds for interrupted code to clean up
_kernels: set["_Kernel"] = set()  # running kernels
_stopped = threading.Event()  # set by Ctrl-C, SIGTERM or SIGHUP
_USER_ERRORS = ("[Errno 13]", "[Errno 28]", "[Errno 30]", "[Errno 122]")  # access, disk full, read-only, quota


class NotebookError(Exception):
    """Failure of a notebook that is not a user's mistake; the message is one line."""


class _Stopped(Exception):
    """Interruption while a cell ran, which completed all the same."""


def parameters(notebook: Path, given: Sequence[str] = ()) -> dict[str, bool]:
    """Return the parameters that a notebook declares and whether each may be None.

    A parameter may be None if its default or its annotation is.

    Args:
        notebook: Notebook with a cell tagged ``parameters``.
        given: Options that set parameters, such as ``--seed``.

    Raises:
        ErlabError: The file is no notebook, or it has no cell tagged ``parameters`` although options set some.
    """
    content = cache.read_notebook(notebook)
    cache.code_cells(notebook)  # refuses a notebook without cells
    advice = "open it in JupyterLab, choose a Python 3 kernel and save it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cells without an id, which papermill accepts
            nbformat.validate(content)
        nb_kernel_name(nbformat.from_dict(content)), nb_language(nbformat.from_dict(content))
    except nbformat.ValidationError as e:
        raise ErlabError(f"{notebook}: no notebook of format 4 ({str(e).splitlines()[0]:.200}): {advice}.") from None
    except (ValueError, AttributeError, RecursionError):
        raise ErlabError(f"{notebook}: its metadata name no kernel or language: {advice}.") from None
    if given and not any("parameters" in cell["metadata"].get("tags", ()) for cell in content["cells"]):
        tag = "tag the cell that assigns them 'parameters' (in JupyterLab's property inspector)"
        raise ErlabError(f"{notebook}: no cell is tagged 'parameters', so {', '.join(given)} would be ignored: {tag}.")
    declared = papermill.inspect_notebook(_unformatted(notebook)).values()
    return {p["name"]: p["default"] == "None" or "Optional[" in p["inferred_type_name"] for p in declared}


def run(
    notebook: Path,
    executed: Path,
    values: Mapping,
    environment: Mapping[str, str],
    on_cell: Callable[[int, int], None],
) -> None:
    """Run a notebook in its folder and save it with its outputs, also as HTML.

    While it runs, it is saved beside `executed` as ``<name>.running.ipynb``, after a failure as
    ``<name>.failed.ipynb``.

    Args:
        on_cell: Called with the number of finished code cells and their total.

    Raises:
        ErlabError: The notebook raised one, or a disk is full or read-only.
        KeyboardInterrupt: Ctrl-C was pressed within `interruptible`.
        NotebookError: The notebook failed otherwise.
    """
    executed.parent.mkdir(parents=True, exist_ok=True)
    executed = executed.resolve()
    running, failed = (executed.with_suffix(f".{word}.ipynb") for word in ("running", "failed"))
    total, begun = len(cache.code_cells(notebook)) + bool(values), itertools.count()  # papermill adds a cell of values
    kernel = _Kernel(kernel_name="python3", kernel_spec_manager=_ThisPython(environment))
    kernel.folder = notebook.parent.resolve()
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # its errors reach the user as one line

    def on_cell_start(cell, cell_index):
        if _stopped.is_set():
            raise _Stopped
        if cell.cell_type == "code":
            on_cell(next(begun), total)

    _kernels.add(kernel)
    try:
        papermill.execute_notebook(
            _unformatted(notebook.resolve()),
            _unformatted(running),
            dict(values),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            km=kernel,
            on_cell_start=on_cell_start,
        )
        if _stopped.is_set():  # interrupted in the last cell, which completed
            raise _Stopped
    except (PapermillExecutionError, _Stopped, RuntimeError) as e:  # a kernel that died is a RuntimeError
        _keep(running, failed)
        if _stopped.is_set():
            raise KeyboardInterrupt from None
        raise _explained(e, notebook, failed) from None
    except BaseException:
        _keep(running, failed)
        raise
    finally:
        kernel.end()
        _kernels.discard(kernel)
    textfiles.save(executed.with_suffix(".html"), _html(running))
    os.replace(running, executed)
    failed.unlink(missing_ok=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Stop all kernels on Ctrl-C, SIGTERM and SIGHUP, then raise KeyboardInterrupt.

    The signal interrupts the code in the kernels, which stops the servers that it started; after `GRACE` seconds the
    kernels are killed. Has no effect outside of the main thread, where Python handles no signals.
    """
    timers = []

    def end():
        for kernel in list(_kernels):
            _kill(kernel.tree)

    def interrupt(signum, frame):
        ends.note(signum)
        _stopped.set()
        for kernel in list(_kernels):
            for process in kernel.tree[:1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGINT)
        timers.append(threading.Timer(GRACE, end))
        timers[-1].daemon = True
        timers[-1].start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in ends.handled()}
    try:
        yield
        if _stopped.is_set():  # while no kernel ran
            raise KeyboardInterrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
            timer.join()
        _stopped.clear()


def _explained(error: Exception, notebook: Path, failed: Path) -> Exception:
    """Convert the kernel's error to an error of one line."""
    where = f"The executed notebook: {failed}"
    if isinstance(error, DeadKernelError):
        return NotebookError(f"{notebook.name}: its kernel died (out of memory, or killed). {where}")
    if not isinstance(error, PapermillExecutionError):
        return NotebookError(f"{notebook.name}: its kernel ({sys.executable} -m ipykernel_launcher) failed: {error}")
    line = " ".join(str(error.evalue).split())
    if error.ename == "ErlabError":
        return ErlabError(line)
    full = ends.full(RuntimeError(*error.traceback))  # also where another error wraps it
    if full and not re.search(r"(^|[ '\"])/", line):  # it names no file
        return ErlabError(f"{notebook.name}: {line.rstrip('.')}: no space left in {failed.parent.parent}.")
    if full or line.startswith(_USER_ERRORS):
        return ErlabError(f"{notebook.name}: {line}")
    return NotebookError(f"{notebook.name}, cell {error.exec_count}: {error.ename}: {line}. {where}")


def _unformatted(path: Path) -> str:
    """Escape the braces of a path, which papermill would format."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _keep(running: Path, failed: Path) -> None:
    with contextlib.suppress(OSError):
        os.replace(running, failed)


def _html(notebook: Path) -> str:
    from nbconvert import HTMLExporter

    return HTMLExporter().from_filename(str(notebook))[0]


class _ThisPython(KernelSpecManager):
    """Kernel specification of this interpreter, with additional environment variables."""

    def __init__(self, environment: Mapping[str, str]):
        super().__init__()
        self.environment = dict(environment)

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python", env=self.environment)


class _Kernel(AsyncKernelManager):
    """Kernel whose process can be signalled and that ends with all its child processes."""

    connected = None
    folder: Path  # working directory; papermill would change that of this process

    async def start_kernel(self, **options):
        """Start the kernel without access to our terminal; output of cells arrives as messages."""
        options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": str(self.folder)}
        await super().start_kernel(**options)

    def client(self, **options):
        self.connected = super().client(**options)
        return self.connected

    @property
    def tree(self) -> list[psutil.Process]:
        """The kernel's process and its descendants; empty after its end."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.has_kernel:
                process = psutil.Process(self.provisioner.pid)
                return [process, *process.children(recursive=True)]
        return []

    def end(self) -> None:
        """Shut the kernel down and kill the rest of its process tree."""
        started = self.tree[1:]
        run_sync(self._end)()
        _, left = psutil.wait_procs(started, timeout=3)
        _kill(left)

    async def _end(self) -> None:
        if self.has_kernel:
            await self.shutdown_kernel()
        if self.connected:
            self.connected.stop_channels()
        await asyncio.sleep(0)


def _kill(processes: list[psutil.Process]) -> None:
    """Kill processes and wait for their end."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=3)
