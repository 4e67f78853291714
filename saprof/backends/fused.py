"""The fused attentions on a backend's cores: torch computes everything that is per position or per parameter, the cores
compute the pairs.

The core of stand-alone attention takes the heads unchanged. In SAN's attentions the first batch norm is folded into the
rows that γ begins with. These are then offset_i + factor_i ⊙ map_j (pairwise) or scale ⊙ δ + shift (patchwise), for
every relation and position encoding. Later batch norms are folded into the linears before them. Half precision is
computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saprof.backends import moments
from saprof.backends.tables import rows_and_columns
from saprof.backends.taps import taps_inside
from saprof.operators import Operator
from saprof.operators.attention import Attention, Roles, Step
from saprof.operators.footprint import Footprint

Layers = list[tuple[Tensor, Tensor]]
"""Linear layers, each as (W, b)."""


class Rows(NamedTuple):
    """The inputs of a pairwise core, for rows offset_i + factor_i ⊙ map_j. A missing factor is 1."""

    offset: Tensor
    factor: Tensor | None
    map: Tensor


def kernel(backend: str, operator: Operator) -> Callable[..., Tensor] | None:
    """The operator as a function of tensors and a footprint if it is a fused attention, else None."""
    if not operator.masked:
        return None

    def run(*arguments: Any) -> Tensor:
        *inputs, footprint = arguments
        y = _compute(backend, operator, _widened(inputs), footprint, statistics=False)
        size = footprint.output_size(*inputs[0].shape[-2:])
        return y.unflatten(2, size).to(inputs[0].dtype)

    return run


def statistics(backend: str, operator: Attention) -> Callable[..., tuple[Tensor, Tensor]]:
    """The statistics of the operator as a function of tensors and a footprint."""

    def run(*arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, footprint = arguments
        return _compute(backend, operator, _widened(inputs), footprint, statistics=True)

    return run


def training(backend: str, operator: Attention) -> Callable[..., list[Tensor]]:
    """A patchwise attention whose batch norms use the statistics of the batch, as a function of tensors, the ε of each
    norm, and a footprint; `saprof.backends.run_in_training` describes it."""

    def run(*arguments: Any) -> list[Tensor]:
        *inputs, eps, footprint = arguments
        cores = getattr(torch.ops, f"saprof_{backend}")
        y, *statistics = _in_parts(cores, operator, operator.roles(_widened(inputs)), eps, footprint)
        return [y.unflatten(2, footprint.output_size(*inputs[0].shape[-2:])).to(inputs[0].dtype), *statistics]

    return run


class Constants(NamedTuple):
    """What an attention of constant parameters gives to its core with every call."""

    operator: Attention
    tensors: dict[str, Tensor]
    """The parameters of γ's layers, and in the patchwise family the scale and shift of the rows at the taps."""
    widths: list[int]
    footprint: str


def folds(operator: Attention, footprint: Footprint) -> bool:
    """Whether `rows_of_weights` can fold the first batch norm of γ into φ and ψ."""
    if footprint.stride > 1:
        return False
    if operator.family == "patchwise":
        return operator.delta.relation == "concatenation"
    return moments.are_sums(operator) and (0, 0) in footprint.offsets


def rows_of_weights(operator: Attention, phi: Tensor, psi: Tensor, norm: Step) -> tuple[Tensor, Tensor]:
    """The weights of the layers that compute what a core reads at the centres and at the taps.

    `phi` and `psi` are the weights of φ and ψ, with the biases as their last columns. The first batch norm of γ is
    folded into them; in the patchwise family only into φ.
    """
    if operator.family == "pairwise":
        maps = Roles(phi[None, :, None], psi[None, :, None], None, (), (), None)
        rows = _rows(operator.delta.relation, maps, Footprint.of(1))
        count = rows.offset.shape[1]
        rows = _normed(rows, Step(norm.scale[:count], torch.zeros_like(norm.shift[:count]), None))
        centres, taps = rows.offset[0], rows.map[0, :, 0].clone()
    else:
        count = len(phi)
        centres, taps = norm.scale[:count, None] * phi, psi
    centres[:, -1] += norm.shift[:count]
    return centres, taps


