"""A picture of detections beside the ground truth."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from saprof import atomic
from studies.failures import CannotWrite

SHOWN = 8
"""Images in a picture."""
SURE = 0.3
"""The lowest score of a box that is drawn."""
SIDE = 256
"""The longer side of an image in the picture."""
GAP = 8
COLOURS = ("#e6550d", "#3182bd", "#31a354", "#ffd92f", "#e7298a", "#17becf", "#a6761d", "#bcbddc", "#66c2a5", "#fb9a99")
"""The colours of classes, in their order, and again."""


class Source(Protocol):
    """Images, and their objects as COCO writes them."""

    def read(self, index: int) -> Any: ...
    def ground_truth(self) -> dict[str, Any]: ...


def draw(path: Path, source: Source, indices: Sequence[int], results: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG of the first images: on the left of each pair the ground truth, on the right the results with a score
    of at least SURE, both as COCO writes them. Raises CannotWrite if that fails."""
    truth = source.ground_truth()
    rows = []
    for index in list(indices)[:SHOWN]:
        number, image = truth["images"][index]["id"], _rgb(source.read(index))
        expected = [entry for entry in truth["annotations"] if entry["image_id"] == number]
        found = [entry for entry in results if entry["image_id"] == number and entry["score"] >= SURE]
        rows.append([_boxed(image, entries, truth["categories"]) for entries in (expected, found)])
    content = io.BytesIO()
    _beside(rows).save(content, format="PNG")
    try:
        atomic.write(path, content.getvalue())
    except OSError as error:
        raise CannotWrite(f"cannot write {error.filename}: {error.strerror}") from None


def _rgb(image: Any) -> Image.Image:
    if not isinstance(image, Tensor):
        return image
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).squeeze(-1).numpy())).convert("RGB")


def _boxed(
    image: Image.Image, entries: Sequence[Mapping[str, Any]], categories: Sequence[Mapping[str, Any]]
) -> Image.Image:
    """The image with boxes, each with its class and, for a detection, its score in per cent."""
    scale = SIDE / max(image.size)
    larger = image.resize((round(image.width * scale), round(image.height * scale)))
    brush = ImageDraw.Draw(larger)
    names = {category["id"]: (place, category["name"]) for place, category in enumerate(categories)}
    for entry in sorted(entries, key=lambda entry: entry.get("score", 1)):  # the surest lies on top
        x, y, width, height = (scale * number for number in entry["bbox"])
        place, name = names[entry["category_id"]]
        colour = COLOURS[place % len(COLOURS)]
        brush.rectangle((x, y, x + max(width - 1, 0), y + max(height - 1, 0)), outline=colour, width=2)
        score = f" {100 * entry['score']:.0f}" if "score" in entry else ""
        brush.text((x + 3, y + 2), name + score, fill=colour, stroke_width=1, stroke_fill="black")
    return larger


def _beside(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pairs of images, two pairs to a line."""
    height = max(image.height for row in rows for image in row) + GAP
    width = 2 * SIDE + 3 * GAP
    lines = -(-len(rows) // 2)
    picture = Image.new("RGB", (2 * width, lines * height + GAP), "white")
    for number, pair in enumerate(rows):
        left, top = number % 2 * width + GAP, number // 2 * height + GAP
        for place, image in enumerate(pair):
            picture.paste(image, (left + place * (SIDE + GAP), top))
    return picture
