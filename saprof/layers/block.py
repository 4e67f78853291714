"""The self-attention block and the transition between stages (SAN Sec. 3.3 and 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers.config import AttentionConfig, check_config
from saprof.layers.exactly import as_written, rectified
from saprof.layers.local import LocalAttention
from saprof.layers.parts import block_footprint, linear
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
        y = self.attention(rectified(self.norm_in, x))
        return x + self.expand(rectified(self.norm_out, y))


@as_written
class Transition(nn.Module):
    """2 × 2 max pool with stride 2, then a linear layer to the next stage's channels (SAN Sec. 3.4).

    A side of 1 stays 1, so that small inputs can pass through all five stages. With stride 1 there is no pool.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.linear = linear(inputs, outputs, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        return self.linear(pool(x) if self.stride == 2 else x)


def pool(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """The largest of each 2 × 2 values.

    On a CPU torch's pool also stores the index of each maximum and takes ten times as long as two maxima of halves.
    Without gradients the indices are not needed. A compiler drops them by itself.
    """
    h, w = x.shape[-2:]
    if x.device.type != "cpu" or x.requires_grad or min(h, w) < 2 or torch.compiler.is_compiling():
        return F.max_pool2d(x, (min(h, 2), min(w, 2)), stride=2)
    x = x[:, :, : h // 2 * 2, : w // 2 * 2]
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(x[..., ::2], x[..., 1::2])
