"""Data sets for detectors, as `studies.train --data` names them: images with the boxes of their objects.

coco            ROOT/annotations/instances_train*.json and instances_val*.json, and folders ROOT/train* and ROOT/val*
canvas          items of Fashion-MNIST, composed on canvases
canvas_digits   scikit-learn's digits, composed on canvases; they need no files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from studies.config import Config
from studies.data import Dataset, Pixels, digits, folder, idx
from studies.data.survey import Survey
from studies.detection import canvas, coco, evaluation
from studies.detection.canvas import Canvases
from studies.detection.coco import Coco, Objects
from studies.detection.views import Rules, Scene
from studies.failures import BadData

ITEMS = {"canvas": "fashion", "canvas_digits": "digits"}
"""The images from which canvases are composed."""


class Annotated(Protocol):
    """Images with objects: `Coco` or `Canvases`."""

    def __len__(self) -> int: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    def size(self, index: int) -> tuple[int, int]: ...
    def read(self, index: int) -> Any: ...
    def objects(self, index: int) -> Objects: ...
    def ground_truth(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class SceneImages:
    """Images with objects in the form that `studies.data.Images` describes; `read` returns an image and its objects."""

    source: Annotated
    indices: Sequence[int]
    """The images of the source that are used."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> Sequence[str]:
        return [str(index) for index in self.indices]

    @property
    def labels(self) -> Tensor:
        raise BadData("these images have boxes, and not one label each; expected images of classes")

    def counts(self) -> Tensor:
        """The number of objects of each class."""
        labels = [self.source.objects(index).labels for index in self.indices]
        every = torch.cat(labels) if labels else torch.zeros(0, dtype=torch.int64)
        return every.bincount(minlength=len(self.source.classes))

    def read(self, index: int) -> Scene:
        place = self.indices[index]
        return self.source.read(place), self.source.objects(place)

    def size(self, index: int) -> tuple[int, int]:
        """Rows and columns."""
        return self.source.size(self.indices[index])

    def ground_truth(self) -> dict[str, Any]:
        """The objects of these images, as COCO writes them."""
        truth = self.source.ground_truth()
        if len(self) == len(self.source):
            return truth
        images = [truth["images"][index] for index in self.indices]
        kept = {image["id"] for image in images}
        return truth | {"images": images, "annotations": [a for a in truth["annotations"] if a["image_id"] in kept]}

    def sample(self, n: int | None) -> SceneImages:
        """`n` of the images, spread evenly over their order; None, or more than there are, is all of them."""
        if n is None or n >= len(self):
            return self
        return SceneImages(self.source, [self.indices[number * len(self) // n] for number in range(n)])

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(f"{_digest(self.source)} {list(self.indices)}".encode()).hexdigest()


def _digest(source: Annotated) -> str:
    """A hash of what decides the images and boxes. Of the images of a folder, it covers names and sizes."""
    hashed = hashlib.sha256()
    if isinstance(source, Canvases):
        parts: Sequence[Any] = [source.items.digest(), source.split, source.count, source.seed]
    else:
        assert isinstance(source, Coco)
        parts = [source.images, source.categories, source.annotations]
    for part in parts:
        hashed.update(json.dumps(part, sort_keys=True).encode())
    return hashed.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Scenes(Dataset):
    """A data set for detectors. Its views are of the kind `studies.detection.views.View`."""

    rules: Rules
    sizes: tuple[float, float]
    """The limits of small and of large objects in an evaluation, in square pixels."""


def load(config: Config) -> Scenes:
    """The data set of a config. Raises BadData if files are missing or damaged."""
    return _coco(config) if config.data == "coco" else _canvases(config)


def _scenes(config: Config, train: SceneImages, test: SceneImages, **others: Any) -> Scenes:
    rules = Rules.of(config)
    common = {"name": config.data, "classes": train.source.classes, "train": train, "test": test}
    return Scenes(**common, rules=rules, augment=rules.training, view=rules.judged, **others)


def _canvases(config: Config) -> Scenes:
    items = (idx if config.data == "canvas" else digits).load(Config(data=ITEMS[config.data], root=config.root))
    sources = {"train": items.train, "val": items.train, "test": items.test}
    judged = "val" if config.protocol == "val-split" else "test"
    parts = []
    for split, count in (("train", config.canvases), (judged, config.judged_canvases)):
        source = sources[split]
        assert isinstance(source, Pixels)
        composed = Canvases(canvas.items_of(source, split), items.classes, split, count, config.split_seed)
        parts.append(SceneImages(composed, range(count)))
    size, sizes = (1, canvas.SIDE, canvas.SIDE), canvas.SIZES
    return _scenes(config, *parts, size=size, mean=items.mean, std=items.std, sizes=sizes)


def _coco(config: Config) -> Scenes:
    if config.protocol != "val-original":
        raise ValueError(f"protocol is {config.protocol!r}; expected val-original for coco, which has a validation set")
    train, judged = (coco.load(*files(config.root, part)) for part in ("train", "val"))
    if train.classes != judged.classes:
        raise BadData(_differing(config))
    parts = SceneImages(train, _with_objects(train)), SceneImages(judged, range(len(judged)))
    side = max(config.crop or 0, *config.sides, 0) or 640
    return _scenes(config, *parts, size=(3, side, side), mean=folder.MEAN, std=folder.STD, sizes=evaluation.SIZES)


def survey(config: Config) -> Survey:
    """The images and objects of COCO's layout, and all problems."""
    problems: list[str] = []
    notes: list[tuple[str, str]] = []
    found: dict[str, Coco] = {}
    for part in ("train", "val"):
        try:
            each = coco.survey(*files(config.root, part))
        except BadData as error:
            problems.append(str(error))
            continue
        problems += each.problems
        notes += [(note, "") for note in each.notes]
        found[part] = each.data
    nothing = Coco(Path(), (), (), ())
    train, judged = (found.get(part, nothing) for part in ("train", "val"))
    if len(found) == 2 and train.classes != judged.classes:
        problems.append(_differing(config))
    images = [SceneImages(source, range(len(source))) for source in (train, judged)]
    classes = train.classes or judged.classes
    return Survey(classes=classes, train=images[0], test=images[1], problems=tuple(problems), notes=tuple(notes))


def _differing(config: Config) -> str:
    return f"{config.root} has other categories in train than in val; expected the same in both files"


def _with_objects(source: Coco) -> list[int]:
    """The images that have an object besides crowds. Others are not used in training."""
    return [index for index in range(len(source)) if not source.objects(index).crowd.all()]


def files(root: Path | None, part: str) -> tuple[Path, Path]:
    """The annotations and the folder of images of `train` or `val`. Raises BadData unless there is one of each."""
    layout = f"expected annotations/instances_{part}*.json, and a folder of images such as {part}2017, in --root ROOT"
    if root is None:
        raise BadData(f"the data set coco has no root; {layout}")
    found = sorted((root / "annotations").glob(f"instances_{part}*.json"))
    if len(found) != 1:
        raise BadData(f"{root} has {len(found)} files of annotations for {part}; {layout}")
    return found[0], root / found[0].stem.removeprefix("instances_")
