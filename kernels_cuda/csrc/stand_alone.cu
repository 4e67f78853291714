// The fused stand-alone attention of a head: y_i = Σ_j softmax_j(Σ_c query_i[c] (key_j[c] + relative[c, j])) β_j (SASA
// Eq. 2 and 3), the logarithm of the softmax's denominator, and what flows back. Channel c is of head c mod g.
//
//     traffic    query, key and β are read once, but for the rows that neighbouring bands of centres share, y is written
//                once; the embeddings come from the caches. Backward twice, and key and β as queries of their own: what
//                flows to them is computed of query and gradient once more. Nothing has the size of the footprint.
//     forward    A block has the centres of some rows, and their logits in shared memory: of all taps, or of so many
//                pieces at a time as fit, with a running maximum and sum. Channels of the key, then of β, come in frames.
//     backward   The weights are computed again, once from the side of the centres (query, embeddings), where frames of
//                key and β serve both products, and once from that of the map (key, β), where a thread has an element of
//                the continued map and goes through the pieces that read it. No atomics, and the same bits every time;
//                the embeddings' sums are those of workers, added up in order.
//     v1         V centres and 8 taps of them in a thread, as in products.cu.
//
// Not measured yet.

#include <optional>

#include "cores.h"
#include "readers.h"

namespace {

// A tap in the order of the pieces: its number, and what it reads from the centre in the first row and column.
struct Slot {
  int tap, row, column;
};

// A band: rows of a tile, or a part of one, whose centres are columns in shared memory; slots and packs of channels are
// there at a time, and `panel` elements for the frames.
struct Plan {
  int height, across, columns, slots, packs;
  int64_t panel;
};

// All that the kernels read, and its sizes; v is `share` times g.
template <typename T>
struct StandAlone {
  const T *query, *key, *relative, *beta;
  int depth, share, g;
  int64_t p, area, images;
  bool excludes;

  // The head's first channel of an image's maps, or centres.
  __device__ int64_t head_of(int64_t image, int head, int channels, int64_t size) const {
    return (image * channels * g + head) * size;
  }
};

// A block's shared memory.
template <typename T, int W>
struct Workspace {
  Slot* slots;
  int* starts;  // the slots before each piece
  Pack<T, W>*frames, *relative;
  T *scores, *flows, *most, *total, *scale;

  __host__ __device__ Workspace(Room& room, const Plan& plan, const Lookups& at, bool backward) {
    slots = room.take<Slot>(at.k);
    starts = room.take<int>(at.m + 1);
    frames = reinterpret_cast<Pack<T, W>*>(room.take<T>(plan.panel));
    relative = room.take<Pack<T, W>>(int64_t(plan.packs) * plan.slots);
    scores = room.take<T>(int64_t(plan.slots) * plan.columns);
    flows = room.take<T>(backward ? int64_t(plan.slots) * plan.columns : 0);
    most = room.take<T>(backward ? 0 : plan.columns);
    total = room.take<T>(backward ? 0 : plan.columns);
    scale = room.take<T>(backward ? 0 : plan.columns);
  }
};

// Centres of an image: `rows` rows of a tile from `top` on, in each `wide` columns from `left` on.
struct Band {
  int64_t image;
  int tile, top, rows, left, wide;

  __device__ Band(const Lookups& at, const Plan& plan, int64_t index) {
    left = digit(index, ceil_div(at.ow, plan.across)) * plan.across;
    top = digit(index, ceil_div(at.height, plan.height)) * plan.height;
    tile = digit(index, at.tiles());
    image = index;
    rows = min(plan.height, at.rows_of(tile) - top);  // none, if the tile has fewer
    wide = min(plan.across, at.ow - left);
  }
  __device__ int row(const Lookups& at, int y) const { return tile * at.height + top + y; }
  __device__ int64_t position(const Lookups& at, int y, int x) const { return int64_t(row(at, y)) * at.ow + left + x; }
};

int64_t bands_of(const Lookups& at, const Plan& plan) {
  return int64_t(at.tiles()) * ceil_div(at.height, plan.height) * ceil_div(at.ow, plan.across);
}

// A band of a head, and the pieces of the footprint that are dealt with at a time.
template <typename T, int V, int W, bool STAGED>
struct Work {
  const StandAlone<T>& of;
  const Lookups& at;
  const Plan& plan;
  const Layout& layout;
  const Workspace<T, W>& memory;
  const Band band;
  const int head;
  int begin = 0, end = 0;

