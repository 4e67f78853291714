"""Networks whose modules users replaced, hooked, parametrized or patched: a fast path runs only where it computes what
the modules do."""

import copy
import re
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize, prune

import saprof
from saprof import Footprint
from saprof.backends import Unsupported
from saprof.layers import (
    AttentionConfig,
    AttentionStem,
    LocalAttention,
    PairwiseAttention,
    PatchwiseAttention,
    SelfAttentionBlock,
    StandAloneAttention,
)
from saprof.operators import OPERATORS
from saprof.operators.attention import ATTENTIONS

KINDS = {"pairwise": PairwiseAttention, "patchwise": PatchwiseAttention, "stand_alone": StandAloneAttention}
SMALL = {"relation_reduction": 8, "value_reduction": 2, "share": 4}
NETWORK = SMALL | {"channels": (32, 64), "blocks": (1, 1), "footprints": (3, 3), "stem_stride": 1, "num_classes": 10}


def at_random(module, seed=0):
    """With norms as if trained."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in module.state_dict().items():
        if name.endswith("running_var"):
            x.copy_(torch.rand(x.shape, generator=generator) + 0.5)
        elif x.is_floating_point() and x.dim() == 1:
            x.add_(0.3 * torch.randn(x.shape, generator=generator))
    return module.eval()


def layer(family, kind=None, **config):
    torch.manual_seed(0)
    options = {"heads": 4} if family == "stand_alone" else SMALL
    kind = kind or KINDS[family]
    return at_random(kind(32, Footprint.square(3), AttentionConfig(family=family, **options | config)))


def image(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_parts(module):
    """A copy that is composed of operators of the backend unfold."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if hasattr(part, "footprint"):
            part.attention, part.backend = "composed", "unfold"
    return module


def close(got, expected, tolerance=1e-4):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


class Doubled(nn.Module):
    """A wrapper, as adapters are."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return 2 * self.module(x)


class Subclass(nn.ReLU):
    def forward(self, input):
        return input.sigmoid()


class Leaky(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) + 1


class Sized(nn.Sequential):
    def forward(self, input):
        return super().forward(2 * input)


class Half(nn.Module):
    def forward(self, x):
        return x / 2


class Marked(torch.Tensor):
    """Weights that compute in their own way, as quantized ones do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result * 1.5 if name == "conv2d" else result


def double(module, inputs, output):
    return 2 * output


def double_first(module, inputs):
    return (2 * inputs[0],)


def _replace(at, make):
    def change(module):
        module.gamma[at] = make(module.gamma[at])

    return change


def _same_weights(new, old):
    new.load_state_dict(old.state_dict())
    return new


def _convolution(old, kind=nn.Conv2d, **settings):
    return _same_weights(kind(old.in_channels, old.out_channels, 1, **{"bias": old.bias is not None} | settings), old)


def _biased(module):
    module.gamma[2].bias = nn.Parameter(image(module.gamma[2].out_channels))


def _bias_in_a_buffer(module):
    linear = module.gamma[2]
    del linear.bias
    linear.register_buffer("bias", torch.ones(linear.out_channels))


def _without_bias(module):
    module.gamma[5].bias = None


def _patched(at, name):
    def change(module):
        part = module.gamma if at is None else module.gamma[at]
        method = getattr(part, name)
        setattr(part, name, lambda *inputs: 2 * method(*inputs))

    return change


def _hooked(at, register, hook):
    def change(module):
        getattr(module.gamma if at is None else module.gamma[at], register)(hook)

    return change


def _other_weight(module):
    module.gamma[5].weight = nn.Parameter(module.gamma[5].weight.data.as_subclass(Marked))


def _padded(module):
    module.gamma[2].stride = 1


def _longer(module):
    module.gamma.append(nn.Tanh())


def _reordered(module):
    module.gamma[0], module.gamma[1] = module.gamma[1], module.gamma[0]


def _swap(module, name, value):
    setattr(module, name, value)


