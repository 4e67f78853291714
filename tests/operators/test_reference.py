"""The reference, on cases small enough to check by hand, and against independent computations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saprof.operators import (
    OPERATORS,
    aggregation,
    pairwise_concatenation,
    pairwise_dot_product,
    pairwise_hadamard_product,
    pairwise_subtraction,
    pairwise_summation,
    patchwise_clique_product,
    patchwise_concatenation,
    patchwise_star_product,
)
from saprof.operators.footprint import BOUNDARIES, Footprint
from saprof.operators.reference import reference, walk
from saprof.operators.workload import Workload, tiny

BESIDE = Footprint.from_offsets([(0, 0), (0, 1)], boundary="zero")
"""Two taps: the centre and its right neighbour."""
PHI = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).view(1, 2, 1, 2)
"""Two channels on a map of one row: φ is (1, 3) on the left and (2, 5) on the right."""
PSI = torch.tensor([[10.0, 20.0], [30.0, 40.0]]).view(1, 2, 1, 2)
"""ψ is (10, 30) on the left and (20, 40) on the right; further right it is (0, 0)."""


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        # channel, tap, position
        (pairwise_summation, [[[11, 22], [21, 2]], [[33, 45], [43, 5]]]),
        (pairwise_subtraction, [[[-9, -18], [-19, 2]], [[-27, -35], [-37, 5]]]),
        (pairwise_hadamard_product, [[[10, 40], [20, 0]], [[90, 200], [120, 0]]]),
        (
            pairwise_concatenation,
            [[[1, 2], [1, 2]], [[3, 5], [3, 5]], [[10, 20], [20, 0]], [[30, 40], [40, 0]]],
        ),
        (pairwise_dot_product, [[[100, 240], [140, 0]]]),  # 1·10 + 3·30, 2·20 + 5·40; 1·20 + 3·40, 0
        # channel, 1, position
        (patchwise_star_product, [[[100, 240]], [[140, 0]]]),
        (patchwise_clique_product, [[[100, 240]], [[140, 0]], [[170, 0]], [[240, 0]]]),  # 00, 01, 10 = 2·10 + 5·30, 11
        (
            patchwise_concatenation,
            [[[1, 2]], [[3, 5]], [[10, 20]], [[20, 0]], [[30, 40]], [[40, 0]]],  # φ, then both taps of each channel
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_relations_by_hand(operator, expected):
    result = reference(operator, [PHI, PSI], BESIDE)
    assert result.dtype == torch.float64
    assert result[0].tolist() == expected


def test_aggregation_by_hand():
    """β has channels 10 20 / 30 40 / 1 2 on two positions, α of one group (1, 2) and (3, 4) over both taps."""
    beta = torch.tensor([[10.0, 20.0], [30.0, 40.0], [1.0, 2.0]]).view(1, 3, 1, 2)
    alpha = torch.tensor([[1.0, 3.0], [2.0, 4.0]]).view(1, 1, 2, 2)
    # left: 1·10 + 2·20; right: 3·20 + 4·0
    assert reference(aggregation, [alpha, beta], BESIDE)[0].tolist() == [[[50, 60]], [[110, 120]], [[5, 6]]]


def test_centres_sit_at_multiples_of_the_stride():
    phi = torch.arange(15.0).view(1, 1, 3, 5)
    footprint = Footprint.from_offsets([(0, 0), (1, 0)], stride=2, boundary="replicate")
    # centres at 0, 2, 4 of the first row, and of the last, which the row below it repeats
    expected = [[0, 4, 8, 20, 24, 28], [5, 9, 13, 20, 24, 28]]
    assert reference(pairwise_summation, [phi, phi], footprint)[0, 0].tolist() == expected


def test_sharing_is_interleaved():
    """Channel c takes weight channel c mod g."""
    beta = torch.ones(1, 4, 1, 1)
    alpha = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)
    result = reference(aggregation, [alpha, beta], Footprint.square(1))
    assert result.flatten().tolist() == [3, 5, 3, 5]


def test_walk_by_hand():
    """A map a b c, from −4 to 6."""
    read = {
        boundary: "".join("abc"[at] if at is not None else "." for at in (walk(p, 3, boundary) for p in range(-4, 7)))
        for boundary in BOUNDARIES
    }
    assert read == {
        "reflect": "abcbabcbabc",
        "zero": "....abc....",
        "replicate": "aaaaabccccc",
        "circular": "cabcabcabca",
        "exclude": "....abc....",
    }


@pytest.mark.parametrize(("boundary", "mode"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
@pytest.mark.parametrize("size", range(1, 7))
def test_walk_is_numpy_pad(boundary, mode, size):
    expected = np.pad(np.arange(size), 20, mode=mode).tolist()
    assert [walk(p, size, boundary) for p in range(-20, size + 20)] == expected


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_aggregation_with_the_same_weights_everywhere_is_a_convolution(stride, dilation):
    """Depthwise, as its kernel is flipped by neither."""
    footprint = Footprint.square(3, dilation, stride=stride, boundary="zero")
    beta = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    kernel = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    expected = F.conv2d(beta, kernel, padding=dilation, dilation=dilation, stride=stride, groups=4)
    alpha = kernel.view(1, 4, 9, 1).expand(2, -1, -1, expected[0, 0].numel())
    torch.testing.assert_close(reference(aggregation, [alpha, beta], footprint), expected)


@pytest.mark.parametrize(
    ("boundary", "mode"), [("reflect", "reflect"), ("replicate", "replicate"), ("zero", "constant")]
)
def test_concatenation_is_unfold(boundary, mode):
    psi = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = F.unfold(F.pad(psi, (1, 1, 2, 2), mode), (5, 3)).view(2, 3, 15, 30)
    footprint = Footprint.rectangle(5, 3, boundary=boundary)
    result = reference(pairwise_concatenation, [psi, psi], footprint)
    torch.testing.assert_close(result[:, 3:], expected)
    torch.testing.assert_close(result[:, :3], psi.flatten(2).unsqueeze(2).expand_as(expected))


@pytest.mark.parametrize(
    "workload",
    [w for op in OPERATORS.values() for w in [*tiny(op), Workload(op, Footprint.disk(5, stride=2), n=2)]],
    ids=str,
)
def test_positions_are_columns_of_the_whole(workload):
    inputs = workload.tensors()
    whole = reference(workload.operator, inputs, workload.footprint)
    positions = [workload.sizes["p"] - 1, 0, 2]
    part = reference(workload.operator, inputs, workload.footprint, positions)
    flat = whole.flatten(2) if workload.operator.output.endswith("oh ow") else whole
    assert torch.equal(part, flat[..., positions])


@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("positions", [None, [0, 7]], ids=["everywhere", "at two"])
def test_gradients_flow_to_every_input(op, positions):
    workload = Workload(op, Footprint.square(3, boundary="exclude"), r=2, h=3, w=3, seed=1)  # all its ReLUs are active
    inputs = [x.double().requires_grad_() for x in workload.tensors()]
    assert torch.autograd.gradcheck(lambda *x: reference(op, x, workload.footprint, positions), inputs)
    gradients = torch.autograd.grad(reference(op, inputs, workload.footprint, positions).sum(), inputs)
    cancelled = {"bias"} if op.family == "pairwise" else set()  # a softmax does not depend on it
    for (name, _), gradient in zip(op.inputs, gradients, strict=True):
        assert (gradient.abs().max() > 1e-9) == (name not in cancelled), name


def test_what_lies_outside_has_no_gradient():
    """Under `zero`, a position is read by the centres around it and by no other."""
    beta = torch.zeros(1, 1, 1, 3, requires_grad=True)
    alpha = torch.ones(1, 1, 3, 3)
    reference(aggregation, [alpha, beta], Footprint.rectangle(1, 3, boundary="zero")).sum().backward()
    assert beta.grad.flatten().tolist() == [2, 3, 2]
    beta.grad = None
    reference(aggregation, [alpha, beta], Footprint.rectangle(1, 3)).sum().backward()
    assert beta.grad.flatten().tolist() == [2, 5, 2]  # reflected at both ends, the middle is read twice more


def test_an_empty_batch_is_empty():
    workload = Workload(aggregation, Footprint.square(3), n=0)
    assert reference(aggregation, workload.tensors(), workload.footprint).shape == (0, 4, 5, 5)


def test_refuses_what_operators_refuse():
    with pytest.raises(ValueError, match="axis r of psi is 1; expected 2, as in phi"):
        reference(pairwise_subtraction, [PHI, PSI[:, :1]], BESIDE)
