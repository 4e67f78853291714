"""The networks: every name builds and runs on any image, under autocast and compile; the error of a wrong config names
the problem."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import saprof
from saprof import Footprint
from saprof.backends import BACKENDS, Unsupported

FAMILIES = {
    "pairwise": {"relation_reduction": 8},
    "patchwise": {"relation_reduction": 8},
    "stand_alone": {"heads": 4},
}
TINY = {"channels": (32, 64), "blocks": (1, 1), "footprints": (3, 3), "num_classes": 5}


def tiny(family="pairwise", **overrides):
    """With norms as if trained: at the start γ's ReLUs sit where rounding decides, since p_i − p_i is their mean."""
    torch.manual_seed(0)
    model = saprof.create_model(f"san10_{family}", **TINY | FAMILIES[family] | overrides)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model


def tiny_resnet():
    torch.manual_seed(0)
    return saprof.create_model("resnet26", channels=(8, 16), blocks=(1, 1), num_classes=5)


def image(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def learn(model, x, run=None):
    """Loss and gradients of a training step; `run` is the model, or it compiled."""
    logits = model(x) if run is None else run(x)
    loss = F.cross_entropy(logits.float(), torch.arange(len(x)) % logits.shape[1])
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


# what there is


def test_the_names():
    names = saprof.list_models()
    assert len(set(names)) == len(names)
    assert {f"san{depth}_{family}" for depth in (10, 15, 19) for family in ("pairwise", "patchwise")} < set(names)
    assert {f"sasa_resnet{depth}{stem}" for depth in (26, 38, 50) for stem in ("", "_convolution_stem")} < set(names)
    assert {"retinanet_resnet50", "retinanet_sasa_resnet50", "sasa_mini"} < set(names)
    assert {"resnet26", "resnet38", "resnet50", "resnet26_5x5", "resnet26_7x7", "san10_stand_alone"} < set(names)


@pytest.mark.parametrize("name", saprof.list_models())
def test_every_name_builds_and_runs(name):
    with torch.device("meta"):
        model = saprof.create_model(name, num_classes=7).eval()
        blocks = getattr(model.config, "stem", "convolution") != "convolution"  # a stem of 4 × 4 blocks
        for size in ((36, 44) if blocks else (33, 47), (8, 8)):
            output = model(torch.empty(2, 3, *size))
            if name.startswith("retinanet"):
                assert (output.dim(), output.shape[2]) == (3, 7 + 4)
            else:
                assert output.shape == (2, 7)


def test_footprints_are_the_papers():
    sizes = [footprint.label for footprint in saprof.SANConfig().stage_footprints]
    assert sizes == ["square:3", "square:7", "square:7", "square:7", "square:7"]


@pytest.mark.parametrize(
    ("given", "label"),
    [(5, "square:5"), ("disk:9", "disk:9"), (Footprint.cross(3), "cross:3")],
    ids=["size", "text", "footprint"],
)
def test_a_footprint_may_be_given_as(given, label):
    config = saprof.SANConfig(channels=[64], blocks=[1], footprints=[given], boundary="zero")
    (footprint,) = config.footprints
    assert footprint.label == label
    assert footprint.boundary == ("zero" if given == 5 else "reflect")
    assert config == saprof.SANConfig(channels=(64,), blocks=(1,), footprints=(footprint,), boundary="zero")


def test_overrides_replace_what_the_name_says():
    model = tiny(relation="dot_product", mapping="l")
    assert model.config.relation == "dot_product"
    assert model.head.out_features == 5
    assert tiny(relation="subtraction", position="relative").config == tiny().config


@pytest.mark.parametrize(
    ("name", "entries", "parameters"),
    [("resnet26", 176, 13_696_552), ("resnet38", 248, 19_626_792), ("resnet50", 320, 25_557_032)],
)
def test_resnets_are_torchvisions(name, entries, parameters):
    with torch.device("meta"):
        model = saprof.create_model(name)
    state = model.state_dict()
    assert len(state) == entries
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    known = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer2.0.downsample.1.num_batches_tracked": (),
        "layer4.0.conv3.weight": (2048, 512, 1, 1),
        "layer4.0.bn3.bias": (2048,),
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
    }
    assert {key: tuple(state[key].shape) for key in known} == known


def test_a_resnet_strides_in_its_k_by_k_convolutions():
    with torch.device("meta"):
        model = saprof.create_model("resnet26_5x5")
    strided = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
    assert strided == {"conv1"} | {f"layer{i}.0.{part}" for i in (2, 3, 4) for part in ("conv2", "downsample.0")}
    sizes = {m.kernel_size for name, m in model.named_modules() if name.endswith(".conv2")}
    assert sizes == {(5, 5)}


# any image


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (8, 8), (33, 47), (1, 1)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_image_passes_five_stages(family, size):
    stages = {"channels": (32, 32, 64, 64, 64), "blocks": (1,) * 5, "footprints": (3, 7, 7, 7, 7)}
    model = tiny(family, **stages).eval()
    logits = model(image(2, 3, *size))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    assert torch.allclose(model(image(2, 3, *size)[1:]), logits[1:], atol=1e-5)  # images are independent of each other


