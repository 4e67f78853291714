"""Stand-alone self-attention: heads of dot products over a footprint (SASA Sec. 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saprof.backends import run
from saprof.backends.taps import softmax
from saprof.layers.config import AttentionConfig
from saprof.layers.exactly import as_written
from saprof.layers.local import LocalAttention
from saprof.layers.parts import divide
from saprof.operators import Operator, aggregation, pairwise_dot_product
from saprof.operators.footprint import Footprint, positive
from saprof.operators.stand_alone import ATTENTIONS


@as_written
class StandAloneAttention(LocalAttention):
    """y_i = Σ_j softmax_j(q_iᵀ k_j + q_iᵀ r_{j−i}) v_j in every head (SASA Eq. 2 and 3).

    `logits="content"` omits the second term, `"position"` the first. With absolute positions a sinusoidal encoding of
    rows and columns is added to x. `value_reduction` divides `width`, which is `channels` in the paper's networks.
    """

    family = "stand_alone"

    def __init__(
        self, channels: int, footprint: Footprint | int | str, config: AttentionConfig, width: int | None = None
    ) -> None:
        super().__init__(channels, footprint, config)
        width = channels if width is None else positive("width", width)
        width = divide("channels", width, "value_reduction", config.value_reduction)
        divide("value channels", width, "heads", config.heads)
        groups = config.projection_groups
        divide("channels", channels, "projection_groups", groups)
        divide("value channels", width, "projection_groups", groups)
        self.value_channels = width
        self.heads = config.heads
        self.scale = (width // config.heads) ** -0.5 if config.scaled else None
        self.absolute = config.position == "absolute"
        self.query = Projection(channels, width, config)
        self.key = Projection(channels, width, config) if config.logits != "position" else None
        self.value = Projection(channels, width, config)
        self.embeds_offsets = config.position == "relative"
        if self.embeds_offsets:
            self._embed(divide("value channels", width, "2 · heads", 2 * config.heads))

    def _embed(self, row_channels: int) -> None:
        """Add a learned embedding for every row and every column of the footprint that has a tap."""
        rows, columns = (sorted(set(axis)) for axis in zip(*self.footprint.offsets, strict=True))
        self.row_embedding = nn.Parameter(torch.randn(self.heads, row_channels, len(rows)))
        self.column_embedding = nn.Parameter(torch.randn(self.heads, row_channels, len(columns)))
        self.taps = self.footprint.taps

    @property
    def fused_operator(self) -> Operator:
        terms = self.key is not None, self.embeds_offsets
        return ATTENTIONS[{(True, True): "both", (True, False): "content", (False, True): "position"}[terms]]

    @property
    def parts(self) -> Sequence[Operator]:
        return (aggregation,) if self.key is None else (pairwise_dot_product, aggregation)

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.absolute:
            x = x + sinusoids(x)
        query = self.query(x)
        if self.scale is not None:
            query = query * self.scale
        return query, query if self.key is None else self.key(x), self.value(x)

    def alpha(self, first: Tensor, second: Tensor) -> Float[Tensor, "n heads k p"]:
        query = self.split(first).transpose(1, 2)  # n heads d h w
        logits: list[Tensor] = []
        if self.key is not None:
            key = self.split(second).transpose(1, 2)
            how = {"footprint": self.footprint, "backend": self.backend}
            content = run(pairwise_dot_product, query.flatten(0, 1), key.flatten(0, 1), **how)
            logits.append(content.view(*query.shape[:2], *content.shape[2:]))
        if self.embeds_offsets:
            logits.append(self.relative().permute(1, 2, 0) @ query.flatten(3))
        return softmax(logits[0] + logits[1] if len(logits) == 2 else logits[0], self.footprint, first.shape[-2:])

    def fuse(self, first: Tensor, second: Tensor, values: Tensor, backend: str) -> Float[Tensor, "n v h w"]:
        key = [] if self.key is None else [self.split(second)]
        relative = [self.relative()] if self.embeds_offsets else []
        return run(
            self.fused_operator, self.split(first), *key, *relative, values, footprint=self.footprint, backend=backend
        )

    def split(self, x: Float[Tensor, "n v h w"]) -> Float[Tensor, "n d heads h w"]:
        return x.unflatten(1, (-1, self.heads))

    def relative(self) -> Float[Tensor, "d heads k"]:
        """r_{j−i}: the first half of a head's channels embeds the row of the tap, the second half its column."""
        if self.footprint.taps != self.taps:
            raise ValueError(
                f"axis k of the relative embedding is {self.taps}; expected {self.footprint.taps}, the taps of "
                f"footprint {self.footprint}"
            )
        rows, columns = self.row_embedding, self.column_embedding
        if self.footprint.lattice is not None:
            height, width = self.footprint.lattice[0]
            rows = rows[..., :, None].expand(-1, -1, height, width).flatten(2)
            columns = columns[..., None, :].expand(-1, -1, height, width).flatten(2)
        else:
            rows, columns = map(_of_taps, (rows, columns), zip(*self.footprint.offsets, strict=True))
        return torch.cat([rows, columns], dim=1).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, {super().extra_repr()}"


def _of_taps(embedding: Float[Tensor, "heads d m"], offsets: Sequence[int]) -> Float[Tensor, "heads d k"]:
    """The embedding of every tap, from its offset along one axis. The index is not a buffer: a buffer that is not in
    the state dict has no values after weights are loaded into a module of the meta device."""
    places = sorted(set(offsets))
    return embedding.index_select(-1, torch.tensor([places.index(o) for o in offsets], device=embedding.device))


@as_written
class Projection(nn.Conv2d):
    """The layer of queries, keys or values. With one matrix per group of channels, the outputs are interleaved like the
    heads."""

    def __init__(self, inputs: int, outputs: int, config: AttentionConfig) -> None:
        super().__init__(inputs, outputs, kernel_size=1, bias=config.bias, groups=config.projection_groups)

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n v h w"]:
        y = super().forward(input)
        return y if self.groups == 1 else y.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def sinusoids(like: Float[Tensor, "n c h w"]) -> Float[Tensor, "1 c h w"]:
    """Absolute positions: sines and cosines of the row in the first half of the channels, of the column in the second
    half, with wavelengths from 2π to 10,000 · 2π (Vaswani et al. 2017)."""
    c, h, w = like.shape[1:]
    rows = _waves(-(-c // 2), h, like.device)[:, :, None].expand(-1, h, w)
    columns = _waves(c // 2, w, like.device)[:, None].expand(-1, h, w)
    return torch.cat([rows, columns])[None].to(like.dtype)


def _waves(channels: int, side: int, device: torch.device) -> Float[Tensor, "c side"]:
    """A sine in every even channel, and a cosine in the next, at the positions along an axis."""
    rate = [10_000 ** -(channel // 2 * 2 / channels) for channel in range(channels)]
    phase = [channel % 2 * math.pi / 2 for channel in range(channels)]
    rates, phases = torch.tensor([rate, phase], device=device, dtype=torch.float64)[:, :, None]
    return (torch.arange(side, device=device) * rates + phases).sin()
