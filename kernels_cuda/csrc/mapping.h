// What the cores of the fused attentions have in common: a chunk of columns in shared memory, each of them a centre or a
// pair of a centre and a tap, and the linear layers of the mapping from its rows to its logits, forward and backward.
//
// Rows × columns lie row by row in shared memory. The rows of the first layer come in panels, which are generated when
// they are needed and never stored elsewhere; the outputs of all layers of a chunk stay. Products are exact, one FMA per
// multiply-add in the type of the sums: tensor cores, which would round to TF32, are not used.

#pragma once

#include <math.h>

#include "frame.h"

// Outputs, or inputs, whose sums a thread holds in registers.
constexpr int SIDES = 4;

// Columns of them: what one instruction loads from shared memory.
template <typename R>
constexpr int WIDTH = 16 / sizeof(R);

// Columns of a chunk, and rows of a panel, at most.
constexpr int MOST_COLUMNS = 256, MOST_ROWS = 32;

// A tap of the footprint in the continued map, from a centre in the first row and column.
struct Tap {
  int row, column;
};

// A centre of an image, and its row and column. No image is −1.
struct alignas(16) Place {
  int image, centre, row, column;
};

// A pair: centre and tap of an image, and where in the map the tap reads, −1 if outside. Where there is no pair, image,
// centre and source are −1.
struct alignas(16) Column {
  int image, centre, source, tap;
};

// Arrays in shared memory, one behind the other; without memory, only the bytes that they take.
struct Room {
  unsigned char* memory = nullptr;
  size_t bytes = 0;

  template <typename T>
  __host__ __device__ T* take(int64_t count) {
    T* array = memory ? reinterpret_cast<T*>(memory + bytes) : nullptr;
    bytes += (count * sizeof(T) + 15) / 16 * 16;
    return array;
  }
};

// Where the footprint's taps lie, by tap; from many threads, before a barrier.
__device__ inline void list_taps(const Lookups& at, Tap* taps) {
  for (int m = threadIdx.x; m < at.m; m += blockDim.x) {
    const Piece piece = at.pieces[m];
    for (int i = 0; i < piece.length; ++i) taps[piece.tap + i * piece.step] = {piece.whole, piece.column + i};
  }
}

__device__ inline Place place_of(const Lookups& at, int image, int centre) {
  return {image, centre, centre / at.ow, centre % at.ow};
}

// The `count` centres from `first` on, of all images' `total`; from many threads, before a barrier.
__device__ inline void list_places(const Lookups& at, int64_t first, int64_t total, int count, Place* places) {
  const int64_t p = int64_t(at.oh) * at.ow;
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    places[i] = first + i < total ? place_of(at, static_cast<int>((first + i) / p), static_cast<int>((first + i) % p))
                                  : Place{-1, 0, 0, 0};
}

// Where a tap of the centre reads the map, −1 if outside.
__device__ inline int source_of(const Lookups& at, const Tap& tap, const Place& place) {
  const int y = at.rows[tap.row + place.row], x = at.columns[tap.column + place.column];
  return min(y, x) < 0 ? -1 : y * at.w + x;
}

// use(i, part, parts) for every i below `count`, of so many parts that all threads have work: to each its column, and of
// its rows part, part + parts, and so on.
template <typename Use>
__device__ void each_column(int count, Use use) {
  const int parts = max(1, static_cast<int>(blockDim.x) / count);
  for (int item = threadIdx.x; item < count * parts; item += blockDim.x) {
    const int part = item / count;
    use(item - part * count, part, parts);
  }
}

// The pairs of the centres at so many places with the taps from `tap` on: a tap's pairs follow each other.
__device__ inline void pair_centres(const Lookups& at, const Tap* taps, const Place* places, int positions, int tap,
                                    int columns, Column* pairs) {
  for (int column = threadIdx.x; column < columns; column += blockDim.x) {
    const int j = column / positions;
    const Place place = places[column - j * positions];
    Column pair = {-1, -1, -1, 0};
    if (place.image >= 0 && tap + j < at.k)
      pair = {place.image, place.centre, source_of(at, taps[tap + j], place), tap + j};
    pairs[column] = pair;
  }
}

// The pairs that read a position of the map, in turn: copies of its row, copies of its column, taps from `tap` up to `end`.
struct Readers {
  int y, x, row, column, tap, begin, end;

  __device__ Readers(const Lookups& at, int source, int begin, int end) : tap(begin), begin(begin), end(end) {
    y = source / at.w, x = source - y * at.w;
    row = at.row_starts[y], column = at.column_starts[x];
  }

