"""The cost of whole models: exact integers, their parts, and the state that counting must not change."""

import copy
import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from saprof import Cost, count, create_model
from saprof.operators.workload import STAGES

EXPECTED = json.loads((Path(__file__).parents[1] / "data" / "expected_totals.json").read_text())
"""The 36 models of Tables 3 to 8 and Sec. 5.3, at 224 × 224: parameters, the authors' FLOPs, and what these are made
of: multiply-adds and biases of convolutions, the classifier, batch norm, ReLU, pooling, elementwise relations and
aggregations; and the inner products, which the authors do not count."""

INNER_PRODUCTS = ("pairwise_dot_product", "patchwise_star_product", "patchwise_clique_product")
SMALL = (3, 32, 32)


@pytest.fixture(scope="module")
def cost_of():
    """The cost of an expected model, counted once."""
    costs = {}

    def cost(name):
        if name not in costs:
            with torch.device("meta"):
                model = create_model(EXPECTED[name]["model"], **EXPECTED[name].get("overrides", {}))
            costs[name] = count(model)
        return costs[name]

    return cost


@pytest.mark.parametrize("name", EXPECTED)
def test_exact_totals(cost_of, name):
    cost = cost_of(name)
    assert (cost.params, cost.paper) == (EXPECTED[name]["params"], EXPECTED[name]["paper"])


@pytest.mark.parametrize("name", EXPECTED)
def test_exact_totals_by_kind(cost_of, name):
    expected, of = EXPECTED[name], cost_of(name).operators
    relations = [of[kind] for kind in of if kind.startswith(("pairwise", "patchwise"))]
    products = [of[kind] for kind in of if kind in (*INNER_PRODUCTS, "matmul")]
    counted = {
        "conv": of["conv2d"].macs,
        "bias": of["conv2d"].elementwise,
        "linear": of["linear"].macs,
        "batch_norm": of["batch_norm"].paper,
        "relu": of["relu"].paper,
        "pool": of["max_pool2d"].paper + of["adaptive_avg_pool2d"].paper,
        "relation": sum(cost.paper for cost in relations),
        "aggregation": of["aggregation"].macs if "aggregation" in of else 0,
        "inner_product": sum(cost.macs for cost in products),
    }
    assert counted == {kind: expected.get(kind, 0) for kind in counted}
    assert cost_of(name).macs == sum(counted[kind] for kind in ("conv", "linear", "aggregation", "inner_product"))


def test_36_distinct_models():
    assert len({(m["model"], json.dumps(m.get("overrides"))) for m in EXPECTED.values()}) == len(EXPECTED) == 36


def pairwise_block(c, k, p):
    """Parameters and paper FLOPs of a pairwise block: C channels, k taps, p positions (SAN Sec. 3.1, 3.4)."""
    r, v, g = c // 16, c // 4, c // 32
    d = r + 2
    linear = 2 * (c + 1) * r + (c + 1) * v + 6 + (v + 1) * c
    params = linear + 2 * c + 2 * d + d * r + 2 * r + (r + 1) * g + 2 * v
    return params, p * (linear + 3 * c + 3 * v) + k * p * (2 + r + 3 * d + d * r + 3 * r + (r + 1) * g + v)


def patchwise_block(c, k, p):
    """The same of a patchwise block (SAN Sec. 3.2)."""
    r, v, g = c // 16, c // 4, c // 32
    d = r * (k + 1)
    linear = 2 * (c + 1) * r + (c + 1) * v + d * g + (g + 1) * g * k + (v + 1) * c
    return linear + 2 * c + 2 * d + 2 * g + 2 * v, p * (linear + 3 * c + 3 * d + 3 * g + k * v + 3 * v)


@pytest.mark.parametrize("stage", range(5))
@pytest.mark.parametrize(
    ("name", "size", "block"),
    [
        ("san10_pairwise", 7, pairwise_block),
        ("san10_patchwise", 7, patchwise_block),
        ("san10_pairwise_3x3", 3, pairwise_block),
        ("san10_patchwise_11x11", 11, patchwise_block),
    ],
)
def test_closed_form_of_a_block(cost_of, name, size, block, stage):
    channels, side = STAGES[stage]
    taps = (size if stage else 3) ** 2
    blocks = {path: cost for path, cost in cost_of(name).layers.items() if _is_block(path, stage)}
    assert len(blocks) == (2, 1, 2, 4, 1)[stage]
    for path, cost in blocks.items():
        assert (cost.params, cost.paper) == block(channels, taps, side * side), path


