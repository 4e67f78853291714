// The fused pairwise attention in one kernel: rows z_ij = ρ(factor_i ⊙ map_j + offset_i), the mapping to logits, the
// softmax over the taps, and y_i[c] = Σ_j softmax_j[c mod g] β_j[c]. Also the statistics of the mapping's outputs, for
// the batch norm after it, and the gradients.
//
//     traffic    offset, factor, map and β are read once, except for positions that several tiles read. y is written
//                once. No array has the size of the footprint. The parameters come from the caches; the backward writes
//                their gradients to memory once per worker.
//     forward    A block has a tile of centres of any images. It processes their taps in chunks: pairs are the columns
//                of small products in shared memory. The maximum and sum of the softmax, and y, are updated after each
//                chunk.
//     backward   Pairs are computed twice more: once for the centres (offset, factor, parameters), and once for the
//                positions of the map (map, β), each of which goes through the centres that read it. No atomics, and
//                the same bits every time. Workers have partial sums of the parameters' gradients, which are added in
//                order.
//     v1         Products of 4 outputs × 4 columns per thread: 20 loads for 64 FMA. 16 of the loads are parameters,
//                which all threads of a warp, or of a part of it, share. Exact float32; no tensor cores.
//
// Not measured yet. Prediction for an H200 (132 multiprocessors, 128 instructions of a thread per clock each, 1.75 GHz)
// that reaches 60 % of its instruction rate. C = 256 (18 → 16 → 8), 56 × 56, 49 taps, 32 images: 480 FMA and 1,550
// instructions per pair forward, 0.4 ms; 5,000 backward, 1.4 ms. C = 2048 (130 → 128 → 64), 7 × 7: 41,000 instructions
// per pair, 0.25 ms, since 392 blocks leave a quarter of the GPU idle; 1 ms backward.

#include "cores.h"
#include "softmax.h"

namespace {

// The centres, or positions of the map, of a tile; the taps of a chunk; and the rows of a panel.
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
  R* sums;  // `per_position` for each position, then `others`

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

// What the kernels read: arrays and sizes.
template <typename T>
struct Inputs {
  const T *offset, *factor, *map, *beta;
  const Real<T>* parameters;
  int e, v, g;
  int64_t p, area, centres, positions;  // `centres` and `positions` of all images
  bool rectified, excludes;
  Widths widths;
  Plan plan;

