"""Pairs of a centre and a tap, as columns in shared memory: the pairs of given centres, and the pairs that read a given
position of the map. Twin of kernels_cuda/csrc/pairs.h.

The two files differ in their tables: here they have a row per tap, so two reads give the position that a tap reads, and
no list of taps is kept. The readers of a position come tap by tap.

Functions here contain no barrier and take the thread that calls them (`Block`): Numba's simulator replaces the name
`cuda` in the module of the kernel only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kernels_numba.gpu.launch import device


class Tables(NamedTuple):
    """The tables of `launch.Lookups`, and the width of the map."""

    rows: Any
    columns: Any
    row_starts: Any
    row_readers: Any
    column_starts: Any
    column_readers: Any
    width: int


class Centres(NamedTuple):
    """A tile of `count` centres from `first` on. All images have `total` centres, and each image `per_image`."""

    first: int
    total: int
    per_image: int
    count: int


def tables_of(work: Any, map_: Any) -> Tables:
    return Tables(*(getattr(work, name) for name in Tables._fields[:-1]), map_.shape[3])


@device
def source_of(tables, tap, row, column):
    """The position of the map that the tap of the centre reads: −1 if it is outside."""
    y, x = tables.rows[tap, row], tables.columns[tap, column]
    return y * tables.width + x if min(y, x) >= 0 else -1


@device
def pair_centres(tables, centres, tap, columns, excludes, block):
    """The pairs of the centres with the taps from `tap` on. The pairs of one tap follow each other. If `excludes`, a
    tap outside the map has no pair."""
    pairs, k, ow = block.pairs, tables.rows.shape[0], tables.columns.shape[1]
    for column in range(block.thread, columns, block.threads):
        j = column // centres.count
        index = centres.first + column - j * centres.count
        exists = index < centres.total and tap + j < k
        image = index // centres.per_image
        centre = index - image * centres.per_image
        oy = centre // ow
        source = source_of(tables, tap + j, oy, centre - oy * ow) if exists else -1
        exists = exists and (source >= 0 or not excludes)
        pairs[column] = image if exists else -1
        pairs[columns + column] = centre if exists else 0
        pairs[2 * columns + column] = source
        pairs[3 * columns + column] = tap + j if exists else 0


@device
def first_reader(tables, source, tap):
    """The state before the first pair that reads the position through that tap or a later one: the tap, and the indices
    in row_readers and column_readers."""
    y = source // tables.width
    return tap, tables.row_starts[tap, y] + 0, tables.column_starts[tap, source - y * tables.width] + 0


@device
def next_reader(tables, source, reader, end):
    """The state after the next pair, for the taps up to `end`; and the centre of that pair, −1 if there is none."""
    tap, row, column = reader
    y = source // tables.width
    x = source - y * tables.width
    centre = -1
    while tap < end and centre < 0:
        if row >= tables.row_starts[tap, y + 1]:
            tap += 1
            if tap < end:
                row = tables.row_starts[tap, y] + 0
                column = tables.column_starts[tap, x] + 0
        elif column >= tables.column_starts[tap, x + 1]:
            row += 1
            column = tables.column_starts[tap, x] + 0
        else:
            centre = tables.row_readers[row] * tables.columns.shape[1] + tables.column_readers[column]
            column += 1
    return (tap, row, column), centre


@device
def pair_readers(tables, reader, image, source, positions, columns, block):
    """The next `columns / positions` pairs of each position of the block. Thread i lists those of position i."""
    pairs, thread = block.pairs, block.thread
    if thread < positions:
        for column in range(thread, columns, positions):
            centre = -1
            if image >= 0:
                reader, centre = next_reader(tables, source, reader, tables.rows.shape[0])
            pairs[column] = image if centre >= 0 else -1
            pairs[columns + column] = max(centre, 0)
            pairs[2 * columns + column] = source
            pairs[3 * columns + column] = reader[0] if centre >= 0 else 0
    return reader


@device
def any_image(pairs, positions):
    """Whether any position of the block has a pair: its first column has one then."""
    most = -1
    for i in range(positions):
        most = max(most, pairs[i])
    return most >= 0
