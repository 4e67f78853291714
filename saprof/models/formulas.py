"""The operations of one call of an aten operator, from the shapes of its arguments and of its output.

A function of one element, such as `exp` or `gelu`, is one operation, and so is each sum, product and comparison. The
`paper` convention counts what the counter of SAN's authors knows: convolutions, linear layers, batch norms, ReLUs and
pools, forward alone. In the gradients of a function of one element, the derivative is one operation and its product
with the gradient another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Work(NamedTuple):
    """What one call computes."""

    macs: int = 0
    elementwise: int = 0
    paper: int = 0


class Call(NamedTuple):
    """One call of an operator: the arguments by their names in the schema, and what it returned."""

    arguments: Mapping[str, Any]
    output: Any

    def __getitem__(self, name: str) -> Any:  # type: ignore[override]
        return self.arguments.get(name)

    @property
    def first(self) -> Tensor:
        """The first tensor among the arguments."""
        return next(x for x in self.arguments.values() if isinstance(x, Tensor))

    @property
    def result(self) -> Tensor:
        """The first output."""
        return self.output if isinstance(self.output, Tensor) else self.output[0]


Formula = Callable[[Call], Work]


def elementwise(operations: int = 1, paper: int = 0) -> Formula:
    """So many operations per element of the output."""
    return lambda call: Work(0, operations * call.result.numel(), paper * call.result.numel())


def per_input(operations: int = 1, paper: int = 0) -> Formula:
    """So many operations per element of the first argument."""
    return lambda call: Work(0, operations * call.first.numel(), paper * call.first.numel())


def per(argument: str, operations: int = 1) -> Formula:
    """So many operations per element of a named argument."""
    return lambda call: Work(0, operations * call[argument].numel())


def reduction(operations: int = 1, *, divides: int = 0, paper: int = 0) -> Formula:
    """A sum, a maximum and the like. To reduce m elements to one takes m − 1 operations, after `operations` − 1 on each
    element; `divides` follow on each output."""

    def count(call: Call) -> Work:
        inputs, outputs = call.first.numel(), call.result.numel()
        return Work(0, max(operations * inputs - outputs, 0) + divides * outputs, paper * inputs)

    return count


def sorting(call: Call) -> Work:
    """m ⌈log₂ m⌉ comparisons per row of m elements."""
    x = call.first
    length = x.shape[-1 if call["dim"] is None else call["dim"]] if x.dim() else 1
    return Work(0, x.numel() * (length - 1).bit_length())


def searching(call: Call) -> Work:
    """⌈log₂(m + 1)⌉ comparisons per value that is looked up among m."""
    among = call["boundaries" if call["boundaries"] is not None else "sorted_sequence"]
    return Work(0, call.result.numel() * (among.shape[-1]).bit_length())


def choosing(call: Call) -> Work:
    """The k largest of m elements: m ⌈log₂(k + 1)⌉ comparisons per row."""
    return Work(0, call.first.numel() * int(call["k"] or 1).bit_length())


def convolution(call: Call) -> Work:
    """One per bias too, in the `paper` convention."""
    weight = call["weight"]
    moving = call["input"] if call["transposed"] else call.result
    biases = 0 if call["bias"] is None else call.result.numel()
    macs = moving.numel() * weight[0].numel()
    return Work(macs, biases, macs + biases)


def convolution_backward(call: Call) -> Work:
    """As many multiply-adds as the forward for each of the two gradients, and a sum for the bias."""
    gradient, weight = call["grad_output"], call["weight"]
    moving = call["input"] if call["transposed"] else gradient
    needs = call["output_mask"]
    return Work(sum(needs[:2]) * moving.numel() * weight[0].numel(), needs[2] * gradient.numel())


def linear(call: Call) -> Work:
    """x Wᵀ + bias. The bias is not counted in the `paper` convention."""
    macs = call.result.numel() * call["mat1"].shape[-1]
    return Work(macs, call.result.numel(), macs)


def matmul(added: bool = False) -> Formula:
    """A matrix product; with `added`, of the second and third argument, plus the first."""

    def count(call: Call) -> Work:
        tensors = [x for x in call.arguments.values() if isinstance(x, Tensor)]
        macs = call.result.numel() * tensors[added].shape[-1]
        return Work(macs, call.result.numel() if added else 0)

    return count


def batch_norm(call: Call) -> Work:
    """A scale and a shift per element: 2. In training, mean and variance of the batch: 4 more."""
    x = call.first.numel()
    return Work(0, (6 if call["training"] else 2) * x, 2 * x)


def batch_statistics_norm(call: Call) -> Work:
    """A batch norm that always uses the statistics of the batch."""
    return Work(0, 6 * call.first.numel(), 2 * call.first.numel())


def layer_norm(call: Call) -> Work:
    """Mean and variance 4, difference and quotient 2, weight 1, bias 1 per element."""
    affine = sum(call[name] is not None for name in ("weight", "bias"))
    return Work(0, (6 + affine) * call.first.numel())


def rms_norm(call: Call) -> Work:
    """Square 1, mean 1, quotient 1, weight 1 per element."""
    return Work(0, (3 + (call["weight"] is not None)) * call.first.numel())


def norm_backward(call: Call) -> Work:
    """Per element: the normalised input 2, the sums of the gradient and of its product with that input 3, and 4 for
    what they give; in evaluation the input's gradient is one product."""
    steps = 9 if call["train"] is not False else 6
    return Work(0, steps * call["input"].numel())