def position_rows(operator: Attention, positions: Sequence[Tensor], norm: Step) -> tuple[Tensor, Tensor]:
    """The last rows of a pairwise core, at the centres and at the taps: those of the positions."""
    nothing = positions[0][:, :0]
    rows = _rows(operator.delta.relation, Roles(nothing, nothing, None, positions, (), None), Footprint.of(1))
    count = rows.offset.shape[1]
    rows = _normed(rows, Step(norm.scale[-count:], norm.shift[-count:], None))
    return rows.offset, rows.map.flatten(2)


def constants_of(operator: Attention, steps: Sequence[Step], bias: Tensor, footprint: Footprint) -> Constants:
    """The constants of an attention whose first batch norm `rows_of_weights` folds."""
    scale, shift, _ = steps[0]
    layers = _layers(Roles(None, None, None, (), steps, bias))
    tensors = {"parameters": _flat(layers, scale)}
    if operator.family == "patchwise":
        centres = len(scale) // (footprint.taps + 1)
        tensors |= {"scale": scale[centres:], "shift": shift[centres:]}
    return Constants(operator, tensors, _widths(len(scale), layers), str(footprint))


def attention_of_rows(backend: str, constants: Constants, centres: Tensor, taps: Tensor, beta: Tensor) -> Tensor:
    """The attention (n, v, p) of what the layers of `rows_of_weights` give. The centres of the patchwise family are
    overwritten."""
    operator, found, widths, footprint = constants
    cores = getattr(torch.ops, f"saprof_{backend}")
    if operator.family == "pairwise":
        return cores.pairwise_attention(centres, None, taps, beta, found["parameters"], widths, True, footprint)[0]
    return cores.patchwise_attention(
        *(centres.relu_(), taps, beta, found["scale"], found["shift"], found["parameters"], widths),
        *(operator.delta.relation, footprint),
    )