  // The next one's centre and tap; is there one?
  __device__ bool next(const Lookups& at, const Tap* taps, Column& pair) {
    while (row < at.row_starts[y + 1]) {
      while (column < at.column_starts[x + 1]) {
        const int q = at.row_copies[row], u = at.column_copies[column];
        while (tap < end) {
          const int cy = q - taps[tap].row, cx = u - taps[tap].column;
          ++tap;
          if (static_cast<unsigned>(cy) < static_cast<unsigned>(at.oh) &&
              static_cast<unsigned>(cx) < static_cast<unsigned>(at.ow)) {
            pair.centre = cy * at.ow + cx, pair.tap = tap - 1;
            return true;
          }
        }
        tap = begin;
        ++column;
      }
      column = at.column_starts[x];
      ++row;
    }
    return false;
  }
};

// The next `columns / positions` pairs of each of the block's positions: thread i deals with position i, the others wait.
__device__ inline void pair_readers(const Lookups& at, const Tap* taps, Readers& readers, int image, int source,
                                    int positions, int columns, Column* pairs) {
  const int i = threadIdx.x;
  if (i >= positions) return;
  for (int column = i; column < columns; column += positions) {
    Column pair = {-1, -1, -1, 0};
    if (image >= 0 && readers.next(at, taps, pair)) pair.image = image, pair.source = source;
    pairs[column] = pair;
  }
}

// Has any position of the block found a pair? The first column of each tells.
__device__ inline bool any_pair(const Column* pairs, int positions) {
  int most = -1;
  for (int i = 0; i < positions; ++i) most = max(most, pairs[i].image);
  return most >= 0;
}

// The linear layers: inputs of the first, then the outputs of each. In `parameters`, each has W (outputs × inputs), then b.
struct Widths {
  static constexpr int MOST_LAYERS = 8;
  int layers = 0, sizes[MOST_LAYERS + 1] = {};
  int begins[MOST_LAYERS] = {};  // of each layer's W in `parameters`
  int rows[MOST_LAYERS] = {};    // of each layer's outputs among those of all
  int parameters = 0, outputs = 0;

  Widths() = default;
  explicit Widths(const std::vector<int64_t>& numbers) {
    if (numbers.empty() || numbers.size() > MOST_LAYERS + 1)
      throw std::invalid_argument("a mapping has " + std::to_string(numbers.size()) + " widths; expected 1 to " +
                                  std::to_string(MOST_LAYERS + 1));
    layers = static_cast<int>(numbers.size()) - 1;
    for (int l = 0; l <= layers; ++l) sizes[l] = static_cast<int>(numbers[l]);
    for (int l = 0; l < layers; ++l) {
      begins[l] = parameters, rows[l] = outputs;
      parameters += (sizes[l] + 1) * sizes[l + 1];
      outputs += sizes[l + 1];
    }
  }
  __host__ __device__ int inputs() const { return sizes[0]; }
  __host__ __device__ int last() const { return sizes[layers]; }
  // Rows of a chunk that stay: without a layer, the inputs.
  __host__ __device__ int held() const { return layers ? outputs : sizes[0]; }
  __host__ __device__ int last_row() const { return layers ? rows[layers - 1] : 0; }
};

// finish(o, column, sums) with the WIDTH sums Σ_d weights[o · step_o + d · step_d] · in[d][column…], of all outputs o.
template <typename R, typename Finish>
__device__ void product(const R* weights, int step_o, int step_d, const R* in, int depth, int outputs, int columns,
                        Finish finish) {
  constexpr int W = WIDTH<R>;
  const int vectors = columns / W;
  for (int item = threadIdx.x; item < ceil_div(outputs, SIDES) * vectors; item += blockDim.x) {
    int rest = item;
    const int column = digit(rest, vectors) * W, first = rest * SIDES;
    const R* weight[SIDES];  // beyond the last one, it again, so that no load waits for a branch
#pragma unroll
    for (int o = 0; o < SIDES; ++o) weight[o] = weights + int64_t(min(first + o, outputs - 1)) * step_o;
    R sums[SIDES][W] = {};
    const R* from = in + column;
#pragma unroll 4
    for (int d = 0; d < depth; ++d) {
      const auto values = load<W>(from);
      from += columns;
#pragma unroll
      for (int o = 0; o < SIDES; ++o) {
        const R scale = *weight[o];
        weight[o] += step_d;
#pragma unroll
        for (int w = 0; w < W; ++w) sums[o][w] += scale * values.at[w];
      }
    }
#pragma unroll
    for (int o = 0; o < SIDES; ++o)
      if (first + o < outputs) finish(first + o, column, sums[o]);
  }
}

