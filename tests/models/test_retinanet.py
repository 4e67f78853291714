"""RetinaNet: counts, its three parts, norms of each level, frozen norms, other backbones, and torchvision's."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision_here import torchvision

import saprof
from saprof.models.retinanet import LEVELS, LevelNorms, RetinaNet, RetinaNetConfig
from saprof.paper import printed

STAGES = {"channels": (8, 16, 32), "blocks": (1, 1, 1), "backend": "unfold", "footprint": 3, "heads": 4}
TINY = STAGES | {"width": 16, "anchors": 2, "num_classes": 5}
RESNET = {"attention_stages": (), "stem": "convolution", "predictors": "convolution"}
CONVOLUTIONS = {name: value for name, value in TINY.items() if name != "footprint"} | RESNET
MODES = {"convolution": CONVOLUTIONS, "attention": TINY}

TABLE_2 = (
    "retinanet_resnet50",
    "retinanet_sasa_resnet50_convolution_stem_heads",
    "retinanet_sasa_resnet50_convolution_heads",
    "retinanet_sasa_resnet50_convolution_stem",
    "retinanet_sasa_resnet50",
)
"""The names of the rows of SASA Table 2."""


def tiny(kind="convolution", **options):
    torch.manual_seed(0)
    return RetinaNet(RetinaNetConfig(**MODES[kind] | options))


def image(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# counts


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("retinanet_resnet50", {}, 33_397_364),
        ("retinanet_resnet50", {"level_norms": True}, 33_420_404),
        ("retinanet_sasa_resnet50", {}, 21_980_212),
        ("retinanet_sasa_resnet50", {"level_norms": True}, 21_980_212 + 23_040),
        # P6 reads 2,048 channels and not 256
        ("retinanet_resnet50", {"coarser_from": "C5"}, 33_397_364 + 9 * (2048 - 256) * 256),
    ],
)
def test_parameters(name, options, parameters):
    with torch.device("meta"):
        model = saprof.create_model(name, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_five_detectors_of_table_2_have_names():
    """A name has the parameters of the printed row, which the paper tables compare."""
    for name, row in zip(TABLE_2, printed.rows("2", "sasa"), strict=True):
        with torch.device("meta"):
            models = [saprof.create_model(name), saprof.create_model(row.model, **row.overrides)]
        assert models[0].config == models[1].config, name


def test_norms_cost_no_multiply_adds():
    costs = [saprof.count(tiny(level_norms=norms), (3, 64, 64)) for norms in (False, True)]
    assert costs[0].macs == costs[1].macs
    assert costs[1].params - costs[0].params == 2 * 16 * (LEVELS + 2 * 4 * LEVELS)


def test_its_parts_are_modules():
    model = tiny("attention", level_norms=True).eval()
    assert [name for name, _ in model.named_children()] == ["backbone", "pyramid", "heads"]
    called = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(image(1, 3, 64, 64))
    assert {"backbone", "pyramid", "heads", "heads.classes", "heads.boxes"} < set(called)
    never = {name for name, module in model.named_modules() if next(module.children(), None) is None} - set(called)
    assert not never


# shapes and values


@pytest.mark.parametrize("size", [(64, 64), (36, 52), (4, 4), (4, 100)], ids=str)
@pytest.mark.parametrize("norms", [False, True], ids=["bare", "norms"])
@pytest.mark.parametrize("kind", MODES)
def test_shapes(kind, norms, size):
    model = tiny(kind, level_norms=norms).eval()
    y, found = model(image(2, 3, *size)), model.predict(image(2, 3, *size))
    sides = [size]
    for _ in range(6):
        sides.append(tuple(-(-side // 2) for side in sides[-1]))
    assert found.sizes == tuple(sides[2:])
    positions = sum(h * w for h, w in found.sizes)
    assert found.logits.shape == (2, 2 * positions, 5)
    assert found.offsets.shape == (2, 2 * positions, 4)
    assert torch.equal(y, torch.cat([found.logits, found.offsets], 2))
    assert model.strides == (4, 8, 16, 32, 64)


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (7, 130)], ids=str)
def test_odd_images(size):
    found = tiny().eval().predict(image(1, 3, *size))
    assert found.sizes[0] == (-(-size[0] // 4), -(-size[1] // 4))
    assert found.logits.isfinite().all()


def test_the_order_of_anchors():
    """Levels, rows, columns, anchors of a position."""
    model = tiny().eval()
    x = image(1, 3, 64, 48)
    maps = model.pyramid(model.backbone(x))
    found = model.predict(x)
    row = 0
    for level, map_ in enumerate(maps):
        logits = model.heads.classes(map_, level)[0]
        for y in range(map_.shape[2]):
            for z in range(map_.shape[3]):
                for anchor in range(2):
                    torch.testing.assert_close(found.logits[0, row], logits[5 * anchor : 5 * anchor + 5, y, z])
                    row += 1
    assert row == found.logits.shape[1]


def test_the_sources_of_the_coarser_maps():
    for source, channels in (("P5", 16), ("C5", 128)):
        model = tiny(coarser_from=source, level_norms=True).eval()
        for norm in model.pyramid.norms:
            nn.init.normal_(norm.running_mean)
        read = []
        for module in (*model.pyramid.smooth, *model.pyramid.coarser):
            module.register_forward_hook(lambda _, inputs, output, read=read: read.append((inputs[0], output)))
        maps = model.backbone(image(1, 3, 64, 64))
        model.pyramid(maps)
        (_, p5), (p6_from, p6), (p7_from, _) = read[2:]
        assert p6_from.shape[1] == channels
        assert torch.equal(p6_from, p5 if source == "P5" else maps[-1])  # before the norm of P5
        assert torch.equal(p7_from, p6.relu())


# initial values


@pytest.mark.parametrize("kind", MODES)
def test_weights_of_heads_before_training(kind):
    model = tiny(kind, width=64, level_norms=True)
    for head in (model.heads.classes, model.heads.boxes):
        layers = [layer for layer in head if not isinstance(layer, LevelNorms)]
        assert len(layers) == (6 if kind == "attention" else 5)
        for layer in layers:
            weighted = layer if isinstance(layer, nn.Conv2d) else layer.value  # W_V of SASA
            assert abs(weighted.weight.mean()) < 1e-3
            assert 0.009 < weighted.weight.std() < 0.011
            if isinstance(layer, nn.Conv2d) and layer is not model.heads.classes[-1]:
                assert not layer.bias.any()
    torch.testing.assert_close(model.heads.classes[-1].bias.sigmoid(), torch.full((10,), 0.01))
    if kind == "attention":
        assert model.heads.classes[0].query.weight.std() > 0.05, "queries and keys start as everywhere"


def test_settings_of_the_norms():
    norms = [m for m in tiny(level_norms=True).heads.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 * 4 * LEVELS
    assert {(norm.eps, round(norm.momentum, 9)) for norm in norms} == {(1e-4, 0.003)}


# norms of each level


def test_each_level_has_norms_of_its_own():
    model = tiny(level_norms=True).eval()
    nn.init.zeros_(model.heads.classes[-1].bias)  # small logits are not rounded away
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        before = model.predict(x)
        ends = torch.tensor([2 * h * w for h, w in before.sizes]).cumsum(0).tolist()
        for level in range(LEVELS):
            weight = model.heads.classes[3].levels[level].weight
            weight.mul_(2)
            after = model.predict(x)
            weight.div_(2)
            assert torch.equal(after.offsets, before.offsets)
            differ = [
                not torch.equal(after.logits[:, start:end], before.logits[:, start:end])
                for start, end in zip([0, *ends], ends, strict=False)
            ]
            assert differ == [other == level for other in range(LEVELS)]


def test_statistics_of_each_level_are_those_of_its_maps():
    model = tiny(level_norms=True)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("backbone"):
            module.register_forward_hook(lambda m, inputs, _, name=name: seen.setdefault(name, []).append(inputs[0]))
    model(image(2, 3, 64, 64))
    assert len(seen) == LEVELS * 9
    for name, calls in seen.items():
        (x,) = calls  # one level each
        torch.testing.assert_close(
            model.get_submodule(name).running_mean, 0.003 * x.mean((0, 2, 3)), rtol=1e-3, atol=1e-7
        )
    sizes = [seen[f"heads.boxes.1.levels.{level}"][0].shape[-1] for level in range(LEVELS)]
    assert sizes == [16, 8, 4, 2, 1]


# gradients


@pytest.mark.parametrize("norms", [False, True], ids=["bare", "norms"])
@pytest.mark.parametrize("kind", MODES)
def test_gradients_reach_every_parameter(kind, norms):
    model = tiny(kind, level_norms=norms)
    model(image(2, 3, 64, 64)).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


def test_gradients_are_those_of_differences():
    model = tiny(level_norms=True).double().eval()
    for parameter in model.heads.parameters():
        if parameter.dim() == 4:
            nn.init.normal_(parameter, std=0.2)
    x = image(2, 3, 32, 32).double()
    names = ["pyramid.lateral.0.weight", "pyramid.coarser.1.weight", "heads.classes.1.levels.2.weight"]
    names += ["heads.boxes.2.weight", "backbone.network.layer2.0.conv2.weight"]
    found = torch.autograd.grad(model(x).sin().sum(), [model.get_parameter(name) for name in names])
    for name, gradient in zip(names, found, strict=True):
        weight = model.get_parameter(name)
        direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        step, values = 1e-6, []
        with torch.no_grad():
            for sign in (1, -1):
                weight.add_(sign * step * direction)
                values.append(model(x).sin().sum().item())
                weight.sub_(sign * step * direction)
        expected = (values[0] - values[1]) / (2 * step)
        assert abs(expected) > 1e-3
        torch.testing.assert_close((gradient * direction).sum().item(), expected, rtol=1e-3, atol=1e-6)


# frozen norms


def statistics(module):
    return {name: x.clone() for name, x in module.state_dict().items() if "running" in name}


def test_frozen_norms_stay_as_they_are_and_others_do_not():
    model = tiny(frozen_norms=True, level_norms=True).train()
    backbone, pyramid = statistics(model.backbone), statistics(model.pyramid)
    assert backbone
    model(image(2, 3, 64, 64)).sum().backward()
    assert all(torch.equal(x, backbone[name]) for name, x in statistics(model.backbone).items())
    assert not any(torch.equal(x, pyramid[name]) for name, x in statistics(model.pyramid).items())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            frozen = any(module is inside for inside in model.backbone.modules())
            assert module.training is not frozen
            assert module.weight.requires_grad is not frozen
            assert (module.weight.grad is None) is frozen
    assert model.backbone.network.conv1.weight.grad is not None
    assert model.training
    assert not model.eval().training


def test_norms_are_trained_otherwise():
    model = tiny()
    before = statistics(model.backbone)
    model(image(2, 3, 64, 64))
    assert not any(torch.equal(x, before[name]) for name, x in statistics(model.backbone).items())


def test_a_new_network_with_frozen_norms_gives_the_same_in_both_modes():
    model = tiny(frozen_norms=True)
    assert torch.equal(model(image(1, 3, 64, 64)), model.eval()(image(1, 3, 64, 64)))


# on disk


@pytest.mark.parametrize("kind", MODES)
def test_it_comes_back_from_disk(kind, tmp_path):
    options = {"level_norms": True, "frozen_norms": True, "coarser_from": "C5"}
    model = tiny(kind, **options)
    model(image(2, 3, 64, 64))
    saprof.save(model, tmp_path / "model.pt")
    loaded = saprof.load(tmp_path / "model.pt")
    assert loaded.config == model.config
    assert torch.equal(loaded.eval()(image(1, 3, 64, 64)), model.eval()(image(1, 3, 64, 64)))
    assert not loaded.backbone.network.layer1[0].bn1.weight.requires_grad
    fast = saprof.optimize_for_inference(model)
    torch.testing.assert_close(fast(image(1, 3, 64, 64)), model(image(1, 3, 64, 64)), rtol=1e-3, atol=1e-4)


def test_a_checkpoint_with_the_earlier_names_of_weights_loads(tmp_path):
    model = tiny().eval()
    saprof.save(model, tmp_path / "new.pt")
    content = torch.load(tmp_path / "new.pt", weights_only=True)
    earlier = {
        re.sub(r"^(backbone\.)network\.|^pyramid\.|^heads\.", r"\1", k): x for k, x in content["weights"].items()
    }
    assert {"backbone.conv1.weight", "lateral.0.weight", "classes.8.bias"} < earlier.keys()
    for field in ("level_norms", "coarser_from", "frozen_norms"):
        del content["config"][field]
    torch.save(content | {"weights": earlier}, tmp_path / "old.pt")
    assert torch.equal(saprof.load(tmp_path / "old.pt").eval()(image(1, 3, 64, 64)), model(image(1, 3, 64, 64)))


# other backbones

SMALL_SAN = {
    "channels": (16, 32, 64),
    "relation_reduction": 8,
    "value_reduction": 2,
    "share": 4,
    "blocks": (1, 1, 1),
    "footprints": (3, 3, 3),
    "backend": "unfold",
}


class Own(nn.Module):
    """Three maps, as a network of torchvision's feature extraction returns them."""

    def __init__(self, returned=dict):
        super().__init__()
        self.channels, self.reductions = [4, 6, 8], [2, 4, 8]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 4), (4, 6), (6, 8)))
        self.returned = returned

    def forward(self, x):
        maps = {}
        for number, layer in enumerate(self.layers):
            maps[str(number)] = x = layer(x)
        return maps if self.returned is dict else self.returned(maps.values())


