"""The fields that the configs of all networks have, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from saprof.operators.footprint import positive, set_positive, whole


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


def check_ends(config: Any) -> None:
    """Make `in_channels` and `num_classes` integers; ValueError unless the former is positive, the latter 0 or more."""
    set_positive(config, "in_channels")
    classes = whole("num_classes", config.num_classes, 0, "a positive integer, or 0 for no classifier")
    object.__setattr__(config, "num_classes", classes)


def classifier(channels: int, classes: int) -> nn.Module:
    """The last layer of a network; nothing if there are no classes."""
    return nn.Linear(channels, classes) if classes else nn.Identity()


def stage_maps(x: Tensor, stages: Iterable[nn.Module]) -> list[Tensor]:
    """The output map of every stage, each of which takes that of the stage before it."""
    found = []
    for stage in stages:
        x = stage(x)
        found.append(x)
    return found


def reductions(config: Any) -> tuple[int, ...]:
    """The side of the image divided by that of the map of every stage."""
    return tuple(config.stem_stride * 2**stage for stage in range(len(config.channels)))


def check_stem_stride(stride: object, usual: int) -> None:
    """ValueError unless the stride is `usual`, as in the paper's networks, or 1."""
    if stride not in (usual, 1) or isinstance(stride, bool):
        raise ValueError(f"stem_stride is {stride!r}; expected {usual}, or 1 for images of a few pixels")
