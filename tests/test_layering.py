"""Data flows one way: a module imports only from its left, at its top or inside its functions."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import saprof

ORDER = [
    [
        "saprof.atomic",
        "saprof.compiling",
        "saprof.kept_memory",
        "saprof.lazy",
        "saprof.lock",
        "saprof.markup",
        "saprof.quantities",
        "saprof.text",
    ],  # import nothing of ours
    ["saprof.terminal"],
    ["saprof.command"],
    ["saprof.operators", "saprof.records"],
    ["saprof.backends"],
    ["saprof.functional"],
    ["saprof.layers"],
    ["saprof.models"],
    ["saprof.measure"],
    ["saprof.paper"],
    ["saprof.plots"],
    [
        "saprof.advise",
        "saprof.build",
        "saprof.compare",
        "saprof.__main__",
        "saprof.from_pytest",
        "saprof.info",
        "saprof.profile",
        "saprof.report",
        "saprof.roofline",
        "saprof.sweep",
        "saprof.tables",
        "saprof.verify",
    ],
    ["studies.failures", "studies.config"],
    ["studies.data"],
    ["studies.detection"],
    ["studies.training"],
    ["studies.judging"],
    ["studies.reproduction"],
    [
        "studies.detectors",
        "studies.doctor",
        "studies.evaluate",
        "studies.footprints",
        "studies.reproduce",
        "studies.train",
    ],
]
"""The rooms, left to right: modules, or packages with their modules. Rooms side by side do not import each other. The
modules of a package may import each other in any order, but not in a circle."""

ROOT = Path(saprof.__file__).parent.parent
PACKAGES = ("saprof", "studies")
PATHS = [path for package in PACKAGES for path in sorted(ROOT.glob(f"{package}/**/*.py"))]
FILES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in PATHS}
MODULES = {name: path for path, name in FILES.items() if name not in PACKAGES}


def imports(path: Path) -> Iterator[str]:
    """The imports of a file, each with its full name: `from saprof import text` is saprof.text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively; expected the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> list[str]:
    """Ours, but for `saprof` itself, whose public names studies may use."""
    return [name for name in imports(MODULES[module]) if name.partition(".")[0] in PACKAGES and name != "saprof"]


def rank(name: str) -> int:
    """The position of a name's room from the left; the innermost room counts."""
    homes = {room: n for n, rooms in enumerate(ORDER) for room in rooms if f"{name}.".startswith(f"{room}.")}
    assert homes, f"{name} is in no room of saprof; give its module a place in ORDER of {Path(__file__).name}"
    return homes[max(homes, key=len)]


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_the_left(module):
    for name in own_imports(module):
        same_package = name.split(".")[:2] == module.split(".")[:2]
        assert same_package or rank(name) < rank(module), f"{module} imports {name}, which is not on its left"
    rank(module)


def test_nothing_is_imported_in_a_circle():
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        targets = {name if name in MODULES else name.rpartition(".")[0] for name in own_imports(module)}
        packages = {target.rpartition(".")[0] for target in targets} - {"saprof", module.rpartition(".")[0]}
        graph[module] = (targets | packages) - {module}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", ["kernels_numba", "kernels_cuda"])
def test_kernels_know_nothing_of_saprof(package):
    """The command that compiles kernels of Numba is not a kernel. It calls them as saprof does; nothing there imports
    it."""
    command = ROOT / "kernels_numba" / "build.py"
    for path in {*(ROOT / package).rglob("*.py")} - {command}:
        assert "kernels_numba.build" not in imports(path), path
        assert not [name for name in imports(path) if name.partition(".")[0] == "saprof"], path
