"""Miniatures: the small networks that replace the networks of the tables on images of a few pixels.

A miniature has two stages and the relation, mapping, transformations, position encoding and footprint of its original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saprof.models.catalogue import MODELS, named_model

SIDES = {"digits": 8, "digits16": 16, "cifar10": 32}
"""Data sets of small images, and the side of the images, which is that of the first stage's map."""

_BLOCKS = {10: [1, 1], 15: [2, 1], 19: [2, 2], 26: [1, 1], 38: [2, 1], 50: [2, 2]}
"""Blocks per stage of a miniature, by the depth of its original."""


def miniature(model: str, overrides: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the options of the miniature of a network."""
    original = MODELS.get(model)
    if original is None or original.depth is None or original.architecture not in ("SAN", "ResNet"):
        raise ValueError(f"{model} has no miniature; expected a network of the paper's tables, such as san10_pairwise")
    if original.architecture == "SAN":
        name, options = f"san_mini_{original.family}", {"attention": "composed", **overrides}
        if "relation" in original.fields:
            options["relation"] = original.relation
        if "footprints" in options:
            options["footprints"] = [options["footprints"][1], 3]  # 3 × 3 covers the map of the second stage
        if options.get("transformations") == "shared":
            options["relation_reduction"] = 2  # equal to the value_reduction of miniatures, since φ, ψ and β are one
    else:
        name, options = "resnet_mini", dict(overrides)
        if "footprint" in original.fields:
            options["footprint"] = original.fields["footprint"]
    if _BLOCKS[original.depth] != [1, 1]:
        options["blocks"] = _BLOCKS[original.depth]
    return name, options


def is_default(model: str, overrides: Mapping[str, Any]) -> bool:
    """Whether a network is one of the SAN paper's pairwise or patchwise networks, without any variation."""
    original = named_model(model)
    return None not in (original.relation, original.depth) and original.base == model and not overrides


def map_note(model: str, overrides: Mapping[str, Any], data: str) -> str:
    """The note of a miniature whose footprint is larger than the map; empty if there is none."""
    if data not in SIDES:
        return ""
    _, options = miniature(model, overrides)
    side = SIDES[data]
    if "footprint" in options and options["footprint"] > side // 2:
        size = options["footprint"]
        return f"a footprint of {size} × {size} exceeds the second stage's map of {side // 2} × {side // 2}"
    size = options["footprints"][0] if "footprints" in options else 0
    if size <= side:
        return ""
    return f"a footprint of {size} × {size} exceeds the first stage's map of {side} × {side}"
