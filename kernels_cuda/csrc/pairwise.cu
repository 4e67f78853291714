// The fused pairwise attention: rows z_ij = ρ(factor_i ⊙ map_j + offset_i), the mapping to logits, the softmax over the
// taps, and y_i[c] = Σ_j softmax_j[c mod g] β_j[c], in one go; the statistics of what the mapping gives, for the batch
// norm behind it; and what flows back.
//
//     traffic    offset, factor, map and β are read once, but for what tiles share, y is written once: nothing has the size
//                of the footprint. The parameters come from the caches, and backward once per worker through memory.
//     forward    A block has a tile of centres, of whichever images, and goes through their taps in chunks: pairs are the
//                columns of small products in shared memory. Maximum and sum of the softmax, and y, follow chunk by chunk.
//     backward   Pairs are computed again, once from the side of the centres (offset, factor, parameters) and once from
//                that of the map (map, β), whose positions go through the centres that read them: no atomics, and the
//                same bits every time. Sums of products for the parameters are those of workers, added up in order.
//     v1         Products of 4 outputs × 4 columns per thread: 20 loads for 64 FMA, of which 16 are of parameters and the
//                same for all threads of a warp or a part of it. Exact float32; no tensor cores yet.
//
// Not measured yet. Predicted of an H200 (132 multiprocessors, 128 instructions of a thread per clock each, 1.75 GHz), at 60 %
// of its instructions: with C = 256 (18 → 16 → 8), 56 × 56, 49 taps, 32 images, 480 FMA and 1,550 instructions per pair
// forward, 0.4 ms, and 5,000 backward, 1.4 ms; with C = 2048 (130 → 128 → 64), 7 × 7, 41,000 per pair, 0.25 ms, since 392 blocks
// leave a quarter of the GPU idle, and 1 ms backward.

#include "cores.h"

namespace {

// Centres of a tile, or positions of the map, and taps of a chunk.
struct Plan {
  int positions, taps, depth;

  __host__ __device__ int columns() const { return positions * taps; }
};

// A block's shared memory.
template <typename R>
struct Workspace {
  Tap* taps;
  Place* places;
  Column* pairs;
  R *panel, *held;
  R* sums;  // `per_position` of each position, and so many others

  __host__ __device__ Workspace(Room& room, const Plan& plan, const Widths& widths, int k, int per_position,
                                int others) {
    taps = room.take<Tap>(k);
    places = room.take<Place>(plan.positions);
    pairs = room.take<Column>(plan.columns());
    panel = room.take<R>(plan.depth * plan.columns());
    held = room.take<R>(widths.held() * plan.columns());
    sums = room.take<R>(per_position * plan.positions + others);
  }
};

// All that a kernel reads, and its sizes.
template <typename T>
struct Pairwise {
  const T *offset, *factor, *map, *beta;
  const Real<T>* parameters;
  int e, v, g;
  int64_t p, area, centres, positions;  // of all images, the latter two
  bool rectified, excludes;
  Widths widths;
  Plan plan;

  // Does the softmax count the pair?
  __device__ bool counts(const Column& pair) const { return pair.image >= 0 && (!excludes || pair.source >= 0); }

  // Rows of the first layer from `first` on, 0 where there is no pair.
  __device__ void rows(const Column* pairs, int first, int count, bool rectify, Real<T>* to) const {
    const int columns = plan.columns();
    each_column(columns, [&](int column, int part, int parts) {
      const Column pair = pairs[column];
      const int64_t channel = int64_t(pair.image) * e + first + part, centre = channel * p + pair.centre;
      const int64_t position = channel * area + pair.source;
#pragma unroll 4
      for (int row = part, i = 0; row < count; row += parts, ++i) {
        Real<T> z = 0;
        if (pair.image >= 0) {
          const int64_t here = centre + i * parts * p;
          if (pair.source >= 0) z = map[position + i * parts * area];
          if (factor) z *= Real<T>(factor[here]);
          z += Real<T>(offset[here]);
          if (rectify) z = max(z, Real<T>(0));
        }
        to[row * columns + column] = z;
      }
    });
  }

