"""Data sets of IDX files: made-up ones of a few images, damaged in every way, and Fashion-MNIST if it is installed."""

import gzip
import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from studies import doctor
from studies.config import Config
from studies.data import MODULES, augment, idx, load
from studies.failures import BadData

COUNTS = {"train": 40, "test": 20}


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def content(name: str) -> dict[str, bytes]:
    """The four files of a data set: random images, and every class in turn."""
    source = idx.SOURCES[name]
    number = list(idx.SOURCES).index(name)
    draws = np.random.default_rng(number)
    files = {}
    for (part, what), file in source.names().items():
        count = COUNTS[part]
        if what == "images":
            array = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        else:
            array = ((np.arange(count) + number) % len(source.classes) + source.first_label).astype(np.uint8)
        files[file] = idx_bytes(array)
    return files


def write(folder: Path, name: str, suffix: str = "", mtime: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in content(name).items():
        (folder / f"{file}{suffix}").write_bytes(gzip.compress(data, mtime=mtime) if suffix else data)
    return folder


@pytest.fixture(autouse=True)
def _made_up_hashes(monkeypatch):
    """The made-up files are the published ones."""
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in content("fashion").items()}
    monkeypatch.setitem(idx.SOURCES, "fashion", replace(idx.SOURCES["fashion"], sha256=hashes, installed=None))
    monkeypatch.setattr(idx, "_KNOWN", dict.fromkeys(hashes.values(), "fashion"))


def refused(root: Path | None, match: str, name: str = "fashion") -> None:
    with pytest.raises(BadData, match=match) as caught:
        load(Config(data=name, root=root))
    assert "\n" not in str(caught.value)


def test_every_source_is_a_data_set():
    assert {name for name, module in MODULES.items() if module == "studies.data.idx"} == set(idx.SOURCES)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("home", ["", "raw", "FashionMNIST/raw"])
def test_files_are_found_plain_and_compressed(suffix, home, tmp_path):
    write(tmp_path / home, "fashion", suffix)
    dataset = load(Config(data="fashion", root=tmp_path))
    files = content("fashion")
    images = np.frombuffer(files["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 1, 28, 28)
    assert dataset.train.read(slice(None)).numpy().tobytes() == images.tobytes()
    assert dataset.test.labels.tolist() == [n % 10 for n in range(20)]
    assert dataset.test.labels.dtype == torch.int64
    assert dataset.size == (1, 28, 28)
    assert len(set(dataset.classes)) == 10
    assert dataset.mean == pytest.approx(((images / 255).mean(),))
    assert dataset.std == pytest.approx(((images / 255).std(),))


def test_the_spelling_with_a_dot_is_found(tmp_path):
    for file in write(tmp_path, "fashion").iterdir():
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    assert len(load(Config(data="fashion", root=tmp_path)).train.labels) == 40


def test_the_folder_of_the_package_needs_no_root(tmp_path, monkeypatch):
    installed = replace(idx.SOURCES["fashion"], installed=write(tmp_path, "fashion", ".gz"))
    monkeypatch.setitem(idx.SOURCES, "fashion", installed)
    assert len(load(Config(data="fashion")).test.labels) == 20


def test_compressing_again_does_not_change_the_digest(tmp_path):
    roots = [write(tmp_path / "a", "fashion"), write(tmp_path / "b", "fashion", ".gz", mtime=1)]
    digests = {load(Config(data="fashion", root=root)).train.digest() for root in roots}
    assert len(digests) == 1


@pytest.mark.parametrize("name", sorted(set(idx.SOURCES) - {"fashion"}))
def test_the_other_data_sets_have_their_classes(name, tmp_path):
    dataset = load(Config(data=name, root=write(tmp_path, name, ".gz")))
    assert len(set(dataset.classes)) == {"emnist-balanced": 47, "emnist-letters": 26}.get(name, 10)
    number = list(idx.SOURCES).index(name)
    assert dataset.train.labels.tolist() == [(n + number) % len(dataset.classes) for n in range(40)]
    images = np.frombuffer(content(name)[idx.SOURCES[name].names()["train", "images"]], np.uint8, offset=16)
    first = images[: 28 * 28].reshape(28, 28)
    expected = first.T if name.startswith("emnist") else first
    assert dataset.train.read(0)[0].tolist() == expected.tolist()


def test_missing_data_are_told_how_to_get_them(tmp_path):
    get = r"expected in ROOT the files train-images-idx3-ubyte, .+ apt-get install dataset-fashion-mnist"
    refused(None, f"fashion has no root; give --root ROOT: {get}")
    refused(tmp_path / "away", f"away is no folder; {get}")
    refused(tmp_path, f"holds no file of Fashion-MNIST; {get}")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("file", list(content("fashion")))
@pytest.mark.parametrize("broken", ["missing", "empty", "shorter", "longer", "noise", "one bit", "folder"])
def test_a_broken_file_is_named(broken, file, suffix, tmp_path):
    path = write(tmp_path, "fashion", suffix) / f"{file}{suffix}"
    whole = path.read_bytes()
    path.unlink()
    if broken == "folder":
        path.mkdir()
    elif broken != "missing":
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        changed = {"empty": b"", "shorter": whole[:-1], "longer": whole + b"x", "noise": b"\xff" * len(whole)}
        path.write_bytes({**changed, "one bit": flipped}[broken])
    refused(tmp_path, f"{file}.+apt-get install dataset-fashion-mnist")


@pytest.mark.parametrize("sizes", [(2**32 - 1, 28, 28), (40, 2**31, 28), (0, 28, 28)])
def test_a_header_is_not_believed(sizes, tmp_path):
    path = write(tmp_path, "fashion") / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 0x0803, *sizes) + path.read_bytes()[16:])
    refused(tmp_path, "train-images-idx3-ubyte cannot be read")


