// The gradient of a map: at each position, the sum over the taps of all centres that read it.
//
//     traffic    Each value at a tap is read once, by the thread that has the element of the continued map that the tap
//                read. The map is written once.
//     backward   No atomics, and the same bits every time. A block has rows of the map. Its threads first sum for each
//                element of the continued map, where the same tap of neighbouring elements belongs to neighbouring
//                centres. Then they add up the copies of each element in shared memory.
//     v1         As in Numba: a thread per element of the map looks up its readers in two tables per tap.
//     v2         The sums of a row and of all its copies in one pass: two comparisons per tap instead of a table
//                lookup; 27 instructions per tap for one channel, 11 per multiply-add for 8 channels.
//     v3         A piece of the footprint at a time, with all of its loads before the first sum: 15 and 6 instructions.
//     v4         For rectangles without gaps, a thread has four rows of a column, which share the centres they need: 4
//                instructions and 0.5 loads per multiply-add instead of 6 and 1.3.
//
// Not measured yet. Prediction for an H200, as in relations_vectors.cu: the gradient of ψ in a subtraction moves 322 MB
// in 67 µs in float32; its instructions take 48 µs. The gradient of β moves 209 MB in 43 µs in float32 and in 22 µs in
// bfloat16. Its instructions take 51 µs, a third of them for rows that may be outside.

#include "relations.h"

