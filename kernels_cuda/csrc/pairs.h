// Pairs of a centre and a tap, as columns of small matrices in shared memory: the pairs of given centres, and the pairs
// that read a given position of the map.

#pragma once

#include "frames.h"

// Where a tap reads the continued map for a centre in the first row and column.
struct Tap {
  int row, column;
};

// A centre of an image, and its row and column. The image is −1 if there is no centre.
struct alignas(16) Place {
  int image, centre, row, column;
};

// A pair of a centre and a tap of an image, and the position of the map that the tap reads: −1 if it is outside. Image,
// centre and source are −1 if there is no pair.
struct alignas(16) Column {
  int image, centre, source, tap;
};

// Allocates arrays one after the other in shared memory. Without memory it only counts the bytes.
struct Room {
  unsigned char* memory = nullptr;
  size_t bytes = 0;

  template <typename T>
  __host__ __device__ T* take(int64_t count) {
    T* array = memory ? reinterpret_cast<T*>(memory + bytes) : nullptr;
    bytes += (count * sizeof(T) + 15) / 16 * 16;
    return array;
  }
};

// List where the taps of the footprint read. All threads of the block take part; a barrier must follow.
__device__ inline void list_taps(const Lookups& lookups, Tap* taps) {
  for (int m = threadIdx.x; m < lookups.m; m += blockDim.x) {
    const Piece piece = lookups.pieces[m];
    for (int i = 0; i < piece.length; ++i) taps[piece.tap + i * piece.step] = {piece.whole, piece.column + i};
  }
}

__device__ inline Place place_of(const Lookups& lookups, int image, int centre) {
  return {image, centre, centre / lookups.ow, centre % lookups.ow};
}

// List `count` centres from `first` on; all images have `total` centres. All threads take part; a barrier must follow.
__device__ inline void list_places(const Lookups& lookups, int64_t first, int64_t total, int count, Place* places) {
  const int64_t p = int64_t(lookups.oh) * lookups.ow;
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    places[i] = first + i < total
                    ? place_of(lookups, static_cast<int>((first + i) / p), static_cast<int>((first + i) % p))
                    : Place{-1, 0, 0, 0};
}

// The position of the map that a tap of the centre reads: −1 if it is outside.
__device__ inline int source_of(const Lookups& lookups, const Tap& tap, const Place& place) {
  const int y = lookups.rows[tap.row + place.row], x = lookups.columns[tap.column + place.column];
  return min(y, x) < 0 ? -1 : y * lookups.w + x;
}

// Calls use(i, part, parts) for each column i below `count`. `parts` threads share a column: a thread has the rows
// part, part + parts, and so on. There are as many parts as give all threads work.
template <typename Use>
__device__ void each_column(int count, Use use) {
  const int parts = max(1, static_cast<int>(blockDim.x) / count);
  for (int item = threadIdx.x; item < count * parts; item += blockDim.x) {
    const int part = item / count;
    use(item - part * count, part, parts);
  }
}

// The pairs of the centres in `places` with the taps from `tap` on. The pairs of one tap follow each other. If
// `excludes`, a tap outside the map has no pair.
__device__ inline void pair_centres(const Lookups& lookups, const Tap* taps, const Place* places, int positions,
                                    int tap, int columns, bool excludes, Column* pairs) {
  for (int column = threadIdx.x; column < columns; column += blockDim.x) {
    const int j = column / positions;
    const Place place = places[column - j * positions];
    Column pair = {-1, -1, -1, 0};
    if (place.image >= 0 && tap + j < lookups.k) {
      const int source = source_of(lookups, taps[tap + j], place);
      if (source >= 0 || !excludes) pair = {place.image, place.centre, source, tap + j};
    }
    pairs[column] = pair;
  }
}

// Iterates over the pairs that read a position of the map: over the copies of its row, the copies of its column, and
// the taps from `begin` to `end`.
struct Readers {
  int y, x, row, column, tap, begin, end;

  __device__ Readers(const Lookups& lookups, int source, int begin, int end) : tap(begin), begin(begin), end(end) {
    y = source / lookups.w, x = source - y * lookups.w;
    row = lookups.row_starts[y], column = lookups.column_starts[x];
  }

  // Writes the centre and tap of the next pair. Returns false if there is none.
  __device__ bool next(const Lookups& lookups, const Tap* taps, Column& pair) {
    while (row < lookups.row_starts[y + 1]) {
      while (column < lookups.column_starts[x + 1]) {
        const int q = lookups.row_copies[row], u = lookups.column_copies[column];
        while (tap < end) {
          const int cy = q - taps[tap].row, cx = u - taps[tap].column;
          ++tap;
          if (static_cast<unsigned>(cy) < static_cast<unsigned>(lookups.oh) &&
              static_cast<unsigned>(cx) < static_cast<unsigned>(lookups.ow)) {
            pair.centre = cy * lookups.ow + cx, pair.tap = tap - 1;
            return true;
          }
        }
        tap = begin;
        ++column;
      }
      column = lookups.column_starts[x];
      ++row;
    }
    return false;
  }
};

// The next `columns / positions` pairs of each position of the block. Thread i lists those of position i.
__device__ inline void pair_readers(const Lookups& lookups, const Tap* taps, Readers& readers, int image, int source,
                                    int positions, int columns, Column* pairs) {
  const int i = threadIdx.x;
  if (i >= positions) return;
  for (int column = i; column < columns; column += positions) {
    Column pair = {-1, -1, -1, 0};
    if (image >= 0 && readers.next(lookups, taps, pair)) pair.image = image, pair.source = source;
    pairs[column] = pair;
  }
}

// Whether any position of the block has a pair: its first column has one then.
__device__ inline bool any_pair(const Column* pairs, int positions) {
  int most = -1;
  for (int i = 0; i < positions; ++i) most = max(most, pairs[i].image);
  return most >= 0;
}
