"""Stand-alone attention with logits of content, of position, and of both, against the reference and torch's attentions.

test_operators.py has the tests that every operator passes, with logits of both."""

from __future__ import annotations

import warnings

import cores
import pytest
import torch
import torch.nn.functional as F
from derivatives import gradients, same_whatever_the_threads
from test_cuda_fused import STAND_ALONE, stand_alone_inputs
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import FlopCounterMode

from saprof.backends import run
from saprof.backends.numba.cpu import CpuWork, Places
from saprof.measure.conformance import check
from saprof.measure.memory import peak_bytes, saved_bytes
from saprof.operators import Operator
from saprof.operators.footprint import Footprint
from saprof.operators.stand_alone import ATTENTIONS, stand_alone_attention
from saprof.operators.workload import Workload, edge, tiny

DISK = Footprint.disk(3, stride=2, boundary="exclude")
UNREACHED = Footprint.from_offsets([(2, 0), (2, 1)], boundary="exclude")
"""Two rows of centres have no tap on a map of four rows."""

each_attention = pytest.mark.parametrize("op", ATTENTIONS.values(), ids=ATTENTIONS)
each_backend = pytest.mark.parametrize("backend", ["numba", "unfold"])


def inputs_of(op: Operator, footprint: Footprint, **sizes) -> list[Tensor]:
    return [x.requires_grad_() for x in Workload(op, footprint, **sizes).tensors()]


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# against the reference


@pytest.mark.parametrize("logits", ["content", "position"])
@each_backend
def test_edge(logits, backend):
    for workload in edge(ATTENTIONS[logits]):
        verdict = check(workload, backend)
        assert verdict.ok, verdict.message
        assert verdict.gradients


@each_attention
@each_backend
@pytest.mark.parametrize(
    ("footprint", "sizes"),
    [
        (Footprint.square(7, boundary="zero"), {"n": 2, "v": 32, "g": 2, "h": 21, "w": 9}),  # two tiles, two blocks
        (Footprint.square(3), {"v": 34, "g": 2, "h": 3, "w": 17}),  # blocks of channels and one more
        (Footprint.cross(5, stride=3, boundary="circular"), {"v": 8, "g": 8, "h": 40, "w": 3}),
        (UNREACHED, {"h": 4, "w": 3}),
    ],
    ids=lambda x: "-".join(f"{a}{b}" for a, b in x.items()) if isinstance(x, dict) else str(x),
)
def test_tiles_and_blocks(op, backend, footprint, sizes):
    verdict = check(Workload(op, footprint, **sizes, dtype="float64"), backend)
    assert verdict.ok, verdict.message
    assert verdict.gradients
    if footprint == UNREACHED:
        y = run(op, *inputs_of(op, footprint, **sizes), footprint=footprint, backend=backend)
        assert not y[:, :, 2:].any()
        assert y[:, :, :2].abs().min() > 0


@each_attention
@pytest.mark.parametrize("frames", [1, 400], ids="frames of {} elements".format)
def test_any_size_of_tiles(op, frames, monkeypatch):
    """Tiles of one row of centres or a few, and chunks of one row."""
    from kernels_numba.cpu import stand_alone

    for name, most in {"FRAMES": frames, "PAIRS": 1}.items():
        monkeypatch.setattr(stand_alone, name, most)
    for footprint in (Footprint.square(3), Footprint.disk(5, stride=2, boundary="exclude")):
        verdict = check(Workload(op, footprint, n=2, v=18, h=7, w=11, dtype="float64"), "numba")
        assert verdict.ok, verdict.message


@each_attention
@each_backend
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(op, backend, dtype):
    for workload in tiny(op):
        verdict = check(Workload(op, workload.footprint, n=2, dtype=dtype), backend)
        assert verdict.ok, verdict.message
        assert verdict.gradients


@each_attention
@pytest.mark.parametrize("footprint", [Footprint.square(3), DISK], ids=str)
def test_derivatives(op, footprint):
    inputs = inputs_of(op, footprint, h=4, w=3, dtype="float64")
    assert torch.autograd.gradcheck(lambda *x: run(op, *x, footprint=footprint, backend="numba"), inputs)


@pytest.mark.parametrize("case", STAND_ALONE, ids=str)
def test_core(case):
    """The kernel without the operator: values may have more or fewer channels than keys; lse is its second output."""
    given = [None if x is None else x.requires_grad_() for x in stand_alone_inputs(case)[1].values()]
    facts = [case.depth, case.g], case.footprint
    y, lse = torch.ops.saprof_numba.stand_alone_attention(*given, facts[0], case.text)
    expected, log = cores.stand_alone_attention(*given, *facts)
    close(y, expected)
    close(lse, log)
    inputs, cotangent = [x for x in given if x is not None], torch.randn_like(y)
    for found, wanted in zip(gradients(y, inputs, cotangent), gradients(expected, inputs, cotangent), strict=True):
        close(found, wanted)


