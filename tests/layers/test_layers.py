"""The attention modules against literal loops over centres and taps, and their invariances."""

import math

import numpy as np
import pytest
import released_code
import torch
import torch.nn.functional as F
from torch import nn

import saprof
from saprof import Footprint
from saprof.layers import (
    AttentionConfig,
    PairwiseAttention,
    PatchwiseAttention,
    SelfAttentionBlock,
    StandAloneAttention,
    Transition,
    coordinates,
)
from saprof.models.checkpoints import official_to_ours
from saprof.operators import RELATIONS
from saprof.operators.footprint import BOUNDARIES

SMALL = {"relation_reduction": 8, "value_reduction": 2, "share": 4}
"""φ and ψ of C / 8 channels, β of C / 2, four of which share a weight: C = 32 gives 4, 16 and 4 groups."""

NUMPY = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "zero": "constant", "exclude": "constant"}

IRREGULAR = Footprint.from_offsets([(2, 1), (0, 0), (-3, 4), (0, -1)])


def build(kind, footprint, channels=32, **config):
    """A module in float64, whose every parameter and statistic is random."""
    family = {PairwiseAttention: "pairwise", PatchwiseAttention: "patchwise", StandAloneAttention: "stand_alone"}[kind]
    options = {"value_reduction": 2} if family == "stand_alone" else SMALL
    torch.manual_seed(0)
    module = kind(channels, footprint, AttentionConfig(family=family, **{"backend": "unfold"} | options | config))
    for name, x in module.state_dict().items():
        if x.is_floating_point():
            noise = 0.3 * torch.randn(x.shape)
            x.copy_(1 + noise.tanh() if name.endswith("running_var") else x + noise)
    return module.double()


