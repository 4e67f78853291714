// The clique product δ_i = [φ_jᵀ ψ_l] for all j, l in R(i) (SAN Sec. 3.2), and the gradients of φ and ψ.
//
//     traffic    k² values per position: at 7 × 7, 2401 values are written for 2 · r values that are read.
//     v1         As in Numba: one tap of φ and 8 taps of ψ per thread.
//     v2         Two pieces of the footprint per thread, up to 8 × 8 sums in registers: 16 reads of a frame for 64
//                multiply-adds instead of 9 reads for 8.
//     v3         Pieces of 3, 5 and 7 taps have no unused sums: 72 instructions instead of 103 for 49 multiply-adds.
//     backward   k² values are read for every 8 channels that are written. The other map is read through the tables.
//
// Not measured yet. Prediction for an H200, as in relations_vectors.cu: the product moves 977 MB in 203 µs in float32;
// its instructions take 190 µs. Each gradient keeps the first-level cache busy for 700 µs and needs 1.2 ms of
// instructions, while memory takes 200 µs.

#include "relations.h"

namespace {

// A thread has this many taps of φ and of ψ, unless it has whole pieces. Registers hold their products.
template <typename T>
constexpr int SIDE = sizeof(T) == 8 ? BLOCK / 2 : BLOCK;

// The index-th stretch of N taps. The last stretch of a piece may have fewer taps, or none.
template <int N, bool EXACT>
__device__ Piece stretch(const Lookups& lookups, int index) {
  if constexpr (EXACT) return lookups.pieces[index];
  Piece piece = lookups.pieces[index / (BLOCK / N)];
  const int skipped = index % (BLOCK / N) * N;
  if (skipped < piece.length) {
    piece.tap += skipped * piece.step;
    piece.column += skipped;
  }
  piece.length = max(min(piece.length - skipped, N), 0);
  return piece;
}

// taps[j·k + l] = Σ_c phi[c] at j · psi[c] at l.
template <typename T, bool STAGED, int N, bool EXACT>
__global__ void __launch_bounds__(THREADS, STAGED && sizeof(T) < 8 ? 3 : 2)
    cliques_kernel(const T* __restrict__ phi, const T* __restrict__ psi, T* __restrict__ taps, int stretches,
                   Division division, Lookups lookups, Layout layout) {
  const int channels = division.channels, depth = division.depth, parts = division.parts;
  int64_t block = blockIdx.x;
  const int part = digit(block, parts), tile = digit(block, lookups.tiles());
  const int64_t image = block;
  const int64_t p = int64_t(lookups.oh) * lookups.ow, area = int64_t(lookups.h) * lookups.w;
  const int rows = lookups.rows_of(tile);
  Pack<T, 1>* frames = shared_memory<Pack<T, 1>>();

  int item = part * blockDim.x + threadIdx.x;
  const bool active = item < stretches * stretches * rows * lookups.ow;
  if (!active) item = 0;
  const int t = digit(item, lookups.ow), y = digit(item, rows);
  const Piece right = stretch<N, EXACT>(lookups, digit(item, stretches)), left = stretch<N, EXACT>(lookups, item);
  phi += image * channels * area;
  psi += image * channels * area;

  Real<T> sums[N][N] = {};
  for (int s = 0; s < channels; s += depth) {
    const int count = min(depth, channels - s);
    if constexpr (STAGED) {
      __syncthreads();
      stage<1, 1>(phi + s * area, {count, 1, 0}, tile, lookups, layout, frames);
      stage<1, 1>(psi + s * area, {count, 1, 0}, tile, lookups, layout, frames + depth * layout.frame);
      __syncthreads();
    }
    if (!active) continue;
    for (int d = 0; d < count; ++d) {
      const auto read = [&](const T* map, const Pack<T, 1>* held, const Piece& piece, Real<T>(&values)[N]) {
        const auto read =
            reader<1, 1, STAGED>(held + d * layout.frame, map + (s + d) * area, tile, y, t, lookups, layout);
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] = read(piece, EXACT ? i : max(min(i, piece.length - 1), 0)).at[0];
      };
      Real<T> lefts[N], rights[N];
      read(phi, frames, left, lefts);
      read(psi, frames + depth * layout.frame, right, rights);
#pragma unroll
      for (int j = 0; j < N; ++j)
#pragma unroll
        for (int l = 0; l < N; ++l) sums[j][l] += lefts[j] * rights[l];
    }
  }
  if (!active) return;
  T* to = taps + image * lookups.k * lookups.k * p + (int64_t(tile) * lookups.height + y) * lookups.ow + t;
#pragma unroll
  for (int j = 0; j < N; ++j)
#pragma unroll
    for (int l = 0; l < N; ++l)
      if (EXACT || (j < left.length && l < right.length))
        to[(int64_t(left.tap + j * left.step) * lookups.k + right.tap + l * right.step) * p] = T(sums[j][l]);
}

