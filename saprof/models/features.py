"""The output maps of the stages of a network, for another model that reads them, such as a detector."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from saprof.models.resnet import ResNet
from saprof.models.san import SAN


class FeatureMaps(nn.Module):
    """Returns the list of the output maps of all stages of `network`, the largest map first.

    Shapes: input (n, in_channels, h, w); map s of the output (n, channels[s], about h / reductions[s], about
    w / reductions[s]). A SAN rounds odd sides down, a ResNet up. The classifier of `network` is removed. Raises
    ValueError if the network is not a SAN, ResNet or SASA.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, SAN | ResNet):
            raise ValueError(f"network is of type {type(network).__name__}; expected a SAN, ResNet or SASA")
        for name in ("pool", "head", "avgpool", "fc"):
            if name in network._modules:
                delattr(network, name)
        self.network = network
        self.config = network.config
        self.channels = network.feature_channels
        """The channels of each map."""
        self.reductions = network.feature_reductions
        """The side of the image divided by the side of each map."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> list[Tensor]:
        return self.network.features(x)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, reductions={self.reductions}"
