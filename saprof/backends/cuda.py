"""The CUDA backend: the handwritten kernels of kernels_cuda on torch's tensors, in torch's current stream.

The first call builds the kernels, unless `python -m kernels_cuda.build` has built them. They read tensors of every
dtype without a conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

import kernels_cuda
from kernels_cuda import build
from kernels_cuda.processes import Tell
from saprof.backends import cores, fused, library
from saprof.backends.library import Kernels, register_operator
from saprof.backends.tables import on_device
from saprof.compiling import compiling
from saprof.operators import OPERATORS, Operator, no_kernels
from saprof.operators.attention import Attention
from saprof.operators.footprint import Footprint, readers

SHARED_BYTES = 48 << 10
"""The shared memory that a block of threads may use on any GPU."""
FRAME_BYTES = 6 << 10
"""The part of it that the frame of a channel may use, so that 8 frames fit a block."""
LONGEST = 8
"""A piece has at most this many taps: BLOCK in kernels_cuda/csrc/frames.h."""


def why_not(operator: Operator, dtype: torch.dtype, device: str, footprint: Footprint) -> str | None:
    if device not in LAUNCH:
        return no_kernels(device)
    return (why_no_library() if device == "cuda" else None) or library.why_not(operator)


def kernel(operator: Operator) -> Callable[..., Tensor] | None:
    return fused.kernel("cuda", operator) or _KERNELS.get(operator.name)


def statistics(operator: Attention) -> Callable[..., tuple[Tensor, Tensor]]:
    return fused.statistics("cuda", operator)


def _run(name: str, tensors: Sequence[Tensor | None], footprint: Footprint, sizes: Mapping[str, int]) -> None:
    first = next(x for x in tensors if x is not None)
    tables, numbers = lookups_of(footprint, sizes["h"], sizes["w"], first.device)
    arrays = [first.new_empty(0) if x is None else x for x in tensors]
    LAUNCH[first.device.type](name, arrays, tables, [*numbers, SHARED_BYTES])


_KERNELS = {name: register_operator(Kernels("cuda", _run), OPERATORS[name]) for name in kernels_cuda.operators()}
"""The operators with a kernel of their own, by name."""


def _launch(name: str, arrays: Sequence[Tensor], tables: Sequence[Tensor], numbers: Sequence[int]) -> None:
    build.load()(name, arrays, tables, numbers)


LAUNCH = {"cuda": _launch}
"""The function that starts the kernels, by the type of the device."""


@contextmanager
def _told(what: str, folder: str) -> Iterator[Tell]:
    """Report a build that a call has started."""
    with compiling(what, f"once; kept in {folder}", kernels=0) as progress:
        yield lambda name, finished, of: progress(f"{finished} of {of}") if name else None


build.announce = _told


@cache
def why_no_library() -> str | None:
    """Why there are no kernels for a GPU here; None if there are."""
    return build.why_not() if torch.cuda.is_available() else "torch sees no CUDA device"


def run_core(name: str, tensors: Sequence[Tensor | None], options: cores.Options, footprint: Footprint) -> None:
    """Compute a core of a fused attention, such as `pairwise_attention`; `tensors` holds its inputs, then its outputs.

    None stands for a missing input, or for an output that is not needed.
    """
    map_ = cores.map_of(tensors)
    if not map_.numel():
        for output in tensors[kernels_cuda.cores()[name] :]:
            if output is not None:
                output.zero_()
        return
    tables, numbers = lookups_of(footprint, *map_.shape[2:], map_.device)
    oh, ow = footprint.output_size(*map_.shape[2:])
    facts = [_variant(options), int(footprint.boundary == "exclude")]
    size, workers = kernels_cuda.scratch(name, map_.shape[0] * oh * ow, options.widths)
    dtype = torch.float64 if map_.dtype == torch.float64 else torch.float32
    arrays = [map_.new_empty(0) if x is None else x for x in (*tensors, map_.new_empty(size, dtype=dtype))]
    LAUNCH[map_.device.type](name, arrays, tables, [*numbers, SHARED_BYTES, *facts, workers, *options.widths])


def _variant(options: cores.Options) -> int:
    """The variant of a core that the kernels compute."""
    match options:
        case cores.PairwiseOptions():
            return int(options.rectified)
        case cores.PatchwiseOptions():
            return ("concatenation", "star_product", "clique_product").index(options.relation)
        case _:
            return 0


cores.register_all(Kernels("cuda", run_core))


@cache
def lookups_of(footprint: Footprint, h: int, w: int, device: torch.device) -> tuple[list[Tensor], list[int]]:
    """The tables and numbers of Lookups in kernels_cuda/csrc/frames.h, without the size of shared memory."""
    oh, ow = footprint.output_size(h, w)
    (rows,), columns, taps = footprint.frame(h, w, oh)
    first_rows, first_columns = taps // len(columns), taps % len(columns)
    height, picks = _tile(first_rows, oh, 4 * (len(columns) + 32))
    pieces = _pieces(first_rows.tolist(), first_columns.tolist(), picks.tolist())
    lengths = {length for _, _, length, *_ in pieces}
    copies = *readers(rows[None], h), *readers(columns[None], w)
    tables = [rows, columns, picks, torch.tensor(pieces, device="cpu"), *(x.flatten() for x in copies)]
    run = lengths.pop() if len(lengths) == 1 else 0
    numbers = [height, oh, ow, footprint.taps, run, *_rectangle(footprint, len(pieces))]
    return on_device([table.to(torch.int32) for table in tables], device), numbers


def _rectangle(footprint: Footprint, pieces: int) -> tuple[int, int]:
    """The pieces in each row of a rectangle without gaps around the centre, and its rows above the centre; 0, 0 for
    other footprints."""
    (top, bottom), _ = footprint.reach
    if footprint.stride > 1 or not footprint.lattice or footprint.lattice[1] != (1, 1) or not top <= 0 <= bottom:
        return 0, 0
    return pieces // footprint.lattice[0][0], -top


def _tile(first_rows: Tensor, oh: int, row_bytes: int) -> tuple[int, Tensor]:
    """The rows of centres in a tile, and the rows of the continued map that they read. All tiles have the same size,
    the largest whose frame fits FRAME_BYTES."""
    tiles, height = 1, oh
    while (
        len(picks := (first_rows[:, None] + torch.arange(height, device="cpu")).unique()) * row_bytes > FRAME_BYTES
        and height > 1
    ):
        tiles += 1
        height = -(-oh // tiles)
    return height, picks


def _pieces(first_rows: list[int], first_columns: list[int], picks: list[int]) -> list[tuple[int, ...]]:
    """The fields of each Piece. Taps are sorted by row and column; a piece ends where the next tap is not in the next
    column, or where the step between taps changes. Pieces of more than LONGEST taps are divided evenly."""
    places = sorted((row, column, tap) for tap, (row, column) in enumerate(zip(first_rows, first_columns, strict=True)))
    runs = [[places[0]]]
    for (row, column, tap), place in pairwise(places):
        run = runs[-1]
        step = place[2] - tap
        same = len(run) == 1 or step == tap - run[-2][2]
        if place[:2] == (row, column + 1) and same:
            run.append(place)
        else:
            runs.append([place])
    pieces = []
    for run in runs:
        count = -(-len(run) // LONGEST)
        for n in range(count):
            piece = run[n * len(run) // count : (n + 1) * len(run) // count]
            (row, column, tap), step = piece[0], run[-1][2] - run[-2][2] if len(run) > 1 else 1
            pieces.append((tap, step, len(piece), picks.index(row), row, column))
    return pieces
