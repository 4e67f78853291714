"""The compiler of the CUDA kernels: where nvcc is, which flags it takes, and for which GPUs it compiles."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

FLAGS = (
    *("-std=c++20", "-O3", "-lineinfo", "--expt-relaxed-constexpr"),
    *("-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA"),  # torch's stable ABI, as of 2.11
    *("-Xcompiler", "-fPIC,-Wall,-Wextra"),
    *("-Xptxas", "-v"),  # what kernels_cuda/report.py reads
)

CUDA = Path("/usr/local/cuda")
"""Where CUDA is usually installed."""

_ARCHITECTURE = re.compile(r"\d+\.\d[af]?(\+PTX)?")


class BuildError(RuntimeError):
    """There is no library; the message says why and what to do."""


def architectures(text: str | None = None) -> list[str]:
    """The architectures in `text`, or in TORCH_CUDA_ARCH_LIST with the same syntax, or those of the GPUs here."""
    what = "TORCH_CUDA_ARCH_LIST" if text is None else "--arch"
    if text is None and not (text := os.environ.get(what, "").strip()):
        return _of_devices()
    names = re.split(r"[;,\s]+", text.strip("; ,"))
    for name in names:
        if not _ARCHITECTURE.fullmatch(name):
            raise ValueError(f"{what} has {name!r}; expected numbers such as 8.0;9.0 or 8.0;9.0+PTX")
    return sorted(set(names), key=lambda name: (int(name.partition(".")[0]), name))


def _of_devices() -> list[str]:
    import torch

    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    if not found:
        raise BuildError(
            "there is no GPU to take the architecture from; set TORCH_CUDA_ARCH_LIST or --arch to 9.0, say"
        )
    return [f"{major}.{minor}" for major, minor in sorted(found)]


def find_nvcc() -> str | None:
    homes = [home for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", os.defpath), str(CUDA / "bin")]
    found = shutil.which("nvcc", path=os.pathsep.join(places))
    return found and str(Path(found).absolute())


def usable_nvcc() -> str:
    nvcc = find_nvcc()
    if not nvcc:
        raise BuildError(
            f"there is no nvcc in $CUDA_HOME/bin, $CUDA_PATH/bin, PATH or {CUDA / 'bin'}; expected that of CUDA 12 or "
            "later: install the CUDA toolkit, or set CUDA_HOME to where it is"
        )
    if int(version_of(nvcc).partition(".")[0]) < 12:
        raise BuildError(
            f"{nvcc} is of CUDA {version_of(nvcc)}; expected CUDA 12 or later, which CUDA_HOME can point to"
        )
    return nvcc


def nvcc_version() -> str | None:
    """The version of the nvcc that compiles here; None if there is no nvcc."""
    nvcc = find_nvcc()
    return nvcc and version_of(nvcc)


@functools.cache
def version_of(nvcc: str) -> str:
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, errors="replace")
    version = re.search(r"\bV(\d+\.\d+\.\d+)", told.stdout)
    if not version:
        raise BuildError(f"{nvcc} --version does not tell its version, but {(told.stderr or told.stdout).strip()!r}")
    return version[1]


def codes_of(wanted: Sequence[str]) -> list[str]:
    flags: list[str] = []
    for name in wanted:
        number, _, ptx = name.replace(".", "").partition("+")
        kinds = ("sm", "compute") if ptx else ("sm",)
        flags += [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]
    return list(dict.fromkeys(flags))
