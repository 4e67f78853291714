"""Builds the CUDA kernels for this machine's CPU, and calls them in another process, which a sanitizer may end.

with Host(build("thread", folder)) as host:
    host.run("aggregation", [alpha, beta, output], tables, numbers)
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import select
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from kernels_cuda import CSRC, SOURCES, cores
from kernels_cuda.compiler import FLAGS

HERE = Path(__file__).parent

_WATCHED = ["-g1", "-O1", "-DSAPROF_TYPES=float,c10::BFloat16"]  # of others, only the numbers are judged
_IDLE = "-fno-sanitize=null,object-size,vptr"  # what they see, AddressSanitizer does too
SANITIZERS = {
    "": ["-O1"],
    "address": [*_WATCHED, "-fsanitize=address,undefined", _IDLE, "-fno-sanitize-recover=all"],
    "thread": [*_WATCHED, "-fsanitize=thread"],
}
WATCHED = ("float32", "bfloat16")
"""The dtypes that are compiled with sanitizers, which takes longest; together they have all widths of vectors."""
_DEFINED = [flag for flag in FLAGS if flag.startswith("-D")]
_FLAGS = ["-std=c++20", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", *_DEFINED]
_FLAGS += ["-DSAPROF_THREADS=32"]
_EXPORTED = ["-rdynamic"]  # names, for the report of a kernel
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:redzone=2048",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:atexit_sleep_ms=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}

_TYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3, torch.int32: 4}
"""The values of Type (launch.h)."""

Array = np.ndarray | Tensor | None


class Host:
    """The process of the command that `build` returns. It starts at the first call, and again after a call that ended
    it."""

    def __init__(self, command: Sequence[str | Path], timeout: float = 300) -> None:
        self.command, self.timeout = [str(x) for x in command], timeout
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process:
            self._process.communicate()
            self._process = None
            self._errors.close()

    def run(
        self,
        name: str,
        arrays: Sequence[Array],
        tables: Sequence[Array],
        numbers: Sequence[int],
        inputs: int | None = None,
    ) -> None:
        """Call `launch` (launch.h), which writes to the arrays that are outputs; None is an output that is not needed.

        The first `inputs` arrays, and the tables, must not change. By default these are the inputs of the core of that
        name; or all arrays but the last; or, for the gradients of m inputs, the first 1 + m. RuntimeError has the
        message of an exception in `launch`, or the report of what ended the process.
        """
        if inputs is None and not (inputs := cores().get(name)):
            inputs = (len(arrays) + 1) // 2 if name.endswith("_backward") else len(arrays) - 1
        sent = [_bytes(x) for x in [*arrays, *tables]]
        request = [_words(len(name.encode()), len(arrays), len(tables), len(numbers)), name.encode(), _words(*numbers)]
        for x, content in zip([*arrays, *tables], sent, strict=True):
            request += [_head(x), content]
        for i, (content, answer) in enumerate(zip(sent, self._ask(name, request, sent), strict=True)):
            if inputs <= i < len(arrays):
                content[:] = answer
            elif not np.array_equal(content, answer):
                what = f"array {i}" if i < len(arrays) else f"table {i - len(arrays)}"
                raise AssertionError(f"{name} wrote to {what}, an input")

    def _ask(self, name: str, request: list, sent: list[np.ndarray]) -> list[np.ndarray]:
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(b"".join(request))
            process.stdin.flush()
            if not select.select([process.stdout], [], [], self.timeout)[0]:
                process.kill()
                raise TimeoutError(f"{name}: no answer after {self.timeout} s; {self._end()}")
            (length,) = struct.unpack("=q", self._read(8))
            if length >= 0:
                raise RuntimeError(f"{name}: {self._read(length).decode()}")
            return [np.frombuffer(self._read(x.nbytes), np.uint8) for x in sent]
        except (BrokenPipeError, EOFError):
            raise RuntimeError(f"{name}: {self._end()}") from None

    def _start(self) -> subprocess.Popen[bytes]:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 — not a pipe, which could fill up
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | _OPTIONS,
        )
        return self._process

    def _read(self, size: int) -> bytes:
        assert self._process
        assert self._process.stdout
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _end(self) -> str:
        """The exit code of the process, and its report."""
        process, errors = self._process, self._errors
        assert process
        self._process = None
        process.communicate()
        with errors:
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        return f"the process ended with {process.returncode}\n{_essential(text)}"


def build(sanitizer: str, folder: Path, csrc: Path = CSRC, names: Sequence[str] = SOURCES) -> list[str]:
    """The command of a server of the kernels in these sources of `csrc`, compiled into `folder` unless it is there.

    Skips the test if there is no compiler, or if its sanitizer does not work here.
    """
    prefix = _prefix(sanitizer)
    sources = {*(csrc / name for name in names if name != "binding.cpp"), HERE / "server.cpp"}
    return [*prefix, str(_link("server", sources, sanitizer, folder, csrc, _EXPORTED))]


def build_library(folder: Path) -> Path:
    """The kernels and their binding, for a torch without CUDA; torch.cpp gives them a device and a stream."""
    _prefix("")
    home = Path(torch.__file__).parent / "lib"
    libraries = ["-shared", "-Wl,-Bsymbolic", f"-L{home}", "-ltorch", "-ltorch_cpu", "-lc10"]
    return _link("library", {*(CSRC / name for name in SOURCES), HERE / "torch.cpp"}, "", folder, CSRC, libraries)


def _link(name: str, sources: set[Path], sanitizer: str, folder: Path, csrc: Path, how: Sequence[str]) -> Path:
    """Compile the sources and link them."""
    flags, kind = [*_FLAGS, *SANITIZERS[sanitizer]], sanitizer or "plain"
    common = _hash(_version(), torch.__version__, *flags, *(x.read_bytes() for x in _headers(csrc)))
    flags += [f"-I{HERE}", f"-I{csrc}", "-isystem", str(_torch_headers())]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}-{kind}-{_hash(common, source.read_bytes())}.o"
        return _make(target, [*flags, "-c", "-x", "c++", str(source)])

    with FileLock(folder / f"{kind}.lock"):  # the second of two processes waits, and finds the result
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, sorted(sources, key=lambda x: (-x.stat().st_size, x.name))))
        target = folder / f"{name}-{kind}-{_hash(*(x.name for x in objects))}"
        return _make(target, [*flags, *map(str, objects), *how])


def _headers(csrc: Path) -> list[Path]:
    return sorted([*csrc.glob("*.h"), *HERE.glob("*.h")])


def _torch_headers() -> Path:
    return Path(torch.__file__).parent / "include"


def _make(target: Path, arguments: list[str]) -> Path:
    """Compile or link, unless the target exists; targets of earlier sources are deleted."""
    if target.exists():
        return target
    for old in target.parent.glob(target.stem[:-16] + "[0-9a-f]" * 16 + target.suffix):
        old.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        done = subprocess.run([_compiler(), *arguments, "-o", str(made)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"g++ failed:\n{done.stderr[:8000]}")
        made.replace(target)
    return target


def _hash(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(struct.pack("=q", len(data)) + data)
    return whole.hexdigest()[:16]


def _compiler() -> str:
    return shutil.which("g++") or pytest.skip("there is no g++")


@cache
def _version() -> str:
    return subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout


@cache
def _why_not(sanitizer: str) -> tuple[list[str], str]:
    """The command prefix of a program with that sanitizer, and the reason if it cannot run."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "program"
        command = [_compiler(), *_FLAGS, *SANITIZERS[sanitizer], "-x", "c++", "-", "-o", str(program)]
        source = "#include <ucontext.h>\n#include <barrier>\nint main() {}\n"
        done = subprocess.run(command, input=source, capture_output=True, text=True)
        if done.returncode:
            return [], done.stderr
        # where addresses are too random for ThreadSanitizer, it fails now and then
        fixed = ["setarch", platform.machine(), "-R"]
        for prefix in [fixed, []] if sanitizer == "thread" and shutil.which("setarch") else [[]]:
            done = subprocess.run([*prefix, program], capture_output=True, text=True, env=os.environ | _OPTIONS)
            if not done.returncode:
                return prefix, ""
        return [], done.stderr


