"""Runs one notebook with papermill, in a kernel of this interpreter, and ends it cleanly whatever happens; several at
once from threads.

Within `interruptible`, Ctrl-C interrupts the code in the kernel, which gets time to stop the servers it started; then
the kernel ends, and nothing that it started is left behind.
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

GRACE = 20.0  # seconds that interrupted code has to clean up
_kernels: set["_Kernel"] = set()  # that run now
_stopped = threading.Event()  # Ctrl-C, SIGTERM or SIGHUP came
_MENDABLE = ("[Errno 13]", "[Errno 28]", "[Errno 30]", "[Errno 122]")  # access, disk full, read-only, quota


class NotebookError(Exception):
    """A notebook failed for a reason other than its user's mistake; the message is one line."""


class _Stopped(Exception):
    """Ctrl-C came and the cell that ran went on to its end."""


def parameters(notebook: Path, given: Sequence[str] = ()) -> dict[str, bool]:
    """The names that a notebook's cell tagged ``parameters`` assigns, and whether each may be None: where its default
    or its annotation is.

    given: options that set some. Raises ErlabError for what is no notebook and where there is no such cell for them.
    """
    found = cache.read_notebook(notebook)
    cache.code_cells(notebook)  # refuses what has no cells
    mend = "open it in JupyterLab, choose a Python 3 kernel and save it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cells without an id, which papermill bears
            nbformat.validate(found)
        nb_kernel_name(nbformat.from_dict(found)), nb_language(nbformat.from_dict(found))
    except nbformat.ValidationError as e:
        raise ErlabError(f"{notebook}: no notebook of format 4 ({str(e).splitlines()[0]:.200}): {mend}.") from None
    except (ValueError, AttributeError, RecursionError):
        raise ErlabError(f"{notebook}: its metadata name no kernel or language: {mend}.") from None
    if given and not any("parameters" in cell["metadata"].get("tags", ()) for cell in found["cells"]):
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
    """Run a notebook in its folder with these parameter values; save it with its outputs as `executed` and as HTML.

    While it runs it lies beside `executed` as ``<name>.running.ipynb``, and where it stops early as
    ``<name>.failed.ipynb``. `on_cell` is told how many of how many code cells have run. `environment` is added to
    the kernel's.
    Raises ErlabError where the notebook did (or its disk is full or read-only), KeyboardInterrupt after Ctrl-C (see
    `interruptible`) and NotebookError otherwise.
    """
    executed.parent.mkdir(parents=True, exist_ok=True)
    executed = executed.resolve()
    running, failed = (executed.with_suffix(f".{word}.ipynb") for word in ("running", "failed"))
    total, begun = len(cache.code_cells(notebook)) + bool(values), itertools.count()  # papermill adds a cell of values
    kernel = _Kernel(kernel_name="python3", kernel_spec_manager=_ThisPython(environment))
    kernel.folder = notebook.parent.resolve()
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it has to say reaches the user as one line

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
        if _stopped.is_set():  # in the last cell, which went on to its end
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
    """Turn Ctrl-C, SIGTERM and SIGHUP into an interrupt of all kernels' code, after `GRACE` into their end, and on
    leaving into KeyboardInterrupt.

    Only the kernels themselves are signalled: they stop what they started. Off the main thread, where Python takes no
    signals, nothing changes.
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
    before = {number: signal.signal(number, interrupt) for number in ends.heeded()}
    try:
        yield
        if _stopped.is_set():  # while none of them ran
            raise KeyboardInterrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
            timer.join()
        _stopped.clear()


def _explained(error: Exception, notebook: Path, failed: Path) -> Exception:
    """The kernel's error as one of ours, in one line."""
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
    if full or line.startswith(_MENDABLE):
        return ErlabError(f"{notebook.name}: {line}")
    return NotebookError(f"{notebook.name}, cell {error.exec_count}: {error.ename}: {line}. {where}")


def _unformatted(path: Path) -> str:
    """A path as papermill takes it, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _keep(running: Path, failed: Path) -> None:
    with contextlib.suppress(OSError):
        os.replace(running, failed)


def _html(notebook: Path) -> str:
    from nbconvert import HTMLExporter

    return HTMLExporter().from_filename(str(notebook))[0]


class _ThisPython(KernelSpecManager):
    """Knows one kernel: the interpreter we run in, whatever is installed, with additions to its environment."""

    def __init__(self, environment: Mapping[str, str]):
        super().__init__()
        self.environment = dict(environment)

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python", env=self.environment)


class _Kernel(AsyncKernelManager):
    """A kernel whose process can be signalled and that takes everything it started with it."""

    connected = None
    folder: Path  # where it works: papermill would change this whole process's

    async def start_kernel(self, **options):
        """Start with nothing of ours to write to: what cells print comes as messages, the rest would be noise."""
        options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": str(self.folder)}
        await super().start_kernel(**options)

    def client(self, **options):
        self.connected = super().client(**options)
        return self.connected

    @property
    def tree(self) -> list[psutil.Process]:
        """Its process and all that this started; none once it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.has_kernel:
                process = psutil.Process(self.provisioner.pid)
                return [process, *process.children(recursive=True)]
        return []

    def end(self) -> None:
        """Shut the kernel down; kill what is left of its process tree."""
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
    """Kill processes and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=3)
