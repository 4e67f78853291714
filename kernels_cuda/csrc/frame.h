// Frames: a map continued beyond its border, a tile of rows at a time, in shared memory. Boundary, stride and any list
// of taps are data (Lookups), and a tap of the centres of a row is a run of elements of the frame.
//
// Arrays, all contiguous: a map is (n, c, h, w); centres, what is read at i, are (n, c, p); taps, one value per tap,
// are (n, c, k, p). float16 and bfloat16 are summed in float32 and rounded once, when they are written.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <type_traits>

#include "device.h"
#include "operators.h"

// Taps, or channels, whose sums a thread holds in registers.
constexpr int BLOCK = 8;

// The type to sum in.
template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Centres of a row that a thread has at most: more would take too many registers.
template <typename T>
constexpr int WIDE = sizeof(T) == 8 ? 2 : 4;

// Channels whose values one instruction loads.
template <typename T>
constexpr int PACKED = 16 / sizeof(Real<T>);

// What one instruction loads or stores: up to 16 bytes of consecutive elements.
template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  T at[V];
};

template <int V, typename T>
__device__ Vector<T, V> load(const T* from) {
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

template <typename T, int V>
__device__ void store(T* to, const Vector<T, V>& vector) {
  *reinterpret_cast<Vector<T, V>*>(to) = vector;
}

template <typename T, int V, typename R>
__device__ void widen(const Vector<T, V>& vector, R (&values)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = R(vector.at[v]);
}

template <typename T, int V, typename R>
__device__ Vector<T, V> rounded(const R (&values)[V]) {
  Vector<T, V> vector;
#pragma unroll
  for (int v = 0; v < V; ++v) vector.at[v] = T(values[v]);
  return vector;
}

__host__ __device__ inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// The number's last digit in a system of that base, which it loses.
template <typename Integer>
__device__ int digit(Integer& number, int base) {
  const Integer rest = number / base;
  const int digit = static_cast<int>(number - rest * base);
  number = rest;
  return digit;
}

// `length` taps that read consecutive columns of one row: tap + i · step reads column + i. The row is counted in the
// frame of a tile (`row`) and in that of the whole map (`whole`), from a centre in the first row and column.
struct Piece {
  int tap, step, length, row, whole, column;
};

// Where taps read and who reads an element, in the memory of the GPU. Row q of the continued map holds row rows[q] of
// the map, column u its column columns[u]; −1 is outside and reads 0. A tile has `height` rows of centres, and its
// frame those rows of the continued map that are `picks` away from its first centre's. Row y of the map is found in the
// rows row_copies[row_starts[y] : row_starts[y + 1]] of the continued map; so for columns.
struct Lookups {
  const int *rows, *columns, *picks;
  const Piece* pieces;
  const int *row_starts, *row_copies, *column_starts, *column_copies;
  int all_rows, all_columns, picked, m, h, w, height, oh, ow, k;
  // The length of all pieces, or 0 if they differ.
  int run;
  // Of a rectangle without gaps, the pieces in each of its rows, and where row 0 of the map lies in the continued map;
  // otherwise 0.
  int in_rows, shift;
  // What a block may have of shared memory.
  int shared_bytes;
  cudaStream_t stream;

  __host__ __device__ int tiles() const { return ceil_div(oh, height); }
  __device__ int rows_of(int tile) const { return min(height, oh - tile * height); }
};

// Elements of an array that belong to an image.
inline int64_t per_image(const Array& array) {
  int64_t size = 1;
  for (size_t axis = 1; axis < array.sizes.size(); ++axis) size *= array.sizes[axis];
  return size;
}

// Numbers of a footprint; a core is told others behind them.
constexpr size_t LOOKUP_NUMBERS = 8;

inline Lookups lookups_of(const std::vector<Array>& tables, const std::vector<int64_t>& numbers, cudaStream_t stream) {
  if (tables.size() != 8 || numbers.size() != LOOKUP_NUMBERS)
    throw std::invalid_argument("a footprint has 8 tables and 8 numbers; got " + std::to_string(tables.size()) +
                                " and " + std::to_string(numbers.size()));
  const auto ints = [&](int i) { return tables[i].as<const int>(); };
  const auto size = [&](int i) { return static_cast<int>(tables[i].sizes[0]); };
  const auto number = [&](int i) { return static_cast<int>(numbers[i]); };
  Lookups at = {};
  at.rows = ints(0), at.columns = ints(1), at.picks = ints(2);
  at.pieces = tables[3].as<const Piece>();
  at.row_starts = ints(4), at.row_copies = ints(5), at.column_starts = ints(6), at.column_copies = ints(7);
  at.all_rows = size(0), at.all_columns = size(1), at.picked = size(2), at.m = size(3);
  at.h = size(4) - 1, at.w = size(6) - 1;
  at.height = number(0), at.oh = number(1), at.ow = number(2), at.k = number(3), at.run = number(4);
  at.in_rows = number(5), at.shift = number(6), at.shared_bytes = number(7), at.stream = stream;
  return at;
}

// What a frame holds at a place: W channels, so that one instruction loads up to 16 bytes.
template <typename T, int W>
using Pack = Vector<Real<T>, W>;

// Where a frame's packs lie. Columns that differ by V follow each other, so that what neighbouring threads read, each for
// the V centres that it has, lies in neighbouring banks; and so do rows, and frames, one behind the other:
// row ≡ vectors in a row of centres, modulo the packs that the banks deliver at once.
struct Layout {
  int phase, row, frame;
};

template <typename T, int V, int W>
Layout layout_of(const Lookups& at) {
  constexpr int at_once = 128 / sizeof(Pack<T, W>);
  const auto padded = [](int size, int wanted) { return size + ((wanted - size) % at_once + at_once) % at_once; };
  Layout layout;
  layout.phase = ceil_div(at.all_columns, V);
  layout.row = padded(V * layout.phase, at.ow / V);
  layout.frame = padded(at.picked * layout.row, at.height * (at.ow / V));
  return layout;
}

// The channels in a block's frames: `planes` that follow each other, and for each of them `depth`, `step` apart.
struct Channels {
  int planes, depth, step;
};

// Copy the frames of a tile from the map of the block's first channel: those of all planes for the first W in depth, then
// for the next. A pack that is not full is filled up with zeros.
template <int V, int W, typename T>
__device__ void stage(const T* map, Channels held, int tile, const Lookups& at, const Layout& layout,
                      Pack<T, W>* frames) {
  int lanes = 32;  // that copy a row together
  while (lanes > 4 && lanes / 2 >= at.all_columns) lanes /= 2;
  const int rows = held.planes * ceil_div(held.depth, W) * at.picked;
  const int64_t area = int64_t(at.h) * at.w;
  for (int item = threadIdx.x / lanes; item < rows; item += blockDim.x / lanes) {
    int frame = item;
    const int pick = digit(frame, at.picked), plane = frame % held.planes, depth = frame / held.planes * W;
    const int q = tile * at.height + at.picks[pick];
    const int y = q < at.all_rows ? at.rows[q] : -1;
    const T* source = map + (plane + int64_t(depth) * held.step) * area + int64_t(max(y, 0)) * at.w;
    Pack<T, W>* to = frames + frame * layout.frame + pick * layout.row;
    for (int u = threadIdx.x % lanes; u < at.all_columns; u += lanes) {
      const int x = at.columns[u];
      Pack<T, W> pack;
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const Real<T> value = source[depth + w < held.depth ? w * held.step * area + max(x, 0) : 0];
        pack.at[w] = min(y, x) < 0 || depth + w >= held.depth ? Real<T>(0) : value;
      }
      to[u % V * layout.phase + u / V] = pack;
    }
  }
}

