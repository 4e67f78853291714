"""Freed memory stays with the process, so that the next large array needs no new pages.

By default, the allocator of Linux (glibc) gives a large block back to the system when it is freed. The next block of
this size is again mapped and cleared, page by page, when it is first written. A convolutional network allocates such
blocks for every output. The commands of saprof therefore keep freed memory; `import saprof` does not.
`SAPROF_KEEP_MEMORY=0` in the environment prevents it.
"""

from __future__ import annotations

import ctypes
import os
import sys

KEEP = "SAPROF_KEEP_MEMORY"
"""The environment variable that, if it is 0, prevents it in this process and in its children."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_LARGEST = 2**31 - 1
_NEVER = -1


class _State:
    kept = False


def keep_memory() -> bool:
    """Keep freed memory in this process from now on, and return whether this is so.

    Forward passes and training steps on a CPU become faster, mostly with large maps: each output is written into memory
    that the process already has. In return, the process holds the most memory that it has used at one time until it
    ends, and other processes cannot use it. Call it once, at the start of a script that does nothing else. It does
    nothing where glibc is not the allocator (macOS, Windows, musl, a preloaded jemalloc), or if SAPROF_KEEP_MEMORY is
    0, and then returns False.
    """
    if not _State.kept and why_not() is None:
        set_option = ctypes.CDLL("libc.so.6").mallopt
        # before glibc 2.35, a threshold above 32 MB is refused; then no block at all is mapped by itself
        mapped = set_option(_MMAP_THRESHOLD, _LARGEST) or set_option(_MMAP_MAX, 0)
        _State.kept = bool(mapped and set_option(_TRIM_THRESHOLD, _NEVER))
    return _State.kept


def kept() -> bool:
    """Whether this process keeps freed memory because of `keep_memory`."""
    return _State.kept


def why_not() -> str | None:
    """The reason why `keep_memory` does nothing here, or None."""
    if os.environ.get(KEEP) == "0":
        return f"{KEEP} is 0"
    if sys.platform != "linux":
        return "needs glibc, the allocator of Linux"
    try:
        ours = ctypes.CDLL("libc.so.6")
        is_used = _address(ctypes.CDLL(None).malloc) == _address(ours.malloc)
    except OSError:
        return "needs glibc"
    if not (is_used and hasattr(ours, "mallopt")):
        return "needs glibc; this process has another allocator"
    return None


def _address(function: object) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value  # pyright: ignore[reportArgumentType]
