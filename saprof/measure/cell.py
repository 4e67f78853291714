"""Measuring cells: each is compared with the reference, then timed beside the others, then its memory is measured."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from saprof.backends import Unsupported, choose, run
from saprof.layers import LocalAttention
from saprof.measure.cells import Cell, Network
from saprof.measure.conformance import check, sample_positions
from saprof.measure.latency import Latency, interleave, ratio
from saprof.measure.memory import peak_bytes, predicted_peak_bytes, saved_bytes
from saprof.models import create_model
from saprof.models.counting import count
from saprof.operators.workload import Workload
from saprof.records.rows import Row


@dataclass(frozen=True)
class Prepared:
    """A cell that can be called: `function(*inputs)` computes it; `own` holds its parameters and buffers."""

    cell: Cell
    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    own: tuple[Tensor, ...] = ()

    def call(self) -> Callable[[], object]:
        """The call that is timed."""
        if self.cell.mode == "backward":
            output = self.function(*self.inputs)
            cotangent = torch.randn_like(output)
            return lambda: torch.autograd.grad(output, self.leaves(*self.inputs), cotangent, retain_graph=True)
        return lambda: self.run(*self.inputs)

    def run(self, *inputs: Tensor) -> object:
        """One forward, or one training step without the optimiser."""
        with torch.set_grad_enabled(self.cell.mode != "forward"):
            output = self.function(*inputs)
            if self.cell.mode != "train_step":
                return output
            return torch.autograd.grad(output, self.leaves(*inputs), torch.ones_like(output))

    def leaves(self, *inputs: Tensor) -> list[Tensor]:
        return [x for x in (*inputs, *self.own) if x.requires_grad]


class _Refused(Exception):
    """A cell that must not be timed: a status and a reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def measure(cells: Sequence[Cell], fingerprint: str, max_seconds: float = 2.0) -> list[Row]:
    """One row per cell. The cells that can run are timed in interleaved rounds, and compared with the first of them."""
    found: dict[Cell, dict[str, Any]] = {}
    ready: dict[Cell, tuple[Prepared, Callable[[], object]]] = {}
    for cell in cells:
        try:
            prepared, found[cell] = _make_ready(cell)
            ready[cell] = prepared, _warm(prepared)
        except Exception as error:  # a cell that fails becomes a row, and the others are still measured
            found[cell] = _why(error)
    try:
        for cell, measured in _time_and_weigh(ready, max_seconds).items():
            found[cell] |= measured
    except Exception as error:  # a cell that ran alone may fail beside the others
        found |= {cell: _why(error) for cell in ready}
    return [row(cell, fingerprint, **found[cell]) for cell in cells]


def _time_and_weigh(
    ready: dict[Cell, tuple[Prepared, Callable[[], object]]], max_seconds: float
) -> dict[Cell, dict[str, Any]]:
    calls = {str(cell): call for cell, (_, call) in ready.items()}
    device = next(iter(ready)).device if ready else "cpu"
    latencies = interleave(calls, device, max_seconds * len(calls)) if calls else {}
    first = next(iter(latencies.values()), None)
    measured = {}
    for cell, (prepared, call) in ready.items():
        latency = latencies[str(cell)]
        measured[cell] = _timed(latency) | _weigh(prepared, call)
        if first is not None and latency is not first:
            measured[cell] |= _compared(latency, first)
    return measured


def _make_ready(cell: Cell) -> tuple[Prepared, dict[str, Any]]:
    """Check a cell, or raise if it cannot run or does not fit into memory; also returns the fields of its row so
    far."""
    _refuse_what_cannot_fit(cell.costs.get("compulsory_bytes", 0), "", cell.device)
    function, own, facts = _function(cell)
    with FakeTensorMode():  # its tensors have no memory
        imagined = Prepared(cell, function, _inputs(cell), own)
    held = sum(x.numel() * x.element_size() for x in imagined.inputs)
    _refuse_what_cannot_fit(held, "", cell.device)
    if cell.mode != "backward":  # its graph already exists
        facts["predicted_peak_bytes"] = peak = predicted_peak_bytes(imagined.run, imagined.inputs)
        _refuse_what_cannot_fit(peak, " beside its inputs", cell.device, held)
    prepared = replace(imagined, inputs=_inputs(cell))
    if isinstance(cell.subject, Workload):
        facts["error"] = _check_operator(cell.subject, cell, facts["backend"])
    else:
        _check_network(prepared)
    if cell.compiled:
        prepared, facts["first_call_s"] = _compile(prepared)
    return prepared, facts


