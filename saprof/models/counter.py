"""A counter at torch's dispatcher. Every operator that runs reaches the dispatcher, whether a module, a function, a
script or autograd called it."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _get_sequence_nr
from torch._ops import HigherOrderOperator, OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from saprof.models.formulas import Call, Work
from saprof.models.rules import Rule, bound, registered_macs, rule_of
from saprof.models.shapes import output_of
from saprof.operators import DECLARED, Operator
from saprof.operators.cost import Cost, backward_cost, operator_cost
from saprof.operators.footprint import Footprint


class Key(NamedTuple):
    """A module and a kind of operator, whose calls are counted together."""

    path: str
    """The path of the module."""
    kind: str
    """The kind of operator, such as `conv2d`, `linear` or `aggregation`. What a backward computes ends in
    `_backward`."""


class Counter(TorchDispatchMode):
    """Counts what runs inside it, on real tensors or on those of the meta device, forward and backward.

        with Running(model) as running, Counter(lambda: running.path) as counter:
            model(image).sum().backward()

    `where` returns the path of the running module. An operator of a backward is counted at the module whose forward
    created its autograd node. A declared operator of saprof has the cost of its declaration, in all backends. The
    backward of an attention costs twice its forward. The backward of any other declared operator costs its forward once
    for each input that needs a gradient. The `paper` convention counts no backward.

    An operator that takes functions, such as that of torch.cond, counts as one call by torch's formula, or listed in
    `uncounted`. Code that torch.compile or CUDA graphs have captured does not reach the dispatcher, and is not counted.
    """

    supports_higher_order_operators = True  # read by torch

    def __init__(self, where: Callable[[], str] = lambda: "") -> None:
        super().__init__()
        self.costs: defaultdict[Key, Cost] = defaultdict(Cost)
        """The cost by module and kind. Operators that cost nothing are left out."""
        self.calls: defaultdict[Key, int] = defaultdict(int)
        """The number of calls by module and kind, for the keys of `costs`."""
        self.uncounted: defaultdict[Key, int] = defaultdict(int)
        """The number of calls of operators that no rule counts, by module and full name, such as `mylib::op`."""
        self._where = where
        self._forward = _Forward()
        self._entries = _Entries(self)
        self._twins = _Twins()
        self._open = self._inside = False
        self._transposed: object = None

    def __enter__(self) -> Counter:
        super().__enter__()
        self._entries.__enter__()
        self._open = True
        return self

    def __exit__(self, *error: Any) -> None:
        self._open = False
        self._entries.__exit__(*error)
        super().__exit__(*error)
        self._twins.clear()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if isinstance(func, HigherOrderOperator):
            return self._run_whole(func, args, kwargs or {})
        rule = rule_of(func)
        if rule is None and func._can_decompose():  # in inference mode, what consists of other operators arrives whole
            with torch._C.DisableTorchFunction(), self:
                return func.decompose(*args, **kwargs or {})
        with torch._C.DisableTorchFunction():
            args, kwargs = self._twins.of(args, kwargs or {})
            path, backward = self._place()
            output = _computed(func, args, kwargs)
            if path is not None:
                self._count(func, rule, Call(bound(func, args, kwargs), output), path, backward)
            return output

    def _run_whole(self, func: HigherOrderOperator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator whose arguments are functions. What these call is not seen."""
        path, backward = self._place()
        output = func(*args, **kwargs)
        macs = registered_macs(func, args, kwargs, output)
        if path is None:
            return output
        if macs is None:
            self.uncounted[Key(path, func.name())] += 1
        else:
            kind = func.name().removesuffix("_backward") + ("_backward" if backward else "")
            self.add(Key(path, kind), Cost(macs))
        return output

    def _place(self) -> tuple[str | None, str]:
        """The path of the module that an operator belongs to, None inside a declared operator; and in a backward, the
        name of autograd's node."""
        path, node = self._where(), None
        if torch._C._current_graph_task_id() != -1:
            node = torch._C._current_autograd_node()
        if node is None or path:  # a module that runs in a backward is computed a second time
            self._forward.goes_on(None if self._inside else path)
        else:
            path = self._forward.path_of(node._sequence_nr(), path)
        return None if self._inside else path, "" if node is None else node.name()

    def _count(self, func: OpOverload, rule: Rule | None, call: Call, path: str, backward: str) -> None:
        reads = [x for name, x in call.arguments.items() if name not in _outputs(func)]
        inputs, outputs = list(_tensors(reads)), list(_tensors([call.output]))
        masks = bool(outputs) and all(x.dtype == torch.bool for x in outputs)
        if rule is None:
            if inputs and not masks and (func._schema.is_mutable or not _all_views(inputs, outputs)):
                self.uncounted[Key(path, func._schema.name)] += 1
            return
        if rule.name == "t":
            self._transposed = _view(call.output)
        if rule.formula is None:
            return
        work, kind = rule.formula(call), rule.kind(call)
        if rule.name in ("mm", "bmm") and not backward and _view(call["mat2"]) == self._transposed:
            work, kind = work._replace(paper=work.macs), "linear"  # torch transposes the weight of a linear layer
        if backward:
            kind = "linear" if kind == "matmul" and backward.startswith("Addmm") else kind
            work, kind = work._replace(paper=0), f"{kind.removesuffix('_backward')}_backward"
        if masks:
            work = Work(work.macs)
        if any(work):
            written = outputs[:1] if rule.saves else outputs
            self.add(Key(path, kind), Cost(*work, reads=sum(map(_bytes, inputs)), writes=sum(map(_bytes, written))))

    def take_shapes(self, tensors: Iterable[Tensor]) -> None:
        """Replace these tensors by empty ones on the meta device in the arguments of every operator."""
        for x in tensors:
            self._twins.add(x)

    def add(self, key: Key, cost: Cost) -> None:
        """Count one call."""
        self.costs[key] += cost
        self.calls[key] += 1

    def run_declared(self, operator: Operator, entry: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Run a declared operator, and count it as such."""
        in_training = isinstance(arguments[0], list)
        inputs, text = (arguments[0], arguments[2]) if in_training else (arguments[:-2], arguments[-2])
        sizes, path = operator.bind([x.shape for x in inputs], Footprint.parse(text)), self._where()
        itemsize, needs = inputs[0].element_size(), [x.requires_grad for x in inputs]
        self.add(Key(path, operator.name), operator_cost(operator, sizes, itemsize))
        if inputs[0].is_meta:
            return inputs[0].new_empty(operator.output_shape(sizes))
        found = self.run_inside(entry, arguments)
        output = found[0] if in_training else found
        if output.requires_grad:
            key, cost = Key(path, f"{operator.name}_backward"), backward_cost(operator, sizes, needs, itemsize)
            output.register_hook(lambda gradient: self.add(key, cost) if self._open else None)
        return found

    def run_inside(self, entry: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Call `entry` without counting the operators that it runs."""
        outside, self._inside = self._inside, True
        try:
            return entry(*arguments)
        finally:
            self._inside = outside


class _Entries(TorchFunctionMode):
    """Intercepts the calls of saprof's dispatcher entries, before the dispatcher replaces them by those of a
    backend."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        namespace, _, name = getattr(func, "_qualified_op_name", "").partition("::")
        if namespace != "saprof" or kwargs:
            return func(*args, **kwargs or {})
        declared = DECLARED.get(name.removesuffix("_training"))
        if declared is not None:
            return self._counter.run_declared(declared, func, args)
        return self._counter.run_inside(func, args)  # statistics: the attention repeats the same products


class _Forward:
    """The module of each autograd node. Autograd numbers the nodes in the order of the forward."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._paths: list[str | None] = []
        self._next = _get_sequence_nr()

    def goes_on(self, path: str | None) -> None:
        """The nodes since the last call belong to `path`; None are those of a declared operator."""
        number = _get_sequence_nr()
        if number > self._next:
            if not self._paths or self._paths[-1] != path:
                self._starts.append(self._next)
                self._paths.append(path)
            self._next = number

    def path_of(self, number: int, otherwise: str) -> str | None:
        """The path of a node; `otherwise` for one that is not of this forward, such as one that adds up a gradient."""
        at = bisect_right(self._starts, number) - 1
        return self._paths[at] if at >= 0 and number < self._next else otherwise


class _Twins:
    """Copies on the meta device of tensors that are arguments beside tensors on the meta device, such as constants that
    are not buffers."""

    def __init__(self) -> None:
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}

    def clear(self) -> None:
        self._twins.clear()

    def add(self, x: Tensor) -> Tensor:
        return self._twins.setdefault(id(x), (x, x.detach().to("meta")))[1]

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments, all on the meta device if one of them is there or has a copy there."""
        meta = [x.is_meta for x in _tensors((*args, *kwargs.values()))]
        known = self._twins and any(id(x) in self._twins for x in _tensors((*args, *kwargs.values())))
        if not any(meta) and not known:
            return args, kwargs
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("meta")}
        if all(meta):
            return args, kwargs
        return [self._twin(x) for x in args], {name: self._twin(x) for name, x in kwargs.items()}

    def _twin(self, x: Any) -> Any:
        if isinstance(x, list | tuple):
            return [self._twin(each) for each in x]
        return self.add(x) if isinstance(x, Tensor) and not x.is_meta else x


def _computed(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The output of the operator. Raises ValueError if it needs values, which the meta device does not have."""
    try:
        return output_of(func, args, kwargs)
    except (RuntimeError, NotImplementedError) as error:
        if _NEEDS_VALUES.isdisjoint(func.tags) or not any(x.is_meta for x in _tensors((*args, *kwargs.values()))):
            raise
        raise ValueError(
            f"{func._schema.name} needs the values of a tensor, but a network is counted from shapes alone; expected a "
            "network without it, so count the parts before and after it"
        ) from error


_NEEDS_VALUES = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among values and in the lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _outputs(func: OpOverload) -> frozenset[str]:
    """The names of the arguments that an operator only writes."""
    if "out" not in func._overloadname:
        return frozenset()
    return frozenset(x.name for x in func._schema.arguments if x.kwarg_only and x.alias_info is not None)


def _bytes(x: Tensor) -> int:
    """The bytes of a tensor; those of an expanded axis once."""
    if x.layout != torch.strided:
        return x.numel() * x.element_size()
    sizes = (size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size)
    number = x.element_size()
    for size in sizes:
        number *= size
    return number


def _view(x: Tensor) -> object:
    """The memory and the layout of a matrix, or of the same matrix for every image."""
    if x.layout != torch.strided:
        return x
    repeated = x.stride()[:-2]
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape[-2:], x.stride()[-2:], any(repeated)


def _all_views(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether an operator returned only views of its inputs."""
    if not outputs or any(x.layout != torch.strided for x in (*inputs, *outputs)):
        return False
    storages = {x.untyped_storage()._cdata for x in inputs}
    return all(x.untyped_storage()._cdata in storages for x in outputs)
