"""A peer from outside: torch's FlexAttention, which computes y_i = Σ_j softmax_j(φ_iᵀ ψ_j) β_j over a window too, the
special case of one weight per tap. The operators here make it of three steps, FlexAttention of one fused kernel, which
scores whole blocks of the map and masks them.

Each gets beforehand the layout and the mask that it is made for: channels first and a table of taps here, channels last
and a block mask there. On a CPU the results are only compared; on a GPU all are timed in the same rounds, forward, and
`--benchmark-json` keeps every median, its interval and its ratio to FlexAttention. The seconds that pytest-benchmark
itself prints are those of the whole comparison.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from saprof import text
from saprof.backends import why_not
from saprof.footprint import Footprint
from saprof.layers import softmax
from saprof.measure import environment
from saprof.measure.latency import Latency, interleave, ratio
from saprof.operators import BACKENDS, aggregation, pairwise_dot_product
from saprof.reference import reference
from saprof.workload import STAGES

FOOTPRINT = Footprint.square(7, boundary="exclude")
R, V = 16, 64
"""Channels of φ and ψ, and of β: those of SAN's second stage."""


def compose(phi: Tensor, psi: Tensor, beta: Tensor, outside: Tensor, backend: str) -> Tensor:
    """The three steps; `outside` says which taps leave the map."""
    logits = pairwise_dot_product(phi, psi, footprint=FOOTPRINT, backend=backend)
    alpha = logits.masked_fill(outside, -torch.inf).softmax(2)
    return aggregation(alpha, beta, footprint=FOOTPRINT, backend=backend)


def compose_exactly(phi: Tensor, psi: Tensor, beta: Tensor) -> Tensor:
    phi, psi, beta = phi.double(), psi.double(), beta.double()
    logits = reference(pairwise_dot_product, [phi, psi], FOOTPRINT)
    return reference(aggregation, [softmax(logits, FOOTPRINT, phi.shape[-2:]), beta], FOOTPRINT)


def flex(phi: Tensor, psi: Tensor, beta: Tensor, attend: Any = flex_attention) -> Callable[[], Tensor]:
    """FlexAttention on these maps, with one head."""
    width = phi.shape[-1]
    (top, bottom), (left, right) = FOOTPRINT.reach

    def in_window(batch, head, i, j):
        dy, dx = j // width - i // width, j % width - i % width
        return (top <= dy) & (dy <= bottom) & (left <= dx) & (dx <= right)

    positions = phi.shape[-2] * width
    mask = create_block_mask(in_window, None, None, positions, positions, device=phi.device)
    query, key, value = (x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for x in (phi, psi, beta))
    return partial(attend, query, key, value, block_mask=mask, scale=1.0)


def dropped(like: Tensor) -> Tensor:
    return ~FOOTPRINT.inside(*like.shape[-2:]).to(like.device)


def as_map(attended: Tensor, like: Tensor) -> Tensor:
    return attended.squeeze(1).transpose(1, 2).unflatten(2, like.shape[-2:])


def maps(n: int, size: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """φ, ψ and β, the logits of φ and ψ as large as a softmax likes them."""
    generator = torch.Generator().manual_seed(0)
    phi, psi, beta = (torch.randn(n, c, size, size, generator=generator) for c in (R, R, V))
    return (phi / R**0.5).to(device, dtype), psi.to(device, dtype), beta.to(device, dtype)


def error(got: Tensor, want: Tensor) -> float:
    """The largest error of any position's vector, over the size that vectors have."""
    return float((got.double() - want).norm(dim=1).max() / want.norm(dim=1).square().mean().sqrt())


def tolerance(phi: Tensor, psi: Tensor) -> float:
    """A logit is a sum of R products, off by eps · (4 + √R) times its size at most, as saprof.conformance bounds it;
    the softmax makes this the relative error of a weight, beside which the roundings of the weighted sum are small."""
    largest = float(pairwise_dot_product(phi, psi, footprint=FOOTPRINT, backend="unfold").abs().max())
    return torch.finfo(phi.dtype).eps * (4 + R**0.5) * max(1.0, largest)


def runs(backend: str, device: str, dtype: torch.dtype) -> bool:
    return not any(why_not(backend, op, dtype, device, FOOTPRINT) for op in (pairwise_dot_product, aggregation))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.usefixtures("compiler")
def test_both_compute_the_same():
    inputs = maps(2, 9, "cpu", torch.float32)
    want = compose_exactly(*inputs)
    allowed = tolerance(*inputs[:2])
    assert error(as_map(flex(*inputs)(), inputs[0]), want) < allowed
    for backend in BACKENDS:
        if runs(backend, "cpu", torch.float32):
            assert error(compose(*inputs, dropped(inputs[0]), backend), want) < allowed, backend


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning:torch._inductor.*", "ignore::DeprecationWarning:triton.*")
@pytest.mark.benchmark(group="FlexAttention")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flex_attention(dtype, benchmark, compiler):
    inputs = maps(32, STAGES[1][1], "cuda", getattr(torch, dtype))
    outside = dropped(inputs[0])
    compiled = partial(compiler, fullgraph=True, dynamic=False)
    calls = {"flex_attention": flex(*inputs, attend=compiled(flex_attention))}
    for backend in BACKENDS:
        if runs(backend, "cuda", inputs[0].dtype):
            calls[backend] = partial(compose, *inputs, outside, backend)
            calls[f"{backend}+compile"] = partial(compiled(compose), *inputs, outside, backend)
    with torch.no_grad():
        want = compose(*(x.double() for x in inputs), outside, "unfold")
        for name, call in calls.items():
            output = as_map(call(), inputs[0]) if name == "flex_attention" else call()
            assert error(output, want) < tolerance(*inputs[:2]), name
        del want
        latencies = benchmark.pedantic(interleave, (calls, "cuda", 1.0 * len(calls)), rounds=1)
    found = {name: figures(latency, latencies["flex_attention"]) for name, latency in latencies.items()}
    where = environment.provenance("cuda", torch.get_num_threads())
    benchmark.extra_info |= {"dtype": dtype, "candidates": found, "where": where}
    header = ["computed by", "latency ms", "95 % interval", "of flex's", "95 % interval"]
    print(f"\n{dtype}\n" + text.align(header, [[name, *row(figure)] for name, figure in found.items()]))


def figures(latency: Latency, first: Latency) -> dict[str, Any]:
    compared = ratio(latency, first)
    return {
        "status": latency.status,
        "latency_s": latency.median,
        "latency_interval_s": latency.interval,
        "ratio": compared.median,
        "ratio_interval": (compared.low, compared.high),
        "verdict": compared.verdict(),
    }


def row(found: dict[str, Any]) -> list[str]:
    (low, high), (least, most) = found["latency_interval_s"], found["ratio_interval"]
    latency = [f"{found['latency_s'] * 1e3:.3f}", f"{low * 1e3:.3f} – {high * 1e3:.3f}"]
    return [*latency, f"{found['ratio']:.2f}", f"{least:.2f} – {most:.2f}"]
