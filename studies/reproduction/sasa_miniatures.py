"""Miniatures of SASA's networks, and of the ResNets that they are compared with, on images of a few pixels.

A miniature has the stages with attention, the footprint, the positions, the logits and the stem of its original, and
footprints of 7 × 7 where the table varies something else. There are two kinds:

- The tables that compare stems need the original's stem, which reduces the sides of an image to a quarter. Their
  networks, called `reduced` here, have three stages with many channels.
- All other networks have a stem that keeps the sides, and four stages like the original, so that each of the paper's
  groups of stages with attention exists.

The parameters, as shares of those of the compared network, are within 5 % of the original's shares. The FLOPs are not:
logits and sums over 7 × 7 taps take 3 · 49 · C multiply-adds for C channels, and a convolution 9 · C², which is more
with the 64 to 512 channels of the original, and less with 16. The pages print what was reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saprof.models.catalogue import MODELS

CHANNELS = {False: [16, 32, 64, 128], True: [48, 96, 192]}
"""Channels of the stages, by whether the network is reduced."""
BLOCKS = {False: {50: [1, 1, 2, 1]}, True: {26: [1, 1, 1], 38: [1, 1, 2], 50: [2, 2, 2]}}
"""Blocks of the stages, by whether the network is reduced, and by the depth of the original."""
HEADS = 4
"""A head of the first stage has 4 channels, where that of the original has 8 in 8 heads."""
STAGES = ("first", "second", "third", "fourth")


def miniature(model: str, overrides: Mapping[str, Any], reduced: bool) -> tuple[str, dict[str, Any]]:
    """The name and the options of the miniature of a network. Raises ValueError if it has none."""
    original = MODELS.get(model)
    blocks = None if original is None or original.depth is None else BLOCKS[reduced].get(original.depth)
    if original is None or blocks is None or original.architecture not in ("SASA", "ResNet"):
        raise ValueError(f"{model} has no miniature; expected a classifier of SASA's tables, such as sasa_resnet50")
    options: dict[str, Any] = {"channels": CHANNELS[reduced], "blocks": blocks}
    if reduced:
        options["stem_stride"] = 4
    if original.architecture == "ResNet":
        return "resnet_mini", options
    stem = original.fields.get("stem", "spatial_attention")
    if stem != "convolution" and not reduced:
        raise ValueError(f"{model} has attention in its stem; expected a convolution, since the stem keeps the sides")
    attending = {"heads": HEADS, "footprint": original.side, "stem": stem, "attention": "auto"}
    return "sasa_mini", options | attending | dict(overrides)


def map_note(options: Mapping[str, Any], side: int) -> str:
    """The note of a miniature whose footprint exceeds the map of a stage with attention, for images of this side; empty
    if there is none."""
    size = options.get("footprint")
    if size is None:
        return ""
    attending = options.get("attention_stages") or range(1, len(options["channels"]) + 1)
    sides = maps(options, side)
    exceeded = [f"the {STAGES[stage - 1]} ({sides[stage - 1]} × {sides[stage - 1]})" for stage in attending]
    exceeded = [words for words, stage in zip(exceeded, attending, strict=True) if size > sides[stage - 1]]
    if not exceeded:
        return ""
    spelled = f"{', '.join(exceeded[:-1])} and {exceeded[-1]}" if len(exceeded) > 1 else exceeded[0]
    return f"a footprint of {size} × {size} exceeds the map of {spelled} stage"


def maps(options: Mapping[str, Any], side: int) -> Sequence[int]:
    """The side of the map of every stage."""
    found = [-(-side // options.get("stem_stride", 1))]
    for _ in options["channels"][1:]:
        found.append(-(-found[-1] // 2))
    return found
