"""Forward-mode AD and the transforms of torch.func agree with the reference, or are refused with the reason."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from saprof.backends import BACKENDS, Unsupported, run
from saprof.operators import OPERATORS
from saprof.operators.footprint import Footprint
from saprof.operators.reference import reference
from saprof.operators.workload import Workload

FOOTPRINT = Footprint.cross(3, boundary="zero")


def by_forward_ad(function, inputs, directions):
    with forward_ad.dual_level():
        output = function(*map(forward_ad.make_dual, inputs, directions))
        return forward_ad.unpack_dual(output).tangent


def squares(function):
    return lambda *inputs: function(*inputs).square().sum()


def along(function, inputs, directions):
    """The function on the line through the inputs."""
    return lambda t: function(*(x + t * u for x, u in zip(inputs, directions, strict=True)))


def twice(x):
    return torch.stack([x, 2 * x])


FIRST = {
    "vmap": lambda f, x, u: vmap(f)(*map(twice, x)),
    "grad": lambda f, x, u: grad(squares(f), len(x) - 1)(*x),
    "vjp": lambda f, x, u: vjp(f, *x)[1](f(*x)),
    "vmap-grad": lambda f, x, u: vmap(grad(squares(f)))(*map(twice, x)),
    "vmap-over-one": lambda f, x, u: vmap(grad(squares(f), len(x) - 1), (0, *[None] * (len(x) - 1)))(
        twice(x[0]), *x[1:]
    ),
    "jacrev": lambda f, x, u: jacrev(lambda a: f(a, *x[1:]).sum(1))(x[0]),
}
"""Transforms of the function f, at the inputs x and in the directions u, that need first gradients at most."""
MORE = {
    "jvp": lambda f, x, u: jvp(f, x, u)[1],
    "jvp-of-one": lambda f, x, u: jvp(lambda a: f(*x[:-1], a), x[-1:], u[-1:])[1],
    "forward-ad": by_forward_ad,
    "jacfwd": lambda f, x, u: jacfwd(lambda t: f(*(a + t * b for a, b in zip(x, u, strict=True))))(
        torch.zeros(1).to(x[0])
    ),
    "hessian": lambda f, x, u: hessian(lambda t: squares(f)(*(a + t * b for a, b in zip(x, u, strict=True))))(
        torch.zeros(1).to(x[0])
    ),
    "grad-of-grad": lambda f, x, u: grad(squares(grad(squares(f))))(*x),
    "jvp-of-grad": lambda f, x, u: jvp(grad(squares(f)), x, u)[1],
    "grad-of-jvp": lambda f, x, u: grad(squares(lambda *y: jvp(f, y, u)[1]))(*x),
}
"""Those that need more."""
TRANSFORMS = FIRST | MORE


@pytest.mark.deep_unless(case=lambda backend: backend != "numba")  # Numba would compile all kernels in float64
@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_agrees_with_the_reference_or_is_refused(op, backend, transform):
    workload = Workload(op, FOOTPRINT, r=2, h=3, w=3, dtype="float64")
    inputs = tuple(workload.tensors())
    directions = tuple(map(torch.cos, inputs))
    transformed = TRANSFORMS[transform]
    if op.masked and backend != "unfold" and transform in MORE:
        with pytest.raises((Unsupported, NotImplementedError), match=r"first gradients alone|backend='unfold'"):
            transformed(on(op, backend), inputs, directions)
        backend = "auto"
    expected = transformed(lambda *x: reference(op, x, FOOTPRINT), inputs, directions)
    torch.testing.assert_close(transformed(on(op, backend), inputs, directions), expected)


def on(op, backend):
    return lambda *inputs: run(op, *inputs, footprint=FOOTPRINT, backend=backend)
