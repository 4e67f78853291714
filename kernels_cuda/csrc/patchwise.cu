// The fused patchwise attention: the rows of a relation, [centres, ρ(scale ⊙ ψ_j + shift)] or ρ(scale ⊙ δ + shift) of the
// star or clique product δ, the mapping to α, and y_i[c] = Σ_j α[c mod g, j] β_j[c] (SAN Eq. 4); the statistics of what the
// mapping gives, for a batch norm behind it; and what flows back.
//
//     traffic    A column is a centre. Outputs of all layers but the last, n · hidden · p of them, go through memory; rows
//                of the relation and α, which have the size of the footprint, are generated panel by panel in shared
//                memory, once for every 64 outputs that need them. Maps and parameters come from the caches.
//     forward    A kernel for each layer, a block for up to 64 outputs × 64 columns, and one for the last layer and the
//                aggregation, a block for a group of channels × 64 columns.
//     backward   What flows to a layer is one more product of generated panels. Gradients of parameters: a block has up to
//                32 outputs × 64 inputs of a layer and the columns of one worker; workers are added up in order. What flows
//                to a map goes through the centres that read it: no atomics, and the same bits every time.
//     v1         Products of 4 outputs × 4 columns per thread. Exact float32; no tensor cores yet. The dot products of the
//                star and clique product are one thread's each, two loads from the caches per FMA.
//
// Not measured yet. Predicted of an H200, as in pairwise.cu: the concatenation with C = 256 (800 → 8 → 392), 56 × 56 ×
// 32 images, has 35,000 instructions per centre forward, 0.2 ms, and 150,000 backward, 0.9 ms. With C = 2048 (6,400 → 64 →
// 3,136), 7 × 7, 900,000 per centre; the first layer's 98 blocks do not fill the GPU: 0.2 ms forward, 1.5 ms backward.

#include "cores.h"

namespace {

enum class Kind { concatenation, star_product, clique_product };

// Where rows come from: the relation, an array (rows × columns of all images), or what flows to α from y.
enum class From { relation, array, attention };

template <typename R>
struct Source {
  From from;
  const R* array;
};

// All that a kernel reads, and its sizes.
template <typename T>
struct Patchwise {
  using R = Real<T>;
  const T *centres, *map, *beta, *gradient;
  const R *scale, *shift, *parameters;
  // Of statistics without a layer: what flows to the rows.
  const R *mean_gradient, *variance_gradient, *mean;
  R share;  // 1 / centres
  Kind kind;
  int r, v, g, k;
  int64_t p, area, columns, positions;  // of all images, the latter two
  Widths widths;

  // Rows of the first layer before those of the relation.
  __host__ __device__ int before() const { return kind == Kind::concatenation && widths.layers ? r : 0; }

  __device__ int64_t column_of(const Place& place) const { return place.image * p + place.centre; }

  // A row of the relation, before scale and shift.
  __device__ R related(const Lookups& at, const Tap* taps, int row, const Place& place) const {
    const int there = source_of(at, taps[row % k], place);
    if (there < 0) return 0;
    const T* value = map + place.image * r * area + there;
    if (kind == Kind::concatenation) return value[row / k * area];
    const T* other = centres;
    int64_t step = p;
    if (kind == Kind::star_product) {
      other += place.image * r * p + place.centre;
    } else {
      const int here = source_of(at, taps[row / k], place);
      if (here < 0) return 0;
      other += place.image * r * area + here;
      step = area;
    }
    R sum = 0;
#pragma unroll 4
    for (int c = 0; c < r; ++c) sum += R(other[c * step]) * R(value[c * area]);
    return sum;
  }

  // What flows to α of a group at a tap, from y.
  __device__ R flow_to_alpha(int group, int there, const Place& place) const {
    if (there < 0) return 0;
    const int64_t channel = int64_t(place.image) * v + group;
    const T *from = gradient + channel * p + place.centre, *to = beta + channel * area + there;
    R sum = 0;
#pragma unroll 4
    for (int64_t c = 0; c < v / g; ++c) sum += R(from[c * g * p]) * R(to[c * g * area]);
    return sum;
  }
  // A row of the concatenation, that of a channel and a tap.
  __device__ R concatenated(int c, int tap, int there, const Place& place) const {
    const R found = there < 0 ? R(0) : R(map[(int64_t(place.image) * r + c) * area + there]);
    const int row = c * k + tap;
    return widths.layers ? max(scale[row] * found + shift[row], R(0)) : found;
  }

  // A row of a source.
  __device__ R value(const Source<R>& source, const Lookups& at, const Tap* taps, int row, const Place& place) const {
    if (source.from == From::array) return source.array[row * columns + column_of(place)];
    if (source.from == From::attention) return flow_to_alpha(row / k, source_of(at, taps[row % k], place), place);
    if (row < before()) return centres[(int64_t(place.image) * r + row) * p + place.centre];
    row -= before();
    const R found = related(at, taps, row, place);
    return widths.layers ? max(scale[row] * found + shift[row], R(0)) : found;
  }

