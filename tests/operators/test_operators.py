"""Every operator on every backend: values, gradients, compilation and errors."""

import inspect
import re
import subprocess
import sys
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_footprint import FOOTPRINTS

import saprof
from saprof.backends import BACKENDS, Unsupported, run, why_not
from saprof.measure.conformance import check
from saprof.operators import (
    DECLARED,
    OPERATORS,
    Operator,
    aggregation,
    operator,
    pairwise_subtraction,
    patchwise_star_product,
)
from saprof.operators.footprint import Footprint
from saprof.operators.reference import reference
from saprof.operators.workload import ITEMSIZE, Workload, edge, tiny

DISK = Footprint.disk(3, stride=2, boundary="exclude")
"""A footprint without defaults: irregular taps, a stride, and a boundary that drops taps."""

each_operator = pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
OF_TWO = {name: op for name, op in OPERATORS.items() if op.degree is not None}
"""The operators of two inputs, linear in both together or in each."""
each_of_two = pytest.mark.parametrize("op", OF_TWO.values(), ids=OF_TWO)
each_backend = pytest.mark.parametrize("backend", BACKENDS)

FLOAT64 = ("pairwise_subtraction", "aggregation")
"""The default tier compiles Numba's kernels for float64 only for these: compiling is most of its time."""


def is_quick(workload: Workload, backend: str) -> bool:
    return (backend, workload.dtype) != ("numba", "float64") or workload.operator.name in FLOAT64


def is_own_or_simple(workload: Workload, backend: str) -> bool:
    """Numba's kernels are separate torch operators. The other backends add the same to every operator."""
    return backend == "numba" or workload.operator is pairwise_subtraction


def workloads(make, *dtypes):
    """Parametrise by every workload that `make` gives of every operator, in every type, if any are named."""
    made = [w for op in OPERATORS.values() for w in make(op)]
    cases = [replace(w, dtype=dtype) for w in made for dtype in dtypes or [w.dtype]]
    return pytest.mark.parametrize("workload", cases, ids=str)


def in_turn(op):
    """The workloads of `edge` in float64 and float32 by turns: an odd number for each boundary, so that every boundary
    and every footprint has both."""
    for workload, dtype in zip(edge(op), cycle(["float64", "float32"]), strict=False):
        yield replace(workload, dtype=dtype)


def run_workload(workload: Workload, backend: str = "auto") -> tuple[list[torch.Tensor], torch.Tensor]:
    """The inputs of a workload, which require gradients, and the operator's output."""
    inputs = [x.requires_grad_() for x in workload.tensors()]
    return inputs, run(workload.operator, *inputs, footprint=workload.footprint, backend=backend)


def run_backward(function, inputs, cotangent=None) -> list[torch.Tensor]:
    """Output, then gradients."""
    output = function(*inputs)
    cotangent = torch.ones_like(output) if cotangent is None else cotangent
    return [output, *torch.autograd.grad(output, inputs, cotangent)]


def need(backend: str, workload: Workload, device: str = "cpu") -> None:
    """Skip a case that the backend cannot run, with its reason."""
    dtype = getattr(torch, workload.dtype)
    reason = why_not(backend, workload.operator, dtype, device, workload.footprint)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


