// The fused stand-alone attention of a head: y_i = Σ_j softmax_j(Σ_c query_i[c] (key_j[c] + relative[c, j])) β_j (SASA
// Eq. 2 and 3), the logarithm of the softmax's denominator, and the gradients. Channel c belongs to head c mod g.
//
//     traffic    query, key and β are read once, except for rows that neighbouring bands of centres share. y is written
//                once. The embeddings come from the caches. The backward reads all twice, once for the gradients of
//                query and embeddings and once for those of key and β. No array has the size of the footprint.
//     forward    A block has the centres of some rows, and their logits in shared memory: for all taps, or for as many
//                pieces at a time as fit, with a running maximum and sum. Frames hold channels of the key, then of β.
//     backward   The weights are computed twice more: once for the centres (query, embeddings), where frames of key and
//                β serve both products; and once for the map (key, β), where a thread has an element of the continued
//                map and goes through the pieces that read it. No atomics, and the same bits every time. Workers have
//                partial sums of the embeddings' gradients, which are added in order.
//     v1         A thread has V centres and 8 of their taps, as in relations_products.cu.
//
// Not measured yet.

#include <optional>

#include "cores.h"
#include "softmax.h"

namespace {

// A tap, listed in the order of the pieces: its number, and where it reads for the centre in the first row and column.
struct Slot {
  int tap, row, column;
};

// The size of a band: `height` rows of a tile, each `across` centres wide, which are `columns` in shared memory. It has
// room for `slots` slots, for `packs` packs of channels, and for `panel` elements of frames.
struct Plan {
  int height, across, columns, slots, packs;
  int64_t panel;
};

// What the kernels read: arrays and sizes. β has `share` times g channels.
template <typename T>
struct Inputs {
  const T *query, *key, *relative, *beta;
  int depth, share, g;
  int64_t p, area, images;
  bool excludes;

  // Where the head's first channel of an image begins, in an array with this many channels per head.
  __device__ int64_t head_of(int64_t image, int head, int channels, int64_t size) const {
    return (image * channels * g + head) * size;
  }
};

// A block's shared memory.
template <typename T, int W>
struct Workspace {
  Slot* slots;
  int* starts;  // the first slot of each piece
  Pack<T, W>*frames, *relative;
  T *scores, *flows, *most, *total, *scale;

  __host__ __device__ Workspace(Room& room, const Plan& plan, const Lookups& lookups, bool backward) {
    slots = room.take<Slot>(lookups.k);
    starts = room.take<int>(lookups.m + 1);
    frames = reinterpret_cast<Pack<T, W>*>(room.take<T>(plan.panel));
    relative = room.take<Pack<T, W>>(int64_t(plan.packs) * plan.slots);
    scores = room.take<T>(int64_t(plan.slots) * plan.columns);
    flows = room.take<T>(backward ? int64_t(plan.slots) * plan.columns : 0);
    most = room.take<T>(backward ? 0 : plan.columns);
    total = room.take<T>(backward ? 0 : plan.columns);
    scale = room.take<T>(backward ? 0 : plan.columns);
  }
};

// Centres of an image: `rows` rows of a tile from `top` on, and in each row `wide` columns from `left` on.
struct Band {
  int64_t image;
  int tile, top, rows, left, wide;

  __device__ Band(const Lookups& lookups, const Plan& plan, int64_t index) {
    left = digit(index, ceil_div(lookups.ow, plan.across)) * plan.across;
    top = digit(index, ceil_div(lookups.height, plan.height)) * plan.height;
    tile = digit(index, lookups.tiles());
    image = index;
    rows = min(plan.height, lookups.rows_of(tile) - top);  // not positive if the tile has no such rows
    wide = min(plan.across, lookups.ow - left);
  }
  __device__ int row(const Lookups& lookups, int y) const { return tile * lookups.height + top + y; }
  __device__ int64_t position(const Lookups& lookups, int y, int x) const {
    return int64_t(row(lookups, y)) * lookups.ow + left + x;
  }
};

int64_t bands_of(const Lookups& lookups, const Plan& plan) {
  return int64_t(lookups.tiles()) * ceil_div(lookups.height, plan.height) * ceil_div(lookups.ow, plan.across);
}

// The work of a block: a band of a head, and the pieces of the footprint from `begin` to `end`.
template <typename T, int V, int W, bool STAGED>
struct Work {
  const Inputs<T>& inputs;
  const Lookups& lookups;
  const Plan& plan;
  const Layout& layout;
  const Workspace<T, W>& memory;
  const Band band;
  const int head;
  int begin = 0, end = 0;

