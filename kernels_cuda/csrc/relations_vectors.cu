// Relations with a value per channel and tap: δ_ij = φ_i + ψ_j, φ_i − ψ_j, φ_i ⊙ ψ_j or [φ_i, ψ_j] (SAN Sec. 3.1), and
// the patchwise concatenation (Sec. 3.2); and the gradient of φ.
//
//     traffic    k values are written for each value that is read, so writing determines the time. A map is read once;
//                rows that two tiles share are read twice, mostly from the second-level cache.
//     v1         As in Numba: a thread per position reads each tap from the map after two table lookups. That is 3
//                loads and a store of 4 bytes each per element; a multiprocessor issues 32 of them per clock.
//     v2         Frames in shared memory: 1 to 2 loads, no table lookup, and a store of 16 bytes for 4 or 8 elements.
//
// Not measured yet. Prediction for an H200 (4.8 TB/s; 132 multiprocessors, 4 instructions per clock each, 1.75 GHz), at
// SAN10's second stage, 7 × 7, 32 images: the subtraction moves 328 MB in 68 µs in float32 and in 34 µs in bfloat16. It
// issues 8 and 6 instructions per element, which take 21 and 17 µs.

#include "relations.h"

namespace {

// Fewer threads do not fill a GPU. Each then gets less work, so that there are more of them.
constexpr int64_t FEW_THREADS = 1 << 17;

// The index of a vector of V centres of a channel, and that of its first tap.
template <int V>
struct Position {
  int64_t centre, taps;

  __device__ Position(int64_t item, int channels, int64_t image_step, int64_t k, int64_t p) : centre(item * V) {
    const int64_t map = centre / p, image = map / channels;
    taps = image * image_step + (map - image * channels) * k * p + centre - map * p;
  }
};

// taps[c·k + j] = centres[c].
template <typename T, int V>
__global__ void repeat_kernel(const T* __restrict__ centres, T* __restrict__ taps, int64_t items, int channels,
                              int64_t image_step, int64_t k, int64_t p) {
  const int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= items) return;
  const Position<V> position(item, channels, image_step, k, p);
  const auto centre = load<V>(centres + position.centre);
  for (int64_t j = 0; j < k; ++j) store(taps + position.taps + j * p, centre);
}

// centres[c] = Σ_j taps[c·k + j].
template <typename T, int V>
__global__ void sum_taps_kernel(const T* __restrict__ taps, T* __restrict__ centres, int64_t items, int channels,
                                int64_t image_step, int64_t k, int64_t p) {
  const int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= items) return;
  const Position<V> position(item, channels, image_step, k, p);
  Real<T> sums[V] = {};
#pragma unroll 8
  for (int64_t j = 0; j < k; ++j) {
    const auto values = load<V>(taps + position.taps + j * p);
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] += Real<T>(values.at[v]);
  }
  store(centres + position.centre, rounded<T>(sums));
}

struct Sum {
  template <typename R>
  __device__ R operator()(R centre, R value) const {
    return centre + value;
  }
};

struct Difference {
  template <typename R>
  __device__ R operator()(R centre, R value) const {
    return centre - value;
  }
};

struct Product {
  template <typename R>
  __device__ R operator()(R centre, R value) const {
    return centre * value;
  }
};

struct Value {
  template <typename R>
  __device__ R operator()(R, R value) const {
    return value;
  }
};

// taps[c·k + j] = combination of centres[c] and map[c] at j. A block has a tile of `planes` channels. `parts` threads
// share the pieces of the footprint for each vector of centres.
template <typename T, int V, bool STAGED, typename Combine>
__global__ void __launch_bounds__(THREADS, 4)
    combine_kernel(const T* __restrict__ centres, const T* __restrict__ map, T* __restrict__ taps, int64_t image_step,
                   Division division, Lookups lookups, Layout layout, Combine combine) {
  const int channels = division.channels, planes = division.planes, parts = division.parts;
  int64_t block = blockIdx.x;
  const int tile = digit(block, lookups.tiles());
  const int first = digit(block, ceil_div(channels, planes)) * planes;
  const int64_t image = block;
  const int64_t p = int64_t(lookups.oh) * lookups.ow, area = int64_t(lookups.h) * lookups.w;
  const int held = min(planes, channels - first), vectors = lookups.ow / V, rows = lookups.rows_of(tile);
  Pack<T, 1>* frames = shared_memory<Pack<T, 1>>();
  map += (image * channels + first) * area;
  if constexpr (STAGED) {
    stage<V, 1>(map, {held, 1, 0}, tile, lookups, layout, frames);
    __syncthreads();
  }
  for (int item = threadIdx.x; item < held * parts * rows * vectors; item += blockDim.x) {
    int rest = item;
    const int t = digit(rest, vectors), y = digit(rest, rows), part = digit(rest, parts), plane = rest;
    const int64_t channel = first + plane, position = (int64_t(tile) * lookups.height + y) * lookups.ow + t * V;
    Real<T> centre[V] = {};
    if constexpr (!std::is_same_v<Combine, Value>)
      widen(load<V>(centres + (image * channels + channel) * p + position), centre);
    const auto read =
        reader<V, 1, STAGED>(frames + plane * layout.frame, map + plane * area, tile, y, t, lookups, layout);
    T* to = taps + image * image_step + channel * lookups.k * p + position;
    for (int m = part; m < lookups.m; m += parts) {
      const Piece piece = lookups.pieces[m];
      T* tap = to + piece.tap * p;
      slide<V, BLOCK, false>(read, piece, [&](int i, const Pack<T, 1>* values) {
        Real<T> results[V];
#pragma unroll
        for (int v = 0; v < V; ++v) results[v] = combine(centre[v], values[(i + v) % V].at[0]);
        store(tap, rounded<T>(results));
        tap += piece.step * p;
      });
    }
  }
}

