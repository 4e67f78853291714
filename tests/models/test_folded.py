import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import saprof
from saprof.layers import PairwiseAttention
from saprof.models.folded import FoldedSAN
from saprof.operators.footprint import Footprint

TINY = {"channels": (32, 64), "blocks": (2, 1), "footprints": (3, 5), "num_classes": 5}


def network(family="pairwise", dtype=torch.float64, signs="mixed", **options):
    """A network whose norms have random statistics, and weights of some signs."""
    torch.manual_seed(1)
    model = saprof.create_model(f"san10_{family}", **{**TINY, **options}).to(dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.weight)
            with torch.no_grad():
                module.weight.abs_() if signs == "positive" else module.weight[::5].zero_()
    return model


def images(dtype=torch.float64, n=2, size=(19, 24), channels=3):
    return torch.randn(n, channels, *size, dtype=dtype, generator=torch.Generator().manual_seed(3))


VARIANTS = {
    "pairwise": {},
    "patchwise": {"family": "patchwise"},
    "positive": {"signs": "positive"},
    "patchwise-positive": {"family": "patchwise", "signs": "positive"},
    "summation": {"relation": "summation"},
    "concatenation": {"relation": "concatenation"},
    "absolute": {"position": "absolute"},
    "no position": {"position": "none"},
    "l": {"mapping": "l"},
    "patchwise-l": {"family": "patchwise", "mapping": "l"},
    "lrlrl": {"mapping": "lrlrl"},
    "patchwise-lrlrl": {"family": "patchwise", "mapping": "lrlrl"},
    "zero": {"boundary": "zero"},
    "exclude": {"boundary": "exclude"},
    "patchwise-zero": {"family": "patchwise", "boundary": "zero"},
    "without pool": {"stem_stride": 1},
    "gray": {"in_channels": 1},
}
DEFAULTS = ("pairwise", "patchwise")


@pytest.mark.deep_unless(case=lambda variant: variant in (*DEFAULTS, "positive", "exclude", "without pool"))
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_folded_weights_give_the_same_maps(variant):
    model = network(**VARIANTS[variant])
    fast, x = saprof.optimize_for_inference(model), images(channels=VARIANTS[variant].get("in_channels", 3))
    assert fast.backends(x) == [["numba"] * 2, ["numba"]]
    given = x.clone()
    for now in (x, x[:1], x[..., :2, :2], x[..., ::2, 1:]):
        close(fast(now), model(now), 1e-10)
        for got, expected in zip(fast.features(now), model.features(now), strict=True):
            close(got, expected, 1e-10)
    assert torch.equal(x, given)
    assert torch.equal(fast(x), fast(x))


def close(got, expected, tolerance):
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("family", DEFAULTS)
@torch.no_grad()
def test_folded_weights_in_float32(family):
    model, x = network(family, torch.float32), images(torch.float32)
    fast = saprof.optimize_for_inference(model)
    assert fast.backends(x) is not None
    close(fast(x), model(x), 1e-5)
    wide = fast.double()
    assert wide.backends(x.double()) is None  # the folded weights were rounded
    close(wide(x.double()), model.double()(x.double()), 1e-5)


@torch.no_grad()
def test_a_channel_whose_norm_is_almost_zero():
    model = network(dtype=torch.float32, signs="positive")
    block = model.stages[0].blocks[1]
    for norm in (block.norm_in, block.norm_out, model.stages[0].norm):
        norm.weight[:4] = torch.tensor([1e-40, -1e-40, 1e-40, -1e-40])
        norm.bias[:4] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    x = images(torch.float32)
    close(saprof.optimize_for_inference(model)(x), model(x), 1e-5)


def _hook(model):
    model.stages[0].blocks[0].attention.register_forward_hook(lambda module, inputs, output: 2 * output)


def _replace(model):
    model.stages[1].blocks[0].norm_out = nn.Tanh()


def _write(model):
    with torch.no_grad():
        model.stages[0].blocks[0].expand.weight.mul_(2)


def _expand(model):
    return model.stages[0].blocks[0].expand


def _forward(model):
    block = model.stages[0].blocks[0]
    before = block.forward
    block.forward = lambda x: 2 * before(x)


def _state(model, **options):
    model.load_state_dict({name: 1.5 * x for name, x in model.state_dict().items()}, **options)


def _vector(model):
    parameters = [*model.parameters()]
    nn.utils.vector_to_parameters(1.5 * nn.utils.parameters_to_vector(parameters), parameters)


def _transpose(model):
    weight = next(x for x in model.parameters() if x.dim() == 4 and x.shape[0] == x.shape[1] > 1)
    weight.data = weight.data.transpose(0, 1)


def _exchange(model):
    norm = model.stages[0].norm
    weight, bias = norm._parameters.values()
    norm._parameters.clear()
    norm._parameters.update(bias=weight, weight=bias)


