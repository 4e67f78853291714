"""A SAN for evaluation only, whose batch norms are folded into the products behind them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saprof.backends import Unsupported, choose
from saprof.backends.fused import attention_of_rows, constants_of, folds, position_rows, rows_of_weights
from saprof.layers import PairwiseAttention, PatchwiseAttention, SelfAttentionBlock, Transition
from saprof.layers.block import pool
from saprof.layers.exactly import changed, eager, hooked, not_linear, not_norm, patched, plain
from saprof.models.san import SAN, Stage
from saprof.operators.attention import Step

DTYPES = (torch.float32, torch.float64)


class Clamp(nn.Module):
    """ReLU(s · x + t), written as s · y + t: y is max(x, −t / s) if s > 0, min(x, −t / s) if s < 0, and 0 if s = 0.

    The module computes y. The product behind it applies s and t, which are `scale` and `shift` (c).
    """

    lower: Tensor
    upper: Tensor | None

    def __init__(self, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        at = (-shift / scale).to(dtype)
        constant = (scale == 0) | (at.isinf() & (shift <= 0))
        infinity = torch.full_like(at, torch.inf)
        lower, upper = torch.where(scale > 0, at, -infinity), torch.where(scale > 0, infinity, at)
        lower, upper = (x.masked_fill(constant, 0)[:, None] for x in (lower, upper))
        self.scale, self.shift = scale.masked_fill(constant, 0), torch.where(constant, shift.relu(), shift)
        self.register_buffer("lower", lower, persistent=False)
        self.register_buffer("upper", None if upper.isinf().all() else upper, persistent=False)

    def forward(self, x: Float[Tensor, "n c p"], out: Tensor | None = None) -> Float[Tensor, "n c p"]:
        y = torch.maximum(x, self.lower, out=out)
        return y if self.upper is None else torch.minimum(y, self.upper, out=y)


class FoldedBlock(nn.Module):
    """x + linear(ReLU(BN(attention(ReLU(BN(x)))))) without a constant of each channel, written into x.

    The argument `constant` (c) is the constant that the input lacks, the attribute the one that the result lacks.
    """

    before: Clamp
    after: Clamp
    weight: Tensor
    bias: Tensor
    expand: Tensor

    def __init__(self, block: Any, constant: Tensor) -> None:
        super().__init__()
        attention: Any = block.attention
        dtype = block.expand.weight.dtype
        scale, shift = _affine(block.norm_in)
        before = Clamp(scale, shift + scale * constant, dtype)
        phi, psi, beta = (_with_bias(layer, before) for layer in (attention.phi, attention.psi, attention.beta))
        steps = [Step(*_affine(norm), weight.double()) for norm, weight in attention.steps()]
        bias = attention.gamma[-1].bias.double()
        constants = constants_of(attention.fused_operator, steps, bias, attention.footprint)
        rows = rows_of_weights(attention.fused_operator, phi, psi, steps[0])
        is_mean = attention.family == "pairwise" and not attention.footprint.drops_taps
        # the weights of a mean have the sum 1, so the bias of β passes through
        left = beta[:, -1].clone() if is_mean else torch.zeros_like(beta[:, -1])
        beta[:, -1] -= left
        scale, shift = _affine(block.norm_out)
        after = Clamp(scale, shift + scale * left, dtype)
        expand = _with_bias(block.expand, after)
        self.before, self.after = before, after
        self.rows, self.values = [len(x) for x in rows], len(beta)
        joined = torch.cat([*rows, beta])
        weights = {"weight": joined[:, :-1], "bias": joined[:, -1:], "expand": expand[:, :-1]}
        weights |= {f"constant_{name}": x for name, x in constants.tensors.items()}
        for name, x in weights.items():
            self.register_buffer(name, x.to(dtype).contiguous(), persistent=False)
        self.names, self.constants = [*constants.tensors], constants._replace(tensors={})
        self.constant = constant + expand[:, -1]
        self.attention = [attention]  # in a list, since it is no part of this module
        self._positions: tuple[Any, Any] = (None, None)

    def forward(self, x: Float[Tensor, "n c p"], size: tuple[int, int], backend: str) -> Float[Tensor, "n c p"]:
        y = self.after_attention(self.before(x), size, backend)
        return torch.baddbmm(x, self.expand.expand(len(x), -1, -1), y, out=x)

    def after_attention(self, x: Float[Tensor, "n c p"], size: tuple[int, int], backend: str) -> Tensor:
        offset, map_, beta = self.maps(x)
        if (more := self.positions(size, x)) is not None:
            offset, map_ = (
                torch.cat([a, b.expand(len(x), -1, -1)], 1) for a, b in zip((offset, map_), more, strict=True)
            )
        constants = self.constants._replace(tensors={name: getattr(self, f"constant_{name}") for name in self.names})
        y = attention_of_rows(backend, constants, offset, map_.unflatten(2, size), beta.unflatten(2, size))
        return self.after(y, out=y)

    def maps(self, x: Float[Tensor, "n c p"]) -> list[Tensor]:
        """The rows at the centres, those at the taps, and β, each contiguous."""
        if len(x) == 1:
            joined = torch.addmm(self.bias, self.weight, x[0])[None]
            return [*joined.split([*self.rows, self.values], 1)]
        parts = zip(*(x.split([*self.rows, self.values]) for x in (self.weight, self.bias)), strict=True)
        return [torch.baddbmm(bias, weight.expand(len(x), -1, -1), x) for weight, bias in parts]

    def positions(self, size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor] | None:
        """The rows of the positions, which are kept for the last size of map."""
        attention = self.attention[0]
        if attention.encoding == "none":
            return None
        key, found = self._positions
        if key != (size, like.dtype):
            norm = _step(attention.gamma[0], like.dtype)
            positions = attention.positions(like.new_empty(1, 0, *size))
            found = position_rows(attention.fused_operator, positions, norm)
            if all(type(x) is Tensor for x in found):  # not the fake tensors that a mode makes of any tensors
                self._positions = (size, like.dtype), found
        return found


class FoldedStage(nn.Module):
    """The product of a transition, then blocks. The norm at the end adds the constant that the blocks leave out."""

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, stage: Any) -> None:
        super().__init__()
        linear = stage.transition.linear
        constant, blocks = linear.weight.new_zeros(linear.out_channels, dtype=torch.float64), []
        for block in stage.blocks:
            blocks.append(FoldedBlock(block, constant))
            constant = blocks[-1].constant
        self.blocks = nn.ModuleList(blocks)
        self.pools = stage.transition.stride == 2
        scale, shift = _affine(stage.norm)
        self.grows = bool((scale >= 0).all())
        """Whether no scale is negative, so that norm and ReLU may run after the max pool."""
        weights = {"weight": linear.weight.flatten(1), "scale": scale, "shift": shift + scale * constant}
        for name, x in weights.items():
            x = x if name == "weight" else x[:, None, None]
            self.register_buffer(name, x.to(linear.weight.dtype).clone(), persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"], backends: list[str]) -> Float[Tensor, "n d h w"]:
        size = x.shape[2], x.shape[3]
        x = torch.bmm(self.weight.expand(len(x), -1, -1), x.flatten(2))
        for block, backend in zip(self.blocks, backends, strict=True):
            x = block(x, size, backend)
        return x.unflatten(2, size)

    def normed(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
        """ReLU(norm(x)), written into x."""
        return torch.addcmul(self.shift, x, self.scale, out=x).relu_()


class FoldedStem(nn.Module):
    """Linear layer, norm and ReLU, then the pool of the first transition if that has one.

    ReLU and the bias follow the pool. No map has the size of the image.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, stem: Any, pools: bool) -> None:
        super().__init__()
        layer, norm, _ = stem
        scale, shift = _affine(norm)
        weight = scale[:, None] * layer.weight.double().flatten(1)
        if layer.bias is not None:
            shift = shift + scale * layer.bias
        self.pools = pools
        for name, x in {"weight": weight, "bias": shift[:, None]}.items():
            self.register_buffer(name, x.to(layer.weight.dtype), persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        step = 2 if self.pools else 1
        h, w = (side // step for side in x.shape[2:])
        largest: Any = None
        weight = self.weight.expand(len(x), -1, -1)
        for top in range(step):
            for left in range(step):
                product = torch.bmm(weight, x[:, :, top : h * step : step, left : w * step : step].flatten(2))
                largest = product if largest is None else torch.maximum(largest, product, out=largest)
        return largest.add_(self.bias).relu_().unflatten(2, (h, w))


class Seen:
    """What the folded weights were computed from. Copied or unpickled, it is nothing."""

    def __init__(self, network: SAN | None) -> None:
        self.network = network
        self.modules = [] if network is None else [*network.stem.modules(), *network.stages.modules()]
        self.parts = [] if network is None else [network.stem, network.stages]
        self.kinds = [*map(type, self.modules)]
        self.facts = [dict(_facts(module)) for module in self.modules]
        self.held, self.names = _held(self.modules)
        self.tensors = [x for x in self.held if isinstance(x, Tensor)]
        self.states = [*map(_state, self.tensors)]

    def __reduce__(self) -> Any:
        return Seen, (None,)

    def unchanged(self, network: SAN) -> bool:
        """Whether in this network no module was replaced, hooked or set otherwise, and no tensor replaced or written
        to, other than in ways that torch does not count: through its `data` or NumPy, or by a fused optimizer."""
        if self.network is not network or any(map(hooked, self.modules)):
            return False
        held, names = _held(self.modules)
        return (
            network.stem is self.parts[0]
            and network.stages is self.parts[1]
            and [*map(type, self.modules)] == self.kinds
            and [*map(id, held)] == [*map(id, self.held)]
            and names == self.names
            and [*map(_state, self.tensors)] == self.states
            and all(map(_equal, map(_facts, self.modules), self.facts))
            and not any(map(patched, set(self.kinds)))
        )


_UNREAD = {"ran", "why_composed"}


def _facts(module: nn.Module) -> Mapping[str, Any]:
    """The settings of a module. Changes inside of a dict that it holds are not seen here; see `_held` and `hooked`."""
    own = vars(module)
    return own if own.keys().isdisjoint(_UNREAD) else {name: x for name, x in own.items() if name not in _UNREAD}


def _equal(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    try:
        return now == before
    except (RuntimeError, ValueError):  # another tensor or array, whose comparison is no truth value
        return False


def _held(modules: Sequence[nn.Module]) -> tuple[list[Any], list[tuple[str, ...]]]:
    """The dicts of the modules for parameters, buffers and modules, with what they hold; and the names in each dict."""
    dicts = [held for module in modules for held in (module._parameters, module._buffers, module._modules)]
    return [*dicts, *chain.from_iterable(held.values() for held in dicts)], [*map(tuple, dicts)]


def _state(x: Tensor) -> tuple[int, int, tuple[int, ...]]:
    return x._version, x.data_ptr(), x.stride()


class FoldedSAN(SAN):
    """A SAN with folded weights beside its own.

    The folded weights are used for images of float32 or float64 on a CPU, without gradients. The modules themselves
    compute everything else, such as what a compiler or an exporter traces, and the maps under autocast.
    """

    folded: Any
    folded_stem: Any
    seen: Seen

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldedSAN:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy({name: x for name, x in vars(self).items() if name != "seen"}, memo)
        copied.seen = Seen(copied if self.seen.unchanged(self) else None)
        return copied

    def features(self, x: Float[Tensor, "n c h w"]) -> list[Tensor]:
        backends = self.backends(x)
        return super().features(x) if backends is None else self.maps(x, backends, every=True)

    def forward_features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        backends = self.backends(x)
        return super().forward_features(x) if backends is None else self.maps(x, backends, every=False)[-1]

    def maps(self, x: Float[Tensor, "n c h w"], backends: list[list[str]], every: bool) -> list[Tensor]:
        """The map of every stage, or of the last one."""
        x, found, last = self.folded_stem(x), [], len(self.folded) - 1
        for number, (stage, names) in enumerate(zip(self.folded, backends, strict=True)):
            x = stage(x, names)
            pools = number < last and self.folded[number + 1].pools
            first = pools and stage.grows and not every  # the pool leaves fewer values to the norm
            x = stage.normed(pool(x) if first else x)
            if every or number == last:
                found.append(x)
            x = pool(x) if pools and not first else x
        return found

    def backends(self, x: Tensor) -> list[list[str]] | None:
        """The backend of each attention, by stage; None if the modules themselves are to compute these images."""
        if not self._takes(x) or not self.seen.unchanged(self):
            return None
        try:
            return [[_backend(block.attention[0], x) for block in stage.blocks] for stage in self.folded]
        except Unsupported:
            return None

    def _takes(self, x: Tensor) -> bool:
        weight = self.folded_stem.weight
        return (
            eager(x)
            and not self.training
            and weight.is_cpu
            and x.dtype == weight.dtype
            and x.dim() == 4
            and x.shape[1] == weight.shape[1]
            and len(x) > 0
            and min(x.shape[2:]) >= 1 + self.folded_stem.pools
            and not (torch.is_grad_enabled() and self._learns(x))
        )

    def _learns(self, x: Tensor) -> bool:
        return x.requires_grad or any(p.requires_grad for p in self.parameters())


def _backend(attention: Any, x: Tensor) -> str:
    """The backend that computes the attention as one operator."""
    backend = choose(attention.fused_operator, x.dtype, x.device.type, attention.footprint, attention.backend)
    if attention.attention == "composed" or backend == "unfold":
        raise Unsupported("the attention is composed")
    attention.ran = f"fused on {backend}"
    return backend


def fold(network: SAN, owners: Mapping[Any, int]) -> list[nn.Module] | None:
    """The folded stem, then the folded stages of a network as saprof builds it, in evaluation mode; None if anything in
    it was changed."""
    inside = [*network.modules()][1:]
    if not all(owners[module] == 1 for module in inside) or any(map(hooked, inside)) or not _whole(network):
        return None
    with torch.no_grad():
        stages = [FoldedStage(stage) for stage in network.stages]
        return [FoldedStem(network.stem, stages[0].pools), *stages]


def become_folded(network: SAN, folded: list[nn.Module]) -> None:
    """Make the network use these weights."""
    network.__class__ = FoldedSAN
    assert isinstance(network, FoldedSAN)
    network.folded_stem, network.folded = folded[0], nn.ModuleList(folded[1:])
    network.eval()
    network.seen = Seen(network)


def _whole(network: Any) -> bool:
    stem, inputs, width = network.stem, network.config.in_channels, network.config.channels[0]
    tensors = [x for x in (*network.parameters(), *network.buffers()) if x.is_floating_point()]
    return (
        len({(x.dtype, x.device) for x in tensors}) == 1
        and not any(x.is_inference() for x in tensors)  # which have no versions
        and tensors[0].dtype in DTYPES
        and tensors[0].device.type == "cpu"
        and changed(stem, nn.Sequential) is None
        and len(stem) == 3
        and not_linear(stem[0], inputs, width) is None
        and _in_evaluation(stem[1], width)
        and changed(stem[2], nn.ReLU) is None
        and changed(network.stages, nn.Sequential) is None
        and all(_whole_stage(*each) for each in zip(network.stages, (width, *network.config.channels), strict=False))
    )


def _whole_stage(stage: Any, inputs: int) -> bool:
    if not plain(stage, Stage) or not plain(stage.transition, Transition):
        return False
    channels = getattr(stage.transition.linear, "out_channels", 0)
    return (
        not_linear(stage.transition.linear, inputs, channels, bias=False) is None
        and _in_evaluation(stage.norm, channels)
        and changed(stage.blocks, nn.Sequential) is None
        and all(_whole_block(block, channels) for block in stage.blocks)
    )


def _whole_block(block: Any, channels: int) -> bool:
    if not plain(block, SelfAttentionBlock) or not plain(block.attention, PairwiseAttention, PatchwiseAttention):
        return False
    attention: Any = block.attention
    if (
        attention.attention == "composed"
        or attention.transformations is not None
        or attention.psi is None
        or attention.beta is None
    ):
        return False
    values, width = attention.value_channels, getattr(attention.phi, "out_channels", 0)
    return (
        attention.obstacle() is None
        and folds(attention.fused_operator, attention.footprint)
        and all(not_linear(layer, channels, width, bias=True) is None for layer in (attention.phi, attention.psi))
        and not_linear(attention.beta, channels, values, bias=True) is None
        and not_linear(block.expand, values, channels, bias=True) is None
        and _in_evaluation(block.norm_in, channels)
        and _in_evaluation(block.norm_out, values)
        and all(_in_evaluation(norm, norm.num_features) for norm, _ in attention.steps())
        and getattr(attention, "taps", attention.footprint.taps) == attention.footprint.taps
    )


def _in_evaluation(norm: nn.Module, channels: int) -> bool:
    return not_norm(norm, channels) is None and not norm.training and norm._buffers.get("running_mean") is not None


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """The scale and shift of a batch norm in evaluation mode, in float64."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -scale * norm.running_mean
    return scale, shift if norm.bias is None else shift + norm.bias


def _step(norm: Any, dtype: torch.dtype) -> Any:
    """A batch norm of γ, without the linear layer after it."""
    scale, shift = _affine(norm)
    return Step(scale.to(dtype), shift.to(dtype), None)


def _with_bias(layer: Any, before: Clamp) -> Float[Tensor, "o c+1"]:
    """The weight of a linear layer with the affine part of `before` folded in, and its bias as one more column."""
    weight = layer.weight.double().flatten(1)
    bias = layer.bias.double() + weight @ before.shift
    return torch.cat([weight * before.scale, bias[:, None]], 1)