// W channels' values at the taps of V centres in a row, read from a frame in shared memory.
template <typename T, int V, int W>
struct Staged {
  const Pack<T, W>* frame;
  Layout layout;

  __device__ Pack<T, W> operator()(const Piece& piece, int i) const {
    const unsigned column = piece.column + i;
    return frame[piece.row * layout.row + column % V * layout.phase + column / V];
  }
};

// The same where frames are too large for shared memory: looked up in the map, one channel and centre at a time.
template <typename T>
struct Direct {
  const T* map;
  const int *rows, *columns;
  int w;

  __device__ Pack<T, 1> operator()(const Piece& piece, int i) const {
    const int y = rows[piece.whole], x = columns[piece.column + i];
    const Real<T> value = map[int64_t(max(y, 0)) * w + max(x, 0)];
    return {min(y, x) < 0 ? Real<T>(0) : value};
  }
};

// What reads channels at the taps of the V centres from column t · V on, in row y of the tile: from their frame, or from
// the first one's map.
template <int V, int W, bool STAGED, typename T>
__device__ auto reader(const Pack<T, W>* frame, const T* map, int tile, int y, int t, const Lookups& at,
                       const Layout& layout) {
  if constexpr (STAGED)
    return Staged<T, V, W>{frame + y * layout.row + t, layout};
  else
    return Direct<T>{map, at.rows + tile * at.height + y, at.columns + t, at.w};
}

