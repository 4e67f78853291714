"""Run the notebooks from top to bottom and store their outputs: all of them (`make notebooks`), or some by name.

    python notebooks/execute.py [NAME ...]

The stored files hold no times, no versions, no progress and no widget views, so that they change only when a result
changes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
LONGEST = 300
"""The most seconds that one cell may take."""


def execute(path: Path) -> NotebookNode:
    """Run the notebook and return it with its outputs. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(FOLDER)}}
    silent = os.environ | {"SAPROF_SILENT": "1"}  # what is compiled depends on the caches of the machine
    client = NotebookClient(notebook, timeout=LONGEST, kernel_name="python3", resources=where, record_timing=False)
    client.execute(env=silent)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return notebook


def main(names: list[str]) -> None:
    for path in [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb")):
        print(path.name, file=sys.stderr)
        nbformat.write(execute(path), path)


if __name__ == "__main__":
    main(sys.argv[1:])
