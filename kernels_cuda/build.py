"""The build of the CUDA kernels in csrc/: just in time by `load`, or ahead of it by `python -m kernels_cuda.build`.

A library is named by the fingerprint of what it is made of, so that a stale one is never found, and beside it lies a
stamp that tells whether it is whole. nvcc's version stands in the stamp alone: where there is an nvcc, the library of
another one is compiled again, and where there is none, any will do.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from kernels_cuda import CSRC, SOURCES

FLAGS = (
    *("-std=c++20", "-O3", "-lineinfo", "--expt-relaxed-constexpr"),
    *("-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA"),  # torch's stable ABI, as of 2.11
    *("-Xcompiler", "-fPIC,-Wall,-Wextra"),
    *("-Xptxas", "-v"),  # what `report` reads
)

CUDA = Path("/usr/local/cuda")
"""Where CUDA is installed if nobody says otherwise."""

_ARCHITECTURE = re.compile(r"\d+\.\d[af]?(\+PTX)?")
_RESOURCES = re.compile(
    r"Compiling entry function '(.+)' for '(.+)'\n.*Function properties for \1\n"
    r" *(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*Used (\d+) registers(?:.*?(\d+) bytes smem)?"
)
_RESOURCE_LINE = re.compile(r"(?m)^(ptxas info *: (\d|Compil|Function|Used)| *\d+ bytes stack frame).*\n?")
_NAME = "saprof_kernels-{}.so"
_KEPT = 4  # libraries of a folder, the newest; other architectures and other torches may be in use
_LOADING = threading.Lock()


class BuildError(RuntimeError):
    """There is no library, and the message says why and what to do."""


class Kernel(NamedTuple):
    """What a kernel takes, by ptxas: registers and bytes per thread, and of static shared memory, bytes per block."""

    name: str
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


def load() -> Callable[..., None]:
    """The operator `launch` of the kernels, compiled first if they have to be."""
    with _LOADING:
        return _launch()


def why_not() -> str | None:
    """Why `load` cannot work here, as far as can be told without compiling."""
    if _launch.cache_info().currsize:
        return None
    if sys.platform != "linux":
        return f"the CUDA kernels are for Linux; this is {sys.platform}"
    try:
        wanted = architectures()
        if _nvcc() or not _find(_inputs(wanted)):
            _compiler()
    except (BuildError, ValueError) as error:
        return str(error)
    return None


def library(wanted: Sequence[str] | None = None, force: bool = False) -> Path:
    """The path of the kernels' library for the architectures `wanted`, or `architectures()`.

    It is built if it is not there, or by `force`. BuildError if that cannot be done.
    """
    inputs = _inputs(architectures() if wanted is None else wanted)
    found = None if force else _find(inputs)
    if found:
        return found
    nvcc, folder = _compiler(), _folder()
    with _alone_in(folder):
        found = None if force else _find(inputs)
        return found or _build(nvcc, inputs, folder)


def architectures(text: str | None = None) -> list[str]:
    """Those that `text` lists, or TORCH_CUDA_ARCH_LIST in the same syntax, or else those of the GPUs here."""
    what = "TORCH_CUDA_ARCH_LIST" if text is None else "--arch"
    if text is None and not (text := os.environ.get(what, "").strip()):
        return _of_devices()
    names = re.split(r"[;,\s]+", text.strip("; ,"))
    for name in names:
        if not _ARCHITECTURE.fullmatch(name):
            raise ValueError(f"{what} has {name!r}; expected numbers such as 8.0;9.0 or 8.0;9.0+PTX")
    return sorted(set(names), key=lambda name: (int(name.partition(".")[0]), name))


def nvcc_version() -> str | None:
    """That of the nvcc that compiles here, if there is one."""
    nvcc = _nvcc()
    return nvcc and _version(nvcc)


def report(library: Path) -> list[Kernel]:
    """What the kernels of a library take, by name."""
    kernels = [Kernel(*fields) for fields in json.loads(_stamp(library).read_text())["kernels"]]
    names = _demangled([kernel.name for kernel in kernels])
    return sorted(kernel._replace(name=name) for kernel, name in zip(kernels, names, strict=True))


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        built = library(architectures(arguments.arch), arguments.force)
    except (BuildError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(built)
    if arguments.report:
        print(f"\n{_table(report(built))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels_cuda.build",
        description="Compile the CUDA kernels, unless they are, and print the library's path. Needs nvcc, but no GPU.",
        epilog="Exit code 0: it is there; 1: it could not be built; 2: usage.",
    )
    parser.add_argument("--arch", help="such as 8.0,9.0+PTX (default TORCH_CUDA_ARCH_LIST, or the GPUs here)")
    parser.add_argument("--force", action="store_true", help="compile even if the library is there")
    parser.add_argument("--report", action="store_true", help="print what each kernel takes of a GPU")
    return parser


def _table(kernels: Sequence[Kernel]) -> str:
    rows: list[tuple[str, ...]] = [("kernel", "arch", "registers", "spill bytes", "shared", "stack")]
    for k in kernels:
        rows.append((k.name, k.arch, *map(str, (k.registers, k.spill_stores + k.spill_loads, k.shared, k.stack))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    fields = [zip(row, widths, "<<>>>>", strict=True) for row in rows]
    return "\n".join("  ".join(f"{text:{side}{width}}" for text, width, side in row) for row in fields)


@functools.cache
def _launch() -> Any:
    import torch

    path = library()
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise RuntimeError(
            f"cannot load {path}: {error.__cause__ or error}; expected a torch with CUDA, the one that it was built for"
        ) from error
    return torch.ops.saprof_kernels.launch


def _of_devices() -> list[str]:
    import torch

    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    if not found:
        raise BuildError(
            "there is no GPU to take the architecture from; set TORCH_CUDA_ARCH_LIST or --arch to 9.0, say"
        )
    return [f"{major}.{minor}" for major, minor in sorted(found)]


def _nvcc() -> str | None:
    homes = [home for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", os.defpath), str(CUDA / "bin")]
    found = shutil.which("nvcc", path=os.pathsep.join(places))
    return found and str(Path(found).absolute())


def _compiler() -> str:
    nvcc = _nvcc()
    if not nvcc:
        raise BuildError(
            f"there is no nvcc in $CUDA_HOME/bin, $CUDA_PATH/bin, PATH or {CUDA / 'bin'}; expected that of CUDA 12 or "
            "later: install the CUDA toolkit, or set CUDA_HOME to where it is"
        )
    if int(_version(nvcc).partition(".")[0]) < 12:
        raise BuildError(f"{nvcc} is of CUDA {_version(nvcc)}; expected CUDA 12 or later, which CUDA_HOME can point to")
    return nvcc


@functools.cache
def _version(nvcc: str) -> str:
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, errors="replace")
    version = re.search(r"\bV(\d+\.\d+\.\d+)", told.stdout)
    if not version:
        raise BuildError(f"{nvcc} --version does not tell its version, but {(told.stderr or told.stdout).strip()!r}")
    return version[1]


def _inputs(wanted: Sequence[str]) -> dict[str, Any]:
    """What a library is made of, as JSON can hold it."""
    import torch

    contents = hashlib.sha256()
    for file in sorted(path for path in CSRC.rglob("*") if path.is_file()):
        contents.update(f"{file.relative_to(CSRC)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return {
        "csrc": contents.hexdigest(),
        "sources": list(SOURCES),
        "flags": list(FLAGS),
        "architectures": list(wanted),
        "machine": platform.machine(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }


def folders() -> list[Path]:
    """Where a library may lie, the best place first."""
    if chosen := os.environ.get("SAPROF_BUILD_DIR"):
        return [Path(chosen).absolute()]
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return [CSRC.parent / "build", Path(cache).expanduser().absolute() / "saprof"]


def _folder() -> Path:
    """The best place that can be written to."""
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
    paths = [folder / _file_name(inputs) for folder in folders()]
    return next((path for path in paths if path.exists() and not _flaw(path, inputs)), None)


def _file_name(inputs: dict[str, Any]) -> str:
    return _NAME.format(hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16])


def _stamp(library: Path) -> Path:
    return library.with_name(f"{library.name}.json")


def _flaw(library: Path, inputs: dict[str, Any]) -> str | None:
    """What is the matter with a library, if anything is."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        stamp = json.loads(_stamp(library).read_text())
        if stamp["inputs"] == inputs and stamp["sha256"] == _sha256(library):
            nvcc = _nvcc()
            return f"was compiled by nvcc {stamp['nvcc']}" if nvcc and _version(nvcc) != stamp["nvcc"] else None
    return "is damaged"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other process builds in `folder` meanwhile. One that is killed has let go."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        held = lock.acquire(timeout=1)
    except Timeout:
        print(f"saprof: waiting for another process, which compiles CUDA kernels in {folder}", file=sys.stderr)
        held = lock.acquire()
    with held:
        yield


