"""The Numba backend: the kernels of kernels_numba on torch's tensors.

On a CPU they run in torch's own threads, as many as torch uses, and compute float16 and bfloat16 in float32, at the
cost of the conversions; on a GPU, in torch's current stream, only bfloat16 is converted.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saprof.backends import cores, fused, opaque
from saprof.operators import OPERATORS, family_of
from saprof.operators.footprint import Footprint

if TYPE_CHECKING:
    from kernels_numba.cpu.relations import Frame

FRAME_BYTES = 128 << 10
"""What a thread's frames may take of its second-level cache."""
HUGE_BYTES = 32 << 20
"""From here on glibc maps every allocation afresh, and an output asks Linux for huge pages: 500 times fewer of them are
touched for the first time."""


def why_not(operator: str, dtype: torch.dtype, device: str, footprint: Footprint) -> str | None:
    if device not in _RUN:
        return f"no kernels for {device} tensors"
    return why_no_gpu() if device == "cuda" else None


@cache
def kernel(name: str) -> Callable[..., Any] | None:
    if attention := fused.kernel("numba", name):
        return attention
    return opaque.entry("numba", name) if hasattr(_cpu(), f"{name}_backward") else None


_CONVERTED = {"cpu": (torch.float16, torch.bfloat16), "cuda": (torch.bfloat16,)}
"""What the kernels cannot read."""


