"""The build of the CUDA kernels in csrc/: just in time by `load`, or ahead of it by `python -m kernels_cuda.build`.

The name of a library contains a hash of its sources, its flags and torch's version, so a stale library is never found.
A stamp beside it shows whether it is complete. nvcc's version is only in the stamp: if there is an nvcc, a library of
another version is compiled again; if there is none, any version is used.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from kernels_cuda import CSRC, SOURCES, compiler
from kernels_cuda.compiler import BuildError
from kernels_cuda.processes import Tell, printed, run_all
from kernels_cuda.report import Kernel, demangled, kernels_of, table, without_resources

_NAME = "saprof_kernels-{}.so"
_KEPT = 4  # the newest libraries of a folder are kept: other architectures and versions of torch may use them
_LOADING = threading.Lock()

Announce = Callable[[str, str], AbstractContextManager[Tell]]
"""Tells of a build: a context for what is compiled and the folder where it is kept, whose value takes the progress."""

announce: Announce = printed
"""Tells of the build that `load` starts. saprof sets it."""


def load() -> Callable[..., None]:
    """torch's operator that starts the kernels; they are compiled first if there is no library of them."""
    with _LOADING:
        return _launch()


def why_not() -> str | None:
    """Why `load` cannot work here, as far as is known without compiling; None if it can."""
    if _launch.cache_info().currsize:
        return None
    if sys.platform != "linux":
        return f"the CUDA kernels are for Linux; this is {sys.platform}"
    try:
        found = _find(inputs_of(compiler.architectures()))
        if compiler.find_nvcc() or not found:
            compiler.usable_nvcc()
        if not found:
            writable_folder()
    except (BuildError, ValueError) as error:
        return str(error)
    return None


def library(wanted: Sequence[str] | None = None, force: bool = False, told: Announce = printed) -> Path:
    """The path of the kernels' library for the architectures `wanted`, or those of `compiler.architectures`.

    It is built if there is none, or if `force`, and `told` tells of that. BuildError if that fails.
    """
    inputs = inputs_of(compiler.architectures() if wanted is None else wanted)
    found = None if force else _find(inputs)
    if found:
        return found
    nvcc, folder = compiler.usable_nvcc(), writable_folder()
    with _alone_in(folder):
        found = None if force else _find(inputs)
        return found or _build(nvcc, inputs, folder, told)