def image(*shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def source(coordinate, size, boundary):
    """The position that a coordinate reads, as in numpy's padding; None if it reads nothing."""
    reach = 20
    values = {"constant_values": -1} if NUMPY[boundary] == "constant" else {}
    index = np.pad(np.arange(size), reach, mode=NUMPY[boundary], **values)[coordinate + reach]
    return None if index < 0 else int(index)


def neighbours(footprint, h, w):
    """(centre, [its taps: (row, column), or None outside the map])."""
    for y in range(h):
        for x in range(w):
            taps = []
            for dy, dx in footprint.offsets:
                tap = source(y + dy, h, footprint.boundary), source(x + dx, w, footprint.boundary)
                taps.append(None if None in tap else tap)
            yield (y, x), taps


def vector(features, at):
    """The features of one image at a position; zeros outside."""
    return torch.zeros_like(features[0, :, 0, 0]) if at is None else features[0, :, at[0], at[1]]


# the invariants of the released code


def test_the_block_is_the_released_block():
    for family in ("pairwise", "patchwise"):
        weights = released_code.weights(family, (1,), channels=(64,), sizes=(5,))
        block = (
            SelfAttentionBlock(64, Footprint.square(5), AttentionConfig(family=family, backend="unfold"))
            .double()
            .eval()
        )
        prefix = "layer0.0."
        renamed = {official_to_ours(k).removeprefix("stages.0.blocks.0."): v for k, v in weights.items() if prefix in k}
        block.load_state_dict(renamed)
        x = image(2, 64, 7, 9)
        close(block(x), released_code.block(weights, "layer0.0", x, 5))


def test_the_loss_does_not_see_what_cancels():
    attention = build(PairwiseAttention, Footprint.square(3)).train()
    y = attention(image(2, 32, 6, 5))
    (y * image(*y.shape, seed=2)).sum().backward()
    cancelled = {"phi.bias", "psi.bias", "position.bias", f"gamma.{len(attention.gamma) - 1}.bias"}
    for name, parameter in attention.named_parameters():
        largest = parameter.grad.abs().max().item()
        assert (largest < 1e-12) == (name in cancelled), (name, largest)


@pytest.mark.parametrize("footprint", [Footprint.square(7), Footprint.disk(5), IRREGULAR], ids=str)
def test_only_patchwise_parameters_depend_on_the_footprint(footprint):
    def shapes(kind, footprint):
        return {name: x.shape for name, x in build(kind, footprint).state_dict().items()}

    assert shapes(PairwiseAttention, footprint) == shapes(PairwiseAttention, Footprint.square(3))
    assert shapes(PatchwiseAttention, footprint) != shapes(PatchwiseAttention, Footprint.square(3))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_pairwise_attention_is_a_set_operation(training, boundary):
    taps = Footprint.square(3).offsets
    shuffled = [taps[i] for i in (3, 8, 0, 5, 1, 4, 7, 2, 6)]
    x = image(2, 32, 4, 5)

    def attend(kind, offsets):
        return build(kind, Footprint.from_offsets(offsets, boundary=boundary)).train(training)(x)

    close(attend(PairwiseAttention, shuffled), attend(PairwiseAttention, taps))
    assert (attend(PatchwiseAttention, shuffled) - attend(PatchwiseAttention, taps)).abs().max() > 0.1


@pytest.mark.parametrize("sizes", [(7, 9), (2, 3)], ids=["map", "map smaller than the reach"])
@pytest.mark.parametrize("k", [3, 5])
def test_patchwise_attention_with_constant_weights_is_a_convolution(k, sizes):
    attention = build(PatchwiseAttention, Footprint.square(k))
    last = attention.gamma[-1]
    nn.init.zeros_(last.weight)
    groups, channels = attention.groups, attention.value_channels
    kernels = last.bias.detach().reshape(groups, 1, k, k).repeat(channels // groups, 1, 1, 1)  # channel c: c mod g
    x = image(2, 32, *sizes)
    expected = F.conv2d(released_code.pad(attention.beta(x), k // 2), kernels, groups=channels)
    close(attention(x), expected)


def test_channels_share_weights_interleaved():
    attention = build(PatchwiseAttention, Footprint.square(3))
    for layer in (attention.gamma[-1], attention.beta):
        nn.init.zeros_(layer.weight)
    nn.init.ones_(attention.beta.bias)
    sums = attention.gamma[-1].bias.reshape(attention.groups, 9).sum(1)
    y = attention(image(1, 32, 3, 3))
    assert (attention.groups, attention.value_channels) == (4, 16)
    for channel in range(16):
        close(y[0, channel], sums[channel % 4].expand(3, 3))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("footprint", [Footprint.square(3), Footprint.square(4), IRREGULAR], ids=str)
def test_batch_statistics_of_the_relation_need_no_footprint_sized_tensor(footprint, boundary):
    footprint = footprint.with_(boundary=boundary)
    attention = build(PairwiseAttention, footprint, position="none").train()
    norm = attention.gamma[0]
    norm.momentum = 1.0  # running statistics are those of the last batch
    x = image(2, 32, 6, 5)
    attention(x)

    phi, psi = attention.phi(x), attention.psi(x)

    def box(z):
        """The mean over the footprint, at every centre."""
        means = torch.zeros_like(z)
        for (row, column), taps in neighbours(footprint, 6, 5):
            for y, x in filter(None, taps):
                means[..., row, column] += z[..., y, x] / len(taps)
        return means

    mean = (phi - box(psi)).mean((0, 2, 3))
    second_moment = (phi**2 - 2 * phi * box(psi) + box(psi**2)).mean((0, 2, 3))
    count = footprint.taps * phi[:, 0].numel()
    close(norm.running_mean, mean)
    close(norm.running_var, (second_moment - mean**2) * count / (count - 1))


# literal attention


def literal_pairwise(attention, x):
    """SAN Eq. 2 and 3 with the subtraction relation and relative positions: one centre and one tap at a time."""
    footprint = attention.footprint
    h, w = x.shape[-2:]
    phi, psi, beta = attention.phi(x), attention.psi(x), attention.beta(x)
    x_axis, y_axis = ([-1 + 2 * i / max(side - 1, 1) for i in range(side)] for side in (w, h))
    xy = torch.tensor([[[x_axis[j], y_axis[i]] for j in range(w)] for i in range(h)], dtype=x.dtype)
    p = xy @ attention.position.weight[:, :, 0, 0].T + attention.position.bias
    p = p.permute(2, 0, 1)[None]
    y = torch.zeros_like(beta)
    for centre, taps in neighbours(footprint, h, w):
        if footprint.boundary == "exclude":
            taps = [tap for tap in taps if tap is not None]
        if not taps:
            continue
        relations = [
            torch.cat([vector(phi, centre) - vector(psi, tap), vector(p, centre) - vector(p, tap)]) for tap in taps
        ]
        logits = attention.gamma(torch.stack(relations)[:, :, None, None])[:, :, 0, 0]  # k g
        weights = logits.exp() / logits.exp().sum(0)
        for c in range(beta.shape[1]):
            values = torch.stack([vector(beta, tap)[c] for tap in taps])
            y[0, c, centre[0], centre[1]] = (weights[:, c % attention.groups] * values).sum()
    return y


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("footprint", [Footprint.square(3), Footprint.disk(5), IRREGULAR], ids=str)
def test_pairwise_attention_is_the_equation(footprint, boundary):
    attention = build(PairwiseAttention, footprint.with_(boundary=boundary)).eval()
    x = image(1, 32, 4, 3)
    close(attention(x), literal_pairwise(attention, x))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_centre_without_any_tap_is_zero(dtype, training):
    footprint = Footprint.from_offsets([(2, 0), (2, 1)], boundary="exclude")
    attention = build(PairwiseAttention, footprint).to(dtype).train(training)
    x = image(2, 32, 4, 3).to(dtype).requires_grad_()
    y = attention(x)
    assert y.isfinite().all()
    assert y[:, :, :2].abs().min() > 0  # two rows of centres reach the map
    assert not y[:, :, 2:].any()
    y.sum().backward()
    for gradient in [x.grad, *(parameter.grad for parameter in attention.parameters())]:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("larger", [Footprint.square(11), Footprint.rectangle(7, 15), Footprint.square(8)], ids=str)
def test_excluding_makes_a_footprint_beyond_the_map_global(larger):
    x = image(1, 32, 4, 3)
    attend = build(PairwiseAttention, Footprint.square(7, boundary="exclude")).eval()
    other = build(PairwiseAttention, larger.with_(boundary="exclude")).eval()
    close(other(x), attend(x))
    zero = build(PairwiseAttention, larger.with_(boundary="zero")).eval()
    assert (zero(x) - attend(x)).abs().max() > 1e-3


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("footprint", [Footprint.square(3), Footprint.cross(5), IRREGULAR], ids=str)
def test_stand_alone_attention_is_multi_head_attention_with_relative_embeddings(footprint, boundary):
    footprint = footprint.with_(boundary=boundary)
    attention = build(StandAloneAttention, footprint, heads=4)
    x = image(1, 32, 4, 3)
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    rows = sorted({dy for dy, _ in footprint.offsets})
    columns = sorted({dx for _, dx in footprint.offsets})
    expected = torch.zeros_like(value)
    for centre, taps in neighbours(footprint, 4, 3):
        for head in range(4):
            mine = slice(head, None, 4)  # heads are interleaved over the channels
            q = vector(query, centre)[mine]
            logits, values = [], []
            for (dy, dx), tap in zip(footprint.offsets, taps, strict=True):
                if tap is None and boundary == "exclude":
                    continue
                row = attention.row_embedding[head, :, rows.index(dy)]
                column = attention.column_embedding[head, :, columns.index(dx)]
                logits.append(q @ vector(key, tap)[mine] + q @ torch.cat([row, column]))
                values.append(vector(value, tap)[mine])
            if logits:
                weights = torch.stack(logits).softmax(0)
                expected[0, mine, centre[0], centre[1]] = weights @ torch.stack(values)
    close(attention(x), expected)


# parts


@pytest.mark.parametrize(("h", "w"), [(3, 5), (1, 4), (4, 1), (1, 1)])
def test_coordinates_are_horizontal_then_vertical(h, w):
    across, down = coordinates((h, w), torch.zeros((), dtype=torch.float64))[0]
    assert across.shape == down.shape == (h, w)
    for y in range(h):
        for x in range(w):
            close(across[y, x].item(), -1 + 2 * x / (w - 1) if w > 1 else -1.0)
            close(down[y, x].item(), -1 + 2 * y / (h - 1) if h > 1 else -1.0)


def test_positions_keep_their_precision_under_autocast():
    attention = PairwiseAttention(32, Footprint.square(3), AttentionConfig(**SMALL))
    expected = attention.position_relation((112, 112))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.position_relation((112, 112)), expected)


def test_absolute_positions_are_those_of_the_tap():
    attention = build(PairwiseAttention, Footprint.from_offsets([(0, 0), (0, 1)]), position="absolute")
    p = attention.position(coordinates((3, 4), torch.zeros((), dtype=torch.float64)))[0]
    relation = attention.position_relation((3, 4)).reshape(2, 2, 3, 4)
    close(relation[:, 0], p)
    close(relation[:, 1, :, :-1], p[:, :, 1:])


@pytest.mark.parametrize(
    ("kind", "family", "shared"),
    [
        (kind, family, shared)
        for kind, family in ((PairwiseAttention, "pairwise"), (PatchwiseAttention, "patchwise"))
        for shared in ("shared_phi_psi", "shared")
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_shared_transformation_is_one_layer(kind, family, shared):
    reductions = {"relation_reduction": None} if shared == "shared" else {}
    attention = build(kind, Footprint.square(3), transformations=shared, **reductions)
    calls = []
    attention.phi.register_forward_hook(lambda *_: calls.append(1))
    phi, psi, beta = attention.transform(image(1, 32, 4, 4))
    assert calls == [1]
    assert psi is phi
    assert (beta is phi) == (shared == "shared")


@pytest.mark.parametrize("offsets", [[(0, 0), (0, 1)], [(0, 1), (0, 2)]], ids=["centre a tap", "centre no tap"])
def test_a_shared_centre_is_counted_once(offsets):
    footprint = Footprint.from_offsets(offsets)
    attention = build(PatchwiseAttention, footprint, transformations="shared_phi_psi")
    r = attention.phi.out_channels
    assert attention.gamma[0].num_features == (2 * r if (0, 0) in offsets else 3 * r)
    assert attention(image(1, 32, 4, 4)).shape == (1, 16, 4, 4)


@pytest.mark.parametrize(("h", "w"), [(6, 4), (7, 5), (1, 4), (3, 1), (1, 1)])
def test_a_transition_halves_sides_above_one(h, w):
    transition = Transition(3, 5).double()
    x = image(2, 3, h, w)
    y = transition(x)
    assert y.shape == (2, 5, max(h // 2, 1), max(w // 2, 1))
    for row, column in ((0, 0), (y.shape[2] - 1, y.shape[3] - 1)):
        most = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].amax((2, 3))
        close(y[:, :, row, column], most @ transition.linear.weight[:, :, 0, 0].T)


# every variant

VARIANTS = [
    {"family": family, "relation": relation, "mapping": mapping, "transformations": transformations, "position": p}
    for family in RELATIONS
    for relation in RELATIONS[family]
    for mapping in ("l", "lrl", "lrlrl")
    for transformations in ("distinct", "shared_phi_psi", "shared")
    for p in (("none", "absolute", "relative") if family == "pairwise" else ("none",))
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.values()))
def test_every_variant_learns(variant):
    reduction = None if variant["transformations"] == "shared" else 8
    network = {"channels": (32, 64), "blocks": (1, 1), "footprints": (3, 3), "num_classes": 3}
    config = saprof.SANConfig(**network, **SMALL | {"relation_reduction": reduction}, **variant)
    torch.manual_seed(0)
    model = saprof.SAN(config)
    loss = F.cross_entropy(model(torch.randn(2, 3, 8, 8)), torch.tensor([0, 1]))
    loss.backward()
    assert math.isfinite(loss.item())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("boundary", ["reflect", "exclude"])
@pytest.mark.parametrize("kind", [PairwiseAttention, PatchwiseAttention, StandAloneAttention])
def test_the_weights_are_those_that_the_output_is_made_of(kind, boundary):
    module = build(kind, Footprint.square(3, boundary=boundary)).eval()
    x = image(2, 32, 4, 5)
    alpha = module.weights(x)
    beta = module.value(x) if kind is StandAloneAttention else module.transform(x)[2]
    close(saprof.aggregation(alpha, beta, footprint=module.footprint), module(x))
    if kind is not PatchwiseAttention:
        close(alpha.sum(2), torch.ones_like(alpha[:, :, 0]))


@pytest.mark.parametrize("attention", ["composed", "fused"])
def test_the_weights_of_a_network(attention):
    model = saprof.create_model("san_mini_patchwise", attention=attention).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    found = saprof.attention_weights(model, images)
    assert {name: tuple(alpha.shape) for name, alpha in found.items()} == {
        "stages.0.blocks.0.attention": (2, 4, 49, 64),
        "stages.1.blocks.0.attention": (2, 8, 9, 16),
    }
    assert not any(alpha.requires_grad for alpha in found.values())
    close(before, model.state_dict())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_networks_without_weights_to_see():
    with pytest.raises(ValueError, match=r"expected model\.eval\(\)"):
        saprof.attention_weights(saprof.create_model("san_mini_pairwise"), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="ResNet has no attention"):
        saprof.attention_weights(saprof.create_model("resnet_mini").eval(), torch.zeros(1, 3, 8, 8))