  __device__ int first() const { return memory.starts[begin]; }
  __device__ int count() const { return memory.starts[end] - first(); }
  // Advance to the next pieces. Returns false if there are none.
  __device__ bool next() {
    begin = end;
    while (end < lookups.m && memory.starts[end + 1] - first() <= plan.slots) ++end;
    return begin < end;
  }

  // Whether the column is a centre, and whether a tap of it takes part in the softmax.
  __device__ bool exists(int column) const {
    return column / plan.across < band.rows && column % plan.across < band.wide;
  }
  __device__ bool counts(int slot, int column) const {
    if (!inputs.excludes) return true;
    const Slot tap = memory.slots[first() + slot];
    return min(lookups.rows[band.row(lookups, column / plan.across) + tap.row],
               lookups.columns[band.left + column % plan.across + tap.column]) >= 0;
  }
  __device__ int64_t position(int column) const {
    return band.position(lookups, column / plan.across, column % plan.across);
  }

  // scores[slot][column] = Σ_c centres[c] (map[c] + relative[c]) over the channels of the head.
  __device__ void correlate(const T* centres, const T* map, const T* relative, int channels, T* scores) const {
    const int most = plan.packs * W, vectors = band.wide / V;
    centres += inputs.head_of(band.image, head, channels, inputs.p);
    for (int channel = 0; channel < channels; channel += most) {
      const int depth = min(most, channels - channel);
      const T* from = stage_channels(map, relative, channels, channel, depth);
      for (int item = threadIdx.x; item < (end - begin) * band.rows * vectors; item += blockDim.x) {
        int m = item;
        const int t = digit(m, vectors), y = digit(m, band.rows);
        const Piece piece = lookups.pieces[begin + m];
        const int slot = memory.starts[begin + m] - first();
        const T* here = centres + channel * inputs.g * inputs.p + band.position(lookups, y, t * V);
        T* to = scores + slot * plan.columns + y * plan.across + t * V;
        T sums[BLOCK][V] = {};
#pragma unroll 1
        for (int d = 0; d < depth; d += W) {
          T centre[W][V] = {};
#pragma unroll
          for (int w = 0; w < W; ++w)
            if (d + w < depth) widen(load<V>(here + int64_t(d + w) * inputs.g * inputs.p), centre[w]);
          if (map)
            slide<V, BLOCK, false>(reader_of(from, d, y, t), piece, [&](int i, const Pack<T, W>* values) {
#pragma unroll
              for (int w = 0; w < W; ++w)
#pragma unroll
                for (int v = 0; v < V; ++v) sums[i][v] += centre[w][v] * values[(i + v) % V].at[w];
            });
          if (relative)
#pragma unroll
            for (int i = 0; i < BLOCK; ++i) {
              if (i >= piece.length) break;
              const auto values = memory.relative[d / W * plan.slots + slot + i];
#pragma unroll
              for (int w = 0; w < W; ++w)
#pragma unroll
                for (int v = 0; v < V; ++v) sums[i][v] += centre[w][v] * values.at[w];
            }
        }
#pragma unroll
        for (int i = 0; i < BLOCK; ++i) {
          if (i >= piece.length) break;
          auto sum = rounded<T>(sums[i]);
          if (channel) {
            const auto before = load<V>(to + i * plan.columns);
#pragma unroll
            for (int v = 0; v < V; ++v) sum.at[v] += before.at[v];
          }
          store(to + i * plan.columns, sum);
        }
      }
    }
  }