def _prefix(sanitizer: str) -> list[str]:
    prefix, reason = _why_not(sanitizer)
    if reason:
        pytest.skip(f"g++ {' '.join(SANITIZERS[sanitizer])} does not work here: {reason.strip()[-300:]}")
    return prefix


def _bytes(x: Array) -> np.ndarray:
    """The bytes of an array."""
    if x is None:
        return np.empty(0, np.uint8)
    if not (x.is_contiguous() if isinstance(x, Tensor) else x.flags.c_contiguous):
        raise ValueError("expected contiguous arrays")
    if isinstance(x, Tensor):
        return x.detach().as_strided((x.numel(),), (1,)).view(torch.uint8).numpy()  # strides of one element may be any
    return x.reshape(-1).view(np.uint8)


def _head(x: Array) -> bytes:
    if x is None:
        return _words(_TYPES[torch.float32], 1, 0)
    dtype = x.dtype if isinstance(x, Tensor) else getattr(torch, x.dtype.name)
    return _words(_TYPES[dtype], x.ndim, *x.shape)


def _words(*values: int) -> bytes:
    return struct.pack(f"={len(values)}q", *values)


def _essential(text: str) -> str:
    """The report in the output of a process."""
    begin = re.search(r"^(kernel .* barriers$|.*(Sanitizer:|runtime error:|terminate called))", text, re.MULTILINE)
    lines = text[begin.start() if begin else 0 :].splitlines()
    machinery = re.compile(r" *#\d+ .*(/c\+\+/|std::function|cuda_runtime\.h|<null>)")
    return "\n".join([line[:200] for line in lines if not machinery.match(line)][:40])
