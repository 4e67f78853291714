// The fused patchwise attention: the rows of a relation, [centres, ρ(scale ⊙ ψ_j + shift)] or ρ(scale ⊙ δ + shift) for
// the star or clique product δ, the mapping to α, and y_i[c] = Σ_j α[c mod g, j] β_j[c] (SAN Eq. 4). Also the
// statistics of the mapping's outputs, for a batch norm after it, and the gradients.
//
//     traffic    A column is a centre. The outputs of all layers but the last, n · hidden · p elements, go through
//                memory. The rows of the relation and α have the size of the footprint. They are generated panel by
//                panel in shared memory, once for every 64 outputs that need them. Maps and parameters come from the
//                caches.
//     forward    A kernel for each layer but the last: a block has up to 64 outputs × 64 columns. Another kernel for
//                the last layer and the aggregation: a block has a group of channels × 64 columns.
//     backward   The gradient of a layer's inputs is one more product of generated panels. For the gradients of
//                parameters, a block has up to 32 outputs × 64 inputs of a layer and the columns of one worker; the
//                workers' sums are added in order. The gradient of a map goes through the centres that read it: no
//                atomics, and the same bits every time.
//     v1         Products of 4 outputs × 4 columns per thread. Exact float32; no tensor cores. One thread computes each
//                dot product of the star and clique product, with two loads from the caches per FMA.
//
// Not measured yet. Prediction for an H200, as in pairwise.cu. Concatenation with C = 256 (800 → 8 → 392), 56 × 56, 32
// images: 35,000 instructions per centre forward, 0.2 ms; 150,000 backward, 0.9 ms. C = 2048 (6,400 → 64 → 3,136), 7 ×
// 7: 900,000 instructions per centre; the first layer's 98 blocks do not fill the GPU: 0.2 ms forward, 1.5 ms backward.

#include "cores.h"

namespace {

enum class Kind { concatenation, star_product, clique_product };

// Where rows come from: the relation, an array (rows × columns of all images), or the gradient of α.
enum class From { relation, array, attention };

template <typename R>
struct Source {
  From from;
  const R* array;
};

// What the kernels read: arrays and sizes.
template <typename T>
struct Inputs {
  using R = Real<T>;
  const T *centres, *map, *beta, *gradient;
  const R *scale, *shift, *parameters;
  // For statistics without a layer: the gradients of the rows follow from these three.
  const R *mean_gradient, *variance_gradient, *mean;
  R inverse_count;  // 1 / centres
  Kind kind;
  int r, v, g, k;
  int64_t p, area, columns, positions;  // `columns` and `positions` of all images
  Widths widths;

  // The number of inputs of the first layer before the rows of the relation.
  __host__ __device__ int before() const { return kind == Kind::concatenation && widths.layers ? r : 0; }

  __device__ int64_t column_of(const Place& place) const { return place.image * p + place.centre; }

  // A row of the relation before scale and shift.
  __device__ R related(const Lookups& lookups, const Tap* taps, int row, const Place& place) const {
    const int there = source_of(lookups, taps[row % k], place);
    if (kind == Kind::concatenation) return read(map, area, place.image, row / k, there);
    const bool star = kind == Kind::star_product;
    const int here = star ? place.centre : source_of(lookups, taps[row / k], place);
    return dot(centres, star ? p : area, here, map, area, there, place.image);
  }

  // The value of a map of `size` positions; 0 outside.
  __device__ R read(const T* from, int64_t size, int image, int c, int at) const {
    return at < 0 ? R(0) : R(from[(int64_t(image) * r + c) * size + at]);
  }

  // Σ_c left[c] at `here` · right[c] at `there`. A product with the 0 outside is NaN if the other factor is not finite.
  __device__ R dot(const T* left, int64_t size_left, int here, const T* right, int64_t size_right, int there,
                   int image) const {
    left += int64_t(image) * r * size_left + max(here, 0), right += int64_t(image) * r * size_right + max(there, 0);
    R sum = 0;
#pragma unroll 4
    for (int c = 0; c < r; ++c)
      sum += (here < 0 ? R(0) : R(left[c * size_left])) * (there < 0 ? R(0) : R(right[c * size_right]));
    return sum;
  }

  // The gradient of α, for a group at a tap, from that of y.
  __device__ R alpha_gradient(int group, int there, const Place& place) const {
    if (there < 0) return 0;
    const int64_t channel = int64_t(place.image) * v + group;
    const T *from = gradient + channel * p + place.centre, *to = beta + channel * area + there;
    R sum = 0;
#pragma unroll 4
    for (int64_t c = 0; c < v / g; ++c) sum += R(from[c * g * p]) * R(to[c * g * area]);
    return sum;
  }
  // The row of the concatenation for a channel and a tap.
  __device__ R concatenated(int c, int tap, int there, const Place& place) const {
    const R found = read(map, area, place.image, c, there);
    const int row = c * k + tap;
    return widths.layers ? rectify(scale[row] * found + shift[row]) : found;
  }

  // A row of a source.
  __device__ R value(const Source<R>& source, const Lookups& lookups, const Tap* taps, int row,
                     const Place& place) const {
    if (source.from == From::array) return source.array[row * columns + column_of(place)];
    if (source.from == From::attention) return alpha_gradient(row / k, source_of(lookups, taps[row % k], place), place);
    if (row < before()) return centres[(int64_t(place.image) * r + row) * p + place.centre];
    row -= before();
    const R found = related(lookups, taps, row, place);
    return widths.layers ? rectify(scale[row] * found + shift[row]) : found;
  }

