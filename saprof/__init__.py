"""saprof takes local self-attention operators apart and measures them (SAN, CVPR 2020; SASA, NeurIPS 2019).

What needs torch is imported when it is first used, so that the commands answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from saprof.attention import pairwise_attention, patchwise_attention
from saprof.cost import Cost
from saprof.footprint import Footprint
from saprof.operators import (
    aggregation,
    pairwise_concatenation,
    pairwise_dot_product,
    pairwise_hadamard_product,
    pairwise_subtraction,
    pairwise_summation,
    patchwise_clique_product,
    patchwise_concatenation,
    patchwise_star_product,
)
from saprof.stand_alone import stand_alone_attention

if TYPE_CHECKING:
    from saprof.backends import Unsupported
    from saprof.counting import count, teach_fvcore
    from saprof.models import (
        SAN,
        SASA,
        ResNet,
        ResNetConfig,
        RetinaNet,
        RetinaNetConfig,
        SANConfig,
        SASAConfig,
        attention_weights,
        create_model,
        list_models,
        load,
        load_official,
        optimize_for_inference,
        save,
    )

_LAZY = {
    "saprof.backends": ["Unsupported"],
    "saprof.counting": ["count", "teach_fvcore"],
    "saprof.models": [
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
    ],
}

__all__ = [
    "SAN",
    "SASA",
    "Cost",
    "Footprint",
    "ResNet",
    "ResNetConfig",
    "RetinaNet",
    "RetinaNetConfig",
    "SANConfig",
    "SASAConfig",
    "Unsupported",
    "aggregation",
    "attention_weights",
    "count",
    "create_model",
    "list_models",
    "load",
    "load_official",
    "optimize_for_inference",
    "pairwise_attention",
    "pairwise_concatenation",
    "pairwise_dot_product",
    "pairwise_hadamard_product",
    "pairwise_subtraction",
    "pairwise_summation",
    "patchwise_attention",
    "patchwise_clique_product",
    "patchwise_concatenation",
    "patchwise_star_product",
    "save",
    "stand_alone_attention",
    "teach_fvcore",
]


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'saprof' has no attribute {name!r}")
