"""A folder of images with one folder per class, the layout of ImageNet and of torchvision's ImageFolder.

Files and pixels are those of torchvision's loader, with two exceptions: hidden files are ignored, and images of 16 bits
are read as studies.data.pictures describes. The EXIF orientation is not applied.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from studies.config import Config
from studies.data import Dataset, Images, pictures, torchvision
from studies.data.listing import LAYOUT, Listing, listing, numbers_in_order_of_text
from studies.data.survey import Survey

PARTS = ("train", "val")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """The image in RGB. Raises BadData, which names the file, if it cannot be read."""
        return pictures.read(self.path(index))

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    def digest(self) -> str:
        """A hash of paths and sizes, not of the content."""
        hashed = hashlib.sha256()
        for name, size in zip(self.names[:], self.sizes.tolist(), strict=True):
            hashed.update(os.fsencode(name) + b"\0%d\n" % size)
        return hashed.hexdigest()


class Training:
    """The training images below a root. They are listed when they are first needed, since a network can be judged
    without them. BadData is raised at that time if there is a problem."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _images(self) -> Images:
        return survey(self.root).checked().train

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labels(self) -> Tensor:
        return self._images.labels

    @property
    def names(self) -> Sequence[str]:
        return self._images.names

    def read(self, index: int) -> Image.Image:
        return self._images.read(index)

    def digest(self) -> str | None:
        return self._images.digest() if (self.root / PARTS[0]).exists() else None


def load(config: Config) -> Dataset:
    """The folder at `root`. Views have `image_size`: random crops for training, centre crops for evaluation."""
    torchvision.load()
    from torchvision.transforms import v2

    found = survey(config.root, ("val",)).checked()
    side, mode = config.image_size, v2.InterpolationMode(config.interpolation)
    random = v2.Compose([v2.RandomResizedCrop(side, interpolation=mode), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    centre = v2.Compose([v2.Resize(config.resize, interpolation=mode), v2.CenterCrop(side), v2.PILToTensor()])
    return Dataset(
        name="folder",
        classes=found.classes,
        train=Training(config.root or Path()),
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


def survey(root: Path | None, parts: Sequence[str] = PARTS) -> Survey:
    """The images below a root, by class and name, and the problems of the layout, in one pass over each folder. A
    part that is not in `parts` has no images."""
    problems: list[str] = []
    if root is None:
        problems.append(f"the data set folder has no root; give --root ROOT: {LAYOUT}")
    else:
        absent = [folder for folder in (root, *(root / part for part in parts)) if not folder.is_dir()]
        problems += [f"{_absent(folder)}; {LAYOUT}" for folder in absent[: 1 if root in absent else None]]
    here = Path(root or "")
    found = {
        part: listing(here / part) if root and (root / part).is_dir() and part in parts else None for part in PARTS
    }
    listings = [each for each in found.values() if each]
    for each in listings:
        problems += each.problems
    if len(listings) == 2 and all(each.classes for each in listings):
        problems += _differing(*listings) + _differing(*listings[::-1])
    classes = tuple(sorted({name for each in listings for name in each.classes}))
    images = {part: _folder(each or Listing(here / part), classes) for part, each in found.items()}
    notes = [note for each in listings for note in each.notes]
    if numbers_in_order_of_text(classes):
        notes.append(("classes are numbers in the order of their text", ", ".join(classes[:3]) + ", …"))
    return Survey(
        classes=classes, train=images["train"], test=images["val"], problems=tuple(problems), notes=tuple(notes)
    )


def _absent(folder: Path) -> str:
    return f"{folder} is {'no folder' if folder.exists() else 'not there'}"


def _differing(one: Listing, other: Listing) -> list[str]:
    names = [name for name in one.classes if name not in other.classes]
    return [f"class {name!r} is in {one.part} and not in {other.part}; {LAYOUT}" for name in names]


def _folder(found: Listing, classes: Sequence[str]) -> Folder:
    files = [file for name in classes for file in found.classes.get(name, [])]
    counts = torch.tensor([len(found.classes.get(name, [])) for name in classes], dtype=torch.int64)
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    sizes = torch.tensor([size for _, size in files], dtype=torch.int64)
    return Folder(found.part, Names([name for name, _ in files]), labels, sizes)