  // The gradient of a row of the relation, from that of the rectified row, or from those of the statistics.
  __device__ R flow(int row, R found, R rectified) const {
    return rectify_gradient(scale[row] * found + shift[row], scale[row] * rectified);
  }
  __device__ R moments_gradient(int row, R found) const {
    return inverse_count * (mean_gradient[row] + 2 * variance_gradient[row] * (found - mean[row]));
  }
};

// The sizes of a block's panels: columns, outputs, and rows.
struct Plan {
  int columns, outputs, depth;
};

// A block's shared memory.
template <typename R>
struct Workspace {
  Tap* taps;
  Place* places;
  R *panel, *outputs, *others;

  __host__ __device__ Workspace(Room& room, const Plan& plan, int k, int others_count) {
    taps = room.take<Tap>(k);
    places = room.take<Place>(plan.columns);
    panel = room.take<R>(plan.depth * plan.columns);
    outputs = room.take<R>(plan.outputs * plan.columns);
    others = room.take<R>(others_count);
  }
};

// Write rows of a source from `first` on, 0 where there is no centre. Rows of a concatenation, of α and of an array
// need few instructions besides the loads.
template <typename T>
__device__ void fill(const Inputs<T>& inputs, const Source<Real<T>>& source, const Lookups& lookups, const Tap* taps,
                     const Place* places, int columns, int first, int count, Real<T>* to) {
  using R = Real<T>;
  each_column(columns, [&](int column, int part, int parts) {
    const Place place = places[column];
    const int begin = first + part - (source.from == From::relation ? inputs.before() : 0);
    int group = begin / lookups.k, tap = begin - group * lookups.k;  // of row `begin`, if rows are listed by tap
    const bool listed = source.from == From::attention ||
                        (source.from == From::relation && inputs.kind == Kind::concatenation && begin >= 0);
    for (int row = part; row < count; row += parts) {
      R value = 0;
      if (place.image >= 0 && !listed) {
        value = inputs.value(source, lookups, taps, first + row, place);
      } else if (place.image >= 0) {
        const int there = source_of(lookups, taps[tap], place);
        value = source.from == From::attention ? inputs.alpha_gradient(group, there, place)
                                               : inputs.concatenated(group, tap, there, place);
      }
      to[row * columns + column] = value;
      for (tap += parts; listed && tap >= lookups.k; tap -= lookups.k) ++group;
    }
  });
}

// A product of weights with the rows of a source: Σ_d weights[o · step_o + d · step_d] · row d, plus bias[o · step_b]
// if there is a bias.
template <typename R>
struct Product {
  Source<R> source;
  const R *weights, *bias;
  int step_o, step_b, step_d, depth;

  // The product of the outputs from `first` on, `step` apart.
  __device__ Product from(int64_t first, int step = 1) const {
    return {
        source, weights + first * step_o, bias ? bias + first * step_b : nullptr, step_o * step, step_b * step, step_d,
        depth};
  }
};

// Write `count` outputs to memory.outputs. Begins and ends with a barrier.
template <typename T>
__device__ void compute(const Inputs<T>& inputs, const Product<Real<T>>& layer, const Lookups& lookups,
                        const Plan& plan, int count, const Workspace<Real<T>>& memory) {
  using R = Real<T>;
  constexpr int W = WIDTH<R>;
  __syncthreads();
  for (int first = 0; first < layer.depth; first += plan.depth) {
    const int rows = min(plan.depth, layer.depth - first);
    fill(inputs, layer.source, lookups, memory.taps, memory.places, plan.columns, first, rows, memory.panel);
    __syncthreads();
    product(layer.weights + int64_t(first) * layer.step_d, layer.step_o, layer.step_d, memory.panel, rows, count,
            plan.columns, [&](int o, int column, R(&sums)[W]) {
              R* to = memory.outputs + o * plan.columns + column;
              Vector<R, W> result = {};
              if (first)
                result = load<W>(to);
              else if (layer.bias)
                for (int w = 0; w < W; ++w) result.at[w] = layer.bias[o * layer.step_b];
#pragma unroll
              for (int w = 0; w < W; ++w) result.at[w] += sums[w];
              store(to, result);
            });
    __syncthreads();
  }
}

// Where a layer's outputs are written: to `array`, or to `centres` if that has data. They may be rectified, set to 0
// where `mask` is 0 or negative, or replaced by their gradients from those of the statistics.
template <typename T>
struct Sink {
  using R = Real<T>;
  R* array;
  T* centres;
  const R *mask, *mean_gradient, *variance_gradient, *mean;
  bool rectified;
};

// The outputs of a layer, or the gradients of its inputs.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    layer_kernel(Inputs<T> inputs, Product<Real<T>> layer, Sink<T> sink, int outputs, Plan plan, Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, plan, lookups.k, 0);
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(outputs, plan.outputs)) * plan.outputs;
  const int count = min(plan.outputs, outputs - first);
  list_taps(lookups, memory.taps);
  list_places(lookups, block * plan.columns, inputs.columns, plan.columns, memory.places);
  compute(inputs, layer.from(first), lookups, plan, count, memory);
  for (int item = threadIdx.x; item < count * plan.columns; item += blockDim.x) {
    int o = item;
    const Place place = memory.places[digit(o, plan.columns)];
    if (place.image < 0) continue;
    R value = layer.depth ? memory.outputs[item] : R(0);
    o += first;
    const int64_t at_column = o * inputs.columns + inputs.column_of(place);
    if (sink.mask) value = rectify_gradient(sink.mask[at_column], value);
    if (sink.mean)
      value = inputs.inverse_count * (sink.mean_gradient[o] + 2 * sink.variance_gradient[o] * (value - sink.mean[o]));
    if (sink.rectified) value = rectify(value);
    if (sink.centres)
      sink.centres[(int64_t(place.image) * outputs + o) * inputs.p + place.centre] = T(value);
    else
      sink.array[at_column] = value;
  }
}