  __device__ int first() const { return memory.starts[begin]; }
  __device__ int count() const { return memory.starts[end] - first(); }
  // The next pieces; are there any?
  __device__ bool next() {
    begin = end;
    while (end < at.m && memory.starts[end + 1] - first() <= plan.slots) ++end;
    return begin < end;
  }

  // Is the column a centre, and does the softmax count the tap there?
  __device__ bool exists(int column) const {
    return column / plan.across < band.rows && column % plan.across < band.wide;
  }
  __device__ bool counts(int slot, int column) const {
    if (!of.excludes) return true;
    const Slot tap = memory.slots[first() + slot];
    return min(at.rows[band.row(at, column / plan.across) + tap.row],
               at.columns[band.left + column % plan.across + tap.column]) >= 0;
  }
  __device__ int64_t position(int column) const {
    return band.position(at, column / plan.across, column % plan.across);
  }

  // scores[slot][column] = Σ_c centres[c] (map[c] + relative[c]) over the channels of the head.
  __device__ void correlate(const T* centres, const T* map, const T* relative, int channels, T* scores) const {
    const int most = plan.packs * W, vectors = band.wide / V;
    centres += of.head_of(band.image, head, channels, of.p);
    for (int channel = 0; channel < channels; channel += most) {
      const int depth = min(most, channels - channel);
      const T* from = stage_channels(map, relative, channels, channel, depth);
      for (int item = threadIdx.x; item < (end - begin) * band.rows * vectors; item += blockDim.x) {
        int m = item;
        const int t = digit(m, vectors), y = digit(m, band.rows);
        const Piece piece = at.pieces[begin + m];
        const int slot = memory.starts[begin + m] - first();
        const T* here = centres + channel * of.g * of.p + band.position(at, y, t * V);
        T* to = scores + slot * plan.columns + y * plan.across + t * V;
        T sums[BLOCK][V] = {};
#pragma unroll 1
        for (int d = 0; d < depth; d += W) {
          T centre[W][V] = {};
#pragma unroll
          for (int w = 0; w < W; ++w)
            if (d + w < depth) widen(load<V>(here + int64_t(d + w) * of.g * of.p), centre[w]);
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

  // finish(c, y, x, sums) with Σ_slot weights[slot] (map[c] + relative[c]) at V centres, for the channels of the head.
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
          const Piece piece = at.pieces[m];
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
              for (int w = 0; w < W; ++w)
#pragma unroll
                for (int v = 0; v < V; ++v) sums[w][v] += alpha[i][v] * values.at[w];
            }
        }
#pragma unroll
        for (int w = 0; w < W; ++w)
          if (pack * W + w < depth) finish(channel + pack * W + w, y, t * V, sums[w]);
      }
    }
  }

