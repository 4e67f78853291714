"""The oracle: every operator evaluated literally, position by position and tap by tap, in float64.

It shares no index arithmetic with `Footprint` or the backends: boundaries are walked coordinate by coordinate.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saprof.footprint import Footprint
from saprof.operators import Operator


def reference(
    operator: Operator, inputs: Sequence[Tensor], footprint: Footprint, positions: Sequence[int] | None = None
) -> Tensor:
    """The operator's output in float64, differentiable in its inputs.

    Given `positions` p', the result is restricted to them: the output's axes with the map flattened and p cut to p'.
    """
    sizes = operator.bind([x.shape for x in inputs], footprint)
    inputs = [x.double() for x in inputs]
    chosen = range(sizes["p"]) if positions is None else positions
    centres = [divmod(p, sizes["ow"]) for p in chosen]
    reads = [p.rpartition("_")[2] for p in inspect.signature(operator.body).parameters]
    at_centre = [_at_centre(x, axes, centres, chosen, footprint) for (_, axes), x in _named(operator, inputs)]
    at_taps = [_at_taps(x, centres, footprint) if read in "jR" else None for read, x in zip(reads, inputs, strict=True)]
    # arguments lead with the axes n, p' (and k for a tap); what is left of each is one vector, or rows over taps
    arguments = [c if read == "i" else t for read, c, t in zip(reads, at_centre, at_taps, strict=True)]
    body: Callable[..., Tensor] = lambda *x: _concatenate(operator.body(*x))  # noqa: E731
    if "j" in reads:
        body = torch.vmap(body, in_dims=tuple(0 if read == "j" else None for read in reads), out_dims=-1)
    if sizes["n"] == 0 or not centres:
        cut = sizes | {"p": len(centres), "oh": len(centres), "ow": 1}
        return inputs[0].new_empty(operator.output_shape(cut if positions is not None else sizes))
    result = torch.vmap(torch.vmap(body))(*arguments).movedim(1, -1)  # n d [k] p'
    shape = operator.output_shape(sizes)
    if positions is None:
        return result.reshape(shape)
    map_axes = 2 if operator.output.endswith("oh ow") else 1
    return result.reshape(*shape[:-map_axes], len(centres))


def outside(coordinate: int, size: int, boundary: str) -> int | None:
    """Walk a coordinate back onto an axis; None where the boundary has nothing there."""
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


def _named(operator: Operator, inputs: Sequence[Tensor]):
    return zip(operator.inputs, inputs, strict=True)


def _at_centre(x: Tensor, axes: str, centres, chosen, footprint: Footprint) -> Tensor:
    """n p' …: the vector at each centre; an input that already lives on centres (axes … p) is read there."""
    if axes.endswith(" p"):
        return x[..., list(chosen)].movedim(-1, 1)
    ys, xs = ([c[axis] * footprint.stride for c in centres] for axis in (0, 1))
    return x[:, :, ys, xs].movedim(-1, 1)


def _at_taps(x: Tensor, centres, footprint: Footprint) -> Tensor:
    """n p' k c: the vectors at the taps of each centre, 0 where there is none."""
    height, width = x.shape[-2:]
    taps = []
    for oy, ox in centres:
        for dy, dx in footprint.offsets:
            y = outside(oy * footprint.stride + dy, height, footprint.boundary)
            x_ = outside(ox * footprint.stride + dx, width, footprint.boundary)
            taps.append(None if y is None or x_ is None else (y, x_))
    ys, xs = ([t[axis] if t else 0 for t in taps] for axis in (0, 1))
    exists = torch.tensor([t is not None for t in taps], device=x.device)
    values = x[:, :, ys, xs].where(exists, 0.0)  # n c (p' k)
    return values.unflatten(-1, (len(centres), footprint.taps)).movedim(1, -1)


def _concatenate(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    parts = value if isinstance(value, tuple) else (value,)
    return torch.cat([part.flatten() for part in parts])