// The last layer, for one group of channels, and the aggregation.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    patchwise_attention_kernel(Inputs<T> inputs, Product<Real<T>> layer, T* __restrict__ y, Plan plan,
                               Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const int share = inputs.v / inputs.g;
  const Workspace<R> memory(room, plan, lookups.k, share * plan.columns);
  R* sums = memory.others;
  int64_t block = blockIdx.x;
  const int g = digit(block, inputs.g);
  list_taps(lookups, memory.taps);
  list_places(lookups, block * plan.columns, inputs.columns, plan.columns, memory.places);
  for (int item = threadIdx.x; item < share * plan.columns; item += blockDim.x) sums[item] = 0;
  for (int tap = 0; tap < lookups.k; tap += plan.outputs) {
    const int count = min(plan.outputs, lookups.k - tap);
    compute(inputs, layer.from(int64_t(g) * lookups.k + tap), lookups, plan, count, memory);
    for (int item = threadIdx.x; item < ceil_div(share, SIDES) * plan.columns; item += blockDim.x) {
      int rest = item;
      const int column = digit(rest, plan.columns), first = rest * SIDES;
      const Place place = memory.places[column];
      if (place.image < 0) continue;
      const T* beta[SIDES];  // beyond the end, the last channel is repeated
#pragma unroll
      for (int s = 0; s < SIDES; ++s)
        beta[s] =
            inputs.beta + (int64_t(place.image) * inputs.v + g + min(first + s, share - 1) * inputs.g) * inputs.area;
      R values[SIDES] = {};
      for (int j = 0; j < count; ++j) {
        const int there = source_of(lookups, memory.taps[tap + j], place);
        const R alpha = memory.outputs[j * plan.columns + column];
#pragma unroll
        for (int s = 0; s < SIDES; ++s) values[s] += alpha * (there < 0 ? R(0) : R(beta[s][there]));
      }
#pragma unroll
      for (int s = 0; s < SIDES; ++s)
        if (first + s < share) sums[(first + s) * plan.columns + column] += values[s];
    }
  }
  __syncthreads();
  for (int item = threadIdx.x; item < share * plan.columns; item += blockDim.x) {
    int s = item;
    const Place place = memory.places[digit(s, plan.columns)];
    if (place.image < 0) continue;
    y[(int64_t(place.image) * inputs.v + g + s * inputs.g) * inputs.p + place.centre] = T(sums[item]);
  }
}

// The moments of the last layer's outputs, or of the relation's rows, over the columns of a worker.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    patchwise_statistics_kernel(Inputs<T> inputs, Product<Real<T>> layer, int outputs, int workers,
                                Moments<Real<T>>* __restrict__ partial, Plan plan, Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(outputs, plan.outputs)) * plan.outputs;
  const int count = min(plan.outputs, outputs - first), watched = count * parts_of(count);
  const Workspace<R> memory(room, plan, lookups.k, 3 * watched);
  auto* moments = reinterpret_cast<Moments<R>*>(memory.others);
  list_taps(lookups, memory.taps);
  for (int item = threadIdx.x; item < watched; item += blockDim.x) moments[item] = {0, 0, 0};
  for (int64_t begin = block * plan.columns; begin < inputs.columns; begin += int64_t(workers) * plan.columns) {
    __syncthreads();
    list_places(lookups, begin, inputs.columns, plan.columns, memory.places);
    if (inputs.widths.layers) {
      compute(inputs, layer.from(first), lookups, plan, count, memory);
    } else {
      __syncthreads();
      fill(inputs, layer.source, lookups, memory.taps, memory.places, plan.columns, first, count, memory.outputs);
      __syncthreads();
    }
    gather_moments(memory.outputs, count, plan.columns, memory.places, moments);
  }
  __syncthreads();
  write_moments(moments, count, partial + block * outputs + first);
}

