"""The fused attentions: one operator computes the relation, γ, the softmax and the aggregation.

γ consists of batch norms, ReLUs and linears. The operator takes the scale and shift of each batch norm, which computes
scale · x + shift. They come from running statistics or from those of the batch (`saprof.backends.run_statistics`). The
default attention of each family is in `OPERATORS`; its variants differ in relation, position encoding and mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any, NamedTuple

from saprof.operators.axes import Expression, parse
from saprof.operators.declaration import NONE, OPERATORS, RELATIONS, Operator, declare, describe
from saprof.operators.relations import aggregation, softmax

MAPPINGS = ("l", "lrl", "lrlrl")
"""The linear layers (l) and ReLUs (r) of γ (SAN Table 5)."""
POSITIONS = ("none", "absolute", "relative")
CHOICES = ("auto", "fused", "composed")
"""How a network computes its attention: `fused` as one operator, `composed` part by part, `auto` as one operator if a
backend has a compiled kernel for it."""
DEFAULTS = {"pairwise": ("subtraction", "relative", "lrl"), "patchwise": ("concatenation", "none", "lrl")}
"""The relation, position encoding and mapping of the paper's networks, by family."""


class Step(NamedTuple):
    """One step of γ: a batch norm, given by its scale and shift, ReLU, and a linear layer without bias."""

    scale: Any
    shift: Any
    weight: Any


class Roles(NamedTuple):
    """The inputs of an attention, by their roles. The inputs of its statistics include no β and no bias."""

    phi: Any
    psi: Any
    beta: Any
    positions: Sequence[Any]
    """Relative: the positions read at the centre, then those read at the taps. Absolute: only those read at the
    taps."""
    steps: Sequence[Step]
    bias: Any


@dataclass(frozen=True, kw_only=True)
class Attention(Operator):
    """A fused attention. Its inputs are φ, ψ, β, the positions at the centre and at the taps if it uses them, the steps
    of γ, and the last bias of γ."""

    delta: Operator
    """The relation."""
    position: str
    mapping: str

    @cached_property
    def reads(self) -> tuple[str, ...]:
        phi, psi = ("R" if read == "j" else read for read in self.delta.reads)
        positions = {"none": (), "absolute": ("R",), "relative": ("i", "R")}[self.position]
        parameters = len(self.inputs) - 3 - len(positions)
        return phi, psi, "R", *positions, *[""] * parameters

    @property
    def own_dtype(self) -> frozenset[str]:
        """The parameters and the positions: bfloat16 is too coarse for the positions of a large map."""
        return super().own_dtype | {name for name, _ in self.inputs[3 : self.maps]}

    @property
    def maps(self) -> int:
        """The number of inputs before the parameters."""
        return sum(map(bool, self.reads))

    def roles(self, inputs: Sequence[Any], *, statistics: bool = False) -> Roles:
        """The inputs by their roles."""
        phi, psi, *others = inputs
        beta = None if statistics else others.pop(0)
        bias = None if statistics else others.pop()
        positions, parameters = others[: self.maps - 3], others[self.maps - 3 :]
        steps = [Step(*parameters[at : at + 3]) for at in range(0, len(parameters), 3)]
        return Roles(phi, psi, beta, positions, steps, bias)


ATTENTIONS: dict[tuple[str, ...], Attention] = {}
"""Every fused attention, by family, relation, position encoding and mapping."""


def _name(family: str, *variant: str) -> str:
    return "_".join([family, "attention", *([] if variant == DEFAULTS[family] else variant)])