def _warm(prepared: Prepared) -> Callable[[], object]:
    """The call to time, after one call."""
    call = prepared.call()
    call()
    return call


def prepare(cell: Cell) -> tuple[Prepared, dict[str, Any]]:
    """The cell, ready to be called, and the fields of its row that are known so far."""
    function, own, facts = _function(cell)
    return Prepared(cell, function, _inputs(cell), own), facts


def _inputs(cell: Cell) -> tuple[Tensor, ...]:
    subject = cell.subject
    if isinstance(subject, Workload):
        return tuple(x.requires_grad_(cell.mode != "forward") for x in subject.tensors(cell.device))
    image = torch.randn(subject.batch, 3, subject.size, subject.size, generator=torch.Generator().manual_seed(0))
    return (image.to(cell.device, getattr(torch, subject.dtype)),)


def _function(cell: Cell) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], dict[str, Any]]:
    """What computes the cell, its parameters and buffers, and the fields of its row that are known so far."""
    subject = cell.subject
    if isinstance(subject, Network):
        return _network(cell, subject, cell.mode != "forward")
    backend = choose(subject.operator, getattr(torch, subject.dtype), cell.device, subject.footprint, cell.backend)
    operator, footprint = subject.operator, subject.footprint

    def function(*inputs: Tensor) -> Tensor:
        return run(operator, *inputs, footprint=footprint, backend=backend)

    return function, (), {"backend": backend}


def _network(cell: Cell, subject: Network, training: bool) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    torch.manual_seed(0)
    chosen = {"backend": cell.backend, "attention": cell.attention} if subject.attends else {}
    model = create_model(subject.name, **subject.overrides, **chosen)
    model = model.to(cell.device, getattr(torch, subject.dtype)).train(training)
    cost = count(model, (3, subject.size, subject.size))
    facts = {
        **_what_runs(model, cell),
        "params": cost.params,
        "macs": cost.macs,
        "flops_paper": cost.paper,
        "flops_hardware": cost.flops("hardware"),
        "compulsory_bytes": cost.bytes,
    }
    own = tuple(x.requires_grad_(training) for x in model.parameters()) + tuple(model.buffers())
    return model, own, facts


def _what_runs(model: nn.Module, cell: Cell) -> dict[str, Any]:
    """The attentions and backends of a model's attention layers, each joined by `+`; `torch` for a model without
    any."""
    dtype = getattr(torch, cell.subject.dtype)
    layers = [layer for layer in model.modules() if isinstance(layer, LocalAttention)]
    plans = [layer.plan(dtype, cell.device) for layer in layers]
    if not plans:
        return {"backend": "torch"}
    attentions, backends = ("+".join(dict.fromkeys(parts)) for parts in zip(*plans, strict=True))
    return {"backend": "+".join(dict.fromkeys(backends.split("+"))), "attention": attentions}


def _refuse_what_cannot_fit(needed: int, beside: str, device: str, held: int = 0) -> None:
    """Refuse what needs more memory than is free once `held` bytes are allocated."""
    cuda = torch.device(device).type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    free -= held
    if needed > free:
        reason = f"would take {needed / 1e9:.1f} GB{beside}; {free / 1e9:.1f} GB are free"
        raise _Refused("predicted_oom", reason)


def _check_operator(workload: Workload, cell: Cell, backend: str) -> float:
    """The worst error at sampled positions, as a fraction of its tolerance; it includes gradients if the mode has
    them."""
    verdict = check(workload, backend, cell.device, cell.mode != "forward", sample_positions(workload))
    if not verdict.ok:
        raise _Refused("incorrect", verdict.message)
    return verdict.fraction


def _check_network(prepared: Prepared) -> None:
    """Networks have no reference, but their logits must be finite."""
    with torch.no_grad():
        if not prepared.function(*prepared.inputs).isfinite().all():
            raise _Refused("incorrect", "its logits are not all finite")


