"""The fused attentions agree with the reference and with composed layers, and need no memory with an axis of taps."""

import copy
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from derivatives import gradients, same_whatever_the_threads
from test_cost import Calls, fvcore_analysis
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import saprof
from saprof.backends import BACKENDS, Unsupported, cores, in_parts, run, run_in_training, run_statistics, why_not
from saprof.layers import ATTENTION, AttentionConfig, VectorAttention, pool
from saprof.measure.conformance import check
from saprof.measure.memory import peak_bytes, saved_bytes
from saprof.models.counter import Counter
from saprof.operators import RELATIONS
from saprof.operators.attention import (
    ATTENTIONS,
    CHOICES,
    DEFAULTS,
    MAPPINGS,
    POSITIONS,
    Attention,
    pairwise_attention,
    patchwise_attention,
)
from saprof.operators.cost import operator_cost
from saprof.operators.footprint import Footprint
from saprof.operators.workload import STAGES, Workload

SQUARE = Footprint.square(3)
FOOTPRINTS = [Footprint.square(3, boundary="exclude"), Footprint.disk(3, stride=2, boundary="zero"), SQUARE]
UNREACHED = Footprint.from_offsets([(2, 0), (2, 1)], boundary="exclude")
"""Two rows of centres have no tap on a map of four rows."""

FUSED = [name for name in BACKENDS if name != "unfold"]
"""The backends that have kernels of their own."""

each_variant = pytest.mark.parametrize("variant", ATTENTIONS, ids="-".join)


def _covering():
    """A third of the pairwise variants, with every pair of a relation, position and mapping, and all patchwise ones.

    `test_fused_is_composed` tests the other variants.
    """
    for family, relation, position, mapping in ATTENTIONS:
        at = RELATIONS[family].index(relation), POSITIONS.index(position), MAPPINGS.index(mapping)
        if family == "patchwise" or sum(at) % 3 == 1:
            yield family, relation, position, mapping


each_pair_of_options = pytest.mark.parametrize("variant", list(_covering()), ids="-".join)
each_default = pytest.mark.parametrize("variant", [(family, *DEFAULTS[family]) for family in DEFAULTS], ids="-".join)
each_relation = pytest.mark.parametrize(
    "variant",
    [(family, relation, *DEFAULTS[family][1:]) for family, relations in RELATIONS.items() for relation in relations],
    ids="-".join,
)
each_fused_backend = pytest.mark.parametrize("backend", FUSED)


def in_dtypes(backends):
    """Parametrise by backend and dtype. Numba's kernels, which take long to compile, are tested in float32 by the
    default tier, and in both by the deep one; other backends are tested in float64."""
    cases = [(backend, "float64") for backend in backends if backend != "numba"]
    cases += [("numba", "float32"), pytest.param("numba", "float64", marks=pytest.mark.deep)]
    return pytest.mark.parametrize(("backend", "dtype"), cases)


def need(backend: str, operator: Attention, footprint: Footprint = SQUARE) -> None:
    """Skip a case that the backend cannot run, with its reason."""
    reason = why_not(backend, operator, torch.float32, "cpu", footprint)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


def close(got, expected, tolerance=TOLERANCE["float32"]):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# the operators


@each_pair_of_options
@in_dtypes(BACKENDS)
def test_agrees_with_the_reference(backend, dtype, variant):
    operator = ATTENTIONS[variant]
    for footprint in FOOTPRINTS:
        need(backend, operator, footprint)
        verdict = check(Workload(operator, footprint, n=2, r=5, v=8, g=4, h=4, w=5, dtype=dtype), backend)
        assert verdict.ok, verdict.message
        assert verdict.gradients


def statistics_inputs(operator: Attention, inputs):
    """The inputs of the statistics of every batch norm, first to last."""
    maps, parameters = [*inputs[:2], *inputs[3 : operator.maps]], inputs[operator.maps :]
    return [[*maps, *parameters[:before]] for before in range(0, len(parameters) - 1, 3)]


@each_pair_of_options
@in_dtypes(FUSED)
def test_statistics_agree_with_those_of_the_parts(backend, dtype, variant):
    operator = ATTENTIONS[variant]
    for footprint in FOOTPRINTS:
        need(backend, operator, footprint)
        workload = Workload(operator, footprint, n=2, r=5, v=8, g=4, h=4, w=5, dtype=dtype)
        inputs = [x.requires_grad_() for x in workload.tensors()]
        for given in statistics_inputs(operator, inputs):
            got = run_statistics(operator, *given, footprint=footprint, backend=backend)
            expected = run_statistics(operator, *given, footprint=footprint, backend="unfold")
            cotangents = [*map(torch.randn_like, expected)]
            found, wanted = (gradients(pair, given, cotangents) for pair in (got, expected))
            for one, other in zip([*got, *found], [*expected, *wanted], strict=True):
                close(one, other, TOLERANCE[dtype])


def test_statistics_are_those_of_batch_norm():
    """Compare with torch's mean and variance of the pairs that the unfold backend materialises."""
    footprint = Footprint.disk(3, stride=2)
    workload = Workload(pairwise_attention, footprint, n=2)
    phi, psi, *_ = workload.tensors()
    operator = ATTENTIONS["pairwise", "subtraction", "none", "lrl"]
    delta = saprof.pairwise_subtraction(phi, psi, footprint=footprint, backend="unfold")
    norm = nn.BatchNorm2d(delta.shape[1], momentum=1.0)
    norm(delta)
    mean, variance = run_statistics(operator, phi, psi, footprint=footprint)
    count = delta[:, 0].numel()
    close(mean, norm.running_mean)
    close(variance * count / (count - 1), norm.running_var)