  __device__ auto generator(const Column* pairs) const {
    return
        [this, pairs](int first, int count, Real<T>* to) { rows(pairs, first, count, rectified && widths.layers, to); };
  }
  __device__ Chunk<Real<T>> chunk(const Workspace<Real<T>>& memory) const {
    return {parameters, widths, plan.columns(), plan.depth, memory.panel, memory.held};
  }
};

// y and the logarithms of the softmax's denominators, of a tile of centres.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    pairwise_attention_kernel(Pairwise<T> of, T* __restrict__ y, Real<T>* __restrict__ lse, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, of.plan, of.widths, at.k, of.v + 3 * of.g, 0);
  const int tile = of.plan.positions, taps = of.plan.taps, columns = of.plan.columns();
  const int64_t begin = int64_t(blockIdx.x) * tile;
  const Chunk<R> chunk = of.chunk(memory);
  R *sums = memory.sums, *most = sums + of.v * tile, *total = most + of.g * tile, *scale = total + of.g * tile;
  R* logits = chunk.last();

  for (int item = threadIdx.x; item < of.v * tile; item += blockDim.x) sums[item] = 0;
  for (int item = threadIdx.x; item < of.g * tile; item += blockDim.x) most[item] = -INFINITY, total[item] = 0;
  list_taps(at, memory.taps);
  list_places(at, begin, of.centres, tile, memory.places);
  for (int tap = 0; tap < at.k; tap += taps) {
    __syncthreads();
    pair_centres(at, memory.taps, memory.places, tile, tap, columns, memory.pairs);
    chunk.forward(of.generator(memory.pairs));
    each_column(tile, [&](int i, int part, int parts) {
      const Column* pairs = memory.pairs + i;
      for (int g = part; g < of.g; g += parts) {
        const int item = g * tile + i;
        R* mine = logits + g * columns + i;
        R best = most[item], sum = 0;
        for (int j = 0; j < taps; ++j)
          if (of.counts(pairs[j * tile])) best = max(best, mine[j * tile]);
        for (int j = 0; j < taps; ++j) {
          const R alpha = of.counts(pairs[j * tile]) ? exp(mine[j * tile] - best) : R(0);
          mine[j * tile] = alpha;
          sum += alpha;
        }
        scale[item] = best > most[item] ? exp(most[item] - best) : R(1);
        total[item] = total[item] * scale[item] + sum;
        most[item] = best;
      }
    });
    __syncthreads();
    each_column(tile, [&](int i, int part, int parts) {
      const Column* pairs = memory.pairs + i;
      if (pairs->image < 0) return;
      const T* beta = of.beta + int64_t(pairs->image) * of.v * of.area;
      for (int c = part; c < of.v; c += parts) {
        const R* alpha = logits + c % of.g * columns + i;
        const T* map = beta + c * of.area;
        R sum = sums[c * tile + i] * scale[c % of.g * tile + i];
#pragma unroll 4
        for (int j = 0; j < taps; ++j) {
          const int source = pairs[j * tile].source;
          if (source >= 0) sum += alpha[j * tile] * R(map[source]);
        }
        sums[c * tile + i] = sum;
      }
    });
  }
  __syncthreads();
  each_column(tile, [&](int i, int part, int parts) {
    const Place place = memory.places[i];
    if (place.image < 0) return;
    for (int c = part; c < of.v + of.g; c += parts) {
      const int g = c < of.v ? c % of.g : c - of.v;
      const R sum = total[g * tile + i];
      if (c < of.v)
        y[(int64_t(place.image) * of.v + c) * of.p + place.centre] = T(sum > 0 ? sums[c * tile + i] / sum : R(0));
      else
        lse[(int64_t(place.image) * of.g + g) * of.p + place.centre] = sum > 0 ? most[g * tile + i] + log(sum) : R(0);
    }
  });
}

