"""Settings and fixtures of all tests. The import hook is installed before saprof is first imported."""

import inspect
import os
import shutil

import jaxtyping
import pytest
import torch
from hypothesis import settings

# The shapes in the annotations of these modules are checked. Those of saprof.layers are checked by a process that
# test_operators.py starts, because the checks break torch.compile(fullgraph=True).
jaxtyping.install_import_hook(["saprof.backends.taps", "saprof.backends.unfold"], "beartype.beartype")

if not torch.cuda.is_available():
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # Numba reads it at its first import

os.environ["SAPROF_ALONE"] = "1"  # pytest has a process per core already

torch.set_num_threads(1)  # more threads make operations on small tensors slower

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


@pytest.fixture
def browser():
    """A headless Chromium. Where it is missing, the test is skipped, but not on CI."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        assert not os.environ.get("CI"), "needs chromium and chromium-driver, which .ci/run installs"
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{option}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def cuda_on_host(request):
    """A process that runs the CUDA kernels, compiled for the CPU."""
    from cuda_on_host.host import Host, build

    with Host(build("", request.config.cache.mkdir("cuda_on_host"))) as host:
        yield host


@pytest.fixture(autouse=True)
def _cuda_without_a_gpu(request, monkeypatch):
    """Run the CUDA kernels on the CPU in tests with the parameter backend="cuda" that need no GPU."""
    from saprof.backends import cuda

    call = getattr(request.node, "callspec", None)
    if call and call.params.get("backend") == "cuda" and not request.node.get_closest_marker("gpu"):
        monkeypatch.setitem(cuda.LAUNCH, "cpu", request.getfixturevalue("cuda_on_host").run)


@pytest.fixture(autouse=True)
def _auto_fuses_small_attentions(request, monkeypatch):
    """Maps of tests are tiny. The choice by size has tests and benchmarks of its own."""
    if request.path.stem != "test_choice" and "benchmarks" not in request.path.parts:
        monkeypatch.setattr("saprof.layers.choice.LEAST", {})
        monkeypatch.setattr("saprof.layers.choice.LEAST_JOINED", 0)


@pytest.fixture
def compiler():
    """torch.compile with empty caches, before and after the test. The cache on disk is off, because its key does not
    contain the code of the backends."""
    torch._dynamo.reset()
    with torch._functorch.config.patch(enable_autograd_cache=False):
        yield torch.compile
    torch._dynamo.reset()
