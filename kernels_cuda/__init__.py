"""Handwritten CUDA kernels and their build: leaves that know arrays and integers, and nothing of saprof."""

import math
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"

WORKERS = 512
"""Blocks that have sums of their own, at most: some more than an H200 runs at once."""
SCRATCH = {"pairwise": 1 << 24, "stand_alone": 1 << 20, "patchwise": 1 << 19}
"""Elements that their sums take together, unless those of one take more. Of pairwise kernels a worker is a block, of
stand-alone ones a block for each head, of patchwise ones a block for each panel of a layer."""


@cache
def operators() -> frozenset[str]:
    """The operators that there are kernels of."""
    return frozenset(re.findall(r'{"(\w+)_backward", ', (CSRC / "operators.cu").read_text()))


@cache
def cores() -> dict[str, int]:
    """The cores of fused attentions that there are kernels of, and how many inputs they have."""
    found = re.findall(r'{"(\w+)", {\w+, (\d+), \d+}}', (CSRC / "cores.cu").read_text())
    return {name: int(inputs) for name, inputs in found}


def scratch(name: str, centres: int, widths: Sequence[int]) -> tuple[int, int]:
    """Elements of a core's scratch memory, and the workers that have sums in there, for all images' centres."""
    family, hidden = next(family for family in SCRATCH if name.startswith(family)), sum(widths[1:-1])
    layers = [(i + 1) * o for i, o in pairwise(widths)]
    per_centre, per_worker = 0, 0
    match name:
        case "pairwise_attention_backward":
            per_centre, per_worker = widths[-1], sum(layers)
        case "pairwise_statistics" | "patchwise_statistics":
            per_centre, per_worker = hidden * (family == "patchwise"), 3 * widths[-1]
        case "pairwise_statistics_backward":
            per_worker = sum(layers)
        case "stand_alone_attention_backward":  # sums are of each tap: it sees for itself for how many workers they are
            room = min(4 * math.prod(widths) * centres, SCRATCH[family])
            return widths[-1] * centres + room, WORKERS
        case "patchwise_attention":
            per_centre = hidden
        case "patchwise_attention_backward":
            per_centre, per_worker = 2 * hidden, max(2 * widths[0], *layers)
        case "patchwise_statistics_backward":
            flowing = widths[-1] if layers else 0
            per_centre, per_worker = 2 * hidden + flowing, max(2 * widths[0], *layers, 0)
    workers = min(max(SCRATCH[family] // max(per_worker, 1), 1), WORKERS)
    return per_centre * centres + per_worker * workers, workers
