"""The layer that takes the place of a convolution."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import saprof
from saprof import LocalAttention2d
from saprof.layers import ATTENTION, AttentionConfig
from saprof.operators.footprint import BOUNDARIES, Footprint

FAMILIES = [*ATTENTION]


def layer(*args, **kwargs) -> LocalAttention2d:
    torch.manual_seed(0)
    return LocalAttention2d(*args, backend="unfold", **kwargs)


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("outputs", [16, 24])
@pytest.mark.parametrize("stride", [1, 2, 3, (1, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_attention_then_a_pool_then_a_linear_layer(family, stride, outputs, boundary):
    module = layer(16, outputs, 3, family, stride=stride, boundary=boundary)
    x = maps(2, 16, 7, 5).requires_grad_()
    y = module(x)
    assert y.shape == nn.Conv2d(16, outputs, 3, stride, padding=1)(x).shape

    alone = {"value_reduction": 1, "heads": 8 if outputs == 16 else 6}
    vectors = {"value_reduction": 4, "relation_reduction": 16 if outputs == 16 else 12, "share": outputs // 4}
    config = AttentionConfig(family=family, backend="unfold", **(alone if family == "stand_alone" else vectors))
    attention = ATTENTION[family](16, Footprint.square(3, boundary=boundary), config, outputs)
    attention.load_state_dict(module.attention.state_dict())
    expected = attention(x)
    if family != "stand_alone":
        expected = F.conv2d(expected, module.linear.weight, module.linear.bias)
    if stride != 1:
        expected = F.avg_pool2d(expected, stride, ceil_mode=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)

    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_with_as_many_outputs_it_is_the_attention_of_the_papers(family):
    """The config of the block's attention, with its reductions, fits the same state dict."""
    module = layer(32, 32, 3, family)
    reduction = 1 if family == "stand_alone" else 4
    usual = ATTENTION[family](32, module.attention.footprint, AttentionConfig(family=family, value_reduction=reduction))
    usual.load_state_dict(module.attention.state_dict())


def test_a_footprint_with_a_stride_leaves_out_centres():
    module = layer(8, 8, "square:3 stride=2", value_reduction=1, stride=3)
    assert module(maps(1, 8, 13, 7)).shape == (1, 8, 3, 2)
    dense = layer(8, 8, "square:3", value_reduction=1)
    dense.load_state_dict(module.state_dict())
    module.pool = None
    torch.testing.assert_close(module.eval()(maps(1, 8, 13, 7)), dense.eval()(maps(1, 8, 13, 7))[:, :, ::2, ::2])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 2), (3, 10), (5, 14), (48, 24), (24, 48), (30, 62)])
def test_defaults_fit_any_even_width(family, inputs, outputs):
    assert layer(inputs, outputs, 3, family)(maps(2, inputs, 4, 4)).shape == (2, outputs, 4, 4)


def test_odd_widths():
    assert layer(3, 7)(maps(2, 3, 4, 4)).shape == (2, 7, 4, 4)
    assert layer(3, 7, 3, "stand_alone", position="absolute")(maps(2, 3, 4, 4)).shape == (2, 7, 4, 4)


def test_boundaries_are_those_of_the_papers():
    assert str(layer(8, 8).attention.footprint) == "square:7"
    assert str(layer(8, 8, 7, "stand_alone").attention.footprint) == "square:7 boundary=exclude"
    assert str(layer(8, 8, 7, "stand_alone", boundary="reflect").attention.footprint) == "square:7"
    assert str(layer(8, 8, "disk:9 boundary=zero", boundary="zero").attention.footprint) == "disk:9 boundary=zero"


def test_bias():
    assert layer(8, 8, 3, bias=False).linear.bias is None
    alone = layer(8, 8, 3, "stand_alone", value_reduction=2, heads=2, bias=False)
    assert not any("bias" in name for name, _ in alone.named_parameters())
    assert layer(8, 8, 3, "stand_alone").attention.query.bias is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_copied_saved_exported_compiled_and_cast(family, compiler):
    module, x = layer(8, 12, 3, family, stride=2).eval(), maps(1, 8, 7, 6)
    y = module(x)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.export.export(module, (x,)).module(),
    ):
        torch.testing.assert_close(other(x), y)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    with torch.device("meta"):
        assert LocalAttention2d(8, 12, 3, family, stride=2)(torch.empty(1, 8, 7, 6)).shape == y.shape
    assert {p.dtype for p in LocalAttention2d(8, 12, 3, family, dtype=torch.float64).parameters()} == {torch.float64}
    assert {p.device.type for p in LocalAttention2d(8, 12, 3, family, device="meta").parameters()} == {"meta"}


