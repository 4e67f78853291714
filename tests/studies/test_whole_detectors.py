"""Whole detectors: their parts, and the detections of the parts."""

import pytest
import torch

import saprof
from studies.detection import whole
from studies.detection.anchors import SASA
from studies.detection.postprocess import Selection, detections

TINY = {"channels": (4, 4, 8, 8), "blocks": (1, 1, 1, 1), "width": 8, "num_classes": 3}
NAMES = [name for name in saprof.list_models() if name.startswith("retinanet")]


def test_it_finds_what_its_parts_find():
    torch.manual_seed(0)
    detector = saprof.create_model("retinanet_resnet50", **TINY).eval()
    network = whole.WholeDetector(detector).eval()
    images = torch.randn(2, 3, 64, 96)
    found = network(images)
    with torch.no_grad():
        logits, offsets, sizes = detector.predict(images)
    levels = SASA.boxes((64, 96), sizes, detector.strides, like=offsets)
    expected = detections(logits, offsets, levels, [(64, 96)] * 2, Selection(score=0.0))
    assert [len(each.scores) for each in found] == [100, 100]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_its_profile_has_four_parts():
    network = whole.WholeDetector(saprof.create_model("retinanet_resnet50", **TINY)).eval()
    profile = saprof.profile(network, torch.randn(1, 3, 64, 64), seconds=0.05, progress=False)
    parts = {row.layer for row in profile.rows} & {"backbone", "pyramid", "heads", "post_processing"}
    assert len(parts) == 4


@pytest.mark.parametrize("name", NAMES)
def test_every_named_detector_can_be_profiled_as_a_whole(name):
    with torch.device("meta"):
        network = getattr(whole, name)()
    assert [part for part, _ in network.named_children()] == ["backbone", "pyramid", "heads", "post_processing"]
    with torch.device("meta"):
        named = saprof.create_model(name)
    assert sum(x.numel() for x in network.parameters()) == sum(x.numel() for x in named.parameters())
