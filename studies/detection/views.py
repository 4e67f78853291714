"""Views of scenes: images and their objects, resized, flipped, cut and padded together; and the way back of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from studies.config import Config
from studies.detection import boxes as box
from studies.detection.coco import Objects

DIVISOR = 32
"""The sides of a batch are multiples of it."""


class View(NamedTuple):
    """An image and its objects, as a detector is given them."""

    pixels: Tensor
    """uint8 `c h w`."""
    objects: Objects
    """In pixels of the view."""
    scale: tuple[float, float]
    """The width and height of the resized image, before it was cut, divided by those of the original."""
    number: int
    """The place of the image in its data set."""


class Batch(NamedTuple):
    """Views, padded below and on the right to one size."""

    pixels: Tensor
    """uint8 `n c h w`."""
    sizes: Int64[Tensor, "n 2"]
    """Rows and columns of each view."""
    objects: list[Objects]
    scales: Float[Tensor, "n 2"]
    numbers: list[int]


Scene = tuple[Any, Objects]
"""An image, as a PIL image in RGB or as uint8 `c h w`, and its objects."""


@dataclass(frozen=True)
class Rules:
    """How views are made; see the fields of the same names in `studies.config.Config`."""

    sides: tuple[int, ...] = ()
    longest: int | None = None
    jitter: float = 0.0
    crop: int | None = None

    @staticmethod
    def of(config: Config) -> Rules:
        return Rules(tuple(config.sides), config.longest, config.jitter, config.crop)

    def training(self, scene: Scene, draws: torch.Generator) -> View:
        """A view of random scale, flipped with probability 1/2, and cut at a random place."""
        image, objects = scene
        pixels = _tensor(image)
        side = self.sides[_below(len(self.sides), draws)] if self.sides else None
        factor = 1 + self.jitter * (2 * torch.rand((), generator=draws, dtype=torch.float64).item() - 1)
        pixels, objects, scale = resized(pixels, objects, self._size(pixels.shape[-2:], side, factor))
        if _below(2, draws):
            pixels, objects = flipped(pixels, objects)
        if self.crop is not None:
            room = [max(length - self.crop, 0) for length in pixels.shape[-2:]]
            pixels, objects = cut(pixels, objects, [_below(free + 1, draws) for free in room], self.crop)
        return View(pixels, objects, scale, -1)

    def judged(self, scene: Scene) -> View:
        """The view that is judged: the whole image, resized to the last of `sides`."""
        pixels = _tensor(scene[0])
        size = self.judged_size(pixels.shape[-2:])
        return View(*resized(pixels, scene[1], size), -1)

    def judged_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the view that is judged, for an image of this size."""
        return self._size(size, self.sides[-1] if self.sides else None, 1.0)

    def _size(self, size: Sequence[int], side: int | None, factor: float) -> tuple[int, int]:
        scale = 1.0 if side is None else side / min(size)
        if self.longest is not None:
            scale = min(scale, self.longest / max(size))
        rows, columns = (max(1, round(length * scale * factor)) for length in size)
        return rows, columns


def _tensor(image: Any) -> Tensor:
    """uint8 `c h w`."""
    return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _below(limit: int, draws: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=draws))


def resized(pixels: Tensor, objects: Objects, size: tuple[int, int]) -> tuple[Tensor, Objects, tuple[float, float]]:
    """The image with `size` = (rows, columns), bilinear with antialiasing, its objects, and the scale of both axes."""
    (rows, columns), before = size, pixels.shape[-2:]
    scale = columns / before[1], rows / before[0]
    if size == tuple(before):
        return pixels, objects, scale
    new = F.interpolate(pixels[None].float(), size=size, mode="bilinear", antialias=True)[0]
    boxes = objects.boxes * torch.tensor([*scale, *scale])
    return new.round().clamp(0, 255).to(torch.uint8), objects._replace(boxes=boxes), scale


def flipped(pixels: Tensor, objects: Objects) -> tuple[Tensor, Objects]:
    """The mirror image, left to right."""
    x0, y0, x1, y1 = objects.boxes.unbind(1)
    width = pixels.shape[-1]
    return pixels.flip(-1), objects._replace(boxes=torch.stack([width - x1, y0, width - x0, y1], dim=1))


def cut(pixels: Tensor, objects: Objects, corner: Sequence[int], side: int) -> tuple[Tensor, Objects]:
    """At most `side` rows and columns from `corner` = (row, column) on. Objects outside of them are left out."""
    row, column = corner
    pixels = pixels[:, row : row + side, column : column + side]
    boxes = box.clip(objects.boxes - torch.tensor([column, row, column, row]), pixels.shape[-2:])
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return pixels, Objects(boxes[kept], objects.labels[kept], objects.crowd[kept])


def padded(length: int) -> int:
    return -(-length // DIVISOR) * DIVISOR


def collate(views: list[View]) -> Batch:
    """The views as a batch, whose sides are the smallest multiples of DIVISOR that all of them fit in."""
    sizes = [tuple(view.pixels.shape[-2:]) for view in views]
    rows, columns = (padded(max(lengths)) for lengths in zip(*sizes, strict=True))
    pixels = torch.zeros(len(views), len(views[0].pixels), rows, columns, dtype=torch.uint8)
    for place, view in zip(pixels, views, strict=True):
        place[:, : view.pixels.shape[1], : view.pixels.shape[2]] = view.pixels
    return Batch(
        pixels,
        torch.tensor(sizes),
        [view.objects for view in views],
        torch.tensor([view.scale for view in views], dtype=torch.float64),
        [view.number for view in views],
    )


def back(boxes: Float[Tensor, "d 4"], scale: Float[Tensor, " 2"]) -> Float[Tensor, "d 4"]:
    """Boxes of a view in pixels of the original image; `scale` is that of the view."""
    return boxes / torch.cat([scale, scale]).to(boxes)
