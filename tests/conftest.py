"""What all tests share. The hook must stand before the first import of saprof."""

import inspect
import os

import jaxtyping
import pytest
import torch
from hypothesis import settings

# Shape annotations of the kernels are checked. Those of saprof.layers cannot be here, since the checks break
# torch.compile(fullgraph=True); a process of its own does it in test_operators.py.
jaxtyping.install_import_hook(["saprof.backends.taps", "saprof.backends.unfold"], "beartype.beartype")

if not torch.cuda.is_available():
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # which Numba reads when it is first imported

torch.set_num_threads(1)  # the tensors are so small that threads only wait for each other

settings.register_profile("saprof", derandomize=True, deadline=None, print_blob=False)
settings.load_profile("saprof")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("deep_unless"):
            case, parameters = mark.kwargs["case"], item.callspec.params
            if not case(**{name: parameters[name] for name in inspect.signature(case).parameters}):
                item.add_marker(pytest.mark.deep)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))


@pytest.fixture(scope="session")
def cuda_on_host(request):
    """The CUDA kernels, compiled for the CPU, in a process of their own."""
    from cuda_on_host.host import Host, build

    with Host(build("", request.config.cache.mkdir("cuda_on_host"))) as host:
        yield host


@pytest.fixture(autouse=True)
def _cuda_without_a_gpu(request, monkeypatch):
    """A test that is given the backend `cuda`, and no GPU, gets it on the CPU."""
    from saprof.backends import cuda

    call = getattr(request.node, "callspec", None)
    if call and call.params.get("backend") == "cuda" and not request.node.get_closest_marker("gpu"):
        monkeypatch.setitem(cuda.LAUNCH, "cpu", request.getfixturevalue("cuda_on_host").run)


@pytest.fixture
def compiler():
    """torch.compile from a clean slate, which it leaves behind; torch's cache on disk does not see that a backend has
    changed."""
    torch._dynamo.reset()
    with torch._functorch.config.patch(enable_autograd_cache=False):
        yield torch.compile
    torch._dynamo.reset()
