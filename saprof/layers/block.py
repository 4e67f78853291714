"""The self-attention block and the transition between stages (SAN Sec. 3.3 and 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers.choice import joins
from saprof.layers.config import AttentionConfig, check_config
from saprof.layers.exactly import as_built, as_written, eager, not_linear, rectified
from saprof.layers.local import LocalAttention
from saprof.layers.parts import block_footprint, linear
from saprof.layers.pooled import largest
from saprof.layers.recomputed import fits, of_batch, rectified_linears
from saprof.layers.running import inside
from saprof.layers.stand_alone import StandAloneAttention
from saprof.layers.vector import PairwiseAttention, PatchwiseAttention
from saprof.operators.footprint import Footprint

ATTENTION: dict[str, type[PairwiseAttention | PatchwiseAttention | StandAloneAttention]] = {
    "pairwise": PairwiseAttention,
    "patchwise": PatchwiseAttention,
    "stand_alone": StandAloneAttention,
}
"""The attention of each family."""


@as_written
class SelfAttentionBlock(nn.Module):
    """x + linear(ReLU(BN(attention(ReLU(BN(x)))))), pre-activation (SAN Fig. 1)."""

    def __init__(self, channels: int, footprint: Footprint | int | str, config: AttentionConfig) -> None:
        super().__init__()
        check_config(config, None)
        footprint = block_footprint(footprint, "reflect")
        self.norm_in = nn.BatchNorm2d(channels)
        self.attention: LocalAttention = ATTENTION[config.family](channels, footprint, config)
        self.norm_out: nn.Module = nn.BatchNorm2d(self.attention.value_channels)
        self.expand = linear(self.attention.value_channels, channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        y = self.attention(x, self.norm_in) if self._joins_norm(x) else self.attention(rectified(self.norm_in, x))
        if self._joins_expand(x, y):
            with inside(self.expand):
                return rectified_linears(self.norm_out, y, [self.expand], x)[0]
        return x + self.expand(rectified(self.norm_out, y))

    def _joins_norm(self, x: Tensor) -> bool:
        """Whether the attention computes `norm_in` itself: in training, if both are exactly as saprof builds them."""
        if not (self.training and eager(x)):
            return False
        return as_built(self.attention, *ATTENTION.values()) and self.attention.takes_norm(self.norm_in, x)

    def _joins_expand(self, x: Tensor, y: Tensor) -> bool:
        """Whether `norm_out` and `expand` run as one in training."""
        if not (self.training and eager(x)) or x.dtype != y.dtype or not x.is_contiguous():
            return False
        how = getattr(self.attention, "attention", "composed"), getattr(self.attention, "backend", "unfold")
        if not joins(how[0], x.numel()) or how[1] == "unfold" or not of_batch(self.norm_out, y):
            return False
        return not_linear(self.expand, y.shape[1], x.shape[1], bias=True) is None and fits(self.expand, y)


@as_written
class Transition(nn.Module):
    """2 × 2 max pool with stride 2, then a linear layer to the next stage's channels (SAN Sec. 3.4).

    A side of 1 stays 1, so that small inputs can pass through all five stages. With stride 1 there is no pool.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.linear = linear(inputs, outputs, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"], pooled: bool = False) -> Float[Tensor, "n d h2 w2"]:
        """The map of the next stage; `pooled` says that x has been pooled already."""
        return self.linear(pool(x) if self.stride == 2 and not pooled else x)


def pool(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """The largest of each 2 × 2 values.

    On a CPU torch's pool also stores the index of each maximum and takes ten times as long as two maxima of halves.
    Without gradients the indices are not needed; with gradients, one byte per maximum is enough. A compiler drops them
    by itself.
    """
    h, w = x.shape[-2:]
    if eager(x) and x.requires_grad and min(h, w) > 1:
        return largest(x)
    if x.device.type != "cpu" or x.requires_grad or min(h, w) < 2 or torch.compiler.is_compiling():
        return F.max_pool2d(x, (min(h, 2), min(w, 2)), stride=2)
    x = x[:, :, : h // 2 * 2, : w // 2 * 2]
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(x[..., ::2], x[..., 1::2])
