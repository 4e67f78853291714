"""Data: labelled images, their views in training and in evaluation, and the split of a protocol. Each data set has a
module with a `load(config)`; `views` makes batches, `survey` and `torchvision` serve the loaders. Nothing here depends
on a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from saprof.text import unknown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from studies.config import Config

BOXES = ("canvas", "canvas_digits", "coco")
"""The data sets whose images have boxes, for detectors."""
MODULES = {
    "digits": "studies.data.digits",
    "digits16": "studies.data.digits",
    "folder": "studies.data.folder",
    "cifar10": "studies.data.cifar",
    **dict.fromkeys(
        ("fashion", "mnist", "kmnist", "emnist-balanced", "emnist-digits", "emnist-letters"), "studies.data.idx"
    ),
    **dict.fromkeys(BOXES, "studies.detection.scenes"),
}
"""The data sets, and the modules whose `load(config)` returns them."""


class Images(Protocol):
    """Labelled images in a fixed order."""

    @property
    def labels(self) -> Tensor:
        """Class numbers, int64."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """One name per image, equal in every run and on every machine: a relative path, or a number."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Any:
        """The image in the form that the data set's views take."""
        ...

    def digest(self) -> str | None:
        """A hash that changes when images are added, removed or changed; None if they are absent and
        not needed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set. Its views are uint8 tensors of pixels, `c h w`, of one size; networks normalise them."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    """The validation set of val-original."""
    size: tuple[int, int, int]
    """Channels (3, or 1 for gray), rows and columns of a view."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation per channel, for pixels from 0 to 1."""
    augment: Callable[[Any, torch.Generator], Any]
    """Returns a training view of an image from `Images.read`."""
    view: Callable[[Any], Any]
    """Returns the view that is judged."""
    confused_when_turned: tuple[str, ...] = ()
    """Classes that look like another class when rotated or flipped, such as 6 and 9."""


@dataclass(frozen=True)
class Pixels:
    """Images in memory, uint8 `n c h w`."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> Sequence[str]:
        return [str(number) for number in range(len(self.labels))]

    def read(self, index: int) -> Tensor:
        return self.pixels[index]

    def digest(self) -> str:
        import hashlib

        content = self.pixels.numpy().tobytes() + self.labels.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()


def unchanged(image: Tensor) -> Tensor:
    """A view that is the image itself."""
    return image


def load(config: Config) -> Dataset:
    """The data set of a config. Raises ValueError for an unknown name, BadData if the data are missing or damaged."""
    if config.data not in MODULES:
        raise ValueError(unknown("data set", config.data, list(MODULES)))
    return import_module(MODULES[config.data]).load(config)
