"""The stems of stand-alone networks: what turns 3 × 4·h × 4·w pixels into the first stage's map (SASA Sec. 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers.parts import divide, linear

STEMS = ("convolution", "attention", "spatial_attention", "convolution_values")
"""ResNet's, then attention in blocks with plain values, with a mixture of values that knows where in the block a pixel
is (the paper's), and with values of a 4 × 4 convolution (SASA Table 7)."""
BLOCK = 4
"""Side of the blocks, and of the max pool behind them."""
HEADS = 4
MIXTURE = 4
"""Value matrices of the mixture."""


class AttentionStem(nn.Module):
    """Attention of every pixel to the 4 × 4 block that it is in, batch norm, 4 × 4 max pool.

    Relative rows and columns reach from −3 to 3. Heads are side by side here, where no operator shares them.
    """

    offset: Tensor

    def __init__(self, outputs: int, values: str) -> None:
        super().__init__()
        head = divide("stem channels", outputs, "2 · heads of the stem", 2 * HEADS) * 2
        self.query, self.key = (linear(3, outputs, bias=False) for _ in range(2))
        self.value = {
            "attention": lambda: linear(3, outputs, bias=False),
            "spatial_attention": lambda: SpatialValues(outputs),
            "convolution_values": lambda: SameConvolution(outputs),
        }[values]()
        self.row_embedding = nn.Parameter(torch.randn(HEADS, head // 2, 2 * BLOCK - 1))
        self.column_embedding = nn.Parameter(torch.randn(HEADS, head // 2, 2 * BLOCK - 1))
        self.bn = nn.BatchNorm2d(outputs)
        at = torch.arange(BLOCK)
        self.register_buffer("offset", (at[None] - at[:, None]) + BLOCK - 1, persistent=False)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h/4 w/4"]:
        size = check_blocks(x)
        query, key, value = (blocks(each) for each in (self.query(x), self.key(x), self.value(x)))  # heads i b d
        content = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)  # heads b i j
        position = (query @ self.relative()).transpose(1, 2)
        alpha = (content + position).softmax(-1)
        y = alpha @ value.transpose(1, 2)  # heads b i d
        return F.max_pool2d(self.bn(unblocks(y, size)), BLOCK)

    def relative(self) -> Float[Tensor, "heads i d j"]:
        """r_{j−i} of every two pixels of a block: half of a head's channels embed the row, half the column."""
        side = BLOCK, BLOCK, BLOCK, BLOCK
        at = self.offset.flatten()
        rows, columns = (
            table.index_select(-1, at).unflatten(-1, (BLOCK, BLOCK))
            for table in (self.row_embedding, self.column_embedding)
        )  # heads d/2 i j, of one axis each
        rows = rows[:, :, :, None, :, None].expand(*rows.shape[:2], *side)
        columns = columns[:, :, None, :, None, :].expand(*columns.shape[:2], *side)
        return torch.cat([rows, columns], 1).flatten(4).flatten(2, 3).transpose(1, 2)


class SpatialValues(nn.Module):
    """v_ab = Σ_m p(a, b, m) W_m x_ab, with p(a, b, m) = softmax_m((row_a + column_b)ᵀ ν_m) at row a and column b of a
    block (SASA Sec. 3.2).

    The mixture is one of matrices, v_ab = (Σ_m p(a, b, m) W_m) x_ab, a fraction of the work and of the memory. What has
    shapes alone goes by the definition, since that is what the paper counts.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.values = linear(3, MIXTURE * outputs, bias=False)
        self.row, self.column, self.mixture = (
            nn.Parameter(torch.randn(count, outputs)) for count in (BLOCK, BLOCK, MIXTURE)
        )

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h w"]:
        if x.is_meta:
            return self.define(x)
        matrices = self.share() @ self.values.weight.view(MIXTURE, -1)  # a b c·3
        pixels = by_place(x).flatten(0, 1).flatten(1, 3)
        values = pixels @ matrices.view(BLOCK * BLOCK, -1, 3).transpose(1, 2)
        return from_place(values, x)

    def define(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h w"]:
        """The values of all matrices, and then their mixture."""
        every = by_place(self.values(x)).unflatten(-1, (MIXTURE, -1)).transpose(-1, -2)  # a b n y x c m
        return from_place(every.flatten(2, 5) @ self.share()[..., None], x)

    def share(self) -> Float[Tensor, "a b m"]:
        return ((self.row[:, None] + self.column) @ self.mixture.T).softmax(-1)


def by_place(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "a b n y x c"]:
    """By row and column in the block, then image, and row and column of the block."""
    n, c, h, w = x.shape
    return x.view(n, c, h // BLOCK, BLOCK, w // BLOCK, BLOCK).permute(3, 5, 0, 2, 4, 1)


def from_place(values: Tensor, like: Float[Tensor, "n _ h w"]) -> Float[Tensor, "n c h w"]:
    """The map of which values are `by_place`."""
    n, _, h, w = like.shape
    values = values.reshape(BLOCK, BLOCK, n, h // BLOCK, w // BLOCK, -1)
    return values.permute(2, 5, 3, 0, 4, 1).reshape(n, -1, h, w)


class SameConvolution(nn.Conv2d):
    """A 4 × 4 convolution whose output is as large as its input: one more column and row after the centre than
    before it."""

    def __init__(self, outputs: int) -> None:
        super().__init__(3, outputs, BLOCK, bias=False)

    def forward(self, input: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h w"]:
        before = (BLOCK - 1) // 2
        return super().forward(F.pad(input, (before, BLOCK - 1 - before, before, BLOCK - 1 - before)))


def check_blocks(x: Tensor) -> tuple[int, int]:
    """The map's size; ValueError unless blocks divide it."""
    h, w = x.shape[-2:]
    for axis, side in (("h", h), ("w", w)):
        if side % BLOCK:
            raise ValueError(
                f"attention stem: axis {axis} of the image is {side}; expected a multiple of {BLOCK}, the side of "
                "its blocks"
            )
    return h, w


def blocks(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "heads i b d"]:
    """By head, place in the block, and block."""
    c = x.shape[1]
    places = by_place(x).unflatten(-1, (HEADS, c // HEADS)).movedim(-2, 0)  # heads a b n y x d
    return places.reshape(HEADS, BLOCK * BLOCK, -1, c // HEADS)


def unblocks(y: Float[Tensor, "heads b i d"], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
    """What `blocks` took apart, with the place in the block behind the block."""
    h, w = size
    heads, d = y.shape[0], y.shape[-1]
    y = y.view(heads, -1, h // BLOCK, w // BLOCK, BLOCK, BLOCK, d)
    return y.permute(1, 0, 6, 2, 4, 3, 5).reshape(-1, heads * d, h, w)
