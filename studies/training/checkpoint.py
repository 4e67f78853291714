"""Checkpoints of a run in training. They are written atomically, and the newest intact one is used.

A file is `MAGIC`, the SHA-256 of the rest, then the output of torch.save. The hash is needed because neither torch.load
nor safetensors detects a flipped bit. Loading executes no code (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from saprof import atomic
from studies.failures import BadCheckpoint, CannotWrite

MAGIC = b"saprof-run-1\n"
KEEP = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after `step` steps, then delete checkpoints of later steps, which could not be read, and all but
    the newest KEEP of the others. If CannotWrite is raised, the earlier checkpoints do not change."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    try:
        new = folder / f"step_{step:010d}.pt"
        atomic.write(new, MAGIC + hashlib.sha256(payload).digest() + payload)
        found = paths(folder)
        place = found.index(new)
        for path in found[:place] + found[place + KEEP :]:
            path.unlink()
    except OSError as error:
        raise CannotWrite(f"cannot write {error.filename}: {error.strerror}; earlier checkpoints are intact") from None


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted(folder.glob("step_*.pt"), reverse=True)


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint. Raises BadCheckpoint with the reason if the file is damaged or of another kind."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadCheckpoint(f"cannot read {path}: {error.strerror}") from None
    start = len(MAGIC) + hashlib.sha256().digest_size
    if not content.startswith(MAGIC):
        raise BadCheckpoint(f"{path} is not a checkpoint of a run, or is one of another version of saprof")
    if hashlib.sha256(content[start:]).digest() != content[len(MAGIC) : start]:
        raise BadCheckpoint(f"{path} is damaged: its hash does not match its content")
    try:
        state = torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
    except Exception as error:  # reading a pickle can raise any exception
        raise BadCheckpoint(
            f"cannot load {path}: {type(error).__name__}; only tensors and plain values are loaded"
        ) from None
    if not isinstance(state, dict) or "step" not in state:
        raise BadCheckpoint(f"{path} holds no state of a run")
    return state


def newest(folder: Path, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The state of the newest intact checkpoint; None if there are no checkpoints.

    `report` is called with a sentence for every damaged checkpoint. Raises BadCheckpoint if all are damaged.
    """
    found = paths(folder)
    for path in found:
        try:
            return read(path)
        except BadCheckpoint as error:
            report(f"skipped: {error}")
    if found:
        raise BadCheckpoint(
            f"none of the {len(found)} checkpoints in {folder} can be read; delete the folder to start again"
        )
    return None
