"""Images with boxes in the layout of COCO: a file such as `instances_train2017.json`, and a folder of images.

The file is read whole, the images on access. `survey` names every problem of the file and of the folder.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor

from studies.data import pictures
from studies.detection.postprocess import Detections
from studies.failures import BadData

PARTS = ("images", "annotations", "categories")
LAYOUT = "expected a file such as instances_val2017.json, with lists of images, annotations and categories"
KEPT = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
"""What is kept of an annotation. The outlines of COCO would take some gigabytes."""
SHOWN = 3
"""Problems of one kind that are named; the others are counted."""


class Objects(NamedTuple):
    """The objects of one image, in the order of the file. Empty boxes are left out; others are cut at the image."""

    boxes: Float[Tensor, "m 4"]
    """x0, y0, x1, y1 in pixels."""
    labels: Int64[Tensor, " m"]
    """Places in `Coco.classes`."""
    crowd: Bool[Tensor, " m"]
    """Whether a box is around a crowd, whose objects are not counted."""


@dataclass(frozen=True)
class Coco:
    """Images of a folder, and the objects in them. Images are in the order of their ids, and so are categories."""

    folder: Path
    images: tuple[Mapping[str, Any], ...]
    categories: tuple[Mapping[str, Any], ...]
    annotations: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the categories."""
        return tuple(str(category["name"]) for category in self.categories)

    @cached_property
    def _labels(self) -> dict[int, int]:
        return {category["id"]: label for label, category in enumerate(self.categories)}

    @cached_property
    def _of_image(self) -> dict[int, list[Mapping[str, Any]]]:
        found: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in self.images}
        for annotation in self.annotations:
            found[annotation["image_id"]].append(annotation)
        return found

    def size(self, index: int) -> tuple[int, int]:
        """Rows and columns of an image, as the file states them."""
        return self.images[index]["height"], self.images[index]["width"]

    def path(self, index: int) -> Path:
        return self.folder / self.images[index]["file_name"]

    def read(self, index: int) -> Image.Image:
        """The image in RGB. Raises BadData, which names the file, if it cannot be read, or has another size than the
        file of annotations states."""
        image = pictures.read(self.path(index))
        rows, columns = self.size(index)
        if (image.height, image.width) != (rows, columns):
            raise BadData(
                f"{self.path(index)} has {image.width} × {image.height} pixels; expected {columns} × {rows}, as the "
                "annotations state"
            )
        return image

    def objects(self, index: int) -> Objects:
        """The objects of an image."""
        rows, columns = self.size(index)
        boxes, labels, crowd = [], [], []
        for annotation in self._of_image[self.images[index]["id"]]:
            cut = _cut(annotation["bbox"], rows, columns)
            if cut is not None:
                boxes.append(cut)
                labels.append(self._labels[annotation["category_id"]])
                crowd.append(bool(annotation.get("iscrowd", 0)))
        return Objects(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(crowd, dtype=torch.bool),
        )

    def ground_truth(self) -> dict[str, Any]:
        """The content of the file that an evaluation of boxes reads: no box is cut or left out."""
        return {
            "images": [dict(image) for image in self.images],
            "annotations": [{"iscrowd": 0, "area": _area(a["bbox"])} | dict(a) for a in self.annotations],
            "categories": [dict(category) for category in self.categories],
        }


