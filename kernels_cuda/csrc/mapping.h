// The linear layers of the mapping, forward and backward, for a chunk of columns in shared memory. A column is a
// centre, or a pair of a centre and a tap.
//
// A matrix of rows × columns is stored row by row. The inputs of the first layer are generated when they are needed, a
// panel of rows at a time, and stored nowhere else. The outputs of all layers of a chunk stay in shared memory. Each
// multiply-add is one FMA in the dtype of the sums. Tensor cores are not used, since they round to TF32.

#pragma once

#include <math.h>

#include "pairs.h"

// A thread holds the sums of this many outputs, or inputs, in registers.
constexpr int SIDES = 4;

// It holds the sums of this many columns: what one instruction loads from shared memory.
template <typename R>
constexpr int WIDTH = 16 / sizeof(R);

// At most this many columns of a chunk, and rows of a panel.
constexpr int MOST_COLUMNS = 256, MOST_ROWS = 32;

// The sizes of the linear layers: the inputs of the first, then the outputs of each. `parameters` holds W (outputs ×
// inputs), then b, of each layer.
struct Widths {
  static constexpr int MOST_LAYERS = 8;
  int layers = 0, sizes[MOST_LAYERS + 1] = {};
  int begins[MOST_LAYERS] = {};  // where the W of each layer begins in `parameters`
  int rows[MOST_LAYERS] = {};    // the first row of each layer among the outputs of all layers
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
  // Rows of a chunk that stay in shared memory: all outputs, or the inputs if there is no layer.
  __host__ __device__ int held() const { return layers ? outputs : sizes[0]; }
  __host__ __device__ int last_row() const { return layers ? rows[layers - 1] : 0; }
};

