"""Workloads: an operator at given sizes, which determine its input tensors. Tests, verify, benchmarks and the sweep use
them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from saprof.operators.axes import shape_of
from saprof.operators.declaration import Operator
from saprof.operators.footprint import BOUNDARIES, Footprint

if TYPE_CHECKING:
    from torch import Tensor

STAGES = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))
"""Channels and map side of SAN's five stages at 224 × 224 (SAN Table 1)."""

REDUCTIONS = {"r": 16, "v": 4, "g": 32}
"""C divided by r, v and g in the paper's networks: r₁ = 16, r₂ = 4 and r₂ · share = 4 · 8 (SAN Sec. 5.1)."""


@dataclass(frozen=True)
class Workload:
    """An operator, its sizes and its footprint. `tensors()` creates its inputs."""

    operator: Operator
    footprint: Footprint
    n: int = 1
    r: int = 3
    v: int = 4
    g: int = 2
    h: int = 5
    w: int = 5
    dtype: str = "float32"
    seed: int = field(default=0, compare=False)

    @classmethod
    def stage(cls, operator: Operator, footprint: Footprint, channels: int, size: int, batch: int = 1) -> Workload:
        """The operator as it runs in SAN, on a size × size map with C = `channels`. ValueError if C cannot be
        reduced."""
        if channels % max(REDUCTIONS.values()):
            reduced = ", ".join(f"{axis} = C/{by}" for axis, by in REDUCTIONS.items())
            raise ValueError(f"channels is {channels}; expected a multiple of {max(REDUCTIONS.values())}: {reduced}")
        r, v, g = (channels // REDUCTIONS[axis] for axis in "rvg")
        return cls(operator, footprint, n=batch, r=r, v=v, g=operator.heads or g, h=size, w=size)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of every named axis of the operator."""
        oh, ow = self.footprint.output_size(self.h, self.w)
        derived = {"k": self.footprint.taps, "p": oh * ow, "oh": oh, "ow": ow}
        sizes = {axis: getattr(self, axis) for axis in "nrvghw"} | derived
        return sizes | {axis: shape_of(as_, sizes)[0] for axis, as_ in self.operator.implied.items()}

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    def __str__(self) -> str:
        used = {axis for _, axes in self.operator.inputs for axis in axes.split()}
        widths = "-".join(f"{axis}{getattr(self, axis)}" for axis in "nrvg" if axis in used)
        taps = str(self.footprint).replace(" ", ",")
        return f"{self.operator.name}-{widths}-{self.h}x{self.w}-{taps}-{self.dtype}"

    def tensors(self, device: str = "cpu") -> list[Tensor]:
        """Random normal inputs, equal on every device and, up to rounding, in every dtype.

        The weights of a linear layer are scaled so that its outputs are as large as its inputs; queries are scaled so
        that several terms of a softmax matter.
        """
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        dtype = getattr(torch, self.dtype)
        inputs = []
        for shape, (name, _) in zip(self.operator.input_shapes(self.sizes), self.operator.inputs, strict=True):
            x = torch.randn(shape, generator=generator)
            summed = {"weight": -1, "query": 1}.get(name.partition("_")[0])
            inputs.append((x if summed is None else x / shape[summed] ** 0.5).to(device, dtype))
        return inputs


ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes per element of each dtype."""


def tiny(operator: Operator) -> Iterator[Workload]:
    """One small workload per boundary, as a first check of an operator."""
    for boundary in BOUNDARIES:
        yield Workload(operator, Footprint.square(3, boundary=boundary), n=2)


def edge(operator: Operator) -> Iterator[Workload]:
    """Cases that often fail, with every boundary: even, dilated and irregular footprints, a stride, a tap outside the
    map, a map smaller than the footprint, a map of one position, a single channel per group, more channels and wider
    rows than a kernel computes at once, an empty batch; and one tap, where the terms of a softmax's gradient cancel."""
    footprints = [
        Footprint.square(1),
        Footprint.square(4),
        Footprint.square(3, dilation=2),
        Footprint.square(3, stride=2),
        Footprint.square(2, dilation=3, stride=3),
        Footprint.rectangle(1, 5),
        Footprint.cross(5),
        Footprint.disk(5, stride=2),
        Footprint.from_offsets([(2, 1), (0, 0), (-3, 4), (0, -1)]),
        Footprint.from_offsets([(7, -5)]),
    ]
    yield from tiny(operator)
    for boundary in BOUNDARIES:
        for footprint in footprints:
            yield Workload(operator, footprint.with_(boundary=boundary), h=6, w=4)
        yield Workload(operator, Footprint.square(7, boundary=boundary), h=2, w=3)
        yield Workload(operator, Footprint.square(5, boundary=boundary), h=1, w=1)
        yield Workload(operator, Footprint.square(3, boundary=boundary), r=1, v=3, g=3, h=3, w=7)
        yield Workload(operator, Footprint.square(3, boundary=boundary), r=9, v=18, h=3, w=19)
        yield Workload(operator, Footprint.square(3, boundary=boundary), n=0)
    yield Workload(operator, Footprint.square(1), v=32, g=4)


def stages(operator: Operator, batch: int = 1) -> Iterator[Workload]:
    """The operator at SAN10's five stages, with 3 × 3 taps in the first and 7 × 7 in the others."""
    for index, (channels, size) in enumerate(STAGES):
        yield Workload.stage(operator, Footprint.square(7 if index else 3), channels, size, batch)
