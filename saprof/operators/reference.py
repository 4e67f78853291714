"""The reference: every operator evaluated literally, position by position and tap by tap, in float64.

It has no index arithmetic in common with `Footprint` or the backends: it applies boundaries coordinate by coordinate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saprof.operators.axes import Sizes
from saprof.operators.declaration import Operator
from saprof.operators.footprint import Footprint

Position = tuple[int, int]


def reference(
    operator: Operator, inputs: Sequence[Tensor], footprint: Footprint, positions: Sequence[int] | None = None
) -> Tensor:
    """The operator's output in float64, differentiable in its inputs.

    With `positions` p', the output has these positions only, along one axis.
    """
    sizes = operator.bind([x.shape for x in inputs], footprint)
    chosen = range(sizes["p"]) if positions is None else positions
    centres = [divmod(p, sizes["ow"]) for p in chosen]
    arguments = []  # axes n, p', then those at one position: a vector, or rows over taps
    for x, (_, axes), read in zip(inputs, operator.inputs, operator.reads, strict=True):
        if not read:
            arguments.append(x.double())
        elif read != "i":
            arguments.append(_at_taps(x.double(), centres, footprint))
        elif axes.endswith(" p"):
            arguments.append(x.double()[..., list(chosen)].movedim(-1, 1))
        else:
            arguments.append(_at_centres(x.double(), centres, footprint))
    over_images = tuple(0 if read else None for read in operator.reads)
    over_centres = over_images
    if operator.masked:
        arguments.insert(0, _takes_part(sizes, centres, footprint, inputs[0].device))
        over_images, over_centres = (None, *over_images), (0, *over_centres)
    at_centres = torch.vmap(_at_one_position(operator), over_centres)
    result = torch.vmap(at_centres, over_images)(*arguments).movedim(1, -1)  # n d [k] p'
    shape = operator.output_shape(sizes)
    if positions is None:
        return result.reshape(shape)
    map_axes = 2 if operator.output.endswith("oh ow") else 1
    return result.reshape(*shape[:-map_axes], len(centres))


def walk(coordinate: int, size: int, boundary: str) -> int | None:
    """Move a coordinate step by step onto an axis; None if the boundary drops it."""
    while not 0 <= coordinate < size:
        match boundary:
            case "reflect" if size == 1:
                coordinate = 0
            case "reflect":
                coordinate = -coordinate if coordinate < 0 else 2 * (size - 1) - coordinate
            case "replicate":
                coordinate += 1 if coordinate < 0 else -1
            case "circular":
                coordinate += size if coordinate < 0 else -size
            case "zero" | "exclude":
                return None
    return coordinate


def _at_one_position(operator: Operator) -> Callable[..., Tensor]:
    """The operator's body, with its output as one vector; a body that reads one tap runs at each, the last axis."""

    def body(*arguments: Tensor) -> Tensor:
        value = operator.body(*arguments)
        return torch.cat([part.flatten() for part in value]) if isinstance(value, tuple) else value.flatten()

    if "j" not in operator.reads:
        return body
    return torch.vmap(body, in_dims=tuple(0 if read == "j" else None for read in operator.reads), out_dims=-1)


def _at_centres(x: Tensor, centres: Sequence[Position], footprint: Footprint) -> Tensor:
    """n p' c: the values at each centre, a vector or a matrix."""
    ys, xs = ([centre[axis] * footprint.stride for centre in centres] for axis in (0, 1))
    return x[..., ys, xs].movedim(-1, 1)


def _takes_part(sizes: Sizes, centres: Sequence[Position], footprint: Footprint, device: torch.device) -> Tensor:
    """p' k: whether a tap takes part in the softmax of its centre."""
    inside = [
        footprint.boundary != "exclude"
        or None
        not in (
            walk(oy * footprint.stride + dy, sizes["h"], footprint.boundary),
            walk(ox * footprint.stride + dx, sizes["w"], footprint.boundary),
        )
        for oy, ox in centres
        for dy, dx in footprint.offsets
    ]
    return torch.tensor(inside, device=device).view(len(centres), footprint.taps)


def _at_taps(x: Tensor, centres: Sequence[Position], footprint: Footprint) -> Tensor:
    """n p' k c: the values at the taps of each centre, 0 for a dropped tap."""
    height, width = x.shape[-2:]
    taps: list[Position | None] = []
    for oy, ox in centres:
        for dy, dx in footprint.offsets:
            row = walk(oy * footprint.stride + dy, height, footprint.boundary)
            column = walk(ox * footprint.stride + dx, width, footprint.boundary)
            taps.append(None if row is None or column is None else (row, column))
    ys, xs = ([tap[axis] if tap else 0 for tap in taps] for axis in (0, 1))
    exists = torch.tensor([tap is not None for tap in taps], device=x.device)
    values = x[..., ys, xs].where(exists, 0.0)  # n c (p' k)
    return values.unflatten(-1, (len(centres), footprint.taps)).movedim((-2, -1), (1, 2))
