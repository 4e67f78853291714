"""The detectors of SASA Table 2 from pixels to detections, with post-processing as a fourth part, for a profile:

    python -m saprof.profile studies.detection.whole:retinanet_sasa_resnet50 --size 256

Their weights are new, so the scores mean nothing. Predictions of any score therefore compete for the detections: at
most 1,000 of each level, and 100 of all are kept. In a trained detector fewer compete, so its post-processing is
shorter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import saprof
from studies.detection.anchors import SASA
from studies.detection.postprocess import Detections, Selection, detections


class PostProcessing(nn.Module):
    """Logits and offsets to the detections of each image: anchors, the best of each level, and suppression.

    On the device `meta` there are no detections: the number of boxes that compete depends on values. No FLOPs are lost,
    since no step is a matrix product.
    """

    def __init__(self, strides: Sequence[int], selection: Selection) -> None:
        super().__init__()
        self.strides, self.selection = tuple(strides), selection

    def forward(
        self, logits: Tensor, offsets: Tensor, sizes: Sequence[tuple[int, int]], image: tuple[int, int]
    ) -> list[Detections]:
        if logits.is_meta:
            return []
        levels = SASA.boxes(image, sizes, self.strides, like=offsets)
        return detections(logits, offsets, levels, [image] * len(logits), self.selection)


class WholeDetector(nn.Module):
    """Images to detections. `score` is the score above which a prediction competes."""

    def __init__(self, detector: saprof.RetinaNet, score: float = 0.0) -> None:
        super().__init__()
        self.backbone, self.pyramid, self.heads = detector.backbone, detector.pyramid, detector.heads
        self.post_processing = PostProcessing(detector.strides, Selection(score=score))

    def forward(self, x: Tensor) -> list[Detections]:
        maps = self.pyramid(self.backbone(x))
        logits, offsets = self.heads(maps)
        sizes = [(map_.shape[-2], map_.shape[-1]) for map_ in maps]
        with torch.no_grad():
            return self.post_processing(logits, offsets, sizes, (x.shape[-2], x.shape[-1]))


def _whole(name: str) -> WholeDetector:
    detector = saprof.create_model(name)
    assert isinstance(detector, saprof.RetinaNet)
    return WholeDetector(detector)


def retinanet_resnet50() -> WholeDetector:
    """Convolutions everywhere."""
    return _whole("retinanet_resnet50")


def retinanet_sasa_resnet50_convolution_stem_heads() -> WholeDetector:
    """Attention in the stages of the backbone alone."""
    return _whole("retinanet_sasa_resnet50_convolution_stem_heads")


def retinanet_sasa_resnet50_convolution_heads() -> WholeDetector:
    """Attention in the backbone alone."""
    return _whole("retinanet_sasa_resnet50_convolution_heads")


def retinanet_sasa_resnet50_convolution_stem() -> WholeDetector:
    """Attention in the stages of the backbone and in the heads."""
    return _whole("retinanet_sasa_resnet50_convolution_stem")


def retinanet_sasa_resnet50() -> WholeDetector:
    """Attention in the backbone and in the heads."""
    return _whole("retinanet_sasa_resnet50")
