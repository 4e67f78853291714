"""Tables of footprints on a device, whatever torch does meanwhile."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from saprof.backends import cuda, run, tables
from saprof.layers import AttentionConfig, PairwiseAttention
from saprof.operators import OPERATORS
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload

FOOTPRINTS = [Footprint.square(3, boundary="exclude"), Footprint.parse("offsets:0,1;2,0 boundary=exclude")]
CPU = torch.device("cpu")


def test_no_mode_of_the_caller_reaches_what_is_made_apart():
    with FakeTensorMode(), torch.inference_mode(), FlopCounterMode(display=False):
        x = tables.apart(lambda: torch.arange(3) * 2)
    assert x.tolist() == [0, 2, 4]
    assert not isinstance(x, FakeTensor)
    assert not x.is_inference()


@pytest.mark.parametrize("footprint", FOOTPRINTS, ids=str)
def test_rows_and_columns_are_copied_once(footprint):
    like = torch.ones(1)
    rows, columns = tables.rows_and_columns(footprint, 5, 6, like)
    assert torch.equal(rows, footprint.rows(5))
    assert torch.equal(columns, footprint.columns(6))
    assert tables.rows_and_columns(footprint, 5, 6, like)[0] is rows
    with FakeTensorMode() as mode:
        assert isinstance(tables.rows_and_columns(footprint, 5, 6, mode.from_tensor(like))[0], FakeTensor)
    assert tables.rows_and_columns(footprint, 5, 6, like)[0] is rows


def test_tables_made_in_inference_mode_serve_training():
    layer = PairwiseAttention(64, "3 boundary=exclude", AttentionConfig(family="pairwise", attention="composed"))
    x = torch.randn(2, 64, 5, 7)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.phi.weight.grad is not None


class FakeCuda:
    """What `tables` calls of torch.cuda and of the driver, with tensors on a CPU."""

    def __init__(self, monkeypatch, capturing):
        self.log, self.streams, self.capturing, self.at = [], 0, capturing, None
        for name in ("device", "stream", "Stream", "is_current_stream_capturing", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        driver = SimpleNamespace(cuThreadExchangeStreamCaptureMode=self.exchange)
        monkeypatch.setattr(tables.ctypes, "CDLL", lambda name: driver)

    def exchange(self, mode):
        mode._obj.value, before = 0, mode._obj.value
        self.log.append(("mode", before))

    def Stream(self, device):
        self.streams += 1
        return self.streams

    @contextmanager
    def device(self, device):
        yield

    @contextmanager
    def stream(self, stream):
        before, self.at = self.at, stream
        yield
        self.at = before

    def is_current_stream_capturing(self):
        return self.at in self.capturing

    def current_stream(self, device):
        return SimpleNamespace(synchronize=lambda: self.log.append(("waits for", self.at, threading.current_thread())))


def test_a_copy_to_a_gpu_avoids_the_capture_and_the_pool_of_the_caller(monkeypatch):
    """Another thread, allowed to allocate, in a stream that no graph records; it waits for the copy."""
    fake = FakeCuda(monkeypatch, capturing={1, 2})
    copied = tables.apart(lambda: tables.copied(torch.arange(3), CPU))
    assert copied.tolist() == [0, 1, 2]
    first, waits, last = fake.log
    assert (first, last) == (("mode", tables.RELAXED), ("mode", 0))
    assert waits[:2] == ("waits for", 3)
    assert waits[2] is not threading.current_thread()


def test_on_a_gpu_all_tables_are_one_allocation(monkeypatch):
    monkeypatch.setattr(tables, "copied", lambda table, device: table.clone())
    given = [torch.arange(3), torch.arange(6).view(2, 3), torch.arange(0)]
    found = tables.on_device(given, torch.device("cuda:0"))
    assert all(torch.equal(a, b) for a, b in zip(given, found, strict=True))
    assert len({x.untyped_storage().data_ptr() for x in found}) == 1
    assert all(x.is_contiguous() for x in found)


def test_a_gpu_keeps_its_tables_forever():
    """A graph that was captured long ago may read them."""
    assert cuda.lookups_of.cache_info().maxsize is None
    assert tables.of_gpu.cache_info().maxsize is None


class Devices(TorchDispatchMode):
    """The devices of the results of each operation."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.seen.update((str(func), x.device.type) for x in tree_leaves(found) if isinstance(x, torch.Tensor))
        return found


@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
def test_what_torch_traces_has_nothing_on_the_host(op, monkeypatch):
    """Inductor records no graph if an operation of it is on the CPU. The device `meta` stands for a GPU."""
    monkeypatch.setitem(cuda.LAUNCH, "meta", lambda *_: pytest.fail("a kernel was started"))
    workload = Workload(op, Footprint.square(3, boundary="exclude" if op.masked else "reflect"))
    inputs = [x.to("meta").requires_grad_() for x in workload.tensors()]
    with Devices() as devices:
        output = run(op, *inputs, footprint=workload.footprint, backend="cuda")
        torch.autograd.grad(output, inputs, torch.empty_like(output))
    assert any("saprof_cuda" in func for func, _ in devices.seen)
    assert {device for _, device in devices.seen} == {"meta"}, devices.seen
