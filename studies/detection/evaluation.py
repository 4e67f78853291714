"""The average precision of detections, computed by faster-coco-eval (extra `detection`) as COCO defines it."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

INSTALL = "pip install -e '.[detection]'"
NUMBERS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
NUMBERS += ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")
"""The twelve numbers of COCO, in its order: average precision over the IoUs 0.50 to 0.95, at 0.50, at 0.75, and of
small, medium and large objects (below 32², and from 96² square pixels on); average recall of the best 1, 10 and 100
detections, and of the three sizes."""
SIZES = (32.0**2, 96.0**2)
"""COCO's limits of small and of large objects, in square pixels of the original image."""
NO_OBJECTS = -1.0
AT_ONCE = 16
"""Images of a batch in an evaluation."""
OVERLAPS = (0.50, 0.75)
"""The IoUs of AP50 and of AP75."""
RECALLS = np.linspace(0, 1, 101)
"""The recalls at which precision is read."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found. All numbers are from 0 to 1; None where there is no object of that size or class."""

    numbers: Mapping[str, float | None]
    """Each of NUMBERS."""
    per_class: Mapping[str, float | None]
    """AP of each category, by name."""
    curves: Mapping[str, np.ndarray]
    """By name of the category, the precision at each of RECALLS, `ious recalls`, at the IoUs 0.50, 0.55, …, 0.95. A
    category without an object is left out."""

    def of_class(self, name: str) -> dict[str, float | None]:
        """AP, AP50 and AP75 of a category."""
        curves = self.curves.get(name)
        at = {} if curves is None else {f"AP{100 * iou:.0f}": float(at_iou(curves, iou).mean()) for iou in OVERLAPS}
        return {"AP": self.per_class[name], "AP50": None, "AP75": None} | at


def at_iou(curves: np.ndarray, iou: float) -> np.ndarray:
    """The row of one IoU of `ious …`."""
    return curves[round((iou - 0.5) / 0.05)]


def evaluate(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], sizes: tuple[float, float] = SIZES
) -> Evaluation:
    """Compare results with the ground truth; both as COCO writes them (`Coco.ground_truth`, `coco.results`).

    `sizes` are the limits of small and of large objects, in square pixels. Those of COCO are the default.

    Results and ground truth are not changed. Raises ValueError if faster-coco-eval is not installed, or if
    a result names an unknown image or category, or has a box or a score that is not finite.
    """
    judge = package()
    _check(truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = judge.COCO(copy.deepcopy(dict(truth)))
        found = expected.loadRes([dict(result) for result in results])
        judged = judge.COCOeval_faster(expected, found, "bbox")
        everything = judged.params.areaRng[0]
        limits = [everything[0], *sizes, everything[1]]
        judged.params.areaRng = [everything, *([low, high] for low, high in pairwise(limits))]
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    numbers = [_known(float(number)) for number in judged.stats[: len(NUMBERS)]]
    precision = np.asarray(judged.eval["precision"])  # IoUs, recalls, classes, sizes, numbers of detections
    ids = list(judged.params.catIds)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    every = {names[number]: precision[:, :, place, 0, -1] for place, number in enumerate(ids)}
    curves = {name: curve for name, curve in every.items() if (curve > NO_OBJECTS).all()}
    per_class = {name: float(curves[name].mean()) if name in curves else None for name in every}
    return Evaluation(numbers=dict(zip(NUMBERS, numbers, strict=True)), per_class=per_class, curves=curves)


def package() -> ModuleType:
    """faster-coco-eval. Raises ValueError if it is not installed."""
    try:
        return import_module("faster_coco_eval")
    except ModuleNotFoundError as error:
        raise ValueError(f"the evaluation of boxes needs {error.name}, which is not installed; {INSTALL}") from None
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"faster-coco-eval is installed and cannot be imported ({reason}); {INSTALL}") from None


def _check(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    known = {part: {entry["id"] for entry in truth[part]} for part in ("images", "categories")}
    for number, result in enumerate(results):
        for name, part in (("image_id", "images"), ("category_id", "categories")):
            if result[name] not in known[part]:
                raise ValueError(
                    f"result {number} has {name} {result[name]!r}; expected one of the ground truth's {part}"
                )
        values = [*result["bbox"], result["score"]]
        if len(values) != 5 or not all(math.isfinite(value) for value in values):
            raise ValueError(
                f"result {number} has the box {result['bbox']} and score {result['score']}; expected numbers"
            )


def _known(number: float) -> float | None:
    return None if number == NO_OBJECTS else number
