"""The check detects wrong kernels, and the command reports them."""

import os
import re
import subprocess
import sys
import time
from itertools import product

import pytest
import torch

from saprof import verify
from saprof.backends import numba, unfold
from saprof.measure import conformance
from saprof.measure.conformance import Verdict, check, sample_positions
from saprof.measure.expected import Question, expect
from saprof.operators import (
    BACKENDS,
    OPERATORS,
    aggregation,
    pairwise_dot_product,
    pairwise_subtraction,
    patchwise_clique_product,
    patchwise_concatenation,
    patchwise_star_product,
    stand_alone_attention,
)
from saprof.operators.footprint import Footprint
from saprof.operators.workload import ITEMSIZE, STAGES, Workload, stages

UNFOLD = ("--backend", "unfold")
"""The backend that compiles nothing."""
TILE = Workload(pairwise_subtraction, Footprint.square(3), n=2, r=3, v=4, g=2, h=5, w=6)
DTYPES = pytest.mark.parametrize("dtype", ITEMSIZE)


def of(operator, **changes) -> Workload:
    return Workload(operator, **{"footprint": Footprint.square(3), "h": 5, "w": 6} | changes)


gather, centre = unfold.gather, unfold.centre


class Half(torch.autograd.Function):
    """The identity with half of its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


def one_tap_off(x, footprint):
    return gather(x, Footprint.from_offsets([(dy, dx + 1) for dy, dx in footprint.offsets]))


def taps_transposed(x, footprint):
    return gather(x, Footprint.from_offsets([(dx, dy) for dy, dx in footprint.offsets]))


def last_tap_missing(x, footprint):
    return torch.cat([gather(x, footprint)[:, :, :-1], gather(x, footprint)[:, :, :1]], dim=2)


def edge_repeated(x, footprint):
    return gather(x, footprint.with_(boundary="replicate"))


def zeros_outside(x, footprint):
    return gather(x, footprint.with_(boundary="zero"))


def columns_first(x, footprint):
    return gather(x, footprint).unflatten(3, x.shape[2:]).transpose(3, 4).flatten(3)


def gradient_halved(x, footprint):
    return Half.apply(gather(x, footprint))


def gradient_cut(x, footprint):
    return gather(x.detach(), footprint)


def not_a_number(x, footprint):
    return gather(x, footprint) / (torch.arange(footprint.taps).view(-1, 1) != 4)


def contiguous_sharing(alpha, beta, footprint):
    n, v, h, w = beta.shape
    grouped = gather(beta, footprint).unflatten(1, (alpha.shape[1], -1))
    return (alpha.unsqueeze(2) * grouped).sum(3).reshape(n, v, h, w)


def swapped_clique(phi, psi, footprint):
    products = gather(psi, footprint).permute(0, 3, 2, 1) @ gather(phi, footprint).permute(0, 3, 1, 2)
    return products.flatten(2).transpose(1, 2).unsqueeze(2)


def taps_before_channels(phi, psi, footprint):
    return torch.cat([centre(phi, footprint), gather(psi, footprint).transpose(1, 2).flatten(1, 2).unsqueeze(2)], dim=1)


def added_up_in_half(a, b, axis):
    total, *products = (a * b).unbind(axis)
    for x in products:
        total = total + x
    return total


def tolerance_of(workload, computed_in=None):
    """The largest tolerance of an output."""
    dtype = getattr(torch, workload.dtype)
    (value,) = expect(Question(workload, workload.seed, False, None, computed_in or dtype))
    return float(value.tolerances(dtype).max())


class TestJudge:
    @DTYPES
    @pytest.mark.parametrize(
        "wrong",
        [one_tap_off, taps_transposed, last_tap_missing, edge_repeated, zeros_outside, columns_first, not_a_number],
    )
    @pytest.mark.parametrize("operator", [pairwise_subtraction, aggregation], ids=lambda op: op.name)
    def test_condemns_a_wrong_gather(self, monkeypatch, operator, wrong, dtype):
        monkeypatch.setattr(unfold, "gather", wrong)
        verdict = check(of(operator, dtype=dtype), "unfold")
        assert not verdict.ok
        assert not verdict.error <= verdict.tolerance
        assert verdict.fraction > 1

    @DTYPES
    @pytest.mark.parametrize(
        ("operator", "wrong"),
        [
            (aggregation, contiguous_sharing),
            (patchwise_clique_product, swapped_clique),
            (patchwise_concatenation, taps_before_channels),
            (pairwise_subtraction, lambda phi, psi, footprint: gather(psi, footprint) - centre(phi, footprint)),
            (pairwise_dot_product, lambda phi, psi, f: (centre(phi, f) * gather(psi, f)).mean(1, keepdim=True)),
        ],
        ids=lambda value: getattr(value, "__name__", None) or value.name,
    )
    def test_condemns_a_wrong_kernel(self, monkeypatch, operator, wrong, dtype):
        workload = of(operator, r=4, v=8, g=2, dtype=dtype)
        assert check(workload, "unfold").ok
        monkeypatch.setattr(unfold, operator.name, wrong)
        verdict = check(workload, "unfold")
        assert not verdict.ok
        assert verdict.message.startswith(f"{workload} on unfold: value is off by ")

    @DTYPES
    def test_condemns_an_error_of_a_hundred_roundings(self, monkeypatch, dtype):
        right, eps = unfold.pairwise_subtraction, torch.finfo(getattr(torch, dtype)).eps
        monkeypatch.setattr(unfold, "pairwise_subtraction", lambda *inputs: right(*inputs) * (1 + 100 * eps))
        assert not check(of(pairwise_subtraction, dtype=dtype), "unfold").ok

    @DTYPES
    @pytest.mark.parametrize(
        "operator", [pairwise_subtraction, patchwise_star_product, aggregation], ids=lambda op: op.name
    )
    def test_condemns_a_wrong_gradient(self, monkeypatch, operator, dtype):
        monkeypatch.setattr(unfold, "gather", gradient_halved)
        workload = of(operator, dtype=dtype)
        verdict = check(workload, "unfold")
        name = operator.inputs[1][0]
        assert not verdict.ok
        assert not verdict.gradients
        assert verdict.message.startswith(f"{workload} on unfold: gradient of {name} is off by ")
        assert check(workload, "unfold", gradients=False).ok

    def test_condemns_a_missing_gradient(self, monkeypatch):
        monkeypatch.setattr(unfold, "gather", gradient_cut)
        verdict = check(TILE, "unfold")
        assert (verdict.ok, verdict.fraction) == (False, float("inf"))
        assert verdict.message == f"{TILE} on unfold: there is no gradient of psi"
        monkeypatch.setattr(unfold, "centre", lambda x, footprint: centre(x.detach(), footprint))
        expected = f"{TILE} on unfold: the output requires no gradient, though the inputs do"
        assert check(TILE, "unfold").message == expected

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda x: x.double(), "value is torch.float64 on cpu; expected torch.float32 on cpu"),
            (lambda x: x.to("meta"), "value is torch.float32 on meta; expected torch.float32 on cpu"),
            (lambda x: x[:, :, :8], "shape is (2, 3, 8, 30); expected (2, 3, 9, 30)"),
            (lambda x: x.unflatten(3, (5, 6)), "shape is (2, 3, 9, 5, 6); expected (2, 3, 9, 30)"),
            (lambda x: x / 0, "value has 1620 elements that are not finite"),
            (
                lambda x: x * float("nan"),
                "value has 1620 elements that are not finite",
            ),
        ],
        ids=["dtype", "device", "too few", "too many axes", "infinite", "nan"],
    )
    def test_names_what_is_malformed(self, monkeypatch, change, problem):
        right = unfold.pairwise_subtraction
        monkeypatch.setattr(unfold, "pairwise_subtraction", lambda *inputs: change(right(*inputs)))
        verdict = check(TILE, "unfold")
        assert verdict == Verdict(False, float("inf"), 1.0, f"{TILE} on unfold: {problem}")

    def test_raises_what_the_backend_raises(self, monkeypatch):
        def asleep(*_):
            raise RuntimeError("asleep")

        monkeypatch.setattr(unfold, "pairwise_subtraction", asleep)
        with pytest.raises(RuntimeError, match="asleep"):
            check(TILE, "unfold")

    def test_praises_what_is_right(self):
        verdict = check(TILE, "unfold")
        assert verdict.ok
        assert verdict.gradients
        assert 0 <= verdict.error <= verdict.tolerance < 1e-5
        assert verdict.message.startswith(str(TILE))

    def test_tolerance_follows_dtype_and_length(self):
        """Four dtypes' eps, and a sum of 64 products instead of 4. The reference has the rounding errors of float64."""
        eps = {dtype: torch.finfo(getattr(torch, dtype)).eps for dtype in ITEMSIZE}
        tolerance = {dtype: tolerance_of(of(aggregation, dtype=dtype)) for dtype in ITEMSIZE}
        for dtype in ITEMSIZE:
            rel = 0.5 if dtype == "float64" else 0.01
            assert tolerance[dtype] / eps[dtype] == pytest.approx(tolerance["float32"] / eps["float32"], rel=rel)
        few, many = (tolerance_of(of(pairwise_dot_product, r=r)) for r in (4, 64))
        assert 4 < many / few < 12  # a sum grows by 4, and its errors by up to 16

    def test_tolerance_of_half_precision_follows_the_dtype_of_the_computation(self):
        workload = of(aggregation, footprint=Footprint.square(11), h=12, w=12, dtype="bfloat16")
        own, float32 = (tolerance_of(workload, dtype) for dtype in (torch.bfloat16, torch.float32))
        assert own > 2 * float32

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("boundary", ["zero", "exclude"])
    def test_gradients_that_cancel_have_errors(self, boundary, seed):
        """The softmax over one tap is 1: the logits have no gradient, but the terms that cancel are rounded."""
        footprint = Footprint.square(1, boundary=boundary)
        workload = Workload(stand_alone_attention, footprint, v=32, g=4, h=4, w=5, seed=seed)
        _, query, *_ = expect(Question(workload, seed, True, None, torch.float32))
        assert not query.exact.any()
        eps = torch.finfo(torch.float32).eps
        assert 10 * eps < float(query.tolerances(torch.float32).max()) < 400 * eps

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    @pytest.mark.parametrize(
        "operator", [pairwise_subtraction, pairwise_dot_product, aggregation], ids=lambda op: op.name
    )
    def test_condemns_gradients_summed_in_half_precision(self, monkeypatch, operator, dtype):
        """In a backend of kernels, which compute in float32: F.unfold sums its gradient in the dtype of its input."""
        workload = of(operator, footprint=Footprint.square(11), r=4, v=8, h=6, w=7, dtype=dtype)
        right, half = getattr(unfold, operator.name), getattr(torch, dtype)
        kernel = lambda *inputs: right(*(x.float() for x in inputs[:-1]), inputs[-1]).to(half)  # noqa: E731
        monkeypatch.setattr(conformance, "computed_in", lambda backend, dtype: torch.float32)
        monkeypatch.setattr(unfold, operator.name, kernel)
        verdict = check(workload, "unfold")
        assert verdict.ok, verdict.message
        monkeypatch.setattr(unfold, "gather", lambda x, footprint: gather(x.to(half), footprint).float())
        verdict = check(workload, "unfold")
        assert not verdict.ok
        assert f": gradient of {operator.inputs[1][0]} is off by " in verdict.message

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_condemns_an_output_summed_in_half_precision(self, monkeypatch, dtype):
        workload = of(aggregation, footprint=Footprint.square(11), h=6, w=7, dtype=dtype)
        monkeypatch.setattr(conformance, "computed_in", lambda backend, dtype: torch.float32)
        monkeypatch.setattr(unfold, "sum_of_products", added_up_in_half)
        assert ": value is off by " in check(workload, "unfold").message

    @DTYPES
    @pytest.mark.parametrize("size", [1, 3, 11])
    @pytest.mark.parametrize(
        "operator", [aggregation, pairwise_subtraction, stand_alone_attention], ids=lambda op: op.name
    )
    def test_condemns_small_mistakes(self, monkeypatch, operator, size, dtype):
        """An error of 10 · √L · eps of the output, where L is the number of taps in a sum."""
        right, taps = getattr(unfold, operator.name), 1 if operator is pairwise_subtraction else size**2
        workload = of(operator, footprint=Footprint.square(size), v=8, g=2, h=6, w=7, dtype=dtype)
        assert check(workload, "unfold").ok
        factor = 1 + 10 * taps**0.5 * torch.finfo(getattr(torch, dtype)).eps
        monkeypatch.setattr(
            unfold, operator.name, lambda *inputs: (right(*inputs).double() * factor).to(inputs[0].dtype)
        )
        assert not check(workload, "unfold").ok


