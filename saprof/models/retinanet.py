"""RetinaNet (Lin et al. 2017) with convolutions or stand-alone attention in its backbone and heads (SASA Table 2).

The network computes class logits and box offsets for every anchor. Its three parts are modules: `backbone`, `pyramid`
and `heads`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers import StandAloneAttention, expect, linear
from saprof.models.features import FeatureMaps, sizes_of_maps, with_maps
from saprof.models.sasa import SASA, SASAConfig
from saprof.operators.footprint import Footprint, set_positive

PREDICTORS = ("convolution", "attention")
COARSER = ("P5", "C5")
COORDINATES = 4
"""The numbers that describe a box."""
DEPTH = 4
"""The layers of a head before the layer that predicts."""
BACKBONE_MAPS = 3
"""The maps of the backbone that the pyramid reads."""
LEVELS = 5
"""The maps of the pyramid, P3 to P7."""
PRIOR = 0.01
"""The probability of a class before training (Lin et al. 2017, Sec. 4.1)."""
DEVIATION = 0.01
"""The standard deviation of the weights of a head before training (Lin et al. 2017, Sec. 4.1), and that of W_V (SASA,
appendix on COCO)."""
NORM_EPSILON, NORM_DECAY = 1e-4, 0.997


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(SASAConfig):
    """The config of the backbone, the pyramid and the heads. Without attention stages, and with a convolutional stem,
    the backbone is a ResNet."""

    predictors: str = "attention"
    """The layers of the two heads: one of PREDICTORS."""
    width: int = 256
    """Channels of the pyramid's maps and of the heads."""
    anchors: int = 6
    """The anchors per position. The printed counts imply 6 anchors and 90 classes."""
    num_classes: int = 90
    level_norms: bool = False
    """Whether a batch norm follows each map of the pyramid, and each layer of a head except the last. Every level has
    norms of its own; the other weights of a head are the same for all levels. Table 2 prints parameters in millions,
    so they agree with and without these norms."""
    coarser_from: str = "P5"
    """The map from which P6 is computed: one of COARSER."""
    frozen_norms: bool = False
    """Whether the batch norms of the backbone keep their statistics and weights in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("predictors", self.predictors, PREDICTORS)
        expect("coarser_from", self.coarser_from, COARSER)
        set_positive(self, "width", "anchors", "num_classes")
        for name in ("level_norms", "frozen_norms"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected True or False")
        if len(self.channels) < BACKBONE_MAPS:
            raise ValueError(f"channels has {len(self.channels)} stages; expected 3 at least, for the pyramid")

    @property
    def attends(self) -> bool:
        return super().attends or self.predictors == "attention"


class Predictions(NamedTuple):
    """What a detector computes for every anchor. The order is: levels from the finest map to the coarsest, rows,
    columns, anchors of a position."""

    logits: Float[Tensor, "n a classes"]
    offsets: Float[Tensor, "n a 4"]
    sizes: tuple[tuple[int, int], ...]
    """Rows and columns of the map of each level."""


class RetinaNet(nn.Module):
    """Images to class logits and box offsets: (n, positions · anchors, classes + 4), the finest map first.

    `backbone` replaces the network that the fields of the config describe. It may be a SAN, ResNet or SASA, whose
    classifier is then removed; a network of `create_model(…, features_only=True)`, or of timm with `features_only`; or
    any module whose forward returns maps, with the attributes `channels` and `reductions`, which have an entry per map.
    The last three maps are used. ValueError if it is none of these. `saprof.save` refuses a network with such a
    backbone, because its config does not describe it.
    """

    def __init__(self, config: RetinaNetConfig, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = FeatureMaps(SASA(config)) if backbone is None else with_maps(backbone)
        channels, reductions = sizes_of_maps(self.backbone)
        if len(channels) < BACKBONE_MAPS:
            raise ValueError(f"backbone has {len(channels)} maps; expected 3 at least, for the pyramid")
        self.pyramid = Pyramid(channels[-BACKBONE_MAPS:], config)
        self.strides = (*reductions[-BACKBONE_MAPS:], 2 * reductions[-1], 4 * reductions[-1])
        """The side of the image divided by that of the map, for each level."""
        self.heads = Heads(config)
        if config.frozen_norms:
            for norm in _norms(self.backbone):
                norm.requires_grad_(False)
            self.train()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n a classes+4"]:
        found = self.predict(x)
        return torch.cat([found.logits, found.offsets], dim=2)

    def predict(self, x: Float[Tensor, "n c h w"]) -> Predictions:
        """The same as the forward, in two tensors, with the sizes of the maps."""
        maps = self.pyramid(self.backbone(x))
        logits, offsets = self.heads(maps)
        return Predictions(logits, offsets, tuple((map_.shape[-2], map_.shape[-1]) for map_ in maps))

    def train(self, mode: bool = True) -> RetinaNet:
        """Set the mode of all modules. With `frozen_norms`, the batch norms of the backbone stay in evaluation mode."""
        super().train(mode)
        if self.config.frozen_norms:
            for norm in _norms(self.backbone):
                norm.eval()
        return self


class Pyramid(nn.Module):
    """The maps of three stages to P3, …, P7, all of `width` channels. P3 to P5 are the maps of the stages, each plus
    the next coarser one; P6 and P7 are strided convolutions of P5 (or C5) and of ReLU(P6). The norms come last: P6 and
    P7 are computed from maps without them."""

    def __init__(self, channels: Sequence[int], config: RetinaNetConfig) -> None:
        super().__init__()
        width = config.width
        self.lateral = nn.ModuleList(linear(inputs, width) for inputs in channels)
        self.smooth = nn.ModuleList(convolution3x3(width, width) for _ in channels)
        self.coarser_from = config.coarser_from
        first = width if self.coarser_from == "P5" else channels[-1]
        self.coarser = nn.ModuleList([convolution3x3(first, width, stride=2), convolution3x3(width, width, stride=2)])
        for convolution in (*self.lateral, *self.smooth, *self.coarser):
            nn.init.kaiming_uniform_(convolution.get_parameter("weight"), a=1)
            nn.init.zeros_(convolution.get_parameter("bias"))
        self.norms = nn.ModuleList(level_norm(width) for _ in range(LEVELS)) if config.level_norms else None

    def forward(self, maps: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        c3, c4, c5 = list(maps.values() if isinstance(maps, Mapping) else maps)[-BACKBONE_MAPS:]
        lateral3, lateral4, lateral5 = self.lateral
        p5 = lateral5(c5)
        p4 = lateral4(c4) + F.interpolate(p5, size=c4.shape[-2:])
        p3 = lateral3(c3) + F.interpolate(p4, size=c3.shape[-2:])
        smoothed = [smooth(map_) for smooth, map_ in zip(self.smooth, (p3, p4, p5), strict=True)]
        coarser6, coarser7 = self.coarser
        p6 = coarser6(smoothed[-1] if self.coarser_from == "P5" else c5)
        found = [*smoothed, p6, coarser7(F.relu(p6))]
        return found if self.norms is None else [norm(x) for norm, x in zip(self.norms, found, strict=True)]


class Heads(nn.Module):
    """The class logits and the box offsets of every anchor, from the maps of the pyramid: (n, positions · anchors,
    classes), and as many offsets (n, positions · anchors, 4)."""

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__()
        self.anchors = config.anchors
        self.classes = Head(config, config.anchors * config.num_classes)
        self.boxes = Head(config, config.anchors * COORDINATES)
        nn.init.constant_(self.classes[-1].get_parameter("bias"), -math.log((1 - PRIOR) / PRIOR))

    def forward(self, maps: Sequence[Float[Tensor, "n c h w"]]) -> tuple[Tensor, Tensor]:
        levels = [*enumerate(maps)]
        logits = [self._flat(self.classes(map_, level)) for level, map_ in levels]
        offsets = [self._flat(self.boxes(map_, level)) for level, map_ in levels]
        return torch.cat(logits, dim=1), torch.cat(offsets, dim=1)

    def _flat(self, predicted: Float[Tensor, "n c h w"]) -> Float[Tensor, "n a d"]:
        return predicted.unflatten(1, (self.anchors, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)


class Head(nn.ModuleList):
    """Four layers, each with a ReLU, and the layer that predicts. A head of attention ends in one more attention and a
    linear layer. All levels have the same weights, except those of the norms."""

    def __init__(self, config: RetinaNetConfig, outputs: int) -> None:
        width, attends = config.width, config.predictors == "attention"

        def layer() -> nn.Module:
            assert isinstance(config.footprint, Footprint)
            return StandAloneAttention(width, config.footprint, config) if attends else convolution3x3(width, width)

        hidden = [
            module for _ in range(DEPTH) for module in (layer(), LevelNorms(width) if config.level_norms else nn.ReLU())
        ]
        last = (layer(), linear(width, outputs)) if attends else (convolution3x3(width, outputs),)
        super().__init__([*hidden, *last])
        for module in self:
            weighted = module.value if isinstance(module, StandAloneAttention) else module
            if isinstance(weighted, nn.Conv2d):
                nn.init.normal_(weighted.weight, std=DEVIATION)
                if weighted.bias is not None:
                    nn.init.zeros_(weighted.bias)

    def forward(self, x: Float[Tensor, "n c h w"], level: int) -> Float[Tensor, "n d h w"]:
        for module in self:
            x = module(x, level) if isinstance(module, LevelNorms) else module(x)
        return x


class LevelNorms(nn.Module):
    """ReLU(norm(x)), where each level of the pyramid has a batch norm of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(level_norm(width) for _ in range(LEVELS))

    def forward(self, x: Float[Tensor, "n c h w"], level: int) -> Float[Tensor, "n c h w"]:
        return F.relu(self.levels[level](x))


def level_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=NORM_EPSILON, momentum=1 - NORM_DECAY)


def convolution3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def _norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
