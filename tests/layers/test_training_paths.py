"""The fast paths of a training step against torch's layers, and what turns them off."""

import copy
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import saprof
from saprof.layers import AttentionConfig, SelfAttentionBlock, block, pool, pooled, recomputed
from saprof.measure.memory import saved_bytes

NETWORK = {"channels": (16, 32), "blocks": (1, 1), "footprints": (3, 3), "num_classes": 3}
SMALL = {"relation_reduction": 8, "value_reduction": 2, "share": 4}
ALL = {"_LargestOfLinearBackward", "_LargestBackward", "_LinearsBackward", "_RectifiedBackward"}
BLOCK = "stages.0.blocks.0"


@pytest.fixture
def general(monkeypatch):
    """Calls a function without the fast paths."""

    def call(function, *inputs):
        with monkeypatch.context() as patched:
            for module in (block, pooled, recomputed):
                patched.setattr(module, "eager", lambda x: False)
            return function(*inputs)

    return call


def network(family="pairwise", dtype=torch.float64, **changes):
    torch.manual_seed(0)
    model = saprof.SAN(saprof.SANConfig(family=family, **NETWORK | SMALL | changes)).to(dtype).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def step(model, images):
    """Logits, gradients and buffers after a step, and the autograd nodes of the step."""
    logits = model(images)
    F.cross_entropy(logits, torch.arange(len(images)) % 3).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"logits": logits.detach(), **gradients, **dict(model.named_buffers())}, nodes(logits)


def nodes(output):
    names, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in names:
            names.add(node)
            left += [other for other, _ in node.next_functions]
    return {node.name() for node in names}


def same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if x is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(
                found[name], x, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text
            )


IMAGES = torch.randn(3, 3, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
@pytest.mark.parametrize("transformations", ["distinct", "shared_phi_psi"])
def test_a_step_is_that_of_torchs_layers(general, family, dtype, transformations):
    model = network(family, dtype, transformations=transformations)
    other = copy.deepcopy(model)
    found, fast = step(model, IMAGES.to(dtype))
    expected, slow = general(step, other, IMAGES.to(dtype))
    assert fast >= ALL
    assert not slow & ALL
    same(found, expected, 1e-10 if dtype == torch.float64 else 2e-4)


def _hook(path):
    return lambda model: model.get_submodule(path).register_forward_hook(lambda module, inputs, output: 2 * output)


def _set(path, name, value):
    return lambda model: setattr(model.get_submodule(path), name, value)


def _replace(path, build):
    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, build(model.get_submodule(path)).to(torch.float64))

    return change


def _forward(path):
    def change(model):
        module = model.get_submodule(path)
        before = module.forward
        module.forward = MethodType(lambda self, *inputs: 2 * before(*inputs), module)

    return change


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


class Wider(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) + 1


PLACES = ("stem", "stem.0", "stem.1", "stem.2", "stages", "stages.0", "stages.0.transition", "stages.1.transition")
PLACES += tuple(f"{BLOCK}{part}" for part in ("", ".norm_in", ".attention", ".attention.psi", ".norm_out", ".expand"))
NORMS = ("stem.1", f"{BLOCK}.norm_in", f"{BLOCK}.norm_out", "stages.0.norm")
LAYERS = ("stem.0", f"{BLOCK}.attention.phi", f"{BLOCK}.attention.beta", f"{BLOCK}.expand")

CHANGES = {f"hook of {path}": _hook(path) for path in (*PLACES, "stages.0.norm")}
CHANGES |= {f"forward of {path}": _forward(path) for path in PLACES}
CHANGES |= {f"evaluated {path}": _set(path, "training", False) for path in NORMS}
CHANGES |= {f"averaged {path}": _set(path, "momentum", None) for path in NORMS}
CHANGES |= {
    f"norm without {fact} {path}": _replace(
        path, lambda norm, fact=fact: nn.BatchNorm2d(norm.num_features, **{fact: False})
    )
    for path in NORMS
    for fact in ("affine", "track_running_stats")
}
CHANGES |= {
    f"parametrized {path}": lambda model, path=path: parametrize.register_parametrization(
        model.get_submodule(path), "weight", Twice()
    )
    for path in LAYERS
}
CHANGES |= {
    f"subclass {path}": _replace(
        path, lambda old: Wider(old.in_channels, old.out_channels, 1, bias=old.bias is not None)
    )
    for path in LAYERS
}
CHANGES |= {
    f"frozen {path}": lambda model, path=path: model.get_submodule(path).requires_grad_(False)
    for path in (*PLACES, "stages.0.norm")
}
CHANGES |= {
    "one bias frozen": lambda model: model.get_submodule(f"{BLOCK}.attention.psi").bias.requires_grad_(False),
    "one weight frozen": lambda model: model.get_submodule(f"{BLOCK}.attention.psi").weight.requires_grad_(False),
    "another attention": _replace(f"{BLOCK}.attention", lambda old: nn.Conv2d(16, old.value_channels, 3, padding=1)),
    "another ReLU": _replace("stem.2", lambda old: nn.GELU()),
    "norm of groups": _replace(f"{BLOCK}.norm_out", lambda norm: nn.GroupNorm(2, norm.num_features)),
}
FIRST = ("hook of stem.2", f"frozen {BLOCK}.norm_in", f"evaluated {BLOCK}.norm_in", f"averaged {BLOCK}.norm_out")
FIRST += (
    "another attention",
    "one bias frozen",
    f"forward of {BLOCK}.attention",
    f"subclass {BLOCK}.expand",
    f"hook of {BLOCK}.attention",
)


