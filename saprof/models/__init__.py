"""Models: the networks of both papers and their baselines, by name; checkpoints, inference, and cost."""

from typing import TYPE_CHECKING

from saprof.lazy import lazy

if TYPE_CHECKING:
    from saprof.models.build import create_model
    from saprof.models.catalogue import list_models
    from saprof.models.checkpoints import load, load_official, save
    from saprof.models.features import FeatureMaps
    from saprof.models.inference import optimize_for_inference
    from saprof.models.replace import replace_convolutions
    from saprof.models.resnet import ResNet, ResNetConfig
    from saprof.models.retinanet import RetinaNet, RetinaNetConfig
    from saprof.models.san import SAN, SANConfig
    from saprof.models.sasa import SASA, SASAConfig
    from saprof.models.weights import attention_weights

__getattr__, __dir__, __all__ = lazy(__spec__)