class TestPositions:
    BIG = of(aggregation, h=40, w=30)

    def test_of_a_small_map_are_all(self):
        assert sample_positions(TILE) == list(range(30))

    def test_of_a_large_map_have_corners_borders_and_interior(self):
        positions = sample_positions(self.BIG)
        rows, columns = zip(*(divmod(p, 30) for p in positions), strict=True)
        assert positions == sorted(set(positions)) == sample_positions(self.BIG)
        assert len(positions) == 32
        assert {0, 29, 39 * 30, 40 * 30 - 1} <= set(positions)
        for border in (rows.count(0), rows.count(39), columns.count(0), columns.count(29)):
            assert border > 2
        assert sum(1 < y < 38 and 1 < x < 28 for y, x in zip(rows, columns, strict=True)) > 8

    @pytest.mark.parametrize(("h", "w"), [(1, 40), (40, 1), (3, 11)])
    def test_of_a_thin_map(self, h, w):
        assert len(sample_positions(of(aggregation, h=h, w=w))) == 32

    def test_follow_the_stride(self):
        positions = sample_positions(of(aggregation, h=80, w=60, footprint=Footprint.disk(9, stride=2)))
        assert {0, 29, 39 * 30, 40 * 30 - 1} <= set(positions) <= set(range(40 * 30))

    @pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
    def test_judge_gradients_from_there_alone(self, operator):
        workload = of(operator, h=12, w=9, footprint=Footprint.square(3, boundary="circular"), dtype="float64")
        verdict = check(workload, "unfold", positions=[0, 50, 107])
        assert verdict.ok, verdict.message
        assert verdict.gradients

    def test_catch_what_is_wrong_at_them_alone(self, monkeypatch):
        right = unfold.aggregation

        def wrong_in_a_corner(alpha, beta, footprint):
            output = right(alpha, beta, footprint)
            bump = torch.zeros_like(output)
            bump[..., -1, -1] = 0.1
            return output + bump

        monkeypatch.setattr(unfold, "aggregation", wrong_in_a_corner)
        assert check(self.BIG, "unfold", positions=[0, 1, 600]).ok
        verdict = check(self.BIG, "unfold", positions=sample_positions(self.BIG))
        assert not verdict.ok
        assert " is off by 0.1 " in verdict.message

    def test_make_a_whole_stage_quick(self):
        started = time.perf_counter()
        for workload in stages(pairwise_subtraction):
            verdict = check(workload, "unfold", positions=sample_positions(workload))
            assert verdict.ok, verdict.message
        assert time.perf_counter() - started < 30
        assert workload.w == STAGES[-1][1]


