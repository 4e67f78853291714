"""Where a row was measured: the machine, the versions, the code and the settings."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from kernels_cuda.compiler import nvcc_version
from saprof import kept_memory, text

FLAGS = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
    "NUMBA_NUM_THREADS",
    "NUMBA_THREADING_LAYER",
    "NUMBA_THREADING_LAYER_PRIORITY",
    "CUDA_VISIBLE_DEVICES",
    "TORCH_CUDA_ARCH_LIST",
)
"""Environment variables that affect timings on a CPU or GPU."""

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the packages."""
CODE = ("saprof", "kernels_numba", "kernels_cuda", "studies/*.py")
"""The sources in ROOT, as patterns of git. Recorded results in studies are not code."""
MEASURED_CODE = ("operators", "backends", "layers", "models", "measure")
"""The packages of saprof whose code affects a row; the kernels are beside saprof."""

MAY_CHANGE = ("argv", "memory_bytes", "commit", "dirty")
"""Entries of the provenance that may differ within a run. `code` has the part of a commit that matters."""


def provenance(device: str, threads: int) -> dict[str, Any]:
    """Versions, commit, machine and settings of a run on `device`."""
    head, has_changes = commit()
    return {
        "versions": {name: _version(name) for name in ("saprof", "torch", "numpy", "numba", "numba-cuda")},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "driver": _driver(device),
        "nvcc": None if device == "cpu" else nvcc_version(),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": threads,
        "tf32": tf32(device),
        "memory_bytes": psutil.virtual_memory().total,
        "kept_memory": kept_memory.kept(),
        "code": code_hash(),
        "commit": head,
        "dirty": has_changes,
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "argv": sys.argv[1:],
    }


def fingerprint(provenance: dict[str, Any]) -> str:
    """A short hash of the facts that must not change within a run: machine, versions, code, settings."""
    settled = {name: value for name, value in provenance.items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()[:12]


def caption(provenance: dict[str, Any]) -> str:
    """One line for the foot of a figure."""
    commit = (provenance["commit"] or "no commit")[:10] + ("+changes" if provenance["dirty"] else "")
    threads = f"{text.counted(provenance['threads'], 'thread')} of {text.counted(provenance['cores'], 'core')}"
    torch = f"torch {provenance['versions'].get('torch') or 'unknown'}"
    return "  ·  ".join([provenance["device"], threads, torch, f"saprof {commit}"])


def device_name(device: str) -> str:
    """The model name of the CPU or GPU behind a torch device."""
    if device == "cpu":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def tf32(device: str) -> dict[str, bool] | None:
    """Whether a GPU computes convolutions and matrix products of float32 in TF32; None on a CPU."""
    if device == "cpu":
        return None
    import torch

    backends: Any = torch.backends
    settings = {"convolutions": backends.cudnn.conv, "products": backends.cuda.matmul}
    return {name: setting.fp32_precision == "tf32" for name, setting in settings.items()}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def code_hash(root: Path = ROOT) -> str:
    """A short hash of the sources that measure or are measured. It does not depend on figures and commands."""
    folders = [root / "saprof" / name for name in MEASURED_CODE] + sorted(root.glob("kernels_*"))
    sources = [path for folder in folders for path in sorted(folder.rglob("*.*"))]
    code = [path for path in sources if path.suffix in (".py", ".cu", ".cuh", ".h", ".cpp")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver(device: str) -> str | None:
    if device == "cpu":
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return None


def commit(root: Path = ROOT) -> tuple[str | None, bool]:
    """The commit of the sources in `root`, and whether they have changed since. (None, False) unless `root` is a
    checkout of saprof: an installed copy may be inside a repository of the user, whose commit is not that of saprof."""
    is_checkout = (
        _git(root, "rev-parse", "--show-prefix") == ""
        and _git(root, "ls-files", "--error-unmatch", "--", "saprof/__init__.py") is not None
        and _git(root, "grep", '^name = "saprof"$', "--", "pyproject.toml") is not None
    )
    head = _git(root, "rev-parse", "--verify", "HEAD") if is_checkout else None
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return (None, False) if head is None or changes is None else (head, bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command in a folder; None if git is missing or refuses."""
    # in a hook, git sets variables that are about the repository of the hook
    others = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = others | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
