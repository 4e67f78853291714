"""The fashion canvas: real images of clothing, composed on canvases, with a box around each. A detector can be trained
on it without a download.

A canvas is a function of a seed, a split and a number. Every draw is a hash of these, and all arithmetic on pixels is
that of integers, so that the bytes are the same in every process and on every platform. The items are images of
Fashion-MNIST. No item of one split is in another: `train` and `val` have disjoint images of Fashion-MNIST's training
set, and `test` has those of its test set.

An item is cut to its pixels, scaled, perhaps mirrored, and painted over those before it. It is drawn again if any two
boxes had an IoU above 0.25, or if less than 70 % of an item were visible. A box encloses the visible pixels of an item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saprof.operators.footprint import positive, whole
from saprof.text import unknown
from studies.config import Config
from studies.data import Pixels, idx
from studies.detection import boxes as box
from studies.detection.coco import Objects

SIDE = 128
"""Rows and columns of a canvas."""
SPLITS = ("train", "val", "test")
MOST = 6
"""The largest number of items on a canvas."""
SHORTEST, LONGEST = 14, 56
"""The limits of an item's longer side, in pixels. A side s is as probable as 1 / s."""
OVERLAP = 0.25
VISIBLE = 70
"""The least visible part of an item, in per cent of its pixels."""
ATTEMPTS = 50
"""The largest number of draws of an item. If all of them fail, the canvas does not get the item."""
FAINT = 16
"""The darkest grey level, of 255, that belongs to an item."""
HELD_OUT = 6
"""Every sixth image of the training set is for `val`."""
SIZES = (SIDE**2 / 36, SIDE**2 / 16)
"""The limits of small and large objects in square pixels: a sixth and a quarter of the canvas on a side. They are not
those of COCO."""


@dataclass(frozen=True, eq=False)
class Canvases:
    """The canvases of one split."""

    items: Pixels
    """The images of the split, uint8 `n 1 h w`, and their labels."""
    classes: tuple[str, ...]
    split: str
    count: int
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def size(self, index: int) -> tuple[int, int]:
        """Rows and columns of a canvas."""
        return SIDE, SIDE

    def read(self, index: int) -> Tensor:
        """A canvas, uint8 `1 128 128`, black where there is no item."""
        return torch.from_numpy(_canvas(self, self._place(index))[0][None].copy())

    def objects(self, index: int) -> Objects:
        """The boxes and labels of a canvas, in the order in which the items were painted."""
        _, boxes, labels = _canvas(self, self._place(index))
        return Objects(
            torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), torch.zeros(len(labels), dtype=torch.bool)
        )

    def ground_truth(self) -> dict[str, Any]:
        """The objects as COCO writes them. The ids of images and categories are their numbers."""
        annotations = []
        for index in range(self.count):
            found = self.objects(index)
            for (x0, y0, x1, y1), label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True):
                bbox, area = [x0, y0, x1 - x0, y1 - y0], (x1 - x0) * (y1 - y0)
                entry = {"image_id": index, "category_id": label, "bbox": bbox, "area": area, "iscrowd": 0}
                annotations.append(entry | {"id": len(annotations) + 1})
        images = [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(self.count)]
        categories = [{"id": label, "name": name} for label, name in enumerate(self.classes)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def digest(self) -> str:
        """A SHA-256 of the pixels, boxes and labels of all canvases."""
        hashed = hashlib.sha256()
        for index in range(self.count):
            pixels, boxes, labels = _canvas(self, index)
            hashed.update(pixels.tobytes() + repr((boxes, labels)).encode())
        return hashed.hexdigest()

    def _place(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"canvas {index} is not in {self.split}; expected 0 to {self.count - 1}")
        return index

    @cached_property
    def _key(self) -> bytes:
        return f"fashion canvas/{self.seed}/{self.split}/".encode()


def load(split: str, count: int, seed: int = 0, root: Path | None = None) -> Canvases:
    """`count` canvases of a split. `root` is that of Fashion-MNIST, see `studies.data.idx`. Raises ValueError for an
    unknown split, count or seed, and BadData if Fashion-MNIST is missing or damaged."""
    if split not in SPLITS:
        raise ValueError(unknown("split", str(split), SPLITS))
    count, seed = positive("count", count), whole("seed", seed, 0, "0 or a positive integer")
    found = idx.load(Config(data="fashion", root=root))
    source = found.test if split == "test" else found.train
    assert isinstance(source, Pixels)
    return Canvases(items_of(source, split), found.classes, split, count, seed)


def items_of(source: Pixels, split: str) -> Pixels:
    """The images of a data set that are for a split."""
    if split == "test":
        return source
    held_out = torch.arange(len(source.labels)) % HELD_OUT == HELD_OUT - 1
    chosen = held_out if split == "val" else ~held_out
    return Pixels(source.pixels[chosen], source.labels[chosen])


def manifest(splits: dict[str, Canvases]) -> dict[str, Any]:
    """What the canvases of these splits are: settings, the hash of their items, and that of the canvases."""
    settings = {"side": SIDE, "most": MOST, "sides": [SHORTEST, LONGEST], "overlap": OVERLAP, "visible": VISIBLE}
    parts = {
        name: {"seed": part.seed, "count": part.count, "items": part.items.digest(), "canvases": part.digest()}
        for name, part in splits.items()
    }
    return {"fashion_canvas": 1, "settings": settings, "splits": parts}


class Draws:
    """Random integers: hashes of a key and of a counter."""

    def __init__(self, key: bytes) -> None:
        self._numbers = self._hashed(key)

    @staticmethod
    def _hashed(key: bytes) -> Iterator[int]:
        counter = 0
        while True:
            digest = hashlib.sha256(key + counter.to_bytes(8, "big")).digest()
            yield from (int.from_bytes(digest[at : at + 8], "big") for at in range(0, 32, 8))
            counter += 1

    def below(self, limit: int) -> int:
        """An integer from 0 to limit − 1. Its bias is below limit / 2⁶⁴."""
        return next(self._numbers) * limit >> 64


_WEIGHTS = [2**32 // side for side in range(SHORTEST, LONGEST + 1)]


def _long_side(draws: Draws) -> int:
    """A side s with a probability of about 1 / s, so that its logarithm is uniform."""
    left = draws.below(sum(_WEIGHTS))
    for place, weight in enumerate(_WEIGHTS):
        left -= weight
        if left < 0:
            return SHORTEST + place
    raise AssertionError("the weights do not cover their sum")


Painted = tuple[np.ndarray, list[tuple[int, int, int, int]], list[int]]
"""Pixels, and the box and label of each item."""


@lru_cache(maxsize=4)
def _canvas(source: Canvases, index: int) -> Painted:
    draws = Draws(source._key + index.to_bytes(8, "big"))
    canvas, owner = np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), -1)
    sizes: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(1 + draws.below(MOST)):
        for _ in range(ATTEMPTS):
            number = draws.below(len(source.items.labels))
            item = scaled(source.items.pixels[number, 0].numpy(), _long_side(draws), mirrored=bool(draws.below(2)))
            top, left = (draws.below(SIDE - side + 1) for side in item.shape)
            there = item >= FAINT
            if not there.any():
                continue
            trial = owner.copy()
            trial[top : top + item.shape[0], left : left + item.shape[1]][there] = len(sizes)
            found = visible_boxes(trial, [*sizes, int(there.sum())])
            if found is not None:
                owner, boxes = trial, found
                canvas[top : top + item.shape[0], left : left + item.shape[1]][there] = item[there]
                sizes.append(int(there.sum()))
                labels.append(int(source.items.labels[number]))
                break
    return canvas, boxes, labels


