"""Properties of every footprint, in particular of irregular ones, on every backend."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_footprint import NUMPY_MODES, OFFSETS

from saprof.backends import run, why_not
from saprof.layers import ATTENTION, AttentionConfig
from saprof.operators import OPERATORS, RELATIONS, aggregation, stand_alone
from saprof.operators.attention import pairwise_attention
from saprof.operators.footprint import BOUNDARIES, Footprint
from saprof.operators.workload import Workload

IRREGULAR = st.one_of(
    st.builds(Footprint.random, st.integers(1, 12), st.integers(0, 999)),
    st.builds(Footprint.from_offsets, OFFSETS),
)
SHAPES = IRREGULAR | st.builds(Footprint.rectangle, st.integers(1, 5), st.integers(1, 5))
SIZES = st.integers(1, 6)
MARGIN = 12
"""A map that is larger than the reach of the footprints."""

each_backend = pytest.mark.parametrize("backend", ["unfold", "numba"])
few = settings(max_examples=25)


def on_boundaries(shapes):
    return st.builds(
        lambda shape, stride, boundary: shape.with_(stride=stride, boundary=boundary),
        shapes,
        st.integers(1, 2),
        st.sampled_from(BOUNDARIES),
    )


def need(backend, operator, footprint):
    reason = why_not(backend, operator, torch.float64, "cpu", footprint)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def permuted(footprint, order):
    offsets = [footprint.offsets[j] for j in order]
    return Footprint.from_offsets(offsets, stride=footprint.stride, boundary=footprint.boundary)


@each_backend
@few
@given(data=st.data(), footprint=on_boundaries(IRREGULAR), height=SIZES, width=SIZES)
def test_pairwise_attention_is_of_a_set_of_taps(backend, data, footprint, height, width):
    """SAN Sec. 3.1: invariant to their permutation, its gradients as well."""
    need(backend, pairwise_attention, footprint)
    order = data.draw(st.permutations(range(footprint.taps)))
    workload = Workload(pairwise_attention, footprint, n=2, r=2, v=4, g=2, h=height, w=width, dtype="float64")
    inputs = [x.requires_grad_() for x in workload.tensors()]
    found = []
    for taps in (footprint, permuted(footprint, order)):
        y = run(pairwise_attention, *inputs, footprint=taps, backend=backend)
        found.append([y, *torch.autograd.grad(y, inputs, torch.linspace(-1, 1, y.numel()).to(y).view_as(y))])
    for one, other in zip(*found, strict=True):
        close(other, one)


@each_backend
@pytest.mark.parametrize("relation", RELATIONS["pairwise"])
@settings(max_examples=5)
@given(data=st.data(), footprint=on_boundaries(IRREGULAR))
def test_a_pairwise_relation_follows_its_taps(backend, relation, data, footprint):
    operator = OPERATORS[f"pairwise_{relation}"]
    need(backend, operator, footprint)
    order = data.draw(st.permutations(range(footprint.taps)))
    inputs = Workload(operator, footprint, h=4, w=3, dtype="float64").tensors()
    plain = run(operator, *inputs, footprint=footprint, backend=backend)
    other = run(operator, *inputs, footprint=permuted(footprint, order), backend=backend)
    close(other, plain[:, :, order])


@few
@given(footprint=on_boundaries(IRREGULAR), other=on_boundaries(SHAPES))
def test_pairwise_weights_fit_any_number_of_taps(footprint, other):
    """SAN Sec. 3.1, cardinality: the layer does not depend on the number of taps."""
    config = AttentionConfig(
        family="pairwise", relation_reduction=4, value_reduction=2, share=4, backend="unfold", attention="composed"
    )
    footprint, other = footprint.with_(stride=1), other.with_(stride=1)
    layer, moved = (ATTENTION["pairwise"](16, taps, config).double().eval() for taps in (footprint, other))
    moved.load_state_dict(layer.state_dict())
    x = torch.randn(1, 16, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = moved(x)
    assert y.shape == (1, 8, 4, 5)
    assert y.isfinite().all()
    alone = ATTENTION["pairwise"](16, Footprint.square(1), config).double().eval()
    alone.load_state_dict(layer.state_dict())
    close(alone(x), layer.beta(x))  # one tap, whose softmax is 1


@each_backend
@few
@given(footprint=on_boundaries(SHAPES), height=SIZES, width=SIZES, seed=st.integers(0, 99))
def test_aggregation_with_constant_weights_is_a_depthwise_convolution(backend, footprint, height, width, seed):
    """The same weights at every position: a kernel with zeros where the footprint has no tap."""
    need(backend, aggregation, footprint)
    generator = torch.Generator().manual_seed(seed)
    g, v = 2, 6
    weights = torch.randn(g, footprint.taps, dtype=torch.float64, generator=generator)
    beta = torch.randn(2, v, height, width, dtype=torch.float64, generator=generator)
    oh, ow = footprint.output_size(height, width)
    alpha = weights[None, :, :, None].expand(2, -1, -1, oh * ow).contiguous()
    got = run(aggregation, alpha, beta, footprint=footprint, backend=backend)

    (top, bottom), (left, right) = footprint.reach
    kernel = torch.zeros(g, bottom - top + 1, right - left + 1, dtype=torch.float64)
    for j, (dy, dx) in enumerate(footprint.offsets):
        kernel[:, dy - top, dx - left] = weights[:, j]
    around = [(0, 0), (0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)]
    padded = torch.from_numpy(np.pad(beta.numpy(), around, mode=NUMPY_MODES[footprint.boundary]))
    read = padded[..., MARGIN + top : MARGIN + height + bottom, MARGIN + left : MARGIN + width + right]
    kernels = kernel[torch.arange(v) % g]  # channel c is of group c mod g
    close(got, F.conv2d(read, kernels[:, None], stride=footprint.stride, groups=v))


@each_backend
@few
@given(footprint=on_boundaries(SHAPES), height=SIZES, width=SIZES)
def test_stand_alone_attention_without_positions_is_masked_attention(backend, footprint, height, width):
    operator = stand_alone.ATTENTIONS["content"]
    need(backend, operator, footprint)
    workload = Workload(operator, footprint, n=2, v=6, g=2, h=height, w=width, dtype="float64")
    query, key, value = workload.tensors()
    got = run(operator, query, key, value, footprint=footprint, backend=backend)

    # a position counts once per tap that reads it; the outside is one more position, of zeros
    flat = footprint.rows(height)[:, :, None] * width + footprint.columns(width)[:, None, :]
    flat = flat.flatten(1).where(footprint.inside(height, width), height * width)
    read = F.one_hot(flat, height * width + 1).sum(0).to(query)  # p positions
    if footprint.boundary == "exclude":
        read[:, -1] = 0
    oh, ow = footprint.output_size(height, width)
    centres = query[..., :: footprint.stride, :: footprint.stride].flatten(3)
    heads = [x.permute(0, 2, 3, 1) for x in (centres, key.flatten(3), value.unflatten(1, (-1, 2)).flatten(3))]
    at_centres, keys, values = heads[0], *(F.pad(x, (0, 0, 0, 1)) for x in heads[1:])
    attended = F.scaled_dot_product_attention(at_centres, keys, values, attn_mask=read.log(), scale=1.0)
    attended = attended.where(read.sum(1)[:, None] > 0, 0.0)  # nothing to attend to
    close(got, attended.permute(0, 3, 1, 2).flatten(1, 2).unflatten(-1, (oh, ow)))