def _widened(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs in float64 if the first has this dtype, else in float32."""
    wide = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    return [x.to(wide) for x in inputs]


def _compute(
    backend: str, operator: Operator, inputs: Sequence[Tensor], footprint: Footprint, *, statistics: bool
) -> Any:
    cores = getattr(torch.ops, f"saprof_{backend}")
    if not isinstance(operator, Attention):
        names = (name for name, _ in operator.inputs)
        return _stand_alone(cores, dict(zip(names, inputs, strict=True)), footprint)
    family = {"pairwise": _pairwise, "patchwise": _patchwise}[operator.family]
    return family(cores, operator.delta.relation, operator.roles(inputs, statistics=statistics), footprint)


def _stand_alone(cores: Any, inputs: Mapping[str, Tensor], footprint: Footprint) -> Tensor:
    query, key, relative = (inputs.get(name) for name in ("query", "key", "relative"))
    assert query is not None
    return cores.stand_alone_attention(
        _centres(query.flatten(1, 2), footprint),
        None if key is None else key.flatten(1, 2),
        None if relative is None else relative.flatten(0, 1),
        *(inputs["value"], query.shape[1:3], str(footprint)),
    )[0]


def _pairwise(cores: Any, relation: str, inputs: Roles, footprint: Footprint) -> Any:
    rows = _rows(relation, inputs, footprint)
    if footprint.stride > 1 or (0, 0) not in footprint.offsets:
        rows = _read(rows, footprint, softmax=inputs.beta is not None)
    of_rows = rows.factor is None and not inputs.steps and inputs.beta is None
    # on a GPU, each call would copy the table of `moments`; for fake tensors, the kernel has a fake implementation
    real = type(rows.map) is Tensor and rows.map.is_cpu and not torch.compiler.is_compiling()
    if of_rows and footprint.lattice is not None and real:
        return moments.of_pairs(rows.offset, rows.map, footprint)
    layers = _layers(inputs)
    rectified = relation != "dot_product"
    if not rectified:
        layers.insert(0, _sum_of_terms(inputs.phi.shape[1], rows, inputs.steps))
    elif inputs.steps:
        rows = _normed(rows, inputs.steps[0])
    facts = _flat(layers, inputs.phi), _widths(rows.offset.shape[1], layers), rectified, str(footprint)
    if inputs.beta is None:
        return cores.pairwise_statistics(*rows, *facts)
    return cores.pairwise_attention(*rows, inputs.beta, *facts)[0]


def _rows(relation: str, inputs: Roles, footprint: Footprint) -> Rows:
    """The rows [δ, position], with the terms of the dot product in place of δ if the relation is a dot product."""
    phi, psi = _centres(inputs.phi, footprint), inputs.psi
    match relation:
        case "summation":
            rows = Rows(phi, None, psi)
        case "subtraction":
            rows = Rows(phi, None, -psi)
        case "concatenation":
            rows = Rows(torch.cat([phi, torch.zeros_like(phi)], 1), None, torch.cat([torch.zeros_like(psi), psi], 1))
        case _:
            rows = Rows(torch.zeros_like(phi), phi, psi)
    if not inputs.positions:
        return rows
    *centre, taps = inputs.positions
    offset = _centres(centre[0], footprint) if centre else phi.new_zeros(phi.shape[0], 2, phi.shape[2])
    factor = rows.factor if rows.factor is None else torch.cat([rows.factor, torch.ones_like(offset)], 1)
    return Rows(torch.cat([rows.offset, offset], 1), factor, torch.cat([rows.map, -taps if centre else taps], 1))


def _read(rows: Rows, footprint: Footprint, *, softmax: bool) -> Rows:
    """The rows with 0 at the positions that no centre reads, and at the centres without a tap in the softmax.

    Their gradients are 0, and 0 · NaN would reach the gradient of the scale.
    """
    offset, factor, map_ = rows
    h, w = map_.shape[-2:]
    rows_of, columns_of = rows_and_columns(footprint, h, w, map_)
    by_row = (rows_of[:, :, None] == torch.arange(h, device=map_.device)).any(1)  # k h: whether a tap reads the row
    by_column = (columns_of[:, :, None] == torch.arange(w, device=map_.device)).any(1)
    map_ = map_.masked_fill(~(by_row[:, :, None] & by_column[:, None]).any(0), 0)
    if softmax and footprint.boundary == "exclude":
        unreached = ~taps_inside(footprint, (h, w), map_).any(0)
        offset = offset.masked_fill(unreached, 0)
        factor = None if factor is None else factor.masked_fill(unreached, 0)
    return Rows(offset, factor, map_)


def _normed(rows: Rows, norm: Step) -> Rows:
    """The rows after a batch norm."""
    scale, shift = norm.scale[:, None], norm.shift[:, None]
    offset = torch.addcmul(shift, rows.offset, scale)
    if rows.factor is None:
        return Rows(offset, None, scale[:, None] * rows.map)
    return Rows(offset, scale * rows.factor, rows.map)


def _sum_of_terms(r: int, rows: Rows, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """The linear layer that sums the r terms φ_i ⊙ ψ_j of a dot product and copies the position, with the norm after
    it."""
    like = rows.offset
    summed = torch.arange(like.shape[1], device=like.device) < r
    weight = torch.cat([summed[None], torch.diag(~summed)[r:]]).to(like.dtype)
    if not steps:
        return weight, weight.new_zeros(len(weight))
    return steps[0].scale[:, None] * weight, steps[0].shift


def _patchwise(cores: Any, relation: str, inputs: Roles, footprint: Footprint) -> Any:
    psi, r = inputs.psi, inputs.psi.shape[1]
    centres = inputs.phi if relation == "clique_product" else _centres(inputs.phi, footprint)
    before = r if relation == "concatenation" else 0  # the rows of φ
    rows = footprint.taps * {"concatenation": r, "star_product": 1, "clique_product": footprint.taps}[relation]
    if not inputs.steps:
        nothing = psi.new_empty(0)
        found = cores.patchwise_statistics(centres, psi, *[nothing] * 3, [rows], relation, str(footprint))
        if not before:
            return found
        variance, mean = torch.var_mean(centres, (0, 2), correction=0)
        return tuple(torch.cat(pair) for pair in zip((mean, variance), found, strict=True))
    scale, shift, _ = inputs.steps[0]
    if before:
        centres = torch.addcmul(shift[:before, None], centres, scale[:before, None]).relu()
    layers = _layers(inputs)
    facts = (
        *(scale[before:], shift[before:], _flat(layers, psi)),
        *(_widths(before + rows, layers), relation, str(footprint)),
    )
    if inputs.beta is None:
        return cores.patchwise_statistics(centres, psi, *facts)
    return cores.patchwise_attention(centres, psi, inputs.beta, *facts)


def _in_parts(
    cores: Any, operator: Attention, inputs: Roles, eps: Sequence[float], footprint: Footprint
) -> list[Tensor]:
    """y, then the mean and the biased variance of every norm.

    The first linear runs once, and its gradient is as cheap as that of a convolution. The statistics of each later norm
    then need no kernel. A backward that computes the first linear again for every norm takes nearly three times as many
    products.
    """
    relation, psi = operator.delta.relation, inputs.psi
    first, *others = inputs.steps
    mean, variance = _first_statistics(cores, relation, inputs, footprint)
    found = [mean, variance]
    scale, shift = _affine(first, mean, variance, eps[0])
    centres, before = inputs.phi, 0
    if relation != "clique_product":
        centres = _centres(centres, footprint)
    if relation == "concatenation":
        before = centres.shape[1]
        centres = torch.addcmul(shift[:before, None], centres, scale[:before, None]).relu()
    weight = first.weight.flatten(0, -2)
    hidden = cores.patchwise_hidden(
        centres, psi, scale[before:], shift[before:], _flat([(weight, weight.new_zeros(len(weight)))], psi),
        [weight.shape[1], len(weight)], relation, str(footprint),
    )  # fmt: skip
    for number, (step, one) in enumerate(zip(others, eps[1:], strict=True), start=1):
        variance, mean = torch.var_mean(hidden, (0, 2), correction=0)
        found += [mean, variance]
        scale, shift = _affine(step, mean, variance, one)
        hidden = torch.addcmul(shift[:, None], hidden, scale[:, None]).relu()
        if number < len(others):
            hidden = step.weight.flatten(0, -2) @ hidden
    layer = others[-1].weight.flatten(0, -2), inputs.bias.flatten()
    widths = [hidden.shape[1], len(layer[0])]
    return [cores.patchwise_weighted(hidden, inputs.beta, _flat([layer], psi), widths, str(footprint)), *found]


def _first_statistics(cores: Any, relation: str, inputs: Roles, footprint: Footprint) -> list[Tensor]:
    """Mean and biased variance of δ."""
    if relation != "concatenation":
        return [*_patchwise(cores, relation, inputs._replace(steps=(), beta=None), footprint)]
    variance, mean = torch.var_mean(_centres(inputs.phi, footprint), (0, 2), correction=0)
    return [torch.cat(pair) for pair in zip((mean, variance), moments.of_taps(inputs.psi, footprint), strict=True)]


def _affine(norm: Step, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The scale and shift of a norm that has this weight and bias."""
    scale = norm.scale * torch.rsqrt(variance + eps)
    return scale, norm.shift - mean * scale


def _centres(map_: Tensor, footprint: Footprint) -> Tensor:
    return map_[:, :, :: footprint.stride, :: footprint.stride].flatten(2)


def _layers(inputs: Roles) -> Layers:
    """The linears of γ, each with the batch norm after it folded in. The last one has γ's bias, if there is one."""
    steps = inputs.steps
    weights = [step.weight.flatten(0, -2) for step in steps]
    layers = [(norm.scale[:, None] * weight, norm.shift) for weight, norm in zip(weights, steps[1:], strict=False)]
    if steps:
        bias = weights[-1].new_zeros(len(weights[-1])) if inputs.bias is None else inputs.bias.flatten()
        layers.append((weights[-1], bias))
    return layers


def _widths(inputs: int, layers: Layers) -> list[int]:
    return [inputs, *(len(weight) for weight, _ in layers)]


def _flat(layers: Layers, like: Tensor) -> Tensor:
    return torch.cat([x.flatten() for layer in layers for x in layer] or [like.new_empty(0)])