def report(library: Path) -> list[Kernel]:
    """What the kernels of a library need of a GPU, sorted by name."""
    kernels = [Kernel(*fields) for fields in json.loads(stamp_of(library).read_text())["kernels"]]
    names = demangled([kernel.name for kernel in kernels])
    return sorted(kernel._replace(name=name) for kernel, name in zip(kernels, names, strict=True))


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        built = library(compiler.architectures(arguments.arch), arguments.force)
    except (BuildError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(built)
    if arguments.report:
        print(f"\n{table(report(built))}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels_cuda.build",
        description="Compile the CUDA kernels, unless this has been done, and print the "
        "path of the library. Needs nvcc, but no GPU.",
        epilog="Exit code 0: the library exists; 1: it could not be built; 2: wrong usage.",
    )
    parser.add_argument(
        "--arch", help="targets, such as 8.0,9.0+PTX (default: TORCH_CUDA_ARCH_LIST, or the GPUs of this machine)"
    )
    parser.add_argument("--force", action="store_true", help="compile even if the library exists")
    parser.add_argument("--report", action="store_true", help="print the GPU resources that each kernel uses")
    return parser


@functools.cache
def _launch() -> Any:
    import torch

    path = library(told=announce)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise RuntimeError(
            f"cannot load {path}: {error.__cause__ or error}; expected a torch with CUDA, the one that it was built for"
        ) from error
    return torch.ops.saprof_kernels.launch


def inputs_of(wanted: Sequence[str]) -> dict[str, Any]:
    """What a library depends on, as JSON."""
    import torch

    contents = hashlib.sha256()
    for file in sorted(path for path in CSRC.rglob("*") if path.is_file()):
        contents.update(f"{file.relative_to(CSRC)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return {
        "csrc": contents.hexdigest(),
        "sources": list(SOURCES),
        "flags": list(compiler.FLAGS),
        "architectures": list(wanted),
        "machine": platform.machine(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }


def folders() -> list[Path]:
    """The folders where a library may be, the preferred one first."""
    if chosen := os.environ.get("SAPROF_BUILD_DIR"):
        return [Path(chosen).absolute()]
    found = [CSRC.parent / "build"]
    with suppress(RuntimeError):  # a user without a home, as in a container
        found.append(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "saprof")
    return found


def writable_folder() -> Path:
    """The first of these folders that can be written to."""
    refused: list[str] = []
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError as error:
            refused.append(f"{folder} ({error.strerror})")
    raise BuildError(f"cannot write to {' or '.join(refused)}; set SAPROF_BUILD_DIR to a folder that can be written to")


def _find(inputs: dict[str, Any]) -> Path | None:
    paths = [folder / file_name(inputs) for folder in folders()]
    return next((path for path in paths if path.exists() and not _flaw(path, inputs)), None)


def file_name(inputs: dict[str, Any]) -> str:
    """The name of the library with these inputs."""
    return _NAME.format(hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16])


def stamp_of(library: Path) -> Path:
    """The file that describes a library."""
    return library.with_name(f"{library.name}.json")


def _flaw(library: Path, inputs: dict[str, Any]) -> str | None:
    """Why a library must not be used; None if it may."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        stamp = json.loads(stamp_of(library).read_text())
        if stamp["inputs"] == inputs and stamp["sha256"] == _sha256(library):
            nvcc = compiler.find_nvcc()
            same = not nvcc or compiler.version_of(nvcc) == stamp["nvcc"]
            return None if same else f"was compiled by nvcc {stamp['nvcc']}"
    return "is damaged"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock, so that no other process builds in `folder`. A process that is killed releases it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        held = lock.acquire(timeout=1)
    except Timeout:
        print(f"saprof: waiting for another process, which compiles CUDA kernels in {folder}", file=sys.stderr)
        held = lock.acquire()
    with held:
        yield


def _build(nvcc: str, inputs: dict[str, Any], folder: Path, told: Announce) -> Path:
    path = folder / file_name(inputs)
    if path.exists() and (flaw := _flaw(path, inputs)):
        print(f"saprof: {path} {flaw}; compiling it again", file=sys.stderr)
    for left in filter(_is_left, folder.glob(".building-*")):
        shutil.rmtree(left, ignore_errors=True)
    prefix = f".building-{platform.node()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder, ignore_cleanup_errors=True) as scratch:
        names = ", ".join(code.rpartition("=")[2] for code in compiler.codes_of(inputs["architectures"]))
        with told(f"CUDA kernels for {names}", str(folder)) as tell:
            made, kernels = _compile(nvcc, inputs["architectures"], Path(scratch), tell)
        if inputs_of(inputs["architectures"]) != inputs:
            raise BuildError(f"a file in {CSRC} changed while it was compiled; build again")
        stamp = {"sha256": _sha256(made), "inputs": inputs, "nvcc": compiler.version_of(nvcc), "kernels": kernels}
        stamp_of(made).write_text(json.dumps(stamp, indent=1))
        stamp_of(made).replace(stamp_of(path))  # the library last, so that every library has a stamp
        made.replace(path)
    for old in sorted(folder.glob(_NAME.format(16 * "[0-9a-f]")), key=lambda file: file.stat().st_mtime)[:-_KEPT]:
        old.unlink(missing_ok=True)
        stamp_of(old).unlink(missing_ok=True)
    return path


def _is_left(scratch: Path) -> bool:
    """Whether a killed process of this machine left the folder. Other machines may share the file system, and the lock
    may not exclude them."""
    host, _, pid = scratch.name.removeprefix(".building-").rpartition("-")[0].rpartition("-")
    if host != platform.node():
        return False
    try:
        os.kill(int(pid), 0)
    except ValueError:
        return False
    except ProcessLookupError:
        return True
    except PermissionError:  # a process of another user
        return False
    return int(pid) == os.getpid()  # an earlier process had the same number, since this one holds the lock


def _compile(nvcc: str, wanted: Sequence[str], scratch: Path, tell: Tell) -> tuple[Path, list[Kernel]]:
    """Compile a library in `scratch`. Returns its path, and what its kernels need."""
    import torch

    home, codes, made = Path(torch.__file__).parent, compiler.codes_of(wanted), scratch / "library.so"
    start = [nvcc, *compiler.FLAGS, *codes, "-isystem", str(home / "include")]
    logs = run_all({name: [*start, "-c", str(CSRC / name), "-o", f"{name}.o"] for name in SOURCES}, scratch, tell)
    with_cuda = ["-ltorch_cuda"] if (home / "lib/libtorch_cuda.so").exists() else []
    linked = [*(f"{name}.o" for name in SOURCES), f"-L{home / 'lib'}", "-ltorch", "-ltorch_cpu", *with_cuda, "-lc10"]
    logs |= run_all({"linking": [nvcc, "-shared", *codes, *linked, "-o", made.name]}, scratch)
    for warning in filter(None, map(without_resources, logs.values())):
        print(warning, file=sys.stderr)
    return made, [kernel for log in logs.values() for kernel in kernels_of(log)]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