def visible_boxes(owner: np.ndarray, sizes: list[int]) -> list[tuple[int, int, int, int]] | None:
    """The boxes of the visible pixels of all items; None if one is hidden too much, or two boxes overlap too much."""
    found = []
    for number, size in enumerate(sizes):
        rows, columns = np.nonzero(owner == number)
        if 100 * len(rows) < VISIBLE * size:
            return None
        found.append((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    exact = torch.tensor(found, dtype=torch.float64)
    overlaps = box.pairwise_iou(exact, exact).fill_diagonal_(0)
    return None if float(overlaps.max()) > OVERLAP else found


def scaled(image: np.ndarray, long: int, *, mirrored: bool) -> np.ndarray:
    """An image, cut to its pixels and scaled so that its longer side is `long`."""
    rows, columns = (np.flatnonzero((image >= FAINT).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((1, 1), np.uint8)
    cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cut = cut[:, ::-1] if mirrored else cut
    longest = max(cut.shape)
    sides = [max(1, (2 * side * long + longest) // (2 * longest)) for side in cut.shape]
    down, across = (_weights(old, new) for old, new in zip(cut.shape, sides, strict=True))
    total = int(down[0].sum() * across[0].sum())
    summed = down @ cut.astype(np.int64) @ across.T
    return ((2 * summed + total) // (2 * total)).astype(np.uint8)


@lru_cache(maxsize=4096)
def _weights(old: int, new: int) -> np.ndarray:
    """Integer weights, (new, old), of a resize along one axis; every row has the same sum. A smaller image has the
    means of areas, a larger one is bilinear."""
    weights = np.zeros((new, old), np.int64)
    for place in range(new):
        if new <= old:
            edges = np.arange(old)
            low, high = np.maximum(edges * new, place * old), np.minimum((edges + 1) * new, (place + 1) * old)
            weights[place] = np.maximum(high - low, 0)
        else:
            at, part = divmod((2 * place + 1) * old - new, 2 * new)  # of the centre, in source pixels
            for pixel, weight in ((at, 2 * new - part), (at + 1, part)):
                weights[place, min(max(pixel, 0), old - 1)] += weight
    return weights