class TestConformance:
    @pytest.mark.deep_unless(case=is_quick)
    @each_backend
    @workloads(in_turn)
    def test_edge(self, workload, backend):
        need(backend, workload)
        verdict = check(workload, backend)
        assert verdict.ok, verdict.message
        assert verdict.gradients

    @each_backend
    @workloads(tiny, "bfloat16", "float16")
    def test_low_precision(self, workload, backend):
        need(backend, workload)
        verdict = check(workload, backend)
        assert verdict.ok, verdict.message

    @pytest.mark.gpu
    @each_operator
    @each_backend
    @pytest.mark.parametrize("dtype", ITEMSIZE)
    def test_edge_on_a_gpu(self, op, backend, dtype):
        verdicts = []
        for workload in edge(op):
            workload = replace(workload, dtype=dtype)
            need(backend, workload, "cuda")
            verdicts.append(check(workload, backend, "cuda"))
        assert not [verdict.message for verdict in verdicts if not verdict.ok]

    @pytest.mark.deep_unless(case=lambda backend: backend != "numba")
    @each_backend
    @given(
        op=st.sampled_from([*OPERATORS.values()]),
        footprint=FOOTPRINTS,
        dtype=st.sampled_from(["float64", "float32"]),
        n=st.integers(0, 2),
        r=st.integers(1, 3),
        g=st.integers(1, 3),
        share=st.integers(1, 3),
        h=st.integers(1, 6),
        w=st.integers(1, 6),
    )
    def test_anything(self, backend, op, footprint, dtype, n, r, g, share, h, w):
        workload = Workload(op, footprint, n=n, r=r, v=g * share, g=g, h=h, w=w, dtype=dtype)
        if why_not(backend, op, getattr(torch, dtype), "cpu", footprint) is None:
            verdict = check(workload, backend)
            assert verdict.ok, verdict.message


class TestOutput:
    @pytest.mark.deep_unless(case=is_quick)
    @each_backend
    @workloads(lambda op: [Workload(op, DISK, n=2)], "float64", "float32", "bfloat16", "float16")
    def test_is_as_declared(self, workload, backend):
        need(backend, workload)
        inputs, output = run_workload(workload, backend)
        assert output.shape == workload.operator.output_shape(workload.sizes)
        assert output.dtype == inputs[0].dtype
        assert output.device == inputs[0].device

    @each_operator
    def test_literal_shapes(self, op):
        """n = 2, r = 3, v = 4, k = 9, p = 3 · 3 of 5 × 5 at stride 2."""
        _, output = run_workload(Workload(op, Footprint.square(3, stride=2), n=2))
        assert (
            tuple(output.shape)
            == {
                "pairwise_summation": (2, 3, 9, 9),
                "pairwise_subtraction": (2, 3, 9, 9),
                "pairwise_hadamard_product": (2, 3, 9, 9),
                "pairwise_concatenation": (2, 6, 9, 9),
                "pairwise_dot_product": (2, 1, 9, 9),
                "patchwise_star_product": (2, 9, 1, 9),
                "patchwise_clique_product": (2, 81, 1, 9),
                "patchwise_concatenation": (2, 30, 1, 9),
                "aggregation": (2, 4, 3, 3),
                "pairwise_attention": (2, 4, 3, 3),
                "patchwise_attention": (2, 4, 3, 3),
                "stand_alone_attention": (2, 4, 3, 3),
            }[op.name]
        )

    @each_operator
    @each_backend
    def test_an_empty_batch_has_empty_gradients(self, op, backend):
        workload = Workload(op, Footprint.square(3), n=0)
        need(backend, workload)
        inputs, output = run_workload(workload, backend)
        output.sum().backward()
        assert [x.grad.shape for x in inputs] == [x.shape for x in inputs]

    @each_operator
    @each_backend
    def test_is_the_same_twice(self, op, backend):
        workload = Workload(op, Footprint.square(3), n=2, h=9, w=9)
        need(backend, workload)
        inputs = [x.requires_grad_() for x in workload.tensors()]
        once, again = (
            run_backward(lambda *x: run(op, *x, footprint=workload.footprint, backend=backend), inputs)
            for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))

    @each_operator
    @each_backend
    def test_inputs_are_left_alone(self, op, backend):
        workload = Workload(op, Footprint.square(3, boundary="exclude"))
        need(backend, workload)
        before = workload.tensors()
        inputs, _ = run_workload(workload, backend)
        assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))

    @pytest.mark.parametrize("boundary", ["reflect", "zero"])
    def test_reach_beyond_the_map_costs_no_memory(self, boundary):
        """Continued to where a dilation of 10⁵ reaches, a map of three channels has 120 GB."""
        footprint = Footprint.square(2, dilation=10**5, boundary=boundary)
        verdict = check(Workload(pairwise_subtraction, footprint), "unfold")
        assert verdict.ok, verdict.message


