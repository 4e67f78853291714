"""Checkpoints of a run in training: whole or not there, with a hash in front, the newest good one wins.

A file is `MAGIC`, the SHA-256 of what follows, then what torch.save wrote: neither torch.load nor safetensors would
notice a flipped bit. Loading executes nothing (`weights_only=True`).
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
    """Write the state after `step` steps, then delete all but the newest KEEP and those of later steps, which could not
    be read; CannotWrite leaves them as they were."""
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
        raise CannotWrite(f"cannot write {error.filename}: {error.strerror}; the checkpoints before it stand") from None


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted(folder.glob("step_*.pt"), reverse=True)


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint; BadCheckpoint, with the reason, if it is damaged or of another kind."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadCheckpoint(f"cannot read {path}: {error.strerror}") from None
    start = len(MAGIC) + hashlib.sha256().digest_size
    if not content.startswith(MAGIC):
        raise BadCheckpoint(f"{path} is no checkpoint of a run, or of another version of saprof")
    if hashlib.sha256(content[start:]).digest() != content[len(MAGIC) : start]:
        raise BadCheckpoint(f"{path} is damaged: its hash does not fit its content")
    try:
        state = torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
    except Exception as error:  # reading a pickle can raise anything
        raise BadCheckpoint(f"cannot load {path}: {type(error).__name__}; only tensors and plain values are") from None
    if not isinstance(state, dict) or "step" not in state:
        raise BadCheckpoint(f"{path} holds no state of a run")
    return state


def newest(folder: Path, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """The state of the newest good checkpoint, None where there is none at all; `tell` hears of each that is skipped.

    BadCheckpoint if there are some and all are bad.
    """
    found = paths(folder)
    for path in found:
        try:
            return read(path)
        except BadCheckpoint as error:
            tell(f"skipped: {error}")
    if found:
        raise BadCheckpoint(
            f"none of the {len(found)} checkpoints in {folder} can be read; delete the folder to start anew"
        )
    return None
