"""Attention whose weights are vectors: pairwise and patchwise (SAN Sec. 3.1 and 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.backends import in_parts, run, run_in_training, run_statistics
from saprof.backends.taps import softmax
from saprof.layers.choice import joins
from saprof.layers.config import AttentionConfig
from saprof.layers.exactly import as_written, not_linear, not_mapping, overridden, watch
from saprof.layers.local import LocalAttention
from saprof.layers.parts import coordinates, divide, linear, no_autocast
from saprof.layers.recomputed import fits, of_batch, rectified_linears, update_running_statistics
from saprof.operators import OPERATORS, Operator, aggregation, pairwise_concatenation, pairwise_subtraction
from saprof.operators.attention import ATTENTIONS, Attention
from saprof.operators.footprint import Footprint, positive
from saprof.operators.workload import REDUCTIONS


def mapping(widths: Sequence[int]) -> nn.Sequential:
    """γ through `widths`: batch norm, ReLU and linear per step; the last linear has a bias."""
    layers: list[nn.Module] = []
    for step, (inputs, outputs) in enumerate(pairwise(widths), start=2):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), linear(inputs, outputs, bias=step == len(widths))]
    return nn.Sequential(*layers)


@as_written
class VectorAttention(LocalAttention):
    """What pairwise and patchwise attention have in common: φ, ψ, β and γ (SAN Fig. 1).

    The reductions of the config divide `width`, which is `channels` in the papers' networks.
    """

    first_channel = 0
    """The first channel of δ that γ reads."""

    def __init__(
        self, channels: int, footprint: Footprint | int | str, config: AttentionConfig, width: int | None = None
    ) -> None:
        super().__init__(channels, footprint, config)
        width = channels if width is None else positive("width", width)
        r = divide("channels", width, "relation_reduction", config.relation_reduction)
        v = divide("channels", width, "value_reduction", config.value_reduction)
        self.groups = divide("value channels", v, "share", config.share)
        self.value_channels = v
        self.relation = OPERATORS[f"{config.family}_{config.relation}"]
        self.mapping = config.mapping
        self.gamma: nn.Sequential
        self.phi = linear(channels, r)
        self.psi = linear(channels, r) if config.transformations == "distinct" else None
        self.beta = linear(channels, v) if config.transformations != "shared" else None
        self.transformations: nn.Module | None = None
        """The layer that computes all three in one, or None."""
        # φ = ψ = β widens φ to C / 4; γ keeps the hidden width C / 16, as the parameter count of Table 6 demands
        self.hidden = r if self.beta is not None else max(width // REDUCTIONS["r"], 1)

    @property
    def parts(self) -> Sequence[Operator]:
        return self.relation, aggregation

    @property
    def encoding(self) -> str:
        """The positions that γ reads: one of POSITIONS."""
        return "none"

    @property
    def fused_operator(self) -> Attention | None:
        return ATTENTIONS.get((self.relation.family, self.relation.relation, self.encoding, self.mapping))

    def obstacle(self) -> str | None:
        if self.fused_operator is None:
            return f"{self.relation.name} has no fused attention"
        return super().obstacle() or not_mapping(self.gamma, len(self.mapping) // 2 + 1, math.prod(self.outputs))

    def fuse(self, phi: Tensor, psi: Tensor, beta: Tensor, backend: str) -> Float[Tensor, "n v h w"]:
        """The attention as one operator. The operator takes the batch norms of γ as scales and shifts."""
        fused, how = self.fused_operator, {"footprint": self.footprint, "backend": backend}
        assert fused is not None
        positions = self.positions(phi)
        parameters: list[Tensor] = []
        unread = self.first_channel

        def statistics() -> tuple[Tensor, ...]:
            return tuple(x[unread:] for x in run_statistics(fused, phi, psi, *positions, *parameters, **how))

        for norm, weight in self.steps():
            scale, shift = affine(norm, statistics, self.samples(phi))
            parameters += [F.pad(x, (unread, 0)) if unread else x for x in (scale, shift, weight)]
            unread = 0
        weight = parameters.pop()
        last: Any = self.gamma[-1]
        weight, bias = weight.view(*self.outputs, -1), last.bias.view(self.outputs)
        return run(fused, phi, psi, beta, *positions, *parameters, weight, bias, **how)

    def steps(self) -> Iterator[tuple[nn.BatchNorm2d, Tensor]]:
        """The batch norms of γ, each with the weight of the linear layer after it."""
        layers: list[Any] = list(self.gamma)
        if torch.compiler.is_compiling():
            for layer in layers:
                watch(layer)
        for norm, layer in zip(layers[::3], layers[2::3], strict=True):
            yield norm, layer.weight.flatten(1)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The axes of γ's output per position: the groups, and in the patchwise family the taps."""
        return (self.groups,)

    def positions(self, like: Tensor) -> list[Tensor]:
        """The positions at the centres and at the taps, in the form that the fused operator takes."""
        return []

    def samples(self, phi: Tensor) -> int:
        """The number of values per channel in the input of γ's batch norms."""
        return phi.shape[0] * math.prod(self.footprint.output_size(*phi.shape[-2:]))

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """φ(x), ψ(x), β(x). A shared layer runs once."""
        if self.transformations is not None:
            return self.transformations(x)
        phi = self.phi(x)
        psi = phi if self.psi is None else self.psi(x)
        beta = phi if self.beta is None else self.beta(x)
        return phi, psi, beta

    def transform_normed(self, norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """φ, ψ and β of ReLU(norm(x)), by one product, where `takes_norm` is true."""
        layers = [self.phi, self.psi, self.beta]
        found = iter(rectified_linears(norm, x, [layer for layer in layers if layer is not None]))
        phi = next(found)
        psi, beta = (phi if layer is None else next(found) for layer in layers[1:])
        return phi, psi, beta

    def takes_norm(self, norm: nn.Module, x: Tensor) -> bool:
        if not joins(self.attention, x.numel()) or self.backend == "unfold" or self.transformations is not None:
            return False
        if getattr(self, "taps", self.footprint.taps) != self.footprint.taps:
            return False
        layers = [layer for layer in (self.phi, self.psi, self.beta) if layer is not None]
        return of_batch(norm, x) and all(
            not_linear(layer, x.shape[1], getattr(layer, "out_channels", 0), bias=True) is None and fits(layer, x)
            for layer in layers
        )

    def relation_channels(self) -> int:
        """d, the width of δ."""
        return self.relation.output_shape({"n": 1, "r": self.phi.out_channels, "k": self.footprint.taps, "p": 1})[1]

    def extra_repr(self) -> str:
        return f"{self.relation.name}, {super().extra_repr()}"


@as_written
class PairwiseAttention(VectorAttention):
    """y_i = Σ_j softmax_j γ([δ(x_i, x_j), p_i − p_j]) ⊙ β(x_j) (SAN Eq. 2 and 3)."""

    family = "pairwise"

    def __init__(
        self, channels: int, footprint: Footprint | int | str, config: AttentionConfig, width: int | None = None
    ) -> None:
        super().__init__(channels, footprint, config, width)
        self.position_encoding = str(config.position)
        self.position = linear(2, 2) if config.position != "none" else None
        width = self.relation_channels() + (2 if self.position is not None else 0)
        hidden = [self.hidden] * (len(config.mapping) // 2)
        self.gamma = mapping([width, *hidden, self.groups])

    fuse = VectorAttention.fuse
    """It computes what this class's `alpha` does. It is not used in a subclass that only overrides `alpha`."""

    @property
    def encoding(self) -> str:
        return "none" if self.position is None else self.position_encoding

    def obstacle(self) -> str | None:
        if reason := overridden(self, "fuse", ("position_relation",)) or super().obstacle():
            return reason
        reason = None if self.position is None else not_linear(self.position, 2, 2)
        return reason and f"position {reason}"

    def alpha(self, phi: Tensor, psi: Tensor) -> Float[Tensor, "n g k p"]:
        delta = run(self.relation, phi, psi, footprint=self.footprint, backend=self.backend)
        position = self.position_relation(phi.shape[-2:])
        if position is not None:
            delta = torch.cat([delta, position.expand(phi.shape[0], -1, -1, -1).to(delta.dtype)], dim=1)
        return softmax(self.gamma(delta), self.footprint, phi.shape[-2:])

    def position_relation(self, size: Sequence[int]) -> Float[Tensor, "1 2 k p"] | None:
        """p_i − p_j on a map of `size`, or p_j if the encoding is absolute, or None without an encoding."""
        if self.position is None:
            return None
        how = {"footprint": self.footprint, "backend": self.backend}
        like = next(self.position.parameters())
        with no_autocast(like):  # bfloat16 is too coarse for the positions of a large map
            p = self.position(coordinates(size, like))
            if self.position_encoding == "relative":
                return run(pairwise_subtraction, p, p, **how)
            return run(pairwise_concatenation, p, p, **how)[:, 2:]  # the p_j of [p_i, p_j]

    def positions(self, like: Tensor) -> list[Tensor]:
        if self.position is None:
            return []
        with no_autocast(self.position.weight):
            p = self.position(coordinates(like.shape[-2:], self.position.weight)).expand(like.shape[0], -1, -1, -1)
        return [p, p] if self.position_encoding == "relative" else [p]

    def samples(self, phi: Tensor) -> int:
        return super().samples(phi) * self.footprint.taps


@as_written
class PatchwiseAttention(VectorAttention):
    """y_i = Σ_j γ(δ(x_R(i)))_j ⊙ β(x_j) (SAN Eq. 4 and 5)."""

    family = "patchwise"

    def __init__(
        self, channels: int, footprint: Footprint | int | str, config: AttentionConfig, width: int | None = None
    ) -> None:
        super().__init__(channels, footprint, config, width)
        # if φ = ψ and the centre is one of the taps, δ contains the centre already; Table 6 counts it once
        twice = self.psi is None and config.relation == "concatenation" and (0, 0) in self.footprint.offsets
        self.first_channel = self.phi.out_channels if twice else 0
        hidden = {"l": [], "lrl": [self.groups], "lrlrl": [self.hidden, self.groups]}[config.mapping]
        width = self.relation_channels() - self.first_channel
        self.gamma = mapping([width, *hidden, self.groups * self.footprint.taps])
        self.taps = self.footprint.taps

    def fuse(self, phi: Tensor, psi: Tensor, beta: Tensor, backend: str) -> Float[Tensor, "n v h w"]:
        """The attention as one operator; in training in two parts where the backend can, so that no layer of γ runs
        twice. It computes what this class's `alpha` does."""
        fused, steps = self.fused_operator, list(self.steps())
        assert fused is not None
        if not in_parts(backend, fused, phi.device.type) or not all(_of_batch(norm) for norm, _ in steps):
            return super().fuse(phi, psi, beta, backend)
        parameters, unread, samples = [], self.first_channel, self.samples(phi)
        for norm, weight in steps:
            _need_samples(samples)
            given = (*_weight_and_bias(norm, weight), weight)
            parameters += [F.pad(x, (unread, 0)) for x in given] if unread else given
            unread = 0
        last: Any = self.gamma[-1]
        parameters[-1] = parameters[-1].view(*self.outputs, -1)
        y, *found = run_in_training(
            fused, phi, psi, beta, *parameters, last.bias.view(self.outputs),
            eps=[norm.eps for norm, _ in steps], footprint=self.footprint, backend=backend,
        )  # fmt: skip
        found[:2] = (x[self.first_channel :] for x in found[:2])
        for (norm, _), mean, variance in zip(steps, found[::2], found[1::2], strict=True):
            if norm.training and norm.track_running_stats:
                update_running_statistics(norm, mean, variance, samples)
        return y

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.footprint.taps != self.taps:
            raise ValueError(
                f"{self.relation.name}: axis k of γ is {self.taps}; expected {self.footprint.taps}, the taps of "
                f"footprint {self.footprint}, since a patchwise γ is built for one number of taps"
            )
        return super().transform(x)

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.groups, self.footprint.taps

    def alpha(self, phi: Tensor, psi: Tensor) -> Float[Tensor, "n g k p"]:
        delta = run(self.relation, phi, psi, footprint=self.footprint, backend=self.backend)
        alpha = self.gamma(delta[:, self.first_channel :])  # n g·k 1 p
        return alpha.reshape(phi.shape[0], self.groups, self.footprint.taps, alpha.shape[-1])


def affine(norm: nn.BatchNorm2d, statistics: Callable[[], tuple[Tensor, ...]], samples: int) -> tuple[Tensor, Tensor]:
    """The scale and shift of a batch norm. In training they are computed from the batch's `statistics`, the mean and
    biased variance over `samples` values, and the running statistics are updated as in torch."""
    mean, variance = norm.running_mean, norm.running_var
    if _of_batch(norm) or mean is None or variance is None:
        _need_samples(samples)
        mean, variance = statistics()
        if norm.training and norm.track_running_stats:
            update_running_statistics(norm, mean, variance, samples)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = norm.weight * scale
    return scale, -mean * scale if norm.bias is None else norm.bias - mean * scale


def _of_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm uses the statistics of the batch."""
    return norm.training or norm.running_mean is None or norm.running_var is None


def _need_samples(samples: int) -> None:
    if samples < 2:
        raise ValueError("a batch norm of γ sees one value per channel in training; expected more, to have a variance")


def _weight_and_bias(norm: nn.BatchNorm2d, like: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and bias of a batch norm; 1 and 0 if it has none."""
    size = norm.num_features
    weight = like.new_ones(size) if norm.weight is None else norm.weight
    return weight, like.new_zeros(size) if norm.bias is None else norm.bias
