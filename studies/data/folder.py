"""A folder of images with one folder per class, the layout of ImageNet and of torchvision's ImageFolder.

Pixels equal those of torchvision's loader: colours are converted to RGB, and the EXIF orientation is not applied.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from studies.config import Config
from studies.data import Dataset, torchvision
from studies.data.survey import Survey
from studies.failures import BadData

LAYOUT = "expected ROOT/train/<class>/*.jpg and ROOT/val/<class>/*.jpg, with the same classes in both"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""The exceptions that PIL's decoders raise for a damaged file."""


class Names(Sequence[str]):
    """Paths in one block of memory, because a million Python strings would be copied into every loading process."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [os.fsdecode(name) for name in self._names[index].tolist()]
        return os.fsdecode(self._names[index].item())


@dataclass(frozen=True)
class Folder:
    """Images in files, which are read on access."""

    root: Path
    names: Names
    """Paths relative to the root; their first part is the class."""
    labels: Tensor
    sizes: Tensor
    """Sizes of the files in bytes."""

    def read(self, index: int) -> Image.Image:
        """The image in RGB. Raises BadData, which names the file, if it cannot be read."""
        path = self.root / self.names[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except UNREADABLE as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise BadData(f"{path} cannot be read as an image ({reason}); replace it or remove it") from None

    def digest(self) -> str:
        """A hash of paths and sizes, not of the content."""
        hashed = hashlib.sha256()
        for name, size in zip(self.names[:], self.sizes.tolist(), strict=True):
            hashed.update(os.fsencode(name) + b"\0%d\n" % size)
        return hashed.hexdigest()


def load(config: Config) -> Dataset:
    """The folder at `root`. Views have `image_size`: random crops for training, centre crops for evaluation."""
    torchvision.load()
    from torchvision.transforms import v2

    found = survey(config.root).checked()
    side = config.image_size
    random = v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    centre = v2.Compose([v2.Resize(config.resize), v2.CenterCrop(side), v2.PILToTensor()])
    return Dataset(
        name="folder",
        classes=found.classes,
        train=found.train,
        test=found.test,
        size=(3, side, side),
        mean=MEAN,
        std=STD,
        augment=partial(drawn, random),
        view=centre,
    )


def drawn(transform: Callable[[Image.Image], Tensor], image: Image.Image, generator: torch.Generator) -> Tensor:
    """The transformed image, with the random numbers of `generator`. The transform draws from torch's global generator,
    which has the state of `generator` during the call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator.get_state())  # torch.manual_seed would also reseed the GPU
        view = transform(image)
        generator.set_state(torch.default_generator.get_state())
    return view


def survey(root: Path | None) -> Survey:
    """The images below a root, by class and name, and the problems of the layout, in one pass over each folder."""
    problems: list[str] = []
    train, val = Path(root or "", "train"), Path(root or "", "val")
    if root is None:
        problems.append(f"the data set folder has no root; give --root ROOT: {LAYOUT}")
    elif not root.is_dir():
        problems.append(f"{_absent(root)}; {LAYOUT}")
    listings = ({}, {}) if problems else (_listing(train, problems), _listing(val, problems))
    if all(listings):
        problems += _differing(train, val, *listings) + _differing(val, train, *listings[::-1])
    classes = tuple(sorted({name for listing in listings for name in listing}))
    images = (_folder(train, classes, listings[0]), _folder(val, classes, listings[1]))
    return Survey(classes=classes, train=images[0], test=images[1], problems=tuple(problems))


def _absent(folder: Path) -> str:
    return f"{folder} is {'no folder' if folder.exists() else 'not there'}"


Listing = dict[str, list[tuple[str, int]]]
"""The classes, and the path and size of their files."""


def _listing(part: Path, problems: list[str]) -> Listing:
    if not part.is_dir():
        problems.append(f"{_absent(part)}; {LAYOUT}")
        return {}
    try:
        with os.scandir(part) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        problems.append(f"{part} cannot be read: {error.strerror}")
        return {}
    if not names:
        problems.append(f"{part} holds no class folders; {LAYOUT}")
    return {name: _class(part, name, problems) for name in names}


def _class(part: Path, name: str, problems: list[str]) -> list[tuple[str, int]]:
    try:
        files = sorted(_files(str(part / name), f"{name}/"))
    except OSError as error:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")
        return []
    if not files:
        problems.append(f"class folder {part / name} holds no images; {LAYOUT}")
    problems += [f"{part / file} is an empty file; replace it or remove it" for file, size in files if not size]
    return files


def _differing(part: Path, other: Path, listing: Listing, others: Listing) -> list[str]:
    names = [name for name in listing if name not in others]
    return [f"class {name!r} is in {part} and not in {other}; {LAYOUT}" for name in names]


def _files(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    """The images in a folder and its subfolders, without hidden files and links to folders."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name, entry.stat().st_size


def _folder(part: Path, classes: Sequence[str], listing: Listing) -> Folder:
    files = [file for name in classes for file in listing.get(name, [])]
    counts = torch.tensor([len(listing.get(name, [])) for name in classes], dtype=torch.int64)
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    sizes = torch.tensor([size for _, size in files], dtype=torch.int64)
    return Folder(part, Names([name for name, _ in files]), labels, sizes)
