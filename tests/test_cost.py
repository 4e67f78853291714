"""Costs: the exact totals of every model of SAN, and agreement with three other ways of counting."""

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from saprof import Cost, Footprint, count, create_model, teach_fvcore
from saprof.backends import BACKENDS, why_not
from saprof.cost import CONVENTIONS, operator_cost
from saprof.operators import OPERATORS
from saprof.reference import reference
from saprof.workload import STAGES, Workload

EXPECTED = json.loads((Path(__file__).parent / "data" / "expected_totals.json").read_text())
"""The 36 models of Tables 3 to 8 and Sec. 5.3, at 224 × 224: parameters, the authors' FLOPs, and what these are made
of: multiply-adds and biases of convolutions, the classifier, batch norm, ReLU, pooling, elementwise relations and
aggregations; and the inner products, which the authors do not count."""

INNER_PRODUCTS = ("pairwise_dot_product", "patchwise_star_product", "patchwise_clique_product")
PRODUCTS = (*INNER_PRODUCTS, "aggregation")
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


NETWORKS = {
    "pairwise": ("san10_pairwise", {}),
    "pairwise-hadamard": ("san10_pairwise_hadamard_product", {"position": "none"}),
    "pairwise-concatenation": ("san10_pairwise_concatenation", {"position": "absolute", "mapping": "l"}),
    "pairwise-dot": ("san10_pairwise_dot_product", {}),
    "patchwise": ("san10_patchwise", {"boundary": "exclude"}),
    "patchwise-shared": ("san10_patchwise", {"transformations": "shared", "mapping": "lrlrl"}),
    "star": ("san10_patchwise_star_product", {"boundary": "zero"}),
    "clique": ("san10_patchwise_clique_product", {"footprints": ("square:3", "cross:5", "disk:5", 3, 7)}),
    "stand_alone": ("san10_stand_alone", {}),
    "resnet": ("resnet26_5x5", {}),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A model with one block per stage and few channels."""
    name, overrides = NETWORKS[request.param]
    if not name.startswith("resnet"):
        overrides = {"footprints": (3, 5, 5, 5, 5), "backend": "unfold", "channels": (64,) * 5} | overrides
    stages = 4 if name.startswith("resnet") else 5
    return create_model(name, num_classes=10, blocks=(1,) * stages, **overrides).eval()


def test_network_agrees_with_fvcore(network):
    cost = count(network, SMALL)
    analysis = fvcore_analysis(network, torch.zeros(1, *SMALL))
    assert analysis.total() == cost.flops("mac")
    assert analysis.by_module() == {name: layer.macs for name, layer in cost.layers.items()} | {"": cost.macs}
    assert set(analysis.unsupported_ops()) - NO_MACS == set()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_network_agrees_with_flop_counter_mode(network, device):
    cost = count(network, SMALL)
    network.to(device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *SMALL, device=device))
    assert counter.get_total_flops() == cost.flops("flop2") == 2 * cost.flops("mac")


NO_MACS = {
    "aten::index_select",
    "aten::max_pool2d",
    "aten::softmax",
    "aten::add",
    "aten::linspace",
    "aten::unflatten",
    "aten::masked_fill",
}
"""Operations that fvcore has no rule for, and that multiply nothing."""


def fvcore_analysis(module, inputs):
    """fvcore's count of multiply-adds: its own batch norm and average pool are elementwise counts."""
    from fvcore.nn import FlopCountAnalysis

    nothing = {f"aten::{name}": lambda inputs, outputs: 0 for name in ("batch_norm", "adaptive_avg_pool2d")}
    analysis = teach_fvcore(FlopCountAnalysis(module, inputs).set_op_handle(**nothing))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


FOOTPRINTS = [Footprint.square(3), Footprint.cross(5, stride=2, boundary="zero")]


@pytest.fixture(params=FOOTPRINTS, ids=str)
def footprint(request):
    return request.param


class Calls(nn.Module):
    """A module that does nothing but call an operator."""

    def __init__(self, operator, footprint):
        super().__init__()
        self.call = lambda *inputs: operator(*inputs, footprint=footprint, backend="unfold")

    def forward(self, *inputs):
        return self.call(*inputs)


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_agrees_with_fvcore(name, footprint):
    workload = Workload(OPERATORS[name], footprint, n=2)
    analysis = fvcore_analysis(Calls(OPERATORS[name], footprint), tuple(workload.tensors()))
    assert analysis.total() == operator_cost(OPERATORS[name], workload.sizes).macs
    assert not analysis.unsupported_ops()


@pytest.mark.parametrize("name", PRODUCTS)
def test_fvcore_needs_to_be_taught(name):
    from fvcore.nn import FlopCountAnalysis

    workload = Workload(OPERATORS[name], Footprint.square(3))
    analysis = FlopCountAnalysis(Calls(OPERATORS[name], workload.footprint), tuple(workload.tensors()))
    analysis.unsupported_ops_warnings(False)
    assert analysis.total() == 0
    assert set(analysis.unsupported_ops()) == {f"saprof::{name}"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_agrees_with_flop_counter_mode(name, device, backend, footprint):
    workload = Workload(OPERATORS[name], footprint, n=2)
    inputs = runnable(workload, backend, device)
    with FlopCounterMode(display=False) as counter:
        OPERATORS[name](*inputs, footprint=footprint, backend=backend)
    assert counter.get_total_flops() == operator_cost(OPERATORS[name], workload.sizes).flops("flop2")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_backward_of_a_product_costs_one_forward_per_gradient(name, wanted, backend, footprint):
    workload = Workload(OPERATORS[name], footprint, n=2)
    inputs = runnable(workload, backend, "cpu")
    for index in wanted:
        inputs[index].requires_grad_()
    output = OPERATORS[name](*inputs, footprint=footprint, backend=backend)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    forward = operator_cost(OPERATORS[name], workload.sizes).flops("flop2")
    assert counter.get_total_flops() == len(wanted) * forward > 0


def runnable(workload, backend, device):
    """The workload's inputs; skips with the reason why the backend cannot run it."""
    reason = why_not(backend, workload.operator, torch.float32, device, workload.footprint)
    if reason:
        pytest.skip(reason)
    return workload.tensors(device)


class Hand:
    """Inner products that count their multiply-adds one by one."""

    def __init__(self):
        self.macs = 0

    def dot(self, a, b):
        total = 0.0
        for x, y in zip(a, b, strict=True):
            total += x * y
            self.macs += 1
        return total


def dot_by_hand(hand, phi, psi):
    """[tap][position], of a pairwise dot product and of a star product."""
    return [[hand.dot(phi[i], psi[taps[j]]) for i, taps in TAPS.items()] for j in range(9)]


def clique_by_hand(hand, phi, psi):
    """[pair of taps][position]"""
    return [[hand.dot(phi[taps[j]], psi[taps[m]]) for taps in TAPS.values()] for j in range(9) for m in range(9)]


def aggregation_by_hand(hand, alpha, beta):
    """[channel][position]"""
    weight = alpha[0].permute(2, 0, 1).tolist()  # p g k
    groups = alpha.shape[1]
    return [
        [hand.dot(weight[p][c % groups], [beta[tap][c] for tap in taps]) for p, taps in enumerate(TAPS.values())]
        for c in range(len(beta[0, 0]))
    ]


BY_HAND = {
    "pairwise_dot_product": dot_by_hand,
    "patchwise_star_product": dot_by_hand,
    "patchwise_clique_product": clique_by_hand,
    "aggregation": aggregation_by_hand,
}


def mirrored(coordinate):
    """Reflection on an axis of 5 positions."""
    return 4 - abs(4 - abs(coordinate))


TAPS = {
    (y, x): [(mirrored(y + dy), mirrored(x + dx)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for y in range(5)
    for x in range(5)
}
"""The nine taps of each centre of a 5 × 5 map, by position."""


@pytest.mark.parametrize("name", PRODUCTS)
def test_multiply_adds_counted_by_hand(name):
    workload = Workload(OPERATORS[name], Footprint.square(3), dtype="float64")
    tensors = workload.tensors()
    hand = Hand()
    named = zip(OPERATORS[name].inputs, tensors, strict=True)
    arguments = [at_positions(x) if axes.endswith("h w") else x for (_, axes), x in named]
    output = torch.tensor(BY_HAND[name](hand, *arguments), dtype=torch.float64)
    expected = reference(OPERATORS[name], tensors, workload.footprint)
    torch.testing.assert_close(output.flatten(), expected.flatten())
    assert hand.macs == operator_cost(OPERATORS[name], workload.sizes).macs


def at_positions(x):
    """The channels of each position of a map."""
    return {(y, column): x[0, :, y, column].tolist() for y, column in TAPS}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_cost_of_memory_and_elementwise_work(name, footprint):
    workload = Workload(OPERATORS[name], footprint, n=2, dtype="float64")
    cost = operator_cost(OPERATORS[name], workload.sizes, workload.itemsize)
    output = OPERATORS[name](*workload.tensors(), footprint=footprint, backend="unfold")
    assert cost.reads == sum(x.nbytes for x in workload.tensors())
    assert cost.writes == output.nbytes
    assert cost.bytes == cost.reads + cost.writes
    arithmetic = name in ("pairwise_summation", "pairwise_subtraction", "pairwise_hadamard_product")
    assert cost.elementwise == (output.numel() if arithmetic else 0)
    assert (cost.macs > 0) == (name in PRODUCTS)
    assert cost.paper == (cost.macs if name == "aggregation" else cost.elementwise)
    assert (cost.params, cost.layers, cost.operators) == (0, {}, {})


def test_conventions():
    cost = Cost(macs=5, elementwise=3, paper=7)
    assert {name: cost.flops(name) for name in CONVENTIONS} == {"paper": 7, "mac": 5, "flop2": 10, "hardware": 13}


def test_unknown_convention():
    with pytest.raises(ValueError, match=r"^unknown convention 'bogus'; expected one of paper, mac, flop2, hardware$"):
        Cost().flops("bogus")


def test_addition():
    one = Cost(1, 2, 3, 4, 5, 6, layers={"a": Cost()}, operators={"b": Cost()})
    two = Cost(10, 20, 30, 40, 50, 60)
    assert one + two == two + one == Cost(11, 22, 33, 44, 55, 66)
    assert sum([one, two], Cost()) == one + two


NUMBERS = tuple(field.name for field in fields(Cost) if field.name not in ("layers", "operators"))


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
    """What ResNet's own forward does between its children, on the 112 × 112 map of the stem."""
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


def test_frozen_parameters_are_not_counted():
    model = create_model("resnet26", num_classes=10)
    params = count(model, SMALL).params
    model.fc.requires_grad_(False)
    assert count(model, SMALL).params == params - 10 * 2048 - 10


def test_a_model_in_training_on_a_small_image():
    """The last stage has one position, which batch norm refuses to train on."""
    model = create_model("san10_pairwise", num_classes=10, backend="unfold").train()
    cost = count(model, SMALL)
    assert cost.layers["stages.4.blocks.0"].paper == pairwise_block(2048, 49, 1)[1]
    assert cost.layers["head"].macs == 20480


def state(model):
    """Everything that counting could leave behind."""
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


class Applies(nn.Module):
    """Any function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (nn.functional.gelu, "gelu"),
        (lambda x: torch.einsum("nchw->nc", x), "einsum"),
        (lambda x: nn.functional.layer_norm(x, x.shape[1:]), "layer_norm"),
        (lambda x: x.exp(), "exp"),
    ],
    ids=["gelu", "einsum", "layer_norm", "exp"],
)
def test_arithmetic_without_a_known_cost_is_not_counted_as_none(function, name):
    with pytest.raises(ValueError, match=f"cannot count Applies: no cost is known for {name}$"):
        count(Applies(function), (3, 8, 8))


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
    """The shapes that are told without running are those of torch."""
    written = count(layer, (3, 9, 9)).writes
    assert written == 4 * layer(torch.empty(1, 3, 9, 9)).numel()


def test_a_wrong_number_of_channels_is_no_count():
    with pytest.raises(RuntimeError, match="channel dimensions"):
        count("resnet26", (4, 32, 32))