def _compile(prepared: Prepared) -> tuple[Prepared, float]:
    """The same cell, compiled, and the seconds of its first call, which compiles.

    Its output, and its gradients if the mode has some, must equal the eager ones to half their digits.
    """
    torch._dynamo.reset()
    functorch_config.enable_autograd_cache = False  # it is on disk, and a changed backend does not invalidate it
    compiled = replace(prepared, function=torch.compile(prepared.function, fullgraph=True))
    mode = "forward" if prepared.cell.mode == "forward" else "train_step"
    checked = replace(prepared.cell, mode=mode)
    expected = replace(prepared, cell=checked).run(*prepared.inputs)
    start = time.perf_counter()
    got = replace(compiled, cell=checked).run(*prepared.inputs)
    if torch.device(prepared.cell.device).type == "cuda":
        torch.cuda.synchronize(prepared.cell.device)
    seconds = time.perf_counter() - start
    for want, have in zip(tree_leaves(expected), tree_leaves(got), strict=True):
        error = float((have - want).abs().max() / want.abs().max().clamp_min(1e-30))
        allowed = torch.finfo(want.dtype).eps ** 0.5
        if not error <= allowed:
            reason = f"compiled {mode} is {error:.1e} off the eager one; expected at most {allowed:.1e}"
            raise _Refused("incorrect", reason)
    return compiled, seconds


def _weigh(prepared: Prepared, call: Callable[[], object]) -> dict[str, Any]:
    cell = prepared.cell
    with torch.no_grad():
        output = prepared.function(*prepared.inputs)
    weights = {"output_bytes": output.numel() * output.element_size(), "peak_bytes": peak_bytes(call, cell.device)}
    if cell.mode in ("train_forward", "train_step"):
        weights["saved_bytes"] = saved_bytes(prepared.function, prepared.inputs, prepared.own)
    return weights


def _timed(latency: Latency) -> dict[str, Any]:
    low, high = latency.interval
    return {
        "status": latency.status,
        "latency_s": latency.median,
        "latency_low_s": low,
        "latency_high_s": high,
        "latency_p10_s": latency.percentile(10),
        "latency_p90_s": latency.percentile(90),
        "samples_s": list(latency.samples),
        "calls_per_sample": latency.calls_per_sample,
        "stopped": latency.stopped,
        "host_s": latency.host_s,
        "cpu_per_wall": latency.cpu_per_wall,
        "others_cpu": latency.others_cpu,
        "involuntary_switches": latency.involuntary_switches,
    }


def _compared(latency: Latency, first: Latency) -> dict[str, Any]:
    compared = ratio(latency, first)
    return {
        "ratio": compared.median,
        "ratio_low": compared.low,
        "ratio_high": compared.high,
        "verdict": compared.verdict(),
    }


def _why(error: Exception) -> dict[str, Any]:
    """Status and reason of a cell that raised an exception."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    match error:
        case _Refused():
            return {"status": error.status, "reason": reason}
        case Unsupported():
            return {"status": "unsupported", "reason": reason}
        case torch.OutOfMemoryError() | MemoryError():
            return {"status": "oom", "reason": reason}
        case RuntimeError() if "allocate" in reason:  # the message of the CPU allocator
            return {"status": "oom", "reason": reason}
    return {"status": "error", "reason": f"{type(error).__name__}: {reason}"}


def row(cell: Cell, fingerprint: str, **found: Any) -> Row:
    """The row of a cell: its facts, and the measured fields."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known: dict[str, Any] = cell.what | cell.costs | found
    return Row(key=cell.key(fingerprint), fingerprint=fingerprint, time=now, **known)


def measure_apart(
    cells: Sequence[Cell], fingerprint: str, max_seconds: float, timeout: float | None, threads: int | None
) -> list[Row]:
    """`measure` in a process of its own: a crash, or more than `timeout` seconds, affects these rows only."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_and_send, args=(sender, cells, fingerprint, max_seconds, threads))
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            return receiver.recv()
        failure = {"status": "timeout", "reason": f"not done after {timeout:g} s"}
    except EOFError:  # the process ended without a result
        process.join()
        failure = {"status": "error", "reason": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    return [row(cell, fingerprint, **failure) for cell in cells]


def _measure_and_send(
    sender: Connection, cells: Sequence[Cell], fingerprint: str, max_seconds: float, threads: int | None
):
    if threads is not None:
        torch.set_num_threads(threads)
    sender.send(measure(cells, fingerprint, max_seconds))