CHANGES = {
    "GELU": (_replace(1, lambda _: nn.GELU()), r"γ\[1\] is a GELU; expected a ReLU"),
    "GELU last": (_replace(4, lambda _: nn.GELU()), r"γ\[4\] is a GELU; expected a ReLU"),
    "identity": (_replace(1, lambda _: nn.Identity()), r"γ\[1\] is a Identity"),
    "subclass of ReLU": (_replace(4, lambda _: Subclass()), r"γ\[4\] is a Subclass; expected a ReLU"),
    "leaky ReLU": (_replace(4, lambda _: nn.LeakyReLU()), r"γ\[4\] is a LeakyReLU"),
    "GroupNorm": (_replace(0, lambda n: nn.GroupNorm(1, n.num_features)), r"γ\[0\] is a GroupNorm; expected a Bat"),
    "instance norm": (_replace(3, lambda n: nn.InstanceNorm2d(n.num_features)), r"γ\[3\] is a InstanceNorm2d"),
    "identity norm": (_replace(0, lambda _: nn.Identity()), r"γ\[0\] is a Identity; expected a BatchNorm2d"),
    "sync norm": (
        _replace(0, lambda n: _same_weights(nn.SyncBatchNorm(n.num_features), n).eval()),
        r"γ\[0\] is a SyncBatchNorm",
    ),
    "subclass of convolution": (_replace(2, lambda c: _convolution(c, Leaky)), r"γ\[2\] is a Leaky; expected a Conv2d"),
    "wrapper": (_replace(5, Doubled), r"γ\[5\] is a Doubled; expected a Conv2d"),
    "biased": (_biased, r"γ\[2\] is Conv2d\(.*; expected a linear layer of \d+ to \d+ channels, without a bias"),
    "without a bias": (_without_bias, r"γ\[5\] is Conv2d\(.*, with a bias"),
    "depthwise": (
        _replace(5, lambda c: nn.Conv2d(c.in_channels, c.out_channels, 1, groups=c.in_channels)),
        r"γ\[5\] is Conv2d\(.*groups=4.*; expected a linear layer",
    ),
    "3 × 1": (
        _replace(2, lambda c: nn.Conv2d(c.in_channels, c.out_channels, (1, 3), padding=(0, 1), bias=False)),
        r"γ\[2\] is Conv2d\(",
    ),
    "parametrized": (
        _replace(5, lambda c: parametrizations.weight_norm(_convolution(c))),
        r"γ\[5\] is a ParametrizedConv2d",
    ),
    "scaled weight": (
        lambda module: parametrize.register_parametrization(module.gamma[2], "weight", Half()),
        r"γ\[2\] is a ParametrizedConv2d",
    ),
    "pruned": (lambda module: prune.random_unstructured(module.gamma[5], "weight", 0.5), r"γ\[5\] has hooks"),
    "bias in a buffer": (_bias_in_a_buffer, r"γ\[2\] has a weight or bias that is no parameter"),
    "tensor subclass": (_other_weight, r"γ\[5\] holds a Marked; expected plain tensors"),
    "forward of a module": (_patched(1, "forward"), r"γ\[1\] has its own forward; expected that of its class"),
    "forward of γ": (_patched(None, "forward"), r"γ has its own forward"),
    "call of a module": (_patched(4, "_call_impl"), r"γ\[4\] has its own _call_impl"),
    "convolution of a module": (
        lambda module: setattr(module.gamma[5], "_conv_forward", lambda *_: _conv_twice(module.gamma[5], *_)),
        r"γ\[5\] has its own _conv_forward",
    ),
    "compiled": (
        lambda module: setattr(module.gamma[1], "_compiled_call_impl", lambda x: x.sigmoid()),
        r"γ\[1\] has its own _compiled_call_impl",
    ),
    "hook": (_hooked(1, "register_forward_hook", double), r"γ\[1\] has hooks, which would not be called"),
    "hook of a norm": (_hooked(3, "register_forward_hook", double), r"γ\[3\] has hooks"),
    "hook before": (_hooked(5, "register_forward_pre_hook", double_first), r"γ\[5\] has hooks"),
    "hook of γ": (_hooked(None, "register_forward_hook", double), r"γ has hooks, which would not be called"),
    "hook before γ": (_hooked(None, "register_forward_pre_hook", double_first), r"γ has hooks"),
    "longer": (_longer, r"γ has 7 layers; expected 6"),
    "reordered": (_reordered, r"γ\[0\] is a ReLU; expected a BatchNorm2d"),
    "γ in another container": (
        lambda module: _swap(module, "gamma", Sized(*module.gamma)),
        r"γ is a Sized; expected a Sequential",
    ),
    "wrapped γ": (lambda module: _swap(module, "gamma", Doubled(module.gamma)), r"γ is a Doubled"),
}


