"""Kernels with deliberate mistakes: each build must report those that it is for."""

import numpy as np
import pytest
import torch

from cuda_on_host.host import CSRC, SANITIZERS, Host, build

KERNELS = """
#include "device.h"
#include "launch.h"

__global__ void reverse(const float* from, float* to) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = from[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  to[blockIdx.x * blockDim.x + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_without_barrier(const float* from, float* to) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = from[blockIdx.x * blockDim.x + threadIdx.x];
  to[blockIdx.x * blockDim.x + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// The last barrier of a round is missing: fast threads overwrite what slow threads have yet to read.
__global__ void rounds(const float* from, float* to) {
  float* shared = shared_memory<float>();
  for (int i = 0; i < 3; ++i) {
    shared[threadIdx.x] = from[threadIdx.x] + static_cast<float>(i);
    __syncthreads();
    to[blockIdx.x * blockDim.x + threadIdx.x] += shared[blockDim.x - 1 - threadIdx.x];
  }
}

// All blocks write the first element, all from thread 0 if `same`, otherwise each from another thread.
__global__ void one_element(const float* from, float* to, int64_t same) {
  if (threadIdx.x == (same ? 0 : blockIdx.x)) to[0] = from[0];
}

__global__ void write_at(float* to, int64_t at) { to[at] = 1; }

__global__ void write_shared_at(int64_t at) { shared_memory<float>()[at] = 1; }

__global__ void write_local_at(float* to, int64_t at) {
  float local[8] = {};
  float* first = local;
  asm volatile("" : "+r"(first));  // so that the compiler cannot know
  __syncthreads();
  first[at] = 1;
  __syncthreads();
  to[threadIdx.x] = local[threadIdx.x % 8];
}

__global__ void write_input(float* from) { from[threadIdx.x] = 7; }

__global__ void read_unwritten(float* to) { to[threadIdx.x] = shared_memory<float>()[threadIdx.x]; }

__global__ void add(int* to, int64_t more) { to[0] += static_cast<int>(more); }

__global__ void misaligned(float* to) { *reinterpret_cast<double*>(to + 1) = 1; }

__global__ void divergent(int64_t last) {
  for (int i = 0; i < 3; ++i) __syncthreads();
  if (static_cast<int64_t>(threadIdx.x) != last) __syncthreads();
}

__global__ void coordinates(int* to) {
  int* at = to + 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  at[0] = threadIdx.x, at[1] = blockIdx.x, at[2] = blockDim.x, at[3] = gridDim.x;
}

__global__ void largest(const float* from, float* to) {
  to[0] = max(from[0], 0.0f), to[1] = max(0.0f, from[0]), to[2] = min(from[0], 0.0f), to[3] = min(0.0f, from[0]);
}

__global__ void nothing() {}
"""

LAUNCH = """
#include <stdexcept>

// arrays: from, to; numbers: blocks, threads, bytes of shared memory, and one for the kernel
void launch(const std::string& name, const std::vector<Array>& arrays, const std::vector<Array>&,
            const std::vector<int64_t>& numbers, cudaStream_t stream) {
  float* from = static_cast<float*>(arrays[0].data);
  float* to = static_cast<float*>(arrays[1].data);
  const int64_t number = numbers[3];
  const auto run = [&](auto kernel, auto... arguments) {
    start(kernel, numbers[0], static_cast<int>(numbers[1]), numbers[2], stream, arguments...);
  };
  if (name == "reverse") return run(reverse, from, to);
  if (name == "reverse_without_barrier") return run(reverse_without_barrier, from, to);
  if (name == "rounds") return run(rounds, from, to);
  if (name == "one_element") return run(one_element, from, to, number);
  if (name == "write_at") return run(write_at, to, number);
  if (name == "write_shared_at") return run(write_shared_at, number);
  if (name == "write_local_at") return run(write_local_at, to, number);
  if (name == "write_input") return run(write_input, from);
  if (name == "read_unwritten") return run(read_unwritten, to);
  if (name == "add") return run(add, reinterpret_cast<int*>(to), number);
  if (name == "misaligned") return run(misaligned, to);
  if (name == "divergent") return run(divergent, number);
  if (name == "coordinates") return run(coordinates, reinterpret_cast<int*>(to));
  if (name == "largest") return run(largest, from, to);
  if (name == "nothing") return run(nothing);
  if (name == "forgotten") {
    if (cudaGetLastError() != cudaSuccess) throw std::runtime_error("an error is left");
    return;
  }
  throw std::invalid_argument("there is no " + name);
}
"""

any_build = pytest.mark.parametrize(
    "sanitizer",
    [pytest.param(name, marks=pytest.mark.deep if name else (), id=name or "plain") for name in SANITIZERS],
)


@pytest.fixture(scope="module")
def hosts(request):
    folder = request.config.cache.mkdir("cuda_on_host_emulation")
    csrc = folder / "csrc"
    csrc.mkdir(exist_ok=True)
    (csrc / "kernels.cu").write_text(KERNELS + LAUNCH)
    for header in ("device.h", "launch.h"):
        (csrc / header).write_text((CSRC / header).read_text())
    started: dict[str, Host] = {}

    def host(sanitizer=""):
        if sanitizer not in started:
            started[sanitizer] = Host(build(sanitizer, folder, csrc, ["kernels.cu"]))
        return started[sanitizer]

    yield host
    for one in started.values():
        one.close()


def call(host, name, blocks=3, threads=32, shared=128, number=0, dtype=torch.float32):
    """`from` counts upwards; returns `to`, which has 4 elements for each thread."""
    source, to = torch.arange(float(blocks * threads)), torch.zeros(4 * blocks * threads, dtype=dtype)
    host.run(name, [source, to], [], [blocks, threads, shared, number])
    return to


