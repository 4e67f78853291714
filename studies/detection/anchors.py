"""Anchors: the boxes, the same in every image of a size, from which a detector predicts offsets.

Their order is that of the outputs of `saprof.RetinaNet`: levels, rows, columns, anchors of a position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Size = tuple[int, int]
"""Rows and columns."""


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """The anchors of one position. Their sides are `scale` · stride · octave, times the factors of an aspect. Raises
    ValueError if a number is not positive and finite."""

    scale: float = 4.0
    octaves: tuple[float, ...]
    """Factors of both sides."""
    aspects: tuple[tuple[float, float], ...]
    """Factors of width and height."""
    aspects_first: bool = False
    """Whether the anchors of one aspect follow each other. Otherwise those of one octave do."""
    whole_pixels: bool = False
    """Whether sizes are rounded down, and the corners of the anchors around a centre rounded, to whole pixels."""
    centre: float = 0.5
    """The place of a centre in its cell: 0.5 is the middle, 0 the upper left corner."""
    steps_of_image: bool = False
    """Whether centres are ⌊side of the image / side of the map⌋ apart; otherwise the stride of the level."""

    def __post_init__(self) -> None:
        for number in (self.scale, *self.octaves, *(factor for aspect in self.aspects for factor in aspect)):
            if not 0 < number < math.inf:
                raise ValueError(f"an anchor has the factor {number!r}; expected positive and finite numbers")
        if not self.octaves or not self.aspects:
            raise ValueError("octaves or aspects are empty; expected one of each at least")

    @property
    def count(self) -> int:
        """The anchors of a position."""
        return len(self.octaves) * len(self.aspects)

    def at_origin(self, stride: int) -> Float[Tensor, "a 4"]:
        """The anchors of a level around the origin, in float64."""
        if self.aspects_first:
            pairs = [(octave, aspect) for aspect in self.aspects for octave in self.octaves]
        else:
            pairs = [(octave, aspect) for octave in self.octaves for aspect in self.aspects]
        sides = []
        for octave, (width, height) in pairs:
            size = self.scale * stride * octave
            size = math.floor(size) if self.whole_pixels else size
            sides.append((size * width, size * height))
        half = torch.tensor(sides, dtype=torch.float64) / 2
        boxes = torch.cat([-half, half], dim=1)
        return boxes.round() if self.whole_pixels else boxes

    def boxes(
        self, image: Size, sizes: Sequence[Size], strides: Sequence[int], *, like: Tensor
    ) -> list[Float[Tensor, "a 4"]]:
        """The anchors of each level, for images of `image` = (rows, columns) pixels and maps of `sizes`, with the dtype
        and device of `like`. Raises ValueError unless there is one stride per map."""
        if len(sizes) != len(strides):
            raise ValueError(f"there are {len(sizes)} maps and {len(strides)} strides; expected one stride per map")
        return [self._level(image, size, stride).to(like) for size, stride in zip(sizes, strides, strict=True)]

    def _level(self, image: Size, size: Size, stride: int) -> Float[Tensor, "a 4"]:
        steps = (
            [side // count for side, count in zip(image, size, strict=True)] if self.steps_of_image else [stride] * 2
        )
        ys, xs = (
            (torch.arange(count, dtype=torch.float64) + self.centre) * step
            for count, step in zip(size, steps, strict=True)
        )
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        return (centres + self.at_origin(stride)).reshape(-1, 4)


SASA = Anchors(octaves=(1.0, 2**0.5), aspects=((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)))
"""Six anchors per position: those of the public code from which SASA's detector probably started."""
TORCHVISION = Anchors(
    octaves=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
    aspects=tuple((ratio**-0.5, ratio**0.5) for ratio in (0.5, 1.0, 2.0)),
    aspects_first=True,
    whole_pixels=True,
    centre=0.0,
    steps_of_image=True,
)
"""Nine anchors per position (Lin et al. 2017), where torchvision puts them."""
PRESETS = {"sasa": SASA, "torchvision": TORCHVISION}
