"""The images for training and for evaluation, by protocol, and a manifest that detects changes in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saprof import atomic
from studies.config import Config
from studies.data import Dataset, Images
from studies.failures import BadData, CannotWrite

SCHEMA = 1


@dataclass(frozen=True)
class Subset:
    """Some of the images, in the order of `indices`."""

    images: Images
    indices: Tensor
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.images.labels[self.indices])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> Sequence[str]:
        names, indices = self.images.names, map(int, self.indices)
        return [names[index] for index in indices]

    def read(self, index: int) -> Any:
        return self.images.read(int(self.indices[index]))

    def digest(self) -> str:
        """A hash that changes with any of the images, including those left out."""
        return hashlib.sha256(f"{self.images.digest()} {self.indices.tolist()}".encode()).hexdigest()


@dataclass(frozen=True)
class Split:
    """The two parts of a protocol."""

    train: Images
    """The images for training."""
    judged: Images
    """The images for evaluation."""
    manifest: dict[str, Any]
    """The facts that decide both, as plain JSON."""


def split(dataset: Dataset, config: Config) -> Split:
    """val-original: the training set, and the validation set. val-split: the training set without `held_out` images
    per class, and those images (SAN Sec. 5.1). With `train_per_class`, both train on the same part of the images.

    Raises ValueError if no training image of a class would be left, or fewer than `train_per_class`.
    """
    manifest = {
        "schema": SCHEMA,
        "protocol": config.protocol,
        "data": dataset.name,
        "per_class": None,
        "split_seed": None,
        "classes": list(dataset.classes),
        "sha256": {"train": dataset.train.digest(), "validation": dataset.test.digest()},
        "held_out": [],
    }
    if config.train_per_class is not None:
        manifest |= {"train_per_class": config.train_per_class, "split_seed": config.split_seed}
    orders = None
    if config.protocol != "val-original" or config.train_per_class is not None:
        orders = _orders(dataset, config.split_seed)
    if config.protocol == "val-original":
        return Split(_train(dataset, config, orders, 0), dataset.test, manifest)
    assert orders is not None
    chosen = _held_out(dataset, orders, config.held_out)
    judged = Subset(dataset.train, chosen)
    manifest |= {"per_class": config.held_out, "split_seed": config.split_seed, "held_out": list(judged.names)}
    return Split(_train(dataset, config, orders, config.held_out), judged, manifest)


def _orders(dataset: Dataset, seed: int) -> list[list[int]]:
    """The images of each class, sorted by the hash of the seed and the name.

    The order does not depend on the order of the images, on other classes or on a library's random numbers.
    """
    names, labels = dataset.train.names, dataset.train.labels
    return [
        sorted((labels == number).nonzero()[:, 0].tolist(), key=lambda index: _key(seed, names[index]))
        for number in range(len(dataset.classes))
    ]


def _train(dataset: Dataset, config: Config, orders: Sequence[Sequence[int]] | None, held_out: int) -> Images:
    """The images to train on: the last `train_per_class` of each class, or all but the first `held_out`."""
    if orders is None:
        return dataset.train
    wanted = config.train_per_class
    for name, members in zip(dataset.classes, orders, strict=True):
        if wanted is not None and wanted > len(members) - held_out:
            raise ValueError(
                f"class {name!r} has {len(members) - held_out} images to train on; expected train_per_class to be at "
                f"most that, not {wanted}"
            )
    kept = [index for members in orders for index in members[held_out if wanted is None else -wanted :]]
    return Subset(dataset.train, torch.tensor(sorted(kept), dtype=torch.int64))


def _held_out(dataset: Dataset, orders: Sequence[Sequence[int]], per_class: int) -> Tensor:
    """The first images of each class."""
    for name, members in zip(dataset.classes, orders, strict=True):
        if len(members) <= per_class:
            raise ValueError(
                f"class {name!r} has {len(members)} images to train on, and held_out takes {per_class} of them; "
                f"expected held_out below {len(members)}"
            )
    chosen = [index for members in orders for index in members[:per_class]]
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def _key(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()


def write(path: Path, split: Split) -> None:
    """Write the manifest atomically as a JSON file. Raises CannotWrite if that fails."""
    try:
        atomic.write(path, json.dumps(split.manifest, indent=1).encode())
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror}") from None


def verify(path: Path, split: Split) -> None:
    """Raise BadData, which names the change, if the manifest in the file differs from that of the split. Images that
    are absent, because they are not judged, are not compared."""
    try:
        before = json.loads(path.read_bytes())
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadData(f"{path} is no manifest of a split ({error}); start a new run") from None
    if not isinstance(before, dict):
        raise BadData(f"{path} is no manifest of a split; start a new run")
    for name, now in split.manifest.items():
        was = before.get(name)
        if name == "sha256" and isinstance(was, dict):
            now = {part: was.get(part) if digest is None else digest for part, digest in now.items()}
        if was != now:
            raise BadData(f"{_change(name, was, now)} since {path} was written; restore it, or start a new run")


def _change(name: str, before: Any, now: Any) -> str:
    if name == "sha256" and isinstance(before, dict):
        return (
            f"the listing of the {' and '.join(part for part in now if before.get(part) != now[part])} images changed"
        )
    if isinstance(now, list):
        return f"{name} changed"
    return f"{name} changed from {before!r} to {now!r}"