// Moments of the last layer's outputs over the tiles of a worker.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    pairwise_statistics_kernel(Pairwise<T> of, Moments<Real<T>>* __restrict__ partial, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const int rows = of.widths.last(), watched = rows * parts_of(rows);
  const Workspace<R> memory(room, of.plan, of.widths, at.k, 0, 3 * watched);
  const int tile = of.plan.positions;
  const Chunk<R> chunk = of.chunk(memory);
  auto* moments = reinterpret_cast<Moments<R>*>(memory.sums);

  for (int item = threadIdx.x; item < watched; item += blockDim.x) moments[item] = {0, 0, 0};
  list_taps(at, memory.taps);
  for (int64_t begin = int64_t(blockIdx.x) * tile; begin < of.centres; begin += int64_t(gridDim.x) * tile) {
    __syncthreads();
    list_places(at, begin, of.centres, tile, memory.places);
    for (int tap = 0; tap < at.k; tap += of.plan.taps) {
      __syncthreads();
      pair_centres(at, memory.taps, memory.places, tile, tap, chunk.columns, memory.pairs);
      chunk.forward(of.generator(memory.pairs));
      observe(chunk.last(), rows, chunk.columns, memory.pairs, moments);
    }
  }
  __syncthreads();
  write_moments(moments, rows, partial + int64_t(blockIdx.x) * rows);
}

// What flows to the logits: first alpha in their place, then the gradient in its.
template <typename T>
struct Softmax {
  using R = Real<T>;
  const T* gradient;
  const R *lse, *shared;

  __device__ R value(const Pairwise<T>& of, const Column& pair, int g, R logit) const {
    return of.counts(pair) ? exp(logit - lse[(int64_t(pair.image) * of.g + g) * of.p + pair.centre]) : R(0);
  }
  __device__ R flow(const Pairwise<T>& of, const Column& pair, int g, R alpha) const {
    if (!of.counts(pair)) return 0;
    R sum = -shared[(int64_t(pair.image) * of.g + g) * of.p + pair.centre];
    if (pair.source >= 0) {
      const int64_t channel = int64_t(pair.image) * of.v + g;
      const T *from = gradient + channel * of.p + pair.centre, *to = of.beta + channel * of.area + pair.source;
#pragma unroll 4
      for (int64_t c = 0; c < of.v / of.g; ++c) sum += R(from[c * of.g * of.p]) * R(to[c * of.g * of.area]);
    }
    return alpha * sum;
  }
};

// What flows to the last layer's outputs from their mean and variance over so many pairs.
template <typename T>
struct Spread {
  using R = Real<T>;
  const R *mean_gradient, *variance_gradient, *mean;
  R share;  // 1 / pairs

  __device__ R value(const Pairwise<T>&, const Column&, int, R u) const { return u; }
  __device__ R flow(const Pairwise<T>&, const Column& pair, int f, R u) const {
    return pair.image < 0 ? R(0) : share * (mean_gradient[f] + 2 * variance_gradient[f] * (u - mean[f]));
  }
};

// From the last layer's outputs of a chunk to what `give` makes of them, in their place.
template <typename R, typename Give>
__device__ void replace(const Chunk<R>& chunk, const Column* pairs, Give give) {
  each_column(chunk.columns, [&](int column, int part, int parts) {
    const Column pair = pairs[column];
    for (int f = part; f < chunk.widths.last(); f += parts) {
      R& place = chunk.last()[f * chunk.columns + column];
      place = give(pair, f, place);
    }
  });
}