  // Write inputs of the first layer from `first` on, 0 where there is no pair.
  __device__ void rows(const Column* pairs, int first, int count, bool rectified, Real<T>* to) const {
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
          if (rectified) z = rectify(z);
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

// y and the logarithm of the softmax's denominator, for a tile of centres.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    pairwise_attention_kernel(Inputs<T> inputs, T* __restrict__ y, Real<T>* __restrict__ lse, Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, inputs.plan, inputs.widths, lookups.k, inputs.v + 3 * inputs.g, 0);
  const int tile = inputs.plan.positions, taps = inputs.plan.taps, columns = inputs.plan.columns();
  const int64_t begin = int64_t(blockIdx.x) * tile;
  const Chunk<R> chunk = inputs.chunk(memory);
  R *sums = memory.sums, *logits = chunk.last();
  const auto softmax = [&](int g, int i) {
    R* most = sums + (inputs.v + g) * tile + i;
    return Softmax<R>{most, most + inputs.g * tile, most + 2 * inputs.g * tile};
  };

  for (int item = threadIdx.x; item < inputs.v * tile; item += blockDim.x) sums[item] = 0;
  for (int item = threadIdx.x; item < inputs.g * tile; item += blockDim.x) softmax(0, item).begin();
  list_taps(lookups, memory.taps);
  list_places(lookups, begin, inputs.centres, tile, memory.places);
  for (int tap = 0; tap < lookups.k; tap += taps) {
    __syncthreads();
    pair_centres(lookups, memory.taps, memory.places, tile, tap, columns, inputs.excludes, memory.pairs);
    chunk.forward(inputs.generator(memory.pairs));
    each_column(tile, [&](int i, int part, int parts) {
      const Column* pairs = memory.pairs + i;
      for (int g = part; g < inputs.g; g += parts) {
        R* mine = logits + g * columns + i;
        softmax(g, i).add(
            taps, [&](int j) -> R& { return mine[j * tile]; }, [&](int j) { return pairs[j * tile].image >= 0; });
      }
    });
    __syncthreads();
    each_column(tile, [&](int i, int part, int parts) {
      const Column* pairs = memory.pairs + i;
      const int image = memory.places[i].image;
      if (image < 0) return;
      const T* beta = inputs.beta + int64_t(image) * inputs.v * inputs.area;
      for (int c = part; c < inputs.v; c += parts) {
        const R* alpha = logits + c % inputs.g * columns + i;
        const T* map = beta + c * inputs.area;
        R sum = sums[c * tile + i] * *softmax(c % inputs.g, i).scale;
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
    for (int c = part; c < inputs.v + inputs.g; c += parts) {
      const int g = c < inputs.v ? c % inputs.g : c - inputs.v;
      if (c < inputs.v)
        y[(int64_t(place.image) * inputs.v + c) * inputs.p + place.centre] = T(softmax(g, i).mean(sums[c * tile + i]));
      else
        lse[(int64_t(place.image) * inputs.g + g) * inputs.p + place.centre] = softmax(g, i).log_sum();
    }
  });
}

// The moments of the last layer's outputs over the tiles of a worker.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    pairwise_statistics_kernel(Inputs<T> inputs, Moments<Real<T>>* __restrict__ partial, Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const int rows = inputs.widths.last(), watched = rows * parts_of(rows);
  const Workspace<R> memory(room, inputs.plan, inputs.widths, lookups.k, 0, 3 * watched);
  const int tile = inputs.plan.positions;
  const Chunk<R> chunk = inputs.chunk(memory);
  auto* moments = reinterpret_cast<Moments<R>*>(memory.sums);

  for (int item = threadIdx.x; item < watched; item += blockDim.x) moments[item] = {0, 0, 0};
  list_taps(lookups, memory.taps);
  for (int64_t begin = int64_t(blockIdx.x) * tile; begin < inputs.centres; begin += int64_t(gridDim.x) * tile) {
    __syncthreads();
    list_places(lookups, begin, inputs.centres, tile, memory.places);
    for (int tap = 0; tap < lookups.k; tap += inputs.plan.taps) {
      __syncthreads();
      pair_centres(lookups, memory.taps, memory.places, tile, tap, chunk.columns, false, memory.pairs);
      chunk.forward(inputs.generator(memory.pairs));
      gather_moments(chunk.last(), rows, chunk.columns, memory.pairs, moments);
    }
  }
  __syncthreads();
  write_moments(moments, rows, partial + int64_t(blockIdx.x) * rows);
}

// The gradients of the logits of a softmax. `value` replaces a logit by its weight α, `flow` replaces α by the
// gradient.
template <typename T>
struct SoftmaxUpstream {
  static constexpr bool SOFTMAX = true;
  using R = Real<T>;
  const T* gradient;
  const R *lse, *dots;

  __device__ R value(const Inputs<T>& inputs, const Column& pair, int g, R logit) const {
    return pair.image >= 0 ? exp(logit - lse[(int64_t(pair.image) * inputs.g + g) * inputs.p + pair.centre]) : R(0);
  }
  __device__ R flow(const Inputs<T>& inputs, const Column& pair, int g, R alpha) const {
    if (pair.image < 0) return 0;
    R sum = -dots[(int64_t(pair.image) * inputs.g + g) * inputs.p + pair.centre];
    if (pair.source >= 0) {
      const int64_t channel = int64_t(pair.image) * inputs.v + g;
      const T *from = gradient + channel * inputs.p + pair.centre,
              *to = inputs.beta + channel * inputs.area + pair.source;
#pragma unroll 4
      for (int64_t c = 0; c < inputs.v / inputs.g; ++c)
        sum += R(from[c * inputs.g * inputs.p]) * R(to[c * inputs.g * inputs.area]);
    }
    return alpha * sum;
  }
};

// The gradients of the last layer's outputs from those of their mean and variance.
template <typename T>
struct MomentsUpstream {
  static constexpr bool SOFTMAX = false;
  using R = Real<T>;
  const R *mean_gradient, *variance_gradient, *mean;
  R inverse_count;  // 1 / pairs

  __device__ R value(const Inputs<T>&, const Column&, int, R u) const { return u; }
  __device__ R flow(const Inputs<T>&, const Column& pair, int f, R u) const {
    return pair.image < 0 ? R(0) : inverse_count * (mean_gradient[f] + 2 * variance_gradient[f] * (u - mean[f]));
  }
};

// Replace each output of the last layer by write(pair, f, output).
template <typename R, typename Write>
__device__ void replace_last(const Chunk<R>& chunk, const Column* pairs, Write write) {
  each_column(chunk.columns, [&](int column, int part, int parts) {
    const Column pair = pairs[column];
    for (int f = part; f < chunk.widths.last(); f += parts) {
      R& place = chunk.last()[f * chunk.columns + column];
      place = write(pair, f, place);
    }
  });
}

// Replace the outputs of all layers but the last by 0 where there is no pair: they may be infinite.
template <typename R>
__device__ void clear_missing(const Chunk<R>& chunk, const Column* pairs) {
  for (int column = threadIdx.x; column < chunk.columns; column += blockDim.x)
    if (pairs[column].image < 0)
      for (int row = 0; row < chunk.widths.last_row(); ++row) chunk.held[row * chunk.columns + column] = 0;
}

// The gradients of offset, factor and parameters, over all taps of the centres of a worker's tiles.
template <typename T, typename Upstream>
__global__ void __launch_bounds__(THREADS, 4)
    centres_backward_kernel(Inputs<T> inputs, Upstream upstream, T* __restrict__ offset_gradient,
                            T* __restrict__ factor_gradient, Real<T>* partial, Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, inputs.plan, inputs.widths, lookups.k, 2 * inputs.e, 0);
  const int tile = inputs.plan.positions, taps = inputs.plan.taps;
  const Chunk<R> chunk = inputs.chunk(memory);
  R *offset_sums = memory.sums, *factor_sums = offset_sums + inputs.e * tile;
  if (partial) {
    partial += int64_t(blockIdx.x) * inputs.widths.parameters;
    for (int i = threadIdx.x; i < inputs.widths.parameters; i += blockDim.x) partial[i] = 0;
  }
  list_taps(lookups, memory.taps);
  for (int64_t begin = int64_t(blockIdx.x) * tile; begin < inputs.centres; begin += int64_t(gridDim.x) * tile) {
    for (int item = threadIdx.x; item < 2 * inputs.e * tile; item += blockDim.x) memory.sums[item] = 0;
    list_places(lookups, begin, inputs.centres, tile, memory.places);
    for (int tap = 0; tap < lookups.k; tap += taps) {
      __syncthreads();
      pair_centres(lookups, memory.taps, memory.places, tile, tap, chunk.columns, Upstream::SOFTMAX && inputs.excludes,
                   memory.pairs);
      const auto generate = inputs.generator(memory.pairs);
      chunk.forward(generate);
      replace_last(chunk, memory.pairs, [&](const Column& pair, int f, R output) {
        return upstream.flow(inputs, pair, f, upstream.value(inputs, pair, f, output));
      });
      clear_missing(chunk, memory.pairs);
      __syncthreads();
      const auto add = [&](int first, int count, const R* rows) {
        each_column(tile, [&](int i, int part, int parts) {
          const Column* pairs = memory.pairs + i;
          const int image = memory.places[i].image;
          if (image < 0) return;
          const T* map = inputs.map + (int64_t(image) * inputs.e + first) * inputs.area;
          for (int row = part; row < count; row += parts) {
            R alone = 0, times = 0;
#pragma unroll 4
            for (int j = 0; j < taps; ++j) {
              if (pairs[j * tile].image < 0) continue;
              const R flow = rows[row * chunk.columns + j * tile + i];
              alone += flow;
              const int source = pairs[j * tile].source;
              if (factor_gradient && source >= 0) times += flow * R(map[row * inputs.area + source]);
            }
            offset_sums[(first + row) * tile + i] += alone;
            factor_sums[(first + row) * tile + i] += times;
          }
        });
      };
      chunk.backward(partial, inputs.rectified, offset_gradient || factor_gradient, generate, add);
    }
    __syncthreads();
    each_column(tile, [&](int i, int part, int parts) {
      const Place place = memory.places[i];
      if (place.image < 0) return;
      for (int row = part; row < inputs.e; row += parts) {
        const int64_t to = (int64_t(place.image) * inputs.e + row) * inputs.p + place.centre;
        if (offset_gradient) offset_gradient[to] = T(offset_sums[row * tile + i]);
        if (factor_gradient) factor_gradient[to] = T(factor_sums[row * tile + i]);
      }
    });
    __syncthreads();
  }
}

// The gradients of the map and of β at a tile of positions, from all centres that read them.
template <typename T, typename Upstream>
__global__ void __launch_bounds__(THREADS, 4)
    map_backward_kernel(Inputs<T> inputs, Upstream upstream, T* __restrict__ map_gradient,
                        T* __restrict__ beta_gradient, Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const int tile = inputs.plan.positions, taps = inputs.plan.taps, v = beta_gradient ? inputs.v : 0;
  const Workspace<R> memory(room, inputs.plan, inputs.widths, lookups.k, inputs.e + v, 0);
  const Chunk<R> chunk = inputs.chunk(memory);
  R *map_sums = memory.sums, *beta_sums = map_sums + inputs.e * tile;
  const int64_t begin = int64_t(blockIdx.x) * tile, mine = begin + threadIdx.x;
  const bool exists = static_cast<int>(threadIdx.x) < tile && mine < inputs.positions;
  const int image = exists ? static_cast<int>(mine / inputs.area) : -1, source = exists ? int(mine % inputs.area) : 0;
  Readers readers(lookups, source, 0, lookups.k);

  for (int item = threadIdx.x; item < (inputs.e + v) * tile; item += blockDim.x) memory.sums[item] = 0;
  list_taps(lookups, memory.taps);
  for (;;) {
    __syncthreads();
    pair_readers(lookups, memory.taps, readers, image, source, tile, chunk.columns, memory.pairs);
    __syncthreads();
    if (!any_pair(memory.pairs, tile)) break;
    const auto generate = inputs.generator(memory.pairs);
    chunk.forward(generate);
    replace_last(chunk, memory.pairs,
                 [&](const Column& pair, int f, R u) { return upstream.value(inputs, pair, f, u); });
    __syncthreads();
    if constexpr (Upstream::SOFTMAX) {
      each_column(v ? tile : 1, [&](int i, int part, int parts) {
        const Column* pairs = memory.pairs + i;
        if (pairs->image < 0) return;
        const T* gradient = upstream.gradient + int64_t(pairs->image) * inputs.v * inputs.p;
        for (int c = part; c < v; c += parts) {
          const R* alpha = chunk.last() + c % inputs.g * chunk.columns + i;
          R sum = 0;
#pragma unroll 4
          for (int j = 0; j < taps; ++j) {
            const int centre = pairs[j * tile].centre;
            if (centre >= 0) sum += alpha[j * tile] * R(gradient[c * inputs.p + centre]);
          }
          beta_sums[c * tile + i] += sum;
        }
      });
      __syncthreads();
    }
    if (!map_gradient) continue;
    replace_last(chunk, memory.pairs,
                 [&](const Column& pair, int f, R u) { return upstream.flow(inputs, pair, f, u); });
    __syncthreads();
    chunk.backward(nullptr, inputs.rectified, true, generate, [&](int first, int count, const R* rows) {
      each_column(tile, [&](int i, int part, int parts) {
        const Column* pairs = memory.pairs + i;
        if (pairs->image < 0) return;
        const int64_t begin = (int64_t(pairs->image) * inputs.e + first) * inputs.p;
        for (int row = part; row < count; row += parts) {
          R sum = 0;
#pragma unroll 4
          for (int j = 0; j < taps; ++j) {
            const R flow = rows[row * chunk.columns + j * tile + i];
            const int centre = pairs[j * tile].centre;
            if (centre >= 0) sum += inputs.factor ? flow * R(inputs.factor[begin + row * inputs.p + centre]) : flow;
          }
          map_sums[(first + row) * tile + i] += sum;
        }
      });
    });
  }
  each_column(tile, [&](int i, int part, int parts) {
    if (begin + i >= inputs.positions) return;
    const int64_t image = (begin + i) / inputs.area, position = (begin + i) % inputs.area;
    for (int c = part; c < inputs.e + v; c += parts) {
      if (c >= inputs.e)
        beta_gradient[(image * inputs.v + c - inputs.e) * inputs.area + position] =
            T(beta_sums[(c - inputs.e) * tile + i]);
      else if (map_gradient)
        map_gradient[(image * inputs.e + c) * inputs.area + position] = T(map_sums[c * tile + i]);
    }
  });
}

template <typename R>
size_t bytes_of(const Plan& plan, const Widths& widths, int k, int per_position, int others) {
  Room room;
  Workspace<R>(room, plan, widths, k, per_position, others);
  return room.bytes;
}

// As many columns as fit shared memory. More positions are better, since neighbours are contiguous in memory; fewer
// positions are only used if they allow a third more columns. Chunks are as equal as possible. Throws
// std::invalid_argument if even the smallest plan does not fit.
template <typename R>
Plan plan_of(const Widths& widths, const Lookups& lookups, int per_position, int others) {
  Plan best = {0, 0, std::min(widths.inputs(), MOST_ROWS)};
  for (int positions : {64, 32, 16, 8, 4})
    for (int chunks = ceil_div(lookups.k, MOST_COLUMNS / positions); positions <= THREADS && chunks <= lookups.k;
         ++chunks) {
      const Plan plan = {positions, ceil_div(lookups.k, chunks), best.depth};
      if (bytes_of<R>(plan, widths, lookups.k, per_position, others) > size_t(lookups.shared_bytes)) continue;
      if (3 * plan.columns() > 4 * best.columns()) best = plan;
      break;
    }
  if (!best.positions)
    throw std::invalid_argument(
        "a pairwise attention needs " +
        std::to_string(bytes_of<R>({4, 1, best.depth}, widths, lookups.k, per_position, others)) +
        " bytes of shared memory; expected at most " + std::to_string(lookups.shared_bytes));
  return best;
}

template <typename T>
Inputs<T> inputs_of(const Array& offset, const Array& factor, const Array& map, const Array& beta,
                    const Array& parameters, const Lookups& lookups, const Core& core) {
  Inputs<T> inputs = {};
  inputs.offset = offset.as<const T>(), inputs.factor = factor.as<const T>(), inputs.map = map.as<const T>();
  inputs.beta = beta.as<const T>(), inputs.parameters = parameters.as<const Real<T>>();
  inputs.e = static_cast<int>(map.sizes[1]), inputs.g = core.widths.last();
  inputs.v = beta.data ? static_cast<int>(beta.sizes[1]) : 0;
  inputs.p = int64_t(lookups.oh) * lookups.ow, inputs.area = int64_t(lookups.h) * lookups.w;
  inputs.centres = map.sizes[0] * inputs.p, inputs.positions = map.sizes[0] * inputs.area;
  inputs.rectified = core.variant, inputs.excludes = core.excludes, inputs.widths = core.widths;
  return inputs;
}

template <typename T, typename Upstream>
void start_backward(Inputs<T> inputs, Upstream upstream, const Array& offset, const Array& factor, const Array& map,
                    const Array& beta, const Array& parameters, Real<T>* partial, const Lookups& lookups,
                    const Core& core) {
  using R = Real<T>;
  if (offset.data || factor.data || parameters.data) {
    inputs.plan = plan_of<R>(inputs.widths, lookups, 2 * inputs.e, 0);
    const int tiles = ceil_div(inputs.centres, inputs.plan.positions), workers = std::min(tiles, core.workers);
    start(centres_backward_kernel<T, Upstream>, parameters.data ? workers : tiles, THREADS,
          bytes_of<R>(inputs.plan, inputs.widths, lookups.k, 2 * inputs.e, 0), lookups.stream, inputs, upstream,
          offset.as<T>(), factor.as<T>(), parameters.data ? partial : nullptr, lookups);
    if (parameters.data) add_up(partial, workers, inputs.widths.parameters, parameters.as<R>(), lookups.stream);
  }
  if (map.data || beta.data) {
    const int sums = inputs.e + (beta.data ? inputs.v : 0);
    inputs.plan = plan_of<R>(inputs.widths, lookups, sums, 0);
    start(map_backward_kernel<T, Upstream>, ceil_div(inputs.positions, inputs.plan.positions), THREADS,
          bytes_of<R>(inputs.plan, inputs.widths, lookups.k, sums, 0), lookups.stream, inputs, upstream, map.as<T>(),
          beta.as<T>(), lookups);
  }
}

}  // namespace

void pairwise_attention(const Arrays& a, const Lookups& lookups, const Core& core) {
  const auto &offset = a[0], &factor = a[1], &map = a[2], &beta = a[3], &parameters = a[4], &y = a[5], &lse = a[6];
  with_type(map.type, [&]<typename T>() {
    auto inputs = inputs_of<T>(offset, factor, map, beta, parameters, lookups, core);
    const int sums = inputs.v + 3 * inputs.g;
    inputs.plan = plan_of<Real<T>>(inputs.widths, lookups, sums, 0);
    start(pairwise_attention_kernel<T>, ceil_div(inputs.centres, inputs.plan.positions), THREADS,
          bytes_of<Real<T>>(inputs.plan, inputs.widths, lookups.k, sums, 0), lookups.stream, inputs, y.as<T>(),
          lse.as<Real<T>>(), lookups);
  });
}

void pairwise_attention_backward(const Arrays& a, const Lookups& lookups, const Core& core) {
  const auto &gradient = a[0], &y = a[1], &lse = a[2], &offset = a[3], &factor = a[4], &map = a[5], &beta = a[6];
  with_type(map.type, [&]<typename T>() {
    using R = Real<T>;
    const auto inputs = inputs_of<T>(offset, factor, map, beta, a[7], lookups, core);
    const int64_t items = map.sizes[0] * inputs.g * inputs.p;
    R *dots = a[13].as<R>(), *partial = dots + items;
    gradient_dot_output(gradient, y, inputs.g, dots, lookups.stream);
    const SoftmaxUpstream<T> upstream = {gradient.as<const T>(), lse.as<const R>(), dots};
    start_backward(inputs, upstream, a[8], a[9], a[10], a[11], a[12], partial, lookups, core);
  });
}

void pairwise_statistics(const Arrays& a, const Lookups& lookups, const Core& core) {
  const auto &offset = a[0], &factor = a[1], &map = a[2], &parameters = a[3], &mean = a[4], &variance = a[5];
  with_type(map.type, [&]<typename T>() {
    using R = Real<T>;
    auto inputs = inputs_of<T>(offset, factor, map, {}, parameters, lookups, core);
    const int rows = inputs.widths.last(), moments = 3 * rows * parts_of(rows);
    inputs.plan = plan_of<R>(inputs.widths, lookups, 0, moments);
    const int workers = std::min(ceil_div(inputs.centres, inputs.plan.positions), core.workers);
    auto* partial = a[6].as<Moments<R>>();
    start(pairwise_statistics_kernel<T>, workers, THREADS,
          bytes_of<R>(inputs.plan, inputs.widths, lookups.k, 0, moments), lookups.stream, inputs, partial, lookups);
    merge_moments(partial, workers, rows, mean.as<R>(), variance.as<R>(), lookups.stream);
  });
}

void pairwise_statistics_backward(const Arrays& a, const Lookups& lookups, const Core& core) {
  const auto &offset = a[3], &factor = a[4], &map = a[5], &parameters = a[6];
  with_type(map.type, [&]<typename T>() {
    using R = Real<T>;
    const auto inputs = inputs_of<T>(offset, factor, map, {}, parameters, lookups, core);
    const MomentsUpstream<T> upstream = {a[0].as<const R>(), a[1].as<const R>(), a[2].as<const R>(),
                                         R(1) / (R(inputs.centres) * lookups.k)};
    start_backward(inputs, upstream, a[7], a[8], a[9], {}, a[10], a[11].as<R>(), lookups, core);
  });
}
