"""Miniatures: the small networks that replace the networks of the tables on images of a few pixels.

A miniature has the relation, mapping, transformations, position encoding and footprint of its original. On digits and
CIFAR it has two stages, and its size is no copy of the original's. On Fashion-MNIST it is matched: it has three stages,
and its parameters and FLOPs, as shares of those of the convolutional miniature, are within 5 % of the original's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saprof.models.catalogue import MODELS, NamedModel, named_model

SIDES = {"digits": 8, "digits16": 16, "cifar10": 32, "fashion": 28}
"""Data sets of small images, and the side of the images, which is that of the first stage's map."""
MATCHED = ("fashion",)
"""Data sets whose miniatures are matched."""

_BLOCKS = {10: [1, 1], 15: [2, 1], 19: [2, 2], 26: [1, 1], 38: [2, 1], 50: [2, 2]}
"""Blocks per stage of a miniature that is not matched, by the depth of its original."""
_MATCHED_BLOCKS = {10: [1, 1, 1], 15: [1, 1, 2], 19: [2, 2, 2], 26: [1, 1, 1], 38: [1, 1, 2], 50: [2, 2, 2]}
"""Blocks per stage of a matched miniature. Other patterns for 15 and 38 leave the 5 %, or cost more time."""
_MATCHED_CHANNELS = {
    "convolution": [12, 24, 48],
    "pairwise": [32, 96, 192],
    "patchwise": [32, 96, 160],
    "stand_alone": [32, 96, 192],
}
_MATCHED_SAN = {"footprints": [3, 7, 7], "value_reduction": 4, "attention": "auto"}
_MATCHED_REDUCTIONS = {"relation_reduction": 16, "share": 4}


def miniature(model: str, overrides: Mapping[str, Any], data: str = "digits") -> tuple[str, dict[str, Any]]:
    """The name and the options of the miniature of a network for a data set."""
    original = MODELS.get(model)
    if original is None or original.depth is None or original.architecture not in ("SAN", "ResNet"):
        raise ValueError(f"{model} has no miniature; expected a network of the paper's tables, such as san10_pairwise")
    if data in MATCHED:
        return _matched(original, overrides)
    name, options = _varied(original, overrides)
    if original.architecture == "SAN":
        options = {"attention": "composed", **options}  # as in the recorded runs, whose options are their identity
        if "footprints" in options:
            options["footprints"] = [options["footprints"][1], 3]  # 3 × 3 covers the map of the second stage
        if options.get("transformations") == "shared":
            options["relation_reduction"] = 2  # equal to the value_reduction of miniatures, since φ, ψ and β are one
    assert original.depth is not None
    if _BLOCKS[original.depth] != [1, 1]:
        options["blocks"] = _BLOCKS[original.depth]
    return name, options


def _varied(original: NamedModel, overrides: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The miniature's name, and the options in which the original differs from its family's default."""
    if original.architecture == "SAN":
        relation = {"relation": original.relation} if "relation" in original.fields else {}
        return f"san_mini_{original.family}", {**overrides, **relation}
    side = {"footprint": original.fields["footprint"]} if "footprint" in original.fields else {}
    return "resnet_mini", {**overrides, **side}


def _matched(original: NamedModel, overrides: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    name, varied = _varied(original, overrides)
    assert original.depth is not None
    options: dict[str, Any] = {
        "channels": _MATCHED_CHANNELS[original.family],
        "blocks": _MATCHED_BLOCKS[original.depth],
    }
    if original.architecture == "SAN":
        options |= _MATCHED_SAN
    if original.family in ("pairwise", "patchwise"):
        options |= _MATCHED_REDUCTIONS
    if "footprints" in varied:
        first, others = varied["footprints"][:2]
        varied["footprints"] = [first, others, others]
    if varied.get("transformations") == "shared":
        varied["relation_reduction"] = options["value_reduction"]  # since φ, ψ and β are one
    return name, options | varied


def is_default(model: str, overrides: Mapping[str, Any]) -> bool:
    """Whether a network is one of the SAN paper's pairwise or patchwise networks, without any variation."""
    original = named_model(model)
    return None not in (original.relation, original.depth) and original.base == model and not overrides


def stages(data: str) -> int:
    """The number of stages of the miniatures for a data set."""
    return 3 if data in MATCHED else 2


def map_note(model: str, overrides: Mapping[str, Any], data: str) -> str:
    """The note of a miniature whose footprint is larger than the map; empty if there is none."""
    if data not in SIDES:
        return ""
    _, options = miniature(model, overrides, data)
    for stage, (size, side) in enumerate(zip(_sizes(options, data), _maps(data), strict=True)):
        if size > side:
            name = ("first", "second", "third")[stage]
            return f"a footprint of {size} × {size} exceeds the {name} stage's map of {side} × {side}"
    return ""


def _sizes(options: Mapping[str, Any], data: str) -> list[int]:
    """The footprint of each stage, as far as a row states it; else 0. The second stage of a SAN that is not matched
    always has 3 × 3."""
    if "footprint" in options:
        return [0] * (stages(data) - 1) + [options["footprint"]]
    given = options.get("footprints", [0] * stages(data))
    return list(given) if data in MATCHED else [given[0], 0]


def _maps(data: str) -> list[int]:
    return [SIDES[data] >> stage for stage in range(stages(data))]