// What flows to offset, factor and parameters, through all taps of the centres of a worker's tiles.
template <typename T, typename Head>
__global__ void __launch_bounds__(THREADS, 4)
    centres_backward_kernel(Pairwise<T> of, Head head, T* __restrict__ offset_gradient, T* __restrict__ factor_gradient,
                            Real<T>* partial, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, of.plan, of.widths, at.k, 2 * of.e, 0);
  const int tile = of.plan.positions, taps = of.plan.taps;
  const Chunk<R> chunk = of.chunk(memory);
  R *offset_sums = memory.sums, *factor_sums = offset_sums + of.e * tile;
  if (partial) {
    partial += int64_t(blockIdx.x) * of.widths.parameters;
    for (int i = threadIdx.x; i < of.widths.parameters; i += blockDim.x) partial[i] = 0;
  }
  list_taps(at, memory.taps);
  for (int64_t begin = int64_t(blockIdx.x) * tile; begin < of.centres; begin += int64_t(gridDim.x) * tile) {
    for (int item = threadIdx.x; item < 2 * of.e * tile; item += blockDim.x) memory.sums[item] = 0;
    list_places(at, begin, of.centres, tile, memory.places);
    for (int tap = 0; tap < at.k; tap += taps) {
      __syncthreads();
      pair_centres(at, memory.taps, memory.places, tile, tap, chunk.columns, memory.pairs);
      const auto generate = of.generator(memory.pairs);
      chunk.forward(generate);
      replace(chunk, memory.pairs, [&](const Column& pair, int f, R output) {
        return head.flow(of, pair, f, head.value(of, pair, f, output));
      });
      __syncthreads();
      const auto add = [&](int first, int count, const R* rows) {
        each_column(tile, [&](int i, int part, int parts) {
          const Column* pairs = memory.pairs + i;
          if (pairs->image < 0) return;
          const T* map = of.map + (int64_t(pairs->image) * of.e + first) * of.area;
          for (int row = part; row < count; row += parts) {
            R alone = 0, times = 0;
#pragma unroll 4
            for (int j = 0; j < taps; ++j) {
              const R flow = rows[row * chunk.columns + j * tile + i];
              alone += flow;
              const int source = pairs[j * tile].source;
              if (factor_gradient && source >= 0) times += flow * R(map[row * of.area + source]);
            }
            offset_sums[(first + row) * tile + i] += alone;
            factor_sums[(first + row) * tile + i] += times;
          }
        });
      };
      chunk.backward(partial, of.rectified, offset_gradient || factor_gradient, generate, add);
    }
    __syncthreads();
    each_column(tile, [&](int i, int part, int parts) {
      const Place place = memory.places[i];
      if (place.image < 0) return;
      for (int row = part; row < of.e; row += parts) {
        const int64_t to = (int64_t(place.image) * of.e + row) * of.p + place.centre;
        if (offset_gradient) offset_gradient[to] = T(offset_sums[row * tile + i]);
        if (factor_gradient) factor_gradient[to] = T(factor_sums[row * tile + i]);
      }
    });
    __syncthreads();
  }
}

// What flows to the map and to β at a tile of positions, from all centres that read them.
template <typename T, typename Head>
__global__ void __launch_bounds__(THREADS, 4)
    map_backward_kernel(Pairwise<T> of, Head head, T* __restrict__ map_gradient, T* __restrict__ beta_gradient,
                        Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const int tile = of.plan.positions, taps = of.plan.taps, v = beta_gradient ? of.v : 0;
  const Workspace<R> memory(room, of.plan, of.widths, at.k, of.e + v, 0);
  const Chunk<R> chunk = of.chunk(memory);
  R *map_sums = memory.sums, *beta_sums = map_sums + of.e * tile;
  const int64_t begin = int64_t(blockIdx.x) * tile, mine = begin + threadIdx.x;
  const bool exists = static_cast<int>(threadIdx.x) < tile && mine < of.positions;
  const int image = exists ? static_cast<int>(mine / of.area) : -1, source = exists ? int(mine % of.area) : 0;
  Readers readers(at, source, 0, at.k);

  for (int item = threadIdx.x; item < (of.e + v) * tile; item += blockDim.x) memory.sums[item] = 0;
  list_taps(at, memory.taps);
  for (;;) {
    __syncthreads();
    pair_readers(at, memory.taps, readers, image, source, tile, chunk.columns, memory.pairs);
    __syncthreads();
    if (!any_pair(memory.pairs, tile)) break;
    const auto generate = of.generator(memory.pairs);
    chunk.forward(generate);
    replace(chunk, memory.pairs, [&](const Column& pair, int f, R u) { return head.value(of, pair, f, u); });
    __syncthreads();
    if constexpr (std::is_same_v<Head, Softmax<T>>) {
      each_column(v ? tile : 1, [&](int i, int part, int parts) {
        const Column* pairs = memory.pairs + i;
        if (pairs->image < 0) return;
        const T* gradient = head.gradient + int64_t(pairs->image) * of.v * of.p;
        for (int c = part; c < v; c += parts) {
          const R* alpha = chunk.last() + c % of.g * chunk.columns + i;
          R sum = 0;
#pragma unroll 4
          for (int j = 0; j < taps; ++j) {
            const int centre = pairs[j * tile].centre;
            if (centre >= 0) sum += alpha[j * tile] * R(gradient[c * of.p + centre]);
          }
          beta_sums[c * tile + i] += sum;
        }
      });
      __syncthreads();
    }
    if (!map_gradient) continue;
    replace(chunk, memory.pairs, [&](const Column& pair, int f, R u) { return head.flow(of, pair, f, u); });
    __syncthreads();
    chunk.backward(nullptr, of.rectified, true, generate, [&](int first, int count, const R* rows) {
      each_column(tile, [&](int i, int part, int parts) {
        const Column* pairs = memory.pairs + i;
        if (pairs->image < 0) return;
        const int64_t begin = (int64_t(pairs->image) * of.e + first) * of.p;
        for (int row = part; row < count; row += parts) {
          R sum = 0;
#pragma unroll 4
          for (int j = 0; j < taps; ++j) {
            const R flow = rows[row * chunk.columns + j * tile + i];
            const int centre = pairs[j * tile].centre;
            if (centre >= 0) sum += of.factor ? flow * R(of.factor[begin + row * of.p + centre]) : flow;
          }
          map_sums[(first + row) * tile + i] += sum;
        }
      });
    });
  }
  each_column(tile, [&](int i, int part, int parts) {
    if (begin + i >= of.positions) return;
    const int64_t image = (begin + i) / of.area, position = (begin + i) % of.area;
    for (int c = part; c < of.e + v; c += parts) {
      if (c >= of.e)
        beta_gradient[(image * of.v + c - of.e) * of.area + position] = T(beta_sums[(c - of.e) * tile + i]);
      else if (map_gradient)
        map_gradient[(image * of.e + c) * of.area + position] = T(map_sums[c * tile + i]);
    }
  });
}

