"""The cost of a whole model. Its forward runs on the meta device, where tensors have shapes and no data, and a counter
adds up the operators that reach torch's dispatcher. fvcore can count our operators too, as a cross-check."""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from saprof.layers.running import UNSEEN, Running, around
from saprof.models.catalogue import named_model
from saprof.models.counter import Counter
from saprof.models.inputs import image_channels
from saprof.models.state import attributes_kept
from saprof.operators import DECLARED, Operator
from saprof.operators.cost import Cost, Uncounted
from saprof.operators.footprint import Footprint
from saprof.text import counted, unknown

if TYPE_CHECKING:
    from fvcore.nn import FlopCountAnalysis


def count(
    model: nn.Module | str,
    input_size: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    uncounted: str = "raise",
) -> Cost:
    """Parameters and operations of a model, or of a named one, for one image of `input_size` (channels, rows, columns).

    The default size is that of the named model, or that in the `default_cfg` of a model of timm, else (3, 224, 224).
    For a model that does not take one image, `inputs` are the arguments of its forward: a tensor, a tuple of positional
    arguments, or a dict of keyword arguments. Their values are not read.

    `Cost.layers` has the counts by module, and `Cost.operators` by kind of operator. The model is counted in evaluation
    mode, and is not changed. If it is compiled, or wrapped for several devices, the model inside is counted.

    Raises ValueError if the model calls an operator without a known cost, unless `uncounted="list"`, which lists these
    calls in `Cost.uncounted`. Raises ValueError if the operators that run depend on the values of a tensor.
    """
    if uncounted not in ("raise", "list"):
        raise ValueError(unknown("uncounted", uncounted, ("raise", "list")))
    if isinstance(model, str):
        input_size = (3, *(named_model(model).image,) * 2) if input_size is None and inputs is None else input_size
        model = blueprint(model)
    model = _unwrapped(model)
    _refuse_lazy(model)
    arguments, named = _arguments(model, input_size, inputs)
    scripts = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    with Running(model) as running, Counter(lambda: running.path) as counter:
        counter.take_shapes(x for script in scripts for x in (*script.parameters(), *script.buffers()))
        try:
            _run(model, arguments, named)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if not any(words in str(error) for words in _WITHOUT_VALUES):
                raise
            raise ValueError(f"cannot count {type(model).__name__} from shapes alone: {_sentence(error)}") from error
    left = [Uncounted(key.kind, key.path, times) for key, times in counter.uncounted.items()]
    left += [Uncounted(UNSEEN, path, times) for path, times in running.unseen.items()]
    if left and uncounted == "raise":
        raise ValueError(f"cannot count {type(model).__name__}: {_unknown_costs(left)}")
    return _collected(model, counter, left)


_WITHOUT_VALUES = ("meta tensor", "Meta tensor", "meta device", "fake impl", "unallocated storage")
_WITHOUT_VALUES += ("Meta' backend", "on meta", "got meta", "(MetaComplex")
"""Words in the errors of torch about tensors that have no values."""


def _sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _unknown_costs(left: Sequence[Uncounted]) -> str:
    calls = ", ".join(
        f"{entry.operator} (called {counted(entry.times, 'time')} in {repr(entry.module) if entry.module else 'it'})"
        for entry in left
    )
    return f"no cost is known for {calls}; expected uncounted='list' to count the rest"


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside what torch.compile, DataParallel or DistributedDataParallel returned."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is of type {type(model).__name__}; expected an nn.Module, or the name of a model")
    while True:
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            model = model.module
        elif (compiled := getattr(model, "_orig_mod", None)) is not None:  # its class is slow to import
            model = compiled
        else:
            return model


def _refuse_lazy(model: nn.Module) -> None:
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(x):
            raise ValueError(
                f"cannot count {type(model).__name__}: {name} has no shape yet; expected a model that has run once"
            )


def _arguments(model: nn.Module, size: Sequence[int] | None, inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments of the model's forward, on the meta device."""
    if inputs is not None:
        if size is not None:
            raise ValueError("count got both input_size and inputs; expected one of them")
        if not isinstance(inputs, Tensor | tuple | Mapping):
            raise ValueError(f"inputs is of type {type(inputs).__name__}; expected a tensor, a tuple or a dict")
        moved = tree_map_only(Tensor, lambda x: x.detach().to("meta"), inputs)
        if isinstance(moved, Mapping):
            return (), moved
        return (moved,) if isinstance(moved, Tensor) else moved, {}
    size = _own_size(model) if size is None else size
    if not isinstance(size, Sequence) or len(size) != 3 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"input_size is {size!r}; expected three positive integers: channels, rows, columns")
    dtypes = (x.dtype for x in [*model.parameters(), *model.buffers()] if x.is_floating_point())
    return (torch.empty((1, *size), dtype=next(dtypes, None), device="meta"),), {}


