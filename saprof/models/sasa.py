"""Stand-alone self-attention networks: ResNets whose 3 × 3 convolutions, and stem, are attention (SASA Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers import STEMS, AttentionConfig, AttentionStem, StandAloneAttention, expect
from saprof.layers.exactly import as_written
from saprof.layers.parts import block_footprint
from saprof.models.resnet import ResNet, StagesConfig, convolution
from saprof.operators.footprint import BOUNDARIES, Footprint


@dataclass(frozen=True, kw_only=True)
class SASAConfig(AttentionConfig, StagesConfig):
    """A whole network. `footprint` is a Footprint, a size, or text that `Footprint.parse` reads.

    `boundary` applies to a size. The paper does not say what happens at the border of a map; `exclude` clips the
    neighbourhood there.
    """

    family: str = "stand_alone"
    value_reduction: int = 1
    bias: bool = False
    footprint: Footprint | int | str = 7
    boundary: str = "exclude"
    attention_stages: tuple[int, ...] | None = None
    """The stages with attention (SASA Table 3); the first stage is 1. The others have convolutions. None means all."""
    stem: str = "spatial_attention"
    """One of STEMS."""

    def __post_init__(self) -> None:
        expect("family of SASA", self.family, ("stand_alone",))
        AttentionConfig.__post_init__(self)
        StagesConfig.__post_init__(self)
        expect("boundary", self.boundary, BOUNDARIES)
        expect("stem", self.stem, STEMS)
        if self.stem_stride == 1 and self.stem != "convolution":
            raise ValueError(f"stem is {self.stem!r}; expected 'convolution', since stem_stride is 1")
        object.__setattr__(self, "footprint", block_footprint(self.footprint, self.boundary))
        every = range(1, len(self.channels) + 1)
        chosen = every if self.attention_stages is None else self.attention_stages
        if not isinstance(chosen, Sequence):
            raise ValueError(
                f"attention_stages is {chosen!r}; expected a list or tuple of stages from 1 to {len(every)}"
            )
        for stage in chosen:
            if stage not in every or isinstance(stage, bool):
                raise ValueError(f"attention_stages has {stage!r}; expected stages from 1 to {len(every)}")
        object.__setattr__(self, "attention_stages", tuple(chosen))
        if not self.attends and self.footprint != block_footprint(SASAConfig.footprint, self.boundary):
            raise ValueError(f"footprint is {self.footprint}; expected {SASAConfig.footprint}, since nothing attends")

    @property
    def attends(self) -> bool:
        """Whether any layer besides the stem is attention."""
        return bool(self.attention_stages)


@as_written
class SASA(ResNet):
    """Images to logits. A block with stride 2 attends at the resolution of its input, then averages over 2 × 2."""

    config: SASAConfig

    def build_stem(self, width: int) -> None:
        if self.config.stem == "convolution":
            super().build_stem(width)
        else:
            self.stem = AttentionStem(width, self.config.stem, self.config.in_channels)

    def embed(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        return super().embed(x) if self.config.stem == "convolution" else self.stem(x)

    def spatial(self, stage: int, channels: int, stride: int) -> nn.Module:
        if stage not in (self.config.attention_stages or ()):
            return convolution(channels, 3, stride)
        footprint = self.config.footprint
        assert isinstance(footprint, Footprint)
        attention = StandAloneAttention(channels, footprint, self.config)
        # ceil_mode, because a strided convolution rounds an odd side up
        return attention if stride == 1 else nn.Sequential(attention, nn.AvgPool2d(2, ceil_mode=True))
