"""Attention layers on the maps of an image of 64 × 64, and the small networks of the studies: fused beside composed and
`auto`, in interleaved rounds.

On maps this small, a backward that repeats the layers of γ costs more than the memory that it saves. A ratio above 1
means that the fused layer is slower. `auto` is compared with the faster one of both.
"""

import pytest
import torch

from saprof.layers import ATTENTION, AttentionConfig
from saprof.measure.latency import interleave, ratio
from saprof.models import create_model
from saprof.operators.footprint import Footprint
from saprof.operators.workload import STAGES
from saprof.records import environment
from studies.reproduction.miniatures import SIDES, miniature

SHRUNK = 64 / 224


@pytest.mark.benchmark(group="small maps")
@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_fused_beside_composed(family, batch, mode, benchmark):
    calls, training = {}, mode == "training"
    for channels, side in STAGES[1:]:
        x = torch.randn(batch, channels, *[max(1, round(side * SHRUNK))] * 2, requires_grad=training)
        for attention in ("fused", "composed", "auto"):
            config = AttentionConfig(family=family, attention=attention)
            layer = ATTENTION[family](channels, Footprint.square(7), config).train(training)
            calls[channels, attention] = lambda layer=layer, x=x: _step(layer, x, training)
    latencies = benchmark.pedantic(interleave, (calls, "cpu", 1.0 * len(calls)), rounds=1)
    seconds = {name: latency.median for name, latency in latencies.items()}
    ratios = {f"C = {c}": seconds[c, "fused"] / seconds[c, "composed"] for c, _ in STAGES[1:]}
    better = {c: min(seconds[c, "fused"], seconds[c, "composed"]) for c, _ in STAGES[1:]}
    chosen = {f"C = {c}": seconds[c, "auto"] / better[c] for c in better}
    where = environment.provenance("cpu", torch.get_num_threads())
    benchmark.extra_info |= {"ratio": ratios, "auto": chosen, "where": where}
    for what, found in (("fused / composed", ratios), ("auto / the better of both", chosen)):
        shown = (f"{name}: {ratio:.2f}" for name, ratio in found.items())
        print(f"\n{family}, n = {batch}, {mode}, {what}:", *shown, end="")


@pytest.mark.benchmark(group="small networks")
@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("data", ["digits", "fashion"])
@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_networks_of_the_studies(family, data, batch, mode, benchmark):
    name, options = miniature(f"san10_{family}", {}, data)
    calls, training = {}, mode == "training"
    for attention in ("fused", "composed", "auto"):
        model = create_model(name, **options | {"attention": attention}).train(training)
        x = torch.randn(batch, next(model.parameters()).shape[1], SIDES[data], SIDES[data])
        calls[attention] = lambda model=model, x=x: _step(model, x, training)
    latencies = benchmark.pedantic(interleave, (calls, "cpu", 1.0 * len(calls)), rounds=1)
    better = min(("fused", "composed"), key=lambda attention: latencies[attention].median)
    found = ratio(latencies["auto"], latencies[better])
    where = environment.provenance("cpu", torch.get_num_threads())
    benchmark.extra_info |= {"auto": found.median, "low": found.low, "high": found.high, "where": where}
    seconds = (f"{attention} {1e3 * latency.median:.1f} ms" for attention, latency in latencies.items())
    shown = f"auto / {better} {found.median:.2f} ({found.low:.2f} to {found.high:.2f})"
    print(f"\n{data}, {family}, n = {batch}, {mode}:", *seconds, shown, end="")


def _step(layer, x, training):
    with torch.set_grad_enabled(training):
        y = layer(x)
        if training:
            y.sum().backward()
