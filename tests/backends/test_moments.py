"""The mean and variance of all pairs against a walk over the pairs."""

import pytest
import torch

from saprof.backends import moments
from saprof.operators.footprint import Footprint

FOOTPRINTS = [
    *(Footprint.square(5, boundary=boundary) for boundary in ("reflect", "zero", "exclude", "replicate", "circular")),
    Footprint.square(3, stride=2),
    Footprint.square(3, 2),
    Footprint.square(9),
]
each_footprint = pytest.mark.parametrize("footprint", FOOTPRINTS, ids=str)


def pairs(offset, map_, footprint):
    """offset_i + map_j, (d, pairs)."""
    h, w = map_.shape[2:]
    padded = torch.nn.functional.pad(map_, (0, 1, 0, 1))  # the table has −1 for a tap outside, which reads 0
    rows, columns = footprint.rows(h), footprint.columns(w)
    taps = torch.stack([padded[:, :, r][:, :, :, c].flatten(2) for r, c in zip(rows, columns, strict=True)])
    return (offset + taps).permute(2, 0, 1, 3).flatten(1)


def maps(footprint, dtype=torch.float64):
    torch.manual_seed(0)
    map_ = torch.randn(2, 3, 6, 7, dtype=dtype) + 2
    h, w = footprint.output_size(6, 7)
    return torch.randn(2, 3, h * w, dtype=dtype) - 3, map_


@each_footprint
def test_mean_variance_and_gradients_are_those_of_all_pairs(footprint):
    inputs = [x.requires_grad_() for x in maps(footprint)]
    found = moments.of_pairs(*inputs, footprint)
    variance, mean = torch.var_mean(pairs(*inputs, footprint), 1, correction=0)
    weights = torch.randn(2, 3, dtype=torch.float64)
    for ours, expected in zip(found, (mean, variance), strict=True):
        torch.testing.assert_close(ours, expected)
    ours = torch.autograd.grad((torch.stack(found) * weights).sum(), inputs)
    expected = torch.autograd.grad((torch.stack([mean, variance]) * weights).sum(), inputs)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_large_mean_costs_no_digits():
    footprint = Footprint.square(5)
    offset, map_ = maps(footprint, torch.float32)
    mean, variance = moments.of_pairs(offset + 1000, map_ - 500, footprint)
    exact = torch.var_mean(pairs((offset + 1000).double(), (map_ - 500).double(), footprint), 1, correction=0)
    torch.testing.assert_close(variance, exact[0].float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean, exact[1].float(), rtol=1e-6, atol=0)


def test_the_sum_of_taps_is_an_operator_of_torch():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    operator = torch.ops.saprof_moments.sum_of_taps
    torch.library.opcheck(operator.default, (x, str(Footprint.square(3))))
    torch.autograd.gradcheck(lambda x: operator(x, str(Footprint.square(3, boundary="zero"))), x)
    torch.autograd.gradgradcheck(lambda x: operator(x, str(Footprint.square(3))), x)