  // to[d] += Σ_column queries[d] flows, for every tap. Threads begin at different columns, since rows may begin in the
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
        if (d + s < depth) to[int64_t(d + s) * of.g * at.k + memory.slots[first() + slot].tap] += sums[s];
    }
  }

 private:
  // Frames and embeddings of the `depth` channels from `channel` on, and these channels' map. Between two barriers.
  __device__ const T* stage_channels(const T* map, const T* relative, int channels, int channel, int depth) const {
    if (map) map += of.head_of(band.image, head, channels, of.area) + int64_t(channel) * of.g * of.area;
    __syncthreads();
    if constexpr (STAGED)
      if (map) {
        Lookups rows = at;
        rows.picks += band.top;
        rows.picked -= max(at.height - plan.height, band.top);
        stage<V, W>(map, Channels{1, depth, of.g}, band.tile, rows, layout, memory.frames);
      }
    if (relative) {
      const int slots = count();
      for (int item = threadIdx.x; item < ceil_div(depth, W) * slots; item += blockDim.x) {
        const int pack = item / slots, slot = item - pack * slots;
        const T* here = relative + int64_t(channel * of.g + head) * at.k + memory.slots[first() + slot].tap;
        Pack<T, W> values;
#pragma unroll
        for (int w = 0; w < W; ++w) {
          const int d = pack * W + w;
          values.at[w] = d < depth ? here[int64_t(d) * of.g * at.k] : T(0);
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
      return Direct<T>{map + int64_t(d) * of.g * of.area, at.rows + band.row(at, y), at.columns + band.left + t, at.w};
  }
};

// From many threads, before a barrier.
__device__ void list_slots(const Lookups& at, Slot* slots, int* starts) {
  for (int m = threadIdx.x; m <= at.m; m += blockDim.x) {
    int start = 0;
    for (int before = 0; before < m; ++before) start += at.pieces[before].length;
    starts[m] = start;
    if (m == at.m) continue;
    const Piece piece = at.pieces[m];
    for (int i = 0; i < piece.length; ++i)
      slots[start + i] = {piece.tap + i * piece.step, piece.whole, piece.column + i};
  }
}

// y and the logarithms of the softmax's denominators.
template <typename T, int V, int W, bool STAGED>
__global__ void __launch_bounds__(THREADS, 4)
    stand_alone_attention_kernel(StandAlone<T> of, Plan plan, T* __restrict__ y, T* __restrict__ lse, Lookups at,
                                 Layout layout) {
  Room room = {shared_memory<unsigned char>()};
  const Workspace<T, W> memory(room, plan, at, false);
  int64_t index = blockIdx.x;
  const int head = digit(index, of.g);
  Work<T, V, W, STAGED> work = {of, at, plan, layout, memory, Band(at, plan, index), head};
  const Band& band = work.band;
  if (band.rows <= 0) return;
  list_slots(at, memory.slots, memory.starts);
  for (int i = threadIdx.x; i < plan.columns; i += blockDim.x) memory.most[i] = -INFINITY, memory.total[i] = 0;
  __syncthreads();
  y += of.head_of(band.image, head, of.share, of.p);
  while (work.next()) {
    const int slots = work.count();
    work.correlate(of.query, of.key, of.relative, of.depth, memory.scores);
    __syncthreads();
    for (int i = threadIdx.x; i < plan.columns; i += blockDim.x) {
      if (!work.exists(i)) continue;
      const T before = memory.most[i];
      T best = before, sum = 0;
      for (int slot = 0; slot < slots; ++slot)
        if (work.counts(slot, i)) best = max(best, memory.scores[slot * plan.columns + i]);
      for (int slot = 0; slot < slots; ++slot) {
        T& score = memory.scores[slot * plan.columns + i];
        score = work.counts(slot, i) ? exp(score - best) : T(0);
        sum += score;
      }
      const T scale = best > before ? exp(before - best) : T(1);
      memory.most[i] = best, memory.scale[i] = scale, memory.total[i] = memory.total[i] * scale + sum;
    }
    work.aggregate(memory.scores, of.beta, nullptr, of.share, [&](int c, int row, int x, const T(&sums)[V]) {
      const int column = row * plan.across + x;
      T* to = y + int64_t(c) * of.g * of.p + band.position(at, row, x);
      Vector<T, V> values;
      if (work.begin) values = load<V>(to);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        T& value = values.at[v];
        value = work.begin ? value * memory.scale[column + v] + sums[v] : sums[v];
        if (work.end == at.m) value = memory.total[column + v] > 0 ? value / memory.total[column + v] : T(0);
      }
      store(to, values);
    });
    __syncthreads();
  }
  lse += of.head_of(band.image, head, 1, of.p);
  for (int i = threadIdx.x; i < plan.columns; i += blockDim.x)
    if (work.exists(i)) {
      const T sum = memory.total[i];
      lse[work.position(i)] = sum > 0 ? memory.most[i] + log(sum) : T(0);
    }
}

// What flows to the query of a worker's bands, and to the embeddings.
template <typename T, int V, int W, bool STAGED>
__global__ void __launch_bounds__(THREADS, 4)
    query_backward_kernel(StandAlone<T> of, Plan plan, const T* __restrict__ gradient, const T* __restrict__ lse,
                          const T* __restrict__ shared, T* query_gradient, T* partial, int64_t bands, Lookups at,
                          Layout layout) {
  Room room = {shared_memory<unsigned char>()};
  const Workspace<T, W> memory(room, plan, at, true);
  const int head = blockIdx.x % of.g, worker = blockIdx.x / of.g, workers = gridDim.x / of.g;
  if (partial) {
    partial += (int64_t(worker) * of.depth * of.g + head) * at.k;
    for (int item = threadIdx.x; item < of.depth * at.k; item += blockDim.x)
      partial[int64_t(item / at.k) * of.g * at.k + item % at.k] = 0;
  }
  list_slots(at, memory.slots, memory.starts);
  __syncthreads();
  for (int64_t index = worker; index < bands; index += workers) {
    Work<T, V, W, STAGED> work = {of, at, plan, layout, memory, Band(at, plan, index), head};
    const Band& band = work.band;
    const int64_t centres = of.head_of(band.image, head, of.depth, of.p), here = of.head_of(band.image, head, 1, of.p);
    while (band.rows > 0 && work.next()) {
      const int slots = work.count();
      work.correlate(of.query, of.key, of.relative, of.depth, memory.scores);
      work.correlate(gradient, of.beta, nullptr, of.share, memory.flows);
      __syncthreads();
#pragma unroll 1
      for (int item = threadIdx.x; item < slots * plan.columns; item += blockDim.x) {
        const int slot = item / plan.columns, column = item - slot * plan.columns;
        T flow = 0;
        if (work.exists(column) && work.counts(slot, column)) {
          const int64_t position = here + work.position(column);
          flow = exp(memory.scores[item] - lse[position]) * (memory.flows[item] - shared[position]);
        }
        memory.flows[item] = flow;
      }
      if (query_gradient)
        work.aggregate(memory.flows, of.key, of.relative, of.depth, [&](int c, int y, int x, const T(&sums)[V]) {
          T* to = query_gradient + centres + int64_t(c) * of.g * of.p + band.position(at, y, x);
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
        for (int channel = 0; channel < of.depth; channel += most) {
          const int depth = min(most, of.depth - channel);
          __syncthreads();
#pragma unroll 1
          for (int item = threadIdx.x; item < depth * plan.columns; item += blockDim.x) {
            const int d = item / plan.columns, column = item - d * plan.columns;
            const int64_t from = centres + int64_t(channel + d) * of.g * of.p;
            queries[item] = work.exists(column) ? of.query[from + work.position(column)] : T(0);
          }
          __syncthreads();
          work.embed(queries, depth, partial + int64_t(channel) * of.g * at.k);
        }
      }
      __syncthreads();
    }
  }
}

// What flows to key and β at some rows of the map, from all centres that read them: to `depth` channels of a head, those
// of the key first. A thread has an element of the continued map.
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    key_backward_kernel(StandAlone<T> of, const T* __restrict__ gradient, const T* __restrict__ lse,
                        const T* __restrict__ shared, T* __restrict__ key_gradient, T* __restrict__ beta_gradient,
                        int height, int depth, Lookups at) {
  T* sums = shared_memory<T>();
  const int keys = key_gradient ? of.depth : 0, channels = keys + (beta_gradient ? of.share : 0);
  int64_t block = blockIdx.x;
  const int first = digit(block, ceil_div(channels, depth)) * depth,
            top = digit(block, ceil_div(at.h, height)) * height;
  const int head = digit(block, of.g);
  const int64_t image = block;
  const int end = min(channels, first + depth), rows = min(height, at.h - top), items = rows * at.all_columns;
  const int64_t step = of.g * of.p, area = of.g * of.area;
  const T* queries = of.query + of.head_of(image, head, of.depth, of.p);
  gradient += of.head_of(image, head, of.share, of.p);
  lse += of.head_of(image, head, 1, of.p);
  shared += of.head_of(image, head, 1, of.p);
  const int64_t key_head = of.head_of(image, head, of.depth, of.area);
  const int64_t beta_head = of.head_of(image, head, of.share, of.area);

  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const int y = item / at.all_columns, u = item - y * at.all_columns, x = at.columns[u];
    T* mine = sums + item;
    for (int c = first; c < end; ++c) mine[(c - first) * items] = 0;
    if (x < 0) continue;
    const int64_t position = int64_t(top + y) * at.w + x;
    for_readers(at, top + y, u, -1, [&](const Piece& piece, int row, int column) {
      unsigned who = 0;  // are centres, of the eight from `last` on backwards
#pragma unroll
      for (int i = 0; i < BLOCK; ++i) who |= unsigned(reads(at, piece, column, i)) << i;
      if (!who) return;
      const int64_t last = int64_t(row) * at.ow + column;
      const auto value = [&](const T* centres, int i) { return who >> i & 1 ? centres[last - i] : T(0); };
      T alpha[BLOCK] = {}, flow[BLOCK] = {};
#pragma unroll 1
      for (int c = 0; c < of.depth; ++c) {
        const T key = of.key ? of.key[key_head + c * area + position] : T(0);
        const T* relative = of.relative ? of.relative + (int64_t(c) * of.g + head) * at.k + piece.tap : nullptr;
#pragma unroll
        for (int i = 0; i < BLOCK; ++i) {
          T term = key;
          if (relative && i < piece.length) term += relative[i * piece.step];
          alpha[i] += value(queries + c * step, i) * term;
        }
      }
#pragma unroll 1
      for (int c = 0; c < (keys ? of.share : 0); ++c) {
        const T beta = of.beta[beta_head + c * area + position];
#pragma unroll
        for (int i = 0; i < BLOCK; ++i) flow[i] += value(gradient + c * step, i) * beta;
      }
#pragma unroll
      for (int i = 0; i < BLOCK; ++i) {
        alpha[i] = who >> i & 1 ? exp(alpha[i] - lse[last - i]) : T(0);
        flow[i] = alpha[i] * (flow[i] - value(shared, i));
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
  for (int item = threadIdx.x; item < (end - first) * rows * at.w; item += blockDim.x) {
    int c = item;
    const int x = digit(c, at.w), y = digit(c, rows);
    const T sum = folded(sums + (c * rows + y) * at.all_columns, x, at);
    const int64_t position = int64_t(top + y) * at.w + x;
    if (first + c < keys)
      key_gradient[key_head + (first + c) * area + position] = sum;
    else
      beta_gradient[beta_head + (first + c - keys) * area + position] = sum;
  }
}

template <typename T, int W>
size_t bytes_of(const Plan& plan, const Lookups& at, bool backward) {
  Room room;
  Workspace<T, W>(room, plan, at, backward);
  return room.bytes;
}

// The largest number from `least` to `most` with which the plan fits shared memory, if any does.
template <typename Fits>
std::optional<int> largest(int least, int most, Fits fits) {
  for (int number = most; number >= least; --number)
    if (fits(number)) return number;
  return {};
}

// As many rows of centres as leave room for two packs of channels, then as many packs; or a row and so many taps as fit
// with one pack. Tiles are divided evenly.
template <typename T, int V, int W>
std::optional<std::pair<Plan, Layout>> staged_plan(const Lookups& at, int channels, bool backward) {
  const int needed = ceil_div(channels, W), longest = at.run ? at.run : BLOCK;
  std::pair<Plan, Layout> found;
  const auto fits = [&](int height, int slots, int packs) {
    Lookups rows = at;
    rows.height = height, rows.picked -= at.height - height;
    auto& [plan, layout] = found;
    layout = layout_of<T, V, W>(rows);
    const int columns = ceil_div(height * at.ow, WIDTH<T>) * WIDTH<T>;
    const int64_t panel = std::max<int64_t>(packs * layout.frame * W, backward ? SIDES * columns : 0);
    plan = {height, at.ow, columns, slots, packs, panel};
    return bytes_of<T, W>(plan, at, backward) <= size_t(at.shared_bytes);
  };
  for (int parts = 1; parts <= at.height; ++parts) {
    const int height = ceil_div(at.height, parts);
    if (!fits(height, at.k, std::min(needed, 2))) continue;
    largest(1, needed, [&](int packs) { return fits(height, at.k, packs); });
    return found;
  }
  if (largest(std::min(at.k, longest), at.k, [&](int slots) { return fits(1, slots, 1); })) return found;
  return {};
}

// Without frames: a part of a row of centres.
template <typename T>
Plan direct_plan(const Lookups& at, int channels, bool backward) {
  const int longest = std::min(at.k, at.run ? at.run : BLOCK);
  Plan plan = {};
  const auto fits = [&](int slots) {
    plan.slots = slots;
    return bytes_of<T, 1>(plan, at, backward) <= size_t(at.shared_bytes);
  };
  for (int across : {128, 64, 32, 16, 8, 4}) {
    plan = {1, across, across, 0, std::min(channels, BLOCK), backward ? SIDES * across : 0};
    if (largest(longest, at.k, fits)) return plan;
  }
  throw std::invalid_argument("a stand-alone attention needs " + std::to_string(bytes_of<T, 1>(plan, at, backward)) +
                              " bytes of shared memory; expected at most " + std::to_string(at.shared_bytes));
}

// Call f.operator()<V, W, STAGED>(plan, layout, shared bytes), V centres wide at most.
template <typename T, typename F>
void with_plan(const Lookups& at, int width, int channels, bool backward, F f) {
  bool staged = false;
  with_width<WIDE<T>>(width, [&]<int V>() {
    constexpr int W = PACKED<T>;
    const auto found = staged_plan<T, V, W>(at, channels, backward);
    staged = found.has_value();
    if (staged)
      f.template operator()<V, W, true>(found->first, found->second, bytes_of<T, W>(found->first, at, backward));
  });
  if (staged) return;
  const Plan plan = direct_plan<T>(at, channels, backward);
  f.template operator()<1, 1, false>(plan, Layout{}, bytes_of<T, 1>(plan, at, backward));
}

// Call f.operator()<T>() with the array's type, which is that of sums.
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
StandAlone<T> stand_alone_of(const Array& query, const Array& key, const Array& relative, const Array& beta,
                             const Lookups& at, const Core& core) {
  StandAlone<T> of = {};
  of.query = query.as<const T>(), of.key = key.as<const T>(), of.relative = relative.as<const T>();
  of.beta = beta.as<const T>();
  of.depth = core.widths.inputs(), of.g = core.widths.last(), of.share = static_cast<int>(beta.sizes[1]) / of.g;
  of.p = int64_t(at.oh) * at.ow, of.area = int64_t(at.h) * at.w, of.images = beta.sizes[0];
  of.excludes = core.excludes;
  return of;
}

template <typename T>
void start_key_backward(const StandAlone<T>& of, const T* gradient, const T* lse, const T* shared, const Array& key,
                        const Array& beta, const Lookups& at) {
  const int channels = (key.data ? of.depth : 0) + (beta.data ? of.share : 0), fitting = rows_that_fit<T>(at);
  const int most = std::clamp(fitting / channels, 1, std::min(at.h, ceil_div(THREADS, at.all_columns)));
  const int height = ceil_div(at.h, ceil_div(at.h, most));
  const int depth = ceil_div(channels, ceil_div(channels, std::min(channels, fitting / height)));
  start(key_backward_kernel<T>, of.images * of.g * ceil_div(at.h, height) * ceil_div(channels, depth), THREADS,
        depth * height * at.all_columns * sizeof(T), at.stream, of, gradient, lse, shared, key.as<T>(), beta.as<T>(),
        height, depth, at);
}

}  // namespace

void stand_alone_attention(const Arrays& a, const Lookups& at, const Core& core) {
  const auto &query = a[0], &key = a[1], &relative = a[2], &beta = a[3], &y = a[4], &lse = a[5];
  with_sums_type(beta.type, [&]<typename T>() {
    const auto of = stand_alone_of<T>(query, key, relative, beta, at, core);
    const int width = vector_width<T>(at.ow, {query.data, y.data});
    with_plan<T>(at, width, std::max(of.depth, of.share), false,
                 [&]<int V, int W, bool STAGED>(const Plan& plan, const Layout& layout, size_t bytes) {
                   start(stand_alone_attention_kernel<T, V, W, STAGED>, of.images * of.g * bands_of(at, plan), THREADS,
                         bytes, at.stream, of, plan, y.as<T>(), lse.as<T>(), at, layout);
                 });
  });
}

void stand_alone_attention_backward(const Arrays& a, const Lookups& at, const Core& core) {
  const auto &gradient = a[0], &y = a[1], &lse = a[2], &query = a[3], &key = a[4], &relative = a[5], &beta = a[6];
  const auto &query_gradient = a[7], &key_gradient = a[8], &relative_gradient = a[9], &beta_gradient = a[10];
  const auto& scratch = a[11];
  with_sums_type(beta.type, [&]<typename T>() {
    const auto of = stand_alone_of<T>(query, key, relative, beta, at, core);
    const int64_t centres = of.images * of.g * of.p, sums = int64_t(of.depth) * of.g * at.k;
    T *shared = scratch.as<T>(), *partial = shared + centres;
    share_gradient(gradient, y, of.g, shared, at.stream);
    if (query_gradient.data || relative_gradient.data) {
      const int width = vector_width<T>(at.ow, {query.data, gradient.data, query_gradient.data});
      with_plan<T>(at, width, std::max(of.depth, of.share), true,
                   [&]<int V, int W, bool STAGED>(const Plan& plan, const Layout& layout, size_t bytes) {
                     const int64_t bands = of.images * bands_of(at, plan);
                     const int64_t fitting = std::min<int64_t>((scratch.sizes[0] - centres) / sums, core.workers);
                     const int64_t workers = relative_gradient.data ? std::clamp<int64_t>(fitting, 1, bands) : bands;
                     T* to = !relative_gradient.data ? nullptr : workers > 1 ? partial : relative_gradient.as<T>();
                     start(query_backward_kernel<T, V, W, STAGED>, of.g * workers, THREADS, bytes, at.stream, of, plan,
                           gradient.as<const T>(), lse.as<const T>(), static_cast<const T*>(shared),
                           query_gradient.as<T>(), to, bands, at, layout);
                     if (to == partial) add_up(partial, workers, sums, relative_gradient.as<T>(), at.stream);
                   });
    }
    if (key_gradient.data || beta_gradient.data)
      start_key_backward<T>(of, gradient.as<const T>(), lse.as<const T>(), shared, key_gradient, beta_gradient, at);
  });
}