  // What flows to the relation's row from what flows to the rectified one, or from the statistics.
  __device__ R flow(int row, R found, R rectified) const {
    return scale[row] * found + shift[row] > 0 ? scale[row] * rectified : R(0);
  }
  __device__ R spread(int row, R found) const {
    return share * (mean_gradient[row] + 2 * variance_gradient[row] * (found - mean[row]));
  }
};

// A block's panels: outputs and rows, of so many columns; a plan for the GPU and for a footprint.
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

// Rows of a source from `first` on, 0 where there is no place. Those of a concatenation, of α and of an array need few
// instructions more than the loads.
template <typename T>
__device__ void fill(const Patchwise<T>& of, const Source<Real<T>>& source, const Lookups& at, const Tap* taps,
                     const Place* places, int columns, int first, int count, Real<T>* to) {
  using R = Real<T>;
  each_column(columns, [&](int column, int part, int parts) {
    const Place place = places[column];
    const int begin = first + part - (source.from == From::relation ? of.before() : 0);
    int group = begin / at.k, tap = begin - group * at.k;  // of row `begin`, if it is one of taps
    const bool listed = source.from == From::attention ||
                        (source.from == From::relation && of.kind == Kind::concatenation && begin >= 0);
    for (int row = part; row < count; row += parts) {
      R value = 0;
      if (place.image >= 0 && !listed) {
        value = of.value(source, at, taps, first + row, place);
      } else if (place.image >= 0) {
        const int there = source_of(at, taps[tap], place);
        value = source.from == From::attention ? of.flow_to_alpha(group, there, place)
                                               : of.concatenated(group, tap, there, place);
      }
      to[row * columns + column] = value;
      for (tap += parts; listed && tap >= at.k; tap -= at.k) ++group;
    }
  });
}

// A product of weights with rows that a source generates: Σ_d weights[o · step_o + d · step_d] · row d, and a bias[o · step_b]
// if there is one.
template <typename R>
struct Product {
  Source<R> source;
  const R *weights, *bias;
  int step_o, step_b, step_d, depth;

