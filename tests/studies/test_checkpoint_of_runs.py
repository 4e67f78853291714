"""Checkpoints: a crash at any moment leaves an intact one, damage is detected, and reading executes no code."""

import hashlib
import io
import multiprocessing
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from saprof import atomic
from studies.failures import BadCheckpoint, CannotWrite
from studies.training import checkpoint
from studies.training.checkpoint import MAGIC, newest, paths, read, save

START = len(MAGIC) + 32


def state(step: int) -> dict:
    return {"step": step, "weights": {"w": torch.arange(1000.0) + step}, "note": "plain"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path, step, state(step))
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [int(path.stem[5:]) for path in paths(folder)]


def test_what_is_saved_is_read(folder):
    found = read(paths(folder)[0])
    assert (found["step"], found["note"]) == (2, "plain")
    assert torch.equal(found["weights"]["w"], state(2)["weights"]["w"])


def test_the_two_newest_are_kept(folder):
    for step in (3, 4, 10**9):
        save(folder, step, state(step))
    assert steps(folder) == [10**9, 4]
    assert {path.name for path in folder.iterdir()} == {"step_1000000000.pt", "step_0000000004.pt"}


def test_a_step_can_be_saved_again(folder):
    save(folder, 2, state(2) | {"note": "judged"})
    assert steps(folder) == [2, 1]
    assert read(paths(folder)[0])["note"] == "judged"


def test_damaged_ones_do_not_take_the_place_of_good_ones(folder):
    for step in (7, 8, 9):
        (folder / f"step_{step:010d}.pt").write_bytes(b"damaged")
    save(folder, 3, state(3))
    assert steps(folder) == [3, 2]


def reread(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(content: bytes) -> bytes:
    """One bit of a weight is flipped."""
    at = content.index(torch.tensor([500.0, 501.0, 502.0]).numpy().tobytes())
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def packed(payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(payload).digest() + payload


DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "less one byte": lambda content: content[:-1],
    "more by one byte": lambda content: content + b"\0",
    "head alone": lambda content: content[:START],
    "magic alone": lambda content: content[: len(MAGIC)],
    "zero tail": lambda content: content[:-512] + bytes(512),
    "zeros": lambda content: bytes(len(content)),
    "flipped bit": flipped,
    "another hash": lambda content: content[: len(MAGIC)] + bytes(32) + content[START:],
    "no magic": lambda content: content[START:],
    "wrong magic": lambda content: b"saprof-RUN-1\n" + content[len(MAGIC) :],
    "future version": lambda content: content.replace(b"saprof-run-1\n", b"saprof-run-2\n", 1),
    "no torch file": lambda content: packed(b"hello"),
    "no state": lambda content: packed(saved([1, 2])),
    "no step": lambda content: packed(saved({"weights": {}})),
}


def saved(what) -> bytes:
    file = io.BytesIO()
    torch.save(what, file)
    return file.getvalue()


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_and_the_older_one_wins(folder, damage):
    newer = paths(folder)[0]
    reread(newer, DAMAGE[damage])
    with pytest.raises(BadCheckpoint, match=re.escape(str(newer))):
        read(newer)
    said: list[str] = []
    assert newest(folder, said.append)["step"] == 1
    assert len(said) == 1
    assert str(newer) in said[0]
    assert "skipped" in said[0]


@pytest.mark.parametrize("damage", ["half", "flipped bit"])
def test_all_damaged_is_a_failure(folder, damage):
    for path in paths(folder):
        reread(path, DAMAGE[damage])
    said: list[str] = []
    with pytest.raises(BadCheckpoint, match=r"none of the 2 checkpoints in .* can be read; delete"):
        newest(folder, said.append)
    assert len(said) == 2


def test_none_is_no_failure(tmp_path):
    assert newest(tmp_path, pytest.fail) is None
    assert newest(tmp_path / "nowhere", pytest.fail) is None


def test_a_checkpoint_that_cannot_be_read_is_skipped(folder):
    (folder / "step_0000000005.pt").mkdir()
    said: list[str] = []
    assert newest(folder, said.append)["step"] == 2
    assert "cannot read" in said[0]


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_reading_executes_nothing(folder, tmp_path, how):
    marker = tmp_path / "executed"
    what = {"step": 9, "bomb": Bomb(marker)}
    payload = saved(what) if how == "torch" else pickle.dumps(what)
    bomb = folder / "step_0000000009.pt"
    bomb.write_bytes(packed(payload))
    with pytest.raises(BadCheckpoint, match=r"cannot load .*step_0000000009.pt"):
        read(bomb)
    assert newest(folder, lambda sentence: None)["step"] == 2
    assert not marker.exists()
    if how == "torch":  # the bomb is one
        torch.load(io.BytesIO(payload), weights_only=False)
        assert marker.exists()


def test_torch_alone_would_not_see_a_flipped_bit(folder):
    content = paths(folder)[0].read_bytes()
    weights = torch.load(io.BytesIO(flipped(content)[START:]), weights_only=True)["weights"]["w"]
    assert (weights != state(2)["weights"]["w"]).sum() == 1


def crash(when: str, folder: Path) -> None:
    """Save step 3, and crash while saving."""
    owner, name = {"sync": (os, "fsync"), "replace": (Path, "replace")}[when.split()[1]]
    function = getattr(owner, name)

    def dying(*arguments, **options):
        if "after" in when:
            function(*arguments, **options)
        os._exit(9)

    setattr(owner, name, dying)
    save(folder, 3, state(3))


@pytest.mark.parametrize(
    ("when", "left"),
    [
        ("before sync", [2, 1]),
        ("before replace", [2, 1]),
        ("after replace", [3, 2, 1]),
    ],
)
def test_a_crash_inside_a_save_leaves_a_good_one(folder, when, left):
    process = multiprocessing.get_context("fork").Process(target=crash, args=(when, folder))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert steps(folder) == left
    assert newest(folder, pytest.fail)["step"] == left[0]
    save(folder, 4, state(4))
    assert steps(folder) == [4, left[0]]


@pytest.mark.parametrize("number", [28, 30])
def test_a_full_or_read_only_disk_leaves_what_is_there(folder, monkeypatch, number):
    def full(path, content):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(atomic, "write", full)
    with pytest.raises(
        CannotWrite, match=rf"cannot write .*step_0000000003.pt: {os.strerror(number)}; earlier checkpoints"
    ):
        save(folder, 3, state(3))
    monkeypatch.undo()
    assert newest(folder, pytest.fail)["step"] == 2


def test_a_disk_that_fills_up_in_a_write_leaves_what_is_there(folder, monkeypatch):
    def full(file):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match=r"step_0000000003.pt: No space left on device"):
        save(folder, 3, state(3))
    assert steps(folder) == [2, 1]
    assert len(list(folder.iterdir())) == 2
    assert checkpoint.KEEP == 2
