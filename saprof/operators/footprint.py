"""The footprint R(i) of a local operator: which positions j a centre i attends to (SAN Sec. 3.1, 3.4).

All index arithmetic of the project's Python code is here. This module imports torch only when a table is requested. All
tables are made on the CPU, whatever torch's default device is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from math import isqrt
from operator import index
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

BOUNDARIES = ("reflect", "zero", "replicate", "circular", "exclude")
"""The value of a tap outside the map.

`reflect` mirrors without repeating the edge, as often as the map needs (`numpy.pad` does the same); `replicate`
repeats the edge; `circular` wraps; `zero` reads 0; `exclude` also reads 0 and is skipped by the softmax.
"""


LARGEST = 1024
"""The largest side of a shape whose taps are listed."""
FARTHEST = 10**18
"""The largest offset of a tap, such that all coordinates are 64-bit integers."""


class Frame(NamedTuple):
    """A map continued by the boundary, tile by tile, so that taps are shifts: lookups for kernels.

    Row q of tile t is row rows[t, q] of the map, column u its column columns[u]; −1 is outside. Tap j of the centre in
    row y, column x of a tile is element taps[j] + y · len(columns) + x of the tile's frame.
    """

    rows: Int[Tensor, "t q"]
    columns: Int[Tensor, " u"]
    taps: Int[Tensor, " k"]


@dataclass(frozen=True, repr=False)
class Footprint:
    """Offsets (dy, dx) of the taps around a centre, in tap order, with a stride and a boundary.

    Centres sit at multiples of `stride`, so a map of h rows yields ⌈h / stride⌉. An even size has one more tap after
    the centre than before it.
    """

    offsets: tuple[tuple[int, int], ...]
    stride: int = 1
    boundary: str = "reflect"
    label: str = field(init=False, compare=False)
    """The taps as `parse` reads them."""
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_offsets(self.offsets)
        set_positive(self, "stride")
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"unknown boundary {self.boundary!r}; expected one of {', '.join(BOUNDARIES)}")
        self._called("offsets:" + ";".join(f"{dy},{dx}" for dy, dx in self.offsets))

    def _called(self, label: str) -> Footprint:
        """The same footprint with the shortest label of its taps."""
        stride = "" if self.stride == 1 else f" stride={self.stride}"
        boundary = "" if self.boundary == "reflect" else f" boundary={self.boundary}"
        object.__setattr__(self, "label", label)
        # computed here, since torch.compile may treat the stride as a variable, which it cannot print
        object.__setattr__(self, "_text", label + stride + boundary)
        return self

    @classmethod
    def square(cls, size: int, dilation: int = 1, *, stride: int = 1, boundary: str = "reflect") -> Footprint:
        """size × size taps, `dilation` apart."""
        size, dilation = positive("footprint size", size), positive("dilation", dilation)
        axis = _axis(size, dilation)
        label = f"square:{size}" if dilation == 1 else f"dilated:{size}x{dilation}"
        return cls(tuple((dy, dx) for dy in axis for dx in axis), stride, boundary)._called(label)

    @classmethod
    def rectangle(cls, height: int, width: int, *, stride: int = 1, boundary: str = "reflect") -> Footprint:
        """height × width taps."""
        height, width = positive("footprint size", height), positive("footprint size", width)
        offsets = tuple((dy, dx) for dy in _axis(height) for dx in _axis(width))
        return cls(offsets, stride, boundary)._called(f"rectangle:{height}x{width}")

    @classmethod
    def cross(cls, size: int, *, stride: int = 1, boundary: str = "reflect") -> Footprint:
        """The 2·size − 1 taps of a size × size square that share the centre's row or column."""
        size = positive("footprint size", size)
        square = cls.square(size).offsets
        return cls(tuple(o for o in square if 0 in o), stride, boundary)._called(f"cross:{size}")

    @classmethod
    def disk(cls, size: int, *, stride: int = 1, boundary: str = "reflect") -> Footprint:
        """The taps of a size × size square within the circle that passes through the ends of its middle row."""
        size = positive("footprint size", size)
        middle = 1 - size % 2  # twice the offset of the circle's centre, which is between two taps if the size is even
        radius2 = (size - 1) ** 2 + middle
        square = cls.square(size).offsets
        inside = tuple((dy, dx) for dy, dx in square if (2 * dy - middle) ** 2 + (2 * dx - middle) ** 2 <= radius2)
        return cls(inside, stride, boundary)._called(f"disk:{size}")

    @classmethod
    def random(
        cls, taps: int, seed: int, size: int | None = None, *, stride: int = 1, boundary: str = "reflect"
    ) -> Footprint:
        """The centre and other taps of a size × size square, drawn without replacement and listed row by row.

        Without a size, the taps are drawn from the smallest odd square with at least twice as many positions. The draw
        is the same on every platform.
        """
        taps = positive("number of taps", taps)
        seed = whole("seed", seed, 0, "an integer, 0 or more")
        usual = _ceil_sqrt(2 * taps) | 1
        size = usual if size is None else positive("footprint size", size)
        square = cls.square(size).offsets
        if len(square) < taps:
            raise ValueError(f"footprint size is {size}, for {taps} taps; expected at least {_ceil_sqrt(taps)}")
        draw = Random(seed)  # Python guarantees the same sequence in later versions only for `random`
        rank = {offset: draw.random() for offset in square} | {(0, 0): -1.0}
        chosen = sorted(sorted(square, key=rank.__getitem__)[:taps])
        of_size = "" if size == usual else f"@size{size}"
        return cls(tuple(chosen), stride, boundary)._called(f"random:{taps}@seed{seed}{of_size}")

    @classmethod
    def from_offsets(
        cls, offsets: Iterable[tuple[int, int]], *, stride: int = 1, boundary: str = "reflect"
    ) -> Footprint:
        """A footprint of any distinct taps. Their order is that of the tap axis k."""
        return cls(tuple(_pair(offset) for offset in offsets), stride, boundary)

    @classmethod
    def parse(cls, text: str | int) -> Footprint:
        """Read `7`, `square:7`, `dilated:5x2` (size x dilation), `rectangle:3x5`, `cross:13`, `disk:9`,
        `random:49@seed1`, `random:49@seed1@size13` or `offsets:0,0;0,1`, each optionally followed by `stride=2` and
        `boundary=zero`: what `str(footprint)` writes."""
        return _parse(str(text))

    @classmethod
    def of(cls, footprint: Footprint | int | str, boundary: str = "reflect") -> Footprint:
        """The footprint that a Footprint, a size or text stands for; `boundary` applies to a size. ValueError for
        anything else."""
        if isinstance(footprint, Footprint):
            return footprint
        if isinstance(footprint, str):
            return cls.parse(footprint)
        if isinstance(footprint, SupportsIndex):
            return cls.square(footprint, boundary=boundary)
        raise ValueError(
            f"footprint is {footprint!r}; expected a Footprint, a size such as 7, or text such as 'disk:9'"
        )

    def __hash__(self) -> int:
        if "_hash" not in self.__dict__:  # lookups are kept by footprint, and the offsets are many
            object.__setattr__(self, "_hash", hash((self.offsets, self.stride, BOUNDARIES.index(self.boundary))))
        return self.__dict__["_hash"]

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Footprint.parse({self._text!r})"

    @property
    def taps(self) -> int:
        """k, the number of taps."""
        return len(self.offsets)

    @property
    def drops_taps(self) -> bool:
        """Whether a tap outside the map reads no position, rather than another position of the map."""
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

    def with_(self, *, stride: int | None = None, boundary: str | None = None) -> Footprint:
        """The same taps with another stride or boundary."""
        stride = self.stride if stride is None else stride
        boundary = self.boundary if boundary is None else boundary
        return Footprint(self.offsets, stride, boundary)._called(self.label)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of centres on a height × width map."""
        return -(-height // self.stride), -(-width // self.stride)

    def window(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The rows and columns that the taps of all centres reach, as half-open ranges ((top, bottom), (left,
        right))."""
        (top, bottom), (left, right) = self.reach
        oh, ow = self.output_size(height, width)
        return (top, (oh - 1) * self.stride + bottom + 1), (left, (ow - 1) * self.stride + right + 1)

    def rows(self, height: int) -> Int[Tensor, "k oh"]:
        """Source row of each tap at each row of centres; −1 is outside."""
        return self._table(height, 0)

    def columns(self, width: int) -> Int[Tensor, "k ow"]:
        """Source column of each tap at each column of centres; −1 is outside."""
        return self._table(width, 1)

    def row_readers(self, height: int) -> tuple[Int[Tensor, "k {height}+1"], Int[Tensor, " m"]]:
        """(starts, readers), the inverse of `rows`: the rows of centres whose tap j reads row y of the map are
        readers[starts[j, y] : starts[j, y + 1]], ascending."""
        return readers(self.rows(height), height)

    def column_readers(self, width: int) -> tuple[Int[Tensor, "k {width}+1"], Int[Tensor, " m"]]:
        """(starts, readers), the inverse of `columns`, in the form of `row_readers`."""
        return readers(self.columns(width), width)

    def inside(self, height: int, width: int) -> Bool[Tensor, "k p"]:
        """Whether each tap reads the map; the boundary drops the other taps."""
        return inside(self.rows(height), self.columns(width))

    def pairs(self, height: int, width: int) -> tuple[int, int]:
        """The number of nominal pairs (i, j), which is k · p, and of the pairs whose tap the boundary does not drop."""
        oh, ow = self.output_size(height, width)
        nominal = self.taps * oh * ow
        if not self.drops_taps:
            return nominal, nominal

        def reads(offset: int, size: int) -> int:
            return sum(0 <= centre + offset < size for centre in range(0, size, self.stride))

        return nominal, sum(reads(dy, height) * reads(dx, width) for dy, dx in self.offsets)

    def frame(self, height: int, width: int, tile: int) -> Frame:
        """The lookup tables of a kernel that processes the map in tiles of `tile` rows of centres."""
        import torch

        oh, ow = self.output_size(height, width)
        (rows, row_of), (columns, column_of) = self._line(0, tile), self._line(1, ow)
        starts = torch.arange(-(-oh // tile), device="cpu") * tile * self.stride
        taps = [row_of[dy] * len(columns) + column_of[dx] for dy, dx in self.offsets]
        return Frame(
            rows=source(starts[:, None] + torch.tensor(rows, device="cpu"), height, self.boundary),
            columns=source(torch.tensor(columns, device="cpu"), width, self.boundary),
            taps=torch.tensor(taps, device="cpu"),
        )

    def _line(self, axis: int, count: int) -> tuple[list[int], dict[int, int]]:
        """All coordinates that the taps of `count` centres read along an axis, each once; and for each offset the index
        of the coordinate that the first centre reads. The coordinates of the other centres follow it one by one."""
        coordinates: list[int] = []
        place: dict[int, int] = {}
        offsets = sorted({offset[axis] for offset in self.offsets}, key=lambda o: (o % self.stride, o))
        for offset in offsets:
            reached = range(offset, offset + count * self.stride, self.stride)
            apart = not coordinates or reached.start > coordinates[-1] + self.stride
            if apart or (offset - coordinates[-1]) % self.stride:  # a run of its own
                place[offset] = len(coordinates)
                coordinates += reached
            else:
                place[offset] = len(coordinates) - 1 - (coordinates[-1] - offset) // self.stride
                coordinates += range(coordinates[-1] + self.stride, reached.stop, self.stride)
        return coordinates, place

    def _table(self, size: int, axis: int) -> Int[Tensor, "k centres"]:
        import torch

        centres = torch.arange(0, size, self.stride, device="cpu")
        offsets = torch.tensor([offset[axis] for offset in self.offsets], device="cpu")
        return source(offsets[:, None] + centres, size, self.boundary)


def source(position: Tensor, size: int, boundary: str) -> Tensor:
    """The index on an axis of `size` that a coordinate reads under `boundary`; −1 is outside."""
    match boundary:
        case "reflect":
            period = max(2 * (size - 1), 1)
            along = position % period
            return along.minimum(period - along)  # not abs: Inductor (torch 2.13) cannot bound such an index
        case "replicate":
            return position.clamp(0, size - 1)
        case "circular":
            return position % size
        case _:
            return position.where((position >= 0) & (position < size), -1)


def inside(rows, columns):  # no shapes: layers call it, and torch.compile cannot trace checks of shapes
    """`Footprint.inside`, (k, p), from the tables of rows and columns."""
    return ((rows >= 0)[:, :, None] & (columns >= 0)[:, None, :]).flatten(1)


def readers(table: Int[Tensor, "k centres"], size: int) -> tuple[Int[Tensor, "k {size}+1"], Int[Tensor, " m"]]:
    """The centres that read each element of an axis through each tap. No centre reads positions outside the map."""
    import torch

    taps, centres = (table >= 0).nonzero(as_tuple=True)
    elements = taps * size + table[taps, centres]  # the axes of all taps, concatenated
    readers = centres[elements.argsort(stable=True)]
    ends = elements.bincount(minlength=len(table) * size).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends]).unfold(0, size + 1, size)
    return starts.contiguous(), readers