// give(o, i, sum) with the sums Σ_column left[o][column] · right[i][column]. Threads begin at different columns, since
// rows begin in the same bank.
template <typename R, typename Give>
__device__ void outer_product(const R* left, int outputs, const R* right, int inputs, int columns, Give give) {
  constexpr int W = WIDTH<R>;
  const int vectors = columns / W, groups = ceil_div(inputs, SIDES);
  for (int item = threadIdx.x; item < ceil_div(outputs, SIDES) * groups; item += blockDim.x) {
    int rest = item;
    const int i = digit(rest, groups) * SIDES, o = rest * SIDES;
    int begin[2][SIDES];
#pragma unroll
    for (int s = 0; s < SIDES; ++s)
      begin[0][s] = min(o + s, outputs - 1) * columns, begin[1][s] = min(i + s, inputs - 1) * columns;
    R sums[SIDES][SIDES] = {};
    int vector = item % vectors;
    for (int step = 0; step < vectors; ++step) {
      Vector<R, W> rights[SIDES];
#pragma unroll
      for (int s = 0; s < SIDES; ++s) rights[s] = load<W>(right + begin[1][s] + vector * W);
#pragma unroll
      for (int t = 0; t < SIDES; ++t) {
        const auto values = load<W>(left + begin[0][t] + vector * W);
#pragma unroll
        for (int s = 0; s < SIDES; ++s)
#pragma unroll
          for (int w = 0; w < W; ++w) sums[t][s] += values.at[w] * rights[s].at[w];
      }
      vector = vector + 1 < vectors ? vector + 1 : 0;
    }
#pragma unroll
    for (int t = 0; t < SIDES; ++t)
#pragma unroll
      for (int s = 0; s < SIDES; ++s)
        if (o + t < outputs && i + s < inputs) give(o + t, i + s, sums[t][s]);
  }
}

// give(o, sum) with the sums of rows over all columns.
template <typename R, typename Give>
__device__ void row_sums(const R* rows, int count, int columns, Give give) {
  for (int o = threadIdx.x; o < count; o += blockDim.x) {
    R sum = 0;
    int column = o % columns;
    for (int step = 0; step < columns; ++step) {
      sum += rows[o * columns + column];
      column = column + 1 < columns ? column + 1 : 0;
    }
    give(o, sum);
  }
}

// A layer's gradients of a chunk, added to those that the block has in `partial`: of W, whose inputs from `first` on the
// `rows` are, and of b with the first of them.
template <typename R>
__device__ void add_gradients(const R* gradient, int outputs, const R* rows, int first, int count, int inputs,
                              int columns, R* partial) {
  outer_product(gradient, outputs, rows, count, columns,
                [&](int o, int i, R sum) { partial[int64_t(o) * inputs + first + i] += sum; });
  if (first == 0)
    row_sums(gradient, outputs, columns, [&](int o, R sum) { partial[int64_t(outputs) * inputs + o] += sum; });
}

// What the mapping needs of a block.
template <typename R>
struct Chunk {
  const R* parameters;
  const Widths& widths;
  int columns, depth;
  // `depth` rows of the first layer; and the outputs of all layers, after their ReLU but for the last one's.
  R *panel, *held;

  __device__ R* last() const { return held + widths.last_row() * columns; }

  // From rows to the last layer's outputs. generate(first, count, panel) writes rows of the first layer. Begins and ends
  // with a barrier.
  template <typename Generate>
  __device__ void forward(Generate generate) const {
    __syncthreads();
    if (!widths.layers) generate(0, widths.inputs(), held);
    for (int l = 0; l < widths.layers; ++l) {
      const int inputs = widths.sizes[l], outputs = widths.sizes[l + 1], most = l ? inputs : depth;
      const R *weights = parameters + widths.begins[l], *bias = weights + int64_t(inputs) * outputs;
      R* to = held + widths.rows[l] * columns;
      for (int first = 0; first < inputs; first += most) {
        const int count = min(most, inputs - first);
        const R* from = l ? held + widths.rows[l - 1] * columns : panel;
        if (l == 0) {
          generate(first, count, panel);
          __syncthreads();
        }
        const bool rectified = first + count == inputs && l + 1 < widths.layers;
        product(weights + first, inputs, 1, from, count, outputs, columns, [&](int o, int column, R(&sums)[WIDTH<R>]) {
          Vector<R, WIDTH<R>> result;
          const R start = first ? R(0) : bias[o];
          if (first) result = load<WIDTH<R>>(to + o * columns + column);
#pragma unroll
          for (int w = 0; w < WIDTH<R>; ++w) {
            result.at[w] = (first ? result.at[w] : start) + sums[w];
            if (rectified) result.at[w] = max(result.at[w], R(0));
          }
          store(to + o * columns + column, result);
        });
        __syncthreads();
      }
    }
    if (!widths.layers) __syncthreads();
  }