  // Calls finish(c, y, x, sums) for each channel of the head, with Σ_slot weights[slot] (map[c] + relative[c]) at V
  // centres.
  template <typename Finish>
  __device__ void aggregate(const T* weights, const T* map, const T* relative, int channels, Finish finish) const {
    const int most = plan.packs * W, vectors = band.wide / V;
    for (int channel = 0; channel < channels; channel += most) {
      const int depth = min(most, channels - channel);
      const T* from = stage_channels(map, relative, channels, channel, depth);
      for (int item = threadIdx.x; item < ceil_div(depth, W) * band.rows * vectors; item += blockDim.x) {
        int pack = item;
        const int t = digit(pack, vectors), y = digit(pack, band.rows);
        T sums[W][V] = {};
        for (int m = begin; m < end; ++m) {
          const Piece piece = lookups.pieces[m];
          const int slot = memory.starts[m] - first();
          const T* here = weights + slot * plan.columns + y * plan.across + t * V;
          T alpha[BLOCK][V];
#pragma unroll
          for (int i = 0; i < BLOCK; ++i)
            if (i < piece.length) widen(load<V>(here + i * plan.columns), alpha[i]);
          if (map)
            slide<V, BLOCK, false>(reader_of(from, pack * W, y, t), piece, [&](int i, const Pack<T, W>* values) {
#pragma unroll
              for (int w = 0; w < W; ++w)
#pragma unroll
                for (int v = 0; v < V; ++v) sums[w][v] += alpha[i][v] * values[(i + v) % V].at[w];
            });
          if (relative)
#pragma unroll
            for (int i = 0; i < BLOCK; ++i) {
              if (i >= piece.length) break;
              const auto values = memory.relative[pack * plan.slots + slot + i];
#pragma unroll
              for (int v = 0; v < V; ++v) {
                // a weight of 0 must not multiply the infinite embedding of a tap outside the map
                if (alpha[i][v] == 0 && !counts(slot + i, y * plan.across + t * V + v)) continue;
#pragma unroll
                for (int w = 0; w < W; ++w) sums[w][v] += alpha[i][v] * values.at[w];
              }
            }
        }
#pragma unroll
        for (int w = 0; w < W; ++w)
          if (pack * W + w < depth) finish(channel + pack * W + w, y, t * V, sums[w]);
      }
    }
  }

  // to[d] += Σ_column queries[d] flows for each tap. Threads begin at different columns, since rows may begin in the
  // same bank.
  __device__ void embed(const T* queries, int depth, T* to) const {
    constexpr int N = WIDTH<T>;
    const int slots = count(), vectors = plan.columns / N;
    for (int item = threadIdx.x; item < slots * ceil_div(depth, SIDES); item += blockDim.x) {
      int d = item;
      const int slot = digit(d, slots);
      d *= SIDES;
      T sums[SIDES] = {};
#pragma unroll 1
      for (int step = 0, vector = item % vectors; step < vectors; ++step) {
        const auto flows = load<N>(memory.flows + slot * plan.columns + vector * N);
#pragma unroll
        for (int s = 0; s < SIDES; ++s) {
          const auto values = load<N>(queries + min(d + s, depth - 1) * plan.columns + vector * N);
#pragma unroll
          for (int n = 0; n < N; ++n) sums[s] += flows.at[n] * values.at[n];
        }
        vector = vector + 1 < vectors ? vector + 1 : 0;
      }
#pragma unroll
      for (int s = 0; s < SIDES; ++s)
        if (d + s < depth) to[int64_t(d + s) * inputs.g * lookups.k + memory.slots[first() + slot].tap] += sums[s];
    }
  }

 private:
  // Copy frames and embeddings of the `depth` channels from `channel` on, between two barriers. Returns these channels'
  // map.
  __device__ const T* stage_channels(const T* map, const T* relative, int channels, int channel, int depth) const {
    if (map) map += inputs.head_of(band.image, head, channels, inputs.area) + int64_t(channel) * inputs.g * inputs.area;
    __syncthreads();
    if constexpr (STAGED)
      if (map) {
        Lookups rows = lookups;
        rows.picks += band.top;
        rows.picked -= max(lookups.height - plan.height, band.top);
        stage<V, W>(map, Channels{1, depth, inputs.g}, band.tile, rows, layout, memory.frames);
      }
    if (relative) {
      const int slots = count();
      for (int item = threadIdx.x; item < ceil_div(depth, W) * slots; item += blockDim.x) {
        const int pack = item / slots, slot = item - pack * slots;
        const T* here = relative + int64_t(channel * inputs.g + head) * lookups.k + memory.slots[first() + slot].tap;
        Pack<T, W> values;
#pragma unroll
        for (int w = 0; w < W; ++w) {
          const int d = pack * W + w;
          values.at[w] = d < depth ? here[int64_t(d) * inputs.g * lookups.k] : T(0);
        }
        memory.relative[pack * plan.slots + slot] = values;
      }
    }
    __syncthreads();
    return map;
  }

