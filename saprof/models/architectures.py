"""The architectures by name, built from the fields of their configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from saprof.models.resnet import ResNet, ResNetConfig
from saprof.models.san import SAN, SANConfig
from saprof.text import unknown

CONFIGS: dict[str, type[SANConfig | ResNetConfig]] = {"SAN": SANConfig, "ResNet": ResNetConfig}


def build(architecture: str, options: Mapping[str, Any]) -> SAN | ResNet:
    """The network whose config has these fields; ValueError for an unknown field or a value that does not fit."""
    valid = [field.name for field in fields(CONFIGS[architecture])]
    for option in options:
        if option not in valid:
            raise ValueError(unknown(f"option of {architecture}", option, valid))
    config = CONFIGS[architecture](**options)
    return SAN(config) if isinstance(config, SANConfig) else ResNet(config)