// The gradients of W and b of a layer, Σ flow · input over the columns of a worker.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    weights_kernel(Inputs<T> inputs, Source<Real<T>> flow, Source<Real<T>> input, int fan_out, int fan_in, int workers,
                   Real<T>* __restrict__ partial, Plan plan, Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, plan, lookups.k, plan.outputs * (plan.depth + 1));
  int64_t block = blockIdx.x;
  const int first_i = digit(block, ceil_div(fan_in, plan.depth)) * plan.depth;
  const int first_o = digit(block, ceil_div(fan_out, plan.outputs)) * plan.outputs;
  const int held_i = min(plan.depth, fan_in - first_i), held_o = min(plan.outputs, fan_out - first_o);
  R *sums = memory.others, *bias = sums + held_o * held_i;
  list_taps(lookups, memory.taps);
  for (int item = threadIdx.x; item < held_o * (held_i + 1); item += blockDim.x) sums[item] = 0;
  for (int64_t begin = block * plan.columns; begin < inputs.columns; begin += int64_t(workers) * plan.columns) {
    __syncthreads();
    list_places(lookups, begin, inputs.columns, plan.columns, memory.places);
    __syncthreads();
    fill(inputs, flow, lookups, memory.taps, memory.places, plan.columns, first_o, held_o, memory.outputs);
    fill(inputs, input, lookups, memory.taps, memory.places, plan.columns, first_i, held_i, memory.panel);
    __syncthreads();
    outer_product(memory.outputs, held_o, memory.panel, held_i, plan.columns,
                  [&](int o, int i, R sum) { sums[o * held_i + i] += sum; });
    if (first_i == 0) row_sums(memory.outputs, held_o, plan.columns, [&](int o, R sum) { bias[o] += sum; });
  }
  __syncthreads();
  partial += block * fan_out * (fan_in + 1);
  for (int item = threadIdx.x; item < held_o * held_i; item += blockDim.x) {
    int o = item;
    const int i = digit(o, held_i);
    partial[int64_t(first_o + o) * fan_in + first_i + i] = sums[item];
  }
  if (first_i) return;
  for (int o = threadIdx.x; o < held_o; o += blockDim.x) partial[int64_t(fan_out) * fan_in + first_o + o] = bias[o];
}

// The gradients of scale and shift over the columns of a worker. `layer` computes the gradients of the rectified rows.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    affine_kernel(Inputs<T> inputs, Product<Real<T>> layer, int rows, int workers, Real<T>* __restrict__ scale_partial,
                  Real<T>* __restrict__ shift_partial, Plan plan, Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, plan, lookups.k, (2 + plan.columns) * plan.outputs);
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(rows, plan.outputs)) * plan.outputs;
  const int count = min(plan.outputs, rows - first);
  R *scales = memory.others, *shifts = scales + plan.outputs, *products = shifts + plan.outputs;
  list_taps(lookups, memory.taps);
  for (int row = threadIdx.x; row < 2 * plan.outputs; row += blockDim.x) scales[row] = 0;
  for (int64_t begin = block * plan.columns; begin < inputs.columns; begin += int64_t(workers) * plan.columns) {
    __syncthreads();
    list_places(lookups, begin, inputs.columns, plan.columns, memory.places);
    compute(inputs, layer.from(first), lookups, plan, count, memory);
    for (int item = threadIdx.x; item < count * plan.columns; item += blockDim.x) {
      int row = item;
      const Place place = memory.places[digit(row, plan.columns)];
      const R found = place.image < 0 ? R(0) : inputs.related(lookups, memory.taps, first + row, place);
      R& flow = memory.outputs[item];
      if (place.image < 0 || inputs.scale[first + row] * found + inputs.shift[first + row] <= 0) flow = 0;
      products[item] = flow * found;
    }
    __syncthreads();
    row_sums(products, count, plan.columns, [&](int row, R sum) { scales[row] += sum; });
    row_sums(memory.outputs, count, plan.columns, [&](int row, R sum) { shifts[row] += sum; });
  }
  __syncthreads();
  for (int row = threadIdx.x; row < count; row += blockDim.x) {
    scale_partial[block * rows + first + row] = scales[row];
    shift_partial[block * rows + first + row] = shifts[row];
  }
}

// The gradient of a map at `plan.columns` positions. Taps are processed one after the other; where several centres read
// a position through the same tap, these follow one after the other too. The map is β (α · gradient, for some groups of
// channels), or that of a concatenation (for some channels).
template <typename T, bool BETA>
__global__ void __launch_bounds__(THREADS, 4)
    readers_kernel(Inputs<T> inputs, Product<Real<T>> layer, int outputs, int share, T* __restrict__ to, Plan plan,
                   Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, plan, lookups.k, share * plan.outputs * plan.columns);
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(outputs, plan.outputs)) * plan.outputs;
  const int count = min(plan.outputs, outputs - first), tile = plan.columns, channels = share * outputs;
  const int64_t begin = block * tile, mine = begin + threadIdx.x;
  const bool exists = static_cast<int>(threadIdx.x) < tile && mine < inputs.positions;
  const int image = exists ? static_cast<int>(mine / inputs.area) : -1, source = exists ? int(mine % inputs.area) : 0;
  R* sums = memory.others;
  list_taps(lookups, memory.taps);
  for (int item = threadIdx.x; item < share * count * tile; item += blockDim.x) sums[item] = 0;
  for (int tap = 0; tap < lookups.k; ++tap) {
    Readers readers(lookups, source, tap, tap + 1);
    for (;;) {
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < tile) {
        Column pair = {};
        const bool found = exists && readers.next(lookups, memory.taps, pair);
        memory.places[threadIdx.x] = found ? place_of(lookups, image, pair.centre) : Place{-1, 0, 0, 0};
      }
      __syncthreads();
      int any = -1;
      for (int i = 0; i < tile; ++i) any = max(any, memory.places[i].image);
      if (any < 0) break;
      if (BETA || inputs.widths.layers)
        compute(inputs, layer.from(int64_t(first) * lookups.k + tap, lookups.k), lookups, plan, count, memory);
      each_column(tile, [&](int i, int part, int parts) {
        const Place place = memory.places[i];
        if (place.image < 0) return;
        const int64_t position = (begin + i) % inputs.area;
        for (int item = part; item < share * count; item += parts) {
          int s = item;
          const int o = digit(s, count), channel = first + o + s * outputs;
          const R value = memory.outputs[o * tile + i];
          if constexpr (BETA) {
            sums[item * tile + i] +=
                value * R(inputs.gradient[(int64_t(place.image) * channels + channel) * inputs.p + place.centre]);
          } else {
            const R found = inputs.map[(int64_t(place.image) * channels + channel) * inputs.area + position];
            const int row = channel * lookups.k + tap;
            sums[item * tile + i] +=
                inputs.widths.layers ? inputs.flow(row, found, value) : inputs.moments_gradient(row, found);
          }
        }
      });
    }
  }
  each_column(tile, [&](int i, int part, int parts) {
    if (begin + i >= inputs.positions) return;
    const int64_t image = (begin + i) / inputs.area, position = (begin + i) % inputs.area;
    for (int item = part; item < share * count; item += parts) {
      int s = item;
      const int o = digit(s, count), channel = first + o + s * outputs;
      to[(image * channels + channel) * inputs.area + position] = T(sums[item * tile + i]);
    }
  });
}

