"""Profiles: the tree adds up, nothing of the network changes, and hooks do not change what runs."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

import saprof
from saprof.layers.running import Running
from saprof.measure.found import Found
from saprof.measure.inspection import Counted, counted, saved
from saprof.measure.memory import peak_bytes, saved_bytes
from saprof.measure.profiled import Profiled, composed
from saprof.measure.trace import Place, Trace, trace
from saprof.records.layers import Layer

QUICK = {"seconds": 0.01, "progress": False}
IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Shared(nn.Module):
    """A layer that runs twice, an activation in two places, an output of dicts and tuples, and a layer without use."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), self.relu)
        self.unused = nn.Linear(3, 4)

    def forward(self, x, scale=1.0):
        x = self.body(self.relu(self.first(x)))
        x = self.body[0](x)
        return {"scaled": x * scale, "mean": (x.mean(),)}

    def encode(self, x):
        return self.first(x)


class CallsAMethod(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Shared()

    def forward(self, x):
        return self.inner.encode(x)


def layers(profile):
    return {node.path: node.row for _, node in profile.root.walk() if isinstance(node, Layer)}


def mini(name="san_mini_pairwise", **overrides):
    return saprof.create_model(name, **overrides)


@pytest.fixture(scope="module")
def step():
    """A training step of a network with everything that is difficult."""
    return saprof.profile(Shared(), {"x": IMAGE, "scale": 2.0}, mode="train_step", **QUICK)


def test_the_parts_add_up_to_the_whole(step):
    for _, node in step.root.walk():
        if isinstance(node, Layer):
            row = node.row
            inside = sum(layer.row.latency_s for layer in node.layers)
            assert row.self_s + inside == pytest.approx(row.latency_s, rel=1e-9)
            assert row.forward_s + row.backward_s == pytest.approx(row.latency_s, rel=1e-9)
            assert sum(operation.latency_s for operation in node.operations) <= row.self_s * (1 + 1e-9)
            assert sum(layer.row.held_bytes for layer in node.layers) <= row.held_bytes
    assert step.root.row.held_bytes == step.root.row.peak_bytes == step.network.peak_bytes > 0


def test_a_layer_that_runs_twice_and_one_with_two_names(step):
    found = layers(step)
    assert found["body.0"].calls == 2
    assert found["relu"].calls == found["body.1"].calls == 1
    assert "unused" not in found
    assert any("unused" in note and "16 parameters" in note for note in step.notes)


def test_a_backward_belongs_to_the_module_of_its_forward(step):
    found = {(row.layer, row.operation): row for row in step.rows if row.operation}
    assert found["first", "convolution_backward"].calls == 1
    assert found["body.0", "convolution_backward"].calls == 2
    assert found["body.0", "convolution_backward"].backward_macs == 2 * found["body.0", "conv2d"].macs > 0
    assert found["first", "convolution_backward"].macs == 0


def test_what_a_method_calls_belongs_to_the_called_module():
    profile = saprof.profile(CallsAMethod(), IMAGE, **QUICK)
    found = layers(profile)
    assert found["inner"].calls is None
    assert found["inner"].latency_s == pytest.approx(found["inner.first"].latency_s)
    assert found["inner.first"].macs == 2 * 12 * 12 * 8 * 27


@pytest.mark.parametrize("mode", ["forward", "train_step"])
def test_nothing_of_the_network_changes(mode):
    network = mini("resnet_mini").train()
    network.layer1.eval()  # a frozen part
    image, flags = torch.randn(2, 3, 16, 16), [module.training for module in network.modules()]
    before = {name: x.clone() for name, x in network.state_dict().items()}
    state = torch.get_rng_state()
    saprof.profile(network, image, mode=mode, **QUICK)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert [module.training for module in network.modules()] == flags
    assert all(x.grad is None for x in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch_module._has_any_global_hook()


def test_an_input_that_the_network_changes_in_place_stays():
    image = IMAGE.clone()
    saprof.profile(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 1)), image, **QUICK)
    assert torch.equal(image, IMAGE)