@pytest.mark.deep_unless(case=lambda change: change in FIRST)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_trains_as_it_says(general, change):
    models = [network(), network()]
    for model in models:
        torch.manual_seed(2)
        CHANGES[change](model)
    found, _ = step(models[0], IMAGES)
    expected, _ = general(step, models[1], IMAGES)
    same(found, expected, 1e-10)


@pytest.mark.parametrize("side", [(4, 6), (5, 7)], ids=str)
def test_the_first_of_equal_values_has_the_gradient(general, side):
    x = torch.randint(2, (2, 3, *side), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    y = pool(x)
    expected = F.max_pool2d(x, 2)
    cotangent = torch.randn_like(y)
    assert "_LargestBackward" in nodes(y)
    assert torch.equal(y, expected)
    found, other = (torch.autograd.grad(z, x, cotangent)[0] for z in (y, expected))
    assert torch.equal(found, other)


def test_second_derivatives():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    layer, norm = nn.Conv2d(3, 2, 1).double(), nn.BatchNorm2d(3).double()
    inputs = [x, norm.weight, norm.bias, layer.weight, layer.bias]

    def linears(x, *_):
        return recomputed.rectified_linears(norm, x, [layer, layer])

    torch.autograd.gradgradcheck(linears, inputs)
    torch.autograd.gradgradcheck(lambda x, *_: recomputed.rectified(norm, x), inputs[:3])
    torch.autograd.gradgradcheck(pooled.largest, [x])
    stem = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU()).double()
    torch.autograd.gradgradcheck(lambda *_: pooled.largest_of_stem(stem, x.detach()), list(stem.parameters()))


def test_a_checkpointed_block_has_the_same_gradients():
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64, requires_grad=True)
    layer = SelfAttentionBlock(32, 3, AttentionConfig(**SMALL)).double()
    found = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("way", ["channels_last", "autocast", "gradients of images", "no gradients", "odd"])
def test_other_ways_to_train(general, way):
    images = IMAGES.float()
    if way == "channels_last":
        images = images.to(memory_format=torch.channels_last)
    if way == "odd":
        images = images[..., :-1, :-1]
    if way == "gradients of images":
        images = images.clone().requires_grad_()
    model = network(dtype=torch.float32)
    other = copy.deepcopy(model)

    def call(model):
        with torch.set_grad_enabled(way != "no gradients"), torch.autocast("cpu", enabled=way == "autocast"):
            y = model(images)
        if y.requires_grad:
            y.float().square().sum().backward()
        return {"y": y.detach().float(), "x": images.grad, **dict(model.named_buffers())}

    found = call(model)
    images.grad = None
    same(found, general(call, other), 1e-3)


def test_derivatives_of_torch_func_and_in_forward_mode():
    norm = nn.BatchNorm2d(3).double()
    x, direction = (torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(2))

    def loss(x):
        buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        return torch.func.functional_call(
            Rectified(norm), {f"norm.{name}": b for name, b in buffers.items()}, (x,)
        ).sum()

    gradient = torch.func.grad(loss)(x)
    _, change = torch.func.jvp(loss, (x,), (direction,))
    torch.testing.assert_close((gradient * direction).sum(), change)
    plain = x.clone().requires_grad_()
    loss(plain).backward()
    torch.testing.assert_close(gradient, plain.grad)


class Rectified(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return pool(recomputed.rectified(self.norm, x)).square()


@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_a_network_saves_a_quarter_of_what_its_parts_save(family):
    """The first two stages of SAN10, where most of its memory is; the whole SAN10 saves a sixth
    (`tests/benchmarks/test_training.py`)."""
    images = torch.randn(2, 3, 64, 64)
    found = []
    for how in ({"attention": "fused"}, {"backend": "unfold"}):
        config = saprof.SANConfig(
            family=family, channels=(64, 256), blocks=(2, 1), footprints=(3, 7), num_classes=3, **how
        )
        model = saprof.SAN(config).train()
        found.append(saved_bytes(model, [images], [*model.parameters(), *model.buffers()]))
    assert 0 < 4 * found[0] < found[1]


def test_an_overridden_features_is_not_called_in_training_alone():
    class Own(saprof.SAN):
        def features(self, x):
            return [10 * found for found in super().features(x)]

    model = network()
    model.__class__ = Own
    torch.testing.assert_close(model.forward_features(IMAGES), model.stages(model.stem(IMAGES)))


def test_the_output_of_a_block_can_be_changed_in_place():
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64, requires_grad=True)
    y = network().stages[0].blocks[0](x)
    y += 1
    y.sum().backward()


def test_a_backward_inside_autocast():
    model = network(dtype=torch.float32)
    loss = model(IMAGES.float()).sum()
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()


def test_only_a_residual_requires_a_gradient():
    x, residual = (torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(2))
    norm, layer = nn.BatchNorm2d(3).double().requires_grad_(False), nn.Conv2d(3, 3, 1).double().requires_grad_(False)
    (y,) = recomputed.rectified_linears(norm, x, [layer], residual.requires_grad_())
    assert torch.equal(torch.autograd.grad(y.sum(), residual, create_graph=True)[0], torch.ones_like(residual))


def test_a_footprint_of_other_taps_is_refused():
    model = network("patchwise")
    model.stages[0].blocks[0].attention.footprint = saprof.Footprint.square(5)
    with pytest.raises(ValueError, match="axis k of γ is 9; expected 25"):
        model(IMAGES)
