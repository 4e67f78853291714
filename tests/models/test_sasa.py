"""Stand-alone self-attention networks: stems, strided blocks, positions, projections, RetinaNet, and the counts that
SASA prints."""

import json

import pytest
import torch
from torch import nn

import saprof
from saprof import Footprint, tables
from saprof.layers import AttentionConfig, AttentionStem, StandAloneAttention
from saprof.layers.stand_alone import sinusoids
from saprof.layers.stem import BLOCK, HEADS

ROWS = [(name, row) for name, table in tables.paper("sasa").items() for row in table.rows]
SQUARE = Footprint.square(3)
TINY = {"channels": (16, 32), "blocks": (1, 1), "num_classes": 5, "heads": 4, "footprint": 3, "backend": "unfold"}


@pytest.fixture(scope="module")
def computed():
    return tables.compute(of="sasa")


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def image(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(name="sasa_resnet26", **options):
    torch.manual_seed(0)
    return saprof.create_model(name, **TINY | options).double().eval()


def attention(channels=16, footprint=SQUARE, **options):
    torch.manual_seed(0)
    config = AttentionConfig(family="stand_alone", value_reduction=1, heads=4, bias=False, backend="unfold", **options)
    return StandAloneAttention(channels, footprint, config).double()


# what SASA prints


@pytest.mark.parametrize("index", range(len(ROWS)), ids=[f"{name}-{row.model}-{row.setting}" for name, row in ROWS])
def test_row_agrees_with_the_paper_or_is_known_not_to(computed, index):
    name, printed = ROWS[index]
    row = computed[index]
    assert (row["paper"], row["table"], row["model"]) == ("sasa", name, printed.model)
    for figure, here in (("params", row["params_agree"]), ("flops", row["flops_flop2_agree"])):
        expected = None if figure == "params" and printed.params_M is None else figure not in printed.unreproduced
        assert here is expected, figure


def test_exact_counts(computed):
    """Parameters by hand: 6 w² fewer per block than a 3 × 3 convolution has, and 7 w of embeddings."""
    params = {(row["model"], row["overrides"]): row["params"] for row in computed}
    widths = [w for w, blocks in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True) for _ in range(blocks)]
    stem = "sasa_resnet50_convolution_stem"
    assert params["resnet50", "{}"] == 25_557_032
    assert params[stem, "{}"] == 25_557_032 - 6 * sum(w * w for w in widths) + 7 * sum(widths)
    assert params[stem, '{"position": "none"}'] == params[stem, "{}"] - 7 * sum(widths)
    assert params[stem, '{"logits": "position"}'] == params[stem, "{}"] - sum(w * w for w in widths)
    assert params["retinanet_resnet50", "{}"] == 33_397_364


def test_the_same_network_prints_the_same_figures():
    seen = {}
    for name, row in ROWS:
        if row.params_M is not None:
            figures = row.params_M, row.flops_G
            assert seen.setdefault((row.model, json.dumps(row.overrides)), figures) == figures, name


def test_claims_of_the_abstract(computed):
    found = [(claim.percent, claim.unreproduced, tables.saved(claim, computed)) for claim in tables.claims("sasa")]
    assert [percent for percent, _, _ in found] == [12, 29, 39, 34]
    for percent, unreproduced, here in found:
        assert (round(here) == percent) is not unreproduced, percent