class Remembers(nn.Module):
    """Keeps what it computes: in a list, in a new attribute, and in a buffer that is empty at first."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.kept = []
        self.register_buffer("last", None)

    def forward(self, x):
        if not hasattr(self, "position"):
            self.position = torch.arange(x.shape[-1], device=x.device)
        self.last = self.linear(x + self.position).detach()
        self.kept.append(self.last)
        return torch.cat(self.kept) + self.linear(x).sum()


@pytest.mark.parametrize("mode", ["forward", "train_step"])
def test_what_a_network_keeps_between_calls_is_as_before(mode):
    network, x = Remembers(), torch.randn(2, 4)
    profile = saprof.profile(network, x, mode=mode, **QUICK)
    assert profile.network.macs == 2 * 4 * 4, "the network's row has the counts of one entry"
    assert network.kept == []
    assert network.last is None
    assert not hasattr(network, "position")
    assert network(x).shape == (2, 4)


def test_a_network_of_inference_tensors_is_restored():
    with torch.inference_mode():
        network = nn.BatchNorm2d(3)
    assert saprof.profile(network, IMAGE, **QUICK).root.row.calls == 1


def test_a_frozen_script_has_no_mode():
    script = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval()))
    network = nn.Sequential(script, nn.BatchNorm2d(2)).train()
    assert saprof.profile(network, IMAGE, **QUICK).root.row.macs == 2 * 12 * 12 * 6
    assert network.training


def test_a_number_is_an_input():
    class Scaled(nn.Module):
        def forward(self, x, scale):
            return x * scale

    assert saprof.profile(Scaled(), (IMAGE, torch.tensor(2.0)), **QUICK).network.flops_hardware == IMAGE.numel()


class Threaded(nn.Module):
    """Two layers that run in threads of their own, at the same time."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        with ThreadPoolExecutor(2) as pool:
            return torch.cat(list(pool.map(lambda layer: layer(x), (self.one, self.other))), 1)


def test_what_no_counter_sees_is_named():
    network, x = Threaded(), torch.randn(3, 4)
    profile = saprof.profile(network, x, **QUICK)
    found = layers(profile)
    assert (found[""].calls, found["one"].calls, found["other"].calls) == (1, 1, 1)
    assert "no cost is known for the operators of another thread, 1 times in one" in profile.notes
    with pytest.raises(ValueError, match="no cost is known for the operators of another thread"):
        saprof.count(network, inputs=x)


def test_a_module_from_elsewhere_is_no_call_of_its_caller():
    elsewhere = [nn.Conv2d(2, 2, 1)]

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return elsewhere[0](self.inner(x))

    profile = saprof.profile(Calls(), IMAGE, **QUICK)
    assert profile.root.row.calls == 1
    assert profile.root.row.macs == 2 * 12 * 12 * (6 + 4)


def test_a_second_profiler_is_refused_and_loses_nothing():
    with torch.profiler.profile() as outer:
        IMAGE.sin()
        with pytest.raises(ValueError, match="a profiler of torch is active"):
            saprof.profile(nn.ReLU(), IMAGE, **QUICK)
        with pytest.raises(ValueError, match="a profiler of torch is active"):
            peak_bytes(lambda: IMAGE.cos())
    assert "aten::sin" in {event.key for event in outer.key_averages()}


def test_two_threads_measure_one_after_the_other():
    network = nn.Conv2d(3, 2, 1)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: saprof.profile(network, IMAGE, **QUICK), range(2)))
    assert [profile.root.row.macs for profile in found] == [2 * 12 * 12 * 6] * 2
    assert [profile.root.row.calls for profile in found] == [1, 1]


