"""The cost of a whole model. Its forward runs on the meta device, where tensors have shapes and no data, and one table
has the cost of every call. fvcore can count our operators as well, as a cross-check."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from saprof.models.shapes import output_shape
from saprof.operators import DECLARED, Operator
from saprof.operators.cost import Cost, operator_cost
from saprof.operators.footprint import Footprint

if TYPE_CHECKING:
    from fvcore.nn import FlopCountAnalysis


def count(model: nn.Module | str, input_size: Sequence[int] = (3, 224, 224)) -> Cost:
    """Parameters and operations of a model, or of a named one, for one image of `input_size` (channels, rows, columns).

    `Cost.layers` has them by module and `Cost.operators` by kind. The model is not changed. ValueError if it calls a
    torch function that does arithmetic and whose cost is not in the table.
    """
    if isinstance(model, str):
        model = blueprint(model)
    if len(input_size) != 3 or not all(isinstance(side, int) and side > 0 for side in input_size):
        raise ValueError(f"input_size is {input_size!r}; expected three positive integers: channels, rows, columns")
    dtypes = (x.dtype for x in [*model.parameters(), *model.buffers()] if x.is_floating_point())
    image = torch.empty((1, *input_size), dtype=next(dtypes, None), device="meta")
    meta = {
        name: x.to("meta")
        for path, module in model.named_modules()
        for named in (module.named_parameters, module.named_buffers)
        for name, x in named(path, recurse=False, remove_duplicate=False)
        if not x.is_meta
    }
    training = [module for module in model.modules() if module.training]
    recorder = _Recorder(model)
    with ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(recorder.enter).remove)
        stack.callback(register_module_forward_hook(recorder.leave, always_call=True).remove)
        for module in training:
            stack.callback(setattr, module, "training", True)
            module.training = False
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(recorder)
        # tie_weights would leave weights on the meta device in a module that has two names (torch 2.13)
        torch.func.functional_call(model, meta, (image,), tie_weights=False) if meta else model(image)
    if recorder.uncounted:
        raise ValueError(
            f"cannot count {type(model).__name__}: no cost is known for {', '.join(sorted(recorder.uncounted))}"
        )
    own = {name: recorder.layers[name] for name, _ in model.named_modules()}
    for name, parameter in model.named_parameters():  # a tensor with several names once, under the first
        if parameter.requires_grad:
            own[name.rpartition(".")[0]] += Cost(params=parameter.numel())
    for name in reversed(own):  # children come after their parents
        if name:
            own[name.rpartition(".")[0]] += own[name]
    return replace(own.pop(""), layers=own, operators=dict(recorder.operators))


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


class _Recorder(TorchFunctionMode):
    """Adds up the costs of the torch functions that are called, by the running modules and by the function's name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {module: name for name, module in model.named_modules()}
        self.layers: defaultdict[str, Cost] = defaultdict(Cost)
        self.operators: defaultdict[str, Cost] = defaultdict(Cost)
        self.uncounted: set[str] = set()
        """Functions that did arithmetic, but whose cost is not in the table."""
        self._running: list[str] = []

    def enter(self, module: nn.Module, *_: Any) -> None:
        made_on_the_way = self._running[-1] if self._running else ""
        self._running.append(self._names.get(module, made_on_the_way))

    def leave(self, *_: Any) -> None:
        self._running.pop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operator = _operator(func)
        if operator is not None:
            inputs = args[: len(operator.inputs)]
            sizes = operator.bind([x.shape for x in inputs], Footprint.parse(args[len(inputs)]))
            self._add(operator.name, operator_cost(operator, sizes, inputs[0].element_size()))
            return inputs[0].new_empty(operator.output_shape(sizes))
        name = getattr(func, "__name__", "").strip("_")
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        shape = output_shape(name, args, kwargs)
        if shape is None:
            output = func(*args, **kwargs)
        else:
            first = next((x for x in tree_leaves(args) if isinstance(x, Tensor)), None)
            dtype = kwargs.get("dtype") if first is None else first.dtype
            output = torch.empty(shape, dtype=dtype, device="meta")
        if name in _RULES:
            counts: dict[str, Any] = _RULES[name](output, *args, **kwargs)
            self._add(name, Cost(**counts, reads=sum(map(_bytes, tensors)), writes=_bytes(output)))
        elif name not in _FREE and _computes(output, tensors):
            self.uncounted.add(name)
        return output

    def _add(self, kind: str, cost: Cost) -> None:
        self.operators[kind] += cost
        self.layers[self._running[-1]] += cost