  __device__ auto reader_of(const T* map, int d, int y, int t) const {
    if constexpr (STAGED)
      return Staged<T, V, W>{memory.frames + d / W * layout.frame + y * layout.row + t, layout};
    else
      return Direct<T>{map + int64_t(d) * inputs.g * inputs.area, lookups.rows + band.row(lookups, y),
                       lookups.columns + band.left + t, lookups.w};
  }
};

// List all taps. All threads take part; a barrier must follow.
__device__ void list_slots(const Lookups& lookups, Slot* slots, int* starts) {
  for (int m = threadIdx.x; m <= lookups.m; m += blockDim.x) {
    int start = 0;
    for (int before = 0; before < m; ++before) start += lookups.pieces[before].length;
    starts[m] = start;
    if (m == lookups.m) continue;
    const Piece piece = lookups.pieces[m];
    for (int i = 0; i < piece.length; ++i)
      slots[start + i] = {piece.tap + i * piece.step, piece.whole, piece.column + i};
  }
}

// y and the logarithm of the softmax's denominator, for a band of a head.
template <typename T, int V, int W, bool STAGED>
__global__ void __launch_bounds__(THREADS, 4)
    stand_alone_attention_kernel(Inputs<T> inputs, Plan plan, T* __restrict__ y, T* __restrict__ lse, Lookups lookups,
                                 Layout layout) {
  Room room = {shared_memory<unsigned char>()};
  const Workspace<T, W> memory(room, plan, lookups, false);
  int64_t index = blockIdx.x;
  const int head = digit(index, inputs.g);
  Work<T, V, W, STAGED> work = {inputs, lookups, plan, layout, memory, Band(lookups, plan, index), head};
  const Band& band = work.band;
  if (band.rows <= 0) return;
  list_slots(lookups, memory.slots, memory.starts);
  const auto softmax = [&](int i) { return Softmax<T>{memory.most + i, memory.total + i, memory.scale + i}; };
  for (int i = threadIdx.x; i < plan.columns; i += blockDim.x) softmax(i).begin();
  __syncthreads();
  y += inputs.head_of(band.image, head, inputs.share, inputs.p);
  while (work.next()) {
    const int slots = work.count();
    work.correlate(inputs.query, inputs.key, inputs.relative, inputs.depth, memory.scores);
    __syncthreads();
    for (int i = threadIdx.x; i < plan.columns; i += blockDim.x) {
      if (!work.exists(i)) continue;
      softmax(i).add(
          slots, [&](int slot) -> T& { return memory.scores[slot * plan.columns + i]; },
          [&](int slot) { return work.counts(slot, i); });
    }
    work.aggregate(memory.scores, inputs.beta, nullptr, inputs.share, [&](int c, int row, int x, const T(&sums)[V]) {
      const int column = row * plan.across + x;
      T* to = y + int64_t(c) * inputs.g * inputs.p + band.position(lookups, row, x);
      Vector<T, V> values;
      if (work.begin) values = load<V>(to);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        T& value = values.at[v];
        value = work.begin ? value * memory.scale[column + v] + sums[v] : sums[v];
        if (work.end == lookups.m) value = softmax(column + v).mean(value);
      }
      store(to, values);
    });
    __syncthreads();
  }
  lse += inputs.head_of(band.image, head, 1, inputs.p);
  for (int i = threadIdx.x; i < plan.columns; i += blockDim.x)
    if (work.exists(i)) lse[work.position(i)] = softmax(i).log_sum();
}