@pytest.mark.parametrize("family", FAMILIES)
def test_no_image_gives_no_logits(family):
    assert tiny(family).eval()(image(0, 3, 16, 16)).shape == (0, 5)


def test_no_image_gives_no_logits_of_a_resnet():
    assert tiny_resnet().eval()(image(0, 3, 32, 32)).shape == (0, 5)


@pytest.mark.deep_unless(case=lambda family: family not in ("pairwise", "patchwise"))  # compiled in float64
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_formats_agree(family):
    model = tiny(family).double()
    x = image(2, 3, 16, 16, dtype=torch.float64)
    _, expected = learn(model, x)
    other = tiny(family).double().to(memory_format=torch.channels_last)
    _, got = learn(other, x.contiguous(memory_format=torch.channels_last))
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name].contiguous(), gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_stays_close(family):
    x = image(32, 3, 16, 16)
    model, other = tiny(family), tiny(family)
    loss, expected = learn(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        cast_loss, got = learn(other, x)
    assert {gradient.dtype for gradient in got.values()} == {torch.float32}
    assert abs(cast_loss - loss) < 0.02 * loss
    norm = sum(gradient.square().sum() for gradient in expected.values()).sqrt()
    error = sum((got[name] - gradient).square().sum() for name, gradient in expected.items()).sqrt()
    assert error < 0.3 * norm  # 2⁻⁸ per operation, through batch norms: a ResNet of this size errs by 0.22
    model.eval(), other.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cast = other(x)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), model(x), rtol=0.05, atol=0.05)


