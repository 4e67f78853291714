// Sums of products. Over the channels at each tap: the pairwise dot product, the star product (SAN Sec. 3.1, 3.2) and
// the gradient of α. Over the taps: the aggregation y_i = Σ_j α_ij β_j (Eq. 2) and the gradient of φ.
//
//     traffic    α has one value per group of channels and tap. It is most of the traffic, and is read or written once.
//                Each of its elements is multiplied by one element of β per channel that shares it; β comes from the
//                frame.
//     v1         As in Numba: β is read from the map after two table lookups per product, 4 bytes at a time.
//     v2         Frames: a thread has V centres of a row and reads each element of the frame once for up to V taps. 28
//                multiply-adds (4 centres, 7 taps) need 10 loads from shared memory; 2.4 instructions per multiply-add.
//     v3         Frames of packs, 4 channels per load: 28 multiply-adds need 2.5 loads; 1.7 instructions per
//                multiply-add.
//
// Not measured yet. Prediction for an H200, as in relations_vectors.cu: the aggregation moves 209 MB in 43 µs in
// float32 and in 22 µs in bfloat16. Its instructions take 18 and 20 µs; shared memory and the first-level cache take 20
// and 18 µs. The gradient of α takes the same. The margin is thus small in bfloat16.

#include "relations.h"

namespace {

// taps[j] = Σ centres · map at j, over the channels c that share c mod g. A thread has a piece of the footprint at V
// centres. Frames hold `depth` channels of a group at a time, in packs of W.
template <typename T, int V, int W, bool STAGED, int N, bool EXACT>
__global__ void __launch_bounds__(THREADS, 4)
    correlate_kernel(const T* __restrict__ centres, const T* __restrict__ map, T* __restrict__ taps, Division division,
                     Lookups lookups, Layout layout) {
  const int channels = division.channels, g = division.g, planes = division.planes, depth = division.depth;
  const int parts = division.parts;
  int64_t block = blockIdx.x;
  const int part = digit(block, parts), tile = digit(block, lookups.tiles());
  const int first = digit(block, ceil_div(g, planes)) * planes;
  const int64_t image = block;
  const int64_t p = int64_t(lookups.oh) * lookups.ow, area = int64_t(lookups.h) * lookups.w;
  const int held = min(planes, g - first), vectors = lookups.ow / V, rows = lookups.rows_of(tile), share = channels / g;
  Pack<T, W>* frames = shared_memory<Pack<T, W>>();

  int item = part * blockDim.x + threadIdx.x;
  const bool active = item < held * lookups.m * rows * vectors;
  if (!active) item = 0;
  const int t = digit(item, vectors), y = digit(item, rows), m = digit(item, lookups.m), plane = item;
  const int64_t position = (int64_t(tile) * lookups.height + y) * lookups.ow + t * V;
  const Piece piece = lookups.pieces[m];
  map += (image * channels + first) * area;
  centres += (image * channels + first + plane) * p + position;

  Real<T> sums[N][V] = {};
  for (int s = 0; s < share; s += depth) {
    const int count = min(depth, share - s);
    if constexpr (STAGED) {
      __syncthreads();
      stage<V, W>(map + int64_t(s) * g * area, {held, count, g}, tile, lookups, layout, frames);
      __syncthreads();
    }
    if (!active) continue;
    for (int d = 0; d < count; d += W) {
      Real<T> centre[W][V] = {};
#pragma unroll
      for (int w = 0; w < W; ++w)
        if (d + w < count) widen(load<V>(centres + int64_t(s + d + w) * g * p), centre[w]);
      const auto read = reader<V, W, STAGED>(frames + (d / W * held + plane) * layout.frame,
                                             map + (int64_t(s + d) * g + plane) * area, tile, y, t, lookups, layout);
      slide<V, N, EXACT>(read, piece, [&](int i, const Pack<T, W>* values) {
#pragma unroll
        for (int w = 0; w < W; ++w)
#pragma unroll
          for (int v = 0; v < V; ++v) sums[i][v] += centre[w][v] * values[(i + v) % V].at[w];
      });
    }
  }
  if (!active) return;
  T* to = taps + ((image * g + first + plane) * lookups.k + piece.tap) * p + position;
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (EXACT || i < piece.length) store(to + i * piece.step * p, rounded<T>(sums[i]));
}

// centres[c] = Σ_j taps[j, c mod g] · map[c] at j. A thread has C of the channels that share taps, at V centres.
template <typename T, int V, int W, bool STAGED, int N, bool EXACT, int C>
__global__ void __launch_bounds__(THREADS, 4)
    aggregate_kernel(const T* __restrict__ taps, const T* __restrict__ map, T* __restrict__ centres, Division division,
                     Lookups lookups, Layout layout) {
  const int channels = division.channels, g = division.g, planes = division.planes, depth = division.depth;
  int64_t block = blockIdx.x;
  const int share = channels / g;
  const int tile = digit(block, lookups.tiles()), s = digit(block, ceil_div(share, depth)) * depth;
  const int first = digit(block, ceil_div(g, planes)) * planes;
  const int64_t image = block;
  const int64_t p = int64_t(lookups.oh) * lookups.ow, area = int64_t(lookups.h) * lookups.w;
  const int held = min(planes, g - first), count = min(depth, share - s);
  const int vectors = lookups.ow / V, rows = lookups.rows_of(tile);
  Pack<T, W>* frames = shared_memory<Pack<T, W>>();
  map += (image * channels + first + int64_t(s) * g) * area;
  centres += (image * channels + first + int64_t(s) * g) * p;
  if constexpr (STAGED) {
    stage<V, W>(map, {held, count, g}, tile, lookups, layout, frames);
    __syncthreads();
  }
  for (int item = threadIdx.x; item < held * rows * vectors; item += blockDim.x) {
    int rest = item;
    const int t = digit(rest, vectors), y = digit(rest, rows), plane = rest;
    const int64_t position = (int64_t(tile) * lookups.height + y) * lookups.ow + t * V;
    const T* from = taps + (image * g + first + plane) * lookups.k * p + position;
    Real<T> sums[C][V] = {};
    for (int m = 0; m < lookups.m; ++m) {
      const Piece piece = lookups.pieces[m];
      Real<T> weights[N][V];
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (EXACT || i < piece.length) widen(load<V>(from + (piece.tap + i * piece.step) * p), weights[i]);
#pragma unroll
      for (int d = 0; d < C; d += W) {
        if (d >= count) break;
        const auto read = reader<V, W, STAGED>(frames + (d / W * held + plane) * layout.frame,
                                               map + (int64_t(d) * g + plane) * area, tile, y, t, lookups, layout);
        slide<V, N, EXACT>(read, piece, [&](int i, const Pack<T, W>* values) {
#pragma unroll
          for (int w = 0; w < W; ++w)
#pragma unroll
            for (int v = 0; v < V; ++v) sums[d + w][v] += weights[i][v] * values[(i + v) % V].at[w];
        });
      }
    }
#pragma unroll
    for (int d = 0; d < C; ++d)
      if (d < count) store(centres + (int64_t(d) * g + plane) * p + position, rounded<T>(sums[d]));
  }
}

template <typename T, int C, int MOST_W>
void start_aggregate(const Array& taps, const Array& map, const Array& centres, const Lookups& lookups) {
  const int64_t images = map.sizes[0];
  const int channels = static_cast<int>(map.sizes[1]), g = static_cast<int>(taps.sizes[1]), share = channels / g;
  const T* from = taps.as<const T>();
  T* to = centres.as<T>();
  const int width = std::min(vector_width<T>(lookups.ow, {from, to}), WIDE<T>);
  with_frames<T, WIDE<T>, MOST_W>(lookups, width, 1, [&]<int V, int W, bool STAGED>(Layout layout, int fitting) {
    const int depth = std::min({share, C, fitting > C ? C : fitting * W}), packs = ceil_div(depth, W);
    const int planes =
        std::clamp(ceil_div(THREADS, lookups.height * (lookups.ow / V)), 1, std::min(g, fitting / packs));
    with_run<STAGED && V == 4, BLOCK>(lookups.run, [&]<int N, bool EXACT>() {
      start(aggregate_kernel<T, V, W, STAGED, N, EXACT, C>,
            images * ceil_div(g, planes) * ceil_div(share, depth) * lookups.tiles(), THREADS,
            planes * packs * layout.frame * sizeof(Pack<T, W>), lookups.stream, from, map.as<const T>(), to,
            Division{.channels = channels, .g = g, .planes = planes, .depth = depth}, lookups, layout);
    });
  });
}

}  // namespace

