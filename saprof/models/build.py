"""Models built by name, or from the fields of a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, overload

import torch

from saprof.models.catalogue import named_model
from saprof.models.features import FeatureMaps
from saprof.models.resnet import ResNet, ResNetConfig
from saprof.models.retinanet import RetinaNet, RetinaNetConfig
from saprof.models.san import SAN, SANConfig
from saprof.models.sasa import SASA, SASAConfig
from saprof.text import unknown

Model = SAN | ResNet | SASA | RetinaNet

ARCHITECTURES: dict[str, tuple[type[Any], type[Model]]] = {
    "SAN": (SANConfig, SAN),
    "ResNet": (ResNetConfig, ResNet),
    "SASA": (SASAConfig, SASA),
    "RetinaNet": (RetinaNetConfig, RetinaNet),
}
"""The classes of config and network of each architecture."""

EXPECTED = " or ".join([", ".join([*ARCHITECTURES][:-1]), [*ARCHITECTURES][-1]])


def build(architecture: str, options: Mapping[str, Any]) -> Model:
    """The network whose config has these fields. Raises ValueError for an unknown field or a value that does not
    fit."""
    config, network = ARCHITECTURES[architecture]
    valid = [field.name for field in fields(config)]
    for option in options:
        if option not in valid:
            raise ValueError(unknown(f"option of {architecture}", option, valid))
    return network(config(**options))


def blueprint(architecture: str, options: Mapping[str, Any]) -> Model:
    """The same network on the meta device, which has shapes but no weights. Raises like `build`."""
    with torch.device("meta"):
        return build(architecture, options)


@overload
def create_model(name: str, *, features_only: Literal[False] = False, **overrides: Any) -> Model: ...


@overload
def create_model(name: str, *, features_only: Literal[True], **overrides: Any) -> FeatureMaps: ...


def create_model(name: str, *, features_only: bool = False, **overrides: Any) -> Model | FeatureMaps:
    """Build a model by name; `overrides` are fields of its config, such as `mapping="l"`, `in_channels=1` or
    `num_classes=10`.

    With `features_only`, the model is a FeatureMaps: it returns the list of the maps of all stages. `num_classes=0`
    gives a network that returns the pooled features.

    Raises ValueError for an unknown name or field, or a value that does not fit.
    """
    model = named_model(name)
    network = build(model.architecture, {**model.fields, **overrides})
    return FeatureMaps(network) if features_only else network