// The gradients of the query, and of the embeddings, over the bands of a worker.
template <typename T, int V, int W, bool STAGED>
__global__ void __launch_bounds__(THREADS, 4)
    query_backward_kernel(Inputs<T> inputs, Plan plan, const T* __restrict__ gradient, const T* __restrict__ lse,
                          const T* __restrict__ dots, T* query_gradient, T* partial, int64_t bands, Lookups lookups,
                          Layout layout) {
  Room room = {shared_memory<unsigned char>()};
  const Workspace<T, W> memory(room, plan, lookups, true);
  const int head = blockIdx.x % inputs.g, worker = blockIdx.x / inputs.g, workers = gridDim.x / inputs.g;
  if (partial) {
    partial += (int64_t(worker) * inputs.depth * inputs.g + head) * lookups.k;
    for (int item = threadIdx.x; item < inputs.depth * lookups.k; item += blockDim.x)
      partial[int64_t(item / lookups.k) * inputs.g * lookups.k + item % lookups.k] = 0;
  }
  list_slots(lookups, memory.slots, memory.starts);
  __syncthreads();
  for (int64_t index = worker; index < bands; index += workers) {
    Work<T, V, W, STAGED> work = {inputs, lookups, plan, layout, memory, Band(lookups, plan, index), head};
    const Band& band = work.band;
    const int64_t centres = inputs.head_of(band.image, head, inputs.depth, inputs.p),
                  here = inputs.head_of(band.image, head, 1, inputs.p);
    while (band.rows > 0 && work.next()) {
      const int slots = work.count();
      work.correlate(inputs.query, inputs.key, inputs.relative, inputs.depth, memory.scores);
      work.correlate(gradient, inputs.beta, nullptr, inputs.share, memory.flows);
      __syncthreads();
#pragma unroll 1
      for (int item = threadIdx.x; item < slots * plan.columns; item += blockDim.x) {
        const int slot = item / plan.columns, column = item - slot * plan.columns;
        T flow = 0;
        if (work.exists(column) && work.counts(slot, column)) {
          const int64_t position = here + work.position(column);
          flow = exp(memory.scores[item] - lse[position]) * (memory.flows[item] - dots[position]);
        }
        memory.flows[item] = flow;
      }
      if (query_gradient)
        work.aggregate(
            memory.flows, inputs.key, inputs.relative, inputs.depth, [&](int c, int y, int x, const T(&sums)[V]) {
              T* to = query_gradient + centres + int64_t(c) * inputs.g * inputs.p + band.position(lookups, y, x);
              auto sum = rounded<T>(sums);
              if (work.begin) {
                const auto before = load<V>(to);
#pragma unroll
                for (int v = 0; v < V; ++v) sum.at[v] += before.at[v];
              }
              store(to, sum);
            });
      if (partial) {
        T* queries = reinterpret_cast<T*>(memory.frames);
        const int most = static_cast<int>(plan.panel / plan.columns);
        for (int channel = 0; channel < inputs.depth; channel += most) {
          const int depth = min(most, inputs.depth - channel);
          __syncthreads();
#pragma unroll 1
          for (int item = threadIdx.x; item < depth * plan.columns; item += blockDim.x) {
            const int d = item / plan.columns, column = item - d * plan.columns;
            const int64_t from = centres + int64_t(channel + d) * inputs.g * inputs.p;
            // a flow of 0 at a tap outside the map must not be multiplied by ∞; all other flows are NaN
            const T query = work.exists(column) ? inputs.query[from + work.position(column)] : T(0);
            queries[item] = isfinite(query) ? query : T(0);
          }
          __syncthreads();
          work.embed(queries, depth, partial + int64_t(channel) * inputs.g * lookups.k);
        }
      }
      __syncthreads();
    }
  }
}

