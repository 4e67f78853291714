"""Checks of the fields that a config has once per stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saprof.operators.footprint import positive


def check_stages(config: Any, *others: str) -> None:
    """Make `channels`, `blocks` and `others` tuples with one entry per stage; ValueError if that is impossible.

    Channels and blocks are positive integers. There are as many stages as entries of `channels`.
    """
    for name in ("channels", "blocks", *others):
        entries = getattr(config, name)
        if isinstance(entries, str) or not isinstance(entries, Sequence) or not entries:
            raise ValueError(f"{name} is {entries!r}; expected a list or tuple of one entry per stage")
        if len(entries) != len(config.channels):
            raise ValueError(
                f"{name} has {len(entries)} entries; expected one per stage, {len(config.channels)} as in channels"
            )
        object.__setattr__(config, name, tuple(entries))
    for name in ("channels", "blocks"):
        sizes = (positive(f"{name}[{number}]", size) for number, size in enumerate(getattr(config, name)))
        object.__setattr__(config, name, tuple(sizes))


def check_stem_stride(stride: object, usual: int) -> None:
    """ValueError unless the stride is `usual`, as in the paper's networks, or 1."""
    if stride not in (usual, 1) or isinstance(stride, bool):
        raise ValueError(f"stem_stride is {stride!r}; expected {usual}, or 1 for images of a few pixels")