  // That of the outputs from `first` on, `step` apart.
  __device__ Product from(int64_t first, int step = 1) const {
    return {
        source, weights + first * step_o, bias ? bias + first * step_b : nullptr, step_o * step, step_b * step, step_d,
        depth};
  }
};

// `count` outputs in workspace.outputs. Begins and ends with a barrier.
template <typename T>
__device__ void compute(const Patchwise<T>& of, const Product<Real<T>>& layer, const Lookups& at, const Plan& plan,
                        int count, const Workspace<Real<T>>& memory) {
  using R = Real<T>;
  constexpr int W = WIDTH<R>;
  __syncthreads();
  for (int first = 0; first < layer.depth; first += plan.depth) {
    const int rows = min(plan.depth, layer.depth - first);
    fill(of, layer.source, at, memory.taps, memory.places, plan.columns, first, rows, memory.panel);
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

// Where a layer's outputs go: into an array, which they are rectified for or masked by another one, or as what flows to
// them from their statistics; or to centres.
template <typename T>
struct Sink {
  using R = Real<T>;
  R* array;
  T* centres;
  const R *mask, *mean_gradient, *variance_gradient, *mean;
  bool rectified;
};

// A layer's outputs, or what flows to its inputs.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    layer_kernel(Patchwise<T> of, Product<Real<T>> layer, Sink<T> sink, int outputs, Plan plan, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, plan, at.k, 0);
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(outputs, plan.outputs)) * plan.outputs;
  const int count = min(plan.outputs, outputs - first);
  list_taps(at, memory.taps);
  list_places(at, block * plan.columns, of.columns, plan.columns, memory.places);
  compute(of, layer.from(first), at, plan, count, memory);
  for (int item = threadIdx.x; item < count * plan.columns; item += blockDim.x) {
    int o = item;
    const Place place = memory.places[digit(o, plan.columns)];
    if (place.image < 0) continue;
    R value = layer.depth ? memory.outputs[item] : R(0);
    o += first;
    const int64_t at_column = o * of.columns + of.column_of(place);
    if (sink.mask && !(sink.mask[at_column] > 0)) value = 0;
    if (sink.mean) value = of.share * (sink.mean_gradient[o] + 2 * sink.variance_gradient[o] * (value - sink.mean[o]));
    if (sink.rectified) value = max(value, R(0));
    if (sink.centres)
      sink.centres[(int64_t(place.image) * outputs + o) * of.p + place.centre] = T(value);
    else
      sink.array[at_column] = value;
  }
}

// The last layer, a group of channels at a time, and the aggregation.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    patchwise_attention_kernel(Patchwise<T> of, Product<Real<T>> layer, T* __restrict__ y, Plan plan, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const int share = of.v / of.g;
  const Workspace<R> memory(room, plan, at.k, share * plan.columns);
  R* sums = memory.others;
  int64_t block = blockIdx.x;
  const int g = digit(block, of.g);
  list_taps(at, memory.taps);
  list_places(at, block * plan.columns, of.columns, plan.columns, memory.places);
  for (int item = threadIdx.x; item < share * plan.columns; item += blockDim.x) sums[item] = 0;
  for (int tap = 0; tap < at.k; tap += plan.outputs) {
    const int count = min(plan.outputs, at.k - tap);
    compute(of, layer.from(int64_t(g) * at.k + tap), at, plan, count, memory);
    for (int item = threadIdx.x; item < ceil_div(share, SIDES) * plan.columns; item += blockDim.x) {
      int rest = item;
      const int column = digit(rest, plan.columns), first = rest * SIDES;
      const Place place = memory.places[column];
      if (place.image < 0) continue;
      const T* beta[SIDES];  // beyond the last channel, it again
#pragma unroll
      for (int s = 0; s < SIDES; ++s)
        beta[s] = of.beta + (int64_t(place.image) * of.v + g + min(first + s, share - 1) * of.g) * of.area;
      R values[SIDES] = {};
      for (int j = 0; j < count; ++j) {
        const int there = source_of(at, memory.taps[tap + j], place);
        if (there < 0) continue;
        const R alpha = memory.outputs[j * plan.columns + column];
#pragma unroll
        for (int s = 0; s < SIDES; ++s) values[s] += alpha * R(beta[s][there]);
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
    y[(int64_t(place.image) * of.v + g + s * of.g) * of.p + place.centre] = T(sums[item]);
  }
}

// Moments of the last layer's outputs, or of the relation's rows, over the columns of a worker.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    patchwise_statistics_kernel(Patchwise<T> of, Product<Real<T>> layer, int outputs, int workers,
                                Moments<Real<T>>* __restrict__ partial, Plan plan, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(outputs, plan.outputs)) * plan.outputs;
  const int count = min(plan.outputs, outputs - first), watched = count * parts_of(count);
  const Workspace<R> memory(room, plan, at.k, 3 * watched);
  auto* moments = reinterpret_cast<Moments<R>*>(memory.others);
  list_taps(at, memory.taps);
  for (int item = threadIdx.x; item < watched; item += blockDim.x) moments[item] = {0, 0, 0};
  for (int64_t begin = block * plan.columns; begin < of.columns; begin += int64_t(workers) * plan.columns) {
    __syncthreads();
    list_places(at, begin, of.columns, plan.columns, memory.places);
    if (of.widths.layers) {
      compute(of, layer.from(first), at, plan, count, memory);
    } else {
      __syncthreads();
      fill(of, layer.source, at, memory.taps, memory.places, plan.columns, first, count, memory.outputs);
      __syncthreads();
    }
    observe(memory.outputs, count, plan.columns, memory.places, moments);
  }
  __syncthreads();
  write_moments(moments, count, partial + block * outputs + first);
}

// What flows to W and b of a layer, Σ flow · input over the columns of a worker.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    weights_kernel(Patchwise<T> of, Source<Real<T>> flow, Source<Real<T>> input, int outputs, int inputs, int workers,
                   Real<T>* __restrict__ partial, Plan plan, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, plan, at.k, plan.outputs * (plan.depth + 1));
  int64_t block = blockIdx.x;
  const int first_i = digit(block, ceil_div(inputs, plan.depth)) * plan.depth;
  const int first_o = digit(block, ceil_div(outputs, plan.outputs)) * plan.outputs;
  const int held_i = min(plan.depth, inputs - first_i), held_o = min(plan.outputs, outputs - first_o);
  R *sums = memory.others, *bias = sums + held_o * held_i;
  list_taps(at, memory.taps);
  for (int item = threadIdx.x; item < held_o * (held_i + 1); item += blockDim.x) sums[item] = 0;
  for (int64_t begin = block * plan.columns; begin < of.columns; begin += int64_t(workers) * plan.columns) {
    __syncthreads();
    list_places(at, begin, of.columns, plan.columns, memory.places);
    __syncthreads();
    fill(of, flow, at, memory.taps, memory.places, plan.columns, first_o, held_o, memory.outputs);
    fill(of, input, at, memory.taps, memory.places, plan.columns, first_i, held_i, memory.panel);
    __syncthreads();
    outer_product(memory.outputs, held_o, memory.panel, held_i, plan.columns,
                  [&](int o, int i, R sum) { sums[o * held_i + i] += sum; });
    if (first_i == 0) row_sums(memory.outputs, held_o, plan.columns, [&](int o, R sum) { bias[o] += sum; });
  }
  __syncthreads();
  partial += block * outputs * (inputs + 1);
  for (int item = threadIdx.x; item < held_o * held_i; item += blockDim.x) {
    int o = item;
    const int i = digit(o, held_i);
    partial[int64_t(first_o + o) * inputs + first_i + i] = sums[item];
  }
  if (first_i) return;
  for (int o = threadIdx.x; o < held_o; o += blockDim.x) partial[int64_t(outputs) * inputs + first_o + o] = bias[o];
}

