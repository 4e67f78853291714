"""A network for evaluation only, with batch norms folded into neighbouring layers, and φ, ψ and β in one layer."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from saprof.layers import PairwiseAttention, PatchwiseAttention, SelfAttentionBlock, VectorAttention
from saprof.layers.exactly import changed, hooked, not_linear, not_norm, plain
from saprof.models.build import EXPECTED, Model
from saprof.models.folded import become_folded, fold
from saprof.models.resnet import Bottleneck, ResNet
from saprof.models.san import SAN
from saprof.models.sasa import SASA


def optimize_for_inference(model: Model) -> Model:
    """A copy of `model` in evaluation mode that gives the same logits, up to rounding, in less time.

    A batch norm after a convolution is folded into it; φ, ψ and β become one layer; where the attention is a weighted
    mean (pairwise, no tap dropped), the batch norm after the attention is folded into β. The attention itself runs as
    `attention=` and `backend=` say. A layer that was replaced, parametrized or hooked stays as it is. The copy has
    other parameters, without gradients, so it cannot be saved or trained. A SAN in which nothing was changed, and whose
    relation allows it, also gets folded weights, which take as much memory as its own. ValueError if the model is not
    one of saprof's, or cannot be copied.
    """
    if not isinstance(model, Model):
        raise ValueError(f"cannot optimize a {type(model).__name__}; expected a {EXPECTED}, not wrapped in anything")
    try:
        model = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"cannot copy this {type(model).__name__}: {str(error).partition(chr(10))[0]}") from None
    model.eval().requires_grad_(False)  # batch norms can be folded in evaluation mode only
    owners = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    networks = [module for module in model.modules() if isinstance(module, SAN) and _runs_as_written(module)]
    folded = [(network, fold(network, owners)) for network in networks]
    for module in filter(_runs_as_written, [*model.modules()]):
        match module:
            case SAN(stem=nn.Sequential() as stem):
                _fold_first(stem)
            case ResNet(conv1=nn.Conv2d()):
                _fold(module, "conv1", "bn1")
            case Bottleneck():
                for number in (1, 2, 3):
                    _fold(module, f"conv{number}", f"bn{number}")
                if isinstance(module.downsample, nn.Sequential):
                    _fold_first(module.downsample)
            case SelfAttentionBlock(attention=VectorAttention(transformations=None) as attention):
                if not _runs_as_written(attention):
                    continue
                if owners[attention] == 1:
                    _fold_behind(module, attention)
                _join(attention)
    model.eval()  # also the modules that replaced others
    for network, weights in folded:
        if weights is not None:
            become_folded(network, weights)
    return model


def _runs_as_written(module: nn.Module) -> bool:
    """Whether the class of the module is exactly one of saprof's, and no method was replaced."""
    return plain(module, *_WRITTEN)


_WRITTEN = (SAN, ResNet, SASA, Bottleneck, SelfAttentionBlock, PairwiseAttention, PatchwiseAttention)


class Transformations(nn.Module):
    """φ(x), ψ(x) and β(x), computed by one layer."""

    def __init__(self, attention: VectorAttention) -> None:
        super().__init__()
        layers = [attention.phi, attention.psi, attention.beta]
        self.linear = _joined([layer for layer in layers if layer is not None])
        self.widths = [layer.out_channels for layer in layers if layer is not None]
        self.places = [0, int(attention.psi is not None), len(self.widths) - 1 if attention.beta is not None else 0]

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Tensor, ...]:
        parts = self.linear(x).split(self.widths, dim=1)
        return tuple(parts[place] for place in self.places)


def _join(attention: VectorAttention) -> None:
    """Compute φ, ψ and β by one layer, if they are three linear layers."""
    layers = [layer for layer in (attention.phi, attention.psi, attention.beta) if layer is not None]
    inputs = getattr(layers[0], "in_channels", 0)
    if any(not_linear(layer, inputs, getattr(layer, "out_channels", 0), bias=True) for layer in layers):
        return
    if len({(layer.weight.dtype, layer.weight.device) for layer in layers}) == 1:
        attention.transformations = Transformations(attention)
        del attention.phi, attention.psi, attention.beta


def _joined(layers: list[nn.Conv2d]) -> nn.Conv2d:
    """One layer with the outputs of all layers, concatenated."""
    joined = copy.deepcopy(layers[0])
    joined.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([layer.bias for layer in layers if layer.bias is not None]), False)
    joined.out_channels = len(joined.weight)
    return joined


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    """Fold a batch norm into the convolution before it, if both are as torch built them."""
    before, after = getattr(module, convolution), getattr(module, norm)
    if changed(before, nn.Conv2d) or not_norm(after, len(before.weight)) or after.training:
        return
    if after.running_mean is not None and after.running_mean.dtype == before.weight.dtype:
        setattr(module, convolution, fuse_conv_bn_eval(before, after))
        setattr(module, norm, nn.Identity())


def _fold_first(layers: nn.Sequential) -> None:
    """Fold the second of these layers into the first."""
    if len(layers) > 1 and changed(layers, nn.Sequential) is None:
        _fold(layers, *list(layers._modules)[:2])


def _fold_behind(block: SelfAttentionBlock, attention: VectorAttention) -> None:
    """Fold the batch norm after the attention into β: the weighted mean of s · β_j + t over the taps is s times that of
    β_j, plus t."""
    is_mean = attention.relation.family == "pairwise" and not attention.footprint.drops_taps
    if is_mean and attention.beta is not None and not hooked(attention):
        pair = nn.Sequential(attention.beta, block.norm_out)
        _fold_first(pair)
        attention.add_module("beta", pair[0])
        block.norm_out = pair[1]
