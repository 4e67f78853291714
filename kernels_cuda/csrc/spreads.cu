// What flows back to a map: from taps, Σ over the centres that read a position.
//
//     traffic    Every value at a tap is read once, by the thread that has the element of the continued map that it read
//                there; the map is written once.
//     backward   No atomics, and the same bits every time: a block has rows of the map. Its threads first go through the
//                continued map, where a tap of neighbouring elements belongs to neighbouring centres; then what a border
//                has folded out is folded back, in shared memory.
//     v1         As in Numba: a thread per element of the map looks up its readers, two tables per tap.
//     v2         The sums of a row and all its copies in one pass: no lookup per tap, only two comparisons; 27
//                instructions per tap of one channel, 11 per multiply-add of 8.
//     v3         A piece of the footprint at a time, all of its loads before the first sum: 15, and 6.
//     v4         Under the pieces of a rectangle, four rows of a column per thread, which share the centres they need:
//                4 instructions and 0.5 loads per multiply-add instead of 6 and 1.3.
//
// Not measured yet. Predicted of an H200, as in vectors.cu: what flows back to ψ from a subtraction moves 322 MB, 67 µs in
// float32, and issues for 48. What flows back to β moves 209 MB, 43 µs in float32 and 22 in bfloat16; its instructions
// take 51 µs, of which about a third are spent on rows that may lie outside.

#include "primitives.h"
#include "readers.h"

namespace {

// The sums of R rows of a column, from `row` of the continued map on, over the centres that read them as what they are:
// each centre is loaded once for all rows. Only where pieces lie under each other, a row further each (`in_rows`).
template <typename T, int C, int R>
__device__ void sum_rows(const T* taps, const T* centres, int64_t step, int count, int row, int u, const Lookups& at,
                         Real<T> (&sums)[R][C]) {
  const int64_t p = int64_t(at.oh) * at.ow, ow = at.ow;
  const int below = at.m / at.in_rows;
  const auto inside = [&](int cy) { return static_cast<unsigned>(cy) < static_cast<unsigned>(at.oh); };
  const auto look = [&](const T* here, bool exists, Real<T>(&values)[C]) {
#pragma unroll
    for (int d = 0; d < C; ++d) {
      values[d] = exists ? Real<T>(*here) : 0;
      if (d + 1 < count) here += step;  // beyond, the last channel again, so that no load waits for a branch
    }
  };
  for (int b = 0; b < at.in_rows; ++b) {
    const Piece piece = at.pieces[b];
    const int64_t down = below > 1 ? at.pieces[at.in_rows + b].tap - piece.tap : 0;
    for (int i = 0; i < piece.length; ++i) {
      const int cx = u - piece.column - i;
      if (static_cast<unsigned>(cx) >= static_cast<unsigned>(at.ow)) continue;
      int cy = row - piece.whole;
      const T* tap = taps + (piece.tap + i * piece.step) * p + cy * ow + cx;
      const T* centre = centres + cy * ow + cx;
      Real<T> window[R][C];
#pragma unroll
      for (int r = 1; r < R; ++r) look(centre + r * ow, inside(cy + r), window[r]);
      for (int m = 0; m < below; m += R)
#pragma unroll
        for (int s = 0; s < R; ++s) {
          if (m + s == below) break;
          look(centre, inside(cy), window[(R - s) % R]);
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const Real<T> weight = inside(cy + r) ? Real<T>(tap[r * ow]) : 0;
#pragma unroll
            for (int d = 0; d < C; ++d) sums[r][d] += weight * window[(R - s + r) % R][d];
          }
          --cy;
          centre -= ow;
          tap += down * p - ow;
        }
    }
  }
}