// What flows to scale and shift, from all columns of a worker; `layer` is what flows to the rectified rows.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    affine_kernel(Patchwise<T> of, Product<Real<T>> layer, int rows, int workers, Real<T>* __restrict__ scale_partial,
                  Real<T>* __restrict__ shift_partial, Plan plan, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, plan, at.k, (2 + plan.columns) * plan.outputs);
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(rows, plan.outputs)) * plan.outputs;
  const int count = min(plan.outputs, rows - first);
  R *scales = memory.others, *shifts = scales + plan.outputs, *products = shifts + plan.outputs;
  list_taps(at, memory.taps);
  for (int row = threadIdx.x; row < 2 * plan.outputs; row += blockDim.x) scales[row] = 0;
  for (int64_t begin = block * plan.columns; begin < of.columns; begin += int64_t(workers) * plan.columns) {
    __syncthreads();
    list_places(at, begin, of.columns, plan.columns, memory.places);
    compute(of, layer.from(first), at, plan, count, memory);
    for (int item = threadIdx.x; item < count * plan.columns; item += blockDim.x) {
      int row = item;
      const Place place = memory.places[digit(row, plan.columns)];
      const R found = place.image < 0 ? R(0) : of.related(at, memory.taps, first + row, place);
      R& flow = memory.outputs[item];
      if (place.image < 0 || !(of.scale[first + row] * found + of.shift[first + row] > 0)) flow = 0;
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

// What flows to a map at `plan.columns` positions, tap by tap, and of those that several centres read through the same tap,
// reader by reader: to β, α · gradient, of some groups of channels; or to the map of a concatenation, of some channels.
template <typename T, bool BETA>
__global__ void __launch_bounds__(THREADS, 4) readers_kernel(Patchwise<T> of, Product<Real<T>> layer, int outputs,
                                                             int share, T* __restrict__ to, Plan plan, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  const Workspace<R> memory(room, plan, at.k, share * plan.outputs * plan.columns);
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(outputs, plan.outputs)) * plan.outputs;
  const int count = min(plan.outputs, outputs - first), tile = plan.columns, channels = share * outputs;
  const int64_t begin = block * tile, mine = begin + threadIdx.x;
  const bool exists = static_cast<int>(threadIdx.x) < tile && mine < of.positions;
  const int image = exists ? static_cast<int>(mine / of.area) : -1, source = exists ? int(mine % of.area) : 0;
  R* sums = memory.others;
  list_taps(at, memory.taps);
  for (int item = threadIdx.x; item < share * count * tile; item += blockDim.x) sums[item] = 0;
  for (int tap = 0; tap < at.k; ++tap) {
    Readers readers(at, source, tap, tap + 1);
    for (;;) {
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < tile) {
        Column pair = {};
        const bool found = exists && readers.next(at, memory.taps, pair);
        memory.places[threadIdx.x] = found ? place_of(at, image, pair.centre) : Place{-1, 0, 0, 0};
      }
      __syncthreads();
      int any = -1;
      for (int i = 0; i < tile; ++i) any = max(any, memory.places[i].image);
      if (any < 0) break;
      if (BETA || of.widths.layers) compute(of, layer.from(int64_t(first) * at.k + tap, at.k), at, plan, count, memory);
      each_column(tile, [&](int i, int part, int parts) {
        const Place place = memory.places[i];
        if (place.image < 0) return;
        const int64_t position = (begin + i) % of.area;
        for (int item = part; item < share * count; item += parts) {
          int s = item;
          const int o = digit(s, count), channel = first + o + s * outputs;
          const R value = memory.outputs[o * tile + i];
          if constexpr (BETA) {
            sums[item * tile + i] +=
                value * R(of.gradient[(int64_t(place.image) * channels + channel) * of.p + place.centre]);
          } else {
            const R found = of.map[(int64_t(place.image) * channels + channel) * of.area + position];
            const int row = channel * at.k + tap;
            sums[item * tile + i] += of.widths.layers ? of.flow(row, found, value) : of.spread(row, found);
          }
        }
      });
    }
  }
  each_column(tile, [&](int i, int part, int parts) {
    if (begin + i >= of.positions) return;
    const int64_t image = (begin + i) / of.area, position = (begin + i) % of.area;
    for (int item = part; item < share * count; item += parts) {
      int s = item;
      const int o = digit(s, count), channel = first + o + s * outputs;
      to[(image * channels + channel) * of.area + position] = T(sums[item * tile + i]);
    }
  });
}

// The two maps of a product: what flows to `mine`, whose taps are rows · step_mine, from `other`, whose are rows ·
// step_other. Of centres there is no tap, and its step is 0.
template <typename T>
struct Sides {
  const T *mine, *other;
  int step_mine, step_other;
  bool at_centres, from_centres;  // Is `mine` one of centres, or `other`?
};

