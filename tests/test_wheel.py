"""A wheel, installed outside the sources, holds everything that its commands read."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.deep

ROOT = Path(__file__).parents[1]
PACKAGES = ("saprof", "kernels_numba", "kernels_cuda", "studies")
DATA = (
    "saprof/py.typed",
    "saprof/paper/*.json",
    "saprof/plots/*.css",
    "saprof/plots/*.js",
    "kernels_cuda/csrc/*",
    "studies/recipes/*",
)
COMMANDS = (
    "saprof",
    "saprof --version",
    "saprof info",
    "saprof sweep --footprint 3,5,7,9,11 --dry-run",
    "saprof sweep --operator aggregation --stage 5 --footprint 3 --backend unfold --seconds 0.05 --roofs skip",
    "saprof tables --table 7",
    "saprof verify --backend unfold --workloads tiny --dtype float32",
    "saprof advise --max-latency 200ms --max-params 12M",
    "saprof report studies/recorded/footprint_cpu --output report",
    "saprof roofline studies/recorded/relations_cpu --output roofline",
    "saprof compare studies/recorded/relations_cpu --backends numba,unfold",
    "saprof footprints --footprint square:5,cross:13,dilated:5x2,random:25@seed1 --dry-run",
    "saprof footprints --from studies/recorded/footprints_digits --output drawn",
    "saprof reproduce table8 --data digits --seeds 6 --dry-run",
    "saprof train --recipe san_imagenet --data digits --print_config",
    "saprof doctor --data digits",
)


def source(folder: Path) -> Path:
    """A copy of the sources of a wheel, so that the build leaves nothing in the sources."""
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A new environment with the wheel. Its other packages are those of this environment, but not saprof itself: the
    file that makes an editable install visible has no effect in a folder that another `.pth` file names."""
    folder = tmp_path_factory.mktemp("wheel")
    python = [sys.executable, "-m"]
    build = ["build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source(folder / "source")]
    subprocess.run([*python, *build], check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    install = ["pip", "--python", folder / "venv" / "bin" / "python", "install", "--no-deps", "--no-index", wheel]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*python, *install], check=True, capture_output=True, env=environment)
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "studies").symlink_to(packages / "studies")  # README's paths begin there
    return SimpleNamespace(
        packages=packages, bin=folder / "venv" / "bin", elsewhere=folder / "elsewhere", environment=environment
    )


def run(installed, *arguments):
    how = {"cwd": installed.elsewhere, "env": installed.environment, "capture_output": True, "text": True}
    return subprocess.run(arguments, **how)


def test_python_takes_the_wheel(installed):
    probe = f"import {', '.join(PACKAGES)}; print(*(p.__path__[0] for p in ({', '.join(PACKAGES)},)))"
    done = run(installed, installed.bin / "python", "-P", "-c", probe)
    assert done.stdout.split() == [str(installed.packages / package) for package in PACKAGES], done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_in_it(package, installed):
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
    assert ours == {str(path.relative_to(installed.packages)) for path in (installed.packages / package).rglob("*.py")}


def test_all_data_are_in_it(installed):
    recorded = [path for path in (ROOT / "studies" / "recorded").rglob("*") if path.is_file()]
    files = [*recorded, *(path for pattern in DATA for path in ROOT.glob(pattern) if path.is_file())]
    assert len(recorded) > 30
    missing = [path for path in files if not (installed.packages / path.relative_to(ROOT)).exists()]
    assert not missing


def test_metadata(installed):
    (described,) = installed.packages.glob("saprof-*.dist-info")
    text = (described / "METADATA").read_text(encoding="utf-8")
    assert "License-Expression: MIT" in text
    assert (described / "licenses" / "LICENSE").exists()
    assert set(re.findall(r"^Provides-Extra: (\w+)$", text, re.MULTILINE)) >= {"cuda", "studies", "vision", "docs"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, installed):
    name, *arguments = shlex.split(command)
    done = run(installed, installed.bin / name, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout
