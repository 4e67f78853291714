"""The convolutions of any network replaced by attention."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision_here import torchvision

import saprof
from saprof import LocalAttention2d, replace_convolutions

HOW = {"footprint": 3, "backend": "unfold"}


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """The terminal is so wide that no line of a table is wrapped."""
    monkeypatch.setenv("COLUMNS", "300")


class Block(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding="same")
        self.shortcut = nn.Conv2d(inputs, channels, 1, stride)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return torch.relu_(self.conv2(y)) + self.shortcut(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.layer1 = Block(8, 8, 1)
        self.layer2 = Block(8, 16, 2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def names(replacement) -> list[str]:
    return [change.name for change in replacement.replaced]


BLOCKS = ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"]


def test_a_resnet_of_torchvision_becomes_the_stand_alone_network():
    """SASA's network has the parameters and operations of ResNet50 with its convolutions replaced."""
    torchvision()
    from torchvision.models import resnet50

    with torch.device("meta"):
        model = resnet50()
    replacement = replace_convolutions(model)
    assert names(replacement) == [f"layer{s}.{b}.conv2" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)]
    assert [kept.name for kept in replacement.kept] == ["conv1"]
    ours, theirs = saprof.count("sasa_resnet50_convolution_stem"), saprof.count(model)
    for what in ("params", "macs", "elementwise", "paper", "reads", "writes"):
        assert getattr(theirs, what) == getattr(ours, what), what
    assert {k: v.shape for k, v in model.state_dict().items() if "conv2" not in k} == {
        k: v.shape
        for k, v in saprof.models.build.blueprint("SASA", {"stem": "convolution"}).state_dict().items()
        if "conv2" not in k
    }


@pytest.mark.parametrize("family", ["stand_alone", "pairwise", "patchwise"])
def test_a_network_of_ones_own(family):
    model = net().eval()
    replacement = replace_convolutions(model, family=family, **HOW)
    assert replacement.model is model
    assert names(replacement) == BLOCKS
    assert all(isinstance(model.get_submodule(name), LocalAttention2d) for name in BLOCKS)
    assert {kept.name: kept.reason for kept in replacement.kept} == dict.fromkeys(
        ["stem.0", "stem.2"], "it is part of the stem; `which` can select it"
    )
    assert model.layer2.conv1.pool.kernel_size == (2, 2)
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 5)
    model.train()(torch.randn(2, 3, 9, 9)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert pickle.loads(pickle.dumps(model)).eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 5)


def test_a_bias_is_where_the_convolution_had_one():
    model = net()
    replace_convolutions(model, **HOW)
    assert model.layer1.conv1.attention.query.bias is None
    assert model.layer1.conv2.attention.query.bias is not None
    model = net()
    replace_convolutions(model, bias=False, **HOW)
    assert model.layer1.conv2.attention.query.bias is None


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("layer2", BLOCKS[2:]),
        (["layer1", "*.conv2"], [BLOCKS[0], BLOCKS[1], BLOCKS[3]]),
        ("stem.0", ["stem.0"]),
        (lambda name, module: module.stride == (2, 2), ["layer2.conv1"]),
        ([], []),
    ],
)
def test_which(which, expected):
    replacement = replace_convolutions(net(), which=which, **HOW)
    assert names(replacement) == expected
    assert {kept.reason for kept in replacement.kept} == {"`which` does not select it"}


def test_the_stem():
    def replaced(*layers: nn.Module) -> list[str]:
        return names(replace_convolutions(nn.Sequential(*layers), **HOW))

    def convolution(inputs: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, 8, 3, padding=1)

    assert replaced(convolution(3), convolution(8)) == ["1"]
    assert replaced(convolution(1), convolution(8)) == ["1"]
    assert replaced(convolution(8), convolution(8)) == ["0", "1"]  # the input is no image


def test_device_dtype_mode_and_gradients_are_kept():
    model = net().to(torch.bfloat16)
    model.layer1.eval().requires_grad_(False)
    replace_convolutions(model, **HOW)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(m.training for m in model.layer1.modules())
    assert all(m.training for m in model.layer2.modules())
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert all(p.requires_grad for p in model.layer2.parameters())


def test_a_copy():
    model = net()
    before = copy.deepcopy(model.state_dict())
    replacement = replace_convolutions(model, copy=True, **HOW)
    assert replacement.model is not model
    assert all(isinstance(replacement.model.get_submodule(name), LocalAttention2d) for name in BLOCKS)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert isinstance(model.layer1.conv1, nn.Conv2d)


def same(inputs: int = 8, **how) -> nn.Conv2d:
    return nn.Conv2d(inputs, **{"out_channels": 8, "kernel_size": 3, "padding": 1, **how})


def hooked() -> nn.Conv2d:
    module = same()
    module.register_forward_hook(lambda *_: None)
    return module


class Conv2dSame(nn.Conv2d):
    """Pads in its forward, like timm's."""


def own_forward() -> nn.Conv2d:
    module = same()
    module.forward = lambda x: x
    return module


def tied() -> nn.Module:
    pair = nn.Sequential(same(), same())
    pair[1].weight = pair[0].weight
    return pair


def shared() -> nn.Module:
    module = same()
    return nn.Sequential(module, module)


