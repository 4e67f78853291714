// The clique product δ_i = [φ_jᵀ ψ_l] for all j, l in R(i) (SAN Sec. 3.2), and what flows back to φ and ψ.
//
//     traffic    k² values per position: at 7 × 7, 2401 that are written for 2 · r that are read.
//     v1         As in Numba: one tap of φ and 8 of ψ per thread.
//     v2         Two pieces of the footprint per thread, up to 8 × 8 sums in registers: 16 reads of a frame for 64
//                multiply-adds instead of 9 for 8.
//     v3         Pieces of 3, 5 and 7 taps without idle sums: 72 instructions instead of 103 for 49 multiply-adds.
//     backward   k² values are read for every 8 channels that are written; the other map is looked up.
//
// Not measured yet. Predicted of an H200, as in vectors.cu: the product moves 977 MB, 203 µs in float32, and issues for
// 190 µs. Each gradient takes 700 µs of the first-level cache and 1.2 ms of instructions for what memory has in 200.

#include "primitives.h"
#include "readers.h"

namespace {

// The taps that a thread has of φ, and of ψ, unless it has a whole piece: registers hold their products.
template <typename T>
constexpr int SIDE = sizeof(T) == 8 ? BLOCK / 2 : BLOCK;

// The index-th of all stretches of N taps; at the end of a piece there may be fewer, or none.
template <int N, bool EXACT>
__device__ Piece stretch(const Lookups& at, int index) {
  if constexpr (EXACT) return at.pieces[index];
  Piece piece = at.pieces[index / (BLOCK / N)];
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
    cliques_kernel(const T* __restrict__ phi, const T* __restrict__ psi, T* __restrict__ taps, int channels, int depth,
                   int stretches, int parts, Lookups at, Layout layout) {
  int64_t block = blockIdx.x;
  const int part = digit(block, parts), tile = digit(block, at.tiles());
  const int64_t image = block;
  const int64_t p = int64_t(at.oh) * at.ow, area = int64_t(at.h) * at.w;
  const int rows = at.rows_of(tile);
  Pack<T, 1>* frames = shared_memory<Pack<T, 1>>();

  int item = part * blockDim.x + threadIdx.x;
  const bool active = item < stretches * stretches * rows * at.ow;
  if (!active) item = 0;
  const int t = digit(item, at.ow), y = digit(item, rows);
  const Piece right = stretch<N, EXACT>(at, digit(item, stretches)), left = stretch<N, EXACT>(at, item);
  phi += image * channels * area;
  psi += image * channels * area;

  Real<T> sums[N][N] = {};
  for (int s = 0; s < channels; s += depth) {
    const int count = min(depth, channels - s);
    if constexpr (STAGED) {
      __syncthreads();
      stage<1, 1>(phi + s * area, {count, 1, 0}, tile, at, layout, frames);
      stage<1, 1>(psi + s * area, {count, 1, 0}, tile, at, layout, frames + depth * layout.frame);
      __syncthreads();
    }
    if (!active) continue;
    for (int d = 0; d < count; ++d) {
      const auto read = [&](const T* map, const Pack<T, 1>* held, const Piece& piece, Real<T>(&values)[N]) {
        const auto read = reader<1, 1, STAGED>(held + d * layout.frame, map + (s + d) * area, tile, y, t, at, layout);
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
  T* to = taps + image * at.k * at.k * p + (int64_t(tile) * at.height + y) * at.ow + t;
#pragma unroll
  for (int j = 0; j < N; ++j)
#pragma unroll
    for (int l = 0; l < N; ++l)
      if (EXACT || (j < left.length && l < right.length))
        to[(int64_t(left.tap + j * left.step) * at.k + right.tap + l * right.step) * p] = T(sums[j][l]);
}

// map[c] = Σ_j Σ_l taps[j·step_j + l·step_l] · other[c] at l, of all centres that read it through tap j. A block has
// `height` rows of `depth` channels.
template <typename T>
__global__ void __launch_bounds__(THREADS, 2)
    spread_cliques_kernel(const T* __restrict__ taps, const T* __restrict__ other, T* __restrict__ map, int channels,
                          int64_t step_j, int64_t step_l, int depth, int height, Lookups at) {
  int64_t block = blockIdx.x;
  const int top = digit(block, ceil_div(at.h, height)) * height;
  const int first = digit(block, ceil_div(channels, depth)) * depth;
  const int64_t image = block;
  const int64_t p = int64_t(at.oh) * at.ow, area = int64_t(at.h) * at.w;
  const int count = min(depth, channels - first), rows = min(height, at.h - top);
  Real<T>* sums = shared_memory<Real<T>>();
  taps += image * at.k * at.k * p;
  other += (image * channels + first) * area;
  map += (image * channels + first) * area;

  for (int item = threadIdx.x; item < rows * at.all_columns; item += blockDim.x) {
    int y = item;
    const int u = digit(y, at.all_columns);
    const T* channel[BLOCK];  // beyond `count` the last one again, so that no load waits for a branch
#pragma unroll
    for (int d = 0; d < BLOCK; ++d) channel[d] = other + min(d, count - 1) * area;
    Real<T> values[BLOCK] = {};
    for_readers(at, top + y, u, -1, [&](const Piece& left, int cy, int column) {
      for (int j = 0; j < left.length; ++j) {
        if (!reads(at, left, column, j)) continue;
        const int cx = column - j;
        const T* from = taps + (left.tap + j * left.step) * step_j * p + int64_t(cy) * at.ow + cx;
        for (int m = 0; m < at.m; ++m) {
          const Piece right = at.pieces[m];
          const int row = at.rows[right.whole + cy];
          const T* tap = from + right.tap * step_l * p;
          for (int l = 0; l < right.length; ++l, tap += right.step * step_l * p) {
            const int column = at.columns[right.column + l + cx];
            if (min(row, column) < 0) continue;
            const Real<T> value = *tap;
            const int64_t there = int64_t(row) * at.w + column;
#pragma unroll
            for (int d = 0; d < BLOCK; ++d) values[d] += value * Real<T>(channel[d][there]);
          }
        }
      }
    });
#pragma unroll
    for (int d = 0; d < BLOCK; ++d)
      if (d < count) sums[(d * rows + y) * at.all_columns + u] = values[d];
  }
  __syncthreads();
  for (int item = threadIdx.x; item < count * rows * at.w; item += blockDim.x) {
    int rest = item;
    const int x = digit(rest, at.w), y = digit(rest, rows), d = rest;
    map[d * area + int64_t(top + y) * at.w + x] = T(folded(sums + (d * rows + y) * at.all_columns, x, at));
  }
}

}  // namespace

void cliques(const Array& phi, const Array& psi, const Array& taps, const Lookups& at) {
  const int64_t images = psi.sizes[0];
  const int channels = static_cast<int>(psi.sizes[1]);
  with_type(psi.type, [&]<typename T>() {
    with_frames<T, 1, 1>(at, 1, 2, [&]<int, int, bool STAGED>(Layout layout, int fitting) {
      const int depth = STAGED ? std::min({channels, BLOCK, fitting}) : channels;
      with_run<STAGED, SIDE<T>>(at.run, [&]<int N, bool EXACT>() {
        const int stretches = EXACT ? at.m : at.m * (BLOCK / N);
        const int parts = ceil_div(int64_t(stretches) * stretches * at.height * at.ow, THREADS);
        start(cliques_kernel<T, STAGED, N, EXACT>, images * at.tiles() * parts, THREADS,
              2 * depth * layout.frame * sizeof(Pack<T, 1>), at.stream, phi.as<const T>(), psi.as<const T>(),
              taps.as<T>(), channels, depth, stretches, parts, at, layout);
      });
    });
  });
}

void spread_cliques(const Array& taps, int64_t step_j, int64_t step_l, const Array& other, const Array& map,
                    const Lookups& at) {
  const int64_t images = map.sizes[0];
  const int channels = static_cast<int>(map.sizes[1]);
  with_type(map.type, [&]<typename T>() {
    const int depth = std::min({channels, BLOCK, rows_that_fit<T>(at)});
    const int height = std::clamp(ceil_div(THREADS, at.all_columns), 1, std::min(at.h, rows_that_fit<T>(at) / depth));
    start(spread_cliques_kernel<T>, images * ceil_div(channels, depth) * ceil_div(at.h, height), THREADS,
          depth * height * at.all_columns * sizeof(Real<T>), at.stream, taps.as<const T>(), other.as<const T>(),
          map.as<T>(), channels, step_j, step_l, depth, height, at);
  });
}
