"""Handwritten CUDA kernels (csrc/) and their build. They take arrays and integers, and import nothing of saprof."""

import math
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"
SOURCES = (
    *("relations_products.cu", "pairwise.cu", "patchwise.cu", "stand_alone.cu", "relations_vectors.cu"),
    *("relations_cliques.cu", "relations_map_gradient.cu", "mapping.cu", "softmax.cu", "relations.cu", "launch.cu"),
    "binding.cpp",
)
"""The files to compile; those that take longest come first."""

WORKERS = 512
"""At most this many workers have partial sums: a few more than an H200 runs at once. A worker of a pairwise kernel is
one block, of a stand-alone kernel one block for each head, of a patchwise kernel one block for each panel of a
layer."""
SCRATCH = {"pairwise": 1 << 24, "stand_alone": 1 << 20, "patchwise": 1 << 19}
"""The partial sums of all workers have at most this many elements, unless one worker alone needs more."""


@cache
def operators() -> frozenset[str]:
    """The operators that have CUDA kernels."""
    return frozenset(re.findall(r'{"(\w+)_backward", \w+}', _launch()))


@cache
def cores() -> dict[str, int]:
    """The cores of fused attentions that have CUDA kernels, and how many inputs each has."""
    return {name: int(inputs) for name, inputs in re.findall(r'{"(\w+)", {\w+, (\d+), \d+}}', _launch())}


def _launch() -> str:
    return (CSRC / "launch.cu").read_text()


def scratch(name: str, centres: int, widths: Sequence[int]) -> tuple[int, int]:
    """The elements of a core's scratch memory, and how many workers have partial sums in it; all images have
    `centres`."""
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
        case "stand_alone_attention_backward":  # it reduces the workers itself to those that fit
            room = min(4 * math.prod(widths) * centres, SCRATCH[family])
            return widths[-1] * centres + room, WORKERS
        case "patchwise_attention":
            per_centre = hidden
        case "patchwise_attention_backward":
            per_centre, per_worker = 2 * hidden, max(2 * widths[0], *layers)
        case "patchwise_statistics_backward":
            last_gradient = widths[-1] if layers else 0
            per_centre, per_worker = 2 * hidden + last_gradient, max(2 * widths[0], *layers, 0)
    workers = min(max(SCRATCH[family] // max(per_worker, 1), 1), WORKERS)
    return per_centre * centres + per_worker * workers, workers