def _working(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in _CONVERTED[x.device.type] else x.dtype


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    output = like.new_empty(shape)
    if output.nbytes >= HUGE_BYTES and (advise := _madvise()):
        start = -(-output.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, output.data_ptr() + output.nbytes - start, mmap.MADV_HUGEPAGE)
    return output


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return madvise


def _run(name: str, tensors: Sequence[Tensor | None], footprint: Footprint, sizes: Mapping[str, int]) -> None:
    first = next(x for x in tensors if x is not None)
    _RUN[first.device.type](name, tensors, first, footprint, sizes)


for _operator in OPERATORS.values():
    if not _operator.masked:
        opaque.register(opaque.Kernels("numba", _run, _working, _empty), _operator)


def _run_on_cpu(
    name: str, tensors: Sequence[Tensor | None], first: Tensor, footprint: Footprint, sizes: Mapping[str, int]
) -> None:
    arrays = [None if x is None else x.numpy() for x in tensors]
    threads = torch.get_num_threads()

    def frame(planes: int, items: int = 0) -> Frame:
        tiles = -(-2 * threads // items) if items else 1
        lookups = _lookups(footprint, sizes["h"], sizes["w"], planes * first.itemsize, tiles)
        rows, columns = lookups[:2]
        memory = first.new_empty(threads, planes * rows.shape[1] * len(columns) + _cpu().SLACK)
        return _cpu().Frame(*lookups, memory.numpy())

    with threads_set_to(threads):
        getattr(_cpu(), name)(*arrays, frame)


@contextmanager
def threads_set_to(count: int) -> Iterator[None]:
    """With so many threads for Numba's kernels."""
    numba = _numba()
    with _turn():
        before = numba.get_num_threads()
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        try:
            yield
        finally:
            numba.set_num_threads(before)


@dataclass(frozen=True)
class _Work:
    """What the cores of the fused attentions ask for on a CPU: facts, lookups and memory."""

    footprint: Footprint
    map: Tensor
    threads: int

    @property
    def height(self) -> int:
        """Rows of centres."""
        return self.footprint.output_size(*self.map.shape[-2:])[0]

    @property
    def width(self) -> int:
        """Centres in a row."""
        return self.footprint.output_size(*self.map.shape[-2:])[1]

    @property
    def excludes(self) -> bool:
        """Whether taps outside the map take no part in the softmax."""
        return self.footprint.boundary == "exclude"

    def frame(self, height: int) -> Frame:
        """The lookups of tiles of so many rows of centres, without memory."""
        return _cpu().Frame(*_lookups_of_tiles(self.footprint, *self.map.shape[-2:], height), self.empty(0, 0))

    def empty(self, *shape: int) -> np.ndarray:
        return _empty(shape, self.map).numpy()

    def double(self, *shape: int) -> np.ndarray:
        """Zeros."""
        return self.map.new_zeros(shape, dtype=torch.float64).numpy()


def _run_core(
    name: str, tensors: Sequence[Tensor | None], widths: Sequence[int], flag: cores.Flag, footprint: Footprint
) -> None:
    map_ = cores.map_of(tensors)
    device, prepare = _WORK[map_.device.type]
    kernels = import_module(f"kernels_numba.{device}.{family_of(name)}")
    flags = [] if flag is None else [flag]
    with prepare(footprint, map_) as work:
        arrays = [None if x is None else as_array(x) for x in tensors]
        getattr(kernels, name)(*arrays, tuple(widths), *flags, work)


cores.register(cores.Kernels("numba", _run_core, _empty))


@contextmanager
def _work_on_cpu(footprint: Footprint, map_: Tensor) -> Iterator[_Work]:
    work = _Work(footprint, map_, torch.get_num_threads())
    with threads_set_to(work.threads):
        yield work


def _run_on_gpu(
    name: str, tensors: Sequence[Tensor | None], first: Tensor, footprint: Footprint, sizes: Mapping[str, int]
) -> None:
    with on_stream(first.device) as stream:
        arrays = [None if x is None else as_array(x) for x in tensors]
        tables = [as_array(x) for x in _tables(footprint, sizes["h"], sizes["w"], first.device)]
        getattr(_gpu(), name)(*arrays, _gpu().Lookups(*tables, stream))


_RUN = {"cpu": _run_on_cpu, "cuda": _run_on_gpu}


class _GpuWork(NamedTuple):
    """What the cores ask for on a GPU: the tables of `kernels_numba.gpu.Lookups`, and memory."""

    rows: Any
    columns: Any
    row_starts: Any
    row_readers: Any
    column_starts: Any
    column_readers: Any
    stream: Any
    excludes: bool
    empty: Callable[..., Any]


@contextmanager
def _work_on_gpu(footprint: Footprint, map_: Tensor) -> Iterator[_GpuWork]:
    with on_stream(map_.device) as stream:
        tables = [as_array(x) for x in _tables(footprint, *map_.shape[2:], map_.device)]
        empty = lambda *shape: as_array(map_.new_empty(shape))  # noqa: E731
        yield _GpuWork(*tables, stream=stream, excludes=footprint.boundary == "exclude", empty=empty)


_WORK = {"cpu": ("cpu", _work_on_cpu), "cuda": ("gpu", _work_on_gpu)}
"""What a core needs, and the folder of its kernels."""


@cache
def why_no_gpu() -> str | None:
    """Why Numba has no kernels for a GPU here; None if it has."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed; pip install -e '.[cuda]'"
    return None if _numba_cuda().is_available() else "numba-cuda finds no CUDA driver that it can use"


@contextmanager
def on_stream(device: torch.device) -> Iterator[Any]:
    """With `device` as both libraries' current one, torch's current stream as Numba knows it."""
    if device.type == "cpu":  # where Numba simulates a GPU
        yield 0
        return
    with torch.cuda.device(device), _numba_cuda().gpus[device.index]:
        yield _numba_cuda().external_stream(torch.cuda.current_stream(device).cuda_stream)


def as_array(x: Tensor) -> Any:
    """The tensor's memory, as Numba takes it."""
    return x.numpy() if x.device.type == "cpu" else _numba_cuda().as_cuda_array(x, sync=False)


@lru_cache(maxsize=1024)
def _tables(footprint: Footprint, h: int, w: int, device: torch.device) -> list[Tensor]:
    """The tables of `kernels_numba.gpu.Lookups`."""
    tables = footprint.rows(h), footprint.columns(w), *footprint.row_readers(h), *footprint.column_readers(w)
    return [table.to(device, torch.int32).contiguous() for table in tables]


@lru_cache(maxsize=1024)
def _lookups(footprint: Footprint, h: int, w: int, element_bytes: int, tiles: int) -> tuple[Any, ...]:
    """The fields of a Frame up to its width, in at least so many tiles, and in so many that a frame of elements of that
    size fits FRAME_BYTES."""
    height = -(-footprint.output_size(h, w)[0] // tiles)
    frame = footprint.frame(h, w, height)
    while height > 1 and frame.rows.shape[1] * len(frame.columns) * element_bytes > FRAME_BYTES:
        height = -(-height // 2)
        frame = footprint.frame(h, w, height)
    return _lookups_of_tiles(footprint, h, w, height)


@lru_cache(maxsize=1024)
def _lookups_of_tiles(footprint: Footprint, h: int, w: int, height: int) -> tuple[Any, ...]:
    """The same, in tiles of so many rows of centres."""
    rows, columns, taps = (x.numpy() for x in footprint.frame(h, w, height))
    order = np.lexsort((taps // len(columns), taps % len(columns)))
    return rows, columns, *_longest_run(columns), taps, order, height, footprint.output_size(h, w)[1]


def _longest_run(columns: np.ndarray) -> tuple[int, int]:
    """Where most columns follow each other without a gap: the first, and the one behind the last."""
    outside = -2 * np.arange(len(columns)) - 2  # never one more than its neighbour
    steps = np.diff(np.where(columns < 0, outside, columns))
    bounds = np.array([0, *np.flatnonzero(steps != 1) + 1, len(columns)])
    longest = np.diff(bounds).argmax()
    begin, end = int(bounds[longest]), int(bounds[longest + 1])
    return (begin, end) if columns[begin] >= 0 else (begin, begin)


@cache
def _numba() -> Any:
    return import_module("numba")


@cache
def _cpu() -> ModuleType:
    return import_module("kernels_numba.cpu.relations")


@cache
def _numba_cuda() -> Any:
    return import_module("numba.cuda")


@cache
def _gpu() -> ModuleType:
    return import_module("kernels_numba.gpu.relations")


_starting = threading.Lock()


def _turn() -> AbstractContextManager[Any]:
    """What a thread holds while it runs a kernel."""
    with _starting:
        return _start_threads()


@cache
def _start_threads() -> AbstractContextManager[Any]:
    """Start Numba's threads, and return what keeps kernels apart that must not run at once.

    Numba's OpenMP layer finds the functions of the OpenMP library that torch has loaded, if their names are global, and
    then shares its threads. Threads of its own would contend for the cores with those of torch, which wait for work in
    a loop; tests/benchmarks/test_pools.py shows it.
    """
    numba = _numba()
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    for library in Path(torch.__file__).parent.glob("lib/lib*"):
        if library.name.startswith(("libgomp", "libiomp", "libomp")):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    threads = torch.get_num_threads()
    numba.get_num_threads()  # starts them, and tells OpenMP, so torch as well, to use all cores
    torch.set_num_threads(threads)
    layer = numba.threading_layer()
    if layer != "omp" and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        warnings.warn(
            f"Numba's kernels run in threads of its layer {layer!r}, beside the OpenMP threads of torch, which keep "
            "cores busy while they wait: they may be several times slower. Install OpenMP where Numba finds it "
            "(libgomp1 on Debian), or set OMP_WAIT_POLICY=passive before Python starts",
            RuntimeWarning,
            stacklevel=2,
        )
    return threading.Lock() if layer == "workqueue" else nullcontext()  # which ends the process if entered twice
