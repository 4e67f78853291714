"""What a fast path assumes of the modules whose calls it skips.

A fast path reads the weights of modules and computes what torch's classes compute from them. The functions below return
the reason why that could be wrong, or None. They compare types by identity, since a subclass, a parametrized or a lazy
module may compute anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from saprof.layers.running import Running


def changed(module: object, kind: type[nn.Module]) -> str | None:
    """The reason why a call of `module` may not compute what torch's class `kind` does."""
    if type(module) is not kind:
        return f"is a {type(module).__name__}; expected a {kind.__name__}"
    assert isinstance(module, nn.Module)
    if hooked(module):
        return "has hooks, which would not be called"
    if name := patched(kind):
        return f"runs a {name} that replaced that of {kind.__name__}"
    own = vars(module)
    if kind in _WEIGHTED and not own["_parameters"].keys() >= {"weight", "bias"}:
        return "has a weight or bias that is no parameter"
    if not _ATTRIBUTES[kind].isdisjoint(own):
        return f"has its own {next(name for name in own if name in _ATTRIBUTES[kind])}; expected that of its class"
    for x in (*own["_parameters"].values(), *own["_buffers"].values()):
        # the tracers of torch.export replace weights by their own tensors
        if type(x) not in _PLAIN and not type(x).__module__.startswith("torch._subclasses."):
            return f"holds a {type(x).__name__}; expected plain tensors"
    return None


_ATTRIBUTES: dict[type[nn.Module], frozenset[str]] = {
    kind: frozenset(dir(kind)) for kind in (nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.Sequential)
}
"""The attributes of the classes. A module's own attribute of the same name, such as `forward`, replaces that of its
class."""
_WEIGHTED = (nn.BatchNorm2d, nn.Conv2d)
_PLAIN = (nn.Parameter, Tensor, type(None))


_METHODS = {"__call__", "_call_impl", "_conv_forward", "forward"}
_METHODS |= {"alpha", "compose", "define", "features", "forward_features", "fuse", "logits", "position_relation"}
_METHODS |= {"positions", "steps", "transform"}
"""The methods that a fast path skips or replaces."""
_written: dict[type[nn.Module], dict[str, object]] = {}


Kind = TypeVar("Kind", bound=type[nn.Module])


def as_written(kind: Kind) -> Kind:
    """Remember the methods of a class, so that `patched` notices when one is replaced or added."""
    _written[kind] = {name: vars(kind).get(name) for name in _METHODS}
    return kind


for _kind in (nn.Module, *_ATTRIBUTES, nn.modules.batchnorm._BatchNorm):
    as_written(_kind)


def patched(kind: type[nn.Module]) -> str | None:
    """A method of the class, or of one that it inherits from, that was replaced or added after the import of saprof."""
    for written in kind.__mro__:
        for name, method in _written.get(written, {}).items():
            if vars(written).get(name) is not method:
                return name
    return None


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks of a user."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or (torch_module._has_any_global_hook() and _all_modules_hooked())
    )


def _all_modules_hooked() -> bool:
    """Whether there are global hooks, except those that only read the names of modules."""
    hooks = chain(
        torch_module._global_forward_hooks.values(),
        torch_module._global_forward_pre_hooks.values(),
        torch_module._global_backward_hooks.values(),
        torch_module._global_backward_pre_hooks.values(),
    )
    return any(getattr(hook, "__module__", None) not in _READ_ONLY for hook in hooks)


_READ_ONLY = ("torch.utils.module_tracker", Running.__module__)
"""The modules of hooks that only read: those of FlopCounterMode, and our own."""


def not_norm(module: object, channels: int) -> str | None:
    """The reason why `module` may not be a batch norm of `channels` channels."""
    if reason := changed(module, nn.BatchNorm2d):
        return reason
    assert isinstance(module, nn.BatchNorm2d)
    mean, variance = module._buffers.get("running_mean"), module._buffers.get("running_var")
    tensors = [x for x in (*module._parameters.values(), mean, variance) if x is not None]
    if (mean is None) != (variance is None) or any(x.numel() != channels for x in tensors):
        return f"is {module}; expected a batch norm of {channels} channels"
    return None


