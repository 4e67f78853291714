"""Every command, snippet, path and link of the README and of docs/ works as it is written."""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import saprof
from saprof.__main__ import COMMANDS, GROUPS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *DOCS]}
ALL = "\n".join(PAGES.values())
BLOCKS = [
    (page, kind, block)
    for page, text in PAGES.items()
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
LESS = {
    "saprof.sweep": ["--seconds", "0.05", "--roofs", "skip"],
    "saprof.verify": ["--workloads", "tiny", "--dtype", "float32"],
    "studies.train": ["--epochs", "1"],
}
"""Arguments that shorten the work of a command; other tests check that work."""
INSTALLED = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
MAKE = set(re.findall(r"^([\w-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def arguments(line: str) -> tuple[str, ...]:
    """The module and the arguments, shortened, of a line such as `saprof sweep …` or `python -m saprof.sweep …`."""
    first, *rest = shlex.split(line, comments=True)
    if first == "saprof":
        rest = ["-m", COMMANDS[rest[0]].module, *rest[1:]]
    assert rest[0] == "-m", f"{line}; expected saprof COMMAND or python -m MODULE"
    _, module, *given = rest
    less = LESS.get(module, [])
    return (module, *given, *([] if less and less[0] in given else less))


SHELL = dict.fromkeys(
    arguments(line)
    for _, kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
    if not line.startswith("make ")
)
PYTHON = {f"{page} {n}": block for n, (page, kind, block) in enumerate(BLOCKS) if kind == "python"}


@pytest.mark.deep
@pytest.mark.parametrize("command", SHELL, ids=" ".join)
def test_commands(command, tmp_path):
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.deep
@pytest.mark.parametrize("block", PYTHON.values(), ids=PYTHON)
def test_snippets(block, tmp_path):
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^print.*# ([\d ]+)$", block, re.MULTILINE)
    assert not promised or promised == done.stdout.splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    linked = re.findall(r"\]\((?!http|#)([^)#\s]+)", PAGES[page])
    for path in linked:
        assert (ROOT / page).parent.joinpath(path).exists(), f"{page} links to {path}"
    named = re.findall(r"(?:saprof|studies|tests|notebooks|docs|kernels_\w+)/[\w./-]+\w", PAGES[page])
    for path in named:
        assert (ROOT / path).exists() or "NAME" in path or path.endswith("star/model.pt"), f"{page} names {path}"


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_and_extra_exists(page):
    named = re.findall(r"(?:^|`)make ([a-z][\w-]*)", PAGES[page], re.MULTILINE)
    assert set(named) <= MAKE
    extras = re.findall(r"pip install -e '\.\[([\w,]+)\]'", PAGES[page])
    assert {extra for entry in extras for extra in entry.split(",")} <= {*INSTALLED, "NAME"}


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    explained = re.findall(r"^\| `(\w+)` \|", PAGES["docs/install.md"], re.MULTILINE)
    assert explained == [*extras]


def test_every_public_name_is_in_the_reference():
    named = re.findall(r"^::: saprof\.(?:measure\.\w+\.)?(\w+)$", PAGES["docs/reference.md"], re.MULTILINE)
    assert sorted(named) == sorted(saprof.__all__)


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == saprof.__version__
    assert [entry["url"].partition("/abs/")[2] for entry in cited["references"]] == ["2004.13621", "1906.05909"]
    assert f"\n## {saprof.__version__}\n" in PAGES["CHANGELOG.md"]


def test_issue_forms_and_workflows_can_be_read():
    files = [*ROOT.glob(".github/*/*.yml"), ROOT / ".pre-commit-config.yaml"]
    read = {path.name: yaml.safe_load(path.read_text()) for path in files}
    asked = [field.get("id") for field in read["bug.yml"]["body"]]
    assert {"info", "verify", "run"} <= set(asked)
    assert any(step.get("run") == ".ci/run" for step in read["ci.yml"]["jobs"]["test"]["steps"])


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.deep
@pytest.mark.parametrize("name", COMMANDS)
def test_examples_use_options_that_exist(name, hooks):
    text = hooks.help_of(COMMANDS[name])
    for option in re.findall(r"--[\w-]+", COMMANDS[name].example):
        assert option in text


@pytest.mark.deep
def test_the_documentation_builds_without_a_warning(tmp_path, hooks):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "commands.html").read_text()
    for title in GROUPS:
        assert f">{title}<" in page
    for name in COMMANDS:
        assert f'<h3 id="{name}">' in page
    page = (tmp_path / "site" / "mutants.html").read_text()
    for mutant in hooks.MUTANTS:
        assert f"<td>{mutant.name}</td>" in page
    outside = [
        link
        for file in (tmp_path / "site").rglob("*.html")
        for link in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+', file.read_text())
    ]
    assert not outside, "the pages load something from the network"
