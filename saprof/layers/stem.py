"""The stems of stand-alone networks: from images of 4·h × 4·w pixels to the map of the first stage (SASA Sec. 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers.exactly import as_written, not_linear, overridden
from saprof.layers.parts import divide, linear

STEMS = ("convolution", "attention", "spatial_attention", "convolution_values")
"""ResNet's stem; then attention in blocks with plain values, with a mixture of values that depends on the position in
the block (the paper's), and with the values of a 4 × 4 convolution (SASA Table 7)."""
BLOCK = 4
"""The side of the blocks, and of the max pool after them."""
HEADS = 4
MIXTURE = 4
"""The number of value matrices in the mixture."""


@as_written
class AttentionStem(nn.Module):
    """Attention of every pixel to the 4 × 4 block that it is in, batch norm, 4 × 4 max pool.

    Relative rows and columns range from −3 to 3. Heads are side by side here, not interleaved. Each block is a separate
    4 × 4 map from the logits to the pool, so nothing is copied between layouts; the result of batch norm does not
    change.
    """

    def __init__(self, outputs: int, values: str, inputs: int = 3) -> None:
        super().__init__()
        self.inputs = inputs
        head = divide("stem channels", outputs, "2 · heads of the stem", 2 * HEADS) * 2
        self.query, self.key = (linear(inputs, outputs, bias=False) for _ in range(2))
        self.value = {
            "attention": lambda: ConvolutionValues(outputs, 1, inputs),
            "spatial_attention": lambda: SpatialValues(outputs, inputs),
            "convolution_values": lambda: ConvolutionValues(outputs, BLOCK, inputs),
        }[values]()
        self.row_embedding = nn.Parameter(torch.randn(HEADS, head // 2, 2 * BLOCK - 1))
        self.column_embedding = nn.Parameter(torch.randn(HEADS, head // 2, 2 * BLOCK - 1))
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h/4 w/4"]:
        n, h, w = check_blocks(x)
        fast = not x.is_meta and self.obstacle() is None
        alpha = (self.logits(x) if fast else self.define(x)).softmax(-1)
        y = self.value(x).unflatten(1, (HEADS, -1)) @ alpha.transpose(-1, -2)  # b heads d i
        y = self.bn(y.flatten(1, 2).unflatten(-1, (BLOCK, BLOCK))).amax((-1, -2))  # b c
        return y.view(n, h, w, -1).permute(0, 3, 1, 2).contiguous()

    def obstacle(self) -> str | None:
        """The reason why the logits must be computed as they are defined, or None."""
        if reason := overridden(self, "logits", ("define",)):
            return reason
        outputs = self.bn.num_features
        for name, layer in (("query", self.query), ("key", self.key)):
            if reason := not_linear(layer, self.inputs, outputs, bias=False):
                return f"{name} {reason}"
        return None

    def extra_repr(self) -> str:
        return "" if (reason := self.obstacle()) is None else f"as defined: {reason}"

    def logits(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "b heads i j"]:
        """q_iᵀ k_j + q_iᵀ r_{j−i} = x_iᵀ (W_qᵀ W_k) x_j + x_iᵀ (W_qᵀ r_{j−i}): pixels have few channels, so this
        needs no maps of queries and keys, which have many more channels."""
        pixels = apart(x)  # b inputs j
        query, key = (layer.weight.view(HEADS, -1, self.inputs) for layer in (self.query, self.key))
        product = (query.transpose(1, 2) @ key).transpose(0, 1).flatten(1)  # inputs heads·inputs
        left = (
            (pixels.transpose(1, 2) @ product).unflatten(-1, (HEADS, self.inputs)).transpose(1, 2)
        )  # b heads i inputs
        content = (left.flatten(1, 2) @ pixels).unflatten(1, (HEADS, -1))
        relative = (query.transpose(1, 2)[:, None] @ self.relative()).permute(1, 2, 0, 3)  # i inputs heads j
        position = (pixels.permute(2, 0, 1) @ relative.flatten(2)).unflatten(-1, (HEADS, -1))  # i b heads j
        return content + position.permute(1, 2, 0, 3)

    def define(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "b heads i j"]:
        """The same logits as the paper defines and counts them."""
        query, key = (apart(layer(x)).unflatten(1, (HEADS, -1)) for layer in (self.query, self.key))  # b heads d i
        position = query.permute(1, 3, 0, 2) @ self.relative()  # heads i b j
        return query.transpose(-1, -2) @ key + position.permute(2, 0, 1, 3)

    def relative(self) -> Float[Tensor, "heads i d j"]:
        """r_{j−i} for every two pixels of a block: the first half of a head's channels embeds the row, the second half
        the column."""
        side = BLOCK, BLOCK, BLOCK, BLOCK
        rows, columns = (
            torch.stack([table[..., BLOCK - 1 - i : 2 * BLOCK - 1 - i] for i in range(BLOCK)], -2)
            for table in (self.row_embedding, self.column_embedding)
        )  # heads d/2 i j, of one axis each
        rows = rows[:, :, :, None, :, None].expand(*rows.shape[:2], *side)
        columns = columns[:, :, None, :, None, :].expand(*columns.shape[:2], *side)
        return torch.cat([rows, columns], 1).flatten(4).flatten(2, 3).transpose(1, 2)


@as_written
class SpatialValues(nn.Module):
    """v_ab = Σ_m p(a, b, m) W_m x_ab, with p(a, b, m) = softmax_m((row_a + column_b)ᵀ ν_m) at row a and column b of a
    block (SASA Sec. 3.2).

    The matrices are mixed rather than the values, v_ab = (Σ_m p(a, b, m) W_m) x_ab, which takes a fraction of the work
    and memory. On the meta device the definition runs, since the paper counts it.
    """

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.values = linear(inputs, MIXTURE * outputs, bias=False)
        self.row, self.column, self.mixture = (
            nn.Parameter(torch.randn(count, outputs)) for count in (BLOCK, BLOCK, MIXTURE)
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "b c j"]:
        if x.is_meta or self.obstacle() is not None:
            return self.define(x)
        mixed = self.mixture_weights() @ self.values.weight.view(MIXTURE, -1)
        matrices = mixed.unflatten(-1, (-1, self.inputs))  # j c inputs
        return (apart(x).permute(2, 0, 1) @ matrices.transpose(1, 2)).permute(1, 2, 0)

    def obstacle(self) -> str | None:
        """The reason why the values must be computed as they are defined, or None."""
        reason = not_linear(self.values, self.inputs, MIXTURE * self.row.shape[1], bias=False)
        return reason and f"values {reason}"

    def extra_repr(self) -> str:
        return "" if (reason := self.obstacle()) is None else f"as defined: {reason}"

    def define(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "b c j"]:
        """Computes the values of all matrices, then their mixture."""
        every = apart(self.values(x)).permute(2, 0, 1).unflatten(-1, (MIXTURE, -1)).transpose(-1, -2)  # j b c m
        return (every.flatten(1, 2) @ self.mixture_weights()[..., None]).view(every.shape[:-1]).permute(1, 2, 0)

    def mixture_weights(self) -> Float[Tensor, "j m"]:
        return ((self.row[:, None] + self.column) @ self.mixture.T).softmax(-1).flatten(0, 1)


@as_written
class ConvolutionValues(nn.Conv2d):
    """Values of `size` × `size` pixels, with one more row and column after the centre than before it."""

    def __init__(self, outputs: int, side: int, inputs: int) -> None:
        super().__init__(inputs, outputs, side, bias=False)

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "b c j"]:
        side = self.kernel_size[0]
        before, after = (side - 1) // 2, side // 2
        return apart(super().forward(F.pad(input, (before, after, before, after))))


def check_blocks(x: Tensor) -> tuple[int, int, int]:
    """The number of images, and of rows and columns of blocks in each. Raises ValueError unless the blocks divide the
    image."""
    n, _, h, w = x.shape
    for axis, side in (("h", h), ("w", w)):
        if side % BLOCK:
            raise ValueError(
                f"attention stem: axis {axis} of the image is {side}; expected a multiple of {BLOCK}, the side of "
                "its blocks"
            )
    return n, h // BLOCK, w // BLOCK


def apart(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "b c i"]:
    """From images to blocks, channels and positions in the block."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, BLOCK * BLOCK)
