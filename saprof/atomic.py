"""Writing a whole file or none."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.tmp")


def write(path: str | Path, content: bytes) -> None:
    """Replace the file at `path`. A reader finds the old file or the new one, during the write and after a crash too.

    OSError with the path if it cannot be written.
    """
    path = Path(path)
    remove_abandoned(path.parent, path.name)  # before the write, which may need the space
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


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files in `folder` that killed processes left behind; only those for the file `name`, if it
    is given."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and name in (None, found["name"]) and _is_abandoned(entry, int(found["process"])):
                with suppress(OSError):
                    Path(entry.path).unlink()


def _is_abandoned(entry: os.DirEntry[str], process: int) -> bool:
    """Whether the process that wrote a temporary file has ended. A process that started after the last write is another
    one, with the same number."""
    import psutil

    try:
        return entry.is_file(follow_symlinks=False) and psutil.Process(process).create_time() > entry.stat().st_mtime
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OverflowError, FileNotFoundError):
        return False


def _keep(folder: Path) -> None:
    """Flush the entries of the folder to disk, if the system supports it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