// The gradients of key and β at some rows of the map, from all centres that read them, for `depth` channels of a head;
// the channels of the key come first. A thread has an element of the continued map.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    key_backward_kernel(Inputs<T> inputs, const T* __restrict__ gradient, const T* __restrict__ lse,
                        const T* __restrict__ dots, T* __restrict__ key_gradient, T* __restrict__ beta_gradient,
                        int height, int depth, Lookups lookups) {
  T* sums = shared_memory<T>();
  const int keys = key_gradient ? inputs.depth : 0, channels = keys + (beta_gradient ? inputs.share : 0);
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(channels, depth)) * depth,
            top = digit(block, ceil_div(lookups.h, height)) * height;
  const int head = digit(block, inputs.g);
  const int64_t image = block;
  const int end = min(channels, first + depth), rows = min(height, lookups.h - top), items = rows * lookups.all_columns;
  const int64_t step = inputs.g * inputs.p, area = inputs.g * inputs.area;
  const T* queries = inputs.query + inputs.head_of(image, head, inputs.depth, inputs.p);
  gradient += inputs.head_of(image, head, inputs.share, inputs.p);
  lse += inputs.head_of(image, head, 1, inputs.p);
  dots += inputs.head_of(image, head, 1, inputs.p);
  const int64_t key_head = inputs.head_of(image, head, inputs.depth, inputs.area);
  const int64_t beta_head = inputs.head_of(image, head, inputs.share, inputs.area);

  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const int y = item / lookups.all_columns, u = item - y * lookups.all_columns, x = lookups.columns[u];
    T* mine = sums + item;
    for (int c = first; c < end; ++c) mine[(c - first) * items] = 0;
    if (x < 0) continue;
    const int64_t position = int64_t(top + y) * lookups.w + x;
    for_readers(lookups, top + y, u, -1, [&](const Piece& piece, int row, int column) {
      unsigned who = 0;  // bit i: column − i is a centre, whose index is last − i
#pragma unroll
      for (int i = 0; i < BLOCK; ++i) who |= unsigned(reads(lookups, piece, column, i)) << i;
      if (!who) return;
      const int64_t last = int64_t(row) * lookups.ow + column;
      const auto value = [&](const T* centres, int i) { return who >> i & 1 ? centres[last - i] : T(0); };
      T alpha[BLOCK] = {}, flow[BLOCK] = {};
#pragma unroll 1
      for (int c = 0; c < inputs.depth; ++c) {
        const T key = inputs.key ? inputs.key[key_head + c * area + position] : T(0);
        const T* relative =
            inputs.relative ? inputs.relative + (int64_t(c) * inputs.g + head) * lookups.k + piece.tap : nullptr;
#pragma unroll
        for (int i = 0; i < BLOCK; ++i) {
          T term = key;
          if (relative && i < piece.length) term += relative[i * piece.step];
          alpha[i] += value(queries + c * step, i) * term;
        }
      }
#pragma unroll 1
      for (int c = 0; c < (keys ? inputs.share : 0); ++c) {
        const T beta = inputs.beta[beta_head + c * area + position];
#pragma unroll
        for (int i = 0; i < BLOCK; ++i) flow[i] += value(gradient + c * step, i) * beta;
      }
#pragma unroll
      for (int i = 0; i < BLOCK; ++i) {
        alpha[i] = who >> i & 1 ? exp(alpha[i] - lse[last - i]) : T(0);
        flow[i] = who >> i & 1 ? alpha[i] * (flow[i] - dots[last - i]) : T(0);
      }
#pragma unroll 1
      for (int c = first; c < end; ++c) {
        T sum = 0;
#pragma unroll
        for (int i = 0; i < BLOCK; ++i)
          sum += c < keys ? flow[i] * value(queries + c * step, i) : alpha[i] * value(gradient + (c - keys) * step, i);
        mine[(c - first) * items] += sum;
      }
    });
  }
  __syncthreads();
  for (int item = threadIdx.x; item < (end - first) * rows * lookups.w; item += blockDim.x) {
    int c = item;
    const int x = digit(c, lookups.w), y = digit(c, rows);
    const T sum = folded(sums + (c * rows + y) * lookups.all_columns, x, lookups);
    const int64_t position = int64_t(top + y) * lookups.w + x;
    if (first + c < keys)
      key_gradient[key_head + (first + c) * area + position] = sum;
    else
      beta_gradient[beta_head + (first + c - keys) * area + position] = sum;
  }
}

template <typename T, int W>
size_t bytes_of(const Plan& plan, const Lookups& lookups, bool backward) {
  Room room;
  Workspace<T, W>(room, plan, lookups, backward);
  return room.bytes;
}

// The largest number from `least` to `most` with which the plan fits shared memory, if there is one.
template <typename Fits>
std::optional<int> largest(int least, int most, Fits fits) {
  for (int number = most; number >= least; --number)
    if (fits(number)) return number;
  return {};
}