void correlate(const Array& centres, const Array& map, const Array& taps, const Lookups& lookups) {
  const int64_t images = map.sizes[0];
  const int channels = static_cast<int>(map.sizes[1]), g = static_cast<int>(taps.sizes[1]), share = channels / g;
  with_type(map.type, [&]<typename T>() {
    const T* from = centres.as<const T>();
    T* to = taps.as<T>();
    const int width = std::min(vector_width<T>(lookups.ow, {from, to}), WIDE<T>);
    with_frames<T, WIDE<T>, PACKED<T>>(lookups, width, 1, [&]<int V, int W, bool STAGED>(Layout layout, int fitting) {
      const int items = lookups.m * lookups.height * (lookups.ow / V);
      const int planes = std::clamp(ceil_div(THREADS, items), 1, std::min(g, fitting));
      const int packs = std::min({ceil_div(share, W), BLOCK / W, fitting / planes}), depth = packs * W;
      const int parts = ceil_div(int64_t(planes) * items, THREADS);
      with_run<STAGED && V == 4, BLOCK>(lookups.run, [&]<int N, bool EXACT>() {
        start(correlate_kernel<T, V, W, STAGED, N, EXACT>, images * ceil_div(g, planes) * lookups.tiles() * parts,
              THREADS, planes * packs * layout.frame * sizeof(Pack<T, W>), lookups.stream, from, map.as<const T>(), to,
              Division{.channels = channels, .g = g, .planes = planes, .depth = depth, .parts = parts}, lookups,
              layout);
      });
    });
  });
}

void aggregate(const Array& taps, const Array& map, const Array& centres, const Lookups& lookups) {
  with_type(map.type, [&]<typename T>() {
    if (map.sizes[1] == taps.sizes[1])
      start_aggregate<T, 1, 1>(taps, map, centres, lookups);
    else
      start_aggregate<T, BLOCK, PACKED<T>>(taps, map, centres, lookups);
  });
}
