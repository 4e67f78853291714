"""Fashion-MNIST, MNIST, KMNIST and EMNIST from local IDX files, compressed by gzip or not; nothing is downloaded.

An IDX file has a magic number that says its type and its number of axes, the sizes of the axes as big-endian integers
of 32 bits, and then one byte per element. A data set has four such files: images and labels, for training and for
tests. The content of Fashion-MNIST is compared with known hashes. Of the other data sets, whose hashes are not known
here, types, sizes and labels are checked.
"""

from __future__ import annotations

import gzip
import hashlib
import string
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch

from studies.config import Config
from studies.data import Dataset, Pixels, unchanged
from studies.data.augment import shifted
from studies.data.survey import Survey
from studies.failures import BadData

SIDE = 28
REACH = 2
"""Training views are moved by up to this many pixels."""
MAGIC = {"images": 0x0803, "labels": 0x0801}
"""Unsigned bytes with three axes, and with one."""
MOST_IMAGES = 1_000_000
"""A header that states more is damaged, and must not fill the memory. No data set here has as many."""
PARTS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set of IDX files."""

    title: str
    classes: tuple[str, ...]
    folder: str
    """The folder that torchvision gives it."""
    test: str = "t10k"
    """How the names of the files for tests begin."""
    prefix: str = ""
    """What stands before `train` and `test` in the names of files."""
    first_label: int = 0
    transposed: bool = False
    """Whether the files hold columns of pixels where others hold rows."""
    mirrors: bool = False
    """Whether a mirrored image is of the same class, so that training views may be mirrored."""
    confused_when_turned: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Hashes of uncompressed files, by name."""
    installed: Path | None = None
    """The folder in which a package of Debian installs the files."""
    get: str = ""
    """How to get the files."""

    def names(self) -> dict[tuple[str, str], str]:
        """The names of the four files, by part and by content."""
        starts = {"train": f"{self.prefix}train", "test": f"{self.prefix}{self.test}"}
        return {
            (part, content): f"{start}-{content}-idx{MAGIC[content] & 0xFF}-ubyte"
            for part, start in starts.items()
            for content in MAGIC
        }

    def expected(self) -> str:
        """What must be where, and how to get it."""
        named = ", ".join(self.names().values())
        return f"expected in ROOT the files {named}, each with or without .gz" + (f"; {self.get}" if self.get else "")


def _emnist(split: str, classes: tuple[str, ...], **fields: object) -> Source:
    return Source(
        title=f"EMNIST {split}",
        classes=classes,
        folder="EMNIST",
        test="test",
        prefix=f"emnist-{split}-",
        transposed=True,
        **fields,  # pyright: ignore[reportArgumentType]
    )


_DIGITS = tuple(string.digits)
_GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SOURCES = {
    "fashion": Source(
        title="Fashion-MNIST",
        classes=_GARMENTS,
        folder="FashionMNIST",
        mirrors=True,
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        installed=Path("/usr/share/datasets/fashion-mnist"),
        get="on Debian and Ubuntu, apt-get install dataset-fashion-mnist installs them, and no --root is needed",
    ),
    "mnist": Source(title="MNIST", classes=_DIGITS, folder="MNIST", confused_when_turned=("6", "9")),
    "kmnist": Source(
        title="KMNIST", classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"), folder="KMNIST"
    ),
    "emnist-balanced": _emnist("balanced", (*_DIGITS, *string.ascii_uppercase, *"abdefghnqrt")),
    "emnist-digits": _emnist("digits", _DIGITS, confused_when_turned=("6", "9")),
    "emnist-letters": _emnist("letters", tuple(string.ascii_lowercase), first_label=1),
}
"""The data sets by name."""
_KNOWN = {sha256: name for name, source in SOURCES.items() for sha256 in source.sha256.values()}
"""The data set of each known hash. Files of different data sets have the same names."""


def load(config: Config) -> Dataset:
    """The data set at `root`, or where a package of Debian has installed it. Raises BadData if files are missing,
    damaged, or are not those of the data set."""
    source = SOURCES[config.data]
    found = survey(config).checked()
    mean, std = _moments(cast(Pixels, found.train).pixels)
    return Dataset(
        name=config.data,
        classes=found.classes,
        train=found.train,
        test=found.test,
        size=(1, SIDE, SIDE),
        mean=(mean,),
        std=(std,),
        augment=partial(shifted, reach=REACH, mirrors=source.mirrors),
        view=unchanged,
        confused_when_turned=source.confused_when_turned,
    )