def _operator(func: Callable[..., Any]) -> Operator | None:
    """The declared operator that a dispatcher call runs, or None."""
    namespace, _, name = getattr(func, "_qualified_op_name", "").partition("::")
    return DECLARED.get(name) if namespace == "saprof" else None


def _computes(output: Any, inputs: Sequence[Tensor]) -> bool:
    """Whether a call did arithmetic: it has tensors as inputs, and its output is not a view of one of them."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or not inputs:
        return False
    return all(output.untyped_storage()._cdata != x.untyped_storage()._cdata for x in inputs)


_FREE = {"cat", "stack", "clone", "contiguous", "reshape", "flatten", "to", "pad", "where", "masked_fill", "getitem"}
_FREE |= {
    "interpolate",
    "index_select",
    "dropout",
    "empty_like",
    "zeros_like",
    "ones_like",
    "new_empty",
    "new_zeros",
    "new_ones",
}
"""Functions that move, create or mask values without arithmetic. (In evaluation mode dropout is one of them.)"""


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _conv2d(output: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any) -> dict[str, int]:
    macs = output.numel() * weight[0].numel()
    biases = 0 if bias is None else output.numel()
    return {"macs": macs, "elementwise": biases, "paper": macs + biases}


def _linear(output: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> dict[str, int]:
    macs = output.numel() * weight.shape[1]
    return {"macs": macs, "elementwise": 0 if bias is None else output.numel(), "paper": macs}


def _batch_norm(output: Tensor, *_: Any, **__: Any) -> dict[str, int]:
    return {"elementwise": 2 * output.numel(), "paper": 2 * output.numel()}


def _relu(output: Tensor, *_: Any, **__: Any) -> dict[str, int]:
    return {"elementwise": output.numel(), "paper": output.numel()}


def _max_pool2d(output: Tensor, x: Tensor, kernel_size: int | Sequence[int], *_: Any, **__: Any) -> dict[str, int]:
    sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    return {"elementwise": output.numel() * (math.prod(sides) - 1), "paper": x.numel()}


def _maximum(output: Tensor, x: Tensor, *_: Any, **__: Any) -> dict[str, int]:
    return {"elementwise": x.numel() - output.numel(), "paper": x.numel()}


def _average_pool(output: Tensor, x: Tensor, *_: Any, **__: Any) -> dict[str, int]:
    return {"elementwise": x.numel(), "paper": x.numel()}


def _softmax(output: Tensor, *_: Any, **__: Any) -> dict[str, int]:
    return {"elementwise": 5 * output.numel()}  # maximum, difference, exponential, sum, quotient


def _elementwise(output: Tensor, *_: Any, **__: Any) -> dict[str, int]:
    return {"elementwise": output.numel()}


def _matmul(output: Tensor, a: Tensor, b: Tensor) -> dict[str, int]:
    return {"macs": output.numel() * a.shape[-1]}


_RULES: dict[str, Callable[..., dict[str, int]]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "max_pool2d": _max_pool2d,
    "amax": _maximum,
    "adaptive_avg_pool2d": _average_pool,
    "avg_pool2d": _average_pool,
    "softmax": _softmax,
    "add": _elementwise,
    "sub": _elementwise,
    "mul": _elementwise,
    "div": _elementwise,
    "sin": _elementwise,
    "matmul": _matmul,
    "bmm": _matmul,
}
"""The cost of a torch function, by its name."""


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