def reversed_blocks(blocks, threads):
    return torch.arange(float(blocks * threads)).view(blocks, threads).flip(1).flatten()


@any_build
@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_a_correct_kernel(sanitizer, blocks, hosts):
    for threads in 32, 64, 32:
        to = call(hosts(sanitizer), "reverse", blocks, threads, shared=4 * threads)
        assert torch.equal(to[: blocks * threads], reversed_blocks(blocks, threads))
        assert not to[blocks * threads :].any()


@any_build
def test_coordinates(sanitizer, hosts):
    got = call(hosts(sanitizer), "coordinates", 5, 32, dtype=torch.int32).view(5, 32, 4)
    assert torch.equal(got[..., 0], torch.arange(32, dtype=torch.int32).expand(5, 32))
    assert torch.equal(got[..., 1], torch.arange(5, dtype=torch.int32)[:, None].expand(5, 32))
    assert set(got[..., 2:].flatten().tolist()) == {32, 5}


@pytest.mark.deep
@pytest.mark.parametrize("name", ["reverse_without_barrier", "rounds"])
def test_a_missing_barrier(name, hosts):
    for _ in range(3):
        with pytest.raises(RuntimeError, match="data race"):
            call(hosts("thread"), name, blocks=1)


def test_a_missing_barrier_shows_in_what_is_computed(hosts):
    assert call(hosts(), "reverse_without_barrier", blocks=1)[:32].isnan().any()


@pytest.mark.deep
@pytest.mark.parametrize(("blocks", "same"), [(2, 0), (2, 1), (3, 0)])
def test_blocks_that_write_the_same_element(blocks, same, hosts):
    with pytest.raises(RuntimeError, match="data race"):
        call(hosts("thread"), "one_element", blocks, number=same)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "at", "error"),
    [
        ("write_at", 4 * 32, "heap-buffer-overflow"),
        ("write_at", -1, "heap-buffer-overflow"),
        ("write_shared_at", 32, "heap-buffer-overflow"),
        ("write_shared_at", 32 + 400, "heap-buffer-overflow"),
        ("write_local_at", 9, "stack-buffer-overflow"),
    ],
)
def test_out_of_bounds(name, at, error, hosts):
    with pytest.raises(RuntimeError, match=error):
        call(hosts("address"), name, blocks=1, number=at)


@pytest.mark.deep
def test_undefined_behaviour(hosts):
    host = hosts("address")
    assert call(host, "add", blocks=1, threads=1, number=2**31 - 1, dtype=torch.int32)[0] == 2**31 - 1
    with pytest.raises(RuntimeError, match="signed integer overflow"):
        call(host, "add", blocks=1, threads=2, number=2**31 - 1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="misaligned address"):
        call(host, "misaligned", blocks=1)


@any_build
def test_a_barrier_that_some_threads_miss(sanitizer, hosts):
    host = hosts(sanitizer)
    with pytest.raises(RuntimeError, match=r"kernel divergent\(long\): threads of a block passed 3 and 4 barriers"):
        call(host, "divergent", number=31)
    call(host, "divergent", number=-1)  # in a process of its own


@any_build
def test_what_nobody_wrote_to_shared_memory_is_nan(sanitizer, hosts):
    assert call(hosts(sanitizer), "read_unwritten", blocks=1)[:32].isnan().all()


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"shared": 49153}, "CUDA: invalid argument"),
        ({"threads": 1025}, "CUDA: invalid configuration argument"),
        ({"threads": 0}, "CUDA: invalid configuration argument"),
    ],
)
def test_a_launch_that_cuda_refuses(limits, error, hosts):
    with pytest.raises(RuntimeError, match=error):
        call(hosts(), "nothing", **limits)
    call(hosts(), "forgotten")


def test_the_largest_launch(hosts):
    assert torch.equal(call(hosts(), "reverse", 2, 1024, 49152)[:2048], reversed_blocks(2, 1024))


@any_build
@pytest.mark.parametrize("value", [torch.nan, 1.0, -1.0])
def test_max_and_min_drop_nan(sanitizer, value, hosts):
    """As on a GPU: a ReLU that is written as a maximum must not pass here."""
    to = torch.ones(4)
    hosts(sanitizer).run("largest", [torch.tensor([value]), to], [], [1, 1, 0, 0])
    most, least = (0.0, 0.0) if value != value else (max(value, 0.0), min(value, 0.0))
    assert to.tolist() == [most, most, least, least]


def test_an_unknown_name(hosts):
    host = hosts()
    with pytest.raises(RuntimeError, match="there is no nonsense"):
        call(host, "nonsense")
    call(host, "nothing")


def test_an_input_that_is_written(hosts):
    with pytest.raises(AssertionError, match="write_input wrote to array 0, an input"):
        call(hosts(), "write_input")


def test_any_array(hosts):
    host = hosts()
    for dtype in torch.float64, torch.float16, torch.bfloat16, torch.int32:
        x = torch.arange(6).to(dtype).view(2, 3)
        to = torch.zeros(1)
        host.run("nothing", [x, to], [None, x, x[:0]], [1, 1, 0, 0])
        assert x.dtype == dtype
    source, to = np.arange(32, dtype=np.float32), np.zeros((2, 32), np.float32)
    host.run("reverse", [source, to], [], [1, 32, 128, 0])
    assert np.array_equal(to, [source[::-1], 0 * source])
    large = torch.ones(1 << 22)  # more than a pipe holds, both ways
    host.run("nothing", [large, None], [], [1, 1, 0, 0])
    with pytest.raises(ValueError, match="contiguous"):
        host.run("nothing", [large[::2], None], [], [1, 1, 0, 0])