LEFT = {
    "transposed": (nn.ConvTranspose2d(8, 8, 3), "it is a ConvTranspose2d; expected a Conv2d"),
    "of volumes": (nn.Conv3d(8, 8, 3), "it is a Conv3d; expected a Conv2d"),
    "depthwise": (same(groups=8), "it has 8 groups; expected 1"),
    "grouped": (same(groups=2), "it has 2 groups; expected 1"),
    "no padding": (same(padding=0), "its padding (0, 0) changes the size of the map"),
    "valid": (same(padding="valid"), "its padding valid changes the size of the map"),
    "even": (same(kernel_size=2), "its padding (1, 1) changes the size of the map"),
    "wide dilation": (same(dilation=(1, 2), padding=(1, 2)), "it is dilated by 1 × 2, which footprint square:3 "),
    "subclass": (Conv2dSame(8, 8, 3, padding=1), "it is a Conv2dSame; expected a Conv2d"),
    "lazy": (nn.LazyConv2d(8, 3, padding=1), "it is a LazyConv2d; expected a Conv2d"),
    "parametrized": (parametrizations.weight_norm(same()), "it is a ParametrizedConv2d; expected a Conv2d"),
    "hooks": (hooked(), "it has hooks, which would not be called"),
    "own forward": (own_forward(), "it has its own forward; expected that of its class"),
    "shared": (shared(), "it is shared: it has several names"),
    "tied": (tied(), "its weight or bias is also that of another layer"),
    "odd width": (same(out_channels=7), "out_channels / value_reduction is 7; expected an even number"),
    "complex": (same(dtype=torch.complex64), "its weight is torch.complex64; expected real numbers"),
}


@pytest.mark.parametrize(("module", "reason"), LEFT.values(), ids=LEFT)
def test_what_cannot_be_replaced_is_left_with_the_reason(module, reason):
    module = copy.deepcopy(module)
    model = nn.Sequential(nn.Identity(), module, same())
    replacement = replace_convolutions(model, **HOW)
    assert names(replacement) == ["2"]
    assert replacement.kept
    assert all(kept.reason.startswith(reason) for kept in replacement.kept)
    assert model[1] is module
    assert reason in str(replacement)


def test_heads_that_do_not_divide_the_channels():
    model = nn.Sequential(same(), same(out_channels=12))
    replacement = replace_convolutions(model, heads=3, **HOW)
    assert names(replacement) == ["1"]
    assert replacement.kept[0].reason == "heads is 3; expected a divisor of value channels = 8"


def test_dilation_goes_to_the_footprint():
    model = nn.Sequential(same(dilation=2, padding=2))
    replace_convolutions(model, **HOW)
    assert str(model[0].attention.footprint) == "dilated:3x2 boundary=exclude"
    replacement = replace_convolutions(nn.Sequential(same(dilation=2, padding=2)), footprint="disk:5")
    assert replacement.kept[0].reason == "it is dilated by 2 × 2, which footprint disk:5 cannot follow"


def test_the_table():
    text = str(replace_convolutions(net(), **HOW))
    assert text.startswith("4 convolutions replaced, 2 kept\n\nreplaced")
    assert (
        "layer2.conv1  Conv2d 8 → 16, 3 × 3, stride 2 × 2  stand_alone 8 → 16, square:3 boundary=exclude, average"
        in (text)
    )


WRONG = {
    "no model": (lambda: "resnet50", {}, "model is of type str; expected an nn.Module"),
    "a convolution": (same, {}, "the model is itself a convolution; expected a module that holds convolutions"),
    "family": (net, {"family": "conv"}, "unknown family 'conv'; expected 'pairwise', "),
    "footprint": (net, {"footprint": 3.0}, "footprint is 3.0; expected a Footprint"),
    "field": (net, {"head": 3}, "unknown argument of LocalAttention2d 'head'; "),
    "heads": (net, {"heads": 0}, "heads is 0; expected a positive integer"),
    "boundary": (net, {"boundary": "mirror"}, "unknown boundary 'mirror'; expected one of"),
    "pattern": (net, {"which": "layer9"}, "unknown spatial convolution 'layer9'; expected 'stem', 'stem.0', "),
    "no convolution": (
        lambda: nn.Sequential(nn.ReLU()),
        {"which": "0"},
        "which has '0'; expected None, since the model ",
    ),
    "which": (net, {"which": 3}, "which is 3; expected names or patterns, or a function of name and module"),
    "bias": (net, {"bias": "no"}, "bias is 'no'; expected True or False"),
    "scripted": (lambda: torch.jit.script(nn.Sequential(same())), {}, "the model is of class RecursiveScriptModule, "),
    "compiled": (
        lambda: torch.compile(net()),
        {},
        "the model is of class OptimizedModule, whose layers cannot be replaced",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("model", "how", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_leave_the_model_as_it_was(model, how, message):
    model = model()
    before = [*model.modules()] if isinstance(model, nn.Module) else []
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        replace_convolutions(model, **how)
    assert before == ([*model.modules()] if before else [])


def test_an_error_on_the_way_leaves_the_model_as_it_was():
    class Fixed(nn.Sequential):
        def __setattr__(self, name, value):
            if name == "1":
                raise RuntimeError("fixed")
            super().__setattr__(name, value)

    model = Fixed(same(), same())
    before = [*model.modules()]
    with pytest.raises(RuntimeError, match="fixed"):
        replace_convolutions(model, **HOW)
    assert [*model.modules()] == before


def test_the_nearest_module_is_suggested():
    with pytest.raises(ValueError, match=r"did you mean 'layer2'\?$"):
        replace_convolutions(net(), which="layr2")
