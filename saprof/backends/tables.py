"""Tables in the memory of a GPU that any stream, and any CUDA graph, may read at any later time.

A thread of its own copies them, in a stream of its own: the modes, the memory pool and the capture of the calling
thread do not apply to it. So a table is never a fake tensor, never part of the private pool of a graph, and its copy is
never recorded in a graph. Tables are small, and those in the memory of a GPU are kept as long as the process: the host
cannot know when the last graph has read them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from saprof.operators.footprint import Footprint

Made = TypeVar("Made")

RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED: a capture in another thread forbids this thread nothing."""


def on_device(tables: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tables, all of one dtype, in the memory of `device`. On a GPU they are parts of one allocation."""
    if device.type != "cuda":
        return [table.to(device) for table in tables]
    flat = torch.cat([table.flatten() for table in tables])
    parts = apart(lambda: copied(flat, device)).split([table.numel() for table in tables])
    return [part.view(table.shape) for part, table in zip(parts, tables, strict=True)]


def apart(make: Callable[[], Made]) -> Made:
    """The result of `make`, called in a new thread, where no mode of the caller is active."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def copied(table: Tensor, device: torch.device) -> Tensor:
    """A copy on a GPU, which is complete on return. The calling thread must be one of `apart`."""
    with _unrestricted(), torch.cuda.device(device), torch.cuda.stream(_free_stream(device)):
        copy = table.to(device)
        torch.cuda.current_stream(device).synchronize()
    return copy


def _free_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of torch that no graph is captured in. Torch hands out the same 32 streams again and again."""
    while True:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            if not torch.cuda.is_current_stream_capturing():
                return stream


@contextmanager
def _unrestricted() -> Iterator[None]:
    """Allow this thread to allocate memory while another thread captures a graph."""
    mode = ctypes.c_int(RELAXED)
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))  # `mode` now holds the earlier mode
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def rows_and_columns(footprint: Footprint, h: int, w: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """`footprint.rows(h)` and `footprint.columns(w)` on the device of `like`. They are kept, unless torch traces."""
    if computes(like):
        return (of_gpu if like.is_cuda else of_cpu)(footprint, h, w, like.device)
    return footprint.rows(h).to(like.device), footprint.columns(w).to(like.device)


def computes(x: Tensor) -> bool:
    """Whether operations on this tensor run now, and no mode of torch traces, transforms or counts them."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and peek_interpreter_stack() is None
    )


def _rows_and_columns(footprint: Footprint, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = on_device(apart(lambda: (footprint.rows(h), footprint.columns(w))), device)
    return rows, columns


of_gpu, of_cpu = cache(_rows_and_columns), lru_cache(maxsize=256)(_rows_and_columns)