STRIDES = {
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "sliced": lambda x: torch.stack([x, x.detach() + 1], dim=-1)[..., 0],
    "expanded": lambda x: x[:1, :1].expand(x.shape),
}


@each_operator
@each_backend
@pytest.mark.parametrize("strided", STRIDES.values(), ids=STRIDES)
def test_strides_do_not_matter(op, backend, strided):
    workload = Workload(op, Footprint.square(3, boundary="zero"), n=2)
    need(backend, workload)
    how = {"footprint": workload.footprint, "backend": backend}
    inputs = [
        (strided if axes.startswith("n ") else STRIDES["sliced"])(x).detach().requires_grad_()
        for x, (_, axes) in zip(workload.tensors(), op.inputs, strict=True)
    ]
    dense = [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in inputs]
    assert not any(x.is_contiguous() for x in inputs)
    output = run(op, *dense, **how)
    cotangent = torch.randn_like(output)
    expected = run_backward(lambda *x: run(op, *x, **how), dense, cotangent)
    uneven = torch.stack([cotangent, cotangent], dim=-1)[..., 0]  # not contiguous either
    for got, want in zip(run_backward(lambda *x: run(op, *x, **how), inputs, uneven), expected, strict=True):
        torch.testing.assert_close(got, want)


class TestGradients:
    @pytest.mark.deep_unless(case=lambda op, backend: backend != "numba" or op.name in FLOAT64)
    @each_operator
    @each_backend
    @pytest.mark.parametrize("footprint", [Footprint.square(3), DISK], ids=str)
    def test_first_and_second_derivatives(self, op, backend, footprint):
        workload = Workload(op, footprint, r=2, h=3, w=1, dtype="float64")
        need(backend, workload)
        inputs = [x.requires_grad_() for x in workload.tensors()]
        assert torch.autograd.gradcheck(lambda *x: run(op, *x, footprint=footprint, backend=backend), inputs)
        if op.degree is not None:
            assert torch.autograd.gradgradcheck(lambda *x: run(op, *x, footprint=footprint, backend=backend), inputs)

    @pytest.mark.deep
    @each_of_two
    @each_backend
    @pytest.mark.parametrize("footprint", [Footprint.square(3), DISK], ids=str)
    def test_second_derivatives_of_one_input_alone(self, op, backend, footprint):
        workload = Workload(op, footprint, r=2, h=3, w=1, dtype="float64")
        need(backend, workload)
        inputs = workload.tensors()
        for chosen, x in enumerate(inputs):

            def function(x, chosen=chosen):
                return run(op, *inputs[:chosen], x, *inputs[chosen + 1 :], footprint=footprint, backend=backend)

            assert torch.autograd.gradgradcheck(function, [x.clone().requires_grad_()])

    @pytest.mark.deep
    @each_of_two
    @each_backend
    def test_derivatives_of_one_gradient(self, op, backend):
        """Differentiate by all its inputs, while the other gradient is not needed."""
        workload = Workload(op, DISK, r=2, h=3, w=1, dtype="float64")
        need(backend, workload)
        inputs = [x.requires_grad_() for x in workload.tensors()]
        cotangent = torch.randn(op.output_shape(workload.sizes), dtype=torch.float64, requires_grad=True)
        for chosen in range(len(inputs)):

            def gradient(cotangent, *inputs, chosen=chosen):
                output = run(op, *inputs, footprint=DISK, backend=backend)
                return torch.autograd.grad(output, inputs[chosen], cotangent, create_graph=True)

            assert torch.autograd.gradcheck(gradient, [cotangent, *inputs])

    @each_operator
    @each_backend
    def test_of_one_input_alone(self, op, backend):
        workload = Workload(op, Footprint.square(3))
        need(backend, workload)
        inputs, output = run_workload(workload, backend)
        expected = torch.autograd.grad(output.sum(), inputs)
        for chosen, want in enumerate(expected):
            some = [x.detach().requires_grad_(i == chosen) for i, x in enumerate(inputs)]
            output = run(op, *some, footprint=workload.footprint, backend=backend)
            (got,) = torch.autograd.grad(output.sum(), some[chosen])
            torch.testing.assert_close(got, want)

    def test_of_one_tensor_in_both_places(self):
        """y = Σ (x_i − x_j) is 0 for every boundary that reads each position as often as it is a centre."""
        x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
        output = run(pairwise_subtraction, x, x, footprint=Footprint.square(3, boundary="circular"))
        output.sum().backward()
        torch.testing.assert_close(x.grad, torch.zeros_like(x))


