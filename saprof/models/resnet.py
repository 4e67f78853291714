"""The convolutional baselines: ResNet26, 38 and 50. The 3 × 3 convolutions of their bottlenecks can have any odd size.

ResNet38 and ResNet26 have one and two blocks fewer per stage than ResNet50 (SAN Sec. 5.1). The k × k convolution of the
first block of a stage has the stride. The parameters have the names that torchvision gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers.exactly import as_written
from saprof.models.stages import check_ends, check_stages, check_stem_stride, classifier, reductions, stage_maps
from saprof.operators.footprint import set_positive

EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """The fields that all networks of bottlenecks have; `blocks` and `channels` have one entry per stage."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    stem_stride: int = 4
    """The side of the image divided by the side of the first stage's map: 4, or 1 for images of a few pixels. With 1
    the stem is one 3 × 3 convolution."""
    in_channels: int = 3
    """The channels of the images."""
    num_classes: int = 1000
    """The number of logits; 0 gives a network without the last linear layer, whose outputs are the pooled features."""

    def __post_init__(self) -> None:
        check_stages(self)
        check_ends(self)
        check_stem_stride(self.stem_stride, 4)


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(StagesConfig):
    """A convolutional network; `footprint` is the k of every bottleneck's k × k convolution."""

    footprint: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        set_positive(self, "footprint")
        if self.footprint % 2 == 0:
            raise ValueError(f"footprint is {self.footprint}; expected an odd size, as a padded convolution needs")


@as_written
class Bottleneck(nn.Module):
    """1 × 1, k × k and 1 × 1 convolutions beside a shortcut (He et al. 2016). `spatial` is the k × k convolution, or
    the attention that replaces it; it has the stride of the block."""

    def __init__(self, inputs: int, channels: int, stride: int, spatial: nn.Module) -> None:
        super().__init__()
        outputs = channels * EXPANSION
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = spatial
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


@as_written
class ResNet(nn.Module):
    """Images to logits: stem, stages of bottlenecks, global average pool, linear."""

    def __init__(self, config: StagesConfig) -> None:
        super().__init__()
        self.config = config
        self.build_stem(config.channels[0])
        inputs = config.channels[0]
        for number, (blocks, channels) in enumerate(zip(config.blocks, config.channels, strict=True), start=1):
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if number > 1 and not block else 1
                stage.append(Bottleneck(inputs, channels, stride, self.spatial(number, channels, stride)))
                inputs = channels * EXPANSION
            self.add_module(f"layer{number}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = classifier(inputs, config.num_classes)

    def build_stem(self, width: int) -> None:
        side, stride = (7, 2) if self.config.stem_stride == 4 else (3, 1)
        self.conv1 = nn.Conv2d(self.config.in_channels, width, side, stride, padding=side // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def spatial(self, stage: int, channels: int, stride: int) -> nn.Module:
        """The layer that mixes the positions in a bottleneck of this stage; the first stage is 1."""
        assert isinstance(self.config, ResNetConfig)
        return convolution(channels, self.config.footprint, stride)

    def embed(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """The stem."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.config.stem_stride == 4 else x

    def features(self, x: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """The output map of every stage."""
        return stage_maps(self.embed(x), self.stages)

    def forward_features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """The last map, before it is pooled. No map of an earlier stage is kept."""
        x = self.embed(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.fc(self.avgpool(self.forward_features(x)).flatten(1))

    @property
    def stages(self) -> list[nn.Module]:
        """The stages, in order."""
        return [getattr(self, f"layer{number}") for number in range(1, len(self.config.blocks) + 1)]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """The channels of the map of every stage."""
        return tuple(channels * EXPANSION for channels in self.config.channels)

    @property
    def feature_reductions(self) -> tuple[int, ...]:
        """The side of the image divided by that of the map of every stage."""
        return reductions(self.config)


def convolution(channels: int, size: int, stride: int) -> nn.Conv2d:
    """The k × k convolution of a bottleneck."""
    return nn.Conv2d(channels, channels, size, stride, padding=size // 2, bias=False)
