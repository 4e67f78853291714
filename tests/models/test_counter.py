"""The counter at the dispatcher: on real tensors, forward and backward, fused and composed; and what has no rule."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from saprof import Cost, count, create_model
from saprof.layers.running import Running
from saprof.models.counter import Counter, Key

NETWORKS = ("resnet_mini", "san_mini_pairwise", "san_mini_patchwise", "san_mini_stand_alone", "sasa_mini")
COMPOSED = {"backend": "unfold", "attention": "composed"}


def build(name, **options):
    torch.manual_seed(0)
    return create_model(name, **({} if name == "resnet_mini" else options))


def counted(model, *inputs, backward=False):
    with Running(model) as running, Counter(lambda: running.path) as counter:
        output = model(*inputs)
        if backward:
            output.sum().backward()
    return counter


def total(counter, *, backward=None):
    """The sum of what was counted in the forward, in the backward or in both."""
    chosen = (x for key, x in counter.costs.items() if backward in (None, key.kind.endswith("_backward")))
    return sum(chosen, Cost())


@pytest.mark.parametrize("name", NETWORKS)
def test_real_tensors_cost_what_the_meta_device_counts(name, monkeypatch):
    monkeypatch.setattr("saprof.layers.block.eager", lambda x: False)  # a pool on a CPU runs other operators
    model = build(name, **COMPOSED).eval()
    expected = count(model, (3, 16, 16))
    counter = counted(model, torch.randn(1, 3, 16, 16, requires_grad=True))
    found = total(counter)
    numbers = ("macs", "elementwise", "paper", "reads", "writes")
    assert {n: getattr(found, n) for n in numbers} == {n: getattr(expected, n) for n in numbers}
    assert not counter.uncounted
    assert {key.kind for key in counter.costs} == {*expected.operators}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_backward_agree_with_torch(name):
    """The multiply-adds are those of FlopCounterMode; without gradients of the image they are less than three times
    those of the forward."""
    model, x = build(name, **COMPOSED), torch.randn(2, 3, 16, 16)
    counter = counted(model, x, backward=True)
    with FlopCounterMode(display=False) as expected:
        model(x).sum().backward()
    assert 2 * total(counter).macs == expected.get_total_flops()
    forward, backward = (total(counter, backward=which) for which in (False, True))
    assert 1.8 * forward.macs < backward.macs < 2 * forward.macs
    assert backward.paper == 0
    assert not counter.uncounted


@pytest.mark.parametrize("name", ["san_mini_pairwise", "resnet_mini"])
def test_a_backward_is_counted_where_its_forward_was(name):
    model = build(name, **COMPOSED)
    counter = counted(model, torch.randn(2, 3, 16, 16), backward=True)
    convolutions = {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    for kind in ("conv2d", "conv2d_backward"):
        assert {key.path for key in counter.costs if key.kind == kind} == convolutions
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {key.path for key in counter.costs if key.kind == "batch_norm_backward"} == norms
    assert all(counter.calls[Key(path, "batch_norm_backward")] == 1 for path in norms)


def test_a_second_backward_counts_again():
    model = nn.Linear(3, 4)
    with Counter() as counter:
        y = model(torch.randn(2, 3, requires_grad=True)).sum()
        y.backward(retain_graph=True)
        once = total(counter, backward=True).macs
        y.backward()
    assert total(counter, backward=True).macs == 2 * once == 2 * 2 * 2 * 3 * 4
    assert set(counter.costs) >= {Key("", "linear"), Key("", "linear_backward")}


@pytest.mark.parametrize(
    ("needs", "times"), [((True, True), 2), ((True, False), 1), ((False, True), 1)], ids=["both", "first", "second"]
)
def test_the_backward_of_a_declared_operator_costs_its_forward_per_gradient(needs, times):
    from saprof import Footprint, aggregation

    alpha, beta = torch.randn(1, 2, 9, 16), torch.randn(1, 4, 4, 4)
    for x, need in zip((alpha, beta), needs, strict=True):
        x.requires_grad_(need)
    with Counter() as counter:
        aggregation(alpha, beta, footprint=Footprint.square(3), backend="unfold").sum().backward()
    forward, backward = (counter.costs[Key("", kind)] for kind in ("aggregation", "aggregation_backward"))
    assert (forward.macs, backward.macs) == (4 * 16 * 9, times * 4 * 16 * 9)
    assert {key.kind for key in counter.costs} == {"aggregation", "aggregation_backward", "sum"}


@pytest.mark.deep
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", NETWORKS[1:])
def test_fused_costs_what_composed_does(name, training, monkeypatch):
    """In multiply-adds and in the `paper` convention; beside these, a fused attention computes scales and shifts of
    batch norms, one operation per channel, and its statistics are not counted again."""
    monkeypatch.setattr("saprof.layers.block.eager", lambda x: False)  # a product has no biases in `paper`
    x = torch.randn(1, 3, 8, 8)
    fused, composed = (
        counted(build(name, **how).train(training), x, backward=True)
        for how in ({"backend": "numba", "attention": "fused"}, COMPOSED)
    )
    for backward in (False, True):
        found, expected = (total(counter, backward=backward) for counter in (fused, composed))
        assert (found.macs, found.paper) == (expected.macs, expected.paper)
    assert any("attention" in key.kind for key in fused.costs)
    assert not fused.uncounted


def test_the_counter_leaves_nothing_behind():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.randn(2, 3, 4, 4)
    with Counter() as counter:
        y = model(x)
    before = dict(counter.costs)
    y.sum().backward()
    model(x)
    assert counter.costs == before

    with pytest.raises(RuntimeError), Counter():
        nn.functional.linear(x, torch.randn(4, 5))
    assert torch._C._len_torch_dispatch_stack() == 0 == torch._C._len_torch_function_stack()


def test_an_unknown_operator_is_named():
    @torch.library.custom_op("saprof_test::swirl", mutates_args=())
    def swirl(x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2

    swirl.register_fake(torch.empty_like)

    class Swirls(nn.Module):
        def forward(self, x):
            return swirl(swirl(x)) + 1

    model = nn.Sequential(nn.ReLU(), Swirls())
    with pytest.raises(
        ValueError,
        match=r"^cannot count Sequential: no cost is known for saprof_test::swirl \(called 2 times in '1'\); "
        "expected uncounted='list' to count the rest$",
    ):
        count(model, (3, 4, 5))
    cost = count(model, (3, 4, 5), uncounted="list")
    assert cost.uncounted == (("saprof_test::swirl", "1", 2),)
    assert cost.elementwise == 2 * 60


def test_operators_on_integers_and_those_of_functions_are_named():
    x = torch.ones(4, dtype=torch.long)
    with Counter() as counter:
        torch.bincount(x)
        torch.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, x * 2), (torch.tensor(0), x))
    assert {key.kind for key in counter.uncounted} == {"aten::bincount", "while_loop"}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_the_backward_of_layers_of_other_libraries_and_of_bags_is_counted():
    recurrent, bag = nn.LSTM(8, 6), nn.EmbeddingBag(10, 5)
    with Counter() as counter:
        recurrent(torch.randn(3, 4, 8))[0].sum().backward()
        bag(torch.zeros(3, 4, dtype=torch.long)).sum().backward()
    assert not counter.uncounted
    assert total(counter).macs == 3 * 12 * 24 * (8 + 6)
    assert counter.costs[Key("", "embedding_bag_backward")].elementwise == 60


def test_inference_mode_counts_the_same():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        counter = counted(model, x)
    expected = count(model, (3, 8, 8))
    assert (total(counter).macs, total(counter).elementwise) == (expected.macs, expected.elementwise)


@pytest.mark.parametrize("how", ["for_loop", "foreach", "fused"])
def test_the_step_of_an_optimizer_is_counted(how):
    weight = nn.Parameter(torch.ones(10))
    weight.grad = torch.ones(10)
    options = {} if how == "for_loop" else {how: True}
    with Counter() as counter:
        torch.optim.SGD([weight], 0.1, momentum=0.9, weight_decay=0.1, **options).step()
    assert total(counter).elementwise >= 20
    assert not counter.uncounted
