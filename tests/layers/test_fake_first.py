"""What a layer keeps from a pass over fake tensors, which have no values, does not reach a pass over real ones."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from saprof.layers import AttentionConfig, PairwiseAttention, PatchwiseAttention, StandAloneAttention

KINDS = (
    (PairwiseAttention, {"family": "pairwise"}),
    (PairwiseAttention, {"family": "pairwise", "relation": "dot_product"}),
    (PatchwiseAttention, {"family": "patchwise"}),
    (PatchwiseAttention, {"family": "patchwise", "relation": "star_product"}),
    (StandAloneAttention, {"family": "stand_alone"}),
)


@pytest.mark.parametrize("attention", ["fused", "composed"])
@pytest.mark.parametrize("boundary", ["reflect", "exclude"])
@pytest.mark.parametrize("number", range(len(KINDS)))
def test_a_fake_pass_leaves_nothing_behind(number, boundary, attention):
    kind, facts = KINDS[number]
    h, w = 11 + number, 13 + 2 * (boundary == "exclude") + (attention == "composed")  # no other test has these tables

    def layer(attention=attention, backend="auto"):
        return kind(64, f"5 boundary={boundary}", AttentionConfig(**facts, attention=attention, backend=backend))

    with FakeTensorMode():
        learn(layer(), torch.randn(2, 64, h, w))
    real, expected = layer().double(), layer("composed", "unfold").double()
    for parameter in real.parameters():  # a norm's bias of 0 puts the centre's own position on the kink of ReLU
        torch.nn.init.normal_(parameter, std=0.5)
    expected.load_state_dict(real.state_dict())
    x = torch.randn(2, 64, h, w, dtype=torch.float64)
    torch.testing.assert_close(learn(real, x), learn(expected, x), rtol=1e-7, atol=1e-9)


def learn(layer, x):
    """The output of a training step, and the gradients."""
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [*layer.parameters()])]