// What flows to one side of a star or clique product, at a tile of positions or centres, through all pairs that they are
// in; and of a clique product, of each of them with every other tap of its centre. A thread has a pair's dot products.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    product_backward_kernel(Patchwise<T> of, Sides<T> sides, Product<Real<T>> layer, T* __restrict__ gradient, int tile,
                            int columns, Lookups at) {
  using R = Real<T>;
  Room room = {shared_memory<unsigned char>()};
  Tap* taps = room.take<Tap>(at.k);
  Place* places = room.take<Place>(tile);
  Column* pairs = room.take<Column>(columns);
  int* there = room.take<int>(columns);  // in `other`, −1 if outside
  R *flows = room.take<R>(columns), *sums = room.take<R>(of.r * tile);
  const int64_t size = sides.at_centres ? of.p : of.area, other_size = sides.from_centres ? of.p : of.area;
  const int64_t total = sides.at_centres ? of.columns : of.positions;
  const int64_t begin = int64_t(blockIdx.x) * tile, mine = begin + threadIdx.x;
  const bool exists = static_cast<int>(threadIdx.x) < tile && mine < total;
  const int image = exists ? static_cast<int>(mine / size) : -1, source = exists ? int(mine % size) : 0;
  Readers readers(at, sides.at_centres ? 0 : source, 0, at.k);
  const int others = sides.from_centres || sides.at_centres ? 1 : at.k;

  list_taps(at, taps);
  if (sides.at_centres) list_places(at, begin, of.columns, tile, places);
  for (int item = threadIdx.x; item < of.r * tile; item += blockDim.x) sums[item] = 0;
  for (int tap = 0;; tap += columns / tile) {
    __syncthreads();
    if (!sides.at_centres)
      pair_readers(at, taps, readers, image, source, tile, columns, pairs);
    else
      pair_centres(at, taps, places, tile, tap, columns, pairs);
    __syncthreads();
    if (sides.at_centres ? tap >= at.k : !any_pair(pairs, tile)) break;
    for (int l = 0; l < others; ++l) {
      for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        const Column pair = pairs[column];
        there[column] = -1;
        if (pair.image < 0) continue;
        const Place place = place_of(at, pair.image, pair.centre);
        const int64_t here = sides.at_centres ? pair.centre : pair.source;
        const int found = sides.from_centres ? pair.centre
                          : sides.at_centres ? pair.source
                                             : source_of(at, taps[l], place);
        if (found < 0) continue;
        const int row = pair.tap * (sides.at_centres ? sides.step_other : sides.step_mine) + l * sides.step_other;
        const T* left = sides.mine + pair.image * of.r * size + here;
        const T* right = sides.other + pair.image * of.r * other_size + found;
        R dot = 0;
#pragma unroll 4
        for (int c = 0; c < of.r; ++c) dot += R(left[c * size]) * R(right[c * other_size]);
        R flow = 0;
        if (!of.widths.layers) {
          flow = of.spread(row, dot);
        } else if (of.scale[row] * dot + of.shift[row] > 0) {
          const R* weight = layer.weights + int64_t(row) * layer.step_o;
          for (int d = 0; d < layer.depth; ++d)
            flow += weight[int64_t(d) * layer.step_d] * of.value(layer.source, at, taps, d, place);
          flow *= of.scale[row];
        }
        flows[column] = flow;
        there[column] = found;
      }
      __syncthreads();
      for (int item = threadIdx.x; item < of.r * tile; item += blockDim.x) {
        int c = item;
        const int i = digit(c, tile);
        R sum = 0;
        for (int column = i; column < columns; column += tile)
          if (there[column] >= 0)
            sum +=
                flows[column] * R(sides.other[(int64_t(pairs[column].image) * of.r + c) * other_size + there[column]]);
        sums[item] += sum;
      }
      __syncthreads();
    }
  }
  for (int item = threadIdx.x; item < of.r * tile; item += blockDim.x) {
    int c = item;
    const int i = digit(c, tile);
    if (begin + i >= total) continue;
    gradient[((begin + i) / size * of.r + c) * size + (begin + i) % size] = T(sums[item]);
  }
}

// Columns of a tile at most, and blocks that fill an H200.
constexpr int TILE = 64, MANY_BLOCKS = 256;
// Outputs and inputs of a block that has a layer's gradients.
constexpr int OUTPUTS = 32, INPUTS = 64;

template <typename R>
size_t bytes_of(const Plan& plan, int k, int others) {
  Room room;
  Workspace<R>(room, plan, k, others);
  return room.bytes;
}