def _is_block(path, stage):
    return path.startswith(f"stages.{stage}.blocks.") and path.count(".") == 3


def test_parameters_of_a_pairwise_block_do_not_depend_on_its_footprint():
    for channels, _ in STAGES:
        params, _ = pairwise_block(channels, 49, 1)
        assert 512 * params == 323 * channels**2 + 137 * 16 * channels + 5120


NUMBERS = tuple(field.name for field in fields(Cost) if field.type == "int")


@pytest.mark.parametrize("name", ["san10_pairwise", "san10_patchwise", "san10_stand_alone", "resnet26"])
@pytest.mark.parametrize("number", NUMBERS)
def test_parts_sum_to_the_whole(cost_of, name, number):
    cost = cost_of(name)
    whole = getattr(cost, number)
    top = [layer for path, layer in cost.layers.items() if "." not in path]
    stem = ("relu", "max_pool2d") if name == "resnet26" and number != "params" else ()
    functional = sum(getattr(_stem(cost, kind), number) for kind in stem)
    assert sum(getattr(layer, number) for layer in top) + functional == whole > 0
    if number != "params":
        assert sum(getattr(kind, number) for kind in cost.operators.values()) == whole


def _stem(cost, kind):
    """The operations of ResNet's own forward between its children, on the 112 × 112 map of the stem."""
    inputs, outputs = 64 * 112 * 112, 64 * 56 * 56
    return {
        "relu": Cost(elementwise=inputs, paper=inputs, reads=4 * inputs, writes=4 * inputs),
        "max_pool2d": Cost(elementwise=8 * outputs, paper=inputs, reads=4 * inputs, writes=4 * outputs),
    }[kind]


def test_children_are_part_of_their_parent(cost_of):
    layers = cost_of("san10_pairwise").layers
    for path, layer in layers.items():
        children = [cost for name, cost in layers.items() if name.rpartition(".")[0] == path]
        for number in NUMBERS:
            assert sum(getattr(child, number) for child in children) <= getattr(layer, number), path
    block = layers["stages.1.blocks.0"]
    inside = sum(
        (layers[f"stages.1.blocks.0.{part}"] for part in ("norm_in", "attention", "norm_out", "expand")), Cost()
    )
    own = 2 * 256 * 56 * 56 + 64 * 56 * 56  # ReLU and residual sum on C channels, ReLU on C / 4
    assert block.elementwise - inside.elementwise == own
    assert (block.macs, block.params) == (inside.macs, inside.params)


@pytest.mark.parametrize("name", ["san10_pairwise", "san10_stand_alone", "resnet26"])
def test_parameters_by_layer(cost_of, name):
    with torch.device("meta"):
        model = create_model(name)
    expected = {path: sum(p.numel() for p in module.parameters()) for path, module in model.named_modules() if path}
    assert {path: layer.params for path, layer in cost_of(name).layers.items()} == expected


def test_a_model_by_name_on_a_device_or_in_training_costs_the_same(cost_of):
    model = create_model("san10_patchwise")
    assert count("san10_patchwise") == count(model.train()) == count(model.eval()) == cost_of("san10_patchwise")


def test_frozen_parameters_are_counted():
    model = create_model("san_mini_pairwise")
    cost = count(model)
    assert count(model.requires_grad_(False)) == cost
    assert cost.params == sum(p.numel() for p in model.parameters())


def test_a_model_in_training_on_a_small_image():
    """The last stage has one position, which batch norm refuses to train on."""
    model = create_model("san10_pairwise", num_classes=10, backend="unfold").train()
    cost = count(model, SMALL)
    assert cost.layers["stages.4.blocks.0"].paper == pairwise_block(2048, 49, 1)[1]
    assert cost.layers["head"].macs == 20480


def state(model):
    """All state that counting could change."""
    registries = [key for key in vars(model) if key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))]
    assert "_forward_hooks" in registries
    tensors = model.state_dict(keep_vars=True)
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [list(getattr(module, name).values()) for module in model.modules() for name in registries],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "tensors": {name: (id(x), x.device, x.requires_grad, x._version, x.grad) for name, x in tensors.items()},
        "bytes": {name: x.detach().numpy().tobytes() for name, x in tensors.items()},
    }


