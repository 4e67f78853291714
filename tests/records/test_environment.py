"""Provenance: the part of the code that belongs to a row."""

import subprocess
import sys

import pytest

from saprof.records.environment import MEASURED_CODE, ROOT, code_hash


@pytest.fixture
def sources(tmp_path):
    """A small source tree."""
    for folder in (*MEASURED_CODE, "records", "paper", "plots"):
        (tmp_path / "saprof" / folder).mkdir(parents=True)
        (tmp_path / "saprof" / folder / "some.py").write_text("x = 1\n")
    (tmp_path / "saprof" / "sweep.py").write_text("x = 1\n")
    for kernels, file in (("kernels_numba/cpu", "some.py"), ("kernels_cuda/csrc", "some.cu")):
        (tmp_path / kernels).mkdir(parents=True)
        (tmp_path / kernels / file).write_text("x = 1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        *((f"saprof/{folder}/some.py", True) for folder in MEASURED_CODE),
        ("kernels_numba/cpu/some.py", True),
        ("kernels_cuda/csrc/some.cu", True),
        ("saprof/plots/some.py", False),
        ("saprof/paper/some.py", False),
        ("saprof/records/some.py", False),
        ("saprof/sweep.py", False),
    ],
)
def test_only_the_code_that_is_measured_ends_a_run(sources, changed, matters):
    before = code_hash(sources)
    (sources / changed).write_text("x = 2\n")
    assert (code_hash(sources) != before) is matters


def test_the_measured_packages_exist():
    assert all((ROOT / "saprof" / name / "__init__.py").exists() for name in MEASURED_CODE)
    assert len({code_hash(), code_hash()}) == 1


def test_records_do_not_import_torch():
    modules = ", ".join(f"saprof.records.{path.stem}" for path in (ROOT / "saprof" / "records").glob("[a-z]*.py"))
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