// use(i, values) for every tap of the piece, at most N, where values[(i + v) % V] is what centre v reads. Neighbouring
// taps of neighbouring centres are the same elements: one load per tap serves V centres. N = piece.length if EXACT.
template <int V, int N, bool EXACT, typename Reader, typename Use>
__device__ void slide(const Reader& read, const Piece& piece, Use use) {
  decltype(read(piece, 0)) values[V];
#pragma unroll
  for (int v = 0; v < V - 1; ++v) values[v] = read(piece, v);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (EXACT || i < piece.length) {
      values[(i + V - 1) % V] = read(piece, i + V - 1);
      use(i, values);
    }
  }
}

// The widest vector, up to 16 bytes, that divides `size` elements and the addresses of all these arrays.
template <typename T>
int vector_width(int64_t size, std::initializer_list<const void*> addresses) {
  int width = 16 / sizeof(T);
  for (const void* address : addresses)
    while (size % width || reinterpret_cast<uintptr_t>(address) % (width * sizeof(T))) width /= 2;
  return width;
}

// The types that there are kernels of; a build that takes long for each may have fewer.
#ifndef SAPROF_TYPES
#define SAPROF_TYPES double, float, c10::Half, c10::BFloat16
#endif

template <typename T>
constexpr Type TYPE = std::is_same_v<T, double>      ? Type::float64
                      : std::is_same_v<T, float>     ? Type::float32
                      : std::is_same_v<T, c10::Half> ? Type::float16
                                                     : Type::bfloat16;

template <typename... Ts, typename F>
void with_one_of(Type type, F f) {
  if (!((type == TYPE<Ts> && (f.template operator()<Ts>(), true)) || ...))
    throw std::invalid_argument("kernels expect float64, float32, float16 or bfloat16, and to be compiled for it");
}

// Call f.operator()<T>() with the array's type.
template <typename F>
void with_type(Type type, F f) {
  with_one_of<SAPROF_TYPES>(type, f);
}

// Call f.operator()<V>() with the width, at most MOST.
template <int MOST, typename F>
void with_width(int width, F f) {
  if constexpr (MOST > 1)
    if (width < MOST) return with_width<MOST / 2>(width, f);
  f.template operator()<MOST>();
}

// Call f.operator()<V, W, STAGED>(layout, fitting): V centres wide, frames of at most MOST_W channels, with as many of
// each of so many maps as fit shared memory, if any does.
template <typename T, int MOST_V, int MOST_W, typename F>
void with_frames(const Lookups& at, int width, int maps, F f) {
  bool staged = false;
  with_width<MOST_V>(width, [&]<int V>() {
    const Layout layout = layout_of<T, V, MOST_W>(at);
    const int fitting = at.shared_bytes / (maps * layout.frame * int(sizeof(Pack<T, MOST_W>)));
    staged = fitting > 0;
    if (staged) f.template operator()<V, MOST_W, true>(layout, fitting);
  });
  if (!staged) f.template operator()<1, 1, false>(Layout{}, INT32_MAX);
}

// Call f.operator()<N, EXACT>(), where EXACT if N is the length of all pieces: kernels that are asked to KNOW do so for
// the commonest lengths, and otherwise count up to N = MOST.
template <bool KNOW, int MOST, typename F>
void with_run(int run, F f) {
  if constexpr (KNOW) {
    if (run == 3) return f.template operator()<3, true>();
    if (run == 5) return f.template operator()<5, true>();
    if (run == 7) return f.template operator()<7, true>();
  }
  f.template operator()<MOST, false>();
}