def prepared(model):
    """Partly in training, partly frozen, with running statistics of its own and a user's hook."""
    model.train()
    for index, module in enumerate(model.modules()):
        module.training = bool(index % 3)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_()
            module.num_batches_tracked.fill_(index)
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(_hook_of_a_user)
    return model


def _hook_of_a_user(module, inputs, output):
    return None


@pytest.mark.parametrize("name", ["san10_pairwise", "resnet26"])
def test_count_leaves_the_model_as_it_was(name):
    model = prepared(create_model(name, num_classes=10))
    before = state(model)
    count(model, SMALL)
    assert state(model) == before


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken on purpose")


def test_what_a_forward_keeps_is_not_left_on_the_meta_device():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("grid", None)
            self.last, self.all, self.by_size = None, [], {}

        def forward(self, x):
            if self.grid is None:
                self.grid = torch.arange(x.shape[-1], device=x.device)
            self.all.append(x)
            self.by_size[x.shape] = self.last = self.new = x
            return x * self.grid

    model = nn.Sequential(Keeps())
    before = vars(model[0]).keys()
    assert count(model, (3, 4, 5)).elementwise == 60
    assert (model[0].grid, model[0].last, model[0].all, model[0].by_size) == (None, None, [], {})
    assert vars(model[0]).keys() == before
    assert model(torch.ones(1, 3, 4, 5)).sum() == 12 * 10


def test_count_leaves_the_model_as_it_was_when_its_forward_raises():
    model = prepared(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), Broken())))
    before = state(model)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        count(model, SMALL)
    assert state(model) == before
    assert torch.is_grad_enabled()
    assert not torch.nn.functional.relu(torch.zeros(2)).is_meta


@pytest.mark.parametrize("size", [(3, 32), (3, 0, 32), (3, 32, -1), (3, 32.0, 32), (), ("3", 32, 32)], ids=str)
def test_bad_input_size(size):
    with pytest.raises(
        ValueError, match=r"^input_size is .*; expected three positive integers: channels, rows, columns"
    ):
        count(nn.Conv2d(3, 4, 1), size)


def test_unknown_model():
    with pytest.raises(ValueError, match=r"^unknown model 'san11'; expected "):
        count("san11")


def test_reads_and_writes_of_a_network(cost_of):
    """Each operation reads its inputs and weights, and writes its output, once, in float32."""
    head = cost_of("resnet26").layers["fc"]
    assert (head.reads, head.writes) == (4 * (2048 + 2048 * 1000 + 1000), 4 * 1000)
    image, stem = math.prod((3, 224, 224)), math.prod((64, 112, 112))
    conv = cost_of("resnet26").layers["conv1"]
    assert (conv.reads, conv.writes) == (4 * (image + 64 * 3 * 49), 4 * stem)


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.bfloat16, 2), (torch.float64, 8)], ids=str)
def test_bytes_are_those_of_the_dtype_of_the_weights(dtype, itemsize):
    model = create_model("resnet26", num_classes=10)
    single = count(model, SMALL)
    other = count(model.to(dtype), SMALL)
    assert (4 * other.reads, 4 * other.writes) == (itemsize * single.reads, itemsize * single.writes)
    assert other.macs == single.macs