// The two maps of a product: `mine`, whose gradient is computed, and `other`. The row of a pair of taps is tap of mine
// · step_mine + tap of other · step_other. The step is 0 for centres, which have no tap.
template <typename T>
struct Sides {
  const T *mine, *other;
  int step_mine, step_other;
  bool to_centres, from_centres;  // whether `mine`, or `other`, holds centres
};

// The gradient of one side of a star or clique product, at a tile of positions or centres, over all pairs with them. In
// a clique product each pair also meets all other taps of its centre. One thread computes the dot products of a pair.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    product_backward_kernel(Inputs<T> inputs, Sides<T> sides, Product<Real<T>> layer, T* __restrict__ gradient,
                            int tile, int columns, Lookups lookups) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  Tap* taps = room.take<Tap>(lookups.k);
  Place* places = room.take<Place>(tile);
  Column* pairs = room.take<Column>(columns);
  int* there = room.take<int>(columns);  // the position in `other`, −1 if outside
  R *flows = room.take<R>(columns), *sums = room.take<R>(inputs.r * tile);
  const int64_t size = sides.to_centres ? inputs.p : inputs.area,
                other_size = sides.from_centres ? inputs.p : inputs.area;
  const int64_t total = sides.to_centres ? inputs.columns : inputs.positions;
  const int64_t begin = int64_t(blockIdx.x) * tile, mine = begin + threadIdx.x;
  const bool exists = static_cast<int>(threadIdx.x) < tile && mine < total;
  const int image = exists ? static_cast<int>(mine / size) : -1, source = exists ? int(mine % size) : 0;
  Readers readers(lookups, sides.to_centres ? 0 : source, 0, lookups.k);
  const int others = sides.from_centres || sides.to_centres ? 1 : lookups.k;

  list_taps(lookups, taps);
  if (sides.to_centres) list_places(lookups, begin, inputs.columns, tile, places);
  for (int item = threadIdx.x; item < inputs.r * tile; item += blockDim.x) sums[item] = 0;
  for (int tap = 0;; tap += columns / tile) {
    __syncthreads();
    if (!sides.to_centres)
      pair_readers(lookups, taps, readers, image, source, tile, columns, pairs);
    else
      pair_centres(lookups, taps, places, tile, tap, columns, false, pairs);
    __syncthreads();
    if (sides.to_centres ? tap >= lookups.k : !any_pair(pairs, tile)) break;
    for (int l = 0; l < others; ++l) {
      for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        const Column pair = pairs[column];
        if (pair.image < 0) continue;
        const Place place = place_of(lookups, pair.image, pair.centre);
        const int here = sides.to_centres ? pair.centre : pair.source;
        const int found = sides.from_centres ? pair.centre
                          : sides.to_centres ? pair.source
                                             : source_of(lookups, taps[l], place);
        const int row = pair.tap * (sides.to_centres ? sides.step_other : sides.step_mine) + l * sides.step_other;
        const R dot = inputs.dot(sides.mine, size, here, sides.other, other_size, found, pair.image);
        R flow = 0;
        if (!inputs.widths.layers) {
          flow = inputs.moments_gradient(row, dot);
        } else if (!(inputs.scale[row] * dot + inputs.shift[row] <= 0)) {
          const R* weight = layer.weights + int64_t(row) * layer.step_o;
          for (int d = 0; d < layer.depth; ++d)
            flow += weight[int64_t(d) * layer.step_d] * inputs.value(layer.source, lookups, taps, d, place);
          flow *= inputs.scale[row];
        }
        flows[column] = flow;
        there[column] = found;
      }
      __syncthreads();
      for (int item = threadIdx.x; item < inputs.r * tile; item += blockDim.x) {
        int c = item;
        const int i = digit(c, tile);
        R sum = 0;
        for (int column = i; column < columns; column += tile)
          if (pairs[column].image >= 0)
            sum += flows[column] * inputs.read(sides.other, other_size, pairs[column].image, c, there[column]);
        sums[item] += sum;
      }
      __syncthreads();
    }
  }
  for (int item = threadIdx.x; item < inputs.r * tile; item += blockDim.x) {
    int c = item;
    const int i = digit(c, tile);
    if (begin + i >= total) continue;
    gradient[((begin + i) / size * inputs.r + c) * size + (begin + i) % size] = T(sums[item]);
  }
}