@pytest.mark.deep
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_and_composed_agree(family):
    fused = LocalAttention2d(16, 24, 5, family, stride=2, backend="numba", attention="fused")
    composed = LocalAttention2d(16, 24, 5, family, stride=2, backend="unfold", attention="composed")
    composed.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fused(maps(2, 16, 9, 8)), composed(maps(2, 16, 9, 8)), rtol=1e-3, atol=1e-4)
    assert fused.attention.ran == "fused on numba"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f == "stand_alone" else pytest.mark.deep) for f in FAMILIES],
)
def test_an_operation_in_place_may_follow(family, stride):
    fused = LocalAttention2d(8, 8, 3, family, stride=stride, value_reduction=1, backend="numba", attention="fused")
    composed = layer(8, 8, 3, family, stride=stride, value_reduction=1)
    composed.load_state_dict(fused.state_dict())
    # float64 for the biases before a batch norm, whose gradients are 0; the patchwise kernel takes minutes to compile
    dtype, allowed = (torch.float32, 1e-3) if family == "patchwise" else (torch.float64, 1e-9)
    for module in (fused.to(dtype), composed.to(dtype)):
        F.relu(module(maps(2, 8, 5, 5).to(dtype)), inplace=True).square().sum().backward()
    for ours, theirs in zip(fused.parameters(), composed.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=allowed, atol=allowed)


WRONG = {
    "inputs": ((0, 8), {}, "in_channels is 0; expected a positive integer"),
    "outputs": ((8, "8"), {}, "out_channels is '8'; expected a positive integer"),
    "footprint": (
        (8, 8, 3.0),
        {},
        "footprint is 3.0; expected a Footprint, a size such as 7, or text such as 'disk:9'",
    ),
    "family": ((8, 8, 3, "conv"), {}, "unknown family 'conv'; expected 'pairwise', "),
    "no family": ((8, 8, 3, None), {}, "unknown family 'None'; expected 'pairwise', "),
    "relation": ((8, 8, 3, "pairwise", "mul"), {}, "unknown pairwise relation 'mul'; expected 'summation', "),
    "stride": ((8, 8), {"stride": 0}, "stride is 0; expected a positive integer"),
    "strides": (
        (8, 8),
        {"stride": (1, 1, 1)},
        "stride is (1, 1, 1); expected a positive integer, or two: rows, columns",
    ),
    "boundary": ((8, 8), {"boundary": "mirror"}, "unknown boundary 'mirror'; expected one of reflect, "),
    "no boundary": ((8, 8), {"boundary": ""}, "unknown boundary ''; expected one of reflect, "),
    "dtype": (
        (8, 8),
        {"dtype": "float32"},
        "dtype is 'float32'; expected a floating-point dtype such as torch.float32",
    ),
    "two boundaries": (
        (8, 8, "disk:5"),
        {"boundary": "zero"},
        "boundary is 'zero'; expected 'reflect', that of footprint ",
    ),
    "bias": ((8, 8), {"bias": None}, "bias is None; expected True or False"),
    "argument": ((8, 8), {"padding": 1}, "unknown argument of LocalAttention2d 'padding'; expected "),
    "unread": ((8, 8), {"heads": 4}, "heads is 4; expected 8, since pairwise attention does not read it"),
    "heads": ((8, 8, 7, "stand_alone"), {"heads": 3}, "heads is 3; expected a divisor of value channels = 8"),
    "reduction": ((8, 8), {"value_reduction": 3}, "value_reduction is 3; expected a divisor of channels = 8"),
    "odd": ((8, 7, 7, "stand_alone"), {}, "out_channels / value_reduction is 7; expected an even number, since half "),
}


@pytest.mark.parametrize(("args", "kwargs", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_explained(args, kwargs, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        LocalAttention2d(*args, **kwargs)


@pytest.mark.parametrize("shape", [(8, 5, 5), (1, 4, 5, 5)])
def test_wrong_inputs_are_explained(shape):
    with pytest.raises(ValueError, match=re.escape(f"input of LocalAttention2d is {shape}; expected (n, 8, h, w)")):
        layer(8, 8)(torch.zeros(shape))


@pytest.mark.parametrize("family", FAMILIES)
def test_attentions_take_a_size_and_refuse_other_configs(family):
    config = AttentionConfig(family=family, value_reduction=1, backend="unfold")
    small = ATTENTION[family](16, 3, config).eval()
    other = ATTENTION[family](16, Footprint.square(3), config).eval()
    other.load_state_dict(small.state_dict())
    torch.testing.assert_close(small(maps(1, 16, 4, 4)), other(maps(1, 16, 4, 4)))
    for wrong, message in (
        (None, "config is None; expected an AttentionConfig"),
        (next(AttentionConfig(family=f) for f in FAMILIES if f != family), "family of the config is '"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            ATTENTION[family](16, 3, wrong)
    with pytest.raises(ValueError, match=r"^footprint is 3.5; expected a Footprint"):
        ATTENTION[family](16, 3.5, config)


def test_operators_take_a_size_or_text(compiler):
    x = maps(1, 4, 5, 5)
    expected = saprof.pairwise_subtraction(x, x, footprint=Footprint.square(3), backend="unfold")

    def both(x):
        return [saprof.pairwise_subtraction(x, x, footprint=f, backend="unfold") for f in (3, "square:3")]

    for found in (*both(x), *torch.compile(both, backend="aot_eager", fullgraph=True)(x)):
        torch.testing.assert_close(found, expected)
