"""`auto` computes small attentions by their parts, and says so."""

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

from saprof import sweep
from saprof.layers import ATTENTION, AttentionConfig, LocalAttention
from saprof.layers.block import SelfAttentionBlock
from saprof.layers.choice import LEAST, LEAST_JOINED, Least, Size, faster_by_parts, joins, why_by_parts
from saprof.operators import OPERATORS
from saprof.operators.footprint import Footprint
from saprof.records.ratios import within_rounds
from saprof.records.rows import read_rows

RECORDED = Path(__file__).parents[2] / "studies" / "recorded" / "auto_cpu"
SMALL, LARGE = (2, 64, 8, 8), (8, 64, 64, 64)


def layer(family="pairwise", attention="auto", footprint=3):
    torch.manual_seed(0)
    return ATTENTION[family](64, Footprint.square(footprint), AttentionConfig(family=family, attention=attention))


def test_the_size_is_that_of_the_map_that_gamma_reads():
    assert layer().size(torch.empty(2, 4, 8, 6)) == Size(images=2, centres=48, taps=9, channels=4)
    assert Size(2, 48, 9, 4).elements == 3456


@pytest.mark.parametrize(("family", "gradient"), LEAST)
def test_small_ones_are_faster_by_parts_on_a_cpu(family, gradient):
    least = LEAST[family, gradient]
    at = Size(1, 1, max(least.pairs, 1), max(1, -(-least.elements // max(least.pairs, 1))))
    assert not faster_by_parts(family, at, "cpu", gradient)
    few = [Size(1, 1, 1, least.elements - 1)] + ([Size(1, 1, least.pairs - 1, 1000)] if least.pairs else [])
    for below in few:
        assert faster_by_parts(family, below, "cpu", gradient)
        assert not faster_by_parts(family, below, "cuda", gradient)


def test_the_reason_names_what_is_small(monkeypatch):
    least = {("pairwise", True): Least(800_000, pairs=30_000), ("patchwise", False): Least(60_000)}
    monkeypatch.setattr("saprof.layers.choice.LEAST", least)
    assert why_by_parts("pairwise", Size(1, 100, 9, 4), True) == "3,600 elements with a gradient, fused from 800,000"
    assert why_by_parts("pairwise", Size(1, 100, 9, 999), True) == "900 pairs with a gradient, fused from 30,000"
    assert why_by_parts("patchwise", Size(1, 1, 9, 4), False) == "36 elements without a gradient, fused from 60,000"


def test_other_families_are_fused():
    assert not faster_by_parts("stand_alone", Size(1, 1, 1, 1), "cpu", gradient=True)
    assert not faster_by_parts(None, Size(1, 1, 1, 1), "cpu", gradient=True)


@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_a_layer_chooses_by_size(family):
    module, small = layer(family), torch.randn(SMALL)
    module(small).sum().backward()
    assert module.ran == "composed on numba"
    reason = why_by_parts(family, Size(2, 64, 9, 4), gradient=True)
    assert reason == f"4,608 elements with a gradient, fused from {LEAST[family, True].elements:,}"
    assert f"ran composed on numba: {reason}" in repr(module)
    module(torch.randn(LARGE)).sum().backward()
    assert module.ran == "fused on numba"
    assert module.why_composed is None


def test_without_a_gradient_the_size_counts_less():
    module = layer()
    module(torch.randn(SMALL))
    assert module.ran == "composed on numba"
    with torch.no_grad():
        module(torch.randn(SMALL))
    assert module.ran == "fused on numba"


def test_only_auto_chooses():
    for attention in ("fused", "composed"):
        module = layer(attention=attention)
        module(torch.randn(SMALL))
        assert module.ran == f"{attention} on numba"
        assert module.why_composed is None


def test_what_is_small_is_not_checked_for_obstacles(monkeypatch):
    """The checks take longer than a relation of few pixels."""
    module, asked = layer(), []
    obstacle = type(module).obstacle
    monkeypatch.setattr(type(module), "obstacle", lambda self: asked.append(self) or obstacle(self))
    module(torch.randn(SMALL))
    assert not asked
    module(torch.randn(LARGE))
    assert asked


@pytest.mark.parametrize("change", [{"backend": "unfold"}, {"relation": "dot_product"}], ids=str)
def test_what_is_composed_whatever_its_size_is_not_called_small(change):
    config = AttentionConfig(**change) if "backend" in change else AttentionConfig()
    module = ATTENTION["pairwise"](64, Footprint.square(3), config)
    if "relation" in change:
        module.gamma[0].register_forward_hook(lambda *_: None)
    module(torch.randn(LARGE if "relation" in change else SMALL))
    assert module.ran.startswith("composed")
    assert "fused from" not in str(module.why_composed)


class Average(LocalAttention):
    """The average of β over the taps: an attention of a user, without a fused operator."""

    family = "pairwise"

    def __init__(self, channels):
        super().__init__(channels, Footprint.square(3), AttentionConfig())
        self.value_channels, self.linear = channels, nn.Conv2d(channels, channels, 1)

    def transform(self, x):
        return [self.linear(x)] * 3

    def alpha(self, phi, psi):
        return torch.full((len(phi), 1, self.footprint.taps, phi[0, 0].numel()), 1 / self.footprint.taps)

    @property
    def parts(self):
        return (OPERATORS["aggregation"],)


def test_an_attention_without_a_fused_operator_is_composed_at_any_size():
    module = Average(64)
    for shape in (SMALL, LARGE):
        module(torch.randn(shape))
        assert module.ran == "composed on numba"
        assert "alpha" in module.why_composed


@pytest.mark.parametrize(
    ("attention", "small", "large"), [("auto", False, True), ("fused", True, True), ("composed", False, False)]
)
def test_a_block_joins_its_layers_by_size(attention, small, large):
    """With `auto`; the results are the same."""
    assert joins(attention, LEAST_JOINED - 1) is small
    assert joins(attention, LEAST_JOINED) is large
    for shape, expected in ((SMALL, small), ((2, 64, 32, 32), large)):
        block = SelfAttentionBlock(64, 3, AttentionConfig(attention=attention))
        x = torch.randn(shape, requires_grad=True)
        seen, waiting = set(), [block(x).grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [before for before, _ in node.next_functions]
        assert any(node.name() == "_LinearsBackward" for node in seen) is expected


def test_compiled_it_chooses_once_per_side(compiler):
    """One graph for all small batches, and one for all large ones."""
    module, graphs = layer(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for n in (2, 3, 5, 64, 96):
        x = torch.randn(n, 64, 20, 20)
        torch.testing.assert_close(compiled(x), layer(attention="fused")(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 2


def test_a_row_says_what_ran(tmp_path):
    what = "--model san_mini_pairwise --size 8 --mode forward,train_step --backend numba --attention auto"
    how = "--seconds 0.01 --roofs skip --output"
    sweep.main([*what.split(), *how.split(), str(tmp_path / "run")])
    rows = {row.mode: row for row in read_rows(tmp_path / "run")}
    assert (rows["forward"].attention, rows["forward"].backend) == ("fused", "numba")
    assert (rows["train_step"].attention, rows["train_step"].backend) == ("composed", "numba")


def test_auto_was_not_slower_than_the_better_of_both():
    """In the recorded rounds no interval of auto / fused or auto / composed lies above 1.05."""
    rounds = defaultdict(list)
    for row in read_rows(RECORDED):
        rounds[row.rounds].append(row)
    compared = 0
    for auto, *others in rounds.values():  # the rows of one group, in the order of --attention auto,fused,composed
        assert [row.attention for row in others] == ["fused", "composed"]
        for other in others:
            if auto.status == other.status == "ok":
                compared += 1
                assert auto.samples_s
                assert other.samples_s
                assert within_rounds(auto.samples_s, other.samples_s).low <= 1.05, auto.key
    assert compared >= 20