// At most this many columns of a tile; and blocks that fill an H200.
constexpr int TILE = 64, MANY_BLOCKS = 256;
// At most this many outputs and inputs of a block that computes the gradients of a layer.
constexpr int OUTPUTS = 32, INPUTS = 64;

template <typename R>
size_t bytes_of(const Plan& plan, int k, int others) {
  Room room;
  Workspace<R>(room, plan, k, others);
  return room.bytes;
}

// The largest plan, up to `most`, that fits shared memory together with `others(plan)` elements. It has fewer columns
// where there would otherwise be fewer than MANY_BLOCKS blocks. Throws std::invalid_argument if even the smallest does
// not fit.
template <typename R, typename Others>
Plan plan_of(const Lookups& lookups, Plan most, int64_t columns, int outputs, int depth, Others others) {
  Plan plan = {most.columns, std::min(most.outputs, outputs), std::max(1, std::min(most.depth, depth))};
  while (plan.columns > 16 && ceil_div(columns, plan.columns) * ceil_div(outputs, plan.outputs) < MANY_BLOCKS)
    plan.columns /= 2;
  while (bytes_of<R>(plan, lookups.k, others(plan)) > size_t(lookups.shared_bytes)) {
    if (plan.outputs > 4 && plan.outputs >= plan.depth)
      plan.outputs = ceil_div(plan.outputs, 2);
    else if (plan.depth > 4)
      plan.depth = ceil_div(plan.depth, 2);
    else if (plan.columns > 4)
      plan.columns /= 2;
    else
      throw std::invalid_argument("a patchwise attention needs " +
                                  std::to_string(bytes_of<R>(plan, lookups.k, others(plan))) +
                                  " bytes of shared memory; expected at most " + std::to_string(lookups.shared_bytes));
  }
  return plan;
}

// Starts the kernels of a core, with the arrays and scratch memory that they share.
template <typename T>
struct Launcher {
  using R = Real<T>;
  Inputs<T> inputs;
  const Lookups& lookups;
  int workers;
  // Scratch memory: the outputs of all layers but the last, their gradients, and then the partial sums of the workers.
  R *held, *flowing, *partial;

  Launcher(const Array& centres, const Array& map, const Array& beta, const Array& scale, const Array& shift,
           const Array& parameters, const Lookups& lookups, const Core& core)
      : inputs{}, lookups(lookups), workers(core.workers) {
    inputs.centres = centres.as<const T>(), inputs.map = map.as<const T>(), inputs.beta = beta.as<const T>();
    inputs.scale = scale.as<const R>(), inputs.shift = shift.as<const R>(),
    inputs.parameters = parameters.as<const R>();
    inputs.kind = static_cast<Kind>(core.variant);
    inputs.r = static_cast<int>(map.sizes[1]), inputs.k = lookups.k;
    inputs.v = beta.data ? static_cast<int>(beta.sizes[1]) : 0, inputs.g = core.widths.last() / lookups.k;
    inputs.p = int64_t(lookups.oh) * lookups.ow, inputs.area = int64_t(lookups.h) * lookups.w;
    inputs.columns = map.sizes[0] * inputs.p, inputs.positions = map.sizes[0] * inputs.area;
    inputs.widths = core.widths, inputs.inverse_count = R(1) / R(inputs.columns);
  }

  const Widths& widths() const { return inputs.widths; }
  // Where the outputs of a layer begin in an array; layers count from 1.
  R* outputs(R* array, int layer) const { return array + widths().rows[layer - 1] * inputs.columns; }
  // The number of elements of the outputs of all layers but the last.
  int64_t hidden() const { return (widths().outputs - (widths().layers ? widths().last() : 0)) * inputs.columns; }
  // The rows that a layer reads.
  Source<R> input(int layer) const {
    return layer > 1 ? Source<R>{From::array, outputs(held, layer - 1)} : Source<R>{From::relation, nullptr};
  }
  Product<R> product_of(int layer) const {
    if (!layer) return {{From::relation, nullptr}, nullptr, nullptr, 0, 0, 0, 0};
    const int fan_in = widths().sizes[layer - 1], fan_out = widths().sizes[layer];
    const R* weights = inputs.parameters + widths().begins[layer - 1];
    return {input(layer), weights, weights + int64_t(fan_in) * fan_out, fan_in, 1, 1, fan_in};
  }
  // The product that gives the gradients of a layer's inputs from `first` on; `flow` gives those of its outputs.
  Product<R> inputs_gradient(int layer, Source<R> flow, int first) const {
    if (!layer) return {flow, nullptr, nullptr, 0, 0, 0, 0};
    const int fan_in = widths().sizes[layer - 1], fan_out = widths().sizes[layer];
    return {flow, inputs.parameters + widths().begins[layer - 1] + first, nullptr, 1, 0, fan_in, fan_out};
  }

  void layer(const Product<R>& layer, const Sink<T>& sink, int outputs) const {
    const auto none = [](const Plan&) { return 0; };
    const Plan plan = plan_of<R>(lookups, {TILE, TILE, MOST_ROWS}, inputs.columns, outputs, layer.depth, none);
    start(layer_kernel<T>, int64_t(ceil_div(inputs.columns, plan.columns)) * ceil_div(outputs, plan.outputs), THREADS,
          bytes_of<R>(plan, lookups.k, 0), lookups.stream, inputs, layer, sink, outputs, plan, lookups);
  }

