"""SAN10 beside ResNet26, both folded for inference: interleaved rounds of images of 224²."""

import pytest
import torch

import saprof
from saprof.measure.latency import interleave

NAMES = ("resnet26", "san10_pairwise", "san10_patchwise")


@pytest.mark.parametrize("images", [1, 8])
def test_inference_beside_resnet(images, benchmark):
    x = torch.randn(images, 3, 224, 224)
    calls = {name: _forward(saprof.optimize_for_inference(saprof.create_model(name)), x) for name in NAMES}
    found = interleave(calls, "cpu", 8)
    ratios = {name: found[name].median / found[NAMES[0]].median for name in NAMES[1:]}
    print(f"{images} images:", *(f"{name} {ratio:.2f} times {NAMES[0]}" for name, ratio in ratios.items()))
    benchmark.extra_info |= {f"{name}_latency_s": latency.median for name, latency in found.items()}
    benchmark.extra_info |= {f"{name}_over_{NAMES[0]}": ratio for name, ratio in ratios.items()}
    benchmark.pedantic(calls["san10_pairwise"], rounds=3)


def _forward(model, x):
    def call():
        with torch.no_grad():
            return model(x)

    return call