def _build(nvcc: str, inputs: dict[str, Any], folder: Path) -> Path:
    path = folder / _file_name(inputs)
    if path.exists() and (flaw := _flaw(path, inputs)):
        print(f"saprof: {path} {flaw}; compiling it again", file=sys.stderr)
    for left in folder.glob(".building-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder, ignore_cleanup_errors=True) as scratch:
        made, kernels = _compile(nvcc, inputs["architectures"], Path(scratch))
        if _inputs(inputs["architectures"]) != inputs:
            raise BuildError(f"a file in {CSRC} changed while it was compiled; build again")
        stamp = {"sha256": _sha256(made), "inputs": inputs, "nvcc": _version(nvcc), "kernels": kernels}
        _stamp(made).write_text(json.dumps(stamp, indent=1))
        _stamp(made).replace(_stamp(path))  # the library last: what is found has its stamp
        made.replace(path)
    for old in sorted(folder.glob(_NAME.format(16 * "[0-9a-f]")), key=lambda file: file.stat().st_mtime)[:-_KEPT]:
        old.unlink(missing_ok=True)
        _stamp(old).unlink(missing_ok=True)
    return path


def _compile(nvcc: str, wanted: Sequence[str], scratch: Path) -> tuple[Path, list[Kernel]]:
    """A library in `scratch`, and what its kernels take."""
    import torch

    home, codes, made = Path(torch.__file__).parent, _codes(wanted), scratch / "library.so"
    start = [nvcc, *FLAGS, *codes, "-isystem", str(home / "include")]
    task = f"saprof: compiling CUDA kernels for {', '.join(code.rpartition('=')[2] for code in codes)}"
    logs = _run({name: [*start, "-c", str(CSRC / name), "-o", f"{name}.o"] for name in SOURCES}, scratch, task)
    with_cuda = ["-ltorch_cuda"] if (home / "lib/libtorch_cuda.so").exists() else []
    linked = [*(f"{name}.o" for name in SOURCES), f"-L{home / 'lib'}", "-ltorch", "-ltorch_cpu", *with_cuda, "-lc10"]
    logs |= _run({"linking": [nvcc, "-shared", *codes, *linked, "-o", made.name]}, scratch)
    for warning in filter(None, map(_without_resources, logs.values())):
        print(warning, file=sys.stderr)
    return made, [kernel for log in logs.values() for kernel in _kernels(log)]


def _codes(wanted: Sequence[str]) -> list[str]:
    flags: list[str] = []
    for name in wanted:
        number, _, ptx = name.replace(".", "").partition("+")
        kinds = ("sm", "compute") if ptx else ("sm",)
        flags += [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]
    return list(dict.fromkeys(flags))


def _run(commands: dict[str, list[str]], scratch: Path, task: str = "") -> dict[str, str]:
    """What the commands print, by their names; if there is a name for the `task`, stderr tells how far it is.

    The first command that fails ends the others; BuildError.
    """
    outputs: dict[str, str] = {}
    start, finished = time.monotonic(), _finished(commands, scratch)
    try:
        for name, code in finished:
            if name:
                outputs[name] = (scratch / f"{name}.log").read_text(errors="replace")
            if code:
                raise BuildError(_failure(name, code, outputs[name]))
            if task:
                _tell(task, name, f"{len(outputs)}/{len(commands)}, {time.monotonic() - start:.0f} s")
    finally:
        finished.close()
        if task and sys.stderr.isatty():
            print(file=sys.stderr)
    return outputs


def _tell(task: str, name: str, done: str) -> None:
    """Progress: in one line if stderr is a terminal, otherwise in one for each source."""
    if sys.stderr.isatty():
        print(f"\x1b[K{task}: {done}", end="\r", file=sys.stderr, flush=True)
    elif name:
        print(f"{task}: {name} {done}", file=sys.stderr, flush=True)


def _finished(commands: dict[str, list[str]], scratch: Path) -> Generator[tuple[str, int], None, None]:
    """The name and exit code of each command that has finished, as many at a time as there are cores.

    Meanwhile, now and then, no name. Closing it ends those that run.
    """
    waiting, running = list(commands), dict[str, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                name = waiting.pop(0)
                running[name] = _start(commands[name], scratch, name)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                yield name, running.pop(name).returncode
            time.sleep(0.02)
            yield "", 0
    finally:
        for process in running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(command: list[str], scratch: Path, name: str) -> subprocess.Popen[bytes]:
    """In `scratch`, and in a process group of its own, since nvcc starts other processes."""
    environment = {**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C"}
    with (scratch / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=scratch, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )


def _failure(name: str, code: int, output: str) -> str:
    told = _without_resources(output)
    if "No such file" in told:
        told += "\nhint: torch's and CUDA's headers are needed; is torch, or the CUDA toolkit, installed without them?"
    return f"nvcc failed at {name}, exit code {code}:\n{told}"


def _without_resources(output: str) -> str:
    return _RESOURCE_LINE.sub("", output).strip()


def _kernels(log: str) -> Iterator[Kernel]:
    for name, arch, stack, stores, loads, registers, shared in _RESOURCES.findall(log):
        yield Kernel(name, arch, int(registers), int(stores), int(loads), int(stack), int(shared or 0))


def _demangled(names: list[str]) -> list[str]:
    """The names as they are in the source, where there is a tool that knows them."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if not tool:
        return names
    told = subprocess.run([tool, "-p"], input="\n".join(names), capture_output=True, text=True).stdout.splitlines()
    return told if len(told) == len(names) else names


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
