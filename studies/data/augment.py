"""Training views of small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(image: Tensor, generator: torch.Generator, *, reach: int, mirrors: bool = False) -> Tensor:
    """The image, `c h w`, moved by up to `reach` pixels in each direction; new pixels are black. With `mirrors` it is
    mirrored left to right with probability 1/2."""
    top, left = torch.randint(2 * reach + 1, (2,), generator=generator).tolist()
    height, width = image.shape[-2:]
    moved = F.pad(image, (reach, reach, reach, reach))[:, top : top + height, left : left + width]
    return moved.flip(-1) if mirrors and torch.randint(2, (), generator=generator) else moved
