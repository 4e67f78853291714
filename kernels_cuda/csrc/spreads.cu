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
//
// Not measured yet. Predicted of an H200, as in vectors.cu: what flows back to ψ from a subtraction moves 322 MB, 67 µs in
// float32, and issues for 48. What flows back to β moves 209 MB, 43 µs in float32 and 22 in bfloat16, but loads a centre
// for each multiply-add: 66 µs through the first-level cache, 75 of instructions. A thread with several rows of a column
// would load each centre for all of them.

#include "primitives.h"
#include "readers.h"

namespace {

// map[c] = Σ taps[j, c mod g] · centres[c], or sign · Σ taps[j, c] without centres, of all centres that read it through
// tap j. A block has `height` rows of `planes` groups, and `depth` ≤ C channels of each.
template <typename T, int C, bool WEIGHTED>
__global__ void __launch_bounds__(THREADS, 4)
    spread_kernel(const T* __restrict__ taps, const T* __restrict__ centres, T* __restrict__ map, int channels, int g,
                  int64_t image_step, int sign, int planes, int depth, int height, Lookups at) {
  int64_t block = blockIdx.x;
  const int share = channels / g;
  const int top = digit(block, ceil_div(at.h, height)) * height, s = digit(block, ceil_div(share, depth)) * depth;
  const int first = digit(block, ceil_div(g, planes)) * planes;
  const int64_t image = block;
  const int64_t p = int64_t(at.oh) * at.ow, area = int64_t(at.h) * at.w;
  const int held = min(planes, g - first), count = min(depth, share - s), rows = min(height, at.h - top);
  Real<T>* sums = shared_memory<Real<T>>();
  map += (image * channels + first + int64_t(s) * g) * area;

  for (int item = threadIdx.x; item < held * rows * at.all_columns; item += blockDim.x) {
    int rest = item;
    const int u = digit(rest, at.all_columns), y = digit(rest, rows), plane = rest;
    const T* from = taps + image * image_step + int64_t(first + plane) * at.k * p;
    Real<T> values[C] = {};
    for_readers(at, top + y, u, [&](const Piece& piece, int column, int64_t position) {
      Real<T> weights[BLOCK];
      const T* tap = from + piece.tap * p + position;
#pragma unroll
      for (int i = 0; i < BLOCK; ++i, tap += piece.step * p - 1)
        weights[i] = reads(at, piece, column, i) ? Real<T>(*tap) : 0;
      if constexpr (!WEIGHTED) {
#pragma unroll
        for (int i = 0; i < BLOCK; ++i) values[0] += weights[i];
      } else {
        const T* centre = centres + (image * channels + first + plane + int64_t(s) * g) * p + position;
#pragma unroll
        for (int d = 0; d < C; ++d, centre += int64_t(g) * p) {
          if (d >= count) break;
#pragma unroll
          for (int i = 0; i < BLOCK; ++i)
            if (reads(at, piece, column, i)) values[d] += weights[i] * Real<T>(centre[-i]);
        }
      }
    });
#pragma unroll
    for (int d = 0; d < C; ++d)
      if (d < count) sums[((d * held + plane) * rows + y) * at.all_columns + u] = values[d];
  }
  __syncthreads();
  for (int item = threadIdx.x; item < held * count * rows * at.w; item += blockDim.x) {
    int rest = item;
    const int x = digit(rest, at.w), y = digit(rest, rows), plane = digit(rest, held), d = rest;
    const Real<T> sum = folded(sums + ((d * held + plane) * rows + y) * at.all_columns, x, at);
    map[(int64_t(d) * g + plane) * area + int64_t(top + y) * at.w + x] = T(Real<T>(sign) * sum);
  }
}

template <typename T, int C, bool WEIGHTED>
void start_spread(const Array& taps, int64_t first, const Array& centres, const Array& map, int g, int sign,
                  const Lookups& at) {
  const int64_t images = map.sizes[0], p = int64_t(at.oh) * at.ow;
  const int channels = static_cast<int>(map.sizes[1]), share = channels / g;
  const int depth = std::min({share, C, rows_that_fit<T>(at)});
  const int height = std::clamp(ceil_div(2 * THREADS, at.all_columns), 1, std::min(at.h, rows_that_fit<T>(at) / depth));
  const int planes = std::clamp(ceil_div(THREADS, height * at.all_columns), 1,
                                std::min(g, rows_that_fit<T>(at) / (depth * height)));
  start(spread_kernel<T, C, WEIGHTED>,
        images * ceil_div(g, planes) * ceil_div(share, depth) * ceil_div(at.h, height), THREADS,
        planes * depth * height * at.all_columns * sizeof(Real<T>), at.stream,
        static_cast<const T*>(taps.data) + first * p, static_cast<const T*>(centres.data), static_cast<T*>(map.data),
        channels, g, per_image(taps), sign, planes, depth, height, at);
}

}  // namespace

void scatter(const Array& taps, int64_t first, int sign, const Array& map, const Lookups& at) {
  with_type(map.type, [&]<typename T>() {
    start_spread<T, 1, false>(taps, first, {}, map, static_cast<int>(map.sizes[1]), sign, at);
  });
}

void distribute(const Array& taps, const Array& centres, const Array& map, const Lookups& at) {
  const int g = static_cast<int>(taps.sizes[1]);
  with_type(map.type, [&]<typename T>() {
    if (map.sizes[1] == g)
      start_spread<T, 1, true>(taps, 0, centres, map, g, 1, at);
    else
      start_spread<T, BLOCK, true>(taps, 0, centres, map, g, 1, at);
  });
}