// Call f.operator()<T, V>(centres, taps, items, channels, image_step, p) with the arguments of a kernel that has a
// thread for each vector of centres. The taps begin at channel `first`.
template <typename F>
void for_positions(const Array& centres, const Array& taps, int64_t first, F f) {
  const int64_t channels = centres.sizes[1], p = centres.sizes[2];
  with_type(centres.type, [&]<typename T>() {
    T* narrow = centres.as<T>();
    T* wide = taps.as<T>() + first * p;
    with_width<16 / sizeof(T)>(vector_width<T>(p, {narrow, wide}), [&]<int V>() {
      const int64_t items = centres.sizes[0] * channels * p / V;
      f.template operator()<T, V>(narrow, wide, items, static_cast<int>(channels), per_image(taps), p);
    });
  });
}

template <typename Combine>
void start_combine(const Array& centres, const Array& map, const Array& taps, int64_t first, const Lookups& lookups,
                   Combine combine) {
  const int64_t images = map.sizes[0], p = int64_t(lookups.oh) * lookups.ow;
  const int channels = static_cast<int>(map.sizes[1]);
  with_type(map.type, [&]<typename T>() {
    const T* from = centres.as<const T>();
    T* to = taps.as<T>() + first * p;
    with_frames<T, 16 / sizeof(T), 1>(
        lookups, vector_width<T>(lookups.ow, {from, to}), 1, [&]<int V, int, bool STAGED>(Layout layout, int fitting) {
          const int planes =
              std::clamp(ceil_div(THREADS, lookups.height * (lookups.ow / V)), 1, std::min(channels, fitting));
          const int parts = images * channels * p / V < FEW_THREADS ? lookups.m : 1;
          start(combine_kernel<T, V, STAGED, Combine>, images * ceil_div(channels, planes) * lookups.tiles(), THREADS,
                planes * layout.frame * sizeof(Real<T>), lookups.stream, from, map.as<const T>(), to, per_image(taps),
                Division{.channels = channels, .planes = planes, .parts = parts}, lookups, layout, combine);
        });
  });
}

}  // namespace

void repeat(const Array& centres, const Array& taps, int64_t first, int64_t k, const Lookups& lookups) {
  for_positions(
      centres, taps, first,
      [&]<typename T, int V>(const T* from, T* to, int64_t items, int channels, int64_t image_step, int64_t p) {
        start(repeat_kernel<T, V>, ceil_div(items, THREADS), THREADS, 0, lookups.stream, from, to, items, channels,
              image_step, k, p);
      });
}

void gather(const Array& map, const Array& taps, int64_t first, const Lookups& lookups) {
  start_combine({}, map, taps, first, lookups, Value{});
}

void combine(Combination combination, const Array& centres, const Array& map, const Array& taps,
             const Lookups& lookups) {
  switch (combination) {
    case Combination::sum:
      return start_combine(centres, map, taps, 0, lookups, Sum{});
    case Combination::difference:
      return start_combine(centres, map, taps, 0, lookups, Difference{});
    case Combination::product:
      return start_combine(centres, map, taps, 0, lookups, Product{});
  }
}

void sum_taps(const Array& taps, int64_t first, int64_t k, const Array& centres, const Lookups& lookups) {
  for_positions(
      centres, taps, first,
      [&]<typename T, int V>(T* to, const T* from, int64_t items, int channels, int64_t image_step, int64_t p) {
        start(sum_taps_kernel<T, V>, ceil_div(items, THREADS), THREADS, 0, lookups.stream, from, to, items, channels,
              image_step, k, p);
      });
}
