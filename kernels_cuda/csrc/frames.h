// Frames: tiles of the map, continued beyond its border, in shared memory. The boundary, the stride and the list of
// taps are data (Lookups). The elements that one tap reads for the centres of a row follow each other in the frame.
//
// All arrays are contiguous. A map is (n, c, h, w). `centres` holds the values at i and is (n, c, p). `taps` holds one
// value per tap and is (n, c, k, p). Sums of float16 and bfloat16 are float32 and are rounded once, when they are
// written.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <type_traits>

#include "device.h"
#include "launch.h"

// A thread holds the sums of this many taps, or channels, in registers.
constexpr int BLOCK = 8;

// The dtype of sums.
template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A thread has at most this many centres of a row: more would need too many registers.
template <typename T>
constexpr int WIDE = sizeof(T) == 8 ? 2 : 4;

// One instruction loads the values of this many channels.
template <typename T>
constexpr int PACKED = 16 / sizeof(Real<T>);

// Consecutive elements, up to 16 bytes, that one instruction loads or stores.
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

// Returns number modulo base, and divides the number by the base.
template <typename Integer>
__device__ int digit(Integer& number, int base) {
  const Integer rest = number / base;
  const int digit = static_cast<int>(number - rest * base);
  number = rest;
  return digit;
}

// `length` taps that read consecutive columns of one row: tap + i · step reads column + i. Both are relative to a
// centre in the first row and column. `row` counts rows of a tile's frame, `whole` rows of the continued map.
struct Piece {
  int tap, step, length, row, whole, column;
};

// Where the taps read, and which centres read an element. The tables are in the memory of the GPU. Row q of the
// continued map is row rows[q] of the map, and column u is column columns[u]; −1 is outside and reads 0. A tile has
// `height` rows of centres. Its frame holds the rows of the continued map that are `picks` below the row of its first
// centre. The copies of row y of the map are rows row_copies[row_starts[y] : row_starts[y + 1]] of the continued map.
// Columns work the same way.
struct Lookups {
  const int *rows, *columns, *picks;
  const Piece* pieces;
  const int *row_starts, *row_copies, *column_starts, *column_copies;
  int all_rows, all_columns, picked, m, h, w, height, oh, ow, k;
  // The length of all pieces, or 0 if their lengths differ.
  int run;
  // If the footprint is a rectangle without gaps: the pieces in each of its rows, and the row of the continued map that
  // is row 0 of the map. Otherwise both are 0.
  int in_rows, shift;
  // The shared memory that a block may use.
  int shared_bytes;
  cudaStream_t stream;

  __host__ __device__ int tiles() const { return ceil_div(oh, height); }
  __device__ int rows_of(int tile) const { return min(height, oh - tile * height); }
};

// The number of elements of one image.
inline int64_t per_image(const Array& array) {
  int64_t size = 1;
  for (size_t axis = 1; axis < array.sizes.size(); ++axis) size *= array.sizes[axis];
  return size;
}

// The number of integers that describe a footprint. A core takes further numbers after them.
constexpr size_t LOOKUP_NUMBERS = 8;

inline Lookups lookups_of(const std::vector<Array>& tables, const std::vector<int64_t>& numbers, cudaStream_t stream) {
  if (tables.size() != 8 || numbers.size() != LOOKUP_NUMBERS)
    throw std::invalid_argument("a footprint has 8 tables and 8 numbers; got " + std::to_string(tables.size()) +
                                " and " + std::to_string(numbers.size()));
  const auto ints = [&](int i) { return tables[i].as<const int>(); };
  const auto size = [&](int i) { return static_cast<int>(tables[i].sizes[0]); };
  const auto number = [&](int i) { return static_cast<int>(numbers[i]); };
  Lookups lookups = {};
  lookups.rows = ints(0), lookups.columns = ints(1), lookups.picks = ints(2);
  lookups.pieces = tables[3].as<const Piece>();
  lookups.row_starts = ints(4), lookups.row_copies = ints(5), lookups.column_starts = ints(6),
  lookups.column_copies = ints(7);
  lookups.all_rows = size(0), lookups.all_columns = size(1), lookups.picked = size(2), lookups.m = size(3);
  lookups.h = size(4) - 1, lookups.w = size(6) - 1;
  lookups.height = number(0), lookups.oh = number(1), lookups.ow = number(2), lookups.k = number(3),
  lookups.run = number(4);
  lookups.in_rows = number(5), lookups.shift = number(6), lookups.shared_bytes = number(7), lookups.stream = stream;
  return lookups;
}

