"""Which attention `auto` computes by its parts although one operator could: small ones on a CPU, where the parts are
faster.

The fused operator moves less memory. In return each call takes longer to reach its kernel, and the pairwise backward
computes γ again. The thresholds were measured in interleaved rounds, on SAN10's stages and on the layers of the
studies' small networks, at batch 1 to 32; `tests/benchmarks/test_small_maps.py` repeats some of them. In training, the
parts of the smallest layers took half of the time of the fused operator.
"""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """The size of an attention."""

    images: int
    centres: int
    taps: int
    channels: int
    """The channels of φ."""

    @property
    def pairs(self) -> int:
        """The number of pairs of a centre and a tap."""
        return self.images * self.centres * self.taps

    @property
    def elements(self) -> int:
        """The number of pairs times the channels of φ: about the size of the map that γ reads."""
        return self.pairs * self.channels


class Least(NamedTuple):
    """The least size of an attention that is computed as one operator."""

    elements: int = 0
    pairs: int = 0


LEAST = {
    ("pairwise", True): Least(400_000, pairs=25_000),
    ("patchwise", True): Least(460_000, pairs=15_000),
    ("patchwise", False): Least(40_000),
}
"""The least sizes by family, and by whether a gradient is computed. What is not here is always one operator."""


LEAST_JOINED = 100_000
"""The least number of elements of a block's map for which `auto` joins norms and linear layers in training
(`saprof.layers.recomputed`). On one thread, for maps of up to 75,000 elements at batch 1 and 8, the checks and nodes of
a block took 0.8 to 1.8 ms longer than torch's layers; from 130,000 elements on, joining was between 7 % faster and 4 %
slower, and it saves memory."""


def joins(attention: str, elements: int) -> bool:
    """Whether a block with this setting of `attention` joins norms and linear layers on a map of so many elements."""
    return attention == "fused" or (attention == "auto" and elements >= LEAST_JOINED)


def faster_by_parts(family: str | None, size: Size, device: str, gradient: bool) -> bool:
    """Whether an attention of that family is faster by its parts; `gradient` says whether a gradient is computed."""
    least = LEAST.get((family or "", gradient), Least())
    return device == "cpu" and (size.elements < least.elements or size.pairs < least.pairs)


def why_by_parts(family: str | None, size: Size, gradient: bool) -> str:
    """The reason in words: `100,352 elements with a gradient, fused from 800,000`."""
    least = LEAST.get((family or "", gradient), Least())
    what = "elements" if size.elements < least.elements else "pairs"
    of_gradient = "with a gradient" if gradient else "without a gradient"
    return f"{getattr(size, what):,} {what} {of_gradient}, fused from {getattr(least, what):,}"
