"""Training steps of attention layers on the maps of an image of 64 × 64, fused beside composed, in interleaved rounds.

On maps this small, a backward that repeats the layers of γ costs more than the memory that it saves. A ratio above 1
means that the fused layer is slower.
"""

import pytest
import torch

from saprof.layers import ATTENTION, AttentionConfig
from saprof.measure.latency import interleave
from saprof.operators.footprint import Footprint
from saprof.operators.workload import STAGES
from saprof.records import environment

SHRUNK = 64 / 224


@pytest.mark.benchmark(group="training on small maps")
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_fused_beside_composed(family, batch, benchmark):
    calls = {}
    for channels, side in STAGES[1:]:
        x = torch.randn(batch, channels, *[max(1, round(side * SHRUNK))] * 2, requires_grad=True)
        for attention in ("fused", "composed"):
            config = AttentionConfig(family=family, attention=attention)
            layer = ATTENTION[family](channels, Footprint.square(7), config)
            calls[channels, attention] = lambda layer=layer, x=x: layer(x).sum().backward()
    latencies = benchmark.pedantic(interleave, (calls, "cpu", 1.0 * len(calls)), rounds=1)
    seconds = {name: latency.median for name, latency in latencies.items()}
    ratios = {f"C = {c}": seconds[c, "fused"] / seconds[c, "composed"] for c, _ in STAGES[1:]}
    benchmark.extra_info |= {"ratio": ratios, "where": environment.provenance("cpu", torch.get_num_threads())}
    print(f"\n{family}, n = {batch}, fused / composed:", *(f"{name}: {ratio:.2f}" for name, ratio in ratios.items()))