  // Compute the outputs of all layers but the last.
  void forward() const {
    for (int l = 1; l < widths().layers; ++l) {
      Sink<T> sink = {};
      sink.array = outputs(held, l), sink.rectified = true;
      layer(product_of(l), sink, widths().sizes[l]);
    }
  }

  void attention(T* y) const {
    const auto last = product_of(widths().layers);
    const int share = inputs.v / inputs.g;
    const auto sums = [&](const Plan& plan) { return share * plan.columns; };
    const Plan plan =
        plan_of<R>(lookups, {TILE, TILE, MOST_ROWS}, inputs.columns * inputs.g, lookups.k, last.depth, sums);
    start(patchwise_attention_kernel<T>, int64_t(ceil_div(inputs.columns, plan.columns)) * inputs.g, THREADS,
          bytes_of<R>(plan, lookups.k, sums(plan)), lookups.stream, inputs, last, y, plan, lookups);
  }

  // As many workers as there are tiles, but at most about 4 · MANY_BLOCKS blocks in all, one per worker and panel.
  int workers_of(const Plan& plan, int64_t panels) const {
    const int wanted = ceil_div(MANY_BLOCKS * 4, panels);
    return std::max(1, std::min({ceil_div(inputs.columns, plan.columns), workers, wanted}));
  }

  void statistics(R* mean, R* variance) const {
    const auto last = product_of(widths().layers);
    const int rows = widths().last();
    const auto moments = [&](const Plan& plan) { return 3 * std::max(THREADS, plan.outputs); };
    const Plan plan = plan_of<R>(lookups, {TILE, TILE, MOST_ROWS}, inputs.columns, rows, last.depth, moments);
    const int panels = ceil_div(rows, plan.outputs), count = workers_of(plan, panels);
    auto* found = reinterpret_cast<Moments<R>*>(partial);
    start(patchwise_statistics_kernel<T>, int64_t(panels) * count, THREADS, bytes_of<R>(plan, lookups.k, moments(plan)),
          lookups.stream, inputs, last, rows, count, found, plan, lookups);
    merge_moments(found, count, rows, mean, variance, lookups.stream);
  }

  // The gradients of a layer's parameters.
  void weights(int layer, Source<R> flow, R* gradient) const {
    const int fan_in = widths().sizes[layer - 1], fan_out = widths().sizes[layer];
    const auto sums = [](const Plan& plan) { return plan.outputs * (plan.depth + 1); };
    const Plan plan = plan_of<R>(lookups, {TILE, OUTPUTS, INPUTS}, INT32_MAX, fan_out, fan_in, sums);
    const int64_t panels = int64_t(ceil_div(fan_out, plan.outputs)) * ceil_div(fan_in, plan.depth);
    const int count = workers_of(plan, panels);
    start(weights_kernel<T>, panels * count, THREADS, bytes_of<R>(plan, lookups.k, sums(plan)), lookups.stream, inputs,
          flow, input(layer), fan_out, fan_in, count, partial, plan, lookups);
    add_up(partial, count, int64_t(fan_out) * (fan_in + 1), gradient + widths().begins[layer - 1], lookups.stream);
  }

  // The gradient of a map of share · outputs channels; row output · k + tap of the layer belongs to an output and a
  // tap.
  template <bool BETA>
  void readers(const Product<R>& layer, int outputs, int share, T* to) const {
    const auto sums = [&](const Plan& plan) { return share * plan.outputs * plan.columns; };
    const Plan plan = plan_of<R>(lookups, {32, OUTPUTS, MOST_ROWS}, inputs.positions, outputs, layer.depth, sums);
    start(readers_kernel<T, BETA>, int64_t(ceil_div(inputs.positions, plan.columns)) * ceil_div(outputs, plan.outputs),
          THREADS, bytes_of<R>(plan, lookups.k, sums(plan)), lookups.stream, inputs, layer, outputs, share, to, plan,
          lookups);
  }

  // The gradient of β.
  void distribute(T* gradient) const {
    readers<true>(product_of(widths().layers), inputs.g, inputs.v / inputs.g, gradient);
  }

  // All gradients that are needed, from those of the last layer's outputs.
  void backward(Source<R> flow, const Array& centres, const Array& map, const Array& scale, const Array& shift,
                const Array& parameters) const {
    for (int l = widths().layers; l > 0; --l) {
      if (parameters.data) weights(l, flow, parameters.as<R>());
      if (l == 1) break;
      Sink<T> sink = {};
      sink.array = outputs(flowing, l - 1), sink.mask = outputs(held, l - 1);
      layer(inputs_gradient(l, flow, 0), sink, widths().sizes[l - 1]);
      flow = {From::array, outputs(flowing, l - 1)};
    }
    const int first = widths().layers ? 1 : 0;
    const auto rows = inputs_gradient(first, flow, inputs.before());
    affine(rows, scale, shift);
    if (inputs.kind == Kind::concatenation) {
      Sink<T> sink = {};
      sink.centres = centres.as<T>();
      if (centres.data) layer(inputs_gradient(first, flow, 0), sink, inputs.r);
      if (map.data) readers<false>(rows, inputs.r, 1, map.as<T>());
    } else if (inputs.kind == Kind::star_product) {
      if (centres.data) sides({inputs.centres, inputs.map, 0, 1, true, false}, rows, centres.as<T>());
      if (map.data) sides({inputs.map, inputs.centres, 1, 0, false, true}, rows, map.as<T>());
    } else {
      if (centres.data) sides({inputs.centres, inputs.map, lookups.k, 1, false, false}, rows, centres.as<T>());
      if (map.data) sides({inputs.map, inputs.centres, 1, lookups.k, false, false}, rows, map.as<T>());
    }
  }

