"""What all attentions over a footprint have in common: each is computed as one operator (fused) or by its parts
(composed)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saprof.backends import Unsupported, choose, constant, run
from saprof.layers.choice import Size, faster_by_parts, why_by_parts
from saprof.layers.config import AttentionConfig, check_config
from saprof.layers.exactly import as_written, overridden
from saprof.operators import Operator, aggregation
from saprof.operators.footprint import Footprint, positive


@as_written
class LocalAttention(nn.Module):
    """Computes maps of `value_channels` channels from maps. Each family defines its weights, and the maps from which
    they are computed. The footprint may be a Footprint, a size, or text that `Footprint.parse` reads."""

    family: str | None = None
    """The family of the configs that the class takes; None for any."""

    def __init__(self, channels: int, footprint: Footprint | int | str, config: AttentionConfig) -> None:
        super().__init__()
        check_config(config, self.family)
        positive("channels", channels)
        self.value_channels: int
        self.footprint = Footprint.of(footprint)
        self.backend = config.backend
        self.attention = config.attention
        self.ran: str | None = None
        """How the last forward computed the attention, and on which backends."""
        self.why_composed: str | None = None
        """Why `auto` composed the attention in the last forward: what cannot be fused in this module, or its size."""

    def forward(self, x: Float[Tensor, "n c h w"], norm: nn.BatchNorm2d | None = None) -> Float[Tensor, "n v h w"]:
        """The attention over x, or over ReLU(norm(x)) if a norm is given, which `takes_norm` must allow."""
        maps = self.transform(x) if norm is None else self.transform_normed(norm, x)
        if x.is_meta:  # composed on the meta device, so that every part is counted under its own module
            return self.compose(*maps)
        where = maps[0].dtype, x.device.type
        size, gradient = self.size(maps[0]), _has_gradient(maps[0])
        small = (
            self.attention == "auto"
            and not torch.compiler.is_exporting()  # since the size may be that of a symbol
            and faster_by_parts(self.family, size, x.device.type, gradient)
        )
        # what is small is not checked for obstacles: that takes longer than a relation of few pixels
        backend = None if small else self.fused_backend(*where)
        if not torch.compiler.is_compiling():
            self.ran = " on ".join(self._planned(backend, *where))
            self.why_composed = None
            if small and self._kernel(*where)[0] is None:
                self.why_composed = why_by_parts(self.family, size, gradient)
            elif backend is None and self.attention == "auto":
                self.why_composed = self.obstacle()
        return self.compose(*maps) if backend is None else self.fuse(*maps, backend)

    def size(self, first: Float[Tensor, "n c h w"]) -> Size:
        """The size of the attention whose weights are computed from such maps."""
        rows, columns = self.footprint.output_size(*first.shape[-2:])
        return Size(first.shape[0], rows * columns, self.footprint.taps, first.shape[1])

    def plan(self, dtype: torch.dtype, device: str) -> tuple[str, str]:
        """How the attention is computed if it is not small: `fused` or `composed`, and its backends, joined by `+`.
        `saprof.layers.choice` defines what is small.

        Raises Unsupported if no backend can compute it, or if `attention="fused"` is not possible.
        """
        return self._planned(self.fused_backend(dtype, device), dtype, device)

    def _planned(self, backend: str | None, dtype: torch.dtype, device: str) -> tuple[str, str]:
        """The plan, given the backend that computes the fused attention, or None."""
        if backend is not None:
            return "fused", backend
        chosen = [choose(part, dtype, device, self.footprint, self.backend) for part in self.parts]
        return "composed", "+".join(dict.fromkeys(chosen))

    @constant
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
        """The reason why the attention cannot be fused there, or None and the backend that can compute it."""
        obstacle = self.obstacle()
        return (obstacle, "") if obstacle else self._kernel(dtype, device)

    def _kernel(self, dtype: torch.dtype, device: str) -> tuple[str | None, str]:
        """The reason why no backend computes the fused operator there, or None and the backend that does."""
        operator = self.fused_operator
        if operator is None:
            return "there is no fused attention", ""
        try:
            backend = choose(operator, dtype, device, self.footprint, self.backend)
        except Unsupported as error:
            return str(error), ""
        if backend == "unfold":
            return "unfold computes it by its parts", ""
        return None, backend

    def obstacle(self) -> str | None:
        """The reason why this module can only be composed, or None."""
        return overridden(self, "fuse", ("alpha", "compose"))

    @property
    def fused_operator(self) -> Operator | None:
        """The operator that computes the whole attention, if there is one."""
        return None

    @property
    def parts(self) -> Sequence[Operator]:
        """The operators that compute the attention one by one."""
        raise NotImplementedError

    def transform(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps that the weights are computed from, then the values."""
        raise NotImplementedError

    def takes_norm(self, norm: nn.Module, x: Tensor) -> bool:
        """Whether `transform_normed(norm, x)` gives the maps of `transform(ReLU(norm(x)))`."""
        return False

    def transform_normed(self, norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps of `transform(ReLU(norm(x)))`, without saving ReLU(norm(x))."""
        raise NotImplementedError

    def alpha(self, first: Tensor, second: Tensor, /) -> Float[Tensor, "n g k p"]:
        """The attention weights of every group, at every tap of every centre."""
        raise NotImplementedError

    def compose(self, first: Tensor, second: Tensor, values: Tensor, /) -> Float[Tensor, "n v h w"]:
        """The attention by its parts."""
        return run(aggregation, self.alpha(first, second), values, footprint=self.footprint, backend=self.backend)

    def fuse(self, first: Tensor, second: Tensor, values: Tensor, /, backend: str) -> Float[Tensor, "n v h w"]:
        """The attention as one operator."""
        raise NotImplementedError

    def weights(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n g k p"]:
        """The attention weights of every group, at every tap of every centre."""
        first, second, _ = self.transform(x)
        return self.alpha(first, second)

    def extra_repr(self) -> str:
        ran = f", ran {self.ran}" if self.ran else ""
        if self.why_composed:
            ran += f": {self.why_composed}"
        return f"footprint={self.footprint}, backend={self.backend}, attention={self.attention}{ran}"


def _has_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad
