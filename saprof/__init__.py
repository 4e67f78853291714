"""saprof takes local self-attention operators apart and measures them (SAN, CVPR 2020; SASA, NeurIPS 2019).

A public name is imported when it is first used, so that commands that do not need torch start quickly.
"""

from typing import TYPE_CHECKING

from saprof.lazy import lazy

if TYPE_CHECKING:
    from saprof.backends import Unsupported, run
    from saprof.functional import (
        aggregation,
        pairwise_attention,
        pairwise_concatenation,
        pairwise_dot_product,
        pairwise_hadamard_product,
        pairwise_subtraction,
        pairwise_summation,
        patchwise_attention,
        patchwise_clique_product,
        patchwise_concatenation,
        patchwise_star_product,
        stand_alone_attention,
    )
    from saprof.kept_memory import keep_memory
    from saprof.layers import LocalAttention2d
    from saprof.measure.function import measure
    from saprof.measure.profiling import profile
    from saprof.models import (
        SAN,
        SASA,
        FeatureMaps,
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
        replace_convolutions,
        save,
    )
    from saprof.models.counting import count, teach_fvcore
    from saprof.operators.cost import Cost
    from saprof.operators.footprint import Footprint

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy(__spec__)
