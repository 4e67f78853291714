"""The Numba backend on a GPU: lookups and memory for the kernels in `kernels_numba.gpu`, in torch's current stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saprof.backends.numba.installed import why_not_imported
from saprof.backends.numba.lookups import tables
from saprof.operators.footprint import Footprint


class GpuWork(NamedTuple):
    """A call's facts, lookups and memory: the last argument of each kernel's entry point.

    `kernels_numba.gpu.launch.Lookups` describes the tables.
    """

    rows: Any
    columns: Any
    row_starts: Any
    row_readers: Any
    column_starts: Any
    column_readers: Any
    stream: Any
    excludes: bool
    """Whether the softmax skips taps outside the map."""
    empty: Callable[..., Any]


@contextmanager
def gpu_work(footprint: Footprint, map_size: tuple[int, int], like: Tensor) -> Iterator[GpuWork]:
    """The work of a kernel that reads maps of `map_size`, in torch's current stream of the device of `like`."""
    with on_stream(like.device) as stream:
        arrays = [as_array(x) for x in tables(footprint, *map_size, like.device)]
        empty = lambda *shape: as_array(like.new_empty(shape))  # noqa: E731
        yield GpuWork(*arrays, stream=stream, excludes=footprint.boundary == "exclude", empty=empty)


@cache
def why_no_gpu() -> str | None:
    """The reason why Numba has no kernels for a GPU here; None if it has them."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed; pip install -e '.[cuda]'"
    if reason := why_not_imported("numba.cuda"):
        return reason
    return None if _numba_cuda().is_available() else "numba-cuda finds no CUDA driver that it can use"


@contextmanager
def on_stream(device: torch.device) -> Iterator[Any]:
    """Make `device` the current one of both libraries, and return torch's current stream as an object of Numba."""
    if device.type == "cpu":  # Numba simulates a GPU
        yield 0
        return
    with torch.cuda.device(device), _numba_cuda().gpus[device.index]:
        yield _numba_cuda().external_stream(torch.cuda.current_stream(device).cuda_stream)


def as_array(x: Tensor) -> Any:
    """A view of the tensor's memory as Numba reads it."""
    return x.numpy() if x.device.type == "cpu" else _numba_cuda().as_cuda_array(x, sync=False)


@cache
def _numba_cuda() -> Any:
    return import_module("numba.cuda")