def test_the_command(capsys):
    assert tables.main(["--paper", "sasa", "--table", "1,6"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert (out.count("✓"), out.count("✗")) == (19, 6)
    assert "ResNet26" in out
    assert "16.7 ✗ +0.08" in out
    assert "ImageNet: 12.2 % fewer FLOPs; the abstract says 12 % ✓" in out
    assert "17 of 22 printed figures agree" in out


def test_what_the_command_does_not_know():
    with pytest.raises(ValueError, match=r"^unknown paper 'vit'; expected 'san' or 'sasa'$"):
        tables.main(["--paper", "vit"])
    with pytest.raises(ValueError, match=r"^unknown table '8'; expected 1, 2, 3, 4, 5, 6, 7 or all$"):
        tables.main(["--paper", "sasa", "--table", "8"])


# the stem


@pytest.mark.parametrize("values", ["attention", "spatial_attention", "convolution_values"])
def test_stem_pixel_by_pixel(values):
    torch.manual_seed(0)
    stem = AttentionStem(8, values).double().eval()
    x = image(2, 3, 8, 12)
    query, key, value = stem.query(x), stem.key(x), _values(stem, x, values)
    attended = torch.zeros_like(value)
    for y, x_ in ((y, x) for y in range(8) for x in range(12)):
        block = [(y // BLOCK * BLOCK + a, x_ // BLOCK * BLOCK + b) for a in range(BLOCK) for b in range(BLOCK)]
        for head in range(HEADS):
            mine = slice(2 * head, 2 * head + 2)
            q = query[:, mine, y, x_]
            logits = []
            for r, c in block:
                row = stem.row_embedding[head, :, r - y + BLOCK - 1]
                column = stem.column_embedding[head, :, c - x_ + BLOCK - 1]
                logits.append((q * (key[:, mine, r, c] + torch.cat([row, column]))).sum(1))
            alpha = torch.stack(logits, 1).softmax(1)
            taps = torch.stack([value[:, mine, r, c] for r, c in block], 1)
            attended[:, mine, y, x_] = (alpha[:, :, None] * taps).sum(1)
    close(stem(x), nn.functional.max_pool2d(stem.bn(attended), BLOCK))
    close(stem.define(x), stem.logits(x))
    if values == "spatial_attention":
        close(stem.value.define(x), stem.value(x))


def _values(stem, x, values):
    """The values, as the paper defines them."""
    if values != "spatial_attention":
        edges = (1, 2, 1, 2) if values == "convolution_values" else (0, 0, 0, 0)
        return nn.functional.conv2d(nn.functional.pad(x, edges), stem.value.weight)
    mixed = torch.zeros(len(x), 8, *x.shape[2:], dtype=x.dtype)
    matrices = stem.value.values.weight.view(4, 8, 3)
    for y in range(x.shape[2]):
        for z in range(x.shape[3]):
            where = stem.value.row[y % BLOCK] + stem.value.column[z % BLOCK]
            share = (stem.value.mixture @ where).softmax(0)
            mixed[:, :, y, z] = x[:, :, y, z] @ (share[:, None, None] * matrices).sum(0).T
    return mixed


# blocks


@pytest.mark.parametrize("side", [8, 7])
def test_a_strided_block_attends_at_the_resolution_of_its_input(side):
    model = network(stem="convolution", stem_stride=1)
    sides = []
    for module in model.modules():
        if isinstance(module, StandAloneAttention):
            module.register_forward_hook(
                lambda _, inputs, output: sides.append((inputs[0].shape[-1], output.shape[-1]))
            )
    first, second = model.features(image(1, 3, side, side))
    assert sides == [(side, side), (side, side)]
    assert (first.shape[-1], second.shape[-1]) == (side, -(-side // 2))


def test_attention_in_chosen_stages():
    model = network(attention_stages=(2,))
    kinds = [{type(m) for m in stage.modules()} for stage in (model.layer1, model.layer2)]
    assert [StandAloneAttention in kind for kind in kinds] == [False, True]
    assert model.layer1[0].conv2.kernel_size == (3, 3)


# positions, logits, projections


def test_absolute_positions_are_added_to_the_input():
    absolute, none = attention(position="absolute"), attention(position="none")
    none.load_state_dict(absolute.state_dict())
    x = image(2, 16, 5, 6)
    encoding = sinusoids(x)
    close(absolute(x), none(x + encoding))
    rate = 10_000 ** -(2 / 8)  # of channels 2 and 3 of 8
    close(encoding[0, 2, 3], torch.full((6,), 3 * rate, dtype=torch.float64).sin())
    close(encoding[0, 3, 3], torch.full((6,), 3 * rate, dtype=torch.float64).cos())
    close(encoding[0, 8, :, 4], torch.full((5,), 4.0, dtype=torch.float64).sin())
    assert len(encoding[0].flatten(1).T.unique(dim=0)) == 30


def test_logits_of_the_position_alone_see_no_key():
    model = attention(logits="position")
    assert model.key is None
    x, other = image(1, 16, 4, 4), image(1, 16, 4, 4, seed=1)
    other[:, :, 1, 1] = x[:, :, 1, 1]  # the query stays, its neighbours change
    close(model.weights(x)[..., 5], model.weights(other)[..., 5])
    assert (model.weights(x)[..., 6] - model.weights(other)[..., 6]).abs().max() > 1e-3


def test_scaled_logits_are_those_of_a_smaller_query():
    scaled, plain = attention(scaled=True), attention()
    plain.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        plain.query.weight /= 2  # √4 channels
    x = image(2, 16, 4, 5)
    close(scaled(x), plain(x))


def test_grouped_projections_keep_heads_apart():
    grouped = attention(projection_groups=4)
    assert grouped.query.weight.numel() == 16 * 16 // 4
    x = image(1, 16, 4, 4)
    other = x.clone()
    other[:, 4:8] += 1  # what the second head reads
    changed = (grouped(x) != grouped(other)).flatten(2).any(2)[0]
    assert changed.tolist() == [channel % 4 == 1 for channel in range(16)]


@pytest.mark.parametrize("logits", ["both", "content", "position"])
@pytest.mark.parametrize("footprint", [Footprint.square(3, boundary="exclude"), Footprint.cross(5)], ids=str)
def test_fused_is_composed(footprint, logits):
    module = attention(footprint=footprint, logits=logits)
    module.backend = "numba"
    x = image(2, 16, 5, 6).requires_grad_()
    found = []
    for module.attention in ("composed", "fused"):
        y = module(x)
        assert str(module.ran).startswith(module.attention)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])])
    for fused, composed in zip(*found, strict=True):
        close(fused, composed)


# whole networks


@pytest.mark.parametrize("stem", ["convolution", "spatial_attention"])
def test_a_network_comes_back_from_disk_and_can_be_optimized(stem, tmp_path):
    model = network(stem=stem, footprint="cross:5", position="absolute")
    x = image(2, 3, 16, 16)
    saprof.save(model, tmp_path / "model.pt")
    loaded = saprof.load(tmp_path / "model.pt").eval()
    assert loaded.config == model.config
    close(loaded(x), model(x))
    close(saprof.optimize_for_inference(model)(x), model(x), 1e-9)


@pytest.mark.parametrize("predictors", ["convolution", "attention"])
def test_retinanet(predictors):
    options = {"channels": (8, 16, 32), "blocks": (1, 1, 1), "width": 16, "anchors": 2, "predictors": predictors}
    model = network("retinanet_sasa_resnet50", **options)
    y = model(image(1, 3, 64, 64))
    sides = [16, 8, 4, 2, 1]
    assert y.shape == (1, 2 * sum(side * side for side in sides), 5 + 4)
    maps = model.pyramid(model.backbone(image(1, 3, 64, 64)))
    assert [tuple(map_.shape[1:]) for map_ in maps] == [(16, s, s) for s in sides]
    close(y[0, 0, :5], model.heads.classes(maps[0], 0)[0, :5, 0, 0])


WRONG = {
    "image": (
        lambda: network()(image(1, 3, 30, 32)),
        "attention stem: axis h of the image is 30; expected a multiple of 4",
    ),
    "width": (
        lambda: network()(image(1, 3, 32, 30)),
        "attention stem: axis w of the image is 30; expected a multiple of 4",
    ),
    "heads": (lambda: network(heads=7), "heads is 7; expected a divisor of value channels = 16"),
    "half": (lambda: network(heads=16), "2 · heads is 32; expected a divisor of value channels = 16"),
    "stem": (
        lambda: network(channels=(12, 32)),
        "2 · heads of the stem is 8; expected a divisor of stem channels = 12",
    ),
    "groups": (lambda: network(projection_groups=3), "projection_groups is 3; expected a divisor of channels = 16"),
    "logits": (
        lambda: network(position="none", logits="both"),
        "logits is 'both'; expected 'content', since position is 'none'",
    ),
    "relative": (
        lambda: network(position="relative", logits="content"),
        "logits is 'content'; expected 'both' or 'position', since position is 'relative'",
    ),
    "stages": (
        lambda: network(attention_stages=2),
        "attention_stages is 2; expected a list or tuple of stages from 1 to 2",
    ),
    "stage": (lambda: network(attention_stages=(3,)), "attention_stages has 3; expected stages from 1 to 2"),
    "pixels": (
        lambda: network(stem_stride=1),
        "stem is 'spatial_attention'; expected 'convolution', since stem_stride is 1",
    ),
    "unknown": (lambda: network(stem="patches"), "unknown stem 'patches'; expected 'convolution', 'attention', "),
    "family": (lambda: network(family="pairwise"), "unknown family of SASA 'pairwise'; expected 'stand_alone'"),
    "strided": (lambda: network(footprint="square:3 stride=2"), "has stride 2; expected 1 inside a residual block"),
    "unread": (
        lambda: network(attention_stages=(), footprint=5),
        "footprint is square:5 boundary=exclude; expected 7, since nothing attends",
    ),
    "pyramid": (
        lambda: network("retinanet_sasa_resnet50"),
        "channels has 2 stages; expected 3 at least, for the pyramid",
    ),
    "embedding": (
        lambda: _other_footprint(attention())(image(1, 16, 4, 4)),
        "axis k of the relative embedding is 9; expected 5, the taps of footprint cross:3",
    ),
    "gamma": (
        lambda: _other_footprint(saprof.create_model("san_mini_patchwise").stages[0].blocks[0].attention)(
            torch.randn(1, 32, 8, 8)
        ),
        "patchwise_concatenation: axis k of γ is 49; expected 5, the taps of footprint cross:3, since a patchwise γ",
    ),
}


def _other_footprint(module):
    module.footprint = Footprint.cross(3)
    return module


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_does_not_fit(wrong):
    act, sentence = wrong
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as caught:
        act()
    assert sentence in str(caught.value)
