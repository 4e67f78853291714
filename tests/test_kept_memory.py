"""Freed memory: the commands keep it, an import does not, and a run says which it was."""

import json
import os
import subprocess
import sys

import pytest

from saprof import kept_memory
from saprof.records.runs import differences

needs_glibc = pytest.mark.skipif(
    kept_memory.why_not() is not None, reason=f"freed memory is not kept: {kept_memory.why_not()}"
)

FAULTS = """
import resource
from saprof import kept_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def used_again(size=64 << 20):
    "The page faults of writing a large block where one of this size was freed."
    for _ in range(2):
        before, block = faults(), bytearray(b"x") * size
        found = faults() - before
        del block
    return found

"""


def alone(code, **environment):
    """What a new process prints."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "SAPROF_"))}
    answer = subprocess.run(
        [sys.executable, "-c", FAULTS + code], capture_output=True, text=True, env=settings | environment
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.split()


@needs_glibc
def test_a_freed_block_is_used_again():
    given_back, kept = alone("print(used_again()); assert kept_memory.keep_memory(); print(used_again())")
    assert int(given_back) > 10_000  # of 16,384 pages
    assert int(kept) < 100


@needs_glibc
def test_the_variable_prevents_it():
    found = alone("print(kept_memory.keep_memory(), kept_memory.kept(), used_again())", SAPROF_KEEP_MEMORY="0")
    assert found[:2] == ["False", "False"]
    assert int(found[2]) > 10_000


@needs_glibc
def test_a_command_keeps_it_and_an_import_does_not():
    assert alone("import saprof, saprof.command, saprof.sweep; print(kept_memory.kept())") == ["False"]
    command = "from saprof import command\ncommand.run(lambda _: print(kept_memory.kept()) or 0)"
    assert alone(command) == ["True"]
    assert alone(command, SAPROF_KEEP_MEMORY="0") == ["False"]


@needs_glibc
def test_old_glibc_maps_no_block(monkeypatch):
    """Before 2.35 it refuses a large threshold."""
    asked = []

    def refusing(option, value):
        asked.append((option, value))
        return int(option != kept_memory._MMAP_THRESHOLD)

    monkeypatch.setattr(kept_memory._State, "kept", False)
    monkeypatch.setattr(kept_memory, "why_not", lambda: None)
    monkeypatch.setattr(kept_memory.ctypes, "CDLL", lambda _: type("Library", (), {"mallopt": staticmethod(refusing)}))
    assert kept_memory.keep_memory()
    assert asked == [(-3, 2**31 - 1), (-4, 0), (-1, -1)]


def test_another_system(monkeypatch):
    monkeypatch.setattr(kept_memory._State, "kept", False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert kept_memory.why_not() == "needs glibc, the allocator of Linux"
    assert not kept_memory.keep_memory()


@needs_glibc
@pytest.mark.parametrize("isolated", [False, True])
def test_a_run_records_it(tmp_path, isolated):
    what = "--operator aggregation --stage 5 --footprint 3 --backend unfold --seconds 0.01 --roofs skip"
    arguments = [*what.split(), *(["--isolate"] if isolated else [])]
    for value in ("0", "1"):
        command = [sys.executable, "-m", "saprof.sweep", *arguments, "--output", str(tmp_path / value)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"SAPROF_KEEP_MEMORY": value})
    given_back, kept = (json.loads((tmp_path / value / "run.json").read_text()) for value in ("0", "1"))
    assert (given_back["kept_memory"], kept["kept_memory"]) == (False, True)
    assert given_back["fingerprint"] != kept["fingerprint"]
    assert differences(given_back, kept)["kept_memory"] == (False, True)


def test_runs_from_before_are_compared():
    assert differences({}, {"kept_memory": True}) == {"kept_memory": (None, True)}