def not_linear(module: object, inputs: int, outputs: int, *, bias: bool | None = None) -> str | None:
    """The reason why `module` may not be a 1 × 1 convolution. If `bias` is None, it may have a bias or not."""
    if reason := changed(module, nn.Conv2d):
        return reason
    assert isinstance(module, nn.Conv2d)
    alone = (module.stride, module.padding, module.groups) == ((1, 1), (0, 0), 1)
    weight, added = module._parameters.get("weight"), module._parameters.get("bias")
    fits = weight is not None and weight.shape == (outputs, inputs, 1, 1)
    if not (fits and alone and bias in (None, added is not None)):
        with_ = {None: "", True: ", with a bias", False: ", without a bias"}[bias]
        return f"is {module}; expected a linear layer of {inputs} to {outputs} channels{with_}"
    return None


def not_mapping(gamma: object, steps: int, outputs: int) -> str | None:
    """The reason why `gamma` may not be `steps` times batch norm, ReLU and linear, where the last has a bias."""
    if reason := changed(gamma, nn.Sequential):
        return f"γ {reason}"
    assert isinstance(gamma, nn.Sequential)
    layers = [*gamma]
    if len(layers) != 3 * steps:
        return f"γ has {len(layers)} layers; expected {3 * steps}"
    inputs = layers[0].num_features if isinstance(layers[0], nn.BatchNorm2d) else 0
    for at in range(0, len(layers), 3):
        norm, rectifier, linear = layers[at : at + 3]
        last = at + 3 == len(layers)
        width = outputs if last else getattr(linear, "out_channels", 0)
        reasons = (
            not_norm(norm, inputs),
            changed(rectifier, nn.ReLU),
            not_linear(linear, inputs, width, bias=last),
        )
        for place, reason in enumerate(reasons, start=at):
            if reason:
                return f"γ[{place}] {reason}"
        inputs = width
    return None


def overridden(module: nn.Module, fast: str, general: Sequence[str]) -> str | None:
    """The reason why the method `fast` may not compute what the methods `general` do: one of these is overridden, in a
    subclass or in the module, and `fast` is not; or a method of the class was replaced."""
    if name := patched(type(module)):
        return f"{name} of {type(module).__name__} was replaced"
    for names in (vars(module), *map(vars, type(module).__mro__)):
        if fast in names:
            return None
        for name in general:
            if name in names:
                return f"{name} is overridden; expected that {fast} is, too"
    return None


def rectified(norm: nn.Module, x: Tensor) -> Tensor:
    """ReLU(norm(x)), in place if nothing else can hold norm(x)."""
    traced = torch.compiler.is_compiling() or peek_interpreter_stack() is not None  # by torch.func
    in_place = not traced and changed(norm, nn.BatchNorm2d) is None
    return F.relu(norm(x), inplace=in_place)


def plain(module: Any, *kinds: type[nn.Module]) -> bool:
    """Whether the class of `module` is one of these, by identity, and no method was replaced in class or module."""
    return type(module) in kinds and not any(map(callable, vars(module).values())) and patched(type(module)) is None


def as_built(module: object, *kinds: type[nn.Module]) -> bool:
    """Whether `module` is plain, and a call of it runs no hook."""
    return plain(module, *kinds) and isinstance(module, nn.Module) and not hooked(module)


def eager(x: Tensor) -> bool:
    """Whether x is a plain CPU tensor of float32 or float64 in eager mode: no autocast, tracing, torch.func or
    forward-mode AD."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in _PLAIN
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._is_tracing()
        and peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def watch(module: nn.Module) -> bool:
    """Read the class and the forward of a module, so that torch.compile compiles again when one of them changes."""
    return type(module).forward == module.forward
