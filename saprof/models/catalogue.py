"""The named models: which architecture each one is, and the fields of its config. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

from saprof.operators import RELATIONS

_BLOCKS = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
_RESNET_BLOCKS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    f"san{depth}_{family}": ("SAN", {"family": family, "blocks": blocks})
    for depth, blocks in _BLOCKS.items()
    for family in RELATIONS
}
MODELS |= {
    f"san10_{family}_{relation}": ("SAN", {"family": family, "relation": relation})
    for family, relations in RELATIONS.items()
    for relation in relations
}
MODELS["san10_stand_alone"] = ("SAN", {"family": "stand_alone"})
MODELS |= {f"resnet{depth}": ("ResNet", {"blocks": blocks}) for depth, blocks in _RESNET_BLOCKS.items()}
MODELS |= {f"resnet26_{k}x{k}": ("ResNet", {"blocks": _RESNET_BLOCKS[26], "footprint": k}) for k in (5, 7)}
MODELS |= {f"sasa_resnet{depth}": ("SASA", {"blocks": blocks}) for depth, blocks in _RESNET_BLOCKS.items()}
MODELS |= {
    f"sasa_resnet{depth}_convolution_stem": ("SASA", {"blocks": blocks, "stem": "convolution"})
    for depth, blocks in _RESNET_BLOCKS.items()
}
MODELS |= {
    "retinanet_resnet50": ("RetinaNet", {"attention_stages": (), "stem": "convolution", "predictors": "convolution"}),
    "retinanet_sasa_resnet50": ("RetinaNet", {}),
}
_SMALL = {"channels": (32, 64), "blocks": (1, 1), "stem_stride": 1, "num_classes": 10}
_SMALL_SAN = _SMALL | {"footprints": (7, 3), "value_reduction": 2, "attention": "composed"}
MODELS |= {
    f"san_mini_{family}": ("SAN", _SMALL_SAN | {"family": family, "relation_reduction": 8, "share": 4})
    for family in RELATIONS
}
MODELS |= {
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
    return list(MODELS)