class Applies(nn.Module):
    """Any function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(1),
        lambda x: nn.functional.pad(x, (1, 1)),
        lambda x: torch.cat([x, x]).transpose(1, 2).contiguous(),
        lambda x: x.masked_fill(torch.ones_like(x, dtype=torch.bool), 0.0)[:, 1:],
    ],
)
def test_moving_numbers_costs_nothing(function):
    assert count(Applies(function), (3, 8, 8)) == Cost()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, (3, 1), stride=2, padding=1, dilation=2),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.MaxPool2d(3),
        nn.AdaptiveAvgPool2d((None, 1)),
        nn.AdaptiveAvgPool2d(2),
        nn.Softmax(dim=1),
    ],
    ids=str,
)
def test_any_form_of_a_call_has_its_true_shape(layer):
    """The shapes that are known without running are those of torch."""
    written = count(layer, (3, 9, 9)).writes
    assert written == 4 * layer(torch.empty(1, 3, 9, 9)).numel()


def test_a_wrong_number_of_channels_is_no_count():
    with pytest.raises(RuntimeError, match="channel dimensions"):
        count("resnet26", (4, 32, 32))


@pytest.mark.parametrize(
    ("layer", "size", "elementwise"),
    [
        (nn.Softmax(1), (3, 4, 5), 5 * 60),  # maximum, difference, exponential, sum, quotient
        (nn.BatchNorm2d(3), (3, 4, 5), 2 * 60),
        (nn.ReLU(), (3, 4, 5), 60),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 7)), (3, 4, 5), 7),
        (nn.Conv2d(3, 2, 3), (3, 4, 5), 2 * 2 * 3),
        (nn.MaxPool2d(2), (3, 4, 6), (2 * 2 - 1) * (3 * 2 * 3)),
        (nn.AvgPool2d(2), (3, 4, 6), 3 * 4 * 6),  # of each window three sums and a quotient
        (nn.AdaptiveAvgPool2d(1), (3, 4, 5), 60),
        (nn.Conv2d(3, 2, 3, bias=False), (3, 4, 5), 0),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 7, bias=False)), (3, 4, 5), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_elementwise_operations_by_hand(layer, size, elementwise):
    cost = count(layer, size)
    assert cost.elementwise == elementwise
    assert cost.flops("hardware") == elementwise + 2 * cost.macs


@pytest.mark.parametrize(
    ("function", "elementwise"),
    [
        (lambda x: x + x, 60),
        (lambda x: x - 1, 60),
        (lambda x: 2 * x, 60),
        (lambda x: x / 2, 60),
        (lambda x: x.sin(), 60),
        (lambda x: x.amax((2, 3)), 60 - 3),
        (lambda x: x @ x.transpose(2, 3), 0),
        (lambda x: x.flatten(2).bmm(x.flatten(2).transpose(1, 2)), 0),
    ],
)
def test_elementwise_functions_by_hand(function, elementwise):
    assert count(Applies(function), (3, 4, 5)).elementwise == elementwise


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(3, 2, 3), 2 * 2 * 3 * 27),
        (nn.Conv2d(3, 6, 1, groups=3), 6 * 20),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 7)), 7 * 60),
        (Applies(lambda x: x @ x.transpose(2, 3)), 3 * 4 * 4 * 5),
        (Applies(lambda x: x.flatten(2).bmm(x.flatten(2).transpose(1, 2))), 3 * 3 * 20),
    ],
    ids=lambda value: type(value).__name__,
)
def test_multiply_adds_by_hand(layer, macs):
    assert count(layer, (3, 4, 5)).macs == macs


class Repeats(nn.Module):
    """A convolution with two names, and another one that shares its weight."""

    def __init__(self):
        super().__init__()
        self.first = self.again = nn.Conv2d(3, 3, 1)
        self.inside = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1))
        self.inside[1].weight = self.first.weight

    def forward(self, x):
        return self.inside(self.again(self.first(x)))


def test_what_has_several_names_is_counted_once():
    model = Repeats()
    before = state(model)
    cost = count(model, (3, 4, 5))
    assert state(model) == before
    assert model.inside[1].weight is model.again.weight
    assert cost.params == sum(p.numel() for p in model.parameters()) == 9 + 3 + 3
    assert {name: layer.params for name, layer in cost.layers.items()} == {
        "first": 12,
        "inside": 3,
        "inside.0": 0,
        "inside.1": 3,
    }
    assert cost.macs == 3 * 9 * 20  # it runs as often as it is called
    assert (cost.layers["first"].macs, cost.layers["inside"].macs) == (2 * 9 * 20, 9 * 20)


def test_shared_layers_of_a_network_are_counted_once():
    model = create_model("san_mini_patchwise")
    params, attention = count(model, SMALL).params, model.stages[0].blocks[0].attention
    shared = sum(p.numel() for p in attention.psi.parameters())
    attention.psi = attention.phi
    assert count(model, SMALL).params == params - shared == sum(p.numel() for p in model.parameters())


def test_a_group_of_a_convolution_multiplies_its_own_channels():
    assert count(nn.Conv2d(6, 4, 3, groups=2), (6, 5, 5)).macs == (4 * 3 * 3) * (3 * 3 * 3)


def test_a_network_in_half_precision_has_the_same_counts():
    model = create_model("san_mini_pairwise")
    expected, found = (count(net, (3, 32, 32)) for net in (model, copy.deepcopy(model).half()))
    assert (found.params, found.macs, found.elementwise) == (expected.params, expected.macs, expected.elementwise)