_SHAPES = {
    "square": ("[0-9]+", Footprint.square),
    "dilated": ("[0-9]+x[0-9]+", Footprint.square),
    "rectangle": ("[0-9]+x[0-9]+", Footprint.rectangle),
    "cross": ("[0-9]+", Footprint.cross),
    "disk": ("[0-9]+", Footprint.disk),
    "random": ("[0-9]+@seed[0-9]+(@size[0-9]+)?", Footprint.random),
    "offsets": (
        "-?[0-9]+,-?[0-9]+(;-?[0-9]+,-?[0-9]+)*",
        lambda *numbers: Footprint.from_offsets(zip(numbers[::2], numbers[1::2], strict=True)),
    ),
}
"""For each kind of footprint, the pattern of its numbers and the function that makes the footprint from them."""


@lru_cache(maxsize=1024)
def _parse(text: str) -> Footprint:
    shape, *options = text.split() or [""]
    kind, _, numbers = (shape if ":" in shape else f"square:{shape}").partition(":")
    if kind not in _SHAPES or not re.fullmatch(_SHAPES[kind][0], numbers):
        raise ValueError(
            f"cannot read footprint {text!r}; expected a size such as 7, or square:7, dilated:5x2, rectangle:3x5, "
            "cross:13, disk:9, random:49@seed1, offsets:0,0;0,1"
        )
    footprint = _SHAPES[kind][1](*map(int, re.findall("-?[0-9]+", numbers)))
    for option in options:
        name, _, value = option.partition("=")
        if name not in ("stride", "boundary"):
            raise ValueError(f"unknown option {option!r} of footprint {text!r}; expected stride=… or boundary=…")
        if name == "boundary":
            footprint = footprint.with_(boundary=value)
        elif re.fullmatch("[0-9]+", value):
            footprint = footprint.with_(stride=int(value))
        else:
            raise ValueError(f"stride of footprint {text!r} is {value!r}; expected a positive integer")
    return footprint


