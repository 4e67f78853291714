"""Benchmarks run with the threads of the machine, and say which machine it was."""

import psutil
import pytest
import torch

from saprof.measure import environment


@pytest.fixture(autouse=True)
def _all_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
    yield
    torch.set_num_threads(before)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["saprof"] = environment.provenance("cpu", psutil.cpu_count(logical=False) or 1)