template <typename R>
size_t bytes_of(const Plan& plan, const Widths& widths, int k, int per_position, int others) {
  Room room;
  Workspace<R>(room, plan, widths, k, per_position, others);
  return room.bytes;
}

// As many columns as fit shared memory, but of as many positions as may be, whose neighbours lie together in memory, unless
// fewer make a third more columns; and chunks of as equal a size as may be. std::invalid_argument if nothing fits.
template <typename R>
Plan plan_of(const Widths& widths, const Lookups& at, int per_position, int others) {
  Plan best = {0, 0, std::min(widths.inputs(), MOST_ROWS)};
  for (int positions : {64, 32, 16, 8, 4})
    for (int chunks = ceil_div(at.k, MOST_COLUMNS / positions); positions <= THREADS && chunks <= at.k; ++chunks) {
      const Plan plan = {positions, ceil_div(at.k, chunks), best.depth};
      if (bytes_of<R>(plan, widths, at.k, per_position, others) > size_t(at.shared_bytes)) continue;
      if (3 * plan.columns() > 4 * best.columns()) best = plan;
      break;
    }
  if (!best.positions)
    throw std::invalid_argument("a pairwise attention needs " +
                                std::to_string(bytes_of<R>({4, 1, best.depth}, widths, at.k, per_position, others)) +
                                " bytes of shared memory; expected at most " + std::to_string(at.shared_bytes));
  return best;
}

template <typename T>
Pairwise<T> pairwise_of(const Array& offset, const Array& factor, const Array& map, const Array& beta,
                        const Array& parameters, const Lookups& at, const Core& core) {
  Pairwise<T> of = {};
  of.offset = offset.as<const T>(), of.factor = factor.as<const T>(), of.map = map.as<const T>();
  of.beta = beta.as<const T>(), of.parameters = parameters.as<const Real<T>>();
  of.e = static_cast<int>(map.sizes[1]), of.g = core.widths.last();
  of.v = beta.data ? static_cast<int>(beta.sizes[1]) : 0;
  of.p = int64_t(at.oh) * at.ow, of.area = int64_t(at.h) * at.w;
  of.centres = map.sizes[0] * of.p, of.positions = map.sizes[0] * of.area;
  of.rectified = core.flag, of.excludes = core.excludes, of.widths = core.widths;
  return of;
}