def _own_size(model: nn.Module) -> Sequence[int]:
    settings = getattr(model, "default_cfg", None)
    if isinstance(settings, Mapping) and len(settings.get("input_size") or ()) == 3:
        return tuple(settings["input_size"])
    return (image_channels(model), 224, 224)


def _run(model: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Run the forward with weights on the meta device, in evaluation mode."""
    scripts = [f"{path}." for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    meta = {
        name: nn.Parameter(x.to("meta"), requires_grad=x.requires_grad) if isinstance(x, nn.Parameter) else x.to("meta")
        for path, module in model.named_modules()
        if not any(f"{path}.".startswith(script) for script in scripts)  # whose tensors cannot be exchanged
        for list_ in (module.named_parameters, module.named_buffers)
        for name, x in list_(path, recurse=False, remove_duplicate=False)
        if not x.is_meta
    }
    with ExitStack() as stack:
        stack.enter_context(attributes_kept(model))
        # scripts that are frozen have no mode
        for module in [module for module in model.modules() if getattr(module, "training", False)]:
            stack.callback(setattr, module, "training", True)
            module.training = False
        stack.enter_context(torch.no_grad())
        # with masks, the fast path of transformers packs tokens by the values of the mask
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())  # of hooks that are called twice, which count the same
            warnings.filterwarnings("ignore", "Using `torch.compile")
        # tie_weights would leave weights on the meta device in a module that has two names (torch 2.13)
        if meta:
            torch.func.functional_call(model, meta, tuple(arguments), dict(named), tie_weights=False)
        else:
            model(*arguments, **named)


def _collected(model: nn.Module, counter: Counter, left: Sequence[Uncounted]) -> Cost:
    """The cost of the model, by module with its children, and by kind."""
    layers: defaultdict[str, Cost] = defaultdict(Cost)
    operators: defaultdict[str, Cost] = defaultdict(Cost)
    for key, cost in counter.costs.items():
        layers[key.path] += cost
        operators[key.kind] += cost
    for name, parameter in model.named_parameters():  # a tensor with several names once, under the first
        layers[name.rpartition(".")[0]] += Cost(params=parameter.numel())
    first = {name for name, _ in model.named_modules()}
    inside = {path for name in layers for path in around(name)}
    every = [name for name, _ in model.named_modules(remove_duplicate=False) if name in first or name in inside]
    own = {name: layers[name] for name in every}
    for name in reversed(every):  # children come after their parents
        if name:
            own[name.rpartition(".")[0]] += own[name]
    return replace(own.pop(""), layers=own, operators=dict(operators), uncounted=tuple(left))


def blueprint(name: str, **overrides: Any) -> nn.Module:
    """A named model on the meta device, which has shapes but no weights."""
    from saprof.models import create_model

    with torch.device("meta"), _Uninitialised():
        return create_model(name, **overrides)


class _Uninitialised(TorchFunctionMode):
    """In this mode modules do not initialise their weights: on the meta device there is no data to fill."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def teach_fvcore(analysis: FlopCountAnalysis) -> FlopCountAnalysis:
    """Let a `fvcore.nn.FlopCountAnalysis` count our operators in multiply-adds, like all others. Returns the
    analysis."""
    handles: dict[str, Any] = {f"saprof::{name}": partial(_fvcore_macs, op) for name, op in DECLARED.items()}
    analysis.set_op_handle(**handles)
    return analysis


def _fvcore_macs(operator: Operator, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    shapes = []
    for (name, _), value in zip(operator.inputs, inputs, strict=False):
        if not value.isCompleteTensor():
            raise ValueError(f"{operator.name}: fvcore traced {name} without a shape; expected a whole tensor")
        shapes.append(value.type().sizes())
    footprint = Footprint.parse(inputs[len(shapes)].toIValue())
    return operator.count("macs", operator.bind(shapes, footprint))
