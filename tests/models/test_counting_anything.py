"""Networks that are not ours: whatever computes is counted or named."""

import copy
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchvision_here import torchvision

from saprof import count, create_model
from saprof.models.counter import Counter


class Applies(nn.Module):
    """Any function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


# --- torchvision

FEW = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "convnext_tiny", "swin_t", "vit_b_32")
HUGE = {"regnet_y_128gf": "builds 2.6 GB of weights, because it cannot be built on the meta device"}


def classifiers():
    try:
        package = torchvision()
    except ImportError:
        return ["absent"]
    return package.models.list_models(module=package.models)


def classifier(name):
    package = pytest.importorskip("torchvision") and torchvision()
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if not name.startswith("regnet"):  # which reads values when it is built
        with torch.device("meta"):
            return package.models.get_model(name, weights=None, **options).eval()
    if name in HUGE:
        pytest.skip(HUGE[name])
    return package.models.get_model(name, weights=None).eval()


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.deep) for n in classifiers()])
def test_the_classifiers_of_torchvision_have_the_multiply_adds_that_torch_counts(name):
    model = classifier(name)
    cost = count(model)
    assert cost.params == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as expected, torch.no_grad():
        model.to("meta")(torch.empty(1, 3, 224, 224, device="meta"))
    assert 2 * cost.macs == expected.get_total_flops() > 0
    assert sum(part.macs for part in cost.operators.values()) == cost.macs


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_fvcore_counts_the_same_multiply_adds(name):
    from fvcore.nn import FlopCountAnalysis

    model = classifier(name)
    cost = count(model, (3, 64, 64))
    analysis = FlopCountAnalysis(model.to_empty(device="cpu"), torch.empty(1, 3, 64, 64))
    found = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    assert cost.macs == found["conv"] + found["linear"]


# --- by hand

X = torch.empty(2, 5, 8)
E, H = 8, 4


@pytest.mark.parametrize(
    ("module", "inputs", "macs"),
    [
        # four products of (10, 8) and (8, 8); for 2 images and 2 heads of 4 channels, 5 × 5 pairs, twice
        (nn.MultiheadAttention(E, 2, batch_first=True), (X, X, X), 4 * 10 * 64 + 2 * 4 * 25 * 4),
        (nn.TransformerEncoderLayer(E, 2, 16, batch_first=True), X, 4 * 10 * 64 + 2 * 4 * 25 * 4 + 2 * 10 * E * 16),
        (nn.LSTM(E, H), X, 10 * 4 * H * (E + H)),
        (nn.GRU(E, H), X, 10 * 3 * H * (E + H)),
        (nn.RNN(E, H), X, 10 * H * (E + H)),
        (nn.LSTM(E, H, num_layers=2, bidirectional=True), X, 10 * 2 * 4 * H * (E + H + 2 * H + H)),
        (nn.ConvTranspose2d(3, 4, 3, 2), torch.empty(1, 3, 8, 8), 64 * 3 * 4 * 9),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), torch.empty(1, 4, 8, 8), 64 * 4 * 3 * 9),
        (nn.Conv1d(3, 4, 3), torch.empty(1, 3, 9), 7 * 3 * 4 * 3),
        (nn.Conv3d(3, 4, 3), torch.empty(1, 3, 5, 5, 5), 27 * 3 * 4 * 27),
        (nn.Bilinear(E, H, 3), (X, torch.empty(2, 5, H)), 10 * E * H * 3),
        (nn.Linear(E, 3, bias=False), X, 10 * E * 3),
        (Applies(lambda x: torch.einsum("nth,nsh->nts", x, x)), X, 2 * 5 * 5 * 8),
        (Applies(lambda x: F.conv2d(x, torch.empty(4, 3, 3, 3), stride=2)), torch.empty(1, 3, 8, 8), 9 * 4 * 27),
        (Applies(lambda q: F.scaled_dot_product_attention(q, q, q)), torch.empty(1, 2, 5, 8), 2 * 2 * 25 * 8),
        (Applies(lambda x: F.affine_grid(x, [2, 3, 4, 5], False)), torch.empty(2, 2, 3), 2 * 4 * 5 * 2 * 3),
        (Applies(lambda x: torch._int_mm(x, x)), torch.empty(32, 32, dtype=torch.int8), 32 * 32 * 32),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_multiply_adds_by_hand(module, inputs, macs):
    assert count(module, inputs=inputs).macs == macs


def test_a_bag_of_rows_by_hand():
    indices = torch.zeros(3, 4, dtype=torch.long)
    for mode, weights, expected in (("sum", None, 60), ("sum", torch.empty(3, 4), 120), ("mean", None, 60 + 15)):
        assert count(nn.EmbeddingBag(10, 5, mode=mode), inputs=(indices, None, weights)).elementwise == expected


def test_a_mask_of_a_transformer_has_no_values():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    masked = count(model, inputs={"src": X, "src_key_padding_mask": torch.zeros(X.shape[:2], dtype=torch.bool)})
    assert masked.macs == count(model, inputs=X).macs
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_frozen_script_costs_what_the_module_does():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    script = torch.jit.freeze(torch.jit.script(module))
    for frozen in (script, nn.Sequential(script)):
        assert count(frozen, (3, 8, 8)).flops("hardware") == count(module, (3, 8, 8)).flops("hardware")


def test_three_dimensional_inputs_of_a_linear_layer_are_a_linear_layer():
    for bias in (True, False):
        cost = count(nn.Linear(8, 3, bias=bias), inputs=X)
        assert (cost.operators["linear"].macs, cost.paper) == (10 * 24, 10 * 24)
    assert count(Applies(lambda x: x[0] @ x[1].T), inputs=X).paper == 0


@pytest.mark.parametrize(
    ("function", "elementwise"),
    [
        (lambda x: x.exp_(), 96),
        (lambda x: F.relu_(x), 96),
        (lambda x: F.silu(x, inplace=True), 96),
        (lambda x: x.clamp_(0, 1), 96),
        (lambda x: torch.add(x, x, out=torch.empty_like(x)), 96),
        (lambda x: 1 - x, 96),
        (lambda x: x.max(1), 96 - 32),
        (lambda x: x.argmax(1), 96 - 32),
        (lambda x: x.sum(), 96 - 1),
        (lambda x: x.mean(1), 96),
        (lambda x: torch.var_mean(x, 1), 4 * 96),
        (lambda x: x.norm(dim=1), 2 * 96 - 32 + 32),
        (lambda x: F.max_pool2d(x, 2, return_indices=True), 3 * 24),
        (lambda x: F.avg_pool2d(x, 2, 1), 4 * 3 * 3 * 7),
        (lambda x: F.adaptive_avg_pool2d(x, (3, 3)), 3 * (2 + 2 + 2) * (3 + 4 + 3)),  # windows of 4 / 3 and 8 / 3
        (lambda x: F.adaptive_max_pool2d(x, (2, 2)), 96 - 12),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 7 * 4 * 96),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), 31 * 4 * 96),
        (lambda x: F.interpolate(x, scale_factor=2), 0),
        (lambda x: F.layer_norm(x, x.shape[1:]), 6 * 96),
        (lambda x: F.group_norm(x, 3, torch.empty(3), torch.empty(3)), 8 * 96),
        (lambda x: F.instance_norm(x), 6 * 96),
        (lambda x: F.gelu(x), 96),
        (lambda x: F.log_softmax(x, 1), 5 * 96),
        (lambda x: F.glu(x, 3), 2 * 48),
        (lambda x: x.cumsum(1), 96),
        (lambda x: x.sort(3), 96 * 3),
        (lambda x: x.topk(2, 3), 96 * 2),
        (lambda x: x.lerp(x, 0.5), 3 * 96),
        (lambda x: F.fold(x.flatten(1)[:, :, None], (2, 2), (2, 2)), 96),
        (lambda x: torch.zeros_like(x).index_add(1, torch.zeros(3, dtype=torch.long), x), 96),
        (lambda x: x[:, [0, 1]].flip(1).repeat(1, 2, 1, 1), 0),
        (lambda x: (x > 0).logical_not(), 0),
        (lambda x: F.dropout(x), 2 * 96),
        (lambda x: F.fractional_max_pool2d(x, 2, output_size=(2, 4)), 3 * 24),
    ],
)
def test_elementwise_operations_by_hand(function, elementwise):
    cost = count(Applies(function), (3, 4, 8))
    assert cost.elementwise == elementwise
    assert cost.macs == 0


# --- every way to call a module

BODY = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(144, 2, bias=False))
NUMBERS = ("params", "macs", "elementwise", "paper", "reads", "writes")


def numbers(cost):
    return {name: getattr(cost, name) for name in NUMBERS}


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda m: torch.compile(nn.DataParallel(m)),
        lambda m: nn.Sequential(torch.compile(m)),
        torch.jit.script,
        lambda m: torch.jit.trace(m.eval(), torch.rand(1, 3, 8, 8)),
        lambda m: nn.Sequential(torch.jit.script(m)),
        lambda m: m.train(),
        lambda m: m.requires_grad_(False),
        Applies,
    ],
    ids=[
        *("compiled", "data_parallel", "compiled_parallel", "compiled_child", "scripted", "traced", "scripted_child"),
        *("training", "frozen", "inside"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_wrapped_modules_cost_what_the_module_does(wrap):
    model = copy.deepcopy(BODY)
    before = {name: (x.clone(), x._version) for name, x in model.state_dict().items()}
    assert numbers(count(wrap(model), (3, 8, 8))) == numbers(count(BODY, (3, 8, 8)))
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name][0]), name


def test_a_module_that_is_compiled_in_place():
    model = copy.deepcopy(BODY)
    model.compile()
    assert count(model, (3, 8, 8)) == count(BODY, (3, 8, 8))


def test_a_parametrization_is_part_of_its_module():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
    cost = count(layer, inputs=X)
    assert cost.macs == 10 * 8 * 3
    assert cost.operators["weight_norm_interface"].elementwise == 3 * 24
    assert cost.params == 24 + 3 + 3


def test_tensors_that_are_no_parameters_take_part():
    scale, constant = torch.rand(3, 1, 1), torch.rand(8)
    cost = count(Applies(lambda x: (x * scale + constant).to("cpu")), (3, 4, 8))
    assert cost.elementwise == 2 * 96


def test_modules_with_two_parents_are_counted_in_both():
    shared = nn.Sequential(nn.Conv2d(3, 3, 1))
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared, nn.ReLU()))
    cost = count(model, (3, 4, 5))
    assert cost.macs == 2 * 9 * 20
    assert (cost.layers["0"].macs, cost.layers["1"].macs) == (9 * 20, 9 * 20)
    assert cost.layers["1.0.0"].macs == 9 * 20
    assert (cost.params, cost.layers["0"].params, cost.layers["1"].params) == (12, 12, 0)


def test_named_arguments_and_dicts():
    class Takes(nn.Module):
        def forward(self, a, *, b):
            return {"product": a @ b}

    assert count(Takes(), inputs={"a": torch.empty(3, 4), "b": torch.empty(4, 5)}).macs == 60


def test_a_named_model_has_its_own_size():
    assert count("san_mini_pairwise") == count(create_model("san_mini_pairwise"), (3, 32, 32))
    assert count("resnet26") == count("resnet26", (3, 224, 224))
    small = nn.Conv2d(1, 2, 1)
    small.default_cfg = {"input_size": (1, 28, 28)}
    assert count(small).macs == 2 * 28 * 28


# --- errors


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda x: x * x.sum().item(), "^aten::_local_scalar_dense needs the values of a tensor, but a network is "),
        (lambda x: x if x.sum() > 0 else -x, "^aten::_local_scalar_dense needs the values"),
        (lambda x: x.nonzero(), "^aten::nonzero needs the values"),
        (lambda x: x[x > 0], "^aten::(index|nonzero) needs the values"),
        (lambda x: x.unique(), "^aten::_unique2 needs the values"),
        (lambda x: x.tolist(), "^cannot count Applies from shapes alone: "),
        (lambda x: x.numpy(), "^cannot count Applies from shapes alone: "),
        (lambda x: torch.sparse.mm(torch.eye(8).to_sparse(), x[0, 0].T), "^cannot count Applies from shapes alone: "),
        (lambda x: torch.stft(x[0, 0], 4, window=torch.ones(4), return_complex=True), "^cannot count Applies from sh"),
        (lambda x: torch.linalg.svd(x), "no cost is known for aten::_linalg_svd .called 1 time in it.; expected uncou"),
    ],
)
def test_what_shapes_alone_do_not_tell(function, sentence):
    with pytest.raises(ValueError, match=sentence):
        count(Applies(function), (3, 4, 8))


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((3,), {}, "^model is of type int; expected an nn.Module, or the name of a model$"),
        ((nn.ReLU(), (3, 4, 8)), {"inputs": X}, "^count got both input_size and inputs; expected one of them$"),
        ((nn.ReLU(), 224), {}, "^input_size is 224; expected three positive integers: channels, rows, columns$"),
        ((nn.ReLU(),), {"inputs": "x"}, "^inputs is of type str; expected a tensor, a tuple or a dict$"),
        ((nn.ReLU(),), {"uncounted": "no"}, "^unknown uncounted 'no'; expected 'raise' or 'list'$"),
        ((nn.LazyLinear(3),), {}, "^cannot count LazyLinear: weight has no shape yet; expected a model that has run"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_bad_arguments(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        count(*arguments, **options)


# --- nothing is silent


class Watch(TorchDispatchMode):
    """Checks that the counter takes note of each operator that returns a number which was not there before."""

    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        before, known = self.taken(), {0.0, 1.0, *_values(given)}
        output = func(*args, **kwargs or {})
        found = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor)]
        computed = any(x.is_floating_point() for x in given) and not _values(found) <= known
        drawn = torch.Tag.nondeterministic_seeded in func.tags or "empty" in func._schema.name
        assert not computed or drawn or self.taken() > before, func
        return output

    def taken(self):
        return sum(self.counter.calls.values()) + sum(self.counter.uncounted.values())


def _values(tensors):
    return {value for x in tensors if x.is_floating_point() for value in x.detach().flatten().tolist()}


LAYERS = [
    lambda c: nn.Conv2d(c, c, 3, padding=1, groups=1 + (c % 2 == 0)),
    lambda c: nn.ConvTranspose2d(c, c, 1),
    lambda c: nn.BatchNorm2d(c),
    lambda c: nn.GroupNorm(1, c),
    lambda c: nn.InstanceNorm2d(c),
    lambda c: nn.LayerNorm([4, 4]),
    lambda c: nn.PReLU(),
    lambda c: nn.Hardswish(),
    lambda c: Applies(lambda x: F.silu(x.clone(), inplace=True)),
    lambda c: nn.Softmax(1),
    lambda c: nn.Dropout(),
    lambda c: nn.MaxPool2d(3, 1, 1),
    lambda c: nn.AvgPool2d(3, 1, 1),
    lambda c: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")),
    lambda c: nn.Sequential(nn.PixelShuffle(1), nn.ChannelShuffle(1), nn.ReflectionPad2d(1), nn.AvgPool2d(3, 1)),
    lambda c: Applies(lambda x: x + x.mean((2, 3), keepdim=True) * x.var(1, keepdim=True)),
    lambda c: Applies(lambda x: torch.cat([x.flip(1), x.roll(1, 2)], 1)[:, ::2]),
    lambda c: Applies(lambda x: x.exp().log1p().clamp_(min=0.1).rsqrt_()),
    lambda c: Applies(lambda x: ((x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2)).view(x.shape)),
    lambda c: Applies(lambda x: x.sort(1)[0] + x.cumsum(1) - x.max(1, keepdim=True)[0]),
    lambda c: Applies(lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1)),
    lambda c: Applies(lambda x: torch.where(x > 0, x, x * 0.5).masked_fill(x.isnan(), 0.0)),
    lambda c: Applies(lambda x: torch.linalg.matrix_exp(x)),
]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(range(len(LAYERS))), min_size=1, max_size=5), st.booleans(), st.integers(0, 99))
def test_nothing_is_silent_in_a_random_network(chosen, training, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(*(LAYERS[index](2) for index in chosen)).train(training)
    with Counter() as counter, Watch(counter):
        model(torch.rand(2, 2, 4, 4, requires_grad=True)).sum().backward()
    assert {key.kind for key in counter.uncounted} <= {"aten::linalg_matrix_exp"}


def test_the_watch_sees_a_silent_operator():
    x = torch.rand(3)
    with Counter() as counter, Watch(counter):
        counter.add = lambda key, cost: None
        with pytest.raises(AssertionError, match="sin"):
            x.sin()


@pytest.mark.parametrize("layer", LAYERS[:-1])
def test_meta_and_real_tensors_cost_the_same(layer):
    model = layer(2).eval()
    with torch.no_grad(), Counter() as counter:
        model(torch.rand(1, 2, 4, 4))
    expected = count(model, (2, 4, 4))
    for number in NUMBERS[1:]:
        assert sum(getattr(x, number) for x in counter.costs.values()) == getattr(expected, number), number


def test_what_a_network_keeps_between_calls_is_as_before():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.kept = deque(maxlen=3)
            self.scale = None

        def forward(self, x):
            if self.scale is None:
                self.scale = torch.ones(4, device=x.device)
            self.kept.append(self.linear(x * self.scale))
            return torch.cat(list(self.kept))

    network, x = Remembers(), torch.randn(2, 4)
    assert count(network, inputs=x).macs == count(network, inputs=x).macs == 2 * 4 * 4
    assert network.scale is None
    assert not network.kept
    assert network(x).shape == (2, 4)
