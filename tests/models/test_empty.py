"""Networks that are built without weights, and contexts that change where torch makes tensors."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import saprof

TINY = {"channels": (16, 32), "blocks": (1, 1), "heads": 4, "num_classes": 5}
RETINANET = {"channels": (8, 16, 32), "blocks": (1, 1, 1), "width": 16, "anchors": 2, "heads": 4}
KINDS = {
    **{name: (name, {}) for name in saprof.list_models() if name.count("mini")},
    "absolute": ("sasa_mini", {"position": "absolute", "footprint": "cross:5 boundary=exclude"}),
    "position alone": ("sasa_mini", {"logits": "position", "footprint": "disk:5"}),
    "spatial attention": ("sasa_resnet26", TINY | {"footprint": "dilated:3x2"}),
    "attention": ("sasa_resnet26", TINY | {"stem": "attention", "footprint": "offsets:0,1;2,-1;0,0"}),
    "convolution values": ("sasa_resnet26", TINY | {"stem": "convolution_values"}),
    "retinanet": ("retinanet_sasa_resnet50", RETINANET),
}


def network(name, options):
    torch.manual_seed(0)
    return saprof.create_model(name, **options).eval()


def image(name, side=16):
    side = 64 if name.startswith("retinanet") else side
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def assigned(empty, weights):
    empty.load_state_dict(weights, assign=True)
    return empty


def filled(empty, weights):
    empty = empty.to_empty(device="cpu")
    for x in empty.state_dict().values():
        x.fill_(float("nan") if x.is_floating_point() else -1)
    empty.load_state_dict(weights)
    return empty


def comes_back(name, options, load):
    real = network(name, options)
    with torch.device("meta"):
        empty = network(name, options)
    loaded = load(empty, real.state_dict())
    assert {buffer for buffer, _ in real.named_buffers()} <= real.state_dict().keys()
    x = image(name)
    with torch.no_grad():
        assert torch.equal(loaded(x), real(x))


@pytest.mark.parametrize("load", [assigned, filled], ids=lambda load: load.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_without_weights_gets_them(kind, load):
    comes_back(*KINDS[kind], load)


@pytest.mark.deep
@pytest.mark.parametrize("load", [assigned, filled], ids=lambda load: load.__name__)
@pytest.mark.parametrize("name", saprof.list_models())
def test_every_network_without_weights_gets_them(name, load):
    comes_back(name, {"num_classes": 7}, load)


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS = {
    "meta": lambda: torch.device("meta"),
    "default device": default_device,
    "inference": torch.inference_mode,
    "default dtype": default_dtype,
}
SIDES = iter(range(20, 1000, 4))
"""The side of a map that no call has seen, so that nothing about it is kept."""


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    "name", ["san_mini_pairwise", "san_mini_patchwise", "san_mini_stand_alone", "sasa_mini", "sasa_resnet26"]
)
def test_a_first_call_in_another_context_leaves_nothing_behind(name, context):
    options = TINY if name == "sasa_resnet26" else {"attention": "auto"}
    model = network(name, options)
    x = image(name, next(SIDES))
    with CONTEXTS[context](), torch.no_grad():
        first = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), first)
    model.train()(torch.cat([x, -x])).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["san_mini_patchwise", "sasa_mini"])
def test_fake_tensors_leave_nothing_behind(name):
    model = network(name, {})
    x = image(name, next(SIDES))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        assert model(fake.from_tensor(x)).shape == (1, 10)
    with torch.no_grad():
        assert torch.equal(model(x), copy.deepcopy(model)(x))


@pytest.mark.parametrize("kind", ["position alone", "attention"])
def test_a_network_moves_as_a_whole(kind):
    name, options = KINDS[kind]
    model, x = network(name, options), image(name)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        assert torch.equal(torch.func.functional_call(copy.deepcopy(model), model.state_dict(), (x,)), expected)
        torch.testing.assert_close(model.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-4)
        assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert isinstance(model.share_memory(), nn.Module)
