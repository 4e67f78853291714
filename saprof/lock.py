"""A lock on a folder: two processes must not write to the same run."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".lock"
"""The file in the folder that is locked. It is not deleted."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder inside the `with` block; the lock also ends with the process. ValueError if another process holds
    it, OSError if the folder cannot be written or its file system has no locks."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is working on {folder}; wait for it, or stop it") from None
    except NotImplementedError:
        raise OSError(errno.ENOLCK, "its file system has no locks", str(folder)) from None
    try:
        yield
    finally:
        lock.release()
