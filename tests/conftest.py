"""What all tests share. The hook must stand before the first import of saprof."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence

import jaxtyping
import pytest
import torch
from hypothesis import settings

# Shape annotations of the kernels are checked. Those of saprof.layers cannot be here, since the checks break
# torch.compile(fullgraph=True); a process of its own does it in test_operators.py.
jaxtyping.install_import_hook("saprof.backends.unfold", "beartype.beartype")

if not torch.cuda.is_available():
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # which Numba reads when it is first imported

torch.set_num_threads(1)  # the tensors are so small that threads only wait for each other

settings.register_profile("saprof", derandomize=True, deadline=None, print_blob=False)
settings.load_profile("saprof")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
        monkeypatch.setitem(cuda._LAUNCH, "cpu", request.getfixturevalue("cuda_on_host").run)


@pytest.fixture(autouse=True, scope="session")
def _each_reference_is_computed_once():
    """Of the same inputs, whichever backend and type they are for: what it is is asked of `test_reference.py`."""
    from saprof import conformance

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conformance, "reference", _Once(conformance.reference))
        yield


class _Once:
    """The reference as one that remembers what it was asked lately, if that was small."""

    def __init__(self, reference: Callable[..., torch.Tensor]) -> None:
        self.reference = reference
        self.answers: OrderedDict[tuple, _Answer] = OrderedDict()

    def __call__(self, operator, inputs, footprint, positions=None):
        if sum(x.numel() for x in inputs) > 20_000:
            return self.reference(operator, inputs, footprint, positions)
        where = None if positions is None else tuple(positions)
        key = operator.body, footprint, where, *map(_contents, inputs)
        if key not in self.answers:
            self.answers[key] = _Answer(lambda *x: self.reference(operator, x, footprint, positions), inputs)
        self.answers.move_to_end(key)
        if len(self.answers) > 500:
            self.answers.popitem(last=False)
        return _Ask.apply(self.answers[key], *inputs)


class _Answer:
    def __init__(self, function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
        self.function, self.inputs = function, [x.detach().clone().requires_grad_() for x in inputs]
        self.gradients: dict[tuple, tuple[torch.Tensor, ...]] = {}
        with torch.enable_grad():
            self.graph: torch.Tensor | None = function(*self.inputs)
        self.output = self.graph.detach()

    def gradient(self, cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = _contents(cotangent)
        if key not in self.gradients:
            with torch.enable_grad():
                output = self.function(*self.inputs) if self.graph is None else self.graph
            self.graph = None
            how = {"allow_unused": True, "materialize_grads": True}
            self.gradients[key] = torch.autograd.grad(output, self.inputs, cotangent, **how)
        return self.gradients[key]


class _Ask(torch.autograd.Function):
    @staticmethod
    def forward(ctx, answer, *inputs):
        ctx.answer = answer
        return answer.output.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):
        return None, *ctx.answer.gradient(cotangent)


def _contents(x: torch.Tensor) -> tuple:
    return x.dtype, x.shape, hashlib.sha256(x.detach().contiguous().numpy().tobytes()).digest()


@pytest.fixture
def compiler():
    """torch.compile from a clean slate, which it leaves behind; torch's cache on disk does not see that a backend has
    changed."""
    torch._dynamo.reset()
    with torch._functorch.config.patch(enable_autograd_cache=False):
        yield torch.compile
    torch._dynamo.reset()