def lines(capsys) -> list[list[str]]:
    """The table of the last command, its cells split."""
    return [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]


def line_of(backend: str, capsys) -> list[str]:
    """The one line of a backend in the table of the last command."""
    (line,) = (line for line in lines(capsys) if line[1:2] == [backend])
    return line


class TestCommand:
    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch):
        """A terminal in which nothing is wrapped."""
        monkeypatch.setenv("COLUMNS", "1000")

    @pytest.mark.parametrize("backends", [("unfold",), pytest.param(("numba", "unfold"), marks=pytest.mark.deep)])
    def test_a_line_per_operator_backend_and_dtype(self, capsys, backends):
        assert verify.main(["--workloads", "tiny", "--dtype", "float32,bfloat16", "--backend", ",".join(backends)]) == 0
        head, rule, *body = lines(capsys)
        assert head == ["operator", "backend", "dtype", "passed", "worst error / tolerance", "gradients"]
        assert set("".join(rule)) == {"-"}
        table = [line for line in body if len(line) == 6]
        asked = product(OPERATORS, backends, ("float32", "bfloat16"))
        assert [line[:4] for line in table] == [[*names, "5/5"] for names in asked]
        assert all(0 <= float(line[4]) < 0.5 and line[5] == "yes" for line in table)
        count = len(table)
        assert body[-1] == [f"{count} of {count} passed"]

    def test_a_failure_is_named_and_fails(self, capsys, monkeypatch):
        for operator in ("aggregation", "pairwise_dot_product"):
            right = getattr(unfold, operator)
            wrong = lambda a, b, footprint, right=right: right(a, b, footprint.with_(boundary="replicate"))  # noqa: E731
            monkeypatch.setattr(unfold, operator, wrong)
        asked = "aggregation,pairwise_summation,pairwise_dot_product,pairwise_subtraction"
        code = verify.main(["--workloads", "tiny", "--operator", asked, "--dtype", "float64", "--backend", "unfold"])
        output = capsys.readouterr().out
        assert code == 1
        assert "\naggregation           unfold   float64     1/5" in output
        failed = "aggregation unfold float64, pairwise_dot_product unfold float64"
        assert output.endswith(f"\n2 of 4 passed; 2 failed: {failed}\n")
        workload = "aggregation-n2-v4-g2-5x5-square:3,boundary=circular-float64"
        assert f"\nFAILED {workload} on unfold: value is off by " in output
        assert output.count("FAILED") == 8

    def test_a_wrong_gradient_shows(self, capsys, monkeypatch):
        monkeypatch.setattr(unfold, "gather", gradient_halved)
        assert verify.main(["--workloads", "tiny", "--operator", "aggregation", "--dtype", "float32", *UNFOLD]) == 1
        assert line_of("unfold", capsys)[3:6:2] == ["0/5", "no"]

    def test_a_kernel_that_breaks_off_fails(self, capsys, monkeypatch):
        def broken(*_):
            raise RuntimeError("misaligned address")

        monkeypatch.setattr(unfold, "aggregation", broken)
        asked = ["--operator", "aggregation,pairwise_summation", "--dtype", "float32", *UNFOLD]
        assert verify.main(["--workloads", "tiny", *asked]) == 1
        output = capsys.readouterr().out
        assert "on unfold: RuntimeError: misaligned address" in output
        assert "0/5" in output
        assert "5/5" in output

    def test_a_backend_that_cannot_run_is_listed_with_its_reason(self, capsys, monkeypatch):
        monkeypatch.setattr(numba, "why_not", lambda *_: "no processor")
        assert verify.main(["--workloads", "tiny", "--operator", "aggregation", "--dtype", "float32"]) == 0
        output = capsys.readouterr().out
        assert "\nnumba cannot run here: no processor; 1 line not shown (aggregation)\n" in output
        assert output.endswith("\n1 of 1 passed\n")
        arguments = ["--workloads", "tiny", "--operator", "aggregation", "--dtype", "float32", "--backend", "numba"]
        assert verify.main(arguments) == 1
        reason = "numba cannot run here: no processor; 1 line not shown (aggregation)"
        assert capsys.readouterr().out == f"\n{reason}\n\n0 of 0 passed: nothing could run\n"

    def test_what_cannot_run_is_one_line_per_reason_and_progress_is_seen(self, capsys):
        assert verify.main(["--workloads", "tiny", "--dtype", "float32", "--backend", "cuda"]) == 1
        printed = capsys.readouterr()
        reasons = [line for line in printed.out.splitlines() if line.startswith("cuda cannot run here: ")]
        assert len(reasons) == 1 or torch.cuda.is_available()
        assert printed.err.startswith(f"checking {5 * len(OPERATORS)} workloads …\n")

    def test_what_runs_only_in_part_shows_both(self, capsys, monkeypatch):
        only = lambda operator, dtype, device, footprint: None if footprint.boundary == "zero" else "zero alone"  # noqa: E731
        monkeypatch.setattr(unfold, "why_not", only)
        assert verify.main(["--workloads", "tiny", "--operator", "aggregation", "--dtype", "float32", *UNFOLD]) == 0
        assert line_of("unfold", capsys)[3::3] == ["1/1", "some not run: zero alone"]

    @pytest.mark.parametrize("option", ["operator", "backend", "dtype", "device"])
    def test_a_list_with_an_unknown_name(self, capsys, option):
        with pytest.raises(ValueError, match=f"{option}.*'tpu'; expected"):
            verify.main(["--list", f"--{option}", "tpu"])
        assert not capsys.readouterr().out

    def test_list(self, capsys):
        assert verify.main(["--list"]) == 0
        output = capsys.readouterr().out.splitlines()
        assert output == [
            *(f"operator {name}" for name in OPERATORS),
            *(f"backend {name}" for name in BACKENDS),
            *(f"dtype {name}" for name in ITEMSIZE),
        ]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--operator", "convolution"], f"unknown operator 'convolution'; expected {', '.join(OPERATORS)}"),
            (["--backend", "triton"], f"unknown backend 'triton'; expected {', '.join(BACKENDS)}"),
            (["--dtype", "int8"], f"unknown dtype 'int8'; expected {', '.join(ITEMSIZE)}"),
            (["--device", "tpu"], "device is 'tpu'; expected cpu, cuda, or one of several GPUs such as cuda:1"),
            (["--device", "cuda:99"], "device is 'cuda:99'; expected one that torch sees here: cpu"),
        ],
    )
    def test_unknown_names_list_the_valid_ones(self, arguments, message):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            verify.main(arguments)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
    def test_no_gpu_is_a_sentence_and_code_2(self):
        done = command("--device", "cuda")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: device is 'cuda'; expected one that torch sees here: cpu\n"

    def test_unknown_workloads_are_code_2(self):
        done = command("--workloads", "huge")
        assert done.returncode == 2
        assert "invalid choice: 'huge'" in done.stderr

    def test_help_answers_at_once(self):
        started = time.perf_counter()
        done = command("--help")
        assert done.returncode == 0
        assert "python -m saprof.verify" in done.stdout
        assert time.perf_counter() - started < 2  # importing torch alone takes as long
        imports = "import sys, saprof.verify; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", imports], check=False).returncode == 0


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "saprof.verify", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