def _body(delta: Operator, positions: int) -> Callable[..., Any]:
    """The attention at one position; `inside` is true for the taps in the softmax."""

    def gamma(x: Any, parameters: Sequence[Any], inside: Any = None) -> Any:
        *steps, bias = parameters
        for scale, shift, weight in zip(steps[::3], steps[1::3], steps[2::3], strict=True):
            x = (scale[:, None] * x + shift[:, None]).relu()
            x = weight.flatten(0, -2) @ (x if inside is None else x.where(inside, 0))
        return x + bias.reshape(-1, 1)

    def pairwise_body(inside: Any, phi: Any, psi: Any, beta: Any, *others: Any) -> Any:
        import torch

        at_taps = [delta.body(phi, psi[j]) for j in range(len(psi))]
        rows = torch.stack([torch.cat([part.flatten() for part in _parts(x)]) for x in at_taps], 1)
        if positions:
            *centre, taps = others[:positions]
            rows = torch.cat([rows, (centre[0] - taps if centre else taps).T])
        logits = gamma(rows.where(inside, 0), others[positions:], inside)
        return aggregation.body(softmax(inside, logits), beta)

    def patchwise_body(inside: Any, phi: Any, psi: Any, beta: Any, *parameters: Any) -> Any:
        import torch

        row = torch.cat([part.flatten() for part in _parts(delta.body(phi, psi))])
        return aggregation.body(gamma(row[:, None], parameters).reshape(parameters[-1].shape), beta)

    return pairwise_body if delta.family == "pairwise" else patchwise_body


def _parts(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)


def _make(family: str, relation: str, position: str, mapping: str) -> Attention:
    delta = OPERATORS[f"{family}_{relation}"]
    softmax = family == "pairwise"
    at_taps = {"none": [], "absolute": ["position"], "relative": ["centre_position", "position"]}[position]
    maps = [*delta.inputs, ("beta", "n v h w"), *((name, "n 2 h w") for name in at_taps)]
    first = delta.output.split()[1] + ("+2" if at_taps else "")
    hidden = ["e", "f"][: len(mapping) // 2]
    widths = [first, *hidden, "g" if softmax else "g k"]
    parameters = []
    for step, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        parameters += [(f"scale_{step}", inputs), (f"shift_{step}", inputs), (f"weight_{step}", f"{outputs} {inputs}")]
    parameters.append(("bias", widths[-1]))
    implied = {"e": "r", "f": "r" if softmax else "g"} if softmax or len(hidden) == 2 else {"e": "g"}
    operator = Attention(
        name=_name(family, relation, position, mapping),
        equation={
            "pairwise": "y_i = Σ_j softmax_j γ([δ(φ_i, ψ_j), position]) ⊙ β_j",
            "patchwise": "y_i = Σ_j γ(δ(φ, ψ_R(i)))_j ⊙ β_j",
        }[family],
        source={"pairwise": "SAN Eq. 2 and 3", "patchwise": "SAN Eq. 4 and 5"}[family],
        inputs=(*maps, *parameters),
        output="n v oh ow",
        body=_body(delta, len(at_taps)),
        masked=True,
        implied={axis: implied[axis] for axis in hidden},
        delta=delta,
        position=position,
        mapping=mapping,
        **_costs(delta, position, [parse(width.replace(" ", "*")) for width in widths]),
    )
    object.__setattr__(operator, "__doc__", describe(operator))
    return operator


def _costs(delta: Operator, position: str, widths: Sequence[Expression]) -> dict[str, Any]:
    """The counts of δ, γ and the aggregation. γ runs per tap and centre if pairwise, per centre if patchwise."""
    n, p, k, g, v = map(parse, "npkgv")
    softmax = delta.family == "pairwise"
    repeat = k if softmax else parse("1")
    products = repeat * sum((i * o for i, o in pairwise(widths)), NONE)
    gamma = repeat * (3 * sum(widths[:-1], NONE) + widths[-1])  # batch norm 2 and ReLU 1 per element, and the last bias
    subtracted = 2 * k if position == "relative" else NONE
    softmaxed = 5 * g * k if softmax else NONE
    return {
        "macs": delta.macs + n * p * (products + v * k),
        "elementwise": delta.elementwise + n * p * (subtracted + gamma + softmaxed),
        "paper": delta.paper + n * p * (subtracted + products + gamma + v * k),
    }


for _family, _relations in RELATIONS.items():
    _positions = POSITIONS if _family == "pairwise" else POSITIONS[:1]
    for _variant in product(_relations, _positions, MAPPINGS):
        ATTENTIONS[_family, *_variant] = _make(_family, *_variant)
        declare(ATTENTIONS[_family, *_variant], variant=_variant != DEFAULTS[_family])

pairwise_attention, patchwise_attention = (ATTENTIONS[_family, *_variant] for _family, _variant in DEFAULTS.items())