 private:
  void affine(const Product<R>& flow, const Array& scale, const Array& shift) const {
    if (!scale.data && !shift.data) return;
    const int rows = widths().inputs() - inputs.before();
    int count = 0;
    R *scales = partial, *shifts = partial;
    if (widths().layers) {
      const auto sums = [](const Plan& plan) { return (2 + plan.columns) * plan.outputs; };
      const Plan plan = plan_of<R>(lookups, {TILE, OUTPUTS, MOST_ROWS}, INT32_MAX, rows, flow.depth, sums);
      const int panels = ceil_div(rows, plan.outputs);
      count = workers_of(plan, panels);
      shifts += int64_t(count) * rows;
      start(affine_kernel<T>, int64_t(panels) * count, THREADS, bytes_of<R>(plan, lookups.k, sums(plan)),
            lookups.stream, inputs, flow, rows, count, scales, shifts, plan, lookups);
    }
    if (scale.data) add_up(scales, count, rows, scale.as<R>(), lookups.stream);
    if (shift.data) add_up(shifts, count, rows, shift.as<R>(), lookups.stream);
  }

  void sides(const Sides<T>& sides, const Product<R>& flow, T* gradient) const {
    const auto bytes = [&](int tile, int columns) {
      Room room;
      room.take<Tap>(lookups.k), room.take<Place>(tile), room.take<Column>(columns), room.take<int>(columns),
          room.take<R>(columns);
      room.take<R>(inputs.r * tile);
      return room.bytes;
    };
    int tile = 32;
    while (tile > 1 && bytes(tile, THREADS / tile * tile) > size_t(lookups.shared_bytes)) tile /= 2;
    const int columns = tile * std::min(THREADS / tile, lookups.k);
    if (bytes(tile, columns) > size_t(lookups.shared_bytes))
      throw std::invalid_argument("a patchwise attention needs " + std::to_string(bytes(tile, columns)) +
                                  " bytes of shared memory; expected at most " + std::to_string(lookups.shared_bytes));
    const int64_t total = sides.to_centres ? inputs.columns : inputs.positions;
    start(product_backward_kernel<T>, ceil_div(total, tile), THREADS, bytes(tile, columns), lookups.stream, inputs,
          sides, flow, gradient, tile, columns, lookups);
  }
};

}  // namespace

void patchwise_attention(const Arrays& a, const Lookups& lookups, const Core& core) {
  with_type(a[1].type, [&]<typename T>() {
    Launcher<T> launcher(a[0], a[1], a[2], a[3], a[4], a[5], lookups, core);
    launcher.held = a[7].as<Real<T>>();
    launcher.forward();
    launcher.attention(a[6].as<T>());
  });
}

void patchwise_attention_backward(const Arrays& a, const Lookups& lookups, const Core& core) {
  const auto &gradient = a[0], &centres = a[7], &map = a[8], &beta = a[9], &scale = a[10], &shift = a[11];
  with_type(map.type, [&]<typename T>() {
    Launcher<T> launcher(a[1], a[2], a[3], a[4], a[5], a[6], lookups, core);
    launcher.inputs.gradient = gradient.as<const T>();
    launcher.held = a[13].as<Real<T>>();
    launcher.flowing = launcher.held + launcher.hidden();
    launcher.partial = launcher.flowing + launcher.hidden();
    launcher.forward();
    if (beta.data) launcher.distribute(beta.as<T>());
    launcher.backward({From::attention, nullptr}, centres, map, scale, shift, a[12]);
  });
}

void patchwise_statistics(const Arrays& a, const Lookups& lookups, const Core& core) {
  with_type(a[1].type, [&]<typename T>() {
    Launcher<T> launcher(a[0], a[1], {}, a[2], a[3], a[4], lookups, core);
    launcher.held = a[7].as<Real<T>>();
    launcher.partial = launcher.held + launcher.hidden();
    launcher.forward();
    launcher.statistics(a[5].as<Real<T>>(), a[6].as<Real<T>>());
  });
}

void patchwise_statistics_backward(const Arrays& a, const Lookups& lookups, const Core& core) {
  const auto &centres = a[8], &map = a[9], &scale = a[10], &shift = a[11];
  with_type(a[4].type, [&]<typename T>() {
    using R = Real<T>;
    Launcher<T> launcher(a[3], a[4], {}, a[5], a[6], a[7], lookups, core);
    auto& inputs = launcher.inputs;
    const int layers = inputs.widths.layers;
    inputs.mean_gradient = a[0].as<const R>(), inputs.variance_gradient = a[1].as<const R>(),
    inputs.mean = a[2].as<const R>();
    launcher.held = a[13].as<R>();
    launcher.flowing = launcher.held + launcher.hidden();
    R* last = launcher.flowing + launcher.hidden();
    launcher.partial = last + inputs.widths.last() * inputs.columns;
    launcher.forward();
    if (layers) {
      Sink<T> sink = {};
      sink.array = last, sink.mean_gradient = inputs.mean_gradient, sink.variance_gradient = inputs.variance_gradient;
      sink.mean = inputs.mean;
      launcher.layer(launcher.product_of(layers), sink, inputs.widths.last());
    }
    launcher.backward({From::array, last}, centres, map, scale, shift, a[12]);
  });
}