// map[c] = Σ_j Σ_l taps[j·step_j + l·step_l] · other[c] at l, over all centres that read the position through tap j. A
// block has `height` rows of `depth` channels.
template <typename T>
__global__ void __launch_bounds__(THREADS, 2)
    spread_cliques_kernel(const T* __restrict__ taps, const T* __restrict__ other, T* __restrict__ map, int64_t step_j,
                          int64_t step_l, Division division, Lookups lookups) {
  const int channels = division.channels, depth = division.depth, height = division.height;
  int64_t block = blockIdx.x;
  const int top = digit(block, ceil_div(lookups.h, height)) * height;
  const int first = digit(block, ceil_div(channels, depth)) * depth;
  const int64_t image = block;
  const int64_t p = int64_t(lookups.oh) * lookups.ow, area = int64_t(lookups.h) * lookups.w;
  const int count = min(depth, channels - first), rows = min(height, lookups.h - top);
  Real<T>* sums = shared_memory<Real<T>>();
  taps += image * lookups.k * lookups.k * p;
  other += (image * channels + first) * area;
  map += (image * channels + first) * area;

  for (int item = threadIdx.x; item < rows * lookups.all_columns; item += blockDim.x) {
    int y = item;
    const int u = digit(y, lookups.all_columns);
    const T* channel[BLOCK];  // beyond `count`, the last one is repeated: no load waits for a branch
#pragma unroll
    for (int d = 0; d < BLOCK; ++d) channel[d] = other + min(d, count - 1) * area;
    Real<T> values[BLOCK] = {};
    for_readers(lookups, top + y, u, -1, [&](const Piece& left, int cy, int column) {
      for (int j = 0; j < left.length; ++j) {
        if (!reads(lookups, left, column, j)) continue;
        const int cx = column - j;
        const T* from = taps + (left.tap + j * left.step) * step_j * p + int64_t(cy) * lookups.ow + cx;
        for (int m = 0; m < lookups.m; ++m) {
          const Piece right = lookups.pieces[m];
          const int row = lookups.rows[right.whole + cy];
          const T* tap = from + right.tap * step_l * p;
          for (int l = 0; l < right.length; ++l, tap += right.step * step_l * p) {
            const int column = lookups.columns[right.column + l + cx];
            if (min(row, column) < 0) continue;
            const Real<T> value = *tap;
            const int64_t there = int64_t(row) * lookups.w + column;
#pragma unroll
            for (int d = 0; d < BLOCK; ++d) values[d] += value * Real<T>(channel[d][there]);
          }
        }
      }
    });
#pragma unroll
    for (int d = 0; d < BLOCK; ++d)
      if (d < count) sums[(d * rows + y) * lookups.all_columns + u] = values[d];
  }
  __syncthreads();
  for (int item = threadIdx.x; item < count * rows * lookups.w; item += blockDim.x) {
    int rest = item;
    const int x = digit(rest, lookups.w), y = digit(rest, rows), d = rest;
    map[d * area + int64_t(top + y) * lookups.w + x] =
        T(folded(sums + (d * rows + y) * lookups.all_columns, x, lookups));
  }
}

}  // namespace

void cliques(const Array& phi, const Array& psi, const Array& taps, const Lookups& lookups) {
  const int64_t images = psi.sizes[0];
  const int channels = static_cast<int>(psi.sizes[1]);
  with_type(psi.type, [&]<typename T>() {
    with_frames<T, 1, 1>(lookups, 1, 2, [&]<int, int, bool STAGED>(Layout layout, int fitting) {
      const int depth = STAGED ? std::min({channels, BLOCK, fitting}) : channels;
      with_run<STAGED, SIDE<T>>(lookups.run, [&]<int N, bool EXACT>() {
        const int stretches = EXACT ? lookups.m : lookups.m * (BLOCK / N);
        const int parts = ceil_div(int64_t(stretches) * stretches * lookups.height * lookups.ow, THREADS);
        start(cliques_kernel<T, STAGED, N, EXACT>, images * lookups.tiles() * parts, THREADS,
              2 * depth * layout.frame * sizeof(Pack<T, 1>), lookups.stream, phi.as<const T>(), psi.as<const T>(),
              taps.as<T>(), stretches, Division{.channels = channels, .depth = depth, .parts = parts}, lookups, layout);
      });
    });
  });
}

void spread_cliques(const Array& taps, int64_t step_j, int64_t step_l, const Array& other, const Array& map,
                    const Lookups& lookups) {
  const int64_t images = map.sizes[0];
  const int channels = static_cast<int>(map.sizes[1]);
  with_type(map.type, [&]<typename T>() {
    const int depth = std::min({channels, BLOCK, rows_that_fit<T>(lookups)});
    const int height =
        std::clamp(ceil_div(THREADS, lookups.all_columns), 1, std::min(lookups.h, rows_that_fit<T>(lookups) / depth));
    start(spread_cliques_kernel<T>, images * ceil_div(channels, depth) * ceil_div(lookups.h, height), THREADS,
          depth * height * lookups.all_columns * sizeof(Real<T>), lookups.stream, taps.as<const T>(),
          other.as<const T>(), map.as<T>(), step_j, step_l,
          Division{.channels = channels, .depth = depth, .height = height}, lookups);
  });
}
