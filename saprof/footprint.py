"""The footprint R(i) of a local operator: which positions j a centre i attends to (SAN Sec. 3.1, 3.4).

All index arithmetic of the project's Python lives here. Nothing below needs torch until a table is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

BOUNDARIES = ("reflect", "zero", "replicate", "circular", "exclude")
"""What a tap outside the map reads.

`reflect` mirrors without repeating the edge, as often as the map needs (`numpy.pad` does the same); `replicate`
repeats the edge; `circular` wraps; `zero` reads 0; `exclude` also reads 0 and is skipped by the softmax.
"""


@dataclass(frozen=True)
class Footprint:
    """Offsets (dy, dx) of the taps around a centre, in tap order, with a stride and a boundary.

    Centres sit at multiples of `stride`, so a map of h rows yields ⌈h / stride⌉. An even size has one more tap after
    the centre than before it.
    """

    offsets: tuple[tuple[int, int], ...]
    stride: int = 1
    boundary: str = "reflect"
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_offsets(self.offsets)
        _check_positive("stride", self.stride)
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"unknown boundary {self.boundary!r}; expected one of {', '.join(BOUNDARIES)}")
        if not self.label:
            object.__setattr__(self, "label", "offsets:" + ";".join(f"{dy},{dx}" for dy, dx in self.offsets))

    @classmethod
    def square(cls, size: int, dilation: int = 1, *, stride: int = 1, boundary: str = "reflect") -> Footprint:
        """size × size taps, `dilation` apart."""
        axis = _axis(size, dilation)
        label = f"square:{size}" if dilation == 1 else f"dilated:{size}x{dilation}"
        return cls(tuple((dy, dx) for dy in axis for dx in axis), stride, boundary, label)

    @classmethod
    def rectangle(cls, height: int, width: int, *, stride: int = 1, boundary: str = "reflect") -> Footprint:
        """height × width taps."""
        offsets = tuple((dy, dx) for dy in _axis(height) for dx in _axis(width))
        return cls(offsets, stride, boundary, f"rectangle:{height}x{width}")

    @classmethod
    def cross(cls, size: int, *, stride: int = 1, boundary: str = "reflect") -> Footprint:
        """The 2·size − 1 taps of a size × size square that share the centre's row or column."""
        square = cls.square(size).offsets
        return cls(tuple(o for o in square if 0 in o), stride, boundary, f"cross:{size}")

    @classmethod
    def disk(cls, size: int, *, stride: int = 1, boundary: str = "reflect") -> Footprint:
        """The taps of a size × size square within the circle through the ends of its middle row."""
        middle = 1 - size % 2  # twice the offset of the circle's centre: an even size has it between two taps
        radius2 = (size - 1) ** 2 + middle
        square = cls.square(size).offsets
        inside = tuple((dy, dx) for dy, dx in square if (2 * dy - middle) ** 2 + (2 * dx - middle) ** 2 <= radius2)
        return cls(inside, stride, boundary, f"disk:{size}")

    @classmethod
    def from_offsets(
        cls, offsets: Iterable[tuple[int, int]], *, stride: int = 1, boundary: str = "reflect"
    ) -> Footprint:
        """Any list of distinct taps; their order is the order of the tap axis k."""
        return cls(tuple((dy, dx) for dy, dx in offsets), stride, boundary)

    @classmethod
    def parse(cls, text: str | int) -> Footprint:
        """Read `7`, `square:7`, `dilated:5x2` (size x dilation), `rectangle:3x5`, `cross:13`, `disk:9` or
        `offsets:0,0;0,1`, each optionally followed by `stride=2` and `boundary=zero`: what `str(footprint)` writes."""
        return _parse(str(text))

    def __str__(self) -> str:
        stride = "" if self.stride == 1 else f" stride={self.stride}"
        boundary = "" if self.boundary == "reflect" else f" boundary={self.boundary}"
        return self.label + stride + boundary

    @property
    def taps(self) -> int:
        """k, the number of taps."""
        return len(self.offsets)

    @property
    def drops_taps(self) -> bool:
        """Whether a tap outside the map is no position at all, rather than some other position."""
        return self.boundary in ("zero", "exclude")

    @cached_property
    def reach(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Smallest and largest offset per axis: ((top, bottom), (left, right))."""
        (dys, dxs) = zip(*self.offsets, strict=True)
        return (min(dys), max(dys)), (min(dxs), max(dxs))

    @cached_property
    def lattice(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """((rows, columns), (row step, column step)) if the taps are a row-major grid, else None."""
        rows, columns = (tuple(sorted(set(axis))) for axis in zip(*self.offsets, strict=True))
        row_step, column_step = _step(rows), _step(columns)
        grid = tuple((dy, dx) for dy in rows for dx in columns)
        if self.offsets != grid or row_step is None or column_step is None:
            return None
        return (len(rows), len(columns)), (row_step, column_step)

    def with_(self, **changes: int | str) -> Footprint:
        """The same taps with another stride or boundary."""
        return replace(self, **changes)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of centres on a height × width map."""
        return -(-height // self.stride), -(-width // self.stride)

    def rows(self, height: int) -> Int[Tensor, "k oh"]:
        """Source row of each tap at each row of centres; −1 is outside."""
        return self._table(height, 0)

    def columns(self, width: int) -> Int[Tensor, "k ow"]:
        """Source column of each tap at each column of centres; −1 is outside."""
        return self._table(width, 1)

    def inside(self, height: int, width: int) -> Bool[Tensor, "k p"]:
        """Which taps read the map; the others were dropped by the boundary."""
        rows, columns = self.rows(height) >= 0, self.columns(width) >= 0
        return (rows[:, :, None] & columns[:, None, :]).flatten(1)

    def pairs(self, height: int, width: int) -> tuple[int, int]:
        """Nominal pairs (i, j), k · p of them, and those whose tap the boundary does not drop."""
        oh, ow = self.output_size(height, width)
        nominal = self.taps * oh * ow
        if not self.drops_taps:
            return nominal, nominal

        def reads(offset: int, size: int) -> int:
            return sum(0 <= centre + offset < size for centre in range(0, size, self.stride))

        return nominal, sum(reads(dy, height) * reads(dx, width) for dy, dx in self.offsets)

    def _table(self, size: int, axis: int) -> Int[Tensor, "k centres"]:
        import torch

        centres = torch.arange(0, size, self.stride)
        offsets = torch.tensor([offset[axis] for offset in self.offsets])
        return source(offsets[:, None] + centres, size, self.boundary)


def source(position: Tensor, size: int, boundary: str) -> Tensor:
    """Where on an axis of `size` a coordinate reads from under `boundary`; −1 is outside."""
    match boundary:
        case "reflect":
            last = size - 1
            return last - (position % max(2 * last, 1) - last).abs() if last else position * 0
        case "replicate":
            return position.clamp(0, size - 1)
        case "circular":
            return position % size
        case _:
            return position.where((position >= 0) & (position < size), -1)


_SHAPES = {
    "square": (1, Footprint.square),
    "dilated": (2, Footprint.square),
    "rectangle": (2, Footprint.rectangle),
    "cross": (1, Footprint.cross),
    "disk": (1, Footprint.disk),
}


@lru_cache(maxsize=1024)
def _parse(text: str) -> Footprint:
    shape, *options = text.split() or [""]
    kind, _, numbers = shape.rpartition(":")
    kind = kind or "square"
    try:
        if kind == "offsets":
            taps = (pair.split(",") for pair in numbers.split(";"))
            footprint = Footprint.from_offsets((int(dy), int(dx)) for dy, dx in taps)
        else:
            arity, make = _SHAPES[kind]
            sizes = [int(number) for number in numbers.split("x")]
            if len(sizes) != arity or not re.fullmatch(r"[0-9x]+", numbers):
                raise LookupError
            footprint = make(*sizes)
    except (LookupError, ValueError) as error:
        if isinstance(error, ValueError) and "expected" in str(error):
            raise
        raise ValueError(
            f"cannot read footprint {text!r}; expected a size such as 7, or square:7, dilated:5x2, rectangle:3x5, "
            "cross:13, disk:9, offsets:0,0;0,1"
        ) from None
    for option in options:
        name, _, value = option.partition("=")
        if name not in ("stride", "boundary"):
            raise ValueError(f"unknown option {option!r} of footprint {text!r}; expected stride=… or boundary=…")
        if name == "stride" and not value.isdigit():
            raise ValueError(f"stride of footprint {text!r} is {value!r}; expected a positive integer")
        footprint = footprint.with_(**{name: int(value) if name == "stride" else value})
    return footprint


def _axis(size: int, dilation: int = 1) -> range:
    _check_positive("footprint size", size)
    _check_positive("dilation", dilation)
    first = -((size - 1) // 2)
    return range(first * dilation, (first + size) * dilation, dilation)


def _step(axis: tuple[int, ...]) -> int | None:
    """The common difference of a sorted axis, 1 if it is a single value, None if there is none."""
    steps = {after - before for before, after in pairwise(axis)}
    return None if len(steps) > 1 else next(iter(steps), 1)


def _check_positive(what: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what} is {value!r}; expected a positive integer")


def _check_offsets(offsets: tuple[tuple[int, int], ...]) -> None:
    if not offsets:
        raise ValueError("the footprint has no taps; expected at least one (dy, dx)")
    for offset in offsets:
        if len(offset) != 2 or not all(isinstance(o, int) for o in offset):
            raise ValueError(f"footprint offset {offset!r}; expected a pair of integers (dy, dx)")
    if len(set(offsets)) < len(offsets):
        twice = next(o for n, o in enumerate(offsets) if o in offsets[:n])
        raise ValueError(f"footprint offset {twice} appears twice; expected distinct taps")