class OfTimm(Own):
    def __init__(self):
        super().__init__(list)
        self.feature_info = SimpleNamespace(channels=lambda: [4, 6, 8], reduction=lambda: [2, 4, 8])
        del self.channels, self.reductions


BACKBONES = {
    **{
        family: lambda family=family: saprof.create_model(f"san10_{family}", **SMALL_SAN)
        for family in ("pairwise", "patchwise")
    },
    "maps of san": lambda: saprof.create_model("san10_pairwise", features_only=True, **SMALL_SAN),
    "resnet": lambda: saprof.create_model("resnet26", channels=(8, 16, 32, 64), blocks=(1, 1, 1, 1)),
    "dict": Own,
    "tuple": lambda: Own(tuple),
    "timm": OfTimm,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_other_backbones(name):
    model = RetinaNet(RetinaNetConfig(**CONVOLUTIONS), backbone=BACKBONES[name]())
    for size in ((64, 64), (65, 50)):
        found = model.predict(image(2, 3, *size))
        assert found.logits.shape == (2, 2 * sum(h * w for h, w in found.sizes), 5)
        if size == (64, 64):
            assert found.sizes == tuple((-(-64 // s), -(-64 // s)) for s in model.strides)
    found.logits.square().sum().backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    assert not any(isinstance(module, nn.Linear) for module in model.modules())


def test_a_network_with_another_backbone_cannot_be_saved(tmp_path):
    model = RetinaNet(RetinaNetConfig(**CONVOLUTIONS), backbone=Own())
    with pytest.raises(ValueError, match=r"^cannot save this RetinaNet, since load"):
        saprof.save(model, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def without(name):
    backbone = Own()
    delattr(backbone, name)
    return backbone


def with_(**attributes):
    backbone = Own()
    for name, value in attributes.items():
        setattr(backbone, name, value)
    return backbone


UNKNOWN = (
    "; expected a SAN, ResNet or SASA, a network of create_model(…, features_only=True), or a module with channels"
)
WRONG = {
    "no maps": (lambda: tiny_with(nn.Conv2d(3, 4, 1)), f"network is of type Conv2d{UNKNOWN}"),
    "a detector": (lambda: tiny_with(tiny()), f"network is of type RetinaNet{UNKNOWN}"),
    "no reductions": (lambda: tiny_with(without("reductions")), f"network is of type Own{UNKNOWN}"),
    "text": (lambda: tiny_with(with_(channels="468")), f"network is of type Own{UNKNOWN}"),
    "zero": (lambda: tiny_with(with_(channels=[4, 0, 8])), "channels[1] is 0; expected a positive integer"),
    "lengths": (
        lambda: tiny_with(with_(channels=[4, 6, 8, 8])),
        "network has 4 channels and 3 reductions; expected one per map",
    ),
    "two maps": (
        lambda: tiny_with(saprof.create_model("resnet_mini")),
        "backbone has 2 maps; expected 3 at least, for the pyramid",
    ),
    "norms": (lambda: tiny(level_norms=1), "level_norms is 1; expected True or False"),
    "frozen": (lambda: tiny(frozen_norms="yes"), "frozen_norms is 'yes'; expected True or False"),
    "source": (lambda: tiny(coarser_from="P4"), "unknown coarser_from 'P4'; expected 'P5' or 'C5'"),
}


def tiny_with(backbone):
    return RetinaNet(RetinaNetConfig(**CONVOLUTIONS), backbone=backbone)


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit(case):
    act, sentence = WRONG[case]
    with pytest.raises(ValueError, match=rf"\A{re.escape(sentence)}"):
        act()


# torchvision's


@pytest.mark.parametrize("source", ["P5", "C5"])
def test_torchvisions_network_with_the_same_weights_computes_the_same(source):
    torchvision()
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.resnet import Bottleneck, ResNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(0)
    options = {"channels": (64, 128, 256, 512), "blocks": (1, 1, 1, 1), "width": 256, "anchors": 9}
    ours = tiny(**options, coarser_from=source).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p), alpha=1e-3)
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = ResNet(Bottleneck, [1, 1, 1, 1])
    extra = LastLevelP6P7(2048 if source == "C5" else 256, 256)
    theirs = detection.RetinaNet(BackboneWithFPN(backbone, layers, [512, 1024, 2048], 256, extra), 5).eval()
    names = {
        r"^backbone\.network\.": "backbone.body.",
        r"^pyramid\.lateral\.(\d)\.": r"backbone.fpn.inner_blocks.\1.0.",
        r"^pyramid\.smooth\.(\d)\.": r"backbone.fpn.layer_blocks.\1.0.",
        r"^pyramid\.coarser\.0\.": "backbone.fpn.extra_blocks.p6.",
        r"^pyramid\.coarser\.1\.": "backbone.fpn.extra_blocks.p7.",
        r"^heads\.classes\.8\.": "head.classification_head.cls_logits.",
        r"^heads\.boxes\.8\.": "head.regression_head.bbox_reg.",
        r"^heads\.(\w+)\.([0246])\.": lambda m: (
            f"head.{'classification' if m[1] == 'classes' else 'regression'}_head.conv.{int(m[2]) // 2}.0."
        ),
    }
    weights = {}
    for key, value in ours.state_dict().items():
        for pattern, name in names.items():
            key = re.sub(pattern, name, key)
        weights[key] = value
    theirs.load_state_dict(weights)
    x = image(1, 3, 65, 97)
    with torch.no_grad():
        found, expected = ours.predict(x), theirs.head(list(theirs.backbone(x).values()))
    torch.testing.assert_close(found.logits, expected["cls_logits"])
    torch.testing.assert_close(found.offsets, expected["bbox_regression"])