def survey(config: Config) -> Survey:
    """The images of the four files, and the problems found in them."""
    source = SOURCES[config.data]
    problems: list[str] = []
    home = _home(source, config, problems)
    parts = {part: _none() for part in PARTS}
    for part in PARTS:
        if home is None:
            continue
        try:
            parts[part] = _read(source, home, part)
        except BadData as error:
            problems.append(str(error))
    return Survey(classes=source.classes, train=parts["train"], test=parts["test"], problems=tuple(problems))


def _home(source: Source, config: Config, problems: list[str]) -> Path | None:
    """The folder of the files."""
    root = config.root or source.installed
    if root is None:
        problems.append(f"the data set {config.data} has no root; give --root ROOT: {source.expected()}")
        return None
    for folder in (root, root / "raw", root / "gzip", root / source.folder / "raw"):
        if any(_file(folder, name) for name in source.names().values()):
            return folder
    what = f"holds no file of {source.title}" if root.is_dir() else "is no folder"
    problems.append(f"{root} {what}; {source.expected()}")
    return None


def _file(folder: Path, name: str) -> Path | None:
    """The file of that name, plain or compressed; some sources write a dot before `idx`."""
    spelled = (name, name.replace("-idx", ".idx"))
    return next((path for each in spelled for path in (folder / each, folder / f"{each}.gz") if path.is_file()), None)


def _none() -> Pixels:
    return Pixels(torch.empty(0, 1, SIDE, SIDE, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def _read(source: Source, home: Path, part: str) -> Pixels:
    """The images and labels of one part; BadData for the first problem."""
    images_file, images = _array(source, home, part, "images")
    labels_file, labels = _array(source, home, part, "labels")
    if images.shape[1:] != (SIDE, SIDE):
        size = "×".join(map(str, images.shape[1:]))
        raise BadData(f"{images_file} has images of {size}; expected {SIDE}×{SIDE}, as {source.title} has")
    if len(images) != len(labels):
        raise BadData(
            f"{images_file} has {len(images):,} images and {labels_file} {len(labels):,} labels; "
            f"expected as many; {_again(source)}"
        )
    numbers = labels.astype(np.int64) - source.first_label
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(source.classes)))
    if len(wrong):
        last = source.first_label + len(source.classes) - 1
        raise BadData(
            f"{labels_file} gives image {wrong[0]} the label {labels[wrong[0]]}; expected {source.first_label} to "
            f"{last}, as {source.title} has; {_again(source)}"
        )
    pixels = images.transpose(0, 2, 1) if source.transposed else images
    return Pixels(torch.from_numpy(pixels[:, None].copy()), torch.from_numpy(numbers))


def _array(source: Source, home: Path, part: str, content: str) -> tuple[Path, np.ndarray]:
    """One file as an array of bytes."""
    name = source.names()[part, content]
    path = _file(home, name)
    if path is None:
        raise BadData(f"{home / name} is not there, nor is it with .gz; {source.expected()}")
    try:
        array = _parse(path, MAGIC[content], source.sha256.get(name))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise BadData(f"{path} cannot be read ({reason}); {_again(source)}") from None
    return path, array


def _parse(path: Path, magic: int, sha256: str | None) -> np.ndarray:
    """The array of an IDX file; ValueError says what is wrong with its content."""
    axes = magic & 0xFF
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = file.read(4 * (1 + axes))
        if len(header) < 4 * (1 + axes) or struct.unpack(">I", header[:4])[0] != magic:
            raise ValueError(f"it begins with {header[:4].hex() or 'nothing'}; expected {magic:08x}, of an IDX file")
        sizes = struct.unpack(f">{axes}I", header[4:])
        if sizes[0] > MOST_IMAGES or any(size > SIDE**2 for size in sizes[1:]):
            raise ValueError(f"its header says {' × '.join(map(str, sizes))} elements, more than any such data set has")
        size = int(np.prod(sizes))
        body = file.read(size + 1)
    if len(body) != size:
        more = "more" if len(body) > size else f"{len(body):,} bytes"
        raise ValueError(f"its header says {size:,} bytes of content, and it has {more}")
    found = hashlib.sha256(header + body).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError("its content is not the published one, by its hash")
    if sha256 is None and (other := _KNOWN.get(found)):
        raise ValueError(f"it is a file of {SOURCES[other].title}, by its hash; give --data {other}")
    return np.frombuffer(body, dtype=np.uint8).reshape(sizes)


def _again(source: Source) -> str:
    return "get it again" + (f": {source.get}" if source.get else "")


def _moments(pixels: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of pixels from 0 to 1."""
    counts = torch.bincount(pixels.flatten(), minlength=256).double()
    shares, values = counts / counts.sum(), torch.arange(256, dtype=torch.float64) / 255
    mean = (shares * values).sum()
    return mean.item(), (shares * (values - mean) ** 2).sum().sqrt().item()
