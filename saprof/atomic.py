"""Writing a whole file or none."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write(path: str | Path, content: bytes) -> None:
    """Replace the file at `path`. A reader finds the old file or the new one, during the write and after a crash too.

    OSError with the path if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _keep(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _keep(folder: Path) -> None:
    """Flush the entries of the folder to disk, if the system supports it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