// `others(plan)` elements besides. As many of each as there are, up to those in `most`, and fit shared memory; but fewer
// columns if that makes more blocks, until there are MANY_BLOCKS; std::invalid_argument if nothing fits.
template <typename R, typename Others>
Plan plan_of(const Lookups& at, Plan most, int64_t columns, int outputs, int depth, Others others) {
  Plan plan = {most.columns, std::min(most.outputs, outputs), std::max(1, std::min(most.depth, depth))};
  while (plan.columns > 16 && ceil_div(columns, plan.columns) * ceil_div(outputs, plan.outputs) < MANY_BLOCKS)
    plan.columns /= 2;
  while (bytes_of<R>(plan, at.k, others(plan)) > size_t(at.shared_bytes)) {
    if (plan.outputs > 4 && plan.outputs >= plan.depth)
      plan.outputs = ceil_div(plan.outputs, 2);
    else if (plan.depth > 4)
      plan.depth = ceil_div(plan.depth, 2);
    else if (plan.columns > 4)
      plan.columns /= 2;
    else
      throw std::invalid_argument("a patchwise attention needs " +
                                  std::to_string(bytes_of<R>(plan, at.k, others(plan))) +
                                  " bytes of shared memory; expected at most " + std::to_string(at.shared_bytes));
  }
  return plan;
}

// The kernels of a core, and the memory that they share.
template <typename T>
struct Launcher {
  using R = Real<T>;
  Patchwise<T> of;
  const Lookups& at;
  int workers;
  // The outputs of all layers but the last, and what flows to those of all that need it, in scratch memory; and partial
  // sums of the workers behind them.
  R *held, *flowing, *partial;

  Launcher(const Array& centres, const Array& map, const Array& beta, const Array& scale, const Array& shift,
           const Array& parameters, const Lookups& at, const Core& core)
      : of{}, at(at), workers(core.workers) {
    of.centres = centres.as<const T>(), of.map = map.as<const T>(), of.beta = beta.as<const T>();
    of.scale = scale.as<const R>(), of.shift = shift.as<const R>(), of.parameters = parameters.as<const R>();
    of.kind = static_cast<Kind>(core.flag);
    of.r = static_cast<int>(map.sizes[1]), of.k = at.k;
    of.v = beta.data ? static_cast<int>(beta.sizes[1]) : 0, of.g = core.widths.last() / at.k;
    of.p = int64_t(at.oh) * at.ow, of.area = int64_t(at.h) * at.w;
    of.columns = map.sizes[0] * of.p, of.positions = map.sizes[0] * of.area;
    of.widths = core.widths, of.share = R(1) / R(of.columns);
  }

  const Widths& widths() const { return of.widths; }
  // Columns of a layer's outputs; layers count from 1.
  R* outputs(R* array, int layer) const { return array + widths().rows[layer - 1] * of.columns; }
  // Rows of the outputs of all layers but the last.
  int64_t hidden() const { return (widths().outputs - (widths().layers ? widths().last() : 0)) * of.columns; }
  // What a layer reads.
  Source<R> input(int layer) const {
    return layer > 1 ? Source<R>{From::array, outputs(held, layer - 1)} : Source<R>{From::relation, nullptr};
  }
  Product<R> product_of(int layer) const {
    if (!layer) return {{From::relation, nullptr}, nullptr, nullptr, 0, 0, 0, 0};
    const int inputs = widths().sizes[layer - 1], outputs = widths().sizes[layer];
    const R* weights = of.parameters + widths().begins[layer - 1];
    return {input(layer), weights, weights + int64_t(inputs) * outputs, inputs, 1, 1, inputs};
  }
  // From what flows to a layer's outputs to what flows to its inputs from `first` on.
  Product<R> back(int layer, Source<R> flow, int first) const {
    if (!layer) return {flow, nullptr, nullptr, 0, 0, 0, 0};
    const int inputs = widths().sizes[layer - 1], outputs = widths().sizes[layer];
    return {flow, of.parameters + widths().begins[layer - 1] + first, nullptr, 1, 0, inputs, outputs};
  }

  void layer(const Product<R>& layer, const Sink<T>& sink, int outputs) const {
    const auto none = [](const Plan&) { return 0; };
    const Plan plan = plan_of<R>(at, {TILE, TILE, MOST_ROWS}, of.columns, outputs, layer.depth, none);
    start(layer_kernel<T>, int64_t(ceil_div(of.columns, plan.columns)) * ceil_div(outputs, plan.outputs), THREADS,
          bytes_of<R>(plan, at.k, 0), at.stream, of, layer, sink, outputs, plan, at);
  }

  // The outputs of all layers but the last.
  void forward() const {
    for (int l = 1; l < widths().layers; ++l) {
      Sink<T> sink = {};
      sink.array = outputs(held, l), sink.rectified = true;
      layer(product_of(l), sink, widths().sizes[l]);
    }
  }

