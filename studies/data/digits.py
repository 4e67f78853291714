"""scikit-learn's handwritten digits: 1,797 images of 8 × 8 pixels in 17 shades of gray, included in the package.

They have no official split: the last 50 images of each class are the validation set here.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from studies.config import Config
from studies.data import Dataset, Pixels, unchanged
from studies.data.augment import shifted

TEST_PER_CLASS = 50
SHADES = 16


def load(config: Config) -> Dataset:
    """`digits`, or `digits16`, the same images enlarged to 16 × 16."""
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    pixels, side = torch.from_numpy(images).reshape(-1, 1, 8, 8), 8
    if config.data == "digits16":
        side = 16
        pixels = F.interpolate(pixels, scale_factor=2, mode="bilinear", align_corners=False)
    pixels = (pixels * 255 / SHADES).round().to(torch.uint8)
    labels = torch.from_numpy(digits).long()
    last = torch.cat([(labels == digit).nonzero()[-TEST_PER_CLASS:, 0] for digit in range(10)]).sort().values
    first = torch.ones(len(labels), dtype=torch.bool)
    first[last] = False
    train = pixels[first].double() / 255
    return Dataset(
        name=config.data,
        classes=tuple(str(digit) for digit in range(10)),
        train=Pixels(pixels[first], labels[first]),
        test=Pixels(pixels[last], labels[last]),
        size=(1, side, side),
        mean=(train.mean().item(),),
        std=(train.std().item(),),
        augment=partial(shifted, reach=side // 8),
        view=unchanged,
        confused_when_turned=("6", "9"),
    )