def _conv_twice(module, input, weight, bias):
    return nn.functional.conv2d(input, 2 * weight, bias)


def refused(module, reason):
    """The module composes under `auto`, says why, and refuses to be fused."""
    assert module.ran.startswith("composed")
    assert re.search(f"ran composed on numba: {reason}", repr(module))
    module.attention = "fused"
    with pytest.raises(Unsupported, match=f"^fused attention: {reason}.*; expected attention='composed' or 'auto'$"):
        module.plan(torch.float32, "cpu")
    module.attention = "auto"


@pytest.mark.deep_unless(case=lambda family, change: family == "patchwise" or change in ("GELU", "wrapped γ"))
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_a_changed_gamma_is_called(family, change):
    act, reason = CHANGES[change]
    module = layer(family)
    act(module)
    module.eval()
    x = image(2, 32, 4, 5)
    with torch.no_grad():
        got = module(x)
        refused(module, reason)
        # the unfused module itself, since a copy of it would call its methods on the original
        module.attention, module.backend = "composed", "unfold"
        close(got, module(x))
    assert (got - layer(family)(x)).abs().max() > 1e-4 or change in ("parametrized", "sync norm", "without a bias")


@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_an_unchanged_gamma_is_fused(family):
    module = layer(family)
    x = image(2, 32, 4, 5)
    close(module(x), by_parts(module)(x))
    assert module.ran.startswith("fused")
    assert module.why_composed is None
    for same in (copy.deepcopy(module), module.train().eval(), module.to(memory_format=torch.channels_last)):
        assert same.plan(torch.float32, "cpu")[0] == "fused"
    module.gamma[1], module.gamma[4] = nn.ReLU(inplace=True), nn.ReLU()
    close(module(x), by_parts(module)(x))
    assert module.ran.startswith("fused")
    handle = module.gamma.register_forward_hook(double)
    assert module.plan(torch.float32, "cpu")[0] == "composed"
    handle.remove()
    assert module.plan(torch.float32, "cpu")[0] == "fused"


