"""Benchmarks use all physical cores and keep freed memory, as commands do. Their results record the machine and its
roofs."""

import psutil
import pytest
import torch

from saprof.kept_memory import keep_memory
from saprof.measure.calibrate import calibrate
from saprof.records import calibration, environment

CORES = psutil.cpu_count(logical=False) or 1
ROOFS = pytest.StashKey[calibration.Calibration]()


@pytest.fixture(autouse=True)
def _as_in_commands():
    keep_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(CORES)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def roofs(request):
    """The roofs of the CPU with all cores, in float32. The saved results hold them too, to make shares checkable."""
    before = torch.get_num_threads()
    torch.set_num_threads(CORES)
    request.config.stash[ROOFS] = calibrate("cpu", ["float32"], seconds_each=0.1)
    torch.set_num_threads(before)
    return request.config.stash[ROOFS]


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["saprof"] = environment.provenance("cpu", CORES)


def pytest_benchmark_update_json(config, benchmarks, output_json):
    if ROOFS in config.stash:
        output_json["calibration"] = calibration.content(config.stash[ROOFS])
