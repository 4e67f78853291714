"""The cost of operators, and of networks of them, compared with fvcore, FlopCounterMode and counts by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from saprof import Cost, Footprint, count, create_model, teach_fvcore
from saprof.backends import BACKENDS, run, why_not
from saprof.operators import OPERATORS
from saprof.operators.cost import CONVENTIONS, Uncounted, operator_cost
from saprof.operators.cost_table import html, scaled
from saprof.operators.reference import reference
from saprof.operators.workload import Workload

PRODUCTS = ("pairwise_dot_product", "patchwise_star_product", "patchwise_clique_product", "aggregation")
SMALL = (3, 32, 32)

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
    """A module that only calls an operator."""

    def __init__(self, operator, footprint):
        super().__init__()
        self.call = lambda *inputs: run(operator, *inputs, footprint=footprint, backend="unfold")

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
        run(OPERATORS[name], *inputs, footprint=footprint, backend=backend)
    assert counter.get_total_flops() == operator_cost(OPERATORS[name], workload.sizes).flops("flop2")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_backward_of_a_product_costs_one_forward_per_gradient(name, wanted, backend, footprint):
    workload = Workload(OPERATORS[name], footprint, n=2)
    inputs = runnable(workload, backend, "cpu")
    for index in wanted:
        inputs[index].requires_grad_()
    output = run(OPERATORS[name], *inputs, footprint=footprint, backend=backend)
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
    output = run(OPERATORS[name], *workload.tensors(), footprint=footprint, backend="unfold")
    assert cost.reads == sum(x.nbytes for x in workload.tensors())
    assert cost.writes == output.nbytes
    assert cost.bytes == cost.reads + cost.writes
    if OPERATORS[name].degree is not None:  # test_attention.py tests operators with several parts
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


NETWORK = Cost(
    macs=2_532_705_038,
    elementwise=999_600,
    paper=12,
    reads=3,
    writes=4,
    params=10_531_848,
    layers={"stem": Cost(params=192), "stem.0": Cost(macs=99_950), "stem.0.<b>": Cost()},
)


def test_a_cost_is_printed_in_one_line():
    text = str(NETWORK)
    assert text == "10.5 M parameters, 2.53 G multiply-adds, 12 FLOPs (paper), 5.07 G FLOPs (hardware), 7 bytes"
    assert len(repr(NETWORK)) < 200
    listed = replace(NETWORK, uncounted=(Uncounted("mylib::op", "stem", 2), Uncounted("mylib::op", "", 1)))
    assert str(listed).endswith(", and 3 calls without a known cost")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (9_996, "10.0 k"),
        (99_950, "100 k"),
        (999_500, "1.00 M"),
        (10**15, "1.00 P"),
    ],
)
def test_counts_have_three_digits(number, text):
    assert scaled(number) == text


def test_a_table_of_modules():
    lines = NETWORK.table(1).splitlines()
    assert [line.split()[0] for line in lines] == ["module", "------", "all", "stem"]
    assert [line.split()[0] for line in NETWORK.table(2).splitlines()[2:]] == ["all", "stem", "0"]
    assert NETWORK.table(0, format="md").splitlines()[2].startswith("| all")
    assert "&lt;b&gt;" in html(NETWORK, 3)
    assert "<b>" not in html(NETWORK, 3)
    assert "<b>" not in NETWORK._repr_html_()
    with pytest.raises(ValueError, match=r"^depth is -1; expected an integer of at least 0$"):
        NETWORK.table(-1)
    with pytest.raises(ValueError, match=r"^unknown format 'html'; expected 'table' or 'md'$"):
        NETWORK.table(format="html")


def test_a_frame_has_exact_integers():
    frame = NETWORK.frame()
    assert list(frame.index) == ["", "stem", "stem.0", "stem.0.<b>"]
    assert frame.loc["", "flops_hardware"] == 2 * 2_532_705_038 + 999_600
    assert frame.loc["stem.0"].to_dict() == NETWORK.layers["stem.0"].figures
