"""RetinaNet (Lin et al. 2017) with convolutions or stand-alone attention in its backbone and heads (SASA Table 2).

saprof counts its cost and computes its maps; it does not train detectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers import StandAloneAttention, expect, linear
from saprof.models.sasa import SASA, SASAConfig
from saprof.operators.footprint import Footprint, set_positive

PREDICTORS = ("convolution", "attention")
COORDINATES = 4
"""The numbers that describe a box."""
DEPTH = 4
"""The layers of a head before the layer that predicts."""
PRIOR = 0.01
"""The probability of a class before training (Lin et al. 2017, Sec. 4.1)."""


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

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("predictors", self.predictors, PREDICTORS)
        set_positive(self, "width", "anchors", "num_classes")
        if len(self.channels) < 3:
            raise ValueError(f"channels has {len(self.channels)} stages; expected 3 at least, for the pyramid")

    @property
    def attends(self) -> bool:
        return super().attends or self.predictors == "attention"


class RetinaNet(nn.Module):
    """Images to class logits and box offsets: (n, positions · anchors, classes + 4), the finest map first."""

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = SASA(config)
        del self.backbone.avgpool, self.backbone.fc
        width = config.width
        self.lateral = nn.ModuleList(linear(channels, width) for channels in self.backbone.feature_channels[-3:])
        self.smooth = nn.ModuleList(convolution3x3(width, width) for _ in range(3))
        self.coarser = nn.ModuleList(convolution3x3(width, width, stride=2) for _ in range(2))
        self.classes = head(config, config.anchors * config.num_classes)
        self.boxes = head(config, config.anchors * COORDINATES)
        nn.init.constant_(self.classes[-1].get_parameter("bias"), -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n a classes+4"]:
        found = []
        for map_ in self.pyramid(x):
            logits, offsets = (
                predicted.unflatten(1, (self.config.anchors, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
                for predicted in (self.classes(map_), self.boxes(map_))
            )
            found.append(torch.cat([logits, offsets], dim=2))
        return torch.cat(found, dim=1)

    def pyramid(self, x: Float[Tensor, "n c h w"]) -> Iterator[Tensor]:
        """P3 to P7: the maps of the last three stages, each plus the next coarser one, then two strided
        convolutions."""
        *_, c3, c4, c5 = self.backbone.features(x)
        lateral3, lateral4, lateral5 = self.lateral
        p5 = lateral5(c5)
        p4 = lateral4(c4) + F.interpolate(p5, size=c4.shape[-2:])
        p3 = lateral3(c3) + F.interpolate(p4, size=c3.shape[-2:])
        smooth3, smooth4, smooth5 = self.smooth
        coarser6, coarser7 = self.coarser
        yield smooth3(p3)
        yield smooth4(p4)
        p5 = smooth5(p5)
        yield p5
        p6 = coarser6(p5)
        yield p6
        yield coarser7(F.relu(p6))


def convolution3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def head(config: RetinaNetConfig, outputs: int) -> nn.Sequential:
    """Four layers, each with a ReLU, and the layer that predicts. A head of attention ends in a linear layer."""
    width, attends = config.width, config.predictors == "attention"

    def layer() -> nn.Module:
        assert isinstance(config.footprint, Footprint)
        return StandAloneAttention(width, config.footprint, config) if attends else convolution3x3(width, width)

    hidden = [module for _ in range(DEPTH) for module in (layer(), nn.ReLU())]
    last = (layer(), linear(width, outputs)) if attends else (convolution3x3(width, outputs),)
    return nn.Sequential(*hidden, *last)
