"""Self-attention networks (SAN Table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers import AttentionConfig, SelfAttentionBlock, Transition, expect, linear
from saprof.layers.exactly import as_built, as_written, changed, eager
from saprof.layers.parts import block_footprint
from saprof.layers.pooled import largest_of_stem, stem_fits
from saprof.layers.recomputed import rectified
from saprof.layers.running import inside
from saprof.models.catalogue import SAN_FOOTPRINTS
from saprof.models.stages import check_ends, check_stages, check_stem_stride, classifier, reductions, stage_maps
from saprof.operators.footprint import BOUNDARIES, Footprint
from saprof.operators.workload import STAGES


@dataclass(frozen=True, kw_only=True)
class SANConfig(AttentionConfig):
    """A whole network: one entry of `blocks`, `channels` and `footprints` per stage.

    A footprint is a Footprint, a size, or text that `Footprint.parse` reads; `boundary` applies to sizes.
    """

    blocks: tuple[int, ...] = (2, 1, 2, 4, 1)
    channels: tuple[int, ...] = tuple(channels for channels, _ in STAGES)
    footprints: tuple[Footprint | int | str, ...] = SAN_FOOTPRINTS
    boundary: str = "reflect"
    stem_stride: int = 2
    """The side of the image divided by the side of the first stage's map: 2, or 1 for images of a few pixels."""
    in_channels: int = 3
    """The channels of the images."""
    num_classes: int = 1000
    """The number of logits; 0 gives a network without the last linear layer, whose outputs are the pooled features."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages(self, "footprints")
        check_ends(self)
        expect("boundary", self.boundary, BOUNDARIES)
        check_stem_stride(self.stem_stride, 2)
        object.__setattr__(self, "footprints", self.stage_footprints)

    @property
    def stage_footprints(self) -> tuple[Footprint, ...]:
        """The footprint of every stage, as a Footprint."""
        return tuple(block_footprint(f, self.boundary) for f in self.footprints)


@as_written
class Stage(nn.Module):
    """A transition, blocks, then a batch norm and a ReLU."""

    def __init__(self, transition: Transition, blocks: int, footprint: Footprint, config: AttentionConfig) -> None:
        super().__init__()
        channels = transition.linear.out_channels
        self.transition = transition
        self.blocks = nn.Sequential(*(SelfAttentionBlock(channels, footprint, config) for _ in range(blocks)))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "n c h w"], pooled: bool = False) -> Float[Tensor, "n d h2 w2"]:
        """The map of the stage. If x is `pooled` already, the transition only has its linear layer."""
        return rectified(self.norm, self.blocks(self.transition(x, True) if pooled else self.transition(x)))


@as_written
class SAN(nn.Module):
    """Images to logits: stem, stages, global average pool, linear."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels[0]
        self.stem = nn.Sequential(linear(config.in_channels, width, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        inputs = (width, *config.channels[:-1])
        strides = (config.stem_stride, *(2 for _ in config.channels[1:]))
        transitions = map(Transition, inputs, config.channels, strides)
        stages = zip(transitions, config.blocks, config.stage_footprints, strict=True)
        self.stages = nn.Sequential(*(Stage(*stage, config) for stage in stages))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = classifier(config.channels[-1], config.num_classes)

    def features(self, x: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """The output map of every stage."""
        return self._pooled_maps(x) if self._pools_stem(x) else stage_maps(self.stem(x), self.stages)

    def forward_features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """The last map, before it is pooled."""
        return self._pooled_maps(x)[-1] if self._pools_stem(x) else self.stages(self.stem(x))

    def _pooled_maps(self, x: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """The output map of every stage, where `_pools_stem` is true."""
        first, *others = self.stages
        with inside(self.stem):
            pooled = largest_of_stem(self.stem, x)
        found = first(pooled, True)
        return [found, *stage_maps(found, others)]

    def _pools_stem(self, x: Tensor) -> bool:
        """Whether the stem and the pool behind it run as one in training, because both are exactly the paper's."""
        if not (self.training and eager(x)) or changed(self.stages, nn.Sequential) is not None:
            return False
        stage: Any = self.stages[0]
        transition: Any = getattr(stage, "transition", None)
        exact = as_built(stage, Stage) and as_built(transition, Transition)
        return exact and transition.stride == 2 and stem_fits(self.stem, x)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.head(self.pool(self.forward_features(x)).flatten(1))

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """The channels of the map of every stage."""
        return self.config.channels

    @property
    def feature_reductions(self) -> tuple[int, ...]:
        """The side of the image divided by that of the map of every stage."""
        return reductions(self.config)