  void attention(T* y) const {
    const auto last = product_of(widths().layers);
    const int share = of.v / of.g;
    const auto sums = [&](const Plan& plan) { return share * plan.columns; };
    const Plan plan = plan_of<R>(at, {TILE, TILE, MOST_ROWS}, of.columns * of.g, at.k, last.depth, sums);
    start(patchwise_attention_kernel<T>, int64_t(ceil_div(of.columns, plan.columns)) * of.g, THREADS,
          bytes_of<R>(plan, at.k, sums(plan)), at.stream, of, last, y, plan, at);
  }

  // As many workers as there are tiles, or as make about MANY_BLOCKS · 4 blocks of so many panels.
  int workers_of(const Plan& plan, int64_t panels) const {
    const int wanted = ceil_div(MANY_BLOCKS * 4, panels);
    return std::max(1, std::min({ceil_div(of.columns, plan.columns), workers, wanted}));
  }

  void statistics(R* mean, R* variance) const {
    const auto last = product_of(widths().layers);
    const int rows = widths().last();
    const auto moments = [&](const Plan& plan) { return 3 * std::max(THREADS, plan.outputs); };
    const Plan plan = plan_of<R>(at, {TILE, TILE, MOST_ROWS}, of.columns, rows, last.depth, moments);
    const int panels = ceil_div(rows, plan.outputs), count = workers_of(plan, panels);
    auto* found = reinterpret_cast<Moments<R>*>(partial);
    start(patchwise_statistics_kernel<T>, int64_t(panels) * count, THREADS, bytes_of<R>(plan, at.k, moments(plan)),
          at.stream, of, last, rows, count, found, plan, at);
    merge_moments(found, count, rows, mean, variance, at.stream);
  }

  // What flows to a layer's parameters.
  void weights(int layer, Source<R> flow, R* gradient) const {
    const int inputs = widths().sizes[layer - 1], outputs = widths().sizes[layer];
    const auto sums = [](const Plan& plan) { return plan.outputs * (plan.depth + 1); };
    const Plan plan = plan_of<R>(at, {TILE, OUTPUTS, INPUTS}, INT32_MAX, outputs, inputs, sums);
    const int64_t panels = int64_t(ceil_div(outputs, plan.outputs)) * ceil_div(inputs, plan.depth);
    const int count = workers_of(plan, panels);
    start(weights_kernel<T>, panels * count, THREADS, bytes_of<R>(plan, at.k, sums(plan)), at.stream, of, flow,
          input(layer), outputs, inputs, count, partial, plan, at);
    add_up(partial, count, int64_t(outputs) * (inputs + 1), gradient + widths().begins[layer - 1], at.stream);
  }

  // What flows to a map of share · outputs channels; rows of the layer are outputs · k + tap.
  template <bool BETA>
  void readers(const Product<R>& layer, int outputs, int share, T* to) const {
    const auto sums = [&](const Plan& plan) { return share * plan.outputs * plan.columns; };
    const Plan plan = plan_of<R>(at, {32, OUTPUTS, MOST_ROWS}, of.positions, outputs, layer.depth, sums);
    start(readers_kernel<T, BETA>, int64_t(ceil_div(of.positions, plan.columns)) * ceil_div(outputs, plan.outputs),
          THREADS, bytes_of<R>(plan, at.k, sums(plan)), at.stream, of, layer, outputs, share, to, plan, at);
  }

  // What flows to β.
  void distribute(T* gradient) const { readers<true>(product_of(widths().layers), of.g, of.v / of.g, gradient); }

  // From what flows to the last layer's outputs to all that is wanted.
  void backward(Source<R> flow, const Array& centres, const Array& map, const Array& scale, const Array& shift,
                const Array& parameters) const {
    for (int l = widths().layers; l > 0; --l) {
      if (parameters.data) weights(l, flow, parameters.as<R>());
      if (l == 1) break;
      Sink<T> sink = {};
      sink.array = outputs(flowing, l - 1), sink.mask = outputs(held, l - 1);
      layer(back(l, flow, 0), sink, widths().sizes[l - 1]);
      flow = {From::array, outputs(flowing, l - 1)};
    }
    const int first = widths().layers ? 1 : 0;
    const auto rows = back(first, flow, of.before());
    affine(rows, scale, shift);
    if (of.kind == Kind::concatenation) {
      Sink<T> sink = {};
      sink.centres = centres.as<T>();
      if (centres.data) layer(back(first, flow, 0), sink, of.r);
      if (map.data) readers<false>(rows, of.r, 1, map.as<T>());
    } else if (of.kind == Kind::star_product) {
      if (centres.data) sides({of.centres, of.map, 0, 1, true, false}, rows, centres.as<T>());
      if (map.data) sides({of.map, of.centres, 1, 0, false, true}, rows, map.as<T>());
    } else {
      if (centres.data) sides({of.centres, of.map, at.k, 1, false, false}, rows, centres.as<T>());
      if (map.data) sides({of.map, of.centres, 1, at.k, false, false}, rows, map.as<T>());
    }
  }

