"""A footprint's lookups, as the kernels read them: tiles of rows of centres on a CPU, tables per axis on a GPU."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saprof.backends.tables import on_device
from saprof.operators.footprint import Footprint

FRAME_BYTES = 128 << 10
"""The part of its second-level cache that a thread's frames may fill."""


class Tiles(NamedTuple):
    """The fields of `kernels_numba.cpu.frames.Frame` up to its memory."""

    rows: np.ndarray
    columns: np.ndarray
    begin: int
    end: int
    taps: np.ndarray
    order: np.ndarray
    height: int
    width: int


@lru_cache(maxsize=1024)
def tiles_that_fit(footprint: Footprint, h: int, w: int, element_bytes: int, least: int) -> Tiles:
    """Tiles of a map of h × w, at least `least` of them, and enough that a frame fits FRAME_BYTES.

    `element_bytes` is the size of a frame's element: an element per channel that the kernel holds at the same time.
    """
    height = -(-footprint.output_size(h, w)[0] // least)
    frame = footprint.frame(h, w, height)
    while height > 1 and frame.rows.shape[1] * len(frame.columns) * element_bytes > FRAME_BYTES:
        height = -(-height // 2)
        frame = footprint.frame(h, w, height)
    return tiles_of_height(footprint, h, w, height)


@lru_cache(maxsize=1024)
def tiles_of_height(footprint: Footprint, h: int, w: int, height: int) -> Tiles:
    """Tiles of `height` rows of centres of a map of h × w."""
    rows, columns, taps = (x.numpy() for x in footprint.frame(h, w, height))
    order = np.lexsort((taps // len(columns), taps % len(columns)))
    return Tiles(rows, columns, *longest_run(columns), taps, order, height, footprint.output_size(h, w)[1])


def longest_run(columns: np.ndarray) -> tuple[int, int]:
    """The longest run of consecutive columns: the index of the first, and the index behind the last."""
    outside = -2 * np.arange(len(columns)) - 2  # never one more than its neighbour
    steps = np.diff(np.where(columns < 0, outside, columns))
    bounds = np.array([0, *np.flatnonzero(steps != 1) + 1, len(columns)])
    longest = np.diff(bounds).argmax()
    begin, end = int(bounds[longest]), int(bounds[longest + 1])
    return (begin, end) if columns[begin] >= 0 else (begin, begin)


@cache
def tables(footprint: Footprint, h: int, w: int, device: torch.device) -> list[Tensor]:
    """The tables per axis that the kernels in `kernels_numba.gpu` read: `GpuWork` up to its column readers."""
    per_axis = footprint.rows(h), footprint.columns(w), *footprint.row_readers(h), *footprint.column_readers(w)
    return on_device([table.to(torch.int32).contiguous() for table in per_axis], device)