def test_softmax_of_large_logits():
    """Logits far beyond the range of exp."""
    query, key, relative, value = inputs_of(stand_alone_attention, DISK, dtype="float32")
    given = [query * 300, key, relative, value]
    got = run(stand_alone_attention, *given, footprint=DISK, backend="numba")
    expected = run(stand_alone_attention, *(x.double() for x in given), footprint=DISK, backend="unfold")
    assert got.isfinite().all()
    close(got.double(), expected, 1e-2)


# against torch's own attentions, which know nothing of footprints


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(n, heads, positions, channels) of a map."""
    return x.flatten(2).unflatten(1, (-1, heads)).permute(0, 2, 3, 1)


def map_of(attended: Tensor, height: int) -> Tensor:
    """The reverse."""
    return attended.permute(0, 3, 1, 2).flatten(1, 2).unflatten(2, (height, -1))


def window(footprint: Footprint, height: int, width: int) -> tuple[Tensor, Tensor]:
    """For every two positions, which tap of the first the second is, and whether it is a tap."""
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    apart = torch.stack([y[None] - y[:, None], x[None] - x[:, None]], 2)
    matches = (apart[:, :, None] == torch.tensor(footprint.offsets)).all(3)
    return matches.int().argmax(2), matches.any(2)


FOOTPRINTS = [
    Footprint.square(3, boundary="exclude"),
    Footprint.from_offsets([(0, 0), (-1, 2), (1, 1)], boundary="exclude"),
]


def by_torch(op: Operator, inputs, footprint: Footprint) -> Tensor:
    """scaled_dot_product_attention over the whole map, masked with −∞; the mask includes the logits of position."""
    given = dict(zip((name for name, _ in op.inputs), inputs, strict=True))
    height, width = given["value"].shape[2:]
    tap, inside = window(footprint, height, width)
    query = given["query"].permute(0, 2, 3, 4, 1).flatten(2, 3)  # n g p d
    mask = torch.zeros(tap.shape, dtype=query.dtype).masked_fill(~inside, -torch.inf)
    if "relative" in given:
        logits = torch.einsum("ngpd,dgk->ngpk", query, given["relative"])
        mask = mask + logits.gather(3, tap.expand(*logits.shape[:2], -1, -1))
    key = given["key"].permute(0, 2, 3, 4, 1).flatten(2, 3) if "key" in given else torch.zeros_like(query)
    value = heads_of(given["value"], query.shape[1])
    return map_of(F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0), height)


@each_attention
@each_backend
@pytest.mark.parametrize("footprint", FOOTPRINTS, ids=str)
def test_is_masked_attention(op, backend, footprint):
    inputs = inputs_of(op, footprint, n=2, v=6, g=2, h=4, w=5, dtype="float64")
    got, expected = run(op, *inputs, footprint=footprint, backend=backend), by_torch(op, inputs, footprint)
    cotangent = torch.randn_like(expected)
    close(got, expected)
    for found, wanted in zip(gradients(got, inputs, cotangent), gradients(expected, inputs, cotangent), strict=True):
        close(found, wanted)


@each_backend
@pytest.mark.usefixtures("compiler")
def test_is_flex_attention(backend):
    footprint = FOOTPRINTS[0]
    with torch.no_grad():
        query, key, relative, value = inputs_of(stand_alone_attention, footprint, n=2, v=8, h=4, w=5)
        tap, inside = window(footprint, 4, 5)
        flat = [x.permute(0, 2, 3, 4, 1).flatten(2, 3).contiguous() for x in (query, key)]
        logits = torch.einsum("ngpd,dgk->ngpk", flat[0], relative)

        def score(given, n, g, i, j):
            return torch.where(inside[i, j], given + logits[n, g, i, tap[i, j]], -torch.inf)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flex_attention called without torch.compile", UserWarning)
            attended = flex_attention(*flat, heads_of(value, 2).contiguous(), score_mod=score, scale=1.0)
        got = run(stand_alone_attention, query, key, relative, value, footprint=footprint, backend=backend)
        close(got, map_of(attended, 4), 1e-5)


# what the kernels promise


@each_attention
def test_is_the_same_whatever_the_threads(op):
    footprint = Footprint.square(5)
    inputs = inputs_of(op, footprint, n=2, v=18, h=37, w=11)
    cotangent = torch.randn(2, 18, 37, 11)

    def compute():
        output = run(op, *inputs, footprint=footprint, backend="numba")
        return [output, *gradients(output, inputs, cotangent)]

    same_whatever_the_threads(compute, op.reads)


@each_attention
def test_has_no_second_derivative(op):
    inputs = inputs_of(op, DISK)
    output = run(op, *inputs, footprint=DISK, backend="numba")
    (gradient,) = torch.autograd.grad(output.sum(), inputs[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"^stand_alone_attention has no second derivative; expected "):
        gradient.sum().backward()


@each_attention
@each_backend
def test_an_empty_batch_has_gradients_of_zero(op, backend):
    inputs = inputs_of(op, DISK, n=0)
    output = run(op, *inputs, footprint=DISK, backend=backend)
    assert output.shape == (0, 4, 3, 3)
    found = gradients(output, inputs, torch.ones_like(output))
    assert [x.shape for x in found] == [x.shape for x in inputs]
    assert not any(x.any() for x in found)


@each_backend
def test_embeddings_keep_their_type(backend):
    """Parameters may have another dtype than the maps."""
    inputs = inputs_of(stand_alone_attention, DISK, n=2)
    mixed = [
        (x if name == "relative" else x.bfloat16()).detach().requires_grad_()
        for x, (name, _) in zip(inputs, stand_alone_attention.inputs, strict=True)
    ]
    output = run(stand_alone_attention, *mixed, footprint=DISK, backend=backend)
    assert output.dtype == torch.bfloat16
    found = gradients(output, mixed, torch.ones_like(output))
    assert [x.dtype for x in found] == [x.dtype for x in mixed]
    exact = run(stand_alone_attention, *(x.double() for x in mixed), footprint=DISK, backend="unfold")
    close(output.double(), exact, 0.03)


@each_attention
def test_under_autocast(op):
    """Inputs of two dtypes are computed in the dtype of autocast."""
    query, *others = inputs_of(op, DISK, n=2)
    with torch.autocast("cpu", torch.bfloat16):
        output = run(op, query.bfloat16(), *others, footprint=DISK, backend="numba")
    assert output.dtype == torch.bfloat16
    exact = run(op, *(x.double() for x in (query, *others)), footprint=DISK, backend="unfold")
    close(output.double(), exact, 0.05)


@each_attention
def test_compiles_whole(op, compiler):
    inputs = inputs_of(op, DISK)
    call = lambda *x: run(op, *x, footprint=DISK, backend="numba")  # noqa: E731
    output, compiled = call(*inputs), compiler(call, fullgraph=True, backend="aot_eager")(*inputs)
    cotangent = torch.randn_like(output)
    assert torch.equal(compiled, output)
    pairs = zip(gradients(compiled, inputs, cotangent), gradients(output, inputs, cotangent), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@each_attention
def test_torch_counts_its_products(op):
    workload = Workload(op, DISK, n=2)
    inputs = inputs_of(op, DISK, n=2)
    with FlopCounterMode(display=False) as counter:
        output = run(op, *inputs, footprint=DISK, backend="numba")
        forward = counter.get_total_flops()
        output.sum().backward()
    assert forward == 2 * op.count("macs", workload.sizes) > 0
    assert counter.get_total_flops() == 3 * forward


@each_attention
def test_no_memory_grows_with_the_footprint(op):
    """Only the inputs, y and lse are saved, and the peak of a step is far less than a tensor with an axis of taps."""
    side, measured = 24, {}
    for size in (3, 11):
        footprint = Footprint.square(size)
        inputs = inputs_of(op, footprint, v=16, g=8, h=side, w=side)
        call = lambda *x, footprint=footprint: run(op, *x, footprint=footprint, backend="numba")  # noqa: E731
        call(*inputs)  # once, for lookups that are kept
        step = lambda call=call, inputs=inputs: call(*inputs).sum().backward()  # noqa: E731
        measured[size] = [peak_bytes(step), saved_bytes(call, inputs)]
    pairs = 4 * 8 * 121 * side * side
    assert all(x < pairs / 2 for x in measured[11])
    assert measured[11][1] == measured[3][1] == 4 * (16 + 8) * side * side


def test_a_thread_takes_more_than_one_tile():
    """The threads share images, heads and tiles; the map below has three tiles."""
    from kernels_numba.cpu import stand_alone

    footprint, map_ = Footprint.square(3), torch.zeros(1, 4, 2 * stand_alone.HEIGHT + 1, 5)
    work = CpuWork(Places(footprint, (map_.shape[2], map_.shape[3]), 1), map_)
    tiles = stand_alone.tiles_of_a_head(2, 2, 1, work)
    assert len(tiles.rows) == 3
