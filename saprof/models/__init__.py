"""Every model of the papers, by name."""

from __future__ import annotations

from typing import Any

from saprof.models.architectures import Model, build
from saprof.models.checkpoint import load, load_official, save
from saprof.models.inference import optimize_for_inference
from saprof.models.resnet import ResNet, ResNetConfig
from saprof.models.retinanet import RetinaNet, RetinaNetConfig
from saprof.models.san import SAN, SANConfig
from saprof.models.sasa import SASA, SASAConfig
from saprof.models.weights import attention_weights
from saprof.operators import RELATIONS
from saprof.text import unknown

__all__ = [
    "SAN",
    "SASA",
    "ResNet",
    "ResNetConfig",
    "RetinaNet",
    "RetinaNetConfig",
    "SANConfig",
    "SASAConfig",
    "attention_weights",
    "create_model",
    "list_models",
    "load",
    "load_official",
    "optimize_for_inference",
    "save",
]

_BLOCKS = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
_RESNET_BLOCKS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    f"san{depth}_{family}": ("SAN", {"family": family, "blocks": blocks})
    for depth, blocks in _BLOCKS.items()
    for family in RELATIONS
}
_MODELS |= {
    f"san10_{family}_{relation}": ("SAN", {"family": family, "relation": relation})
    for family, relations in RELATIONS.items()
    for relation in relations
}
_MODELS["san10_stand_alone"] = ("SAN", {"family": "stand_alone"})
_MODELS |= {f"resnet{depth}": ("ResNet", {"blocks": blocks}) for depth, blocks in _RESNET_BLOCKS.items()}
_MODELS |= {f"resnet26_{k}x{k}": ("ResNet", {"blocks": _RESNET_BLOCKS[26], "footprint": k}) for k in (5, 7)}
_MODELS |= {f"sasa_resnet{depth}": ("SASA", {"blocks": blocks}) for depth, blocks in _RESNET_BLOCKS.items()}
_MODELS |= {
    f"sasa_resnet{depth}_convolution_stem": ("SASA", {"blocks": blocks, "stem": "convolution"})
    for depth, blocks in _RESNET_BLOCKS.items()
}
_MODELS |= {
    "retinanet_resnet50": ("RetinaNet", {"attention_stages": (), "stem": "convolution", "predictors": "convolution"}),
    "retinanet_sasa_resnet50": ("RetinaNet", {}),
}
_SMALL = {"channels": (32, 64), "blocks": (1, 1), "stem_stride": 1, "num_classes": 10}
_SMALL_SAN = _SMALL | {"footprints": (7, 3), "value_reduction": 2, "attention": "composed"}
_MODELS |= {
    f"san_mini_{family}": ("SAN", _SMALL_SAN | {"family": family, "relation_reduction": 8, "share": 4})
    for family in RELATIONS
}
_MODELS |= {
    "san_mini_stand_alone": ("SAN", _SMALL_SAN | {"family": "stand_alone", "heads": 4}),
    "resnet_mini": ("ResNet", _SMALL | {"channels": (16, 32)}),
    "sasa_mini": (
        "SASA",
        _SMALL | {"channels": (16, 32), "stem": "convolution", "footprint": 5, "heads": 4, "attention": "composed"},
    ),
}
"""Architecture and fields of its config. The small ones are for images of 8 to 32 pixels, where the parts of attention
train faster than one piece."""


def list_models() -> list[str]:
    """The names that `create_model` takes."""
    return list(_MODELS)


def create_model(name: str, **overrides: Any) -> Model:
    """Build a model by name; `overrides` are fields of its config, such as `mapping="l"` or `num_classes=10`.

    Raises ValueError for an unknown name or field, or a value that does not fit.
    """
    if name not in _MODELS:
        raise ValueError(unknown("model", name, list_models()))
    architecture, options = _MODELS[name]
    return build(architecture, options | overrides)
