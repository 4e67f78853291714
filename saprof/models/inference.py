"""A network for evaluation only, with batch norms folded into neighbouring layers, and φ, ψ and β in one layer."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from saprof.layers import SelfAttentionBlock, VectorAttention
from saprof.models.build import EXPECTED, Model
from saprof.models.resnet import Bottleneck, ResNet
from saprof.models.san import SAN


def optimize_for_inference(model: Model) -> Model:
    """A copy of `model` in evaluation mode that gives the same logits, up to rounding, in less time.

    A batch norm after a convolution is folded into it; φ, ψ and β become one layer; where the attention is a weighted
    mean (pairwise, no tap dropped), the batch norm after the attention is folded into β. The attention itself runs as
    `attention=` and `backend=` say. The copy has other parameters, without gradients, so it cannot be saved or trained.
    ValueError if the model is not one of saprof's.
    """
    if not isinstance(model, Model):
        raise ValueError(f"cannot optimize a {type(model).__name__}; expected a {EXPECTED}, not wrapped in anything")
    model = copy.deepcopy(model).eval().requires_grad_(False)  # batch norms can be folded in evaluation mode only
    for module in model.modules():
        match module:
            case SAN():
                convolution, norm, relu = module.stem
                module.stem = nn.Sequential(_folded(convolution, norm), relu)
            case ResNet(conv1=nn.Conv2d()):
                _fold(module, "conv1", "bn1")
            case Bottleneck():
                for number in (1, 2, 3):
                    if isinstance(getattr(module, f"conv{number}"), nn.Conv2d):
                        _fold(module, f"conv{number}", f"bn{number}")
                if module.downsample is not None:
                    module.downsample = nn.Sequential(_folded(*module.downsample))
            case SelfAttentionBlock(attention=VectorAttention() as attention):
                _fold_behind(module, attention)
                _join(attention)
    return model.eval()  # also the modules that replaced others


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
    attention.transformations = Transformations(attention)
    del attention.phi, attention.psi, attention.beta


def _joined(layers: list[nn.Conv2d]) -> nn.Conv2d:
    """One layer with the outputs of all layers, concatenated."""
    joined = copy.deepcopy(layers[0])
    joined.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([layer.get_parameter("bias") for layer in layers]), requires_grad=False)
    joined.out_channels = len(joined.weight)
    return joined


def _folded(convolution: nn.Module, norm: nn.Module) -> nn.Conv2d:
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(convolution, norm)


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    setattr(module, convolution, _folded(getattr(module, convolution), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


def _fold_behind(block: SelfAttentionBlock, attention: VectorAttention) -> None:
    """Fold the batch norm after the attention into β: the weighted mean of s · β_j + t over the taps is s times that of
    β_j, plus t."""
    is_mean = attention.relation.family == "pairwise" and not attention.footprint.drops_taps
    if is_mean and attention.beta is not None:
        attention.beta = _folded(attention.beta, block.norm_out)
        block.norm_out = nn.Identity()