@pytest.mark.parametrize(
    "register",
    [
        torch_module.register_module_forward_hook,
        torch_module.register_module_forward_pre_hook,
        torch_module.register_module_full_backward_hook,
        torch_module.register_module_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_hooks_of_all_modules_are_called(register):
    module, x = layer("pairwise", position="none"), image(2, 32, 4, 5).requires_grad_()
    called = []
    handle = register(lambda part, *_: called.append(part))
    try:
        module(x).sum().backward()
        refused(module, r"γ has hooks")
    finally:
        handle.remove()
    assert set(module.gamma) <= set(called)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_are_called(register):
    module, x = layer("patchwise"), image(2, 32, 4, 5).requires_grad_()
    called = []
    getattr(module.gamma, register)(lambda *_: called.append(1))
    module(x).sum().backward()
    assert called == [1]


# the attention itself


class Cold(PairwiseAttention):
    """With other weights."""

    def alpha(self, phi, psi):
        return super().alpha(phi, psi) ** 2


class Uncentred(PairwiseAttention):
    def position_relation(self, size):
        return 2 * super().position_relation(size)


class Gated(PatchwiseAttention):
    def compose(self, phi, psi, values):
        return super().compose(phi, psi, values).tanh()


class Flat(StandAloneAttention):
    def alpha(self, first, second):
        return super().alpha(first, second) * 0 + 1


class Own(Cold):
    """With a fused form of its own."""

    def fuse(self, phi, psi, beta, backend):
        return self.compose(phi, psi, beta)


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        ("pairwise", Cold, "alpha is overridden; expected that fuse is, too"),
        ("pairwise", Uncentred, "position_relation is overridden; expected that fuse is, too"),
        ("patchwise", Gated, "compose is overridden; expected that fuse is, too"),
        ("stand_alone", Flat, "alpha is overridden; expected that fuse is, too"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_subclass_with_other_weights_is_composed(family, kind, reason):
    module, x = layer(family, kind), image(2, 32, 4, 5)
    got = module(x)
    refused(module, reason)
    close(got, by_parts(module)(x))
    assert (got - layer(family)(x)).abs().max() > 1e-3
    assert layer("pairwise", Own).plan(torch.float32, "cpu")[0] == "fused"


PATCHES = [
    (PairwiseAttention, "alpha", "alpha of PairwiseAttention was replaced"),
    (LocalAttention, "compose", "compose of PairwiseAttention was replaced"),
    (nn.ReLU, "forward", "γ[1] runs a forward that replaced that of ReLU"),
]


@pytest.mark.parametrize(("owner", "name", "reason"), PATCHES, ids=[name for _, name, _ in PATCHES])
def test_a_method_replaced_in_a_class_is_called(owner, name, reason, monkeypatch):
    module, x = layer("pairwise"), image(1, 32, 5, 4)
    monkeypatch.setattr(owner, name, _twice(getattr(owner, name)))
    close(module(x), by_parts(module)(x))
    assert module.why_composed == reason


@pytest.mark.parametrize("family", KINDS)
def test_detached_parameters_are_used(family):
    module, x = layer(family), image(1, 32, 5, 4)
    parameters = {name: 2 * parameter.detach() for name, parameter in module.named_parameters()}
    expected = torch.func.functional_call(by_parts(module), parameters, (x,))
    close(torch.func.functional_call(module, parameters, (x,)), expected)
    assert module.ran == "fused on numba"
    gradient = torch.func.grad(lambda p: torch.func.functional_call(module, p, (x,)).square().sum())(parameters)
    assert gradient.keys() == parameters.keys()


@pytest.mark.parametrize("family", KINDS)
def test_other_weights_of_one_module_are_used(family):
    module, x = layer(family), image(2, 32, 4, 5)
    before, weigh = module(x), module.alpha
    module.alpha = lambda *maps: 2 * weigh(*maps)
    close(module(x), 2 * before)
    refused(module, "alpha is overridden")


@pytest.mark.parametrize("family", KINDS)
def test_replaced_transformations_are_called(family):
    module, x = layer(family), image(2, 32, 4, 5)
    for name in ("query", "key", "value") if family == "stand_alone" else ("phi", "psi", "beta"):
        setattr(module, name, nn.Sequential(getattr(module, name), nn.Tanh()))
    close(module(x), by_parts(module)(x))
    assert module.ran.startswith("fused")


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_a_replaced_position_is_called(position):
    module, x = layer("pairwise", position=position), image(2, 32, 4, 5)
    module.position = nn.Sequential(module.position, nn.Tanh())
    got = module(x)
    close(got, by_parts(module)(x))
    refused(module, "position is a Sequential; expected a Conv2d")
    assert (got - layer("pairwise", position=position)(x)).abs().max() > 1e-4


def test_a_changed_relation_is_computed():
    module, x = layer("pairwise"), image(2, 32, 4, 5)
    for name in ("summation", "hadamard_product"):
        module.relation = OPERATORS[f"pairwise_{name}"]
        close(module(x), by_parts(module)(x))
        assert module.ran.startswith("fused")
        assert module.fused_operator is ATTENTIONS["pairwise", name, "relative", "lrl"]
    module.position_encoding = "absolute"
    close(module(x), by_parts(module)(x))
    module.footprint = Footprint.cross(5, boundary="exclude")
    close(module(x), by_parts(module)(x))
    assert module.ran.startswith("fused")


def test_changed_groups_are_not_fused():
    module, x = layer("pairwise"), image(2, 32, 4, 5)
    expected = module(x)
    module.groups = 2
    close(module(x), expected)
    refused(module, r"γ\[5\] is Conv2d\(.*; expected a linear layer of 4 to 2 channels, with a bias")


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(
    "setting",
    [
        {"track_running_stats": False},
        {"affine": False},
        {"momentum": None},
        {"momentum": 0.5, "eps": 0.1},
        {"running_mean": None, "running_var": None},
        {"weight": None},
        {"bias": None},
        {"num_batches_tracked": None},
    ],
    ids=str,
)
def test_settings_of_a_norm_that_were_changed(setting, training):
    """Torch reads some of them at every call and some never."""
    module = layer("pairwise")
    for norm in (module.gamma[0], module.gamma[3]):
        for name, value in setting.items():
            setattr(norm, name, value)
    other, x = by_parts(module).train(training), image(2, 32, 4, 5)
    for _ in range(2):
        close(module.train(training)(x), other(x))
    assert module.ran.startswith("fused")
    for name, got in module.named_buffers():
        close(got, other.get_buffer(name))


def test_a_norm_that_torch_refuses_is_refused():
    module = layer("pairwise")
    module.gamma[0].running_mean = None
    with pytest.raises(RuntimeError):
        module(image(2, 32, 4, 5))


# what runs in place


@pytest.mark.parametrize("part", ["norm_in", "norm_out"])
def test_a_block_does_not_write_into_what_others_hold(part):
    torch.manual_seed(0)
    block = at_random(SelfAttentionBlock(32, Footprint.square(3), AttentionConfig(**SMALL)))
    x = image(2, 32, 4, 5)
    kept = {}
    handle = getattr(block, part).register_forward_hook(
        lambda module, _, output: kept.update(y=output, was=output.clone())
    )
    block(x)
    assert torch.equal(kept["y"], kept["was"])
    handle.remove()
    block.attention.register_forward_hook(lambda module, _, output: kept.update(y=output, was=output.clone()))
    block.norm_in = block.norm_out = nn.Identity()
    before, expected = x.clone(), x + block.expand(block.attention(x.relu()).relu())
    close(block(x), expected)
    assert torch.equal(x, before)
    assert torch.equal(kept["y"], kept["was"])


@pytest.mark.parametrize("at", ["stem.1", "stages.0.norm", "stages.0.blocks.0.norm_in"])
def test_features_are_seen_as_they_were(at):
    net = at_random(saprof.create_model("san10_patchwise", **NETWORK))
    kept = {}
    net.get_submodule(at).register_forward_hook(lambda module, _, output: kept.update(y=output, was=output.clone()))
    net(image(1, 3, 8, 8))
    assert torch.equal(kept["y"], kept["was"])


# the stem of stand-alone networks


def _stem(values="spatial_attention"):
    torch.manual_seed(0)
    return at_random(AttentionStem(8, values))


STEMS = {
    "hook": lambda stem: stem.query.register_forward_hook(double),
    "wrapper": lambda stem: _swap(stem, "key", Doubled(stem.key)),
    "bias": lambda stem: _swap(stem.query, "bias", nn.Parameter(image(8))),
    "forward": lambda stem: _swap(stem.key, "forward", lambda x: image(1, 8, 1, 1).expand(len(x), 8, *x.shape[2:])),
    "parametrized": lambda stem: parametrize.register_parametrization(stem.key, "weight", Half()),
    "values": lambda stem: _swap(stem.value, "values", Doubled(stem.value.values)),
    "hook of the values": lambda stem: stem.value.values.register_forward_hook(double),
    "definition": lambda stem: _swap(stem, "define", lambda x: torch.zeros(len(x) * 6, 4, 16, 16)),
}


@pytest.mark.parametrize("change", STEMS)
def test_a_changed_stem_is_called(change):
    stem, x = _stem(), image(2, 3, 8, 12)
    plain = stem(x)
    assert "as defined" not in repr(stem)
    STEMS[change](stem)
    got = stem(x)
    assert "as defined: " in repr(stem)
    alpha = stem.define(x).softmax(-1)
    y = stem.value.define(x).unflatten(1, (4, -1)) @ alpha.transpose(-1, -2)
    y = stem.bn(y.flatten(1, 2).unflatten(-1, (4, 4))).amax((-1, -2))
    close(got, y.view(2, 2, 3, -1).permute(0, 3, 1, 2))
    assert (got - plain).abs().max() > 1e-3


def test_a_stem_of_convolved_values_is_called():
    stem, x = _stem("convolution_values"), image(2, 3, 8, 12)
    expected = 2 * (stem(x) - stem.bn(torch.zeros(1, 8, 1, 1))) + stem.bn(torch.zeros(1, 8, 1, 1))
    stem.value = Doubled(stem.value)
    assert (stem(x) - expected).abs().max() < 1e-4


# networks


def _gelu(net):
    for module in [*net.modules()]:
        for name, part in module.named_children():
            if type(part) is nn.ReLU:
                setattr(module, name, nn.GELU())


def _at(path, act):
    return lambda net: act(net.get_submodule(path))


def _put(path, make):
    def change(net):
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, make(net.get_submodule(path)))

    return change


BLOCK = "stages.0.blocks.0"


def _plus_one(layers, x):
    for layer in layers:
        x = layer(x) + 1
    return x


def _share(net):
    """Two blocks with one attention, and norms of their own."""
    first, blocks = net.get_submodule(BLOCK), net.stages[0].blocks
    blocks.append(copy.deepcopy(first))
    blocks[1].attention = first.attention
    at_random(blocks[1].norm_out, seed=1)


NETWORKS = {
    "as built": lambda net: None,
    "GELU": _gelu,
    "stem norm": _put("stem.1", lambda n: nn.GroupNorm(4, n.num_features)),
    "stem convolution": _put("stem.0", Doubled),
    "stem hook": _at("stem", lambda m: m.register_forward_hook(double)),
    "stem without norm": lambda net: _swap(net, "stem", nn.Sequential(net.stem[0], nn.ReLU())),
    "stem norm of the batch": _put("stem.1", lambda n: nn.BatchNorm2d(n.num_features, track_running_stats=False)),
    "hook of a folded norm": _at(f"{BLOCK}.norm_out", lambda m: m.register_forward_hook(double)),
    "hook of an attention": _at(f"{BLOCK}.attention", lambda m: m.register_forward_hook(double)),
    "hook of values": _at(f"{BLOCK}.attention.beta", lambda m: m.register_forward_hook(double)),
    "hook of φ": _at(f"{BLOCK}.attention.phi", lambda m: m.register_forward_hook(double)),
    "φ without bias": _at(f"{BLOCK}.attention.phi", lambda m: _swap(m, "bias", None)),
    "ψ is φ": _at(f"{BLOCK}.attention", lambda m: _swap(m, "psi", m.phi)),
    "wrapped ψ": _put(f"{BLOCK}.attention.psi", Doubled),
    "wide values": _put(f"{BLOCK}.attention.beta", lambda b: nn.Conv2d(b.in_channels, b.out_channels, 3, padding=1)),
    "parametrized values": _at(
        f"{BLOCK}.attention.beta", lambda m: parametrize.register_parametrization(m, "weight", Half())
    ),
    "norm_out": _put(f"{BLOCK}.norm_out", lambda n: nn.GroupNorm(4, n.num_features)),
    "norm_out without weight": _put(f"{BLOCK}.norm_out", lambda n: nn.BatchNorm2d(n.num_features, affine=False)),
    "other weights": _at(f"{BLOCK}.attention", lambda m: _swap(m, "alpha", _twice(m.alpha))),
    "head": _put("head", lambda h: nn.Sequential(h, nn.Tanh())),
    "forward of the stem": _at("stem", lambda m: _swap(m, "forward", MethodType(_plus_one, m))),
    "a shared attention": _share,
    "a norm that stays in training": _at("stem.1", lambda m: _swap(m, "train", lambda mode=True: m)),
}


def _twice(function):
    return lambda *inputs: 2 * function(*inputs)


@pytest.mark.deep_unless(case=lambda family, change: family == "pairwise" or change in ("as built", "GELU"))
@pytest.mark.parametrize("change", NETWORKS)
@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_a_changed_network_gives_its_logits(family, change):
    torch.manual_seed(0)
    net = at_random(saprof.create_model(f"san10_{family}", **NETWORK))
    NETWORKS[change](net)
    net.eval()
    x = image(2, 3, 9, 8)
    with torch.no_grad():
        expected = by_parts(net)(x)
        close(net(x), expected)
        fast = saprof.optimize_for_inference(net)
        close(fast(x), expected)
        close(saprof.optimize_for_inference(fast)(x), expected)


RESNETS = {
    "norm": _put("layer1.0.bn2", lambda n: nn.GroupNorm(4, n.num_features)),
    "convolution": _put("layer1.0.conv1", Doubled),
    "hook": _at("layer1.0.conv3", lambda m: m.register_forward_hook(double)),
    "hook of the shortcut": _at("layer1.0.downsample", lambda m: m.register_forward_hook(double)),
    "shortcut": _put("layer1.0.downsample", lambda d: nn.Sequential(d[0], nn.Tanh(), d[1])),
    "short shortcut": _put("layer1.0.downsample", lambda d: d[0]),
    "stem": _put("conv1", lambda c: nn.Sequential(c, nn.Tanh())),
    "forward of a block": _at("layer1.0", lambda m: _swap(m, "forward", lambda x: m.bn3(m.conv3(m.bn1(m.conv1(x)))))),
}


@pytest.mark.parametrize("change", RESNETS)
def test_a_changed_resnet_gives_its_logits(change):
    torch.manual_seed(0)
    options = {"channels": (8, 16), "blocks": (1, 1), "num_classes": 5}
    net = at_random(saprof.create_model("resnet26", **options))
    RESNETS[change](net)
    x = image(2, 3, 16, 16)
    with torch.no_grad():
        expected = net(x)
        close(saprof.optimize_for_inference(net)(x), expected)


def test_a_network_that_cannot_be_copied_is_refused():
    net = saprof.create_model("resnet_mini")
    net.fc.cache = net.fc(torch.zeros(1, net.fc.in_features))  # has a graph
    with pytest.raises(ValueError, match=r"\Acannot copy this ResNet: [^\n]*\Z"):
        saprof.optimize_for_inference(net)


@pytest.mark.deep
@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
@torch.no_grad()
def test_a_compiled_layer_is_compiled_again_when_a_module_changes(family, compiler):
    module, x = layer(family), image(2, 32, 4, 5)
    compiled = compiler(module, fullgraph=True, backend="aot_eager")
    close(compiled(x), module(x))
    module.gamma[1] = nn.GELU()
    close(compiled(x), module(x), 1e-6)
    assert module.ran.startswith("composed")
    module.gamma[1] = nn.ReLU()
    close(compiled(x), module(x), 1e-6)
    module.gamma[4].forward = torch.sigmoid
    close(compiled(x), module(x), 1e-6)


@pytest.mark.deep
@torch.no_grad()
def test_a_compiled_stem_is_the_stem(compiler):
    stem, x = _stem(), image(2, 3, 8, 12)
    compiled = compiler(stem, fullgraph=True, backend="aot_eager")
    close(compiled(x), stem(x))
    stem.query = nn.Sequential(stem.query, nn.Tanh())
    close(compiled(x), stem(x))