CHANGES = {
    "hook": _hook,
    "transposed": _transpose,
    "exchanged": _exchange,
    "replaced": _replace,
    "written": _write,
    "another parameter": lambda model: setattr(
        _expand(model), "weight", nn.Parameter(3 * _expand(model).weight, False)
    ),
    "state": _state,
    "assigned state": lambda model: _state(model, assign=True),
    "vector": _vector,
    "forward": _forward,
    "footprint": lambda model: setattr(model.stages[0].blocks[0].attention, "footprint", Footprint.square(7)),
    "eps": lambda model: setattr(model.stages[0].norm, "eps", 1.0),
    "trained norm": lambda model: model.stages[0].norm.train(),
    "stride": lambda model: setattr(model.stages[1].transition, "stride", 1),
    "stem": lambda model: setattr(model, "stem", nn.Sequential(*model.stem, nn.Tanh())),
}
"""What changes a network for inference after it was made."""


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_changed_copy_computes_what_it_says(change):
    x = images()
    fast = saprof.optimize_for_inference(network())
    before = fast(x)
    CHANGES[change](fast)
    assert fast.backends(x) is None
    assert (fast(x) - before).abs().max() > 1e-4 * before.abs().max()
    close(copy.deepcopy(fast)(x), fast(x), 0)


@torch.no_grad()
def test_an_attribute_with_another_tensor_is_a_change():
    model, x = network(), images()
    model.stages[0].note = torch.zeros(3)
    fast = saprof.optimize_for_inference(model)
    assert fast.backends(x) is not None
    fast.stages[0].note = torch.ones(3)
    assert fast.backends(x) is None


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Conv2d, PairwiseAttention])
@torch.no_grad()
def test_a_method_that_a_class_gets_later_is_a_change(kind, monkeypatch):
    fast, x = saprof.optimize_for_inference(network()), images()
    before, inherited = fast(x), kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *x: 2 * inherited(self, *x))
    assert fast.backends(x) is None
    assert (fast(x) - before).abs().max() > 1e-4 * before.abs().max()


@torch.no_grad()
def test_a_shallow_copy_with_another_stem_computes_what_it_says():
    fast, x = saprof.optimize_for_inference(network()), images()
    other = copy.copy(fast)
    assert other.backends(x) is None
    close(other(x), fast(x), 1e-10)


@torch.no_grad()
def test_a_pass_under_a_fake_mode_leaves_nothing_behind():
    fast, x = saprof.optimize_for_inference(network()), images()
    expected = copy.deepcopy(fast)(x)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fast(x)
    close(fast(x), expected, 0)


@torch.no_grad()
def test_a_copy_of_a_written_copy_computes_what_it_says():
    fast, x = saprof.optimize_for_inference(network()), images()
    _write(fast)
    for copied in (copy.deepcopy(fast), saprof.optimize_for_inference(fast), pickle.loads(pickle.dumps(fast))):
        assert copied.backends(x) is None
        close(copied(x), fast(x), 1e-10)


@torch.no_grad()
def test_weights_of_another_call_are_used():
    fast, x = saprof.optimize_for_inference(network()), images()
    state = {name: 1.5 * weight for name, weight in fast.state_dict().items()}
    found = torch.func.functional_call(fast, state, (x,))
    fast.load_state_dict(state)
    close(found, fast(x), 1e-10)


PARTS = {
    "stage": "stages.0",
    "transition": "stages.1.transition",
    "linear of a transition": "stages.1.transition.linear",
    "block": "stages.0.blocks.1",
    "norm of a stage": "stages.0.norm",
    "stem": "stem.2",
}


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_a_part_that_was_changed_before_is_not_folded(part):
    model, x = network(), images()
    model.get_submodule(PARTS[part]).register_forward_hook(lambda module, inputs, output: 2 * output)
    fast = saprof.optimize_for_inference(model)
    assert not isinstance(fast, FoldedSAN)
    close(fast(x), model(x), 1e-10)


def test_gradients_come_from_the_modules():
    model, x = network(), images().requires_grad_()
    fast = saprof.optimize_for_inference(model)
    assert fast.backends(x) is None
    for each in (model, fast):
        each(x).square().sum().backward()
        x.grad, found = None, x.grad
        if each is model:
            expected = found
    close(found, expected, 1e-10)
    fast.requires_grad_(True)
    assert fast.backends(images()) is None
    assert fast.requires_grad_(False).train().backends(images()) is None


@torch.no_grad()
def test_autocast_and_half_come_from_the_modules():
    model, x = network(dtype=torch.float32, signs="positive"), images(torch.float32)
    fast, expected = saprof.optimize_for_inference(model), model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.backends(x) is None
        close(fast(x).float(), expected, 0.1)
    fast.bfloat16()
    assert fast.backends(x.bfloat16()) is None
    close(fast(x.bfloat16()).float(), expected, 0.1)


@pytest.mark.parametrize("family", DEFAULTS)
@torch.no_grad()
def test_every_product_is_counted(family):
    model, x = network(family), images(n=1, size=(20, 24))  # an odd side is rounded down before the first product
    found = []
    for each in (model, saprof.optimize_for_inference(model)):
        with FlopCounterMode(display=False) as counter:
            each(x)
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0


@torch.no_grad()
def test_a_copy_of_the_copy_has_folded_weights():
    model, x = network(), images()
    fast = copy.deepcopy(saprof.optimize_for_inference(model))
    assert fast.backends(x) is not None
    close(fast(x), model(x), 1e-10)


@pytest.mark.deep
@torch.no_grad()
def test_the_copy_compiles(compiler):
    model, x = network(), images()
    fast = saprof.optimize_for_inference(model)
    close(compiler(fast, fullgraph=True, backend="aot_eager")(x), model(x), 1e-10)
