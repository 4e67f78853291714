"""Checks of the fields that a config has once per stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

from saprof.operators.footprint import Footprint, positive


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


def block_footprint(footprint: Footprint | int | str, boundary: str) -> Footprint:
    """The footprint of a residual block; `boundary` applies to a size. ValueError if the footprint has a stride."""
    if isinstance(footprint, SupportsIndex):
        footprint = Footprint.square(footprint, boundary=boundary)
    elif isinstance(footprint, str):
        footprint = Footprint.parse(footprint)
    elif not isinstance(footprint, Footprint):
        raise ValueError(f"footprint is {footprint!r}; expected a Footprint, a size, or text such as 'disk:9'")
    if footprint.stride != 1:
        raise ValueError(f"footprint {footprint} has stride {footprint.stride}; expected 1 inside a residual block")
    return footprint