// Calls finish(o, column, sums) for each output o, with WIDTH sums Σ_d weights[o · step_o + d · step_d] ·
// in[d][column…].
template <typename R, typename Finish>
__device__ void product(const R* weights, int step_o, int step_d, const R* in, int depth, int outputs, int columns,
                        Finish finish) {
  constexpr int W = WIDTH<R>;
  const int vectors = columns / W;
  for (int item = threadIdx.x; item < ceil_div(outputs, SIDES) * vectors; item += blockDim.x) {
    int rest = item;
    const int column = digit(rest, vectors) * W, first = rest * SIDES;
    const R* weight[SIDES];  // beyond the end, the last one is repeated: no load waits for a branch
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

// Calls write(o, i, sum) with the sums Σ_column left[o][column] · right[i][column]. Threads begin at different columns,
// since all rows begin in the same bank.
template <typename R, typename Write>
__device__ void outer_product(const R* left, int outputs, const R* right, int inputs, int columns, Write write) {
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
        if (o + t < outputs && i + s < inputs) write(o + t, i + s, sums[t][s]);
  }
}

// Calls write(o, sum) with the sum of each row over all columns.
template <typename R, typename Write>
__device__ void row_sums(const R* rows, int count, int columns, Write write) {
  for (int o = threadIdx.x; o < count; o += blockDim.x) {
    R sum = 0;
    int column = o % columns;
    for (int step = 0; step < columns; ++step) {
      sum += rows[o * columns + column];
      column = column + 1 < columns ? column + 1 : 0;
    }
    write(o, sum);
  }
}

// Add the gradients of W and b over a chunk to the sums of the block in `partial`. `rows` are the inputs of the layer
// from `first` on. The gradient of b is added together with the first inputs.
template <typename R>
__device__ void add_parameter_gradients(const R* gradient, int outputs, const R* rows, int first, int count, int inputs,
                                        int columns, R* partial) {
  outer_product(gradient, outputs, rows, count, columns,
                [&](int o, int i, R sum) { partial[int64_t(o) * inputs + first + i] += sum; });
  if (first == 0)
    row_sums(gradient, outputs, columns, [&](int o, R sum) { partial[int64_t(outputs) * inputs + o] += sum; });
}

// The mapping of one chunk.
template <typename R>
struct Chunk {
  const R* parameters;
  const Widths& widths;
  int columns, depth;
  // `depth` inputs of the first layer; and the outputs of all layers, after the ReLU except for the last layer.
  R *panel, *held;

  __device__ R* last() const { return held + widths.last_row() * columns; }

  // Compute the outputs of the last layer. generate(first, count, panel) writes inputs of the first layer. Begins and
  // ends with a barrier.
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
            if (rectified) result.at[w] = rectify(result.at[w]);
          }
          store(to + o * columns + column, result);
        });
        __syncthreads();
      }
    }
    if (!widths.layers) __syncthreads();
  }

  // Compute the gradients of the inputs from those of the last layer's outputs, which have replaced these outputs.
  // Calls use(first, count, rows) with the gradients of each panel if `rows_needed`. Overwrites the outputs of all
  // layers. A barrier must precede; the function ends with one, and there is one before and one after each `use`.
  template <typename Generate, typename Use>
  __device__ void backward(R* partial, bool rectified, bool rows_needed, Generate generate, Use use) const {
    for (int l = widths.layers - 1; l > 0; --l) {
      const int inputs = widths.sizes[l], outputs = widths.sizes[l + 1];
      const R* gradient = held + widths.rows[l] * columns;
      R* rows = held + widths.rows[l - 1] * columns;
      if (partial) {
        add_parameter_gradients(gradient, outputs, rows, 0, inputs, inputs, columns, partial + widths.begins[l]);
        __syncthreads();
      }
      inputs_gradient(l, 0, inputs, gradient, true, rows);
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
        add_parameter_gradients(held, outputs, panel, first, count, inputs, columns, partial + widths.begins[0]);
        __syncthreads();
      }
      if (!rows_needed) continue;
      inputs_gradient(0, first, count, held, rectified, panel);
      __syncthreads();
      use(first, count, panel);
      __syncthreads();
    }
  }

 private:
  // Replace some inputs of a layer by their gradients.
  __device__ void inputs_gradient(int l, int first, int count, const R* gradient, bool rectified, R* rows) const {
    product(parameters + widths.begins[l] + first, 1, widths.sizes[l], gradient, widths.sizes[l + 1], count, columns,
            [&](int i, int column, R(&sums)[WIDTH<R>]) {
              auto result = load<WIDTH<R>>(rows + i * columns + column);
#pragma unroll
              for (int w = 0; w < WIDTH<R>; ++w)
                result.at[w] = rectified ? rectify_gradient(result.at[w], sums[w]) : sums[w];
              store(rows + i * columns + column, result);
            });
  }
};

// The mean and the sum of squared deviations of `count` values. `merge` is the formula of Chan et al.
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

// The number of threads that share a row.
__host__ __device__ inline int parts_of(int rows) { return max(1, THREADS / rows); }

// Add the moments of the rows, over all columns that belong to an image, to the moments of each (row, part).
template <typename R, typename Pair>
__device__ void gather_moments(const R* values, int rows, int columns, const Pair* pairs, Moments<R>* moments) {
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

// Write the moments of each row, merged in the order of the parts.
template <typename R>
__device__ void write_moments(const Moments<R>* moments, int rows, Moments<R>* to) {
  const int parts = parts_of(rows);
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    Moments<R> all = moments[row * parts];
    for (int part = 1; part < parts; ++part) all.merge(moments[row * parts + part]);
    to[row] = all;
  }
}

// mapping.cu
// to[i] = Σ_w partial[w][i] for `size` elements, summed in the order of the workers.
template <typename R>
void add_up(const R* partial, int workers, int64_t size, R* to, cudaStream_t stream);
// The mean and the biased variance of each row from the moments of the workers.
template <typename R>
void merge_moments(const Moments<R>* partial, int workers, int rows, R* mean, R* variance, cudaStream_t stream);
