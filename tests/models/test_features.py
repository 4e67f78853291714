"""The maps of networks, networks without a classifier, and images of any number of channels."""

import re
import weakref

import pytest
import torch
from torch import nn

import saprof
from saprof.models.build import blueprint
from saprof.models.catalogue import MODELS

SMALL = ["san_mini_pairwise", "san_mini_patchwise", "san_mini_stand_alone", "resnet_mini", "sasa_mini"]
CLASSIFIERS = [name for name, model in MODELS.items() if model.architecture != "RetinaNet"]


def image(channels: int = 3, side: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
def test_the_last_map_is_what_is_pooled(name):
    model = saprof.create_model(name, backend="unfold") if "resnet" not in name else saprof.create_model(name)
    head = model.eval().head if hasattr(model, "head") else model.fc
    features = model.forward_features(image())
    assert features.dim() == 4
    torch.testing.assert_close(head(features.mean((2, 3))), model(image()))
    torch.testing.assert_close(model.features(image())[-1], features)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_maps_have_the_channels_and_sizes_that_are_stated(name):
    with torch.device("meta"):
        maps = saprof.create_model(name, features_only=True)
        found = maps(torch.empty(2, 3, 64, 64))
    assert isinstance(found, list)
    expected = [(2, c, 64 // r, 64 // r) for c, r in zip(maps.channels, maps.reductions, strict=True)]
    assert [tuple(x.shape) for x in found] == expected
    assert maps.reductions == ((2, 4, 8, 16, 32) if name.startswith(("san1", "san5")) else maps.reductions)


@pytest.mark.parametrize("name", SMALL)
def test_the_maps_are_those_of_the_network(name):
    model = saprof.create_model(name).eval()
    maps = saprof.create_model(name, features_only=True).eval()
    maps.network.load_state_dict(model.state_dict(), strict=False)
    for found, expected in zip(maps(image()), model.features(image()), strict=True):
        torch.testing.assert_close(found, expected)
    assert not any(isinstance(module, nn.Linear | nn.AdaptiveAvgPool2d) for module in maps.modules())
    maps.train()(image())[-1].sum().backward()
    assert all(p.grad is not None for p in maps.parameters())


def test_a_detector_has_no_features():
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"^network is of type RetinaNet; expected a SAN"),
    ):
        saprof.create_model("retinanet_resnet50", features_only=True)


@pytest.mark.parametrize("name", SMALL)
def test_without_classes_the_pooled_features_are_returned(name, tmp_path):
    model = saprof.create_model(name, num_classes=0).eval()
    torch.testing.assert_close(model(image()), model.forward_features(image()).mean((2, 3)))
    saprof.save(model, tmp_path / "model.pt")
    torch.testing.assert_close(saprof.load(tmp_path / "model.pt").eval()(image()), model(image()))
    torch.testing.assert_close(saprof.optimize_for_inference(model)(image()), model(image()), rtol=1e-3, atol=1e-4)
    for wrong in (-1, True, 1.5):
        message = f"num_classes is {wrong}; expected a positive integer, or 0 for no classifier"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            saprof.create_model(name, num_classes=wrong)


def test_a_detector_has_classes():
    with pytest.raises(ValueError, match=r"^num_classes is 0; expected a positive integer$"):
        blueprint("RetinaNet", {"num_classes": 0})


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", SMALL)
def test_images_of_other_channels(name, channels, tmp_path):
    model = saprof.create_model(name, in_channels=channels).eval()
    logits = model(image(channels))
    assert logits.shape == (2, 10)
    saprof.save(model, tmp_path / "model.pt")
    assert saprof.load(tmp_path / "model.pt").config.in_channels == channels
    torch.testing.assert_close(saprof.load(tmp_path / "model.pt").eval()(image(channels)), logits)
    assert saprof.count(model, (channels, 8, 8)).params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("stem", ["attention", "spatial_attention", "convolution_values"])
def test_stems_of_attention_take_other_channels(stem):
    """The fast path of the stem agrees with the definition."""
    config = {"stem": stem, "in_channels": 5, "blocks": (1,), "channels": (16,), "footprint": 3, "backend": "unfold"}
    model = saprof.models.build.build("SASA", config).double().eval()
    x = image(5).double()
    assert model.stem.obstacle() is None
    fast, defined = model.stem.logits(x), model.stem.define(x)
    torch.testing.assert_close(fast, defined)
    torch.testing.assert_close(model.embed(x).shape, torch.Size([2, 16, 2, 2]))


def test_checkpoints_without_these_fields_load(tmp_path):
    """Those of earlier versions have no `in_channels`."""
    model = saprof.create_model("resnet_mini")
    saprof.save(model, tmp_path / "new.pt")
    content = torch.load(tmp_path / "new.pt", weights_only=True)
    del content["config"]["in_channels"]
    torch.save(content, tmp_path / "old.pt")
    loaded = saprof.load(tmp_path / "old.pt")
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.eval()(image()), model.eval()(image()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: saprof.create_model("san10_pairwse"),
            f"unknown model 'san10_pairwse'; expected one of the {len(MODELS)} names in saprof.list_models(); did you "
            "mean 'san10_pairwise'?",
        ),
        (
            lambda: saprof.create_model("resnet26", chanels=(8,)),
            "unknown option of ResNet 'chanels'; expected 'blocks', 'channels', 'stem_stride', 'in_channels', "
            "'num_classes' or 'footprint'; did you mean 'channels'?",
        ),
        (
            lambda: saprof.create_model("san10_pairwise", relation="substraction"),
            "unknown pairwise relation 'substraction'; expected 'summation', 'subtraction', 'hadamard_product', "
            "'concatenation' or 'dot_product'; did you mean 'subtraction'?",
        ),
        (lambda: saprof.create_model("san10_pairwise", family="PAIRWISE"), "did you mean 'pairwise'?"),
    ],
)
def test_the_nearest_name_is_suggested(call, message):
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        call()


def test_a_forward_keeps_no_map_of_an_earlier_stage():
    model = saprof.create_model("resnet26").eval()
    first, *_, last = model.stages
    made = []
    alive_at_the_end = []
    first.register_forward_hook(lambda module, inputs, output: made.append(weakref.ref(output)))
    last.register_forward_hook(lambda module, inputs, output: alive_at_the_end.append(made[-1]() is not None))
    with torch.no_grad():
        model(image(side=32))
        model.features(image(side=32))
    assert alive_at_the_end == [False, True], "features keep all maps"