namespace {

// The sums of R rows of a column, from `row` of the continued map on, over the centres that read them. Each centre is
// loaded once for all R rows. This needs a rectangle without gaps (`in_rows`), where each row of pieces is one row
// below the last.
template <typename T, int C, int R>
__device__ void sum_rows(const T* taps, const T* centres, int64_t step, int count, int row, int u,
                         const Lookups& lookups, Real<T> (&sums)[R][C]) {
  const int64_t p = int64_t(lookups.oh) * lookups.ow, ow = lookups.ow;
  const int below = lookups.m / lookups.in_rows;
  const auto inside = [&](int cy) { return static_cast<unsigned>(cy) < static_cast<unsigned>(lookups.oh); };
  const auto look = [&](const T* here, bool exists, Real<T>(&values)[C]) {
#pragma unroll
    for (int d = 0; d < C; ++d) {
      values[d] = exists ? Real<T>(*here) : 0;
      if (d + 1 < count) here += step;  // beyond the end, the last channel is repeated: no load waits for a branch
    }
  };
  for (int b = 0; b < lookups.in_rows; ++b) {
    const Piece piece = lookups.pieces[b];
    const int64_t down = below > 1 ? lookups.pieces[lookups.in_rows + b].tap - piece.tap : 0;
    for (int i = 0; i < piece.length; ++i) {
      const int cx = u - piece.column - i;
      if (static_cast<unsigned>(cx) >= static_cast<unsigned>(lookups.ow)) continue;
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

// map[c] = Σ taps[j, c mod g] · centres[c], or sign · Σ taps[j, c] if not WEIGHTED, over all centres that read the
// position through tap j. A block has `height` rows of `planes` groups, and `depth` ≤ C channels of each. A thread has
// R of the rows.
template <typename T, int C, bool WEIGHTED, int R>
__global__ void __launch_bounds__(THREADS, (R > 1 && C > 1) ? 3 : 4)
    spread_kernel(const T* __restrict__ taps, const T* __restrict__ centres, T* __restrict__ map, int64_t image_step,
                  int sign, Division division, Lookups lookups) {
  const int channels = division.channels, g = division.g, planes = division.planes;
  const int depth = division.depth, height = division.height;
  int64_t block = blockIdx.x;
  const int share = channels / g;
  const int top = digit(block, ceil_div(lookups.h, height)) * height, s = digit(block, ceil_div(share, depth)) * depth;
  const int first = digit(block, ceil_div(g, planes)) * planes;
  const int64_t image = block;
  const int64_t p = int64_t(lookups.oh) * lookups.ow, area = int64_t(lookups.h) * lookups.w, step = int64_t(g) * p;
  const int held = min(planes, g - first), count = min(depth, share - s), rows = min(height, lookups.h - top);
  Real<T>* sums = shared_memory<Real<T>>();
  map += (image * channels + first + int64_t(s) * g) * area;
  taps += image * image_step + int64_t(first) * lookups.k * p;
  const int64_t centre = (image * channels + first + int64_t(s) * g) * p;

  if constexpr (R > 1) {
    for (int item = threadIdx.x; item < held * ceil_div(rows, R) * lookups.all_columns; item += blockDim.x) {
      int rest = item;
      const int u = digit(rest, lookups.all_columns), y = digit(rest, ceil_div(rows, R)) * R, plane = rest;
      Real<T> values[R][C] = {};
      sum_rows<T, C, R>(taps + plane * lookups.k * p, centres + centre + plane * p, step, count,
                        top + y + lookups.shift, u, lookups, values);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int d = 0; d < C; ++d)
          if (y + r < rows && d < count)
            sums[((d * held + plane) * rows + y + r) * lookups.all_columns + u] = values[r][d];
    }
    __syncthreads();
  }
  for (int item = threadIdx.x; item < held * rows * lookups.all_columns; item += blockDim.x) {
    int rest = item;
    const int u = digit(rest, lookups.all_columns), y = digit(rest, rows), plane = rest;
    if (R > 1 && lookups.row_starts[top + y + 1] - lookups.row_starts[top + y] == 1) continue;
    Real<T> values[C] = {};
    for_readers(lookups, top + y, u, R > 1 ? top + y + lookups.shift : -1,
                [&](const Piece& piece, int row, int column) {
                  const int64_t position = int64_t(row) * lookups.ow + column;
                  Real<T> weights[BLOCK];
                  const T* tap = taps + (int64_t(plane) * lookups.k + piece.tap) * p + position;
#pragma unroll
                  for (int i = 0; i < BLOCK; ++i, tap += piece.step * p - 1)
                    weights[i] = reads(lookups, piece, column, i) ? Real<T>(*tap) : 0;
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
                        if (reads(lookups, piece, column, i)) values[d] += weights[i] * Real<T>(here[-i]);
                    }
                  }
                });
#pragma unroll
    for (int d = 0; d < C; ++d)
      if (d < count) {
        Real<T>& sum = sums[((d * held + plane) * rows + y) * lookups.all_columns + u];
        sum = R > 1 ? sum + values[d] : values[d];
      }
  }
  __syncthreads();
  for (int item = threadIdx.x; item < held * count * rows * lookups.w; item += blockDim.x) {
    int rest = item;
    const int x = digit(rest, lookups.w), y = digit(rest, rows), plane = digit(rest, held), d = rest;
    const Real<T> sum = folded(sums + ((d * held + plane) * rows + y) * lookups.all_columns, x, lookups);
    map[(int64_t(d) * g + plane) * area + int64_t(top + y) * lookups.w + x] = T(Real<T>(sign) * sum);
  }
}

template <typename T, int C, bool WEIGHTED, int R>
void start_spread(const Array& taps, int64_t first, const Array& centres, const Array& map, int g, int sign,
                  const Lookups& lookups) {
  const int64_t images = map.sizes[0], p = int64_t(lookups.oh) * lookups.ow;
  const int channels = static_cast<int>(map.sizes[1]), share = channels / g, fitting = rows_that_fit<T>(lookups);
  const int depth = std::min({share, C, fitting});
  const int wanted = ceil_div(2 * THREADS, lookups.all_columns) * R;
  const int height = std::clamp(wanted, 1, std::min(lookups.h, fitting / depth));
  const int items = ceil_div(height, R) * lookups.all_columns;
  const int planes = std::clamp(ceil_div(THREADS, items), 1, std::min(g, fitting / (depth * height)));
  start(spread_kernel<T, C, WEIGHTED, R>,
        images * ceil_div(g, planes) * ceil_div(share, depth) * ceil_div(lookups.h, height), THREADS,
        planes * depth * height * lookups.all_columns * sizeof(Real<T>), lookups.stream, taps.as<const T>() + first * p,
        centres.as<const T>(), map.as<T>(), per_image(taps), sign,
        Division{.channels = channels, .g = g, .planes = planes, .depth = depth, .height = height}, lookups);
}

}  // namespace

void scatter(const Array& taps, int64_t first, int sign, const Array& map, const Lookups& lookups) {
  with_type(map.type, [&]<typename T>() {
    start_spread<T, 1, false, 1>(taps, first, {}, map, static_cast<int>(map.sizes[1]), sign, lookups);
  });
}

void distribute(const Array& taps, const Array& centres, const Array& map, const Lookups& lookups) {
  const int g = static_cast<int>(taps.sizes[1]);
  with_type(map.type, [&]<typename T>() {
    constexpr int R = sizeof(T) == 8 ? 2 : 4;
    const auto start = [&]<int C>() {
      if (lookups.in_rows)
        start_spread<T, C, true, R>(taps, 0, centres, map, g, 1, lookups);
      else
        start_spread<T, C, true, 1>(taps, 0, centres, map, g, 1, lookups);
    };
    if (map.sizes[1] == g)
      start.template operator()<1>();
    else
      start.template operator()<BLOCK>();
  });
}
