"""The layers of the papers: attention modules, the self-attention block, the transition.

Where the authors' released code and the paper's text differ, the code is followed, so that their checkpoints load:

- Departure: γ opens with batch norm and ReLU, and every ReLU in it follows a batch norm (SAN Sec. 3.1 writes L→R→L).
- Departure: pairwise weights pass a softmax over the footprint (Eq. 2 has none); patchwise weights do not.
- Departure: channel c of β takes weight channel c mod g, so the channels that share a weight are interleaved.
- Departure: a transition is pool → linear; its batch norm and ReLU close the stage before it (Sec. 3.4).

Under `boundary="exclude"` the softmax runs over the taps inside the map; batch norm still sees the dropped ones, as
taps whose ψ is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.attention import ATTENTIONS, CHOICES, MAPPINGS, POSITIONS
from saprof.backends import BACKENDS, Unsupported, choose
from saprof.footprint import Footprint, positive
from saprof.operators import (
    OPERATORS,
    RELATIONS,
    Operator,
    aggregation,
    pairwise_concatenation,
    pairwise_dot_product,
    pairwise_subtraction,
)
from saprof.text import unknown
from saprof.workload import REDUCTIONS

TRANSFORMATIONS = ("distinct", "shared_phi_psi", "shared")

_UNUSED = {
    "pairwise": ("heads",),
    "patchwise": ("heads",),
    "stand_alone": ("relation", "mapping", "transformations", "position", "relation_reduction", "share"),
}
"""The fields that say nothing about a family's attention, and so stay as they are."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """What the attention modules of one network have in common. None means the paper's choice for the family."""

    family: str = "pairwise"
    relation: str | None = None
    mapping: str = "lrl"
    """One of MAPPINGS."""
    transformations: str = "distinct"
    """`shared_phi_psi` is φ = ψ ≠ β, `shared` is φ = ψ = β (SAN Table 6)."""
    position: str | None = None
    relation_reduction: int | None = None
    """r₁: φ and ψ have C / r₁ channels."""
    value_reduction: int = REDUCTIONS["v"]
    """r₂: β has C / r₂ channels."""
    share: int = REDUCTIONS["g"] // REDUCTIONS["v"]
    """Channels of β that share one attention weight."""
    heads: int = 8
    """Heads of the stand-alone block."""
    backend: str = "auto"
    attention: str = "auto"
    """`fused` is one operator with no footprint-sized tensor, `composed` relation, γ, softmax and aggregation one by
    one, `auto` the first where a backend has it compiled. Weights and results are the same."""

    def __post_init__(self) -> None:
        expect("family", self.family, tuple(ATTENTION))
        expect("backend", self.backend, (*BACKENDS, "auto"))
        expect("attention", self.attention, CHOICES if self.family != "stand_alone" else ("auto", "composed"))
        for field in fields(AttentionConfig):
            if field.name in _UNUSED[self.family] and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)!r}; expected {field.default!r}, "
                    f"since {self.family} attention does not read it"
                )
        for name in ("value_reduction", "share", "heads"):
            positive(name, getattr(self, name))
        if self.family != "stand_alone":
            self._complete()

    def _complete(self) -> None:
        """Choose what is None, as the paper does for the family, and check the rest."""
        expect("mapping", self.mapping, MAPPINGS)
        expect("transformations", self.transformations, TRANSFORMATIONS)
        pairwise_family = self.family == "pairwise"
        self._default("relation", "subtraction" if pairwise_family else "concatenation")
        self._default("position", "relative" if pairwise_family else "none")
        one_layer = self.transformations == "shared"
        self._default("relation_reduction", self.value_reduction if one_layer else REDUCTIONS["r"])
        expect(f"{self.family} relation", self.relation, RELATIONS[self.family])
        expect(f"{self.family} position", self.position, POSITIONS if pairwise_family else POSITIONS[:1])
        positive("relation_reduction", self.relation_reduction)
        if one_layer and self.relation_reduction != self.value_reduction:
            raise ValueError(
                f"relation_reduction is {self.relation_reduction}; expected value_reduction = {self.value_reduction}, "
                "since φ = ψ = β is one layer"
            )

    def _default(self, name: str, value: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    """A linear layer at every position."""
    return nn.Conv2d(inputs, outputs, kernel_size=1, bias=bias)


def mapping(widths: Sequence[int]) -> nn.Sequential:
    """γ through `widths`: batch norm, ReLU and linear per step; the last linear has a bias."""
    layers: list[nn.Module] = []
    for step, (inputs, outputs) in enumerate(pairwise(widths), start=2):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), linear(inputs, outputs, bias=step == len(widths))]
    return nn.Sequential(*layers)


class VectorAttention(nn.Module):
    """What pairwise and patchwise attention have in common: φ, ψ, β and γ (SAN Fig. 1)."""

    first_channel = 0
    """The first of δ's channels that γ reads."""

    def __init__(self, channels: int, footprint: Footprint, config: AttentionConfig) -> None:
        super().__init__()
        r = divide("channels", channels, "relation_reduction", config.relation_reduction)
        v = divide("channels", channels, "value_reduction", config.value_reduction)
        self.groups = divide("value channels", v, "share", config.share)
        self.value_channels = v
        self.footprint = footprint
        self.backend = config.backend
        self.attention = config.attention
        self.ran: str | None = None
        """How the last forward computed the attention, and what on."""
        self.relation = OPERATORS[f"{config.family}_{config.relation}"]
        self.fused = ATTENTIONS.get((config.family, str(config.relation), str(config.position), config.mapping))
        self.gamma: nn.Sequential
        self.phi = linear(channels, r)
        self.psi = linear(channels, r) if config.transformations == "distinct" else None
        self.beta = linear(channels, v) if config.transformations != "shared" else None
        self.transformations: nn.Module | None = None
        """What computes all three at once, if anything does."""
        # φ = ψ = β widens φ to C / 4; γ keeps the hidden width C / 16 that the parameter count of Table 6 asks for
        self.hidden = r if self.beta is not None else max(channels // REDUCTIONS["r"], 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n v h w"]:
        phi, psi, beta = self.transform(x)
        if phi.is_meta:  # what has shapes alone is composed, so that every part is counted under its own module
            return self.compose(phi, psi, beta)
        where = phi.dtype, phi.device.type
        backend = self.fused_backend(*where)
        if not torch.compiler.is_compiling():
            self.ran = " on ".join(self._planned(backend, *where))
        return self.compose(phi, psi, beta) if backend is None else self.fuse(phi, psi, beta, backend)

    def plan(self, dtype: torch.dtype, device: str) -> tuple[str, str]:
        """How the attention of such maps is computed, `fused` or `composed`, and the backends that do, joined by `+`.

        Raises Unsupported where no backend can, or `attention="fused"` cannot be.
        """
        return self._planned(self.fused_backend(dtype, device), dtype, device)

    def _planned(self, backend: str | None, dtype: torch.dtype, device: str) -> tuple[str, str]:
        """The plan, given the backend that fuses the attention, if one does."""
        if backend is not None:
            return "fused", backend
        return "composed", _backends((self.relation, aggregation), dtype, device, self)

    @torch.compiler.assume_constant_result
    def fused_backend(self, dtype: torch.dtype, device: str) -> str | None:
        """The backend that computes the attention of such maps as one operator; None if it is composed."""
        if self.attention == "composed":
            return None
        reason, backend = self._why_composed(dtype, device)
        if reason is None:
            return backend
        if self.attention == "fused":
            raise Unsupported(f"fused attention: {reason}; expected attention='composed' or 'auto'")
        return None

    def _why_composed(self, dtype: torch.dtype, device: str) -> tuple[str | None, str]:
        """Why the attention cannot be fused there, or None and the backend that does."""
        if self.fused is None:
            return f"{self.relation.name} has no fused attention", ""
        for layer in self.gamma:
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and type(layer) is not nn.BatchNorm2d:
                return f"γ has a {type(layer).__name__}, and only the statistics of a BatchNorm2d are computed", ""
            if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
                return "γ's layers have hooks, which it would not call", ""
        try:
            backend = choose(self.fused, dtype, device, self.footprint, self.backend)
        except Unsupported as error:
            return str(error), ""
        if backend == "unfold":
            return "unfold computes it by its parts", ""
        return None, backend

    def compose(self, phi: Tensor, psi: Tensor, beta: Tensor) -> Float[Tensor, "n v h w"]:
        """The attention by its parts."""
        return aggregation(self.alpha(phi, psi), beta, footprint=self.footprint, backend=self.backend)

    def weights(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n g k p"]:
        """The attention weights α of every group, at every tap of every centre."""
        phi, psi, _ = self.transform(x)
        return self.alpha(phi, psi)

    def alpha(self, phi: Tensor, psi: Tensor) -> Float[Tensor, "n g k p"]:
        """The attention weights, by relation and γ."""
        raise NotImplementedError

    def fuse(self, phi: Tensor, psi: Tensor, beta: Tensor, backend: str) -> Float[Tensor, "n v h w"]:
        """The attention as one operator, which is given γ's batch norms as scales and shifts."""
        fused, how = self.fused, {"footprint": self.footprint, "backend": backend}
        assert fused is not None
        positions = self.positions(phi)
        parameters: list[Tensor] = []
        unread = self.first_channel

        def statistics() -> tuple[Tensor, ...]:
            return tuple(x[unread:] for x in fused.statistics(phi, psi, *positions, *parameters, **how))

        for norm, weight in self.steps():
            scale, shift = affine(norm, statistics, self.samples(phi))
            parameters += [F.pad(x, (unread, 0)) if unread else x for x in (scale, shift, weight)]
            unread = 0
        weight = parameters.pop()
        bias = self.gamma[-1].get_parameter("bias").view(self.outputs)
        return fused(phi, psi, beta, *positions, *parameters, weight.view(*self.outputs, -1), bias, **how)

    def steps(self) -> Iterator[tuple[nn.BatchNorm2d, Tensor]]:
        """The batch norms of γ, each with the weight of the linear layer behind it."""
        layers = list(self.gamma)
        for norm, layer in zip(layers[::3], layers[2::3], strict=True):
            assert isinstance(norm, nn.BatchNorm2d)
            assert isinstance(layer, nn.Conv2d)
            yield norm, layer.weight.flatten(1)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The axes of what γ gives per position: the groups, and in the patchwise family the taps."""
        return (self.groups,)

    def positions(self, like: Tensor) -> list[Tensor]:
        """The positions at centres and taps, as the fused operator takes them."""
        return []

    def samples(self, phi: Tensor) -> int:
        """How many values of a channel a batch norm of γ sees."""
        return len(phi) * math.prod(self.footprint.output_size(*phi.shape[-2:]))

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """φ(x), ψ(x), β(x); a layer that two of them share runs once."""
        if self.transformations is not None:
            return self.transformations(x)
        phi = self.phi(x)
        psi = phi if self.psi is None else self.psi(x)
        beta = phi if self.beta is None else self.beta(x)
        return phi, psi, beta

    def relation_channels(self) -> int:
        """d, the width of δ."""
        return self.relation.output_shape({"n": 1, "r": self.phi.out_channels, "k": self.footprint.taps, "p": 1})[1]

    def extra_repr(self) -> str:
        ran = f", ran {self.ran}" if self.ran else ""
        how = f"backend={self.backend}, attention={self.attention}{ran}"
        return f"{self.relation.name}, footprint={self.footprint}, {how}"


class PairwiseAttention(VectorAttention):
    """y_i = Σ_j softmax_j γ([δ(x_i, x_j), p_i − p_j]) ⊙ β(x_j) (SAN Eq. 2 and 3)."""

    def __init__(self, channels: int, footprint: Footprint, config: AttentionConfig) -> None:
        super().__init__(channels, footprint, config)
        self.position_encoding = config.position
        self.position = linear(2, 2) if config.position != "none" else None
        width = self.relation_channels() + (2 if self.position is not None else 0)
        hidden = [self.hidden] * (len(config.mapping) // 2)
        self.gamma = mapping([width, *hidden, self.groups])

    def alpha(self, phi: Tensor, psi: Tensor) -> Float[Tensor, "n g k p"]:
        delta = self.relation(phi, psi, footprint=self.footprint, backend=self.backend)
        position = self.position_relation(phi.shape[-2:])
        if position is not None:
            delta = torch.cat([delta, position.expand(len(phi), -1, -1, -1).to(delta.dtype)], dim=1)
        return softmax(self.gamma(delta), self.footprint, phi.shape[-2:])

    def position_relation(self, size: Sequence[int]) -> Float[Tensor, "1 2 k p"] | None:
        """p_i − p_j on a map of `size`; p_j where the encoding is absolute, None where there is none."""
        if self.position is None:
            return None
        how = {"footprint": self.footprint, "backend": self.backend}
        with _no_autocast(self.position.weight):  # in bfloat16 the neighbours on a large map are hardly apart
            p = self.position(coordinates(size, self.position.weight))
            if self.position_encoding == "relative":
                return pairwise_subtraction(p, p, **how)
            return pairwise_concatenation(p, p, **how)[:, 2:]  # the p_j of [p_i, p_j]

    def positions(self, like: Tensor) -> list[Tensor]:
        if self.position is None:
            return []
        with _no_autocast(self.position.weight):
            p = self.position(coordinates(like.shape[-2:], self.position.weight)).expand(len(like), -1, -1, -1)
        return [p, p] if self.position_encoding == "relative" else [p]

    def samples(self, phi: Tensor) -> int:
        return super().samples(phi) * self.footprint.taps


class PatchwiseAttention(VectorAttention):
    """y_i = Σ_j γ(δ(x_R(i)))_j ⊙ β(x_j) (SAN Eq. 4 and 5)."""

    def __init__(self, channels: int, footprint: Footprint, config: AttentionConfig) -> None:
        super().__init__(channels, footprint, config)
        # where φ = ψ, a centre that is one of the taps is in δ already, and Table 6 counts it once
        twice = self.psi is None and config.relation == "concatenation" and (0, 0) in footprint.offsets
        self.first_channel = self.phi.out_channels if twice else 0
        hidden = {"l": [], "lrl": [self.groups], "lrlrl": [self.hidden, self.groups]}[config.mapping]
        width = self.relation_channels() - self.first_channel
        self.gamma = mapping([width, *hidden, self.groups * footprint.taps])

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.groups, self.footprint.taps

    def alpha(self, phi: Tensor, psi: Tensor) -> Float[Tensor, "n g k p"]:
        delta = self.relation(phi, psi, footprint=self.footprint, backend=self.backend)
        alpha = self.gamma(delta[:, self.first_channel :])  # n g·k 1 p
        return alpha.reshape(len(phi), self.groups, self.footprint.taps, alpha.shape[-1])


class StandAloneAttention(nn.Module):
    """Multi-head dot-product attention over a footprint with relative rows and columns, as SAN Sec. 5.3 places it in
    SAN10: y_i = Σ_j softmax_j(q_iᵀ k_j + q_iᵀ r_{j−i}) v_j (Ramachandran et al.).

    Heads are interleaved over the channels, as the shared weights of SAN are.
    """

    row_of_tap: Tensor
    column_of_tap: Tensor

    def __init__(self, channels: int, footprint: Footprint, config: AttentionConfig) -> None:
        super().__init__()
        width = divide("channels", channels, "value_reduction", config.value_reduction)
        row_channels = divide("value channels", width, "2 · heads", 2 * config.heads)
        rows, columns = (sorted(set(axis)) for axis in zip(*footprint.offsets, strict=True))
        self.value_channels = width
        self.heads = config.heads
        self.footprint = footprint
        self.backend = config.backend
        self.relation = pairwise_dot_product
        self.query, self.key, self.value = (linear(channels, width) for _ in range(3))
        self.row_embedding = nn.Parameter(torch.randn(config.heads, row_channels, len(rows)))
        self.column_embedding = nn.Parameter(torch.randn(config.heads, row_channels, len(columns)))
        row_of_tap = torch.tensor([rows.index(dy) for dy, _ in footprint.offsets])
        column_of_tap = torch.tensor([columns.index(dx) for _, dx in footprint.offsets])
        self.register_buffer("row_of_tap", row_of_tap, persistent=False)
        self.register_buffer("column_of_tap", column_of_tap, persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n v h w"]:
        return aggregation(self.weights(x), self.value(x), footprint=self.footprint, backend=self.backend)

    def weights(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n heads k p"]:
        """The attention weights α of every head, at every tap of every centre."""
        query, key = self.split(self.query(x)), self.split(self.key(x))
        n, heads = query.shape[:2]
        how = {"footprint": self.footprint, "backend": self.backend}
        content = self.relation(query.flatten(0, 1), key.flatten(0, 1), **how)
        position = self.relative().transpose(1, 2) @ query.flatten(3)  # n heads k p
        logits = content.view(n, heads, *content.shape[2:]) + position
        return softmax(logits, self.footprint, x.shape[-2:])

    def plan(self, dtype: torch.dtype, device: str) -> tuple[str, str]:
        """How the attention of such maps is computed, and the backends that do, joined by `+`."""
        return "composed", _backends((self.relation, aggregation), dtype, device, self)

    def split(self, x: Float[Tensor, "n v h w"]) -> Float[Tensor, "n heads c h w"]:
        return x.unflatten(1, (-1, self.heads)).transpose(1, 2)

    def relative(self) -> Float[Tensor, "heads c k"]:
        """r_{j−i}: half of a head's channels embed the tap's row, half its column."""
        rows = self.row_embedding.index_select(-1, self.row_of_tap)
        columns = self.column_embedding.index_select(-1, self.column_of_tap)
        return torch.cat([rows, columns], dim=1)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, footprint={self.footprint}, backend={self.backend}"


ATTENTION: dict[str, type[VectorAttention] | type[StandAloneAttention]] = {
    "pairwise": PairwiseAttention,
    "patchwise": PatchwiseAttention,
    "stand_alone": StandAloneAttention,
}


class SelfAttentionBlock(nn.Module):
    """x + linear(ReLU(BN(attention(ReLU(BN(x)))))), pre-activation (SAN Fig. 1)."""

    def __init__(self, channels: int, footprint: Footprint, config: AttentionConfig) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm2d(channels)
        self.attention = ATTENTION[config.family](channels, footprint, config)
        self.norm_out: nn.Module = nn.BatchNorm2d(self.attention.value_channels)
        self.expand = linear(self.attention.value_channels, channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        y = self.attention(F.relu(self.norm_in(x), inplace=True))
        return x + self.expand(F.relu(self.norm_out(y), inplace=True))


class Transition(nn.Module):
    """2 × 2 max pool with stride 2, then a linear layer to the next stage's channels (SAN Sec. 3.4).

    A side of 1 stays 1, so that small inputs pass all five stages. With stride 1 there is no pool.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.linear = linear(inputs, outputs, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        return self.linear(pool(x) if self.stride == 2 else x)


def pool(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """The largest of each 2 × 2 values.

    On a CPU torch also notes where each was found, and then takes ten times as long as two maxima of halves; what has
    no gradient does without.
    """
    h, w = x.shape[-2:]
    if x.device.type != "cpu" or x.requires_grad or min(h, w) < 2:
        return F.max_pool2d(x, (min(h, 2), min(w, 2)), stride=2)
    x = x[:, :, : h // 2 * 2, : w // 2 * 2]
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(x[..., ::2], x[..., 1::2])


def _backends(
    operators: Sequence[Operator], dtype: torch.dtype, device: str, layer: VectorAttention | StandAloneAttention
) -> str:
    """The backends that run these operators in a layer, joined by `+`."""
    chosen = [choose(operator, dtype, device, layer.footprint, layer.backend) for operator in operators]
    return "+".join(dict.fromkeys(chosen))


def affine(norm: nn.BatchNorm2d, statistics: Callable[[], tuple[Tensor, ...]], samples: int) -> tuple[Tensor, Tensor]:
    """The scale and shift by which a batch norm acts. In training they come of the batch's `statistics`, mean and
    biased variance over so many `samples`, and the running ones follow as in torch."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None:
        mean, variance = statistics()
        if norm.training and norm.track_running_stats:
            _follow(norm, mean, variance, samples)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = norm.weight * scale
        return scale, norm.bias - mean * scale
    return scale, -mean * scale


@torch.no_grad()
def _follow(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, samples: int) -> None:
    if samples < 2:
        raise ValueError("a batch norm of γ sees one value per channel in training; expected more, to have a variance")
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    unbiased = variance * (samples / (samples - 1))
    for running, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.copy_((1 - momentum) * running + momentum * now)


def softmax(logits: Float[Tensor, "n g k p"], footprint: Footprint, size: Sequence[int]) -> Float[Tensor, "n g k p"]:
    """Softmax over the taps; under `exclude`, over those inside the map."""
    if footprint.boundary == "exclude":
        outside = ~footprint.inside(*size).to(logits.device)
        # no −∞: a centre without any tap inside has uniform weights over zeros, rather than NaN
        logits = logits.masked_fill(outside, torch.finfo(logits.dtype).min)
    return logits.softmax(dim=2)


def coordinates(size: Sequence[int], like: Tensor) -> Float[Tensor, "1 2 h w"]:
    """Horizontal, then vertical position on a map, each from −1 to 1 (SAN Sec. 3.1, position encoding).

    A side of 1 is at −1.
    """
    h, w = size
    ys, xs = (torch.linspace(-1, 1, side, device=like.device, dtype=like.dtype) for side in (h, w))
    return torch.cat([xs.expand(1, 1, h, w), ys[:, None].expand(1, 1, h, w)], dim=1)


def expect(what: str, got: str | None, valid: Sequence[str]) -> None:
    """ValueError unless `got` is one of `valid`."""
    if got not in valid:
        raise ValueError(unknown(what, str(got), valid))


def divide(what: str, size: int, by: str, divisor: int | None) -> int:
    """size / divisor, which must be whole."""
    if divisor is None or size % divisor:
        raise ValueError(f"{by} is {divisor}; expected a divisor of {what} = {size}")
    return size // divisor


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