@pytest.mark.deep
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_compiled_is_eager(family, backend, compiler):
    model = tiny(family, backend=backend)
    other = copy.deepcopy(model)
    x = image(2, 3, 16, 16)
    try:
        loss, expected = learn(model, x)
    except Unsupported as reason:
        pytest.skip(str(reason))
    got_loss, got = learn(other, x, compiler(other, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(got_loss, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_can_be_named(family, backend):
    model = tiny(family, backend=backend)
    assert {m.backend for m in model.modules() if hasattr(m, "backend")} == {backend}
    try:
        loss, got = learn(model, image(2, 3, 16, 16))
    except Unsupported as reason:
        pytest.skip(str(reason))
    expected_loss, expected = learn(tiny(family, backend="unfold"), image(2, 3, 16, 16))
    torch.testing.assert_close(loss, expected_loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_backends_give_the_same_logits(family, backend):
    model = tiny(family, backend=backend).eval()
    x = image(2, 3, 19, 16)
    try:
        logits = model(x)
    except Unsupported as reason:
        pytest.skip(str(reason))
    expected = tiny(family, backend="unfold").eval()(x)
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("model", [*map(tiny, FAMILIES), tiny_resnet()], ids=[*FAMILIES, "resnet"])
def test_a_copy_stands_alone(model, how):
    model = model.eval()
    other = how(model)
    x = image(1, 3, 16, 16)
    expected = model(x)
    assert torch.equal(other(x), expected)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model(x), expected)


# what does not fit

BAD = {
    "family": ({"family": "global"}, "unknown family 'global'; expected 'pairwise', 'patchwise' or 'stand_alone'"),
    "relation": ({"relation": "sum"}, "unknown pairwise relation 'sum'; expected 'summation', 'subtraction', "),
    "relation of the other family": (
        {"family": "patchwise", "relation": "subtraction"},
        "unknown patchwise relation 'subtraction'; expected 'star_product', 'clique_product' or 'concatenation'",
    ),
    "mapping": ({"mapping": "rl"}, "unknown mapping 'rl'; expected 'l', 'lrl' or 'lrlrl'"),
    "transformations": (
        {"transformations": "same"},
        "unknown transformations 'same'; expected 'distinct', 'shared_phi_psi' or 'shared'",
    ),
    "position": ({"position": "polar"}, "unknown pairwise position 'polar'; expected 'none', 'absolute' or 'relative'"),
    "patchwise position": (
        {"family": "patchwise", "position": "relative"},
        "unknown patchwise position 'relative'; expected 'none'",
    ),
    "backend": (
        {"backend": "triton"},
        f"unknown backend 'triton'; expected {', '.join(map(repr, BACKENDS))} or 'auto'",
    ),
    "boundary": ({"boundary": "mirror"}, "unknown boundary 'mirror'; expected 'reflect', 'zero', "),
    "option": ({"depth": 10}, "unknown option of SAN 'depth'; expected 'family', 'relation', "),
    "share of 0": ({"share": 0}, "share is 0; expected a positive integer"),
    "share as text": ({"share": "8"}, "share is '8'; expected a positive integer"),
    "share not dividing": ({"share": 5}, "share is 5; expected a divisor of value channels = 8"),
    "relation reduction of 0": ({"relation_reduction": 0}, "relation_reduction is 0; expected a positive integer"),
    "relation reduction not dividing": ({"relation_reduction": 5}, "relation_reduction is 5; expected a divisor of"),
    "relation reduction over channels": (
        {"relation_reduction": 64},
        "relation_reduction is 64; expected a divisor of channels = 32",
    ),
    "value reduction not dividing": ({"value_reduction": 3}, "value_reduction is 3; expected a divisor of channels"),
    "value reduction as float": ({"value_reduction": 4.0}, "value_reduction is 4.0; expected a positive integer"),
    "value reduction as bool": ({"value_reduction": True}, "value_reduction is True; expected a positive integer"),
    "reductions of one layer": (
        {"transformations": "shared", "relation_reduction": 16},
        "relation_reduction is 16; expected value_reduction = 4",
    ),
    "channels not dividing": ({"channels": (48, 64)}, "share is 8; expected a divisor of value channels = 12"),
    "channels as float": ({"channels": (32.0, 64)}, r"channels[0] is 32.0; expected a positive integer"),
    "channels as a number": ({"channels": 64}, "channels is 64; expected a list or tuple of one entry per stage"),
    "no channels": ({"channels": ()}, "channels is (); expected a list or tuple"),
    "blocks too few": ({"blocks": (1,)}, "blocks has 1 entries; expected one per stage, 2 as in channels"),
    "blocks of 0": ({"blocks": (1, 0)}, "blocks[1] is 0; expected a positive integer"),
    "blocks as bool": ({"blocks": (True, 1)}, "blocks[0] is True; expected a positive integer"),
    "blocks as text": ({"blocks": "11"}, "blocks is '11'; expected a list or tuple"),
    "footprints too many": ({"footprints": (3, 3, 3)}, "footprints has 3 entries; expected one per stage, 2"),
    "footprint of 0": ({"footprints": (3, 0)}, "footprint size is 0; expected a positive integer"),
    "footprint as bool": ({"footprints": (3, True)}, "footprint size is True; expected a positive integer"),
    "footprint as float": (
        {"footprints": (3, 3.0)},
        "footprint is 3.0; expected a Footprint, a size such as 7, or text",
    ),
    "footprint as noise": ({"footprints": (3, "round:3")}, "cannot read footprint 'round:3'; expected a size"),
    "footprint with stride": ({"footprints": (3, "square:3 stride=2")}, "has stride 2; expected 1"),
    "classes below 0": ({"num_classes": -1}, "num_classes is -1; expected a positive integer, or 0 for no classifier"),
    "images without channels": ({"in_channels": 0}, "in_channels is 0; expected a positive integer"),
    "classes as bool": ({"num_classes": True}, "num_classes is True; expected a positive integer"),
    "heads of pairwise": ({"heads": 4}, "heads is 4; expected 8, since pairwise attention does not read it"),
    "heads not dividing": (
        {"family": "stand_alone", "heads": 3},
        "heads is 3; expected a divisor of value channels = 8",
    ),
    "heads of one channel": ({"family": "stand_alone"}, "2 · heads is 16; expected a divisor of value channels = 8"),
    "heads of 0": ({"family": "stand_alone", "heads": 0}, "heads is 0; expected a positive integer"),
    "relation of stand-alone": (
        {"family": "stand_alone", "heads": 4, "relation": "dot_product"},
        "relation is 'dot_product'; expected None, since stand_alone attention does not read it",
    ),
    "share of stand-alone": ({"family": "stand_alone", "heads": 4, "share": 2}, "share is 2; expected 8, since"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_config_says_what_is_bad(changes, message):
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as caught:
        saprof.create_model("san10_pairwise", **TINY | changes)
    assert message in str(caught.value)


BAD_RESNETS = {
    "even footprint": ({"footprint": 4}, "footprint is 4; expected an odd size"),
    "footprint as float": ({"footprint": 3.0}, "footprint is 3.0; expected a positive integer"),
    "footprint as text": ({"footprint": "square:3"}, "footprint is 'square:3'; expected a positive integer"),
    "negative footprint": ({"footprint": -3}, "footprint is -3; expected a positive integer"),
    "footprint as bool": ({"footprint": True}, "footprint is True; expected a positive integer"),
    "blocks too many": ({"blocks": (1,) * 5}, "blocks has 5 entries; expected one per stage, 4 as in channels"),
    "blocks of 0": ({"blocks": (1, 0, 1, 1)}, "blocks[1] is 0; expected a positive integer"),
    "channels as float": ({"channels": (64, 128, 256, 512.0)}, "channels[3] is 512.0; expected a positive integer"),
    "classes below 0": ({"num_classes": -1}, "num_classes is -1; expected a positive integer, or 0 for no classifier"),
    "images without channels": ({"in_channels": 0}, "in_channels is 0; expected a positive integer"),
    "option": ({"footprints": (3,)}, "unknown option of ResNet 'footprints'; expected 'blocks', 'channels', "),
}


@pytest.mark.parametrize(("changes", "message"), BAD_RESNETS.values(), ids=BAD_RESNETS.keys())
def test_a_bad_resnet_says_what_is_bad(changes, message):
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as caught:
        saprof.create_model("resnet26", **changes)
    assert message in str(caught.value)


def test_an_unknown_model_lists_the_known():
    with pytest.raises(
        ValueError, match=r"unknown model 'san50'; expected one of the \d+ names in saprof.list_models\(\)"
    ):
        saprof.create_model("san50")