def _axis(size: int, dilation: int = 1) -> range:
    if size > LARGEST:
        raise ValueError(f"footprint size is {size}; expected at most {LARGEST}")
    first = -((size - 1) // 2)
    return range(first * dilation, (first + size) * dilation, dilation)


def _ceil_sqrt(number: int) -> int:
    """⌈√number⌉ of a positive integer."""
    return isqrt(number - 1) + 1


def _step(axis: tuple[int, ...]) -> int | None:
    """The common difference of a sorted axis: 1 for a single value, None if the differences are not equal."""
    steps = {after - before for before, after in pairwise(axis)}
    return None if len(steps) > 1 else next(iter(steps), 1)


def positive(what: str, value: Any) -> int:
    """The value as a Python integer, from any integer type; ValueError unless it is positive."""
    return whole(what, value, 1, "a positive integer")


def whole(what: str, value: Any, least: int, expected: str) -> int:
    """The value as a Python integer, from any integer type; ValueError unless it is `least` or more."""
    try:
        number = value if isinstance(value, int) else index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{what} is {value!r}; expected {expected}")
    return number


def set_positive(instance: object, *names: str) -> None:
    """Replace fields of a frozen dataclass by their values as Python integers; ValueError unless they are positive."""
    for name in names:
        object.__setattr__(instance, name, positive(name, getattr(instance, name)))


def _pair(offset: Iterable[SupportsIndex]) -> tuple[int, int]:
    """(dy, dx) as Python integers, from any integer type."""
    try:
        dy, dx = (o if isinstance(o, bool) else index(o) for o in offset)
    except (TypeError, ValueError):
        raise ValueError(f"footprint offset {offset!r}; expected a pair of integers (dy, dx)") from None
    return dy, dx


def _check_offsets(offsets: tuple[tuple[int, int], ...]) -> None:
    if not offsets:
        raise ValueError("the footprint has no taps; expected at least one (dy, dx)")
    for offset in offsets:
        if len(offset) != 2 or not all(isinstance(o, int) and not isinstance(o, bool) for o in offset):
            raise ValueError(f"footprint offset {offset!r}; expected a pair of integers (dy, dx)")
    if max(max(map(abs, offset)) for offset in offsets) > FARTHEST:
        raise ValueError(
            f"a tap of the footprint is more than {FARTHEST:.0e} rows or columns away; expected nearer ones"
        )
    if len(set(offsets)) < len(offsets):
        twice = next(o for n, o in enumerate(offsets) if o in offsets[:n])
        raise ValueError(f"footprint offset {twice} appears twice; expected distinct taps")
