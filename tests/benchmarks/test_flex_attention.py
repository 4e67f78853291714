"""Two functions of torch that compute the same as `stand_alone_attention_content` over a window:
scaled_dot_product_attention with a mask, and FlexAttention, which scores whole blocks of the map and masks them.

Each candidate gets its own layout and mask before the timing starts. Ours has channels first and a table of taps;
torch's have channels last and a mask of all pairs of positions, or of blocks. All are timed in the same rounds, forward
only. `--benchmark-json` stores every median, its interval and its ratio to FlexAttention. pytest-benchmark prints the
seconds of the whole comparison.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from saprof import text
from saprof.backends import run, why_not
from saprof.measure.latency import Latency, interleave, ratio
from saprof.operators import BACKENDS
from saprof.operators.footprint import Footprint
from saprof.operators.reference import reference
from saprof.operators.stand_alone import ATTENTIONS
from saprof.operators.workload import STAGES, Workload
from saprof.records import environment

FOOTPRINT = Footprint.square(7, boundary="exclude")
OPERATOR = ATTENTIONS["content"]
Inputs = list[Tensor]


def compute(query: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
    return run(OPERATOR, query, key, value, footprint=FOOTPRINT, backend=backend)


def heads(query: Tensor, key: Tensor, value: Tensor) -> Inputs:
    """The layout of the peers: n heads p d."""
    value = value.unflatten(1, (-1, query.shape[2]))
    return [x.flatten(3).permute(0, 2, 3, 1).contiguous() for x in (query, key, value)]


def in_window(width: int) -> Callable[..., Any]:
    """Whether position j is in the footprint of position i."""
    (top, bottom), (left, right) = FOOTPRINT.reach

    def attends(batch, head, i, j):
        dy, dx = j // width - i // width, j % width - i % width
        return (top <= dy) & (dy <= bottom) & (left <= dx) & (dx <= right)

    return attends


def flex(query: Tensor, key: Tensor, value: Tensor, attend: Any = flex_attention) -> Callable[[], Tensor]:
    size, width = query.shape[-2] * query.shape[-1], query.shape[-1]
    mask = create_block_mask(in_window(width), None, None, size, size, device=query.device)
    return partial(attend, *heads(query, key, value), block_mask=mask, scale=1.0)


def masked(query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    size, width = query.shape[-2] * query.shape[-1], query.shape[-1]
    at = torch.arange(size, device=query.device)
    mask = in_window(width)(0, 0, at[:, None], at)
    return partial(F.scaled_dot_product_attention, *heads(query, key, value), attn_mask=mask, scale=1.0)


PEERS = {"flex_attention": flex, "scaled_dot_product_attention": masked}


def as_map(attended: Tensor, like: Tensor) -> Tensor:
    """From n heads p d to n v h w."""
    return attended.permute(0, 3, 1, 2).flatten(1, 2).unflatten(2, like.shape[-2:])


def maps(n: int, size: int, device: str, dtype: torch.dtype) -> Inputs:
    """Query, key and value of SAN's second stage on a map of that size, with logits in the usual range of a softmax."""
    workload = Workload.stage(OPERATOR, FOOTPRINT, STAGES[1][0], size, n)
    query, key, value = workload.tensors()
    return [x.to(device, dtype) for x in (query, key, value)]


def error(got: Tensor, want: Tensor) -> float:
    """The largest error of a position's vector, relative to the root mean square norm of these vectors."""
    return float((got.double() - want).norm(dim=1).max() / want.norm(dim=1).square().mean().sqrt())


def tolerance(query: Tensor, key: Tensor) -> float:
    """The error of a logit, a sum of d products, is at most eps · (4 + √d) times its size (saprof.measure.conformance).

    The softmax turns it into the relative error of a weight. The roundings of the weighted sum are small beside it.
    """
    largest = float(query.norm(dim=1).max() * key.norm(dim=1).max())
    return torch.finfo(query.dtype).eps * (4 + query.shape[1] ** 0.5) * max(1.0, largest)


def runs(backend: str, device: str, dtype: torch.dtype) -> bool:
    return why_not(backend, OPERATOR, dtype, device, FOOTPRINT) is None


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.usefixtures("compiler")
def test_all_compute_the_same():
    inputs = maps(2, 9, "cpu", torch.float32)
    want = reference(OPERATOR, [x.double() for x in inputs], FOOTPRINT)
    allowed = tolerance(*inputs[:2])
    for name, peer in PEERS.items():
        assert error(as_map(peer(*inputs)(), inputs[0]), want) < allowed, name
    for backend in BACKENDS:
        if runs(backend, "cpu", torch.float32):
            assert error(compute(*inputs, backend), want) < allowed, backend


@pytest.mark.filterwarnings("ignore::UserWarning:torch._inductor.*", "ignore::DeprecationWarning:triton.*")
@pytest.mark.benchmark(group="peers")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("device", "n"), [("cpu", 1), pytest.param("cuda", 32, marks=pytest.mark.gpu)])
def test_peers(device, n, dtype, benchmark, compiler):
    inputs = maps(n, STAGES[1][1], device, getattr(torch, dtype))
    compiled = partial(compiler, fullgraph=True, dynamic=False)
    calls = {"flex_attention": flex(*inputs, attend=compiled(flex_attention))}
    calls["scaled_dot_product_attention"] = masked(*inputs)
    for backend in BACKENDS:
        if runs(backend, device, inputs[0].dtype):
            calls[backend] = partial(compute, *inputs, backend)
            calls[f"{backend}+compile"] = partial(compiled(compute), *inputs, backend)
    with torch.no_grad():
        want = compute(*(x.double() for x in inputs), "unfold")
        for name, call in calls.items():
            output = as_map(call(), inputs[0]) if name in PEERS else call()
            assert error(output, want) < tolerance(*inputs[:2]), name
        del want
        latencies = benchmark.pedantic(interleave, (calls, device, 1.0 * len(calls)), rounds=1)
    found = {name: figures(latency, latencies["flex_attention"]) for name, latency in latencies.items()}
    where = environment.provenance(device, torch.get_num_threads())
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
