"""CIFAR-10 from local files, in the binary or the Python version; nothing is downloaded.

The files of the Python version are pickles, which can run any code. They are read by an unpickler that accepts only
arrays of bytes and plain values.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from studies.config import Config
from studies.data import Dataset, Pixels, unchanged
from studies.data.augment import shifted
from studies.data.survey import Survey
from studies.failures import BadData

SHAPE = (3, 32, 32)
CLASSES = 10
PER_FILE = 10_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
REACH = 4
"""Training views are moved by up to this many pixels."""

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
LAYOUT = (
    "expected in ROOT, or in its folder cifar-10-batches-bin or cifar-10-batches-py, the files data_batch_1.bin to "
    "data_batch_5.bin, test_batch.bin and batches.meta.txt (binary version), or data_batch_1 to data_batch_5, "
    "test_batch and batches.meta (Python version)"
)


class Kind:
    """Replaces numpy's dtype."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None: ...


class Array:
    """Replaces numpy's array and its constructor, so that a pickle calls no numpy code."""

    def __init__(self, *_: Any) -> None:
        self.content = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_column, content = state
        if kind.name != "u1":
            raise pickle.UnpicklingError(f"its array is of {kind.name!r}, not of bytes")
        flat = np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype=np.uint8)
        self.content = flat.reshape(shape, order="F" if by_column else "C")


PLAIN = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Kind,
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "_reconstruct"): Array,
}
"""The only names that a pickle may use."""


class Unpickler(pickle.Unpickler):
    """Reads numbers, strings, lists, dicts and arrays of bytes; refuses a pickle with any other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither an array nor a plain value")
        return PLAIN[module, name]


Read = TypeVar("Read")

UNREADABLE = (
    OSError,
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
    ImportError,
)
"""The exceptions that a damaged file can raise."""


def load(config: Config) -> Dataset:
    """The data set at `root`. Raises BadData if files are missing or are not those of CIFAR-10."""
    found = survey(config.root).checked()
    return Dataset(
        name="cifar10",
        classes=found.classes,
        train=found.train,
        test=found.test,
        size=SHAPE,
        mean=MEAN,
        std=STD,
        augment=partial(shifted, reach=REACH, mirrors=True),
        view=unchanged,
    )


def survey(root: Path | None) -> Survey:
    """The images of the six files, and the problems found in them."""
    problems: list[str] = []
    folder, suffix = _home(root, problems)
    parts, classes = [], ()
    if folder is not None:
        read = _binary if suffix else _pickled
        parts = [_try(read, folder / f"{name}{suffix}", problems) for name in BATCHES]
        meta = folder / ("batches.meta.txt" if suffix else "batches.meta")
        classes = _try(_class_names, meta, problems) or ()
    train, test = (_joined([part for part in some if part]) for some in (parts[:-1], parts[-1:]))
    return Survey(classes=classes, train=train, test=test, problems=tuple(problems))


def _home(root: Path | None, problems: list[str]) -> tuple[Path | None, str]:
    """The folder of the files, and the suffix of their names."""
    if root is None:
        problems.append(f"the data set cifar10 has no root; give --root ROOT: {LAYOUT}")
        return None, ""
    for folder, suffix in ((root, ".bin"), (root / BINARY, ".bin"), (root, ""), (root / PYTHON, "")):
        if any((folder / f"{name}{suffix}").exists() for name in BATCHES):
            return folder, suffix
    problems.append(f"{root} {'holds no file of CIFAR-10' if root.is_dir() else 'is no folder'}; {LAYOUT}")
    return None, ""


def _try(read: Callable[[Path], Read], path: Path, problems: list[str]) -> Read | None:
    try:
        return read(path)
    except UNREADABLE as error:
        if isinstance(error, BadData):
            problems.append(str(error))
        elif isinstance(error, FileNotFoundError):
            problems.append(f"{path} is not there; {LAYOUT}")
        else:
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
            problems.append(f"{path} cannot be read ({reason}); unpack the archive again")
        return None


def _binary(path: Path) -> Pixels:
    """Images from records of one byte for the label and one byte per pixel."""
    content = np.fromfile(path, dtype=np.uint8)
    record = 1 + 3 * 32 * 32
    if len(content) != PER_FILE * record:
        raise BadData(f"{path} has {len(content)} bytes; expected {PER_FILE * record}: unpack the archive again")
    records = content.reshape(PER_FILE, record)
    return _pixels(path, records[:, 1:], records[:, 0])


def _pickled(path: Path) -> Pixels:
    content = _unpickled(path)
    pixels, labels = content.get("data"), content.get("labels")
    if not (isinstance(pixels, Array) and pixels.content.shape == (PER_FILE, 3 * 32 * 32)):
        raise BadData(f"{path} holds no array `data` of {PER_FILE} × 3072 bytes; unpack the archive again")
    if not (isinstance(labels, list) and len(labels) == PER_FILE and all(type(label) is int for label in labels)):
        raise BadData(f"{path} holds no list `labels` of {PER_FILE} numbers; unpack the archive again")
    return _pixels(path, pixels.content, np.array(labels))


def _unpickled(path: Path) -> dict[Any, Any]:
    with path.open("rb") as file:
        content = Unpickler(file, encoding="latin1").load()
    if not isinstance(content, dict):
        raise BadData(f"{path} holds no dict; unpack the archive again")
    return content


def _pixels(path: Path, pixels: np.ndarray, labels: np.ndarray) -> Pixels:
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if len(wrong):
        raise BadData(f"{path} gives image {wrong[0]} the label {labels[wrong[0]]}; expected labels below {CLASSES}")
    images = torch.from_numpy(pixels.reshape(-1, *SHAPE).copy())
    return Pixels(images, torch.from_numpy(labels.astype(np.int64)))


def _class_names(path: Path) -> tuple[str, ...]:
    if path.suffix == ".txt":
        names: Any = path.read_text().split()
    else:
        names = _unpickled(path).get("label_names")
    if not (isinstance(names, list) and len(set(names)) == CLASSES and all(isinstance(name, str) for name in names)):
        raise BadData(f"{path} does not name {CLASSES} classes; unpack the archive again")
    return tuple(names)


def _joined(parts: Sequence[Pixels]) -> Pixels:
    if not parts:
        return Pixels(torch.empty(0, *SHAPE, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    return Pixels(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))
