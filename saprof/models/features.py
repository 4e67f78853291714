"""The output maps of the stages of a network, for another model that reads them, such as a detector."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from saprof.models.resnet import ResNet
from saprof.models.san import SAN
from saprof.operators.footprint import positive


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


def with_maps(network: nn.Module) -> nn.Module:
    """A network whose forward returns maps: a FeatureMaps of a SAN, ResNet or SASA, or else the network itself, if
    `sizes_of_maps` knows it. Raises ValueError if it does not."""
    if isinstance(network, SAN | ResNet):
        return FeatureMaps(network)
    sizes_of_maps(network)
    return network


def sizes_of_maps(network: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The channels of each map that a network returns, and the side of the image divided by that of the map.

    They are its attributes `channels` and `reductions`, or what the `feature_info` of a network of timm says. Raises
    ValueError if it has neither, or if these are not as many positive integers.
    """
    info: Any = getattr(network, "feature_info", None)
    if callable(getattr(info, "channels", None)):
        found = {"channels": info.channels(), "reductions": info.reduction()}
    else:
        found = {name: getattr(network, name, None) for name in ("channels", "reductions")}
    listed = {name: tuple(sizes) for name, sizes in found.items() if isinstance(sizes, tuple | list)}
    if len(listed) != 2:
        raise ValueError(
            f"network is of type {type(network).__name__}; expected a SAN, ResNet or SASA, a network of "
            "create_model(…, features_only=True), or a module with channels and reductions, one of each per map"
        )
    channels, reductions = (tuple(positive(f"{name}[{i}]", x) for i, x in enumerate(listed[name])) for name in found)
    if len(channels) != len(reductions):
        raise ValueError(f"network has {len(channels)} channels and {len(reductions)} reductions; expected one per map")
    return channels, reductions
