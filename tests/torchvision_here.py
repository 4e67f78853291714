"""torchvision, also where it was built for another torch.

Its wheel for GPUs does not load beside a torch for CPUs: it registers fakes of operators that were not loaded. They are
declared here, so that its networks can be built and run; these do not call them.
"""

import importlib
from types import ModuleType

import torch

_LIBRARIES: list[torch.library.Library] = []
"""The declarations, which end with their library."""


def torchvision() -> ModuleType:
    """The package, imported."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)
    return importlib.import_module("torchvision")