  // From what flows to the last layer's outputs, which is in their place, back to the rows: use(first, count, rows), once
  // for every panel, unless `partial` is all that is wanted. Overwrites what is held. Begins after a barrier and ends with
  // one; before `use` and behind it there is one as well.
  template <typename Generate, typename Use>
  __device__ void backward(R* partial, bool rectified, bool wanted, Generate generate, Use use) const {
    for (int l = widths.layers - 1; l > 0; --l) {
      const int inputs = widths.sizes[l], outputs = widths.sizes[l + 1];
      const R* gradient = held + widths.rows[l] * columns;
      R* rows = held + widths.rows[l - 1] * columns;
      if (partial) {
        add_gradients(gradient, outputs, rows, 0, inputs, inputs, columns, partial + widths.begins[l]);
        __syncthreads();
      }
      back(l, 0, inputs, gradient, true, rows);
      __syncthreads();
    }
    if (!widths.layers) {
      use(0, widths.inputs(), held);
      __syncthreads();
      return;
    }
    const int inputs = widths.inputs(), outputs = widths.sizes[1];
    for (int first = 0; first < inputs; first += depth) {
      const int count = min(depth, inputs - first);
      generate(first, count, panel);
      __syncthreads();
      if (partial) {
        add_gradients(held, outputs, panel, first, count, inputs, columns, partial + widths.begins[0]);
        __syncthreads();
      }
      if (!wanted) continue;
      back(0, first, count, held, rectified, panel);
      __syncthreads();
      use(first, count, panel);
      __syncthreads();
    }
  }

 private:
  // What flows to some inputs of a layer, in their place.
  __device__ void back(int l, int first, int count, const R* gradient, bool rectified, R* rows) const {
    product(parameters + widths.begins[l] + first, 1, widths.sizes[l], gradient, widths.sizes[l + 1], count, columns,
            [&](int i, int column, R(&sums)[WIDTH<R>]) {
              auto result = load<WIDTH<R>>(rows + i * columns + column);
#pragma unroll
              for (int w = 0; w < WIDTH<R>; ++w) result.at[w] = !rectified || result.at[w] > 0 ? sums[w] : R(0);
              store(rows + i * columns + column, result);
            });
  }
};

// Mean and sum of squared deviations of so many values; two of them together as Chan et al. merge them.
template <typename R>
struct Moments {
  R count, mean, squares;

  __device__ void merge(const Moments& other) {
    if (other.count == 0) return;
    const R sum = count + other.count, difference = other.mean - mean;
    mean += difference * (other.count / sum);
    squares += other.squares + difference * difference * (count / sum * other.count);
    count = sum;
  }
};

// Threads that share a row.
__host__ __device__ inline int parts_of(int rows) { return max(1, THREADS / rows); }

// The rows' moments over all columns that are of an image, added to those that each (row, part) has.
template <typename R, typename Pair>
__device__ void observe(const R* values, int rows, int columns, const Pair* pairs, Moments<R>* moments) {
  const int parts = parts_of(rows);
  for (int item = threadIdx.x; item < rows * parts; item += blockDim.x) {
    int row = item;
    const int part = digit(row, parts);
    Moments<R> here = {0, 0, 0};
    for (int column = part; column < columns; column += parts)
      if (pairs[column].image >= 0) here.count += 1, here.mean += values[row * columns + column];
    if (here.count > 0) here.mean /= here.count;
    for (int column = part; column < columns; column += parts)
      if (pairs[column].image >= 0) {
        const R difference = values[row * columns + column] - here.mean;
        here.squares += difference * difference;
      }
    moments[item].merge(here);
  }
}

// The block's moments of each row, in the order of its parts.
template <typename R>
__device__ void write_moments(const Moments<R>* moments, int rows, Moments<R>* to) {
  const int parts = parts_of(rows);
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    Moments<R> all = moments[row * parts];
    for (int part = 1; part < parts; ++part) all.merge(moments[row * parts + part]);
    to[row] = all;
  }
}

// What a core is told besides its arrays and the footprint.
struct Core {
  // stand-alone: of a head, and how many there are.
  Widths widths;
  // pairwise: are rows rectified? patchwise: the relation, a Kind.
  int flag;
  // Does the softmax skip taps outside the map?
  bool excludes;
  // How many blocks may have sums of their own, in scratch memory.
  int workers;
};

// mapping.cu
// to[n, g, p]: what the softmax takes from every tap of a centre, Σ gradient · y over the channels of a group.
void share_gradient(const Array& gradient, const Array& y, int g, void* to, cudaStream_t stream);
// to[i] = Σ_w partial[w][i], of `size` elements, in the order of the workers.
template <typename R>
void add_up(const R* partial, int workers, int64_t size, R* to, cudaStream_t stream);
// Mean and biased variance of what the workers have seen of each row.
template <typename R>
void merge_moments(const Moments<R>* partial, int workers, int rows, R* mean, R* variance, cudaStream_t stream);
