"""What browser tests share: headless Chromium, a JupyterLab or Notebook 7 of their own, a notebook run to its end in it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from erlab.study import notebook

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SETTINGS = {  # all cells in the page, not only those on screen; no news fetched
    "notebook-extension/tracker": {"windowingMode": "none"},
    "completer-extension/manager": {"providerTimeout": 60_000},  # ms; the kernel's first completion is slow
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
_DONE = r"""() => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(e => e.textContent.trim());
    const outputs = [...document.querySelectorAll(".jp-OutputArea-output")].map(e => e.textContent);
    return outputs.some(text => text.includes("Traceback (most recent call last)"))
        || (prompts.length > 0 && prompts.every(p => /\[\d+\]/.test(p)));
}"""


def unavailable() -> str | None:
    """Why no browser can be driven here; None if one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install -e .[test])"
    return None if CHROMIUM else "no Chromium is installed (Debian: apt-get install chromium)"


@contextlib.contextmanager
def chromium() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def jupyter(folder: Path, program: str = "jupyterlab") -> Iterator[str]:
    """A JupyterLab (Notebook 7, if `program` is notebook) on a free port of the loopback that serves `folder/notebooks`.

    Yields the address to put a notebook's name in; it ends, and its kernels with it, when the context does.
    """
    places = {name: folder / name.lower() for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
    environment = os.environ | {f"JUPYTER_{name}": str(place) for name, place in places.items()}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "IPYTHONDIR": str(folder / "ipython")}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    for plugin, values in _SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    root, token = folder / "notebooks", os.urandom(16).hex()
    root.mkdir(exist_ok=True)
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={root}"]
    command = [sys.executable, "-m", program, *options, f"--IdentityProvider.token={token}"]
    server = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stderr)))
        threading.Thread(target=server.stderr.read, daemon=True).start()  # what it logs would fill the pipe
        place = "lab/tree" if program == "jupyterlab" else "notebooks"
        yield f"{found[0]}{place}/{{}}?token={token}&reset"
    finally:
        server.terminate()
        server.wait(30)


def place(source: Path, folder: Path, values: Mapping) -> None:
    """Put a notebook into `folder`, with those of `values` that are parameters of it."""
    known = {name: value for name, value in values.items() if name in notebook.parameters(source)}
    nbformat.write(parameterize_notebook(load_notebook_node(str(source)), known), folder / source.name)


def open_notebook(page, address: str) -> None:
    """Open a notebook; returns when its kernel waits for work."""
    page.goto(address)
    if "/lab/" in address:
        page.get_by_text(re.compile(r"ipykernel.*Idle")).wait_for(timeout=60_000)
        return
    deadline = time.monotonic() + 60  # Notebook 7 shows a sign only, which is there before the kernel
    while not any(_waits(session["kernel"]) for session in _sessions(page, address)):
        assert time.monotonic() < deadline, "no kernel is connected and idle"
        page.wait_for_timeout(200)


def run_all(page, address: str, seconds: float = 180) -> None:
    """Open a notebook and choose Run All Cells; returns when all cells have run or one has failed."""
    open_notebook(page, address)
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator("[data-command='runmenu:run-all']").click()
    page.wait_for_function(_DONE, timeout=seconds * 1000)


def end_kernels(page, address: str) -> None:
    """Shut down every kernel of the server at this address."""
    base, headers = _server(address)
    for session in _sessions(page, address):
        page.request.delete(f"{base}/api/sessions/{session['id']}", headers=headers)


def _sessions(page, address: str) -> list[dict]:
    base, headers = _server(address)
    return page.request.get(f"{base}/api/sessions", headers=headers).json()


def _waits(kernel: dict) -> bool:
    return kernel["connections"] > 0 and kernel["execution_state"] == "idle"


def _server(address: str) -> tuple[str, dict]:
    """The address of a server's own face, and what it wants to be asked with."""
    base, token = re.match(r"(http://[^/]*)/.*token=(\w+)", address).groups()
    return base, {"Authorization": f"token {token}"}


def errors(page) -> list[str]:
    """The tracebacks that an opened notebook shows."""
    return page.locator(".jp-OutputArea-output", has_text="Traceback (most recent call last)").all_inner_texts()
