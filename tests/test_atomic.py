"""Whole files or none: what a killed process left half-written goes away, and what a living one is writing stays."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from saprof import atomic, plots


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


@pytest.fixture
def full_disk():
    """No file may become larger than 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "a"
    atomic.write(path, b"old")
    for write in (atomic.write, atomic.append):
        with pytest.raises(atomic.WriteError, match=f"^cannot write to {path}: File too large$"):
            write(path, b"x" * 101)
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]
    atomic.append(path, b"er")
    assert path.read_bytes() == b"older"


def test_a_file_takes_its_place_when_its_content_is_on_disk(tmp_path, monkeypatch):
    """After a crash of the machine there is the old file or the new one. The name is on disk after its folder is."""
    path, synced = tmp_path / "a", []

    def fsync(descriptor):
        facts = os.fstat(descriptor)
        synced.append(("folder" if stat.S_ISDIR(facts.st_mode) else facts.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.write(path, b"new")
    assert synced == [(3, False), ("folder", True)]


def test_a_figure_on_a_full_disk_is_not_half_written(tmp_path, full_disk):
    with pytest.raises(atomic.WriteError, match=r"figure\.png: File too large"):
        plots.write(Figure(), tmp_path / "figure")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions(tmp_path, umask):
    """A new file has those of the umask, and a replaced one keeps its own."""
    before = os.umask(umask)
    try:
        atomic.write(tmp_path / "new", b"")
        old = tmp_path / "old"
        old.touch()
        old.chmod(0o640)
        atomic.write(old, b"x")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "old")] == [0o666 & ~umask, 0o640]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"new", b"newer"):
        atomic.write(link, content)
        assert (link.is_symlink(), target.read_bytes()) == (True, content)


def test_what_is_not_a_file_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic.write(pipe, b"x")
    assert os.read(reader, 9) == b"x"
    assert [*tmp_path.iterdir()] == [pipe]
    with pytest.raises(atomic.WriteError, match="Is a directory"):
        atomic.write(tmp_path, b"x")
