"""Every model of the papers, by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from saprof.backends import unknown
from saprof.models.checkpoint import load, load_official, save
from saprof.models.resnet import ResNet, ResNetConfig
from saprof.models.san import SAN, SANConfig
from saprof.operators import RELATIONS

__all__ = [
    "SAN",
    "ResNet",
    "ResNetConfig",
    "SANConfig",
    "create_model",
    "list_models",
    "load",
    "load_official",
    "save",
]

_BLOCKS = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
_RESNET_BLOCKS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}

_MODELS: dict[str, tuple[type[nn.Module], type, dict[str, Any]]] = {
    f"san{depth}_{family}": (SAN, SANConfig, {"family": family, "blocks": blocks})
    for depth, blocks in _BLOCKS.items()
    for family in ("pairwise", "patchwise")
}
_MODELS |= {
    f"san10_{family}_{relation}": (SAN, SANConfig, {"family": family, "relation": relation})
    for family, relations in RELATIONS.items()
    for relation in relations
}
_MODELS["san10_stand_alone"] = (SAN, SANConfig, {"family": "stand_alone"})
_MODELS |= {f"resnet{depth}": (ResNet, ResNetConfig, {"blocks": blocks}) for depth, blocks in _RESNET_BLOCKS.items()}
_MODELS |= {f"resnet26_{k}x{k}": (ResNet, ResNetConfig, {"blocks": _RESNET_BLOCKS[26], "footprint": k}) for k in (5, 7)}


def list_models() -> list[str]:
    """The names that `create_model` takes."""
    return list(_MODELS)


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Build a model by name; `overrides` are fields of its config, such as `mapping="l"` or `num_classes=10`.

    Raises ValueError for an unknown name or field, or a value that does not fit.
    """
    if name not in _MODELS:
        raise ValueError(unknown("model", name, list_models()))
    model, config, options = _MODELS[name]
    valid = [field.name for field in fields(config)]
    for override in overrides:
        if override not in valid:
            raise ValueError(unknown(f"option of {name}", override, valid))
    return model(config(**options | overrides))