def odd(op: Operator) -> list[Workload]:
    """A footprint that cannot use F.unfold, for one operator, since the others share this code."""
    return [Workload(op, DISK, h=4, w=3)] if op is aggregation else []


class TestDispatcher:
    @pytest.mark.deep_unless(case=is_own_or_simple)
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it itself
    @each_backend
    @workloads(lambda op: [Workload(op, Footprint.square(3, stride=2), h=4, w=3), *odd(op)], "float32")
    def test_opcheck(self, workload, backend):
        need(backend, workload)
        inputs = [x.requires_grad_() for x in workload.tensors()]
        entry = getattr(torch.ops.saprof, workload.operator.name).default
        torch.library.opcheck(entry, (*inputs, str(workload.footprint), backend))

    @pytest.mark.deep_unless(case=is_own_or_simple)
    @each_backend
    @workloads(lambda op: [Workload(op, Footprint.square(3)), *odd(op)], "float32")
    def test_compiles_whole(self, workload, backend, compiler):
        need(backend, workload)
        inputs = [x.requires_grad_() for x in workload.tensors()]
        eager = lambda *x: run(workload.operator, *x, footprint=workload.footprint, backend=backend)  # noqa: E731
        compiled = compiler(eager, fullgraph=True, backend="aot_eager")
        for got, want in zip(run_backward(compiled, inputs), run_backward(eager, inputs), strict=True):
            torch.testing.assert_close(got, want)

    @pytest.mark.deep
    @each_backend
    def test_compiles_with_inductor(self, backend, compiler):
        footprint = Footprint.square(3)
        workload = Workload(aggregation, footprint)
        need(backend, workload)
        alpha, beta = (x.requires_grad_() for x in workload.tensors())

        def both(alpha, beta):
            products = run(patchwise_star_product, beta, beta, footprint=footprint, backend=backend)
            y = run(aggregation, alpha + products.transpose(1, 2), beta, footprint=footprint, backend=backend)
            return torch.cat(
                [y.flatten(), run(pairwise_subtraction, y, beta, footprint=DISK, backend=backend).flatten()]
            )

        compiled = compiler(both, fullgraph=True)
        expected = run_backward(both, [alpha, beta])
        for got, want in zip(run_backward(compiled, [alpha, beta]), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    @pytest.mark.deep
    @each_backend
    @pytest.mark.parametrize(
        ("op", "footprint"), [(pairwise_subtraction, DISK), (aggregation, Footprint.square(3))], ids=["disk", "square"]
    )
    def test_compiles_for_any_shape(self, op, footprint, backend, compiler):
        eager = lambda *x: run(op, *x, footprint=footprint, backend=backend)  # noqa: E731
        compiled = compiler(eager, fullgraph=True, backend="aot_eager", dynamic=True)
        for h, w in ((7, 9), (8, 12), (10, 7)):
            workload = Workload(op, footprint, n=3, h=h, w=w)
            need(backend, workload)
            inputs = [x.requires_grad_() for x in workload.tensors()]
            for got, want in zip(run_backward(compiled, inputs), run_backward(eager, inputs), strict=True):
                torch.testing.assert_close(got, want)

    @each_operator
    def test_runs_on_the_meta_device(self, op):
        workload = Workload(op, Footprint.square(3))
        inputs = [x.to("meta") for x in workload.tensors()]
        output = run(op, *inputs, footprint=workload.footprint, backend="unfold")
        assert output.shape == op.output_shape(workload.sizes)

    def test_unsupported_names_every_backend_and_its_reason(self, monkeypatch):
        for name, module in BACKENDS.items():
            monkeypatch.setattr(module, "why_not", lambda *_, name=name: f"{name} is asleep")
        with pytest.raises(Unsupported) as raised:
            run_workload(Workload(pairwise_subtraction, Footprint.square(3)))
        assert str(raised.value) == "pairwise_subtraction: " + "; ".join(f"{n}: {n} is asleep" for n in BACKENDS)

    def test_a_backend_without_the_kernel_says_so(self, monkeypatch):
        monkeypatch.delattr(BACKENDS["unfold"], "pairwise_subtraction")
        with pytest.raises(Unsupported, match=r"^pairwise_subtraction: unfold: no kernel for pairwise_subtraction"):
            run_workload(Workload(pairwise_subtraction, Footprint.square(3)), "unfold")


class TestAutocast:
    @each_operator
    @pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
    def test_mixed_inputs_compute_in_the_autocast_type(self, op, dtypes):
        workload = Workload(op, Footprint.square(3))
        inputs = [x.to(dtype).requires_grad_() for x, dtype in zip(workload.tensors(), cycle(dtypes), strict=False)]
        with torch.autocast("cpu", torch.bfloat16):
            output = run(op, *inputs, footprint=workload.footprint)
        cast = [x if name in op.own_dtype else x.bfloat16() for x, (name, _) in zip(inputs, op.inputs, strict=True)]
        plain = run(op, *cast, footprint=workload.footprint)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, plain)
        output.sum().backward()
        assert all(x.grad.dtype == x.dtype for x in inputs)

    @pytest.mark.deep_unless(case=lambda op: not op.masked)  # a fused attention is compiled in float64 for it
    @each_operator
    def test_leaves_float64_alone(self, op):
        workload = Workload(op, Footprint.square(3), dtype="float64")
        inputs, plain = run_workload(workload)
        with torch.autocast("cpu", torch.bfloat16):
            output = run(op, *inputs, footprint=workload.footprint)
        assert output.dtype == torch.float64
        assert torch.equal(output, plain)

    def test_compiles(self, compiler):
        footprint = Footprint.square(3)
        compiled = compiler(
            lambda *x: run(pairwise_subtraction, *x, footprint=footprint), fullgraph=True, backend="aot_eager"
        )
        phi, psi = Workload(pairwise_subtraction, footprint).tensors()
        with torch.autocast("cpu", torch.bfloat16):
            output = compiled(phi, psi.bfloat16())
        assert torch.equal(output, run(pairwise_subtraction, phi.bfloat16(), psi.bfloat16(), footprint=footprint))