def test_content_must_be_the_published_one(tmp_path):
    path = write(tmp_path, "fashion") / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.zeros(20, np.uint8)))
    refused(tmp_path, r"its content is not the published one, by its hash")


def test_files_of_another_data_set_are_recognised(tmp_path):
    refused(write(tmp_path, "fashion"), "it is a file of Fashion-MNIST, by its hash; give --data fashion", "kmnist")


@pytest.mark.parametrize(
    ("file", "array", "match"),
    [
        ("train-labels-idx1-ubyte", np.zeros(39, np.uint8), "40 images and .+ 39 labels; expected as many"),
        ("t10k-labels-idx1-ubyte", np.full(20, 10, np.uint8), "gives image 0 the label 10; expected 0 to 9"),
        ("t10k-images-idx3-ubyte", np.zeros((20, 14, 28), np.uint8), "has images of 14×28; expected 28×28"),
        ("t10k-images-idx3-ubyte", np.zeros(20, np.uint8), "begins with 00000801; expected 00000803"),
    ],
)
def test_sizes_and_labels_must_fit(file, array, match, tmp_path):
    (write(tmp_path, "mnist") / file).write_bytes(idx_bytes(array))
    refused(tmp_path, match, "mnist")


def test_a_label_before_the_first_is_named(tmp_path):
    path = write(tmp_path, "emnist-letters") / "emnist-letters-test-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.zeros(20, np.uint8)))
    refused(tmp_path, "gives image 0 the label 0; expected 1 to 26", "emnist-letters")


def test_doctor_names_all_problems(tmp_path, capsys):
    write(tmp_path, "fashion")
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"")
    assert doctor.main(["--data", "fashion", "--root", str(tmp_path)]) == BadData.code
    assert capsys.readouterr().err.count("PROBLEM") == 2


def test_views_are_moved_and_mirrored():
    image = torch.randint(1, 256, (1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(0)
    padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)))
    moved = {padded[:, top : top + 28, left : left + 28].tobytes() for top in range(5) for left in range(5)}
    both = moved | {padded[:, t : t + 28, u : u + 28][..., ::-1].tobytes() for t in range(5) for u in range(5)}
    views = {augment.shifted(image, draws, reach=2, mirrors=True).numpy().tobytes() for _ in range(1000)}
    assert views == both
    views = {augment.shifted(image, draws, reach=2).numpy().tobytes() for _ in range(1000)}
    assert views == moved


def test_the_installed_fashion_mnist_is_the_published_one(monkeypatch):
    monkeypatch.undo()
    if not idx.SOURCES["fashion"].installed.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    dataset = load(Config(data="fashion"))
    assert dataset.train.labels.bincount().tolist() == [6000] * 10
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert dataset.mean == pytest.approx((0.2860,), abs=1e-4)
    assert dataset.std == pytest.approx((0.3530,), abs=1e-4)