@dataclass(frozen=True, kw_only=True)
class CocoSurvey:
    """What was found: the data, a sentence for each problem, and notes on what is unusual and no problem. The data hold
    only what has no problem."""

    data: Coco
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Finds:
    """The problems and notes, by kind."""

    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def sentences(self, where: Path, kinds: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        return tuple(f"{where}: {kind}: {_listed(cases)}" for kind, cases in kinds.items())


def load(file: str | Path, folder: str | Path) -> Coco:
    """The images of a folder and their objects. Raises BadData, which names the first problem, if there is one."""
    found = survey(file, folder)
    if found.problems:
        first, *others = found.problems
        raise BadData(first + (f" ({len(others)} more)" if others else ""))
    return found.data


def survey(file: str | Path, folder: str | Path) -> CocoSurvey:
    """The content of a file of annotations, the folder of its images, and all problems of both. No image is opened.

    Problems: a file that cannot be read, ids or names that occur twice, references to nothing, boxes that are not four
    finite numbers, images that are not in the folder. Notes: empty boxes and boxes outside of the image, which are left
    out; boxes that are cut; crowds; categories whose ids have gaps; categories and images without objects.
    """
    where, folder = Path(file), Path(folder)
    try:
        content = _content(where)
    except BadData as error:
        return CocoSurvey(data=Coco(folder, (), (), ()), problems=(str(error),))
    finds = _Finds()
    categories = _unique(content["categories"], "categories", "name", _is_category, finds)
    images = _unique(content["images"], "images", "file_name", _is_image, finds)
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    annotations = list(_annotations(content["annotations"], sizes, {c["id"] for c in categories}, finds))
    data = Coco(folder, tuple(images), tuple(categories), tuple(annotations))
    _files(data, finds)
    _unused(data, finds)
    problems = finds.sentences(where, finds.problems)
    if not images or not categories:
        problems = (*problems, f"{where} has no {'categories' if images else 'images'}; {LAYOUT}")
    return CocoSurvey(data=data, problems=problems, notes=finds.sentences(where, finds.notes))


def _content(where: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(where.read_bytes())
    except OSError as error:
        raise BadData(f"{where} cannot be read ({error.strerror}); {LAYOUT}") from None
    except (ValueError, RecursionError) as error:
        raise BadData(f"{where} is no JSON, or is cut off ({' '.join(str(error).split())}); get it again") from None
    if not isinstance(content, dict):
        raise BadData(f"{where} holds a {type(content).__name__}; {LAYOUT}")
    for part in PARTS:
        if not isinstance(content.get(part), list):
            raise BadData(f"{where} has no list of {part}; {LAYOUT}")
    return content


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_category(entry: Mapping[str, Any]) -> bool:
    return _whole(entry.get("id")) and isinstance(entry.get("name"), str)


def _is_image(entry: Mapping[str, Any]) -> bool:
    """Whether id, name and size are there, and the name stays in the folder."""
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return False
    return _whole(entry.get("id")) and all(_whole(entry.get(side)) and entry[side] > 0 for side in ("height", "width"))


def _unique(entries: list[Any], part: str, name: str, valid: Any, finds: _Finds) -> list[dict[str, Any]]:
    """The valid entries in the order of their ids, each id and name once."""
    found: dict[int, dict[str, Any]] = {}
    names: Counter[str] = Counter()
    for entry in entries:
        if not isinstance(entry, dict) or not valid(entry):
            _add(finds.problems, f"{part} without a valid id, {name} or size", str(entry)[:80])
            continue
        if entry["id"] in found:
            _add(finds.problems, f"{part} with the id of another", str(entry["id"]))
            continue
        names[entry[name]] += 1
        found[entry["id"]] = entry
    for text, count in names.items():
        if count > 1:
            _add(finds.problems, f"{part} with the {name} of another", f"{text!r}")
    return [found[number] for number in sorted(found)]


def _annotations(
    entries: list[Any], sizes: Mapping[int, tuple[int, int]], categories: set[int], finds: _Finds
) -> Iterator[dict[str, Any]]:
    seen: set[object] = set()
    for entry in entries:
        number = entry.get("id") if isinstance(entry, dict) else None
        if not _whole(number):
            _add(finds.problems, "annotations without a valid id", str(entry)[:80])
        elif number in seen:
            _add(finds.problems, "annotations with the id of another", str(number))
        elif not (_whole(entry.get("image_id")) and entry["image_id"] in sizes):
            _add(finds.problems, "annotations of an image that is not listed", str(number))
        elif not (_whole(entry.get("category_id")) and entry["category_id"] in categories):
            _add(finds.problems, "annotations of a category that is not listed", str(number))
        elif not (isinstance(box := entry.get("bbox"), list) and len(box) == 4 and all(map(_number, box))):
            _add(finds.problems, "annotations whose bbox is not four finite numbers", str(number))
        elif not (_number(entry.get("area", 0)) and entry.get("iscrowd", 0) in (0, 1)):
            _add(finds.problems, "annotations whose area or iscrowd is wrong", str(number))
        else:
            _note_box(entry, *sizes[entry["image_id"]], finds)
            yield {name: entry[name] for name in KEPT if name in entry}
        seen.add(number)


def _note_box(entry: Mapping[str, Any], rows: int, columns: int, finds: _Finds) -> None:
    x, y, width, height = entry["bbox"]
    if entry.get("iscrowd"):
        _add(finds.notes, "boxes around crowds, which match no anchor", str(entry["id"]))
    if width <= 0 or height <= 0:
        _add(finds.notes, "empty boxes, which are left out", str(entry["id"]))
    elif _cut(entry["bbox"], rows, columns) is None:
        _add(finds.notes, "boxes outside of their image, which are left out", str(entry["id"]))
    elif x < 0 or y < 0 or x + width > columns or y + height > rows:
        _add(finds.notes, "boxes that are cut at the edge of their image", str(entry["id"]))


def _files(data: Coco, finds: _Finds) -> None:
    if not data.folder.is_dir():
        _add(finds.problems, "the folder of images is not there", str(data.folder))
        return
    for index in range(len(data)):
        path = data.path(index)
        if not path.is_file():
            _add(finds.problems, "images that are not in the folder", str(path))
        elif not path.stat().st_size:
            _add(finds.problems, "images that are empty files", str(path))


def _unused(data: Coco, finds: _Finds) -> None:
    ids = [category["id"] for category in data.categories]
    if ids and ids != list(range(ids[0], ids[0] + len(ids))):
        _add(finds.notes, "ids of categories with gaps; labels have none", f"{len(ids)} ids from {ids[0]} to {ids[-1]}")
    used = {annotation["category_id"] for annotation in data.annotations}
    for category in data.categories:
        if category["id"] not in used:
            _add(finds.notes, "categories without an object", repr(category["name"]))
    with_objects = {annotation["image_id"] for annotation in data.annotations}
    for image in data.images:
        if image["id"] not in with_objects:
            _add(finds.notes, "images without an object", str(image["id"]))


def _cut(bbox: Sequence[float], rows: int, columns: int) -> tuple[float, float, float, float] | None:
    """The part of a box inside of its image, as x0, y0, x1, y1; None if it is empty. `bbox` is x, y, width and
    height."""
    x, y, width, height = bbox
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + width, columns), min(y + height, rows)
    return (left, top, right, bottom) if right > left and bottom > top else None


def _area(bbox: Sequence[float]) -> float:
    return max(bbox[2], 0) * max(bbox[3], 0)


def _add(kinds: dict[str, list[str]], kind: str, case: str) -> None:
    kinds.setdefault(kind, []).append(case)


def _listed(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - SHOWN:,} more" if len(cases) > SHOWN else ""
    return ", ".join(cases[:SHOWN]) + more


def results(found: Iterable[tuple[int, Detections]], truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Detections as COCO's list of results. `found` has pairs of the place of an image in the ground truth and its
    detections, in pixels of that image; labels are places of categories in the ground truth."""
    listed = []
    for index, (boxes, scores, labels) in found:
        image = truth["images"][index]["id"]
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            x0, y0, x1, y1 = box
            category = truth["categories"][label]["id"]
            bbox = [x0, y0, x1 - x0, y1 - y0]
            listed.append({"image_id": image, "category_id": category, "bbox": bbox, "score": score})
    return listed