// One element of a frame: the values of W channels, which one instruction loads.
template <typename T, int W>
using Pack = Vector<Real<T>, W>;

// The strides of a frame, in packs. Columns u and u + V are neighbours in memory: thread t reads for the centres from t
// · V on, so neighbouring threads read neighbouring banks. Rows and frames are padded, so that threads of neighbouring
// rows and frames read neighbouring banks too: row ≡ vectors in a row of centres, modulo the packs that all banks
// deliver at once.
struct Layout {
  int phase, row, frame;
};

template <typename T, int V, int W>
Layout layout_of(const Lookups& lookups) {
  constexpr int at_once = 128 / sizeof(Pack<T, W>);
  const auto padded = [](int size, int wanted) { return size + ((wanted - size) % at_once + at_once) % at_once; };
  Layout layout;
  layout.phase = ceil_div(lookups.all_columns, V);
  layout.row = padded(V * layout.phase, lookups.ow / V);
  layout.frame = padded(lookups.picked * layout.row, lookups.height * (lookups.ow / V));
  return layout;
}

// How a kernel divides a map of `channels` channels in `g` groups into blocks. A block has `planes` consecutive
// channels or groups, `depth` of the channels of each group, and `height` rows; `parts` blocks or threads share the
// pieces. A field that a kernel does not use is 0.
struct Division {
  int channels = 0, g = 0, planes = 0, depth = 0, height = 0, parts = 0;
};

// The channels in a block's frames: `planes` consecutive channels, and from each of them `depth` channels, `step`
// apart.
struct Channels {
  int planes, depth, step;
};

