// Who reads an element of the continued map, and the way back from there to the map.

#pragma once

#include "frame.h"

// use(piece, row, column) for every piece of the footprint through which some centre of that row may read column u of the
// continued map in row y of the map, or in a copy of it other than `known`: tap i at the centre `column` − i, if that is
// one.
template <typename Use>
__device__ void for_readers(const Lookups& at, int y, int u, int known, Use use) {
  for (int copy = at.row_starts[y]; copy < at.row_starts[y + 1]; ++copy) {
    const int q = at.row_copies[copy];
    if (q == known) continue;
    for (int m = 0; m < at.m; ++m) {
      const Piece piece = at.pieces[m];
      const int row = q - piece.whole, column = u - piece.column;
      if (0 <= row && row < at.oh) use(piece, row, column);
    }
  }
}

// Does tap i of the piece belong to a centre?
__device__ inline bool reads(const Lookups& at, const Piece& piece, int column, int i) {
  return i < piece.length && static_cast<unsigned>(column - i) < static_cast<unsigned>(at.ow);
}

// What all columns of the continued map that are copies of column x hold together.
template <typename R>
__device__ R folded(const R* row, int x, const Lookups& at) {
  R sum = 0;
  for (int copy = at.column_starts[x]; copy < at.column_starts[x + 1]; ++copy) sum += row[at.column_copies[copy]];
  return sum;
}

// How many rows of sums fit shared memory; std::invalid_argument if none does.
template <typename T>
int rows_that_fit(const Lookups& at) {
  const int64_t bytes = int64_t(at.all_columns) * sizeof(Real<T>);
  if (bytes > at.shared_bytes)
    throw std::invalid_argument("a row of the map and its border has " + std::to_string(at.all_columns) +
                                " columns; expected at most " + std::to_string(at.shared_bytes / sizeof(Real<T>)) +
                                ", which is what fits shared memory");
  return static_cast<int>(at.shared_bytes / bytes);
}