@each_relation
@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_of_a_large_mean_stay_accurate(backend, variant):
    """A variance of a few and a mean of thousands: sums of squares alone would lose all digits of the variance."""
    operator = ATTENTIONS[variant]
    need(backend, operator)
    phi, psi, *others = Workload(operator, SQUARE, n=2).tensors()
    inputs = [phi + 1e3, psi + 3e3, *others]
    for index, (name, _) in enumerate(operator.inputs):
        if name == "scale_1":
            inputs[index] = torch.ones_like(inputs[index])
        elif name == "shift_1":
            inputs[index] = torch.full_like(inputs[index], 3e3)  # the largest part passes the ReLU
    for given in statistics_inputs(operator, inputs):
        got = run_statistics(operator, *given, footprint=SQUARE, backend=backend)
        exact = run_statistics(operator, *(x.double() for x in given), footprint=SQUARE, backend="unfold")
        assert exact[0].abs().max() > 500
        for one, other in zip(got, exact, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


@each_default
@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_and_positions_keep_their_type(backend, variant):
    """Their dtype may differ from the dtype of the maps, and their gradients have it as well."""
    operator = ATTENTIONS[variant]
    need(backend, operator)
    inputs = Workload(operator, SQUARE, n=2).tensors()
    mixed = [
        (x.bfloat16() if name in ("phi", "psi", "beta") else x).requires_grad_()
        for x, (name, _) in zip(inputs, operator.inputs, strict=True)
    ]
    output = run(operator, *mixed, footprint=SQUARE, backend=backend)
    assert output.dtype == torch.bfloat16
    for x, gradient in zip(mixed, gradients(output, mixed), strict=True):
        assert gradient.dtype == x.dtype
    exact = run(operator, *(x.double() for x in mixed), footprint=SQUARE, backend="unfold")
    torch.testing.assert_close(output.double(), exact, rtol=0.03, atol=0.03)


@each_default
@each_fused_backend
def test_has_no_second_derivative(backend, variant):
    operator = ATTENTIONS[variant]
    need(backend, operator)
    inputs = [x.requires_grad_() for x in Workload(operator, SQUARE).tensors()]
    output = run(operator, *inputs, footprint=SQUARE, backend=backend)
    (gradient,) = torch.autograd.grad(output.sum(), inputs[:1], create_graph=True)
    message = f"{operator.name} has no second derivative; expected backend='unfold', or attention='composed' in a layer"
    with pytest.raises(NotImplementedError, match=f"^{message}$"):
        gradient.sum().backward()


@each_default
@each_fused_backend
def test_an_empty_batch_has_gradients_of_zero(backend, variant):
    operator = ATTENTIONS[variant]
    need(backend, operator)
    inputs = [x.requires_grad_() for x in Workload(operator, SQUARE, n=0).tensors()]
    output = run(operator, *inputs, footprint=SQUARE, backend=backend)
    assert output.shape == (0, 4, 5, 5)
    found = gradients(output, inputs)
    assert [x.shape for x in found] == [x.shape for x in inputs]
    assert not any(x.any() for x in found)


@each_default
@each_fused_backend
def test_is_the_same_whatever_the_threads(backend, variant):
    operator = ATTENTIONS[variant]
    need(backend, operator)
    workload = Workload(operator, Footprint.square(5), n=2, r=5, v=18, h=13, w=11)
    inputs = [x.requires_grad_() for x in workload.tensors()]
    cotangent = torch.randn(operator.output_shape(workload.sizes))

    def compute():
        output = run(operator, *inputs, footprint=workload.footprint, backend=backend)
        return [output, *gradients(output, inputs, cotangent)]

    same_whatever_the_threads(compute, operator.reads)


def bad(message, change, operator=pairwise_attention):
    """A change of the inputs, by name, that makes a call fail, and the whole message."""
    return pytest.param(operator, change, message, id=message[:60])


class TestBadInput:
    @pytest.mark.parametrize(
        ("operator", "change", "message"),
        [
            bad(
                "pairwise_attention: axis r+2 of scale_1 is 4; expected 5",
                {"scale_1": lambda x: x[1:]},
            ),
            bad(
                "pairwise_attention: axis r+2 of weight_1 is 4; expected 5",
                {"weight_1": lambda x: x[:, 1:]},
            ),
            bad(
                "pairwise_attention: axis e of weight_2 is 2; expected 3, as in weight_1",
                {"weight_2": lambda x: x[:, 1:]},
            ),
            bad(
                "pairwise_attention: axis g of bias is 1; expected 2, as in weight_2",
                {"bias": lambda x: x[1:]},
            ),
            bad(
                "pairwise_attention: axis e of weight_1 is 0; expected at least 1",
                {"weight_1": lambda x: x[:0], "weight_2": lambda x: x[:, :0]}
                | dict.fromkeys(("scale_2", "shift_2"), lambda x: x[:0]),
            ),
            bad(
                "pairwise_attention: axis v of beta is 0; expected at least 1",
                {"beta": lambda x: x[:, :0]},
            ),
            bad(
                "pairwise_attention: axis g of weight_2 is 2; expected a divisor of v = 3, since v = g·share",
                {"beta": lambda x: x[:, 1:]},
            ),
            bad(
                "pairwise_attention: axis w of position is 4; expected 5, as in phi",
                {"position": lambda x: x[..., 1:]},
            ),
            bad(
                "pairwise_attention: weight_1 has 1 axes (15,); expected 2: e r+2",
                {"weight_1": lambda x: x.flatten()},
            ),
            bad(
                "pairwise_attention: dtype of beta is torch.float64; expected torch.float32, as of phi",
                {"beta": lambda x: x.double()},
            ),
            bad(
                "pairwise_attention: dtype of bias is torch.int64; expected one of float64, float32, float16, bfloat16",
                {"bias": lambda x: x.long()},
            ),
            bad(
                "pairwise_attention: device of bias is meta; expected cpu, as of phi",
                {"bias": lambda x: x.to("meta")},
            ),
            bad(
                "pairwise_attention: bias is a NoneType; expected a torch.Tensor",
                {"bias": lambda x: None},
            ),
            bad(
                "patchwise_attention: axis r*(k+1) of shift_1 is 29; expected 30",
                {"shift_1": lambda x: x[1:]}, patchwise_attention,
            ),
            bad(
                "patchwise_attention: axis k of weight_2 is 8; expected 9, the taps of footprint square:3",
                {"weight_2": lambda x: x[:, 1:], "bias": lambda x: x[:, 1:]}, patchwise_attention,
            ),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("backend", ["auto", "unfold"])
    def test_is_named_with_what_was_expected(self, operator, change, message, backend):
        inputs = [
            change.get(name, lambda x: x)(x)
            for x, (name, _) in zip(Workload(operator, SQUARE).tensors(), operator.inputs, strict=True)
        ]
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            run(operator, *inputs, footprint=SQUARE, backend=backend)

    @each_default
    @pytest.mark.parametrize("change", [-1, 1], ids=["one less", "one more"])
    def test_a_wrong_number_of_inputs(self, variant, change):
        operator = ATTENTIONS[variant]
        inputs = Workload(operator, SQUARE).tensors()
        inputs = [*inputs, inputs[-1]] if change > 0 else inputs[:-1]
        names = ", ".join(name for name, _ in operator.inputs)
        message = f"{operator.name}: got {len(inputs)} inputs; expected {len(operator.inputs)}: {names}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            run(operator, *inputs, footprint=SQUARE)

    @each_default
    def test_a_wrong_number_of_inputs_of_the_statistics(self, variant):
        operator = ATTENTIONS[variant]
        inputs = Workload(operator, SQUARE).tensors()
        maps, parameters = [*inputs[:2], *inputs[3 : operator.maps]], inputs[operator.maps :]
        valid = [len(given) for given in statistics_inputs(operator, inputs)]
        for count in range(len(inputs) + 2):
            given = [*maps, *parameters, *parameters][:count]
            if count in valid:
                run_statistics(operator, *given, footprint=SQUARE)
                continue
            names = ", ".join(name for name, _ in operator.inputs[: operator.maps] if name != "beta")
            message = (
                f"{operator.name}: got {count} inputs of its statistics; expected {names}, then the steps before the "
                "norm, of three each"
            )
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                run_statistics(operator, *given, footprint=SQUARE)

    @each_default
    @pytest.mark.parametrize("backend", ["auto", "unfold"])
    def test_of_the_statistics(self, variant, backend):
        operator = ATTENTIONS[variant]
        phi, psi, _, *others = Workload(operator, SQUARE).tensors()
        given = [phi, psi, *others[: operator.maps - 3 + 3]]
        how = {"footprint": SQUARE, "backend": backend}
        run_statistics(operator, *given, **how)
        first = operator.maps - 1
        width = given[first].numel()
        changes = {
            "psi is a NoneType; expected a torch.Tensor": (1, None),
            "psi has 3 axes (3, 5, 5); expected 4: n r h w": (1, psi[0]),
            "axis r of psi is 2; expected 3, as in phi": (1, psi[:, 1:]),
            "axis w of psi is 4; expected 5, as in phi": (1, psi[..., 1:]),
            "dtype of psi is torch.float64; expected torch.float32, as of phi": (1, psi.double()),
            f"axis {operator.inputs[operator.maps][1]} of scale_1 is {width - 1}; expected {width}": (
                first, given[first][1:],
            ),
        }  # fmt: skip
        for message, (at, x) in changes.items():
            wrong = [*given[:at], x, *given[at + 1 :]]
            with pytest.raises(ValueError, match=f"^{operator.name}: {re.escape(message)}"):
                run_statistics(operator, *wrong, **how)
        with pytest.raises(ValueError, match=f"^{operator.name}: footprint is 3.0; expected a Footprint, a size"):
            run_statistics(operator, *given, footprint=3.0, backend=backend)
        with pytest.raises(ValueError, match=r"^unknown backend 'triton'; expected "):
            run_statistics(operator, *given, footprint=SQUARE, backend="triton")


# the cores


def core_arguments(name, footprint, without=None):
    """The arguments of a core: tensors that require gradients, without the missing one, then widths and flag."""
    core = next(core for core in ALL_CORES if core.name == name)
    new = torch.Generator().manual_seed(0)
    oh, ow = footprint.output_size(4, 5)
    e, d, g, v, n, k = 3, 5, 2, 4, 2, footprint.taps
    widths = {"pairwise": [e, 4, g], "patchwise": [e * (k + 1), g, g * k], "stand_alone": [d, g]}[core.family]
    widths = {"patchwise_hidden": widths[:2], "patchwise_weighted": widths[1:]}.get(name, widths)
    flags = {"pairwise": [True], "patchwise": ["concatenation"], "stand_alone": []}[core.family]
    flags = [] if name == "patchwise_weighted" else flags
    parameters = sum(i * o + o for i, o in pairwise(widths))
    shapes = {
        "offset": (n, e, oh * ow), "factor": (n, e, oh * ow), "centres": (n, e, oh * ow), "map": (n, e, 4, 5),
        "query": (n, d * g, oh * ow), "key": (n, d * g, 4, 5), "relative": (d * g, k), "beta": (n, v, 4, 5),
        "hidden": (n, g, oh * ow), "scale": (e * k,), "shift": (e * k,), "parameters": (parameters,),
    }  # fmt: skip
    tensors = [None if x == without else torch.randn(shapes[x], generator=new).requires_grad_() for x in core.inputs]
    return core, tensors, [widths, *flags, str(footprint)]


ALL_CORES = (*cores.CORES, *cores.PARTS)
each_core = pytest.mark.parametrize("name", [core.name for core in ALL_CORES])
WITHOUT = [(core.name, x) for core in ALL_CORES for x in (None, *core.inputs) if x is None or x in cores.OPTIONAL]


@pytest.mark.parametrize(("name", "without"), WITHOUT, ids=lambda x: x or "all")
def test_opcheck_of_a_core(name, without):
    _, tensors, facts = core_arguments(name, FOOTPRINTS[1], without)
    torch.library.opcheck(getattr(torch.ops.saprof_numba, name).default, (*tensors, *facts))


@each_core
@pytest.mark.parametrize("needed", ["all", "first", "last"])
def test_opcheck_of_a_backward(name, needed):
    core, tensors, facts = core_arguments(name, FOOTPRINTS[0])
    count = len(tensors)
    needs = {"all": [True] * count, "first": [True] + [False] * (count - 1), "last": [False] * (count - 1) + [True]}
    tensors = [x.detach() for x in tensors]
    outputs = getattr(torch.ops.saprof_numba, name)(*tensors, *facts)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    given = [*map(torch.randn_like, outputs[: core.differentiable]), *(outputs[at] for at in core.saved)]
    backward = getattr(torch.ops.saprof_numba, f"{name}_backward")
    torch.library.opcheck(backward.default, (*given, *tensors, *facts, needs[needed]))
    found = backward(*given, *tensors, *facts, needs[needed])
    every = backward(*given, *tensors, *facts, needs["all"])
    for x, whole, need_, like in zip(found, every, needs[needed], tensors, strict=True):
        assert x.shape == (like.shape if need_ else (0,))
        if need_:
            torch.testing.assert_close(x, whole)


# the patchwise attention in training, in two parts

each_in_parts = pytest.mark.parametrize(
    "variant", [v for v in ATTENTIONS if in_parts("numba", ATTENTIONS[v], "cpu")], ids="-".join
)
EPS = 1e-5, 0.03, 1e-3


def step_by_step(operator, inputs, eps, footprint):
    """y and the statistics of every norm by the unfold backend: one run per norm, and one of the attention."""
    phi, psi, beta, *parameters = inputs
    found, done = [], []
    for at, one in zip(range(0, len(parameters) - 1, 3), eps, strict=True):
        mean, variance = run_statistics(operator, phi, psi, *done, footprint=footprint, backend="unfold")
        found += [mean, variance]
        scale = parameters[at] / (variance + one).sqrt()
        done += [scale, parameters[at + 1] - mean * scale, parameters[at + 2]]
    y = run(operator, phi, psi, beta, *done, parameters[-1], footprint=footprint, backend="unfold")
    return [y, *found]


@each_in_parts
@pytest.mark.deep_unless(case=lambda variant: variant[1] == "concatenation")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.deep)])
def test_the_parts_agree_with_step_by_step(variant, dtype):
    operator = ATTENTIONS[variant]
    for footprint in (SQUARE, Footprint.square(5, boundary="zero"), Footprint.disk(3, stride=2, boundary="zero")):
        for n, h, w in ((2, 4, 5), (3, 21, 18)):  # several images in a tile, and several tiles in an image
            inputs = Workload(operator, footprint, n=n, r=5, v=8, g=4, h=h, w=w, dtype=dtype).tensors()
            inputs = [x.requires_grad_() for x in inputs]
            exact = [x.detach().double().requires_grad_() for x in inputs]
            eps = EPS[: len(variant[3]) // 2 + 1]
            got = run_in_training(operator, *inputs, eps=eps, footprint=footprint, backend="numba")
            want = step_by_step(operator, exact, eps, footprint)
            assert [x.dtype for x in got] == [x.dtype for x in inputs[:1] * len(want)]
            cotangents = [torch.randn_like(x) for x in want]
            found = gradients(got, inputs, [x.to(got[0].dtype) for x in cotangents])
            for one, other in zip([*got, *found], [*want, *gradients(want, exact, cotangents)], strict=True):
                scale = other.abs().max().clamp_min(1)
                close(one.double() / scale, other / scale, TOLERANCE[dtype])


def test_the_statistics_of_the_parts_stay_accurate():
    """A variance of about 1 and a mean of thousands: sums of squares alone would lose all digits of the variance."""
    phi, psi, *others = Workload(patchwise_attention, SQUARE, n=2).tensors()
    inputs = [phi + 1e3, psi + 3e3, *others]
    got = run_in_training(patchwise_attention, *inputs, eps=EPS[:2], footprint=SQUARE)[1:3]
    exact = run_statistics(patchwise_attention, *(x.double() for x in inputs[:2]), footprint=SQUARE, backend="unfold")
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def test_the_parts_are_the_same_whatever_the_threads():
    workload = Workload(patchwise_attention, Footprint.square(5), n=2, r=5, v=18, h=13, w=11)
    inputs = [x.requires_grad_() for x in workload.tensors()]
    cotangent = torch.randn(patchwise_attention.output_shape(workload.sizes))

    def compute():
        output = run_in_training(patchwise_attention, *inputs, eps=EPS[:2], footprint=workload.footprint)[0]
        return [output, *gradients(output, inputs, cotangent)]

    same_whatever_the_threads(compute, [""] * len(inputs))


def test_the_parts_need_a_backend_that_has_them():
    inputs = Workload(patchwise_attention, SQUARE).tensors()
    message = "patchwise_attention_training: unfold has no kernels for it; expected run_statistics and run"
    with pytest.raises(Unsupported, match=f"^{message}$"):
        run_in_training(patchwise_attention, *inputs, eps=EPS[:2], footprint=SQUARE, backend="unfold")


def test_a_layer_in_training_runs_in_parts():
    """The first linear runs once: no other core of the patchwise attention is called, forward or backward."""
    layer = build(("patchwise", *DEFAULTS["patchwise"]))
    calls = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(str(func))
            return func(*args, **kwargs or {})

    with Record():
        layer(image(2, 32, 4, 5).requires_grad_()).sum().backward()
    ran = {name for name in calls if name.startswith("saprof_numba")}
    parts = {
        f"saprof_numba.patchwise_{part}{end}.default" for part in ("hidden", "weighted") for end in ("", "_backward")
    }
    assert ran == parts


def test_the_parts_are_counted_as_the_attention():
    layer, x = build(("patchwise", *DEFAULTS["patchwise"])), image(2, 32, 4, 5).requires_grad_()
    with Counter() as counter:
        layer(x).sum().backward()
    sizes = patchwise_attention.bind([i.shape for i in _inputs_of(layer, x)], SQUARE)
    macs = operator_cost(patchwise_attention, sizes).macs
    found = {key.kind: cost.macs for key, cost in counter.costs.items() if key.kind.startswith("patchwise")}
    assert found == {"patchwise_attention": macs, "patchwise_attention_backward": 2 * macs}


def _inputs_of(layer, x):
    first, second = layer.gamma[2].weight.flatten(1), layer.gamma[5].weight.flatten(1)
    norms = [(norm.weight, norm.bias) for norm in layer.gamma[::3]]
    last = second.view(*layer.outputs, -1), layer.gamma[5].bias.view(layer.outputs)
    return [*layer.transform(x), *norms[0], first, *norms[1], *last]


# the layers

SMALL = {"relation_reduction": 8, "value_reduction": 4, "share": 2}
"""φ and ψ have C / 8 channels, β has C / 4, and two channels share a weight: C = 32 gives 4, 8 and 4 groups."""


def build(variant, footprint=SQUARE, channels=32, **config) -> VectorAttention:
    """A fused layer with random parameters and statistics."""
    family, relation, position, mapping = variant
    torch.manual_seed(0)
    options = SMALL | {"attention": "fused", "relation": relation, "position": position, "mapping": mapping}
    layer = ATTENTION[family](channels, footprint, AttentionConfig(family=family, **options | config))
    for name, x in layer.state_dict().items():
        if x.is_floating_point():
            noise = 0.3 * torch.randn(x.shape)
            x.copy_(1 + noise.tanh() if name.endswith("running_var") else x + noise)
    return layer


def composed(layer: VectorAttention) -> VectorAttention:
    """The same layer, composed of operators of the unfold backend."""
    other = copy.deepcopy(layer)
    other.attention, other.backend = "composed", "unfold"
    return other


def image(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def learn(layer, x, run=None):
    """Outputs, gradients of x and every parameter, and buffers after the step."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x) if run is None else run(x)
    (y * image(*y.shape, seed=2, dtype=torch.float64).to(y.dtype)).sum().backward()
    return {
        "y": y.detach(),
        "x": x.grad,
        **{f"gradient of {name}": p.grad for name, p in layer.named_parameters()},
        **{name: buffer.clone() for name, buffer in layer.named_buffers()},
    }


def same(got, expected, tolerance=TOLERANCE["float32"]):
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert (got[name] is None) == (want is None), name
        if want is not None:
            torch.testing.assert_close(
                got[name], want, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )


each_precision = pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.deep)])


def compare(layer, x=None, steps=2, precision="float32"):
    """Compare fused and composed layers in some steps of training, then in evaluation."""
    dtype, tolerance = getattr(torch, precision), TOLERANCE[precision]
    layer = layer.to(dtype)
    other = composed(layer)
    x = (image(2, 32, 4, 5) if x is None else x).to(dtype)
    for _ in range(steps):
        same(learn(layer.train(), x), learn(other.train(), x), tolerance)
    same(learn(layer.eval(), x), learn(other.eval(), x), tolerance)
    assert layer.ran.startswith("fused on ")
    assert other.ran == "composed on unfold"


@each_precision
@each_variant
def test_fused_is_composed(variant, precision):
    compare(build(variant), steps=1, precision=precision)


@each_default
@each_fused_backend
@pytest.mark.parametrize("footprint", FOOTPRINTS, ids=str)
def test_fused_is_composed_on_every_backend(variant, backend, footprint):
    need(backend, ATTENTIONS[variant], footprint)
    layer = build(variant, footprint, backend=backend)
    compare(layer)
    assert layer.ran == f"fused on {backend}"


@each_precision
@each_relation
@pytest.mark.parametrize("transformations", ["shared_phi_psi", "shared"])
@pytest.mark.parametrize("footprint", [SQUARE, Footprint.from_offsets([(0, 1), (1, -1)])], ids=["centre", "no centre"])
def test_of_shared_transformations(variant, transformations, footprint, precision):
    reductions = {"relation_reduction": None} if transformations == "shared" else {}
    for mapping in ("lrl", "lrlrl"):
        variant = (*variant[:3], mapping)
        layer = build(variant, footprint, transformations=transformations, **reductions)
        compare(layer, precision=precision)
        if transformations == "shared":
            assert layer.hidden < layer.phi.out_channels


@each_precision
@each_default
@pytest.mark.parametrize("norm", [{"momentum": None}, {"track_running_stats": False}, {"affine": False}], ids=str)
def test_of_any_batch_norm(variant, norm, precision):
    layer = build(variant)
    for index, child in enumerate(layer.gamma):
        if isinstance(child, nn.BatchNorm2d):
            layer.gamma[index] = nn.BatchNorm2d(child.num_features, eps=0.03, **norm)
    for parameter in layer.gamma.parameters():
        nn.init.normal_(parameter)
    compare(layer, precision=precision)


@each_default
@pytest.mark.parametrize("frozen", [0, 3], ids=["first", "second"])
def test_of_a_norm_that_is_frozen(variant, frozen):
    """A norm in evaluation inside a layer in training, and the reverse."""
    layer = build(variant).train()
    layer.gamma[frozen].eval()
    other, x = composed(layer), image(2, 32, 4, 5)
    before = layer.gamma[frozen].running_mean.clone()
    same(learn(layer, x), learn(other, x))
    assert torch.equal(layer.gamma[frozen].running_mean, before)
    for either in (layer, other):
        either.eval().gamma[frozen].train()
    same(learn(layer, x), learn(other, x))
    assert not torch.equal(layer.gamma[frozen].running_mean, before)


@each_default
def test_of_one_value_per_channel_is_refused(variant):
    """Torch's batch norm does the same."""
    one = Footprint.square(1)
    layer = build(variant, one).train()
    message = "a batch norm of γ sees one value per channel in training; expected more, to have a variance"
    before = {name: x.clone() for name, x in layer.named_buffers()}
    with pytest.raises(ValueError, match=f"^{message}$"):
        layer(image(1, 32, 1, 1))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        composed(layer)(image(1, 32, 1, 1))
    assert all(torch.equal(x, before[name]) for name, x in layer.named_buffers())
    same(learn(layer.eval(), image(1, 32, 1, 1)), learn(composed(layer), image(1, 32, 1, 1)))


@each_precision
@each_default
@pytest.mark.parametrize(
    ("footprint", "size"),
    [
        (SQUARE, (1, 1)),
        (Footprint.square(5, boundary="exclude"), (1, 1)),
        (Footprint.square(7), (2, 3)),
        (Footprint.square(7, boundary="zero"), (2, 3)),
        (Footprint.square(3, dilation=4, boundary="exclude"), (3, 2)),
        (Footprint.square(3, stride=3, boundary="circular"), (7, 5)),
        (Footprint.cross(5, stride=2, boundary="replicate"), (5, 4)),
        (UNREACHED, (4, 3)),
        (Footprint.from_offsets([(7, -5)], boundary="exclude"), (3, 3)),
    ],
    ids=str,
)
def test_of_any_map(variant, footprint, size, precision):
    layer = build(variant, footprint)
    compare(layer, image(3, 32, *size), steps=1, precision=precision)
    if footprint == UNREACHED:
        y = layer(image(3, 32, *size).to(getattr(torch, precision)))
        assert not y[:, :, 2:].any()
        assert y[:, :, :2].abs().min() > 0


@each_default
def test_of_maps_in_any_order_in_memory(variant):
    layer, x = build(variant).train(), image(2, 32, 4, 5)
    expected = learn(copy.deepcopy(layer), x)
    got = learn(layer.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last))
    same({k: v.contiguous() for k, v in got.items()}, expected)


# how a layer is computed


def plan(variant=("pairwise", *DEFAULTS["pairwise"]), dtype=torch.float32, device="cpu", **config):
    return build(variant, **config).plan(dtype, device)


@each_variant
def test_auto_fuses_what_is_compiled(variant):
    assert plan(variant, attention="auto") == plan(variant) == ("fused", "numba")
    assert plan(variant, attention="composed") == ("composed", "numba")
    assert plan(variant, attention="composed", backend="unfold") == ("composed", "unfold")


class OtherNorm(nn.BatchNorm2d):
    """A subclass of batch norm, whose forward may differ."""


def with_another_norm(layer):
    layer.gamma[0] = OtherNorm(layer.gamma[0].num_features).to(layer.gamma[0].weight).eval()


def synchronised(layer):
    layer.gamma = nn.SyncBatchNorm.convert_sync_batchnorm(layer.gamma)


def hooked(layer):
    layer.gamma[1].register_forward_hook(lambda *_: None)


def hooked_before(layer):
    layer.gamma[2].register_forward_pre_hook(lambda *_: None)


def hooked_backwards(layer):
    layer.gamma[0].register_full_backward_hook(lambda *_: None)


def on_unfold(layer):
    layer.backend = "unfold"


REASONS = {
    synchronised: "γ[0] is a SyncBatchNorm; expected a BatchNorm2d",
    with_another_norm: "γ[0] is a OtherNorm; expected a BatchNorm2d",
    hooked: "γ[1] has hooks, which would not be called",
    hooked_before: "γ[2] has hooks, which would not be called",
    hooked_backwards: "γ[0] has hooks, which would not be called",
    on_unfold: "unfold computes it by its parts",
}


@each_default
@pytest.mark.parametrize("change", REASONS, ids=lambda change: change.__name__)
def test_what_cannot_be_fused_says_why(variant, change):
    layer = build(variant).eval()
    change(layer)
    message = f"fused attention: {REASONS[change]}; expected attention='composed' or 'auto'"
    with pytest.raises(Unsupported, match=f"^{re.escape(message)}$"):
        layer(image(1, 32, 4, 4))
    layer.attention = "auto"
    assert layer.plan(torch.float32, "cpu")[0] == "composed"
    close(layer(image(1, 32, 4, 4)), composed(layer)(image(1, 32, 4, 4)))


def test_on_a_device_without_kernels():
    layer = build(("pairwise", *DEFAULTS["pairwise"]))
    message = "fused attention: unfold computes it by its parts; expected attention='composed' or 'auto'"
    with pytest.raises(Unsupported, match=f"^{re.escape(message)}$"):
        layer.plan(torch.float32, "meta")
    layer.attention = "auto"
    assert layer.plan(torch.float32, "meta") == ("composed", "unfold")
    layer.attention, layer.backend = "fused", "numba"
    with pytest.raises(Unsupported, match=r"^fused attention: pairwise_attention: numba: no kernels for meta"):
        layer.plan(torch.float32, "meta")
    layer.attention = "auto"
    with pytest.raises(Unsupported, match=r"^pairwise_subtraction: numba: no kernels for meta tensors"):
        layer.plan(torch.float32, "meta")


@each_default
def test_what_ran_is_told(variant):
    layer = build(variant, attention="auto")
    assert layer.ran is None
    assert "attention=auto" in repr(layer)
    assert "ran" not in repr(layer).replace("transform", "")
    layer(image(2, 32, 4, 4))
    assert "attention=auto, ran fused on numba" in repr(layer)
    layer.attention = "composed"
    layer(image(2, 32, 4, 4))
    assert "attention=composed, ran composed on numba" in repr(layer)


@each_default
def test_weights_do_not_depend_on_how(variant):
    states = {how: build(variant, attention=how).state_dict() for how in CHOICES}
    for state in states.values():
        assert list(state) == list(states["auto"])
        assert all(torch.equal(x, states["auto"][name]) for name, x in state.items())


def tiny(family="pairwise", **overrides):
    torch.manual_seed(0)
    options = {"channels": (32, 64), "blocks": (1, 1), "footprints": (3, 3), "num_classes": 5, "relation_reduction": 8}
    return saprof.create_model(f"san10_{family}", **options | overrides)


@pytest.mark.parametrize("family", DEFAULTS)
def test_a_checkpoint_does_not_depend_on_how(family, tmp_path):
    fused, parts = at_random(tiny(family, attention="fused")), tiny(family, attention="composed").eval()
    x = image(2, 3, 16, 16)
    assert not torch.allclose(fused(x), parts(x))
    saprof.save(fused, tmp_path / "weights")
    loaded = saprof.load(tmp_path / "weights").eval()
    torch.testing.assert_close(loaded(x), fused(x))
    parts.load_state_dict(loaded.state_dict())
    torch.testing.assert_close(parts(x), fused(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["pairwise", "stand_alone"])
def test_a_bad_config_says_what_is_bad(family):
    with pytest.raises(ValueError, match=r"^unknown attention 'flash'; expected 'auto', 'fused' or 'composed'$"):
        AttentionConfig(family=family, attention="flash")


# what a fused layer does not need


def stage(variant, footprint, index, side=None, batch=1, **config):
    """A layer of a stage of SAN10 in training, and its input, on a map of the stage's size or another one."""
    channels, own_side = STAGES[index]
    family, relation, position, mapping = variant
    options = {"relation": relation, "position": position, "mapping": mapping, "attention": "fused"} | config
    layer = ATTENTION[family](channels, footprint, AttentionConfig(family=family, **options)).train()
    return layer, torch.randn(batch, channels, *[side or own_side] * 2)


@each_default
@each_fused_backend
def test_no_memory_grows_with_the_footprint(variant, backend):
    """Peak and saved bytes of a forward in evaluation and of a step of training, with C = 256 on 20 × 20 positions.

    Except for the borders of tiles and patchwise parameters, both are far less than a tensor with an axis of taps.
    """
    operator = ATTENTIONS[variant]
    need(backend, operator)
    measured = {}
    side = 20
    for size in (3, 11):
        layer, x = stage(variant, Footprint.square(size), 1, side, backend=backend)
        own = list(layer.parameters())

        def evaluate(layer=layer, x=x):
            with torch.no_grad():
                return layer.eval()(x)

        def step(layer=layer, x=x):
            layer.train().zero_grad()
            layer(x).sum().backward()

        evaluate()  # once, for lookups that are kept
        gradients_of_parameters = sum(p.nbytes for p in own)
        measured[size] = torch.tensor([
            peak_bytes(evaluate), peak_bytes(step) - gradients_of_parameters, saved_bytes(layer, [x], own)
        ])  # fmt: skip
    delta = 4 * layer.phi.out_channels * 11 * 11 * side * side
    assert (measured[11] < delta).all()
    assert (measured[11] - measured[3] < delta / 3).all()


@each_default
@pytest.mark.parametrize("index", range(5), ids="stage {}".format)
def test_little_is_saved_at_the_stages_of_san10(variant, index):
    footprint = Footprint.square(7 if index else 3)
    layer, x = stage(variant, footprint, index, batch=1 + (index == 4))
    own = list(layer.parameters())
    other = copy.deepcopy(layer)
    other.attention, other.backend = "composed", "unfold"
    saved, by_parts = (saved_bytes(how, [x], own) for how in (layer, other))
    assert layer.ran.startswith("fused on ")
    assert 0 < saved <= by_parts / (4 if index else 3)  # with so few taps the maps themselves count


# what it costs


@each_pair_of_options
def test_costs_what_its_parts_cost(variant):
    """Without the parts of the layer outside the operator: φ, ψ, β, and the linear layer of positions."""
    layer = build(variant, attention="auto")
    cost = saprof.count(layer, (32, 7, 6))
    around = ("phi", "psi", "beta", "position")
    sizes = {"n": 1, "r": 4, "v": 8, "g": 4, "h": 7, "w": 6, "k": 9, "p": 42}
    sizes |= {axis: sizes[like] for axis, like in layer.fused_operator.implied.items()}
    for what in ("macs", "elementwise", "paper"):
        of_parts = getattr(cost, what) - sum(getattr(cost.layers[x], what) for x in around if x in cost.layers)
        assert layer.fused_operator.count(what, sizes) == of_parts, what


def flops(layer, x, backward=False):
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


@each_pair_of_options
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_torch_counts_what_it_counts_of_the_parts(variant, training):
    layer = build(variant).train(training)
    other = composed(layer)
    x = image(2, 32, 4, 5)
    assert flops(layer, x) == flops(other, x) > 0
    x.requires_grad_()
    assert flops(layer, x, backward=True) == flops(other, x, backward=True)


@each_pair_of_options
def test_fvcore_counts_what_was_declared(variant):
    workload = Workload(ATTENTIONS[variant], SQUARE, n=2)
    analysis = fvcore_analysis(Calls(workload.operator, SQUARE), tuple(workload.tensors()))
    assert analysis.total() == operator_cost(workload.operator, workload.sizes).macs
    assert not analysis.unsupported_ops()


@each_default
def test_fvcore_counts_a_layer_by_its_parts(variant):
    """The hooks of fvcore on every module make the layer use the composed attention, where that is allowed."""
    layer = build(variant, attention="auto").eval()
    x = image(1, 32, 4, 5)
    assert fvcore_analysis(layer, x).total() == fvcore_analysis(composed(layer), x).total() > 0
    assert layer.ran == "composed on numba"
    layer(x)
    assert layer.ran == "fused on numba"


# types, and compilers


@each_default
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_under_autocast(variant, training):
    layer = build(variant).train(training)
    other, x = composed(layer), image(2, 32, 6, 5)
    expected = learn(copy.deepcopy(layer), x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert other(x).dtype == y.dtype == torch.bfloat16
        layer.train(training)
        got = learn(layer, x)
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}
    assert layer.ran == "fused on numba"
    error, size = (got["y"].float() - expected["y"]).norm(), expected["y"].norm()
    assert error < 0.03 * size
    error, size = (got["x"] - expected["x"]).norm(), expected["x"].norm()
    assert error < 0.15 * size


@each_default
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_of_half_types(variant, dtype):
    layer = build(variant).to(dtype).train()
    exact = composed(layer).double()
    x = image(2, 32, 6, 5).to(dtype)
    got, expected = learn(layer, x), learn(exact, x.double())
    assert {value.dtype for name, value in got.items() if not name.endswith("num_batches_tracked")} == {dtype}
    eps = torch.finfo(dtype).eps
    for name in ("y", "gamma.0.running_mean", "gamma.0.running_var", "gamma.3.running_var"):
        error, size = (got[name].double() - expected[name]).norm(), expected[name].norm()
        assert error < 8 * eps * size, name
    error, size = (got["x"].double() - expected["x"]).norm(), expected["x"].norm()
    assert error < 30 * eps * size


@each_default
def test_compiles_whole(variant, compiler):
    layer = build(variant).train()
    other, x = copy.deepcopy(layer), image(2, 32, 4, 5)
    expected = learn(layer, x)
    got = learn(other, x, compiler(other, fullgraph=True, backend="aot_eager"))
    same(got, expected, 1e-4)


# a network for evaluation alone


def at_random(model):
    """Norms with random statistics, so that they change their inputs."""
    generator = torch.Generator().manual_seed(2)
    for name, x in model.state_dict().items():
        if name.endswith("running_var"):
            x.copy_(torch.rand(x.shape, generator=generator) + 0.5)
        elif x.is_floating_point() and x.dim() == 1:
            x.add_(0.2 * torch.randn(x.shape, generator=generator))
    return model.eval()


NETWORKS = {
    **{
        f"{family}-{relation}": lambda family=family, relation=relation: tiny(family, relation=relation)
        for family, relations in RELATIONS.items()
        for relation in relations
    },
    "pairwise-zero": lambda: tiny(boundary="zero"),
    "pairwise-exclude": lambda: tiny(boundary="exclude"),
    "patchwise-zero": lambda: tiny("patchwise", boundary="zero"),
    "pairwise-composed": lambda: tiny(attention="composed"),
    **{
        f"{family}-{shared}": lambda family=family, shared=shared, how=how: tiny(family, transformations=shared, **how)
        for family in DEFAULTS
        for shared, how in {"shared_phi_psi": {}, "shared": {"relation_reduction": None}}.items()
    },
    "stand_alone": lambda: tiny("stand_alone", relation_reduction=None, heads=4),
    "resnet": lambda: saprof.create_model("resnet26", channels=(8, 16), blocks=(1, 1), num_classes=5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_optimized_for_inference_gives_the_same_logits(name):
    model = at_random(NETWORKS[name]())
    before = {key: x.clone() for key, x in model.state_dict().items()}
    modules = [str(module) for module in model.modules()]
    x = image(2, 3, 16, 13)
    with torch.no_grad():
        expected = model(x)
        modules = [str(module) for module in model.modules()]
        fast = saprof.optimize_for_inference(model)
        got = fast(x)
        assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
        assert torch.equal(model(x), expected), "the model it was made of has changed"
    assert [str(module) for module in model.modules()] == modules
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in fast.parameters())
    assert not any(module.training for module in fast.modules())
    assert norms(fast) < norms(model)


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_optimized_for_inference_from_training():
    model = at_random(tiny())
    expected = saprof.optimize_for_inference(model)(image(2, 3, 9, 9))
    fast = saprof.optimize_for_inference(model.train())
    assert model.training
    close(fast(image(2, 3, 9, 9)), expected)


@pytest.mark.parametrize("name", ["pairwise-subtraction", "patchwise-concatenation", "resnet"])
def test_optimized_for_inference_can_be_counted(name):
    model = at_random(NETWORKS[name]())
    whole, less = saprof.count(model, (3, 16, 16)), saprof.count(saprof.optimize_for_inference(model), (3, 16, 16))
    assert less.macs == whole.macs
    assert less.elementwise < whole.elementwise
    assert 0 < less.params < whole.params  # batch norms are folded; the rest counts, though none is trained


@pytest.mark.parametrize(
    "model", [nn.Conv2d(3, 4, 1), nn.Sequential(nn.Identity()), "san10_pairwise", None], ids=lambda x: type(x).__name__
)
def test_what_is_no_network_of_ours_is_not_optimized(model):
    expected = "a SAN, ResNet, SASA or RetinaNet, not wrapped in anything"
    message = f"cannot optimize a {type(model).__name__}; expected {expected}"
    with pytest.raises(ValueError, match=f"^{message}$"):
        saprof.optimize_for_inference(model)


# the pool that has no indices


@pytest.mark.parametrize("size", [(6, 4), (7, 5), (2, 3), (1, 4), (3, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_pool_is_max_pool(size, dtype):
    x = image(2, 3, *size).to(dtype)
    x[0, 0, 0, 0] = torch.nan
    x[1, 1, -1, -1] = -torch.inf
    x[1, 2] = -0.0
    x[1, 2, ::2] = 0.0
    window = [min(side, 2) for side in size]
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        expected = F.max_pool2d(given, window, stride=2)
        got = pool(given)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())
        mine, its = (given.clone().requires_grad_() for _ in range(2))
        pool(mine).nansum().backward()
        F.max_pool2d(its, window, stride=2).nansum().backward()
        assert torch.equal(mine.grad, its.grad)
