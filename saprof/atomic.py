"""Writing a whole file or none."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.tmp")


class WriteError(OSError, ValueError):
    """A file cannot be written; `filename` is its path."""

    def __str__(self) -> str:
        return f"cannot write to {self.filename}: {self.strerror}"

    @classmethod
    def of(cls, path: str | Path, error: OSError, remedy: str = "") -> WriteError:
        """The same error with the name `path`, and a remedy at its end."""
        return cls(error.errno, f"{error.strerror}{remedy}", str(path))


def write(path: str | Path, content: bytes) -> None:
    """Replace the file at `path`. A reader finds the old file or the new one, during the write and after a crash too.

    The new file has the permissions of the old one. If the path is a link, its target is replaced. If it is a device or
    a pipe, such as /dev/stdout, the content is written to it. WriteError if that fails.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - these do not raise
            Path(path).write_bytes(content)
        else:
            _replace(Path(path).resolve(), content)
    except OSError as error:
        raise WriteError.of(path, error) from None


def check(path: str | Path) -> None:
    """WriteError unless a file can be written at `path`: to be called before work whose result is written there."""
    path = Path(path).resolve()
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            with path.open("ab"):
                pass
        else:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        raise WriteError.of(path, error) from None


def _replace(path: Path, content: bytes) -> None:
    remove_abandoned(path.parent, path.name)  # before the write, which may need the space
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if path.exists():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _keep(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def append(path: Path, content: bytes) -> None:
    """Append to the file at `path`; the content is on disk when this returns. WriteError if it cannot be written; then
    the file is as before."""
    try:
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise WriteError.of(path, error) from None


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
