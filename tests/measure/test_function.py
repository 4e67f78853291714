"""`saprof.measure`: the rows of functions and modules of a user, which stay as they were. No test asserts a time."""

import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import saprof
from saprof.measure.prepared import Refused, compiled, prepared_for
from saprof.records.rows import MEASURED, append_rows, read_rows

QUICK = {"seconds": 0.01}


class Net(nn.Module):
    """In-place modules, a frozen one, an unused one, and tensors inside of tuples and dicts."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x, scale=1.0):
        y = self.frozen(self.body(x).mean((2, 3))) * scale
        return {"y": (y, [None, y.argmax(1)])}

    def half(self, x):
        return self.body(x)


@pytest.mark.parametrize("first", ["import saprof.measure.latency", "import saprof; saprof.measure"])
def test_it_can_be_called_before_and_after_the_package_is_imported(first):
    code = (
        f"{first}\nimport saprof, torch\nfrom saprof.measure import latency\n"
        "assert saprof.measure(torch.relu, torch.ones(3), seconds=0.01).name == 'relu'\n"
        "from saprof import measure\nassert measure(torch.exp, torch.ones(3), seconds=0.01).name == 'exp'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["forward", "train_forward", "backward", "train_step"])
@pytest.mark.parametrize("inputs", ["tensor", "tuple", "dict"])
def test_a_module_is_measured_and_stays_as_it_was(mode, inputs, capsys):
    net, x = Net(), torch.randn(4, 3, 8, 6)
    net.body.eval()
    before, images = {name: value.clone() for name, value in net.state_dict().items()}, x.clone()
    state = torch.get_rng_state()
    given = {"tensor": x, "tuple": (x, 2.0), "dict": {"x": x, "scale": 2.0}}[inputs]
    row = saprof.measure(net, given, mode=mode, **QUICK)
    assert row.status in MEASURED
    assert (row.name, row.kind, row.mode, row.n, row.h, row.w) == ("Net", "model", mode, 4, 8, 6)
    assert (row.backend, row.attention, row.dtype, row.device) == ("torch", None, "float32", "cpu")
    assert row.latency_low_s <= row.latency_s <= row.latency_high_s
    assert row.peak_bytes > 0
    assert (row.saved_bytes is not None) == mode.startswith("train")
    assert row.images_per_s == 4 / row.latency_s
    assert row.params == sum(parameter.numel() for parameter in net.parameters())
    assert row.macs == 4 * 27 * 6 * 4 + 16, "of one image"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(x, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert not net.body.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not capsys.readouterr().err


def test_candidates_are_compared_with_the_first():
    x = torch.randn(1000)
    rows = saprof.measure({"ours": torch.relu, "theirs": lambda x: torch.relu(torch.relu(x))}, x, **QUICK)
    ours, theirs = rows
    assert (ours.name, ours.ratio, theirs.name, ours.kind) == ("ours", None, "theirs", "function")
    assert theirs.ratio_low <= theirs.ratio <= theirs.ratio_high
    assert ours.rounds == theirs.rounds
    common = min(len(ours.samples_s), len(theirs.samples_s))
    within = [b / a for a, b in zip(ours.samples_s[:common], theirs.samples_s[:common], strict=True)]
    assert theirs.ratio == pytest.approx(statistics.median(within))
    one, other = repr(rows).splitlines()
    assert one == repr(ours)
    clear = replace(theirs, status="ok", ratio=2.0, ratio_low=1.9, ratio_high=2.1)
    assert repr(clear).endswith("theirs 2.0× slower than the first (1.90× to 2.1×)")
    assert "slower" not in repr(replace(clear, status="contended"))
    assert other.startswith("theirs: ")
    html = rows._repr_html_()
    assert html.count("<tr>") == 2
    assert "theirs" in html


def test_a_row_is_one_readable_line():
    row = saprof.measure(nn.Conv2d(3, 4, 1), torch.ones(2, 3, 5, 5), mode="train_step", **QUICK)
    for part in ("Conv2d: ", " ms [", row.status, "peak ", "saved ", " images/s"):
        assert part in repr(row)
    assert "\n" not in repr(row)
    assert "images/s" in row._repr_html_()
    assert "images" not in repr(saprof.measure(nn.Linear(3, 2), torch.ones(2, 3), **QUICK)), "these are no images"


def test_a_row_can_be_kept(tmp_path):
    row = saprof.measure(torch.relu, torch.ones(3), **QUICK)
    append_rows(tmp_path / "rows.jsonl", [row])
    (read,) = read_rows(tmp_path)
    assert (read.name, read.kind, read.samples_s) == ("relu", "function", row.samples_s)


def test_gradients_of_inputs_and_of_a_method_of_a_module():
    x = torch.randn(64, 64, requires_grad=True)
    row = saprof.measure(torch.exp, x, mode="train_forward", **QUICK)
    assert (row.saved_bytes, row.output_bytes) == (4 * 64 * 64,) * 2, "exp saves its result"
    assert x.grad is None
    net = Net()
    row = saprof.measure(net.half, torch.ones(1, 3, 8, 8), mode="train_step", **QUICK)
    assert (row.name, row.kind, row.params) == ("half", "function", None)


def test_attention_of_ours_says_what_ran():
    net = nn.Sequential(saprof.create_model("san_mini_pairwise", backend="unfold"))
    row = saprof.measure(net, torch.ones(1, 3, 8, 8), name="mine", **QUICK)
    assert (row.name, row.backend, row.attention) == ("mine", "unfold", "composed")


def test_threads_are_set_and_put_back():
    seen, before = [], torch.get_num_threads()
    saprof.measure(lambda: seen.append(torch.get_num_threads()), threads=1, **QUICK)
    assert (set(seen), torch.get_num_threads()) == ({1}, before)


@pytest.mark.parametrize(
    ("function", "inputs", "options", "message"),
    [
        (3, (), {}, "got 'int': an object of type int; expected a function or a module, or a dict of them by name"),
        ({}, (), {}, "got no candidates; expected a function, a module, or a dict of them by name"),
        ({1: torch.relu}, (), {}, "got 1: an object of type builtin_function_or_method; expected a function"),
        (torch.relu, [torch.ones(2)], {}, "got inputs of type list; expected a tensor, a tuple of positional"),
        (torch.relu, torch.ones(2), {"mode": "fast"}, "unknown mode 'fast'; expected 'forward'"),
        (torch.relu, torch.ones(2), {"seconds": -1}, "seconds is -1; expected a positive number"),
        (torch.relu, torch.ones(2), {"seconds": "2"}, "seconds is '2'; expected a positive number"),
        (torch.relu, torch.ones(2), {"threads": 0}, "threads is 0; expected a positive integer"),
        (torch.relu, torch.ones(2), {"device": "tpu"}, "device is 'tpu'; expected one that torch sees here: cpu"),
        (
            {"a": torch.relu},
            torch.ones(2),
            {"name": "z"},
            "name is 'z', but the keys of the dict are the names; omit name",
        ),
        (torch.relu, torch.ones(2), {"mode": "train_step"}, "relu: mode train_step needs parameters or inputs that re"),
        (nn.Linear(2, 2).requires_grad_(False), torch.ones(2), {"mode": "backward"}, "Linear: mode backward needs par"),
        (
            lambda x: x.argmax(),
            torch.ones(2, requires_grad=True),
            {"mode": "train_step"},
            "<lambda>: mode train_step needs an output that requires gradients; expected one, or mode forward",
        ),
    ],
)
def test_wrong_arguments_are_one_sentence(function, inputs, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        saprof.measure(function, inputs, **options)
    assert str(caught.value).startswith(message)


def test_an_error_of_the_function_keeps_type_and_message():
    class Mine(Exception):
        pass

    def bad(x):
        raise Mine("what I say")

    with pytest.raises(Mine, match="what I say") as caught:
        saprof.measure({"good": torch.relu, "bad": bad}, torch.ones(2))
    assert str(caught.value) == "what I say"
    assert caught.value.__notes__ == ["raised by the first call of 'bad', in mode forward"]


def test_a_network_that_draws_random_numbers_is_compared_with_the_same_numbers(monkeypatch):
    """The compiled code of a dropout draws others, unless it is compiled for the check."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    prepared = prepared_for(net, torch.ones(8, 4), "train_step", "cpu")
    checks = []

    def compiles(function, fullgraph):
        from torch._inductor import config

        checks.append(config.fallback_random)
        return function

    monkeypatch.setattr(torch, "compile", compiles)
    assert compiled(prepared, fullgraph=False)[0].function is net
    assert checks == [True, False]
    assert compiled(prepared_for(net.eval(), torch.ones(8, 4), "forward", "cpu"), fullgraph=False)[1] > 0
    assert checks == [True, False, False]
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: lambda x: function(x) * 1.01)
    for mode in ("forward", "train_step"):
        with pytest.raises(Refused, match=f"compiled {mode} is .* off the eager one; expected at most"):
            compiled(prepared_for(net.train(mode != "forward"), torch.ones(8, 4), mode, "cpu"), fullgraph=False)


class Unlike(nn.Module):
    """A large and a tiny output."""

    def forward(self, x):
        return x, 1e-7 * x


def test_compiled_networks_of_ours_are_compared_tensor_by_tensor(monkeypatch):
    def compiles(function, fullgraph):
        return lambda x: (x, 2e-7 * x)

    monkeypatch.setattr(torch, "compile", compiles)
    prepared = prepared_for(Unlike(), torch.ones(4), "forward", "cpu")
    assert compiled(prepared, fullgraph=False)[1] > 0
    with pytest.raises(Refused, match="off the eager one"):
        compiled(prepared, fullgraph=True)
