"""The data sets, by name: labelled images, how they are seen in training and when judged, and who is who."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from saprof.text import unknown

if TYPE_CHECKING:
    from studies.config import Config

MODULES = {
    "digits": "studies.data.digits",
    "digits16": "studies.data.digits",
    "folder": "studies.data.folder",
    "cifar10": "studies.data.cifar",
}
"""Data set, and the module whose `load(config)` makes it."""


class Images(Protocol):
    """Labelled images in a fixed order."""

    @property
    def labels(self) -> Tensor:
        """Class numbers, int64."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """One of each image, the same from run to run and machine to machine: a relative path, or a number."""
        ...

    def read(self, index: int) -> Any:
        """The image as the data set's views take it."""
        ...

    def digest(self) -> str:
        """Changes when images come, go or change."""
        ...


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Views are uint8 tensors `c h w` of one size, the pixels; networks normalise them themselves."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    """The validation set of val-original."""
    size: tuple[int, int, int]
    """Channels (3, or 1 for gray), rows and columns of a view."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, pixels taken from 0 to 1."""
    augment: Callable[[Any, torch.Generator], Tensor]
    """A training view of what `Images.read` gives."""
    view: Callable[[Any], Tensor]
    """The view that is judged."""
    confused_when_turned: tuple[str, ...] = ()
    """Classes that become others of the data set when turned or flipped, such as 6 and 9."""


@dataclass(frozen=True)
class Pixels:
    """Images in memory, uint8 `n c h w`."""

    pixels: Tensor
    labels: Tensor

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
    """The view of images that are judged as they are."""
    return image


def load(config: Config) -> Dataset:
    """The data set of a config; ValueError for an unknown name, BadData where it is not to be had."""
    if config.data not in MODULES:
        raise ValueError(unknown("data set", config.data, list(MODULES)))
    return import_module(MODULES[config.data]).load(config)