 private:
  void affine(const Product<R>& flow, const Array& scale, const Array& shift) const {
    if (!scale.data && !shift.data) return;
    const int rows = widths().inputs() - of.before();
    int count = 0;
    R *scales = partial, *shifts = partial;
    if (widths().layers) {
      const auto sums = [](const Plan& plan) { return (2 + plan.columns) * plan.outputs; };
      const Plan plan = plan_of<R>(at, {TILE, OUTPUTS, MOST_ROWS}, INT32_MAX, rows, flow.depth, sums);
      const int panels = ceil_div(rows, plan.outputs);
      count = workers_of(plan, panels);
      shifts += int64_t(count) * rows;
      start(affine_kernel<T>, int64_t(panels) * count, THREADS, bytes_of<R>(plan, at.k, sums(plan)), at.stream, of,
            flow, rows, count, scales, shifts, plan, at);
    }
    if (scale.data) add_up(scales, count, rows, scale.as<R>(), at.stream);
    if (shift.data) add_up(shifts, count, rows, shift.as<R>(), at.stream);
  }

  void sides(const Sides<T>& sides, const Product<R>& flow, T* gradient) const {
    const auto bytes = [&](int tile, int columns) {
      Room room;
      room.take<Tap>(at.k), room.take<Place>(tile), room.take<Column>(columns), room.take<int>(columns),
          room.take<R>(columns);
      room.take<R>(of.r * tile);
      return room.bytes;
    };
    int tile = 32;
    while (tile > 1 && bytes(tile, THREADS / tile * tile) > size_t(at.shared_bytes)) tile /= 2;
    const int columns = tile * std::min(THREADS / tile, at.k);
    if (bytes(tile, columns) > size_t(at.shared_bytes))
      throw std::invalid_argument("a patchwise attention needs " + std::to_string(bytes(tile, columns)) +
                                  " bytes of shared memory; expected at most " + std::to_string(at.shared_bytes));
    const int64_t total = sides.at_centres ? of.columns : of.positions;
    start(product_backward_kernel<T>, ceil_div(total, tile), THREADS, bytes(tile, columns), at.stream, of, sides, flow,
          gradient, tile, columns, at);
  }
};

}  // namespace

void patchwise_attention(const Arrays& a, const Lookups& at, const Core& core) {
  with_type(a[1].type, [&]<typename T>() {
    Launcher<T> launcher(a[0], a[1], a[2], a[3], a[4], a[5], at, core);
    launcher.held = a[7].as<Real<T>>();
    launcher.forward();
    launcher.attention(a[6].as<T>());
  });
}

void patchwise_attention_backward(const Arrays& a, const Lookups& at, const Core& core) {
  const auto &gradient = a[0], &centres = a[7], &map = a[8], &beta = a[9], &scale = a[10], &shift = a[11];
  with_type(map.type, [&]<typename T>() {
    Launcher<T> launcher(a[1], a[2], a[3], a[4], a[5], a[6], at, core);
    launcher.of.gradient = gradient.as<const T>();
    launcher.held = a[13].as<Real<T>>();
    launcher.flowing = launcher.held + launcher.hidden();
    launcher.partial = launcher.flowing + launcher.hidden();
    launcher.forward();
    if (beta.data) launcher.distribute(beta.as<T>());
    launcher.backward({From::attention, nullptr}, centres, map, scale, shift, a[12]);
  });
}

void patchwise_statistics(const Arrays& a, const Lookups& at, const Core& core) {
  with_type(a[1].type, [&]<typename T>() {
    Launcher<T> launcher(a[0], a[1], {}, a[2], a[3], a[4], at, core);
    launcher.held = a[7].as<Real<T>>();
    launcher.partial = launcher.held + launcher.hidden();
    launcher.forward();
    launcher.statistics(a[5].as<Real<T>>(), a[6].as<Real<T>>());
  });
}

void patchwise_statistics_backward(const Arrays& a, const Lookups& at, const Core& core) {
  const auto &centres = a[8], &map = a[9], &scale = a[10], &shift = a[11];
  with_type(a[4].type, [&]<typename T>() {
    using R = Real<T>;
    Launcher<T> launcher(a[3], a[4], {}, a[5], a[6], a[7], at, core);
    auto& of = launcher.of;
    const int layers = of.widths.layers;
    of.mean_gradient = a[0].as<const R>(), of.variance_gradient = a[1].as<const R>(), of.mean = a[2].as<const R>();
    launcher.held = a[13].as<R>();
    launcher.flowing = launcher.held + launcher.hidden();
    R* last = launcher.flowing + launcher.hidden();
    launcher.partial = last + of.widths.last() * of.columns;
    launcher.forward();
    if (layers) {
      Sink<T> sink = {};
      sink.array = last, sink.mean_gradient = of.mean_gradient, sink.variance_gradient = of.variance_gradient;
      sink.mean = of.mean;
      launcher.layer(launcher.product_of(layers), sink, of.widths.last());
    }
    launcher.backward({From::array, last}, centres, map, scale, shift, a[12]);
  });
}
