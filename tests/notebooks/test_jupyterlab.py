"""JupyterLab as `make lab` starts it, driven through a headless Chromium: a notebook is opened, run, and its figure is
there. It needs chromium and chromium-driver; where they are missing it is skipped, but not on CI."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")

ROOT = Path(__file__).parents[2]
NOTEBOOK = "02_footprint.ipynb"
LOAD, RUN = 120, 180
"""Seconds until the page has loaded, and until all cells have run, on a busy machine."""


@pytest.fixture
def folder(tmp_path):
    """The notebook beside the rows that it reads, without its outputs."""
    notebook = nbformat.read(ROOT / "notebooks" / NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    nbformat.write(notebook, tmp_path / "notebooks" / NOTEBOOK)
    return tmp_path


@contextmanager
def lab(folder, token="secret"):
    """A server on a free port; yields its address."""
    from socket import socket

    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", f"--IdentityProvider.token={token}", "--no-browser", "--allow-root"]
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(folder / "config"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.port_retries=0", *options]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            until(LOAD, lambda: server.poll() is not None or answers(f"{address}/api?token={token}"))
            assert server.poll() is None, (folder / "log").read_text()
            yield f"{address}/lab/tree/notebooks/{NOTEBOOK}?token={token}"
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)  # if it would not end
            server.wait()


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def until(seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds} s"
        time.sleep(0.5)


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_notebook_runs_in_jupyterlab(browser, folder):
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(folder / "notebooks" / NOTEBOOK, 4).cells)

    def read(selector, field):
        """The texts of all elements at one moment, since the page may redraw them at any time."""
        script = f"return Array.from(document.querySelectorAll(arguments[0])).map(x => x.{field})"
        return browser.execute_script(script, selector)

    def prompts():
        return [text.strip("[]:\xa0 ") for text in read(".jp-CodeCell .jp-InputArea-prompt", "textContent")]

    def click(how, what):
        until(LOAD, lambda: browser.find_elements(how, what))
        browser.find_element(how, what).click()

    with lab(folder) as address:
        browser.get(address)
        until(LOAD, lambda: prompts() == [""] * cells)
        until(LOAD, lambda: read(".jp-Notebook-ExecutionIndicator[data-status=idle]", "tagName"))
        assert not read(".jp-OutputArea-output img", "tagName")
        click("xpath", "//*[contains(@class, 'lm-MenuBar-item')][normalize-space()='Run']")
        click("css selector", "[data-command='runmenu:run-all']")
        until(RUN, lambda: len(prompts()) == cells and all(prompt.isdigit() for prompt in prompts()))
        assert not read("[data-mime-type='application/vnd.jupyter.stderr']", "textContent")
        widths = read(".jp-OutputArea-output img", "naturalWidth")
        assert widths, "no figure"
        assert min(widths) > 300
