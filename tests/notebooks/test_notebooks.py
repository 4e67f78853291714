"""Every notebook runs from top to bottom, and shows the committed outputs."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def execute():
    sys.path.insert(0, str(FOLDER))
    from execute import execute  # the script beside the notebooks

    yield execute
    sys.path.remove(str(FOLDER))


def texts(notebook):
    """The outputs of the cells, with a placeholder for pictures, since fonts may change them by a pixel."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                yield "picture"
            else:
                yield output.get("text") or data.get("text/html") or data.get("text/plain")


@pytest.mark.deep
@each_notebook
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_notebook_runs_and_shows_what_it_showed(path, execute):
    started = time.monotonic()
    shown = list(texts(execute(path)))
    assert time.monotonic() - started < 180, "the minute promised is that of an idle machine"
    assert shown == list(texts(nbformat.read(path, as_version=4))), f"run python notebooks/execute.py {path.name}"
    assert "picture" in shown


@each_notebook
def test_a_notebook_begins_with_a_question_and_its_answer(path):
    first = nbformat.read(path, as_version=4).cells[0]
    title, _, answer = first.source.partition("\n\n")
    assert first.cell_type == "markdown"
    assert re.fullmatch(r"# .+\?", title)
    assert answer.startswith("**")


@each_notebook
def test_a_notebook_names_no_machine(path):
    content = path.read_text(encoding="utf-8")
    assert not re.search(r"[\"' (](/home|/root|/tmp|/work|/usr|C:)[/\\]", content)
    assert '"execution"' not in content, "no times"


def test_the_notebooks_are_in_the_documentation():
    page = (ROOT / "docs" / "measure.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        title = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"][0].removeprefix("# ").strip()
        assert f"| `notebooks/{path.name}` | {title}" in page
