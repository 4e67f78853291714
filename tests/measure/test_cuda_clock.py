"""The clock of a GPU, on a machine whose host and device are numbers."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from saprof.measure import latency

RATE = 2e9
"""Cycles of `torch.cuda._sleep` per second."""


class Machine:
    """Host and device, each with the time at which it is free."""

    def __init__(self):
        self.host = self.device = 0.0

    def launch(self, host_s, device_s):
        """Start a kernel: the host needs some time for it, and the device begins when it is free."""
        self.host += host_s
        self.device = max(self.device, self.host) + device_s

    def synchronize(self, *_):
        self.host = max(self.host, self.device)

    def event(self, **_):
        machine = self

        class Event:
            def record(self):
                self.at = max(machine.device, machine.host)

            def synchronize(self):
                machine.synchronize()

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        return Event()


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: machine.host))
    faked = {
        "Event": machine.event,
        "synchronize": machine.synchronize,
        "device": lambda _: nullcontext(),
        "_sleep": lambda cycles: machine.launch(1e-6, cycles / RATE),
        "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=64),
    }
    for name, value in faked.items():
        monkeypatch.setattr(torch.cuda, name, value)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, device=None, **how: empty(*shape, **how))
    return machine


@pytest.mark.parametrize(
    ("kernels", "host_s", "device_s", "status"),
    [(1, 5e-6, 80e-6, "ok"), (1, 40e-6, 20e-6, "host_bound"), (400, 20e-6, 5e-6, "host_bound")],
)
def test_the_host_is_hidden_however_long_it_takes(machine, kernels, host_s, device_s, status):
    """A sleep of half a millisecond would not hide the 8 ms that 400 kernels take to start."""

    def call():
        for _ in range(kernels):
            machine.launch(host_s, device_s)

    found = latency.interleave({"call": call}, "cuda", max_seconds=1.0)["call"]
    assert found.median == pytest.approx(kernels * device_s, rel=1e-6)
    assert found.host_s == pytest.approx(kernels * host_s, rel=1e-6)
    found = latency.Latency(**{**vars(found), "others_cpu": 0.0})
    assert found.status == status
