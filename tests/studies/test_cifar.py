"""CIFAR-10 from files like the distributed ones, with 20 images each instead of 10,000, and malicious pickles."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from studies.config import Config
from studies.data import cifar, load
from studies.failures import BadData

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COUNT = 20


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(cifar, "PER_FILE", COUNT)


def content(number: int) -> tuple[np.ndarray, list[int]]:
    draws = np.random.default_rng(number)
    return draws.integers(0, 256, (COUNT, 3072), dtype=np.uint8), [int(n) for n in draws.integers(0, 10, COUNT)]


def python2(data: np.ndarray, labels: list[int]) -> bytes:
    """The pickle of a batch by Python 2 and its numpy: `str` are bytes, and numpy's modules had other names."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def long_text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = (
        b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN" + integer(-1) * 2 + b"K\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    state = b"(K\x01(" + b"".join(map(integer, data.shape)) + b"t" + dtype + b"\x89" + long_text(data.tobytes()) + b"tb"
    items = text(b"data") + array + state + text(b"labels") + b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + text(b"batch_label") + text(b"training batch 1 of 5") + items + b"u."


def write(folder: Path, version: str) -> Path:
    """The six batches and the class names, as the version's archive unpacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(cifar.BATCHES):
        data, labels = content(number)
        if version == "binary":
            records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], data], axis=1)
            records.tofile(folder / f"{name}.bin")
        elif version == "python 2":
            (folder / name).write_bytes(python2(data, labels))
        else:
            (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}, protocol=4))
    if version == "binary":
        (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    else:
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES, "num_vis": 3072}, protocol=2))
    return folder


VERSIONS = ["binary", "python 2", "python 3"]


@pytest.mark.parametrize("version", VERSIONS)
def test_all_versions_hold_the_same(version, tmp_path):
    dataset = load(Config(data="cifar10", root=write(tmp_path, version)))
    batches = [content(number) for number in range(6)]
    data = np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32)
    assert dataset.classes == tuple(NAMES)
    assert dataset.train.read(slice(None)).numpy().tobytes() == data[:100].tobytes()
    assert dataset.test.read(slice(None)).numpy().tobytes() == data[100:].tobytes()
    assert dataset.train.labels.tolist() == [label for _, labels in batches[:5] for label in labels]
    assert dataset.train.labels.dtype == torch.int64


@pytest.mark.parametrize(("version", "home"), [("binary", cifar.BINARY), ("python 2", cifar.PYTHON)])
def test_the_unpacked_archive_is_found_in_the_root(version, home, tmp_path):
    write(tmp_path / home, version)
    assert len(load(Config(data="cifar10", root=tmp_path)).train.labels) == 100


def test_real_files_have_10000_images(monkeypatch):
    monkeypatch.undo()
    assert cifar.PER_FILE == 10_000


def test_views_are_moved_by_four_pixels_and_mirrored(tmp_path):
    augment = load(Config(data="cifar10", root=write(tmp_path, "binary"))).augment
    assert augment.keywords == {"reach": 4, "mirrors": True}


LAYOUT = (
    r"expected in ROOT, or in its folder cifar-10-batches-bin or cifar-10-batches-py, the files data_batch_1\.bin to"
)


def refused(root: Path | None, match: str) -> None:
    with pytest.raises(BadData, match=match):
        load(Config(data="cifar10", root=root))


def test_missing_files_are_told_what_is_expected(tmp_path):
    refused(None, f"cifar10 has no root; give --root ROOT: {LAYOUT}")
    refused(tmp_path / "away", f"away is no folder; {LAYOUT}")
    refused(tmp_path, f"holds no file of CIFAR-10; {LAYOUT}")


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_a_missing_file_is_named(version, tmp_path):
    files = sorted(write(tmp_path, version).iterdir())
    for file in files:
        content = file.read_bytes()
        file.unlink()
        refused(tmp_path, rf"{file.name} is not there; {LAYOUT}")
        file.write_bytes(content)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("broken", ["empty", "shorter", "longer", "noise"])
def test_a_broken_file_is_named(broken, version, tmp_path):
    path = write(tmp_path, version) / ("data_batch_3.bin" if version == "binary" else "data_batch_3")
    whole = path.read_bytes()
    noise = b"\xff" * len(whole)
    path.write_bytes({"empty": b"", "shorter": whole[:-1], "longer": whole + b"x" * 3073, "noise": noise}[broken])
    if version == "binary" or broken != "longer":  # what follows a pickle's end is not read
        refused(tmp_path, "data_batch_3")


def test_a_binary_file_of_fewer_images_is_named(tmp_path):
    path = write(tmp_path, "binary") / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-3073])
    refused(tmp_path, r"data_batch_3\.bin has 58387 bytes; expected 61460")


def test_an_array_may_be_kept_by_column(tmp_path):
    data, labels = content(0)
    pickled = pickle.dumps({"data": np.asfortranarray(data), "labels": labels}, protocol=4)
    (write(tmp_path, "python 3") / "data_batch_1").write_bytes(pickled)
    train = load(Config(data="cifar10", root=tmp_path)).train
    assert train.read(slice(20)).numpy().tobytes() == data.tobytes()


def test_a_label_above_nine_is_named(tmp_path):
    path = write(tmp_path, "binary") / "test_batch.bin"
    records = np.fromfile(path, dtype=np.uint8)
    records[2 * 3073] = 10
    records.tofile(path)
    refused(tmp_path, r"test_batch\.bin gives image 2 the label 10; expected labels below 10")


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": np.zeros((COUNT, 3072)), "labels": [0] * COUNT},
        {"data": np.zeros((COUNT, 3071), dtype=np.uint8), "labels": [0] * COUNT},
        {"data": np.array([None]), "labels": [0] * COUNT},
        {"data": np.zeros(2, dtype="u1,O"), "labels": [0] * COUNT},
        {"data": [1, 2], "labels": [0] * COUNT},
        {"data": np.zeros((COUNT, 3072), dtype=np.uint8), "labels": [0] * (COUNT - 1)},
        {"data": np.zeros((COUNT, 3072), dtype=np.uint8), "labels": ["a"] * COUNT},
        {},
        [1, 2],
    ],
    ids=["float", "narrow", "objects", "records", "list", "few labels", "names", "empty", "no dict"],
)
def test_a_pickle_of_something_else_is_named(wrong, tmp_path):
    (write(tmp_path, "python 2") / "data_batch_2").write_bytes(pickle.dumps(wrong, protocol=4))
    refused(tmp_path, r"data_batch_2 (holds no|cannot be read \(its array is of .+, not of bytes)")


def test_class_names_must_be_ten(tmp_path):
    (write(tmp_path, "binary") / "batches.meta.txt").write_text("cat\ndog\n")
    refused(tmp_path, r"batches\.meta\.txt does not name 10 classes")


class Bomb:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def bombs(mark: Path) -> dict[str, bytes]:
    """Pickles that would write a file if they were executed."""
    script = f"open({str(mark)!r}, 'w').close()"
    code = "c__builtin__\n{}\n(V{}\ntR."
    return {
        "system": pickle.dumps(Bomb(os.system, f"touch {mark}")),
        "exec": pickle.dumps({"data": Bomb(exec, script)}),
        "mkdir": pickle.dumps([Bomb(os.mkdir, str(mark))], protocol=2),
        "text": code.format("eval", script).encode(),
        "instance": f"(V{mark}\nios\nmkdir\n.".encode(),
        "numpy": pickle.dumps(Bomb(np.save, str(mark), np.zeros(1))),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "unused": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    }


@pytest.mark.parametrize("name", list(bombs(Path("mark"))))
@pytest.mark.parametrize("file", ["data_batch_1", "batches.meta"])
def test_a_pickle_bomb_does_not_run(file, name, tmp_path):
    mark = tmp_path / "mark"
    bomb = bombs(mark)[name]
    (write(tmp_path, "python 2") / file).write_bytes(bomb)
    refused(tmp_path, rf"{file} cannot be read \(it names .+, which is neither an array nor a plain value\)")
    assert not mark.exists()


def test_the_bombs_are_live(tmp_path):
    mark = tmp_path / "mark"
    for name in ("system", "exec", "mkdir", "text", "instance"):
        pickle.loads(bombs(mark)[name])
        assert mark.exists(), name
        mark.rmdir() if mark.is_dir() else mark.unlink()


def test_pickles_of_noise_are_refused_and_no_worse(tmp_path):
    draws = np.random.default_rng(0)
    path = write(tmp_path, "python 3") / "data_batch_1"
    small = pickle.dumps({"data": np.zeros((1, 3), dtype=np.uint8), "labels": [1]}, protocol=4)
    for _ in range(300):
        noise = bytearray(small)
        for position in draws.integers(0, len(noise), 3):
            noise[position] = draws.integers(0, 256)
        path.write_bytes(bytes(noise))
        assert any("data_batch_1" in problem for problem in cifar.survey(tmp_path).problems)
