"""Every picture says in words what is seen, with numbers."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRACKED = subprocess.run(
    ["git", "ls-files", "*.md", "*.ipynb", "*.html"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.split()
MARKDOWN = re.compile(r"!\[([^\]]*)\]\([^)]+\)")
HTML = re.compile(r"<img\b[^>]*>")


def alts(text):
    """The descriptions of the pictures in a text; None for a picture that has none."""
    found = [" ".join(alt.split()) for alt in MARKDOWN.findall(text)]
    tags = [re.search(r'\balt="([^"]*)"', tag) for tag in HTML.findall(text)]
    return found + [tag and tag[1] for tag in tags]


def is_description(alt):
    """Whether it is a sentence with numbers, and not a generic word."""
    return bool(alt) and len(alt) > 60 and any(character.isdigit() for character in alt)


@pytest.mark.parametrize("bad", [None, "", "figure", "A figure of latency", "footprint.png"])
def test_generic_words_are_no_description(bad):
    assert not is_description(bad)
    assert alts("![](a.png)") == [""]
    assert alts('<img src="a.png">') == [None]


@pytest.mark.parametrize("name", [name for name in TRACKED if name.endswith((".md", ".html"))])
def test_pictures_of_pages_are_described(name):
    path = ROOT / name
    if not path.exists():
        pytest.skip("removed")
    for alt in alts(path.read_text(encoding="utf-8")):
        assert is_description(alt), f"{name}: {alt!r}"


@pytest.mark.parametrize("name", [name for name in TRACKED if name.endswith(".ipynb")])
def test_pictures_of_notebooks_are_described(name):
    notebook = json.loads((ROOT / name).read_text(encoding="utf-8"))
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            assert all(is_description(alt) for alt in alts("".join(cell["source"])))
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = output["metadata"].get("image/png", {}).get("alt")
                assert is_description(alt), f"{name}, cell {number}: {alt!r}"


def test_there_are_pictures():
    assert any(alts((ROOT / name).read_text(encoding="utf-8")) for name in TRACKED if name == "README.md")