def max_pool(axes: int) -> Formula:
    """k − 1 comparisons per output."""
    return lambda call: Work(0, call.result.numel() * (_taps(call, axes) - 1), call.first.numel())


def average_pool(axes: int) -> Formula:
    """k − 1 sums and a quotient per output."""
    return lambda call: Work(0, call.result.numel() * _taps(call, axes), call.first.numel())


def average_pool_backward(axes: int) -> Formula:
    """The gradient of each output is divided, and added at each tap."""
    return lambda call: Work(0, call["grad_output"].numel() * (1 + _taps(call, axes)))


def _taps(call: Call, axes: int) -> int:
    """k, from the side of the window, or its sides."""
    sides = call["kernel_size"]
    return sides[0] ** axes if len(sides) == 1 else math.prod(sides)


def adaptive_pool(call: Call, *, comparing: bool = False) -> Work:
    """Each output reads the positions from ⌊i·n/m⌋ to ⌈(i + 1)·n/m⌉ along each axis."""
    x, y = call.first, call.result
    axes = len(call["output_size"])
    reads = math.prod(x.shape[:-axes])
    for inputs, outputs in zip(x.shape[-axes:], y.shape[-axes:], strict=True):
        reads *= sum(-(-(i + 1) * inputs // outputs) - i * inputs // outputs for i in range(outputs))
    return Work(0, reads - (y.numel() if comparing else 0), x.numel())


def adaptive_max_pool(call: Call) -> Work:
    """The same windows, one comparison fewer in each."""
    return adaptive_pool(call, comparing=True)


def mean(call: Call) -> Work:
    """m − 1 sums and a quotient per output. The mean over a whole map is a pool, which is in the `paper` convention."""
    return Work(0, call.first.numel(), call.first.numel() if is_pool(call) else 0)


def is_pool(call: Call) -> bool:
    """Whether a mean is what torch runs for an average pool to 1 × 1."""
    return call["dim"] is not None and sorted(call["dim"]) == [-2, -1] and bool(call["keepdim"])


def interpolation(taps: int) -> Formula:
    """Per output so many products, and one sum fewer."""
    return elementwise(2 * taps - 1)


def interpolation_backward(taps: int) -> Formula:
    """A product and a sum per tap of each output."""
    return per("grad_output", 2 * taps)


def antialiased(taps: int) -> Formula:
    """Interpolation whose filter is as many times wider as the map becomes smaller, along one axis after the other."""

    def count(call: Call) -> Work:
        work, rows = 0, call.first.shape[-2]
        for axis, others in ((-1, rows), (-2, call.result.shape[-1])):
            before, after = call.first.shape[axis], call.result.shape[axis]
            width = math.ceil(taps * max(before / after, 1))
            work += call.result.shape[0] * call.result.shape[1] * others * after * (2 * width - 1)
        return Work(0, work)

    return count


def grid_sample(call: Call) -> Work:
    """Bilinear 7 per output, bicubic 31, nearest none; and 4 per axis of a position, which becomes an index."""
    axes = call["grid"].shape[-1]
    taps = {0: 2**axes, 1: 0, 2: 4**axes}[call["interpolation_mode"] or 0]
    return Work(0, call.result.numel() * max(2 * taps - 1, 0) + 4 * call["grid"].numel())


def scaled_dot_product(call: Call) -> Work:
    """Two products per pair of query and key; scaled queries and keys; the mask, and a softmax of 5 per pair."""
    query, key, value = call["query"], call["key"], call["value"]
    pairs = query.shape[:-1].numel() * key.shape[-2]
    masks = pairs if call["attn_mask"] is not None or call["attn_bias"] is not None else 0
    macs = pairs * (query.shape[-1] + value.shape[-1])
    return Work(macs, 5 * pairs + masks + query.numel() + key.numel())


def scaled_dot_product_backward(call: Call) -> Work:
    """The weights again, then two products for each product of the forward; 4 per pair for the softmax."""
    query, key, value = call["query"], call["key"], call["value"]
    pairs = query.shape[:-1].numel() * key.shape[-2]
    return Work(pairs * (3 * query.shape[-1] + 2 * value.shape[-1]), 9 * pairs + query.numel() + key.numel())


def recurrent_layer(call: Call) -> Work:
    """One layer of oneDNN. Its weights are (gates · hidden, inputs) and (gates · hidden, hidden). Per gate and state
    come two biases and their sum; then 9 operations in an LSTM, of four gates, and 7 in a GRU, of three."""
    return _recurrent(call, call["weight0"], call["weight1"])


def recurrent_layer_backward(call: Call) -> Work:
    """Two products for each product of the forward; 2 for each other operation of it."""
    forward = _recurrent(call, call["weight1"], call["weight2"])
    return Work(2 * forward.macs, 2 * forward.elementwise)


def _recurrent(call: Call, inputs: Tensor, states: Tensor) -> Work:
    """The forward of one layer, from the weights of its inputs and of its states."""
    steps, hidden = call["input"].shape[:2].numel(), call["hidden_size"]
    gates = inputs.shape[0] // hidden
    macs = steps * (inputs.numel() + states.numel())
    after = {4: 9 + 12, 3: 8 + 8, 1: 4}[gates]
    return Work(macs, steps * hidden * after)


def index_put(call: Call) -> Work:
    """Free, unless the values are added."""
    return Work(0, call["values"].numel() if call["accumulate"] else 0)


def each(formula: Formula, argument: str = "self") -> Formula:
    """The same on every tensor of a list."""

    def count(call: Call) -> Work:
        works = [formula(Call({**call.arguments, argument: x}, x)) for x in call[argument]]
        return Work(*map(sum, zip(*works, strict=True))) if works else Work()

    return count


def fourier(call: Call) -> Work:
    """5 n log₂ n per transform of n elements, as is usual for fast Fourier transforms."""
    x = max(call.first, call.result, key=Tensor.numel)
    points = math.prod(x.shape[axis] for axis in call["dim"])
    return Work(0, round(5 * x.numel() * math.log2(points)) if points > 1 else 0)


def scatter(call: Call) -> Work:
    """Free, unless the values are added or multiplied."""
    return Work(0, call["index"].numel() if call["reduce"] is not None else 0)


def put(call: Call) -> Work:
    """Free, unless the values are added."""
    return Work(0, call["source"].numel() if call["accumulate"] else 0)


def diagonal(call: Call) -> Work:
    """The sum of a diagonal."""
    return Work(0, max(min(call.first.shape) - 1, 0))


def addbmm(call: Call) -> Work:
    """The sum of the products of all pairs of matrices, plus the first argument."""
    return Work(call["batch1"].numel() * call["batch2"].shape[-1], call.result.numel())


def trilinear(call: Call) -> Work:
    """Σ a·b·c over some axes, which nn.Bilinear computes: two products and a sum per element of all three."""
    sides = []
    for name, added in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        x = call[name]
        for axis in sorted(call[added]):
            x = x.unsqueeze(axis)
        sides.append(x.shape)
    elements = math.prod(map(max, zip(*sides, strict=True)))
    return Work(elements, elements)


def affine_grid(call: Call) -> Work:
    """The product of a matrix and the coordinates of a position, and 1."""
    return Work(call.result.numel() * call["theta"].shape[-1])


def bags(call: Call) -> Work:
    """Each row of the embedding that is looked up is added to a bag, after a product with its weight if it has one. The
    mean of a bag is a quotient more."""
    weighted = call["per_sample_weights"] is not None
    sums = (1 + weighted) * call["indices"].numel() * call["weight"].shape[-1]
    return Work(0, sums + (call.result.numel() if call["mode"] == 1 else 0))


def bags_backward(operations: int) -> Formula:
    """So many operations per element of each row that was looked up."""
    return lambda call: Work(0, operations * call["indices"].numel() * call["grad"].shape[-1])


def distances(call: Call) -> Work:
    """Difference, power and sum per channel of a pair."""
    return Work(0, 3 * call.result.numel() * call["x1"].shape[-1])
