"""Whole files or none: what a killed process left half-written goes away, and what a living one is writing stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saprof import atomic


@pytest.fixture(scope="module")
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def half(folder: Path, name: str, process: int, age: float = 0) -> Path:
    path = folder / f".{name}.{process}.tmp"
    path.write_bytes(b"half")
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def test_the_next_write_of_a_file_removes_what_a_killed_one_left(tmp_path, ended):
    left, other = half(tmp_path, "a", ended), half(tmp_path, "b", ended)
    atomic.write(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert not left.exists()
    assert other.exists()


def test_a_folder_is_rid_of_all_that_killed_processes_left(tmp_path, ended):
    left = [half(tmp_path, name, ended) for name in ("a", "step_0000000007.pt")]
    reused = half(tmp_path, "a", os.getppid(), age=10**7)  # written before the process with this number began
    atomic.remove_abandoned(tmp_path)
    assert not any(path.exists() for path in (*left, reused))


def test_what_is_being_written_and_what_is_not_ours_stay(tmp_path, ended):
    (tmp_path / "folder").mkdir()
    mine = [half(tmp_path, "a", os.getpid()), half(tmp_path, "a", os.getppid())]
    foreign = [tmp_path / name for name in ("a.tmp", f"a.{ended}.tmp", ".a.tmp", ".a.x1.tmp", f".a.{ended}.tmp.x")]
    for path in foreign:
        path.touch()
    (tmp_path / f".d.{ended}.tmp").mkdir()
    (tmp_path / f".l.{ended}.tmp").symlink_to(tmp_path / "a.tmp")
    before = set(tmp_path.iterdir())
    atomic.remove_abandoned(tmp_path)
    atomic.remove_abandoned(tmp_path / "nowhere")
    assert set(tmp_path.iterdir()) == before >= {*mine, *foreign}
