"""What is trained on and what is judged, by protocol, and a manifest that tells whether they are still the same."""

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

    @property
    def names(self) -> Sequence[str]:
        names, indices = self.images.names, map(int, self.indices)
        return [names[index] for index in indices]

    def read(self, index: int) -> Any:
        return self.images.read(int(self.indices[index]))

    def digest(self) -> str:
        """Changes with any of the images, those left out as well."""
        return hashlib.sha256(f"{self.images.digest()} {self.indices.tolist()}".encode()).hexdigest()


@dataclass(frozen=True)
class Split:
    """The two parts of a protocol."""

    train: Images
    """What is trained on."""
    judged: Images
    """What accuracies are of."""
    manifest: dict[str, Any]
    """What decided the two, as plain JSON."""


def split(dataset: Dataset, config: Config) -> Split:
    """val-original: train, and the data set's validation set; val-split: train, less `held_out` images per class that
    are judged (SAN Sec. 5.1).

    ValueError if a class would keep no image to train on.
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
    if config.protocol == "val-original":
        return Split(dataset.train, dataset.test, manifest)
    chosen = _held_out(dataset, config.held_out, config.split_seed)
    kept = torch.ones(len(dataset.train.labels), dtype=torch.bool)
    kept[chosen] = False
    train, judged = Subset(dataset.train, kept.nonzero()[:, 0]), Subset(dataset.train, chosen)
    manifest |= {"per_class": config.held_out, "split_seed": config.split_seed, "held_out": list(judged.names)}
    return Split(train, judged, manifest)


def _held_out(dataset: Dataset, per_class: int, seed: int) -> Tensor:
    """The images of each class whose names, hashed with the seed, come first.

    So the choice depends neither on the order of the images, nor on other classes, nor on a library's random numbers.
    """
    names = dataset.train.names
    chosen: list[int] = []
    for number, name in enumerate(dataset.classes):
        members: list[int] = (dataset.train.labels == number).nonzero()[:, 0].tolist()
        if len(members) <= per_class:
            raise ValueError(
                f"class {name!r} has {len(members)} images to train on, of which held_out takes {per_class}; "
                f"expected held_out below {len(members)}"
            )
        chosen += sorted(members, key=lambda index: _draw(seed, names[index]))[:per_class]
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()


def write(path: Path, split: Split) -> None:
    """The manifest as a JSON file, whole or not there; CannotWrite if that cannot be done."""
    try:
        atomic.write(path, json.dumps(split.manifest, indent=1).encode())
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror}") from None


def verify(path: Path, split: Split) -> None:
    """BadData if the manifest in the file is not that of the split: names what changed."""
    try:
        before = json.loads(path.read_bytes())
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadData(f"{path} is no manifest of a split ({error}); start a new run") from None
    if not isinstance(before, dict):
        raise BadData(f"{path} is no manifest of a split; start a new run")
    for what, now in split.manifest.items():
        if before.get(what) != now:
            raise BadData(
                f"{_change(what, before.get(what), now)} since {path} was written; restore it, or start a new run"
            )


def _change(what: str, before: Any, now: Any) -> str:
    if what == "sha256" and isinstance(before, dict):
        return (
            f"the listing of the {' and '.join(part for part in now if before.get(part) != now[part])} images changed"
        )
    if isinstance(now, list):
        return f"{what} changed"
    return f"{what} changed from {before!r} to {now!r}"