// map[c] = Σ taps[j, c mod g] · centres[c], or sign · Σ taps[j, c] without centres, of all centres that read it through
// tap j. A block has `height` rows of `planes` groups, and `depth` ≤ C channels of each; a thread has R of the rows.
template <typename T, int C, bool WEIGHTED, int R>
__global__ void __launch_bounds__(THREADS, (R > 1 && C > 1) ? 3 : 4)
    spread_kernel(const T* __restrict__ taps, const T* __restrict__ centres, T* __restrict__ map, int channels, int g,
                  int64_t image_step, int sign, int planes, int depth, int height, Lookups at) {
  int64_t block = blockIdx.x;
  const int share = channels / g;
  const int top = digit(block, ceil_div(at.h, height)) * height, s = digit(block, ceil_div(share, depth)) * depth;
  const int first = digit(block, ceil_div(g, planes)) * planes;
  const int64_t image = block;
  const int64_t p = int64_t(at.oh) * at.ow, area = int64_t(at.h) * at.w, step = int64_t(g) * p;
  const int held = min(planes, g - first), count = min(depth, share - s), rows = min(height, at.h - top);
  Real<T>* sums = shared_memory<Real<T>>();
  map += (image * channels + first + int64_t(s) * g) * area;
  taps += image * image_step + int64_t(first) * at.k * p;
  const int64_t centre = (image * channels + first + int64_t(s) * g) * p;

  if constexpr (R > 1) {
    for (int item = threadIdx.x; item < held * ceil_div(rows, R) * at.all_columns; item += blockDim.x) {
      int rest = item;
      const int u = digit(rest, at.all_columns), y = digit(rest, ceil_div(rows, R)) * R, plane = rest;
      Real<T> values[R][C] = {};
      sum_rows<T, C, R>(taps + plane * at.k * p, centres + centre + plane * p, step, count, top + y + at.shift, u, at,
                        values);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int d = 0; d < C; ++d)
          if (y + r < rows && d < count) sums[((d * held + plane) * rows + y + r) * at.all_columns + u] = values[r][d];
    }
    __syncthreads();
  }
  for (int item = threadIdx.x; item < held * rows * at.all_columns; item += blockDim.x) {
    int rest = item;
    const int u = digit(rest, at.all_columns), y = digit(rest, rows), plane = rest;
    if (R > 1 && at.row_starts[top + y + 1] - at.row_starts[top + y] == 1) continue;
    Real<T> values[C] = {};
    for_readers(at, top + y, u, R > 1 ? top + y + at.shift : -1, [&](const Piece& piece, int row, int column) {
      const int64_t position = int64_t(row) * at.ow + column;
      Real<T> weights[BLOCK];
      const T* tap = taps + (int64_t(plane) * at.k + piece.tap) * p + position;
#pragma unroll
      for (int i = 0; i < BLOCK; ++i, tap += piece.step * p - 1)
        weights[i] = reads(at, piece, column, i) ? Real<T>(*tap) : 0;
      if constexpr (!WEIGHTED) {
#pragma unroll
        for (int i = 0; i < BLOCK; ++i) values[0] += weights[i];
      } else {
        const T* here = centres + centre + plane * p + position;
#pragma unroll
        for (int d = 0; d < C; ++d, here += step) {
          if (d >= count) break;
#pragma unroll
          for (int i = 0; i < BLOCK; ++i)
            if (reads(at, piece, column, i)) values[d] += weights[i] * Real<T>(here[-i]);
        }
      }
    });
#pragma unroll
    for (int d = 0; d < C; ++d)
      if (d < count) {
        Real<T>& sum = sums[((d * held + plane) * rows + y) * at.all_columns + u];
        sum = R > 1 ? sum + values[d] : values[d];
      }
  }
  __syncthreads();
  for (int item = threadIdx.x; item < held * count * rows * at.w; item += blockDim.x) {
    int rest = item;
    const int x = digit(rest, at.w), y = digit(rest, rows), plane = digit(rest, held), d = rest;
    const Real<T> sum = folded(sums + ((d * held + plane) * rows + y) * at.all_columns, x, at);
    map[(int64_t(d) * g + plane) * area + int64_t(top + y) * at.w + x] = T(Real<T>(sign) * sum);
  }
}

template <typename T, int C, bool WEIGHTED, int R>
void start_spread(const Array& taps, int64_t first, const Array& centres, const Array& map, int g, int sign,
                  const Lookups& at) {
  const int64_t images = map.sizes[0], p = int64_t(at.oh) * at.ow;
  const int channels = static_cast<int>(map.sizes[1]), share = channels / g, fitting = rows_that_fit<T>(at);
  const int depth = std::min({share, C, fitting});
  const int wanted = ceil_div(2 * THREADS, at.all_columns) * R;
  const int height = std::clamp(wanted, 1, std::min(at.h, fitting / depth));
  const int items = ceil_div(height, R) * at.all_columns;
  const int planes = std::clamp(ceil_div(THREADS, items), 1, std::min(g, fitting / (depth * height)));
  start(spread_kernel<T, C, WEIGHTED, R>,
        images * ceil_div(g, planes) * ceil_div(share, depth) * ceil_div(at.h, height), THREADS,
        planes * depth * height * at.all_columns * sizeof(Real<T>), at.stream, taps.as<const T>() + first * p,
        centres.as<const T>(), map.as<T>(), channels, g, per_image(taps), sign, planes, depth, height, at);
}

}  // namespace

void scatter(const Array& taps, int64_t first, int sign, const Array& map, const Lookups& at) {
  with_type(map.type, [&]<typename T>() {
    start_spread<T, 1, false, 1>(taps, first, {}, map, static_cast<int>(map.sizes[1]), sign, at);
  });
}

void distribute(const Array& taps, const Array& centres, const Array& map, const Lookups& at) {
  const int g = static_cast<int>(taps.sizes[1]);
  with_type(map.type, [&]<typename T>() {
    constexpr int R = sizeof(T) == 8 ? 2 : 4;
    const auto start = [&]<int C>() {
      if (at.in_rows)
        start_spread<T, C, true, R>(taps, 0, centres, map, g, 1, at);
      else
        start_spread<T, C, true, 1>(taps, 0, centres, map, g, 1, at);
    };
    if (map.sizes[1] == g)
      start.template operator()<1>();
    else
      start.template operator()<BLOCK>();
  });
}