// As many rows of centres as leave room for two packs of channels, then as many packs as fit. If not even one row fits
// with all taps: one row, one pack, and as many taps as fit. Tiles are divided evenly.
template <typename T, int V, int W>
std::optional<std::pair<Plan, Layout>> staged_plan(const Lookups& lookups, int channels, bool backward) {
  const int needed = ceil_div(channels, W), longest = lookups.run ? lookups.run : BLOCK;
  std::pair<Plan, Layout> found;
  const auto fits = [&](int height, int slots, int packs) {
    Lookups rows = lookups;
    rows.height = height, rows.picked -= lookups.height - height;
    auto& [plan, layout] = found;
    layout = layout_of<T, V, W>(rows);
    const int columns = ceil_div(height * lookups.ow, WIDTH<T>) * WIDTH<T>;
    const int64_t panel = std::max<int64_t>(packs * layout.frame * W, backward ? SIDES * columns : 0);
    plan = {height, lookups.ow, columns, slots, packs, panel};
    return bytes_of<T, W>(plan, lookups, backward) <= size_t(lookups.shared_bytes);
  };
  for (int parts = 1; parts <= lookups.height; ++parts) {
    const int height = ceil_div(lookups.height, parts);
    if (!fits(height, lookups.k, std::min(needed, 2))) continue;
    largest(1, needed, [&](int packs) { return fits(height, lookups.k, packs); });
    return found;
  }
  if (largest(std::min(lookups.k, longest), lookups.k, [&](int slots) { return fits(1, slots, 1); })) return found;
  return {};
}

// A plan without frames, for a part of a row of centres.
template <typename T>
Plan direct_plan(const Lookups& lookups, int channels, bool backward) {
  const int longest = std::min(lookups.k, lookups.run ? lookups.run : BLOCK);
  Plan plan = {};
  const auto fits = [&](int slots) {
    plan.slots = slots;
    return bytes_of<T, 1>(plan, lookups, backward) <= size_t(lookups.shared_bytes);
  };
  for (int across : {128, 64, 32, 16, 8, 4}) {
    plan = {1, across, across, 0, std::min(channels, BLOCK), backward ? SIDES * across : 0};
    if (largest(longest, lookups.k, fits)) return plan;
  }
  throw std::invalid_argument("a stand-alone attention needs " +
                              std::to_string(bytes_of<T, 1>(plan, lookups, backward)) +
                              " bytes of shared memory; expected at most " + std::to_string(lookups.shared_bytes));
}

// Call f.operator()<V, W, STAGED>(plan, layout, bytes of shared memory) for V ≤ width centres per thread.
template <typename T, typename F>
void with_plan(const Lookups& lookups, int width, int channels, bool backward, F f) {
  bool staged = false;
  with_width<WIDE<T>>(width, [&]<int V>() {
    constexpr int W = PACKED<T>;
    const auto found = staged_plan<T, V, W>(lookups, channels, backward);
    staged = found.has_value();
    if (staged)
      f.template operator()<V, W, true>(found->first, found->second, bytes_of<T, W>(found->first, lookups, backward));
  });
  if (staged) return;
  const Plan plan = direct_plan<T>(lookups, channels, backward);
  f.template operator()<1, 1, false>(plan, Layout{}, bytes_of<T, 1>(plan, lookups, backward));
}

// Call f.operator()<T>() with the C++ type of the dtype, which must be the dtype of sums.
template <typename F>
void with_sums_type(Type type, F f) {
  with_type(type, [&]<typename T>() {
    if constexpr (std::is_same_v<T, Real<T>>)
      f.template operator()<T>();
    else
      throw std::invalid_argument("a stand-alone attention expects float64 or float32");
  });
}

template <typename T>
Inputs<T> inputs_of(const Array& query, const Array& key, const Array& relative, const Array& beta,
                    const Lookups& lookups, const Core& core) {
  Inputs<T> inputs = {};
  inputs.query = query.as<const T>(), inputs.key = key.as<const T>(), inputs.relative = relative.as<const T>();
  inputs.beta = beta.as<const T>();
  inputs.depth = core.widths.inputs(), inputs.g = core.widths.last(),
  inputs.share = static_cast<int>(beta.sizes[1]) / inputs.g;
  inputs.p = int64_t(lookups.oh) * lookups.ow, inputs.area = int64_t(lookups.h) * lookups.w,
  inputs.images = beta.sizes[0];
  inputs.excludes = core.excludes;
  return inputs;
}