def bad(message, *inputs, op=pairwise_subtraction, **how):
    """A call that must fail, and its whole sentence."""
    return pytest.param(op, inputs, {"footprint": Footprint.square(3)} | how, message, id=message[:60])


MAP = torch.zeros(1, 2, 5, 5)
ALPHA = torch.zeros(1, 2, 9, 25)


class TestBadInput:
    @pytest.mark.parametrize(
        ("op", "inputs", "how", "message"),
        [
            bad("pairwise_subtraction: phi has 3 axes (2, 5, 5); expected 4: n r h w", MAP[0], MAP),
            bad("pairwise_subtraction: axis r of psi is 1; expected 2, as in phi", MAP, MAP[:, :1]),
            bad("pairwise_subtraction: axis n of psi is 0; expected 1, as in phi", MAP, MAP[:0]),
            bad("pairwise_subtraction: axis h of psi is 4; expected 5, as in phi", MAP, MAP[:, :, 1:]),
            bad("pairwise_subtraction: axis h of phi is 0; expected at least 1", MAP[:, :, :0], MAP[:, :, :0]),
            bad("pairwise_subtraction: axis w of phi is 0; expected at least 1", MAP[..., :0], MAP[..., :0]),
            bad("pairwise_subtraction: axis r of phi is 0; expected at least 1", MAP[:, :0], MAP[:, :0]),
            bad(
                "aggregation: axis k of alpha is 8; expected 9, the taps of footprint square:3",
                ALPHA[:, :, 1:], MAP, op=aggregation,
            ),
            bad(
                "aggregation: axis p of alpha is 24; expected 25, the centres of footprint square:3 on a 5×5 map",
                ALPHA[..., 1:], MAP, op=aggregation,
            ),
            bad(
                "aggregation: axis p of alpha is 25; expected 9, the centres of footprint square:3 stride=2 on a 5×5 "
                "map",
                ALPHA, MAP, op=aggregation, footprint=Footprint.square(3, stride=2),
            ),
            bad(
                "aggregation: axis g of alpha is 2; expected a divisor of v = 3, since v = g·share",
                ALPHA, torch.zeros(1, 3, 5, 5), op=aggregation,
            ),
            bad("aggregation: axis g of alpha is 0; expected at least 1", ALPHA[:, :0], MAP, op=aggregation),
            bad("aggregation: axis v of beta is 0; expected at least 1", ALPHA, MAP[:, :0], op=aggregation),
            bad(
                "pairwise_subtraction: dtype of phi is torch.int64; expected one of float64, float32, float16, "
                "bfloat16",
                MAP.long(), MAP.long(),
            ),
            bad(
                "pairwise_subtraction: dtype of psi is torch.complex64; expected one of float64, float32, float16, "
                "bfloat16",
                MAP, MAP.cfloat(),
            ),
            bad(
                "pairwise_subtraction: dtype of psi is torch.float64; expected torch.float32, as of phi",
                MAP, MAP.double(),
            ),
            bad("pairwise_subtraction: device of psi is meta; expected cpu, as of phi", MAP, MAP.to("meta")),
            bad("pairwise_subtraction: psi is a list; expected a torch.Tensor", MAP, MAP.tolist()),
            bad("pairwise_subtraction: psi is a NoneType; expected a torch.Tensor", MAP, None),
            bad("pairwise_subtraction: got 1 inputs; expected 2: phi, psi", MAP),
            bad("pairwise_subtraction: got 0 inputs; expected 2: phi, psi"),
            bad("aggregation: got 3 inputs; expected 2: alpha, beta", ALPHA, MAP, MAP, op=aggregation),
            bad(
                "pairwise_subtraction: footprint is 3.0; expected a Footprint, a size such as 7, or text such as "
                "'disk:9'",
                MAP, MAP, footprint=3.0,
            ),
            bad(
                "pairwise_subtraction: footprint is None; expected a Footprint, a size such as 7, or text such as "
                "'disk:9'",
                MAP, MAP, footprint=None,
            ),
            bad(
                "pairwise_subtraction: footprint size is 0; expected a positive integer",
                MAP, MAP, footprint=0,
            ),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    def test_is_named_with_what_was_expected(self, op, inputs, how, message, backend):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            run(op, *inputs, **how, backend=backend)

    def test_unknown_backend(self):
        *most, last = (repr(name) for name in [*BACKENDS, "auto"])
        expected = f"unknown backend 'triton'; expected {', '.join(most)} or {last}"
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            run(pairwise_subtraction, MAP, MAP, footprint=DISK, backend="triton")

    def test_mixed_dtypes_that_autocast_does_not_reconcile(self):
        expected = "pairwise_subtraction: dtype of psi is torch.bfloat16; expected torch.float64, as of phi"
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=re.escape(expected)):
            run(pairwise_subtraction, MAP.double(), MAP, footprint=DISK)


class TestDeclarations:
    @each_operator
    def test_describes_itself(self, op: Operator):
        assert op.__doc__
        assert op.equation in op.__doc__
        assert op.source in op.__doc__
        assert op.source.startswith(("SAN ", "SASA "))

    @each_operator
    def test_is_public_under_its_name(self, op: Operator):
        function = getattr(saprof, op.name)
        named, tail = list(inspect.signature(function).parameters), ["footprint", "backend"]
        assert named == [name for name, _ in op.inputs] + tail
        first, *_ = function.__doc__.splitlines()
        assert op.source in first
        assert all(name in function.__doc__ for name in ("Shapes: ", "ValueError", "Unsupported", *named[:-2]))
        assert op.name in (op.family, f"{op.family}_{op.relation}")

    @each_of_two
    def test_degree_is_how_it_scales(self, op: Operator):
        """Also checks whether the inputs are added or multiplied; second derivatives of opaque kernels depend on it."""
        workload = Workload(op, DISK, n=2, dtype="float64")
        a, b = workload.tensors()
        function = lambda *inputs: reference(op, inputs, DISK)  # noqa: E731
        torch.testing.assert_close(function(2 * a, 2 * b), 2**op.degree * function(a, b))
        first, second = function(a, 0 * b), function(0 * a, b)
        if op.degree == 1:
            torch.testing.assert_close(first + second, function(a, b))
        else:
            assert op.degree == 2
            assert not first.any()
            assert not second.any()
            torch.testing.assert_close(function(2 * a, b), 2 * function(a, b))

    def test_a_taken_name_is_refused(self):
        with pytest.raises(ValueError, match=r"^aggregation: already declared, as y_i.*; expected a new name$"):
            operator(axes="n r h w -> n r k p", source="nobody")(_body("aggregation", "phi_i"))

    @pytest.mark.parametrize(
        ("axes", "parameters", "message"),
        [
            (
                "n r h w -> n r k p",
                "phi_i, psi_j",
                "odd: axes are .*; expected those of phi, psi -> those of the output",
            ),
            ("n r h w", "phi_i", "odd: axes are 'n r h w'; expected those of phi -> those of the output"),
            ("n r h w -> n r k p", "phi_x", "odd: parameters are read at x; expected _i, _j or _R each"),
        ],
    )
    def test_a_declaration_that_does_not_fit_is_refused(self, axes, parameters, message):
        with pytest.raises(ValueError, match=message):
            operator(axes=axes, source="nobody")(_body("odd", parameters))
        assert "odd" not in DECLARED


def _body(name: str, parameters: str):
    scope: dict = {}
    exec(f"def {name}({parameters}): return 0", scope)
    return scope[name]


SHAPES_OF_LAYERS = """
import jaxtyping, torch
jaxtyping.install_import_hook("saprof.layers", "beartype.beartype")
from saprof.operators.footprint import Footprint
from saprof.layers import ATTENTION, AttentionConfig, SelfAttentionBlock

x = torch.randn(2, 64, 5, 4)
for family in ATTENTION:
    block = SelfAttentionBlock(64, Footprint.disk(3, boundary="exclude"), AttentionConfig(family=family))
    assert block(x).shape == x.shape
try:
    block(x[0])
except jaxtyping.TypeCheckError:
    print("checked")
"""


@pytest.mark.deep
def test_layers_keep_the_shapes_they_announce():
    """In a separate process, since checked signatures do not compile with fullgraph=True."""
    done = subprocess.run([sys.executable, "-c", SHAPES_OF_LAYERS], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("checked\n", 0), done.stderr