template <typename T, typename Head>
void start_backward(Pairwise<T> of, Head head, const Array& offset, const Array& factor, const Array& map,
                    const Array& beta, const Array& parameters, Real<T>* partial, const Lookups& at, const Core& core) {
  using R = Real<T>;
  if (offset.data || factor.data || parameters.data) {
    of.plan = plan_of<R>(of.widths, at, 2 * of.e, 0);
    const int tiles = ceil_div(of.centres, of.plan.positions), workers = std::min(tiles, core.workers);
    start(centres_backward_kernel<T, Head>, parameters.data ? workers : tiles, THREADS,
          bytes_of<R>(of.plan, of.widths, at.k, 2 * of.e, 0), at.stream, of, head, offset.as<T>(), factor.as<T>(),
          parameters.data ? partial : nullptr, at);
    if (parameters.data) add_up(partial, workers, of.widths.parameters, parameters.as<R>(), at.stream);
  }
  if (map.data || beta.data) {
    const int sums = of.e + (beta.data ? of.v : 0);
    of.plan = plan_of<R>(of.widths, at, sums, 0);
    start(map_backward_kernel<T, Head>, ceil_div(of.positions, of.plan.positions), THREADS,
          bytes_of<R>(of.plan, of.widths, at.k, sums, 0), at.stream, of, head, map.as<T>(), beta.as<T>(), at);
  }
}

}  // namespace

void pairwise_attention(const Arrays& a, const Lookups& at, const Core& core) {
  const auto &offset = a[0], &factor = a[1], &map = a[2], &beta = a[3], &parameters = a[4], &y = a[5], &lse = a[6];
  with_type(map.type, [&]<typename T>() {
    auto of = pairwise_of<T>(offset, factor, map, beta, parameters, at, core);
    const int sums = of.v + 3 * of.g;
    of.plan = plan_of<Real<T>>(of.widths, at, sums, 0);
    start(pairwise_attention_kernel<T>, ceil_div(of.centres, of.plan.positions), THREADS,
          bytes_of<Real<T>>(of.plan, of.widths, at.k, sums, 0), at.stream, of, y.as<T>(), lse.as<Real<T>>(), at);
  });
}

void pairwise_attention_backward(const Arrays& a, const Lookups& at, const Core& core) {
  const auto &gradient = a[0], &y = a[1], &lse = a[2], &offset = a[3], &factor = a[4], &map = a[5], &beta = a[6];
  with_type(map.type, [&]<typename T>() {
    using R = Real<T>;
    const auto of = pairwise_of<T>(offset, factor, map, beta, a[7], at, core);
    const int64_t items = map.sizes[0] * of.g * of.p;
    R *shared = a[13].as<R>(), *partial = shared + items;
    share_gradient(gradient, y, of.g, shared, at.stream);
    const Softmax<T> head = {gradient.as<const T>(), lse.as<const R>(), shared};
    start_backward(of, head, a[8], a[9], a[10], a[11], a[12], partial, at, core);
  });
}

void pairwise_statistics(const Arrays& a, const Lookups& at, const Core& core) {
  const auto &offset = a[0], &factor = a[1], &map = a[2], &parameters = a[3], &mean = a[4], &variance = a[5];
  with_type(map.type, [&]<typename T>() {
    using R = Real<T>;
    auto of = pairwise_of<T>(offset, factor, map, {}, parameters, at, core);
    const int rows = of.widths.last(), moments = 3 * rows * parts_of(rows);
    of.plan = plan_of<R>(of.widths, at, 0, moments);
    const int workers = std::min(ceil_div(of.centres, of.plan.positions), core.workers);
    auto* partial = a[6].as<Moments<R>>();
    start(pairwise_statistics_kernel<T>, workers, THREADS, bytes_of<R>(of.plan, of.widths, at.k, 0, moments), at.stream,
          of, partial, at);
    merge_moments(partial, workers, rows, mean.as<R>(), variance.as<R>(), at.stream);
  });
}

void pairwise_statistics_backward(const Arrays& a, const Lookups& at, const Core& core) {
  const auto &offset = a[3], &factor = a[4], &map = a[5], &parameters = a[6];
  with_type(map.type, [&]<typename T>() {
    using R = Real<T>;
    const auto of = pairwise_of<T>(offset, factor, map, {}, parameters, at, core);
    const Spread<T> head = {a[0].as<const R>(), a[1].as<const R>(), a[2].as<const R>(), R(1) / (R(of.centres) * at.k)};
    start_backward(of, head, a[7], a[8], a[9], {}, a[10], a[11].as<R>(), at, core);
  });
}
