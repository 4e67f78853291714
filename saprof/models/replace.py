"""The convolutions of any network replaced by attention, as SASA does it (Sec. 3.1 and 4)."""

from __future__ import annotations

import copy as copying
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import isqrt
from typing import Any

import torch
from torch import nn

from saprof.layers import LocalAttention2d
from saprof.layers.exactly import changed
from saprof.layers.local2d import bounded, read
from saprof.layers.running import around
from saprof.operators.footprint import Footprint
from saprof.terminal import laid_out
from saprof.text import counted, unknown

IMAGE_CHANNELS = 4
"""The most channels that an image has."""
STEMS = ("stem", "conv1")
"""If the first convolution is inside a module of such a name, all convolutions in it are part of the stem."""

Which = Callable[[str, nn.Module], bool] | str | Sequence[str] | None


@dataclass(frozen=True)
class Change:
    """One convolution that was replaced."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Kept:
    """One convolution that was kept, and the reason."""

    name: str
    before: str
    reason: str


@dataclass(frozen=True)
class Replacement:
    """The convolutions that were replaced, those that were kept, and the network. `str` returns a table."""

    model: nn.Module = field(repr=False)
    replaced: tuple[Change, ...]
    kept: tuple[Kept, ...]

    def __str__(self) -> str:
        lines = [f"{counted(len(self.replaced), 'convolution')} replaced, {len(self.kept)} kept"]
        if self.replaced:
            lines += [
                "",
                laid_out(
                    ("replaced", "before", "after"), [(c.name, c.before, c.after) for c in self.replaced], "table"
                ),
            ]
        if self.kept:
            lines += [
                "",
                laid_out(("kept", "convolution", "reason"), [(k.name, k.before, k.reason) for k in self.kept], "table"),
            ]
        return "\n".join(lines)


def replace_convolutions(
    model: nn.Module,
    *,
    footprint: Footprint | int | str = 7,
    family: str = "stand_alone",
    which: Which = None,
    bias: bool | None = None,
    copy: bool = False,
    **fields: Any,
) -> Replacement:
    """Replace the spatial convolutions (those larger than 1 × 1) of any network by `LocalAttention2d`, in place.

    The procedure is SASA's. The attention has the width of the convolution; if the convolution has a stride, an average
    pool follows. The new layers are initialised and must be trained. They have the device, dtype, mode and
    `requires_grad` of the convolution. `footprint`, `family` and `fields` are arguments of LocalAttention2d, such as
    `heads=8` or `boundary="exclude"`. `bias=None` gives a bias where the convolution had one. `copy=True` changes a
    copy instead, which is `.model` of the result.

    `which` selects the convolutions: names or patterns such as "layer4" (all inside it) or "layer*.conv2", or a
    function of name and module. None selects all except the stem.

    Chosen: the stem is the first spatial convolution in the order of registration, if it reads an image (1 to 4
    channels). If it is inside a module named `stem` or `conv1`, as in timm's deep stems, the stem is all spatial
    convolutions in that module.

    The result lists the convolutions that were replaced, and those that were not, with the reason: they have groups,
    hooks or parametrizations, they are shared or of another class than `nn.Conv2d`, or their padding changes the size
    of the map. Raises ValueError for a wrong argument, or for a model that cannot be changed; the model is unchanged
    then.
    """
    _check_model(model)
    boundary = fields.pop("boundary", None)
    read({**fields, "family": family, "bias": True if bias is None else bias})
    taps = bounded(footprint, boundary, family)
    if copy:
        model = copying.deepcopy(model)
    found = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if _is_spatial(module)]
    left_out = _chooser(which, found)
    uses = Counter(module for _, module in found)
    uses += Counter(weight for module in model.modules() for weight in module._parameters.values())
    new: dict[str, LocalAttention2d] = {}
    replaced: list[Change] = []
    kept: list[Kept] = []
    for name, module in found:
        reason = left_out(name, module) or _obstacle(module, uses)
        try:
            if reason is None:
                new[name] = _attention(module, _dilated(taps, module), family, bias, fields)
                replaced.append(Change(name, _described(module), _described(new[name])))
        except ValueError as error:
            reason = str(error)
        if reason is not None:
            kept.append(Kept(name, _described(module), reason))
    _exchange(model, new)
    return Replacement(model, tuple(replaced), tuple(kept))


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is of type {type(model).__name__}; expected an nn.Module")
    if _is_spatial(model):
        raise ValueError("the model is itself a convolution; expected a module that holds convolutions")
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule) or kind in _WRAPPERS:
            where = name or "the model"
            raise ValueError(
                f"{where} is of class {kind}, whose layers cannot be replaced; expected the network itself"
            )


_WRAPPERS = ("OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel")
"""Classes that keep the replaced layers, and would still run or synchronise them."""


def _is_spatial(module: nn.Module) -> bool:
    """Whether the module looks like a convolution that is larger than 1 × 1, whatever its class."""
    size = getattr(module, "kernel_size", 1)
    sides = size if isinstance(size, Sequence) else [size]
    convolves = all(isinstance(getattr(module, f"{side}_channels", None), int) for side in ("in", "out"))
    return convolves and any(isinstance(side, int) and side > 1 for side in sides)


def _chooser(which: Which, found: Sequence[tuple[str, nn.Module]]) -> Callable[[str, Any], str | None]:
    """The function that says why `which` leaves out a convolution, or None."""
    names = [name for name, _ in found]
    if which is None:
        stem = set(_stem(found))
        return lambda name, module: "it is part of the stem; `which` can select it" if name in stem else None
    if callable(which):
        return lambda name, module: None if which(name, module) else "`which` does not select it"
    patterns = [which] if isinstance(which, str) else which
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"which is {which!r}; expected names or patterns, or a function of name and module")
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            if not names:
                raise ValueError(f"which has {pattern!r}; expected None, since the model has no spatial convolution")
            valid = list(dict.fromkeys(path for name in names for path in around(name) if path))
            raise ValueError(unknown("spatial convolution", pattern, valid, "model.named_modules()"))
    return lambda name, module: None if any(_matches(name, p) for p in patterns) else "`which` does not select it"


def _matches(name: str, pattern: str) -> bool:
    """Whether the pattern is that of the name, or of a module that it is inside."""
    return any(fnmatchcase(path, pattern) for path in around(name) if path)


def _stem(found: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """The names of the convolutions of the stem."""
    if not found or not 1 <= found[0][1].in_channels <= IMAGE_CHANNELS:
        return
    first = found[0][0]
    parts = first.split(".")
    around = next((depth for depth, part in enumerate(parts[:-1], start=1) if part in STEMS), None)
    yield first
    if around is not None:
        inside = ".".join(parts[:around]) + "."
        yield from (name for name, _ in found if name.startswith(inside))


def _obstacle(module: Any, uses: Counter[Any]) -> str | None:
    """Why the convolution cannot be replaced, or None."""
    if reason := changed(module, nn.Conv2d):
        return f"it {reason}"
    if uses[module] > 1:
        return "it is shared: it has several names"
    if any(uses[weight] > 1 for weight in module._parameters.values() if weight is not None):
        return "its weight or bias is also that of another layer"
    if module.groups != 1:
        return f"it has {module.groups} groups; expected 1"
    reach = tuple((side - 1) * apart for side, apart in zip(module.kernel_size, module.dilation, strict=True))
    if module.padding != "same" and module.padding != tuple(side / 2 for side in reach):
        return f"its padding {module.padding} changes the size of the map"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}; expected real numbers"
    return None


def _dilated(footprint: Footprint, module: Any) -> Footprint:
    """The footprint with the dilation of the convolution. ValueError if only a square without one can have it."""
    apart, across = module.dilation
    if apart == across == 1:
        return footprint
    size = isqrt(footprint.taps)
    if apart != across or footprint != Footprint.square(size, stride=footprint.stride, boundary=footprint.boundary):
        raise ValueError(f"it is dilated by {_by(module.dilation)}, which footprint {footprint} cannot follow")
    return Footprint.square(size, apart, stride=footprint.stride, boundary=footprint.boundary)


def _attention(
    module: Any, footprint: Footprint, family: str, bias: bool | None, fields: Mapping[str, Any]
) -> LocalAttention2d:
    """The attention in the place of a convolution. Raises ValueError if the fields do not fit its channels."""
    layer = LocalAttention2d(
        module.in_channels,
        module.out_channels,
        footprint,
        family,
        stride=module.stride,
        bias=module.bias is not None if bias is None else bias,
        device=module.weight.device,
        dtype=module.weight.dtype,
        **fields,
    )
    return layer.train(module.training).requires_grad_(module.weight.requires_grad)


def _described(module: Any) -> str:
    """The class, widths and sizes of a convolution, or of the attention in its place."""
    widths = f"{module.in_channels} → {module.out_channels}"
    stride = "" if set(_sides(module.stride)) == {1} else f", {{}} {_by(module.stride)}"
    if isinstance(module, LocalAttention2d):
        attention = module.attention
        return f"{attention.family} {widths}, {attention.footprint}" + stride.format("average pool")
    return f"{type(module).__name__} {widths}, {_by(module.kernel_size)}" + stride.format("stride")


def _sides(size: Any) -> tuple[Any, ...]:
    return tuple(size) if isinstance(size, Sequence) else (size, size)


def _by(size: Any) -> str:
    return " × ".join(map(str, _sides(size)))


def _exchange(model: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put the new layers in their places. If one cannot be placed, none is."""
    before: list[tuple[nn.Module, str, nn.Module | None]] = []
    try:
        for name, layer in new.items():
            path, _, last = name.rpartition(".")
            parent = model.get_submodule(path)
            before.append((parent, last, parent._modules[last]))
            setattr(parent, last, layer)
    except Exception:
        for parent, last, module in before:
            parent._modules[last] = module
        raise