class Fails(nn.Module):
    """Raises in a layer at its sixth call."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = self.norm(self.inner(x))
        if self.calls == 6:
            self.inner(x)  # of the wrong shape
        return x


def test_an_exception_is_passed_on_and_leaves_no_hook():
    network = Fails().train()
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        saprof.profile(network, IMAGE, mode="train_step", **QUICK)
    assert not torch_module._has_any_global_hook()
    assert network.training
    assert torch.equal(network.norm.running_mean, torch.zeros(2))
    assert saprof.profile(nn.Conv2d(3, 2, 1), IMAGE, **QUICK).root.row.macs == 2 * 12 * 12 * 6


@pytest.fixture(scope="module")
def fused():
    network = mini(attention="fused", backend="numba", value_reduction=2).eval()
    return network, saprof.profile(network, torch.randn(1, 3, 8, 8), **QUICK)


def test_fused_attention_stays_fused_and_its_parts_are_timed_apart(fused):
    network, profile = fused
    attention = profile["stages.0.blocks.0.attention"]
    assert attention.row.ran_on == "numba fused"
    assert {row.operation for row in attention.operations if not row.apart} >= {"saprof::pairwise_attention"}
    apart = {row.layer for row in profile.rows if row.apart}
    assert "stages.0.blocks.0.attention.gamma.0" in apart
    inside = sum(layer.row.latency_s for layer in attention.layers if not layer.row.apart)
    assert attention.row.self_s + inside == pytest.approx(attention.row.latency_s)
    assert all(
        layer.attention == "fused" for layer in network.modules() if isinstance(layer, saprof.layers.LocalAttention)
    )


def test_parts_apart_count_as_much_as_the_fused_operator(fused):
    attention = fused[1]["stages.1.blocks.0.attention"]
    (one,) = (row for row in attention.operations if row.operation == "saprof::pairwise_attention")
    parts = [row for row in attention.operations if row.apart] + [
        layer.row for layer in attention.layers if layer.row.apart
    ]
    assert sum(row.macs for row in parts) == one.macs


def test_composed_attention_is_restored_after_an_exception():
    network = mini(attention="fused")
    attention = network.stages[0].blocks[0].attention

    def fail():
        with composed(network):
            raise KeyError(attention.attention)

    with pytest.raises(KeyError, match="composed"):
        fail()
    assert attention.attention == "fused"


def test_the_fast_path_of_torch_is_taken():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    profile = saprof.profile(encoder, torch.randn(2, 5, 16), **QUICK)
    assert next(row.operation for row in profile.rows if row.operation) == "_transformer_encoder_layer_fwd"


@pytest.mark.parametrize("mode", ["forward", "train_step"])
def test_memory_is_that_of_the_network(mode):
    subject = Profiled("mini", mini("resnet_mini"), torch.randn(2, 3, 16, 16), mode)
    with subject.unchanged():
        subject.call()
        found = trace(subject.module, subject.call, memory=True)
        assert sum(found.held.values()) == found.peak_bytes == peak_bytes(subject.call)
        if mode == "train_step":
            known = (*subject.module.parameters(), *subject.module.buffers())
            assert sum(saved(subject).values()) == saved_bytes(subject.module, (subject.inputs,), known)


@pytest.mark.parametrize("name", ["resnet_mini", "san_mini_pairwise", "san_mini_patchwise", "sasa_mini"])
def test_counts_of_layers_are_those_of_count(name, monkeypatch):
    monkeypatch.setattr("saprof.layers.block.eager", lambda x: False)  # `pool` takes two maxima of halves
    network = mini(name, **({} if name == "resnet_mini" else {"backend": "unfold"})).eval()
    image = torch.randn(1, 3, 8, 8)
    subject = Profiled(name, network, image, "train_step")  # without gradients, too
    with subject.unchanged():
        subject.call()
        found = counted(subject)
    expected = saprof.count(network, inputs=image)
    for path, cost in expected.layers.items():
        inside = [
            c for place, c in found.costs.items() if f"{place.path}.".startswith(f"{path}.") and not place.backward
        ]
        assert sum(c.macs for c in inside) == cost.macs, path
        assert sum(c.paper for c in inside) == cost.paper, path


def test_the_profiled_time_is_that_of_the_middle_rounds():
    rounds = [
        Trace({Place("a", None, False): x, Place("b", None, False): 2 * x}, {"a": 1, "b": 1}, {})
        for x in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 90.0)
    ]
    found = Found(rounds, Counted(), "ok")
    assert found.typical(found.seconds(found.inside[""]))[0] == 3.0
    assert found.typical(found.seconds(found.inside["a"]))[0] == 1.0


def test_a_checkpoint_computes_its_module_twice():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    found = layers(saprof.profile(Checkpointed(), IMAGE.clone().requires_grad_(), mode="train_step", **QUICK))
    assert found["body.0"].calls == 2
    assert found["body.0"].backward_s > 0


def test_two_networks_in_the_same_rounds():
    found = saprof.profile({"one": nn.Conv2d(3, 2, 1), "other": (nn.Linear(4, 2), torch.randn(5, 4))}, IMAGE, **QUICK)
    assert list(found) == ["one", "other"]
    samples = [len(profile.network.samples_s) for profile in found.values()]
    assert samples[0] == samples[1] == len(found["one"].root.row.samples_s)


@pytest.mark.parametrize(
    ("network", "inputs", "options", "message"),
    [
        (torch.relu, IMAGE, {}, "module is of type builtin_function_or_method; expected an nn.Module"),
        ({}, IMAGE, {}, "expected an nn.Module, or a dict of them"),
        ({"a": torch.relu}, IMAGE, {}, "a is of type builtin_function_or_method; expected an nn.Module"),
        (nn.ReLU(), 3, {}, "expected a tensor, a tuple of positional arguments, or a dict"),
        (nn.ReLU(), IMAGE, {"mode": "backward"}, "unknown mode 'backward'; expected 'forward' or 'train_step'"),
        (
            nn.ReLU(),
            IMAGE,
            {"mode": "train_step"},
            "ReLU: mode train_step needs parameters or inputs that require gradients",
        ),
        ({"a": (nn.ReLU(),)}, IMAGE, {}, "a is a tuple of 1; expected a network, or a pair"),
        (nn.LazyConv2d(2, 1), IMAGE, {}, "LazyConv2d has parameters without a shape; expected a network that has run"),
        (nn.ReLU(), IMAGE, {"seconds": -1}, "seconds is -1; expected a positive number"),
        (nn.ReLU(), IMAGE, {"seconds": float("nan")}, "seconds is nan; expected a positive number"),
        (nn.ReLU(), IMAGE, {"name": 3}, "name is 3; expected text"),
        (nn.ReLU(), IMAGE, {"roofs": "measure"}, "roofs is of type str; expected what"),
        (nn.Conv2d(3, 2, 1, device="meta"), IMAGE, {}, "expected all of them on one device with data"),
    ],
)
def test_bad_input_is_refused(network, inputs, options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        saprof.profile(network, inputs, **(QUICK | options))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.convolution(x).relu()


@pytest.mark.deep
@pytest.mark.parametrize("way", ["torch.compile", "module.compile"])
@pytest.mark.parametrize("mode", ["forward", "train_step"])
def test_compiled_modules_are_the_regions_that_they_became(way, mode):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Block())
    if way == "torch.compile":
        network[1] = torch.compile(network[1])
    else:
        network[1].compile()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        profile = saprof.profile(network, IMAGE, mode=mode, **QUICK)
    assert not [str(one.message) for one in warned if "global hooks" in str(one.message)]
    found = layers(profile)
    assert found["1"].compiled
    assert not found["0"].compiled
    assert any("Compiled Region" in row.operation for row in profile.rows if row.layer == "1" and row.operation)
    assert not any(path.startswith("1.") for path in found)
    assert found["1"].macs == 2 * 8 * 8 * 4 * 4 * 9
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "the profiler made torch compile again"


def test_running_modules_are_tracked():
    network, seen = Shared(), []

    class Noted(Running):
        def entered(self, path, known):
            seen.append(path)

    with Noted(network) as running:
        network(IMAGE)
        assert running.path == ""
    assert seen == ["", "first", "relu", "body", "body.0", "body.1", "body.0"]
    assert not torch_module._has_any_global_hook()


def test_tracking_leaves_attention_fused():
    network = mini(attention="auto", backend="numba").eval()
    with Running(network), torch.no_grad():
        network(torch.randn(1, 3, 8, 8))
    assert network.stages[0].blocks[0].attention.ran == "fused on numba"


def test_a_profile_without_its_root_is_refused(step):
    with pytest.raises(KeyError, match="is not a layer that ran; expected one such as"):
        step["nothing"]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["forward", "train_step"])
def test_a_profile_on_a_gpu(mode):
    network, image = mini("resnet_mini").cuda(), torch.randn(4, 3, 32, 32, device="cuda")
    profile = saprof.profile(network, image, mode=mode, **QUICK)
    found = {(row.layer, row.operation): row for row in profile.rows if row.operation}
    assert all(row.latency_s > 0 for (_, operation), row in found.items() if operation == "conv2d")
    assert profile.root.row.held_bytes == profile.root.row.peak_bytes > 0
    if mode == "train_step":
        assert all(row.backward_s > 0 for (_, operation), row in found.items() if operation == "convolution_backward")
    inside = sum(layer.row.latency_s for layer in profile.root.layers)
    assert profile.root.row.self_s + inside == pytest.approx(profile.root.row.latency_s)