template <typename T>
void start_key_backward(const Inputs<T>& inputs, const T* gradient, const T* lse, const T* dots, const Array& key,
                        const Array& beta, const Lookups& lookups) {
  const int channels = (key.data ? inputs.depth : 0) + (beta.data ? inputs.share : 0),
            fitting = rows_that_fit<T>(lookups);
  const int most = std::clamp(fitting / channels, 1, std::min(lookups.h, ceil_div(THREADS, lookups.all_columns)));
  const int height = ceil_div(lookups.h, ceil_div(lookups.h, most));
  const int depth = ceil_div(channels, ceil_div(channels, std::min(channels, fitting / height)));
  start(key_backward_kernel<T>, inputs.images * inputs.g * ceil_div(lookups.h, height) * ceil_div(channels, depth),
        THREADS, depth * height * lookups.all_columns * sizeof(T), lookups.stream, inputs, gradient, lse, dots,
        key.as<T>(), beta.as<T>(), height, depth, lookups);
}

}  // namespace

void stand_alone_attention(const Arrays& a, const Lookups& lookups, const Core& core) {
  const auto &query = a[0], &key = a[1], &relative = a[2], &beta = a[3], &y = a[4], &lse = a[5];
  with_sums_type(beta.type, [&]<typename T>() {
    const auto inputs = inputs_of<T>(query, key, relative, beta, lookups, core);
    const int width = vector_width<T>(lookups.ow, {query.data, y.data});
    with_plan<T>(lookups, width, std::max(inputs.depth, inputs.share), false,
                 [&]<int V, int W, bool STAGED>(const Plan& plan, const Layout& layout, size_t bytes) {
                   start(stand_alone_attention_kernel<T, V, W, STAGED>,
                         inputs.images * inputs.g * bands_of(lookups, plan), THREADS, bytes, lookups.stream, inputs,
                         plan, y.as<T>(), lse.as<T>(), lookups, layout);
                 });
  });
}

void stand_alone_attention_backward(const Arrays& a, const Lookups& lookups, const Core& core) {
  const auto &gradient = a[0], &y = a[1], &lse = a[2], &query = a[3], &key = a[4], &relative = a[5], &beta = a[6];
  const auto &query_gradient = a[7], &key_gradient = a[8], &relative_gradient = a[9], &beta_gradient = a[10];
  const auto& scratch = a[11];
  with_sums_type(beta.type, [&]<typename T>() {
    const auto inputs = inputs_of<T>(query, key, relative, beta, lookups, core);
    const int64_t centres = inputs.images * inputs.g * inputs.p, sums = int64_t(inputs.depth) * inputs.g * lookups.k;
    T *dots = scratch.as<T>(), *partial = dots + centres;
    gradient_dot_output(gradient, y, inputs.g, dots, lookups.stream);
    if (query_gradient.data || relative_gradient.data) {
      const int width = vector_width<T>(lookups.ow, {query.data, gradient.data, query_gradient.data});
      with_plan<T>(lookups, width, std::max(inputs.depth, inputs.share), true,
                   [&]<int V, int W, bool STAGED>(const Plan& plan, const Layout& layout, size_t bytes) {
                     const int64_t bands = inputs.images * bands_of(lookups, plan);
                     const int64_t fitting = std::min<int64_t>((scratch.sizes[0] - centres) / sums, core.workers);
                     const int64_t workers = relative_gradient.data ? std::clamp<int64_t>(fitting, 1, bands) : bands;
                     T* to = !relative_gradient.data ? nullptr : workers > 1 ? partial : relative_gradient.as<T>();
                     start(query_backward_kernel<T, V, W, STAGED>, inputs.g * workers, THREADS, bytes, lookups.stream,
                           inputs, plan, gradient.as<const T>(), lse.as<const T>(), static_cast<const T*>(dots),
                           query_gradient.as<T>(), to, bands, lookups, layout);
                     if (to == partial) add_up(partial, workers, sums, relative_gradient.as<T>(), lookups.stream);
                   });
    }
    if (key_gradient.data || beta_gradient.data)
      start_key_backward<T>(inputs, gradient.as<const T>(), lse.as<const T>(), dots, key_gradient, beta_gradient,
                            lookups);
  });
}