// Copy the frames of a tile; `map` points to the block's first channel. The frames of all planes for the first W
// channels in depth come first, then those for the next W. Zeros fill up a pack that is not full.
template <int V, int W, typename T>
__device__ void stage(const T* map, Channels held, int tile, const Lookups& lookups, const Layout& layout,
                      Pack<T, W>* frames) {
  int lanes = 32;  // threads that copy a row together
  while (lanes > 4 && lanes / 2 >= lookups.all_columns) lanes /= 2;
  const int rows = held.planes * ceil_div(held.depth, W) * lookups.picked;
  const int64_t area = int64_t(lookups.h) * lookups.w;
  for (int item = threadIdx.x / lanes; item < rows; item += blockDim.x / lanes) {
    int frame = item;
    const int pick = digit(frame, lookups.picked), plane = frame % held.planes, depth = frame / held.planes * W;
    const int q = tile * lookups.height + lookups.picks[pick];
    const int y = q < lookups.all_rows ? lookups.rows[q] : -1;
    const T* source = map + (plane + int64_t(depth) * held.step) * area + int64_t(max(y, 0)) * lookups.w;
    Pack<T, W>* to = frames + frame * layout.frame + pick * layout.row;
    for (int u = threadIdx.x % lanes; u < lookups.all_columns; u += lanes) {
      const int x = lookups.columns[u];
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

// Reads the values of W channels, at the taps of V centres in a row, from a frame in shared memory.
template <typename T, int V, int W>
struct Staged {
  const Pack<T, W>* frame;
  Layout layout;

  __device__ Pack<T, W> operator()(const Piece& piece, int i) const {
    const unsigned column = piece.column + i;
    return frame[piece.row * layout.row + column % V * layout.phase + column / V];
  }
};

// The same if frames do not fit shared memory: reads the map through the tables, one channel and one centre at a time.
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

// A reader for the V centres from column t · V on, in row y of the tile. It reads the frame, or the map of its first
// channel.
template <int V, int W, bool STAGED, typename T>
__device__ auto reader(const Pack<T, W>* frame, const T* map, int tile, int y, int t, const Lookups& lookups,
                       const Layout& layout) {
  if constexpr (STAGED)
    return Staged<T, V, W>{frame + y * layout.row + t, layout};
  else
    return Direct<T>{map, lookups.rows + tile * lookups.height + y, lookups.columns + t, lookups.w};
}

// Calls use(i, values) for each tap i of the piece, at most N taps; centre v reads values[(i + v) % V]. Centre v + 1
// reads at tap i what centre v reads at tap i + 1, so one load per tap is enough for V centres. N = piece.length if
// EXACT.
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

// The width of the widest vector, up to 16 bytes, that divides `size` and to which all these addresses are aligned.
template <typename T>
int vector_width(int64_t size, std::initializer_list<const void*> addresses) {
  int width = 16 / sizeof(T);
  for (const void* address : addresses)
    while (size % width || reinterpret_cast<uintptr_t>(address) % (width * sizeof(T))) width /= 2;
  return width;
}

// The kernels are compiled for these dtypes. A build may list fewer, since each takes long.
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

// Call f.operator()<T>() with the C++ type of the dtype.
template <typename F>
void with_type(Type type, F f) {
  with_one_of<SAPROF_TYPES>(type, f);
}

// Call f.operator()<V>() with V = width, which is at most MOST.
template <int MOST, typename F>
void with_width(int width, F f) {
  if constexpr (MOST > 1)
    if (width < MOST) return with_width<MOST / 2>(width, f);
  f.template operator()<MOST>();
}

// Call f.operator()<V, W, STAGED>(layout, fitting) for V = width centres per thread. If STAGED, frames are packs of W =
// MOST_W channels, and `fitting` frames of each of `maps` maps fit shared memory. If not even one fits, V and W are 1.
template <typename T, int MOST_V, int MOST_W, typename F>
void with_frames(const Lookups& lookups, int width, int maps, F f) {
  bool staged = false;
  with_width<MOST_V>(width, [&]<int V>() {
    const Layout layout = layout_of<T, V, MOST_W>(lookups);
    const int fitting = lookups.shared_bytes / (maps * layout.frame * int(sizeof(Pack<T, MOST_W>)));
    staged = fitting > 0;
    if (staged) f.template operator()<V, MOST_W, true>(layout, fitting);
  });
  if (!staged) f.template operator()<1, 1, false>(Layout{}, INT32_MAX);
}

// Call f.operator()<N, EXACT>(). EXACT: all pieces have N taps; kernels are compiled for the most common lengths if
// KNOW. Otherwise pieces have at most N = MOST taps.
template <bool KNOW, int MOST, typename F>
void with_run(int run, F f) {
  if constexpr (KNOW) {
    if (run == 3) return f.template operator()<3, true>();
    if (run == 5) return f.template operator()<5, true>();
    if (run == 7) return f.template operator()<7, true>();
  }
  f.template operator()<MOST, false>();
}

// Calls use(piece, row, column) for each piece through which centres of that row may read column u of the continued
// map, in any copy of row y of the map except `known`. Tap i of the piece belongs to the centre in column `column` − i,
// if that is a centre (`reads`).
template <typename Use>
__device__ void for_readers(const Lookups& lookups, int y, int u, int known, Use use) {
  for (int copy = lookups.row_starts[y]; copy < lookups.row_starts[y + 1]; ++copy) {
    const int q = lookups.row_copies[copy];
    if (q == known) continue;
    for (int m = 0; m < lookups.m; ++m) {
      const Piece piece = lookups.pieces[m];
      const int row = q - piece.whole, column = u - piece.column;
      if (0 <= row && row < lookups.oh) use(piece, row, column);
    }
  }
}

// Whether tap i of the piece belongs to a centre.
__device__ inline bool reads(const Lookups& lookups, const Piece& piece, int column, int i) {
  return i < piece.length && static_cast<unsigned>(column - i) < static_cast<unsigned>(lookups.ow);
}

// The sum over all columns of the continued map that are copies of column x.
template <typename R>
__device__ R folded(const R* row, int x, const Lookups& lookups) {
  R sum = 0;
  for (int copy = lookups.column_starts[x]; copy < lookups.column_starts[x + 1]; ++copy)
    sum += row[lookups.column_copies[copy]];
  return sum;
}

// How many rows of sums fit shared memory. Throws std::invalid_argument if not even one fits.
template <typename T>
int rows_that_fit(const Lookups& lookups) {
  const int64_t bytes = int64_t(lookups.all_columns) * sizeof(Real<T>);
  if (bytes > lookups.shared_bytes)
    throw std::invalid_argument("a row of the map and its border has " + std::to_string(lookups.all_columns) +
                                " columns; expected at most " + std::to_string(lookups.shared_bytes / sizeof(Real<T>)) +
                                ", which is what fits shared memory");
  return static_cast<int>(lookups.shared_bytes / bytes);
}
