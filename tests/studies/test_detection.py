"""Boxes, anchors, targets, losses and detections: against loops in float64, and against torchvision's parts."""

import itertools
import math
import re

import pytest
import torch
from torch import tensor
from torchvision_here import torchvision

import saprof
from studies.detection import anchors as anchor
from studies.detection import boxes as box
from studies.detection import losses as loss
from studies.detection import matching, postprocess
from studies.detection.losses import Losses, Targets
from studies.detection.matching import BACKGROUND, IGNORED, Matching, match
from studies.detection.postprocess import Selection, detections, suppress


def random_boxes(count, side=50.0, seed=0, dtype=torch.float32, whole=False):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * side
    size = 1 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * side / 2
    boxes = torch.cat([low, low + size], 1)
    return (boxes.round() if whole else boxes).to(dtype)


# overlaps


def by_hand(a, b):
    """IoU and generalised IoU of two boxes, as numbers."""
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    inside = max(sides[0], 0) * max(sides[1], 0)
    areas = [max(x[2] - x[0], 0) * max(x[3] - x[1], 0) for x in (a, b)]
    union = sum(areas) - inside
    hull = max(max(a[2], b[2]) - min(a[0], b[0]), 0) * max(max(a[3], b[3]) - min(a[1], b[1]), 0)
    iou = inside / union if union else 0.0
    return iou, iou - (hull - union) / hull if hull else 0.0


DEGENERATE = tensor([[3, 3, 3, 3], [0, 0, 5, 0], [4, 4, 2, 2], [0, 0, 1, 1], [0, 0, 5, 5], [5, 5, 9, 9]]).double()


@pytest.mark.parametrize("boxes", [random_boxes(12, dtype=torch.float64), DEGENERATE], ids=["random", "degenerate"])
def test_overlaps_are_those_of_a_loop(boxes):
    iou, generalised = box.pairwise_iou(boxes, boxes), box.generalised_iou(boxes[:, None], boxes[None])
    for i, j in itertools.product(range(len(boxes)), repeat=2):
        expected = by_hand(boxes[i].tolist(), boxes[j].tolist())
        assert (iou[i, j].item(), generalised[i, j].item()) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(iou, iou.T)


def test_overlaps_of_torchvision():
    torchvision()
    from torchvision.ops import boxes as theirs

    a, b = random_boxes(9), random_boxes(7, seed=1)
    torch.testing.assert_close(box.area(a), theirs.box_area(a))
    torch.testing.assert_close(box.pairwise_iou(a, b), theirs.box_iou(a, b))
    torch.testing.assert_close(box.generalised_iou(a[:, None], b[None]), theirs.generalized_box_iou(a, b))
    torch.testing.assert_close(box.clip(a - 10, (30, 20)), theirs.clip_boxes_to_image(a - 10, (30, 20)))


def test_no_boxes():
    none, some = torch.empty(0, 4), random_boxes(3)
    assert box.pairwise_iou(none, some).shape == (0, 3)
    assert box.pairwise_iou(some, none).shape == (3, 0)
    assert box.encode(none, none).shape == box.decode(none, none).shape == box.clip(none, (3, 4)).shape == (0, 4)
    box.check(none)


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        ([[0, 0, 1, 1], [0, 0, math.nan, 1]], "boxes[1] is [0.0, 0.0, nan, 1.0], no finite box; expected x0 < x1"),
        ([[0, 0, math.inf, 1]], "boxes[0] is [0.0, 0.0, inf, 1.0], no finite box; expected x0 < x1 and y0 < y1"),
        ([[2, 0, 2, 1]], "boxes[0] is [2.0, 0.0, 2.0, 1.0], an empty box; expected x0 < x1 and y0 < y1"),
        ([[0, 3, 2, 1]], "boxes[0] is [0.0, 3.0, 2.0, 1.0], an empty box; expected x0 < x1 and y0 < y1"),
        ([0, 0, 1, 1], "boxes has shape (4,); expected (n, 4), as x0, y0, x1, y1"),
        ([[0, 0, 1, 1, 1]], "boxes has shape (1, 5); expected (n, 4), as x0, y0, x1, y1"),
    ],
)
def test_bad_boxes_are_named(boxes, sentence):
    for act in (box.check, lambda given: match(given, random_boxes(3))):
        with pytest.raises(ValueError, match=rf"\A{re.escape(sentence)}"):
            act(tensor(boxes, dtype=torch.float32))


# offsets


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)], ids=str)
def test_offsets_come_back_and_are_torchvisions(weights):
    torchvision()
    from torchvision.models.detection._utils import BoxCoder

    boxes, anchors = random_boxes(20), random_boxes(20, seed=1)
    offsets = box.encode(boxes, anchors, weights)
    torch.testing.assert_close(box.decode(offsets, anchors, weights), boxes)
    torch.testing.assert_close(offsets, BoxCoder(weights).encode_single(boxes, anchors))
    wild = offsets * 20
    torch.testing.assert_close(box.decode(wild, anchors, weights), BoxCoder(weights).decode_single(wild, anchors))
    assert box.decode(offsets * 1e30, anchors, weights)[:, 2:].isnan().sum() == 0


def test_offsets_by_hand():
    found = box.encode(tensor([[10.0, 10, 30, 20]]), tensor([[0.0, 0, 10, 10]]), (1, 2, 3, 4))
    torch.testing.assert_close(found, tensor([[1.5, 2 * 1.0, 3 * math.log(2), 0.0]]))


# anchors


def test_anchors_of_torchvision():
    torchvision()
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.retinanet import _default_anchorgen

    for height, width in ((128, 96), (65, 97)):
        sizes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
        expected = _default_anchorgen()(
            ImageList(torch.empty(1, 3, height, width), [(height, width)]), [torch.empty(1, 1, *size) for size in sizes]
        )[0]
        found = anchor.TORCHVISION.boxes((height, width), sizes, (8, 16, 32, 64, 128), like=expected)
        assert anchor.TORCHVISION.count == 9
        assert torch.equal(torch.cat(found), expected)


def test_anchors_of_sasa_by_hand():
    like = torch.empty(0, dtype=torch.float64)
    (fine, coarse) = anchor.SASA.boxes((16, 24), [(2, 3), (1, 1)], (8, 16), like=like)
    assert anchor.SASA.count == 6
    assert (len(fine), len(coarse)) == (2 * 3 * 6, 6)
    row = 0
    for y, x in itertools.product(range(2), range(3)):
        for octave in (1, 2**0.5):
            for w, h in ((1, 1), (1.4, 0.7), (0.7, 1.4)):
                size = 4 * 8 * octave
                centre = (8 * x + 4, 8 * y + 4)
                expected = [centre[0] - size * w / 2, centre[1] - size * h / 2]
                expected += [centre[0] + size * w / 2, centre[1] + size * h / 2]
                assert fine[row].tolist() == pytest.approx(expected, abs=1e-9)
                row += 1
    assert coarse[0].tolist() == [8 - 32, 8 - 32, 8 + 32, 8 + 32]


def test_anchors_fit_the_outputs_of_the_network():
    config = {"channels": (8, 16, 32), "blocks": (1, 1, 1), "width": 16, "num_classes": 5, "stem": "convolution"}
    config |= {"attention_stages": (), "predictors": "convolution", "heads": 4}
    model = saprof.create_model("retinanet_resnet50", **config).eval()
    found = model.predict(torch.randn(1, 3, 50, 70))
    levels = anchor.SASA.boxes((50, 70), found.sizes, model.strides, like=found.offsets)
    assert sum(map(len, levels)) == found.logits.shape[1]
    assert levels[0].dtype == found.offsets.dtype
    assert [len(level) for level in levels][-1] == 6 * found.sizes[-1][0] * found.sizes[-1][1]


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: anchor.Anchors(octaves=(0.0,), aspects=((1, 1),)), "an anchor has the factor 0.0; expected positive"),
        (lambda: anchor.Anchors(octaves=(1.0,), aspects=((1, math.nan),)), "an anchor has the factor nan; expected"),
        (lambda: anchor.Anchors(octaves=(), aspects=((1, 1),)), "octaves or aspects are empty; expected one of each"),
        (
            lambda: anchor.SASA.boxes((8, 8), [(1, 1)], (8, 16), like=torch.empty(0)),
            "there are 1 maps and 2 strides; expected one stride per map",
        ),
        (lambda: Matching(background=0.6), "background is 0.6 and foreground 0.5; expected 0 < background"),
        (lambda: Losses(boxes="iou"), "unknown loss of boxes 'iou'; expected 'l1', 'huber' or 'generalised_iou'"),
        (lambda: Losses(divisor="none"), "unknown divisor 'none'; expected 'image' or 'batch'"),
        (lambda: Losses(alpha=2), "alpha is 2; expected a number from 0 to 1"),
        (lambda: Losses(gamma=math.nan), "gamma is nan; expected a finite number, 0 or more"),
        (lambda: Losses(delta=0), "delta is 0; expected a positive number"),
        (lambda: Selection(score=1.5), "score is 1.5; expected a number from 0 to 1"),
        (lambda: Selection(most=0), "most is 0; expected a positive integer"),
    ],
)
def test_settings_that_do_not_fit(act, sentence):
    with pytest.raises(ValueError, match=rf"\A{re.escape(sentence)}"):
        act()


# matching


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("background", [0.4, 0.5])
def test_matches_are_those_of_torchvision(background, low_quality):
    torchvision()
    from torchvision.models.detection._utils import Matcher

    how = Matching(foreground=0.5, background=background, keeps_low_quality=low_quality)
    for seed in range(5):
        boxes, anchors = random_boxes(6, seed=seed), random_boxes(300, seed=seed + 50)
        expected = Matcher(0.5, background, low_quality)(box.pairwise_iou(boxes, anchors))
        found = match(boxes, anchors, how)
        assert torch.equal(found, expected)
    assert (found >= 0).any()
    assert (found == BACKGROUND).any()
    assert bool((found == IGNORED).any()) is (background == 0.4)


def test_matches_by_hand():
    anchors = tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 3], [50, 50, 60, 60], [90, 90, 99, 99]])
    boxes = tensor([[0.0, 0, 10, 10], [55, 50, 75, 60]])
    assert match(boxes, anchors, Matching()).tolist() == [0, IGNORED, BACKGROUND, 1, BACKGROUND]
    assert match(boxes, anchors, Matching(keeps_low_quality=False)).tolist() == [0, -2, -1, -1, -1]
    assert match(boxes, anchors, matching.SASA).tolist() == [0, -1, -1, 1, -1]


def test_crowds_no_boxes_and_boxes_far_away():
    anchors = random_boxes(8)
    nothing = torch.full((8,), BACKGROUND)
    assert torch.equal(match(torch.empty(0, 4), anchors), nothing)
    assert torch.equal(match(anchors[:2], anchors, crowd=tensor([True, True])), nothing)
    found = match(anchors[:2], anchors, crowd=tensor([True, False]))
    assert found[1] == 1
    assert 0 not in found
    assert torch.equal(match(anchors[:1] + 1000, anchors), nothing), "it overlaps nothing, so it matches nothing"
    assert match(anchors[:2], torch.empty(0, 4)).shape == (0,)


def test_of_equal_boxes_the_first_is_matched():
    anchors = random_boxes(5)
    assert match(anchors[[2, 2, 2]], anchors)[2] == 0


# losses


def batch(seed=0, classes=4):
    generator = torch.Generator().manual_seed(seed)
    anchors = random_boxes(80, seed=9)
    targets = []
    for image in range(3):
        boxes = anchors[torch.randperm(80, generator=generator)[: 2 * image]] + 0.5  # none in the first image
        labels = torch.randint(classes, (len(boxes),), generator=generator)
        targets.append(Targets(boxes, labels, match(boxes, anchors)))
    logits = torch.randn(3, 80, classes, generator=generator)
    return logits, torch.randn(3, 80, 4, generator=generator), anchors, targets


def test_losses_are_those_of_torchvision():
    torchvision()
    from torchvision.models.detection.retinanet import RetinaNetHead

    logits, offsets, anchors, targets = batch()
    head = RetinaNetHead(4, 1, 4)
    expected = head.compute_loss(
        [{"boxes": target.boxes, "labels": target.labels} for target in targets],
        {"cls_logits": logits, "bbox_regression": offsets},
        [anchors] * 3,
        [target.matched for target in targets],
    )
    found = loss.losses(logits, offsets, anchors, targets)
    torch.testing.assert_close(found.classes, expected["classification"])
    torch.testing.assert_close(found.boxes, expected["bbox_regression"])


@pytest.mark.parametrize("kind", loss.BOX_LOSSES)
@pytest.mark.parametrize("divisor", loss.DIVISORS)
def test_losses_are_those_of_a_loop(kind, divisor):
    logits, offsets, anchors, targets = batch(seed=1)
    how = Losses(gamma=1.5, boxes=kind, divisor=divisor, box_weight=50.0, offset_weights=(1.0, 1.0, 2.0, 2.0))
    sums, counts = [], []
    for image, target in enumerate(targets):
        classes = boxes = 0.0
        for a, number in enumerate(target.matched.tolist()):
            for c in range(4) if number != IGNORED else ():
                p = 1 / (1 + math.exp(-logits[image, a, c].item()))
                there = number >= 0 and target.labels[number] == c
                classes += 0.25 * (1 - p) ** 1.5 * -math.log(p) if there else 0.75 * p**1.5 * -math.log(1 - p)
            if number >= 0:
                boxes += _of_one(offsets[image, a], target.boxes[number], anchors[a], how)
        sums.append((classes, boxes))
        counts.append((target.matched >= 0).sum().item())
    assert sum(counts) > 4
    if divisor == "image":
        expected = [sum(s[i] / max(n, 1) for s, n in zip(sums, counts, strict=True)) / 3 for i in (0, 1)]
    else:
        expected = [sum(s[i] for s in sums) / (sum(counts) + 1) for i in (0, 1)]
        expected[1] /= 1 if kind == "generalised_iou" else 4
    found = loss.losses(logits, offsets, anchors, targets, how)
    assert [x.item() for x in found] == pytest.approx([expected[0], 50 * expected[1]], rel=1e-4)


def _of_one(offsets, boxes, anchor_, how):
    if how.boxes == "generalised_iou":
        decoded = box.decode(offsets.double(), anchor_.double(), how.offset_weights)
        return 1 - by_hand(decoded.tolist(), boxes.tolist())[1]
    errors = (offsets - box.encode(boxes, anchor_, how.offset_weights)).abs().tolist()
    if how.boxes == "l1":
        return sum(errors)
    return sum(0.5 * e * e if e < how.delta else how.delta * (e - how.delta / 2) for e in errors)


@pytest.mark.parametrize("kind", loss.BOX_LOSSES)
def test_gradients_of_losses(kind):
    logits, offsets, anchors, targets = batch(seed=2)
    logits, offsets = logits.double()[:, :20].requires_grad_(), offsets.double()[:, :20].requires_grad_()
    anchors = anchors.double()[:20]
    targets = [t._replace(boxes=anchors[: len(t.boxes)] + 0.3) for t in targets]
    targets = [t._replace(matched=match(t.boxes, anchors)) for t in targets]
    how = Losses(boxes=kind)
    assert torch.autograd.gradcheck(lambda a, b: tuple(loss.losses(a, b, anchors, targets, how)), (logits, offsets))


def test_a_batch_without_objects_has_no_loss_of_boxes_and_finite_gradients():
    anchors = random_boxes(6)
    logits, offsets = torch.randn(1, 6, 3).requires_grad_(), torch.randn(1, 6, 4).requires_grad_()
    nothing = Targets(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), match(torch.empty(0, 4), anchors))
    for kind, divisor in itertools.product(loss.BOX_LOSSES, loss.DIVISORS):
        found = loss.losses(logits, offsets, anchors, [nothing], Losses(boxes=kind, divisor=divisor))
        assert found.boxes == 0
        assert all(g.isfinite().all() for g in torch.autograd.grad(sum(found), [logits, offsets]))


def test_large_logits_have_finite_losses():
    extreme = tensor([1e4, -1e4]).requires_grad_()
    for present in (torch.zeros(2), torch.ones(2)):
        found = loss.focal_loss(extreme, present, gamma=1.5)
        assert found.isfinite().all()
        assert torch.autograd.grad(found.sum(), extreme)[0].isfinite().all()


def test_targets_that_do_not_fit():
    logits, offsets, anchors, targets = batch()
    with pytest.raises(ValueError, match=r"^there are 2 targets and 3 images; expected one per image$"):
        loss.losses(logits, offsets, anchors, targets[:2])
    targets[2].labels[0] = 4
    with pytest.raises(ValueError, match=r"^image 2 of the batch has the label 4; expected 0 to 3$"):
        loss.losses(logits, offsets, anchors, targets)


# detections


def greedy(boxes, scores, labels, overlap):
    """Suppression as it is defined, in Python's numbers."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i)):
        same = [k for k in kept if labels[k] == labels[i]]
        if all(by_hand(boxes[k].tolist(), boxes[i].tolist())[0] <= overlap for k in same):
            kept.append(i)
    return kept


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
def test_suppression_is_greedy(tied, overlap):
    boxes, generator = random_boxes(60, whole=True), torch.Generator().manual_seed(3)
    scores = torch.rand(60, generator=generator)
    scores = (scores * 4).round() / 4 if tied else scores
    labels = torch.randint(3, (60,), generator=generator)
    expected = greedy(boxes, scores, labels, overlap)
    assert suppress(boxes, scores, labels, overlap).tolist() == expected
    assert suppress(boxes, scores, labels, overlap, most=5).tolist() == expected[:5]


def test_suppression_of_nothing_of_copies_and_of_empty_boxes():
    none = suppress(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64), 0.5)
    assert none.tolist() == []
    copies = torch.ones(4, 1) * tensor([1.0, 1, 5, 5])
    assert suppress(copies, torch.ones(4), tensor([0, 0, 1, 0]), 0.5).tolist() == [0, 2]
    assert suppress(torch.zeros(3, 4), torch.ones(3), torch.zeros(3), 0.5).tolist() == [0, 1, 2]


def test_suppression_is_torchvisions():
    torchvision()
    from torchvision.ops import batched_nms

    boxes, generator = random_boxes(200), torch.Generator().manual_seed(4)
    scores, labels = torch.rand(200, generator=generator), torch.randint(5, (200,), generator=generator)
    try:
        expected = batched_nms(boxes, scores, labels, 0.5)
    except (NotImplementedError, RuntimeError) as error:
        if "C++ ops" not in str(error) and not isinstance(error, NotImplementedError):
            raise
        pytest.skip("this torchvision was built for another torch, and has no nms")
    assert torch.equal(suppress(boxes, scores, labels, 0.5), expected)


def test_detections_are_those_of_torchvision(monkeypatch):
    """With its own order of steps, and our suppression in the place of its compiled one."""
    torchvision()
    from torchvision.models.detection import retinanet

    monkeypatch.setattr(retinanet.box_ops, "batched_nms", suppress)
    sizes, images = [90, 30, 6], [(40, 60), (64, 64)]
    anchors = list(random_boxes(sum(sizes), side=60.0).split(sizes))
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, sum(sizes), 4, generator=generator) * 2 - 2
    offsets = torch.randn(2, sum(sizes), 4, generator=generator) / 2
    how = Selection(per_level=50, most=20)
    model = retinanet.RetinaNet(_Backbone(), 4, topk_candidates=50, detections_per_img=20)
    outputs = {"cls_logits": logits.split(sizes, 1), "bbox_regression": offsets.split(sizes, 1)}
    expected = model.postprocess_detections(outputs, [anchors, anchors], images)
    found = detections(logits, offsets, anchors, images, how)
    for one, other in zip(found, expected, strict=True):
        assert len(one.scores) == 20
        assert torch.equal(one.labels, other["labels"])
        torch.testing.assert_close(one.scores, other["scores"])
        torch.testing.assert_close(one.boxes, other["boxes"])


class _Backbone(torch.nn.Module):
    out_channels = 8


def test_a_map_of_one_pixel_and_nothing_above_the_threshold():
    (level,) = anchor.SASA.boxes((8, 8), [(1, 1)], (8,), like=torch.empty(0))
    logits, offsets = torch.full((1, 6, 2), -9.0), torch.zeros(1, 6, 4)
    (none,) = detections(logits, offsets, [level], [(8, 8)])
    assert [len(part) for part in none] == [0, 0, 0]
    logits[0, 0, 1] = 3.0
    (one,) = detections(logits, offsets, [level], [(8, 8)])
    assert one.boxes.tolist() == [[0, 0, 8, 8]], "clipped at the image"
    assert one.labels.tolist() == [1]


def test_of_a_level_the_best_are_kept_and_of_equal_ones_the_first():
    level = torch.arange(6.0)[:, None] * 100 + tensor([[0.0, 0, 9, 9]])
    logits = tensor([0.0, 1, 0, 1, 0, 1])[None, :, None]
    (found,) = detections(logits, torch.zeros(1, 6, 4), [level], [(999, 999)], Selection(per_level=4))
    assert (found.boxes[:, 0] / 100).tolist() == [1, 3, 5, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["logits", "offsets"])
def test_what_is_not_finite_is_refused(name, bad):
    parts = {"logits": torch.zeros(2, 5, 3), "offsets": torch.zeros(2, 5, 4)}
    parts[name][1, 2, 1] = bad
    with pytest.raises(ValueError, match=rf"^{name} of image 1 of the batch are not finite; expected numbers$"):
        detections(*parts.values(), [random_boxes(5)], [(9, 9)] * 2)


def test_outputs_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^logits are of 1 images and 5 anchors; expected 1 and 4$"):
        detections(torch.zeros(1, 5, 3), torch.zeros(1, 5, 4), [random_boxes(4)], [(9, 9)])


@pytest.mark.parametrize(
    "presets", [anchor.PRESETS, matching.PRESETS, loss.PRESETS], ids=["anchors", "matching", "loss"]
)
def test_presets_have_the_same_names(presets):
    assert list(presets) == ["sasa", "torchvision"]


def test_ground_truth_is_found_again():
    """The targets of a network, decoded, are the boxes: matching, offsets and selection fit together."""
    anchors = anchor.SASA.boxes((128, 128), [(16, 16), (8, 8), (4, 4)], (8, 16, 32), like=torch.empty(0))
    boxes, labels = random_boxes(4, side=80.0, seed=8), tensor([0, 1, 2, 0])
    together = torch.cat(anchors)
    matched = match(boxes, together, matching.SASA)
    there = matched >= 0
    logits, offsets = torch.full((1, len(together), 3), -9.0), torch.zeros(1, len(together), 4)
    logits[0, there, labels[matched[there]]] = 5.0
    offsets[0, there] = box.encode(boxes[matched[there]], together[there])
    (found,) = detections(logits, offsets, anchors, [(128, 128)])
    order = box.pairwise_iou(boxes, found.boxes).argmax(1)
    torch.testing.assert_close(found.boxes[order], boxes, rtol=1e-4, atol=1e-3)
    assert torch.equal(found.labels[order], labels)
    assert len(found.boxes) == 4


def test_postprocessing_gives_no_gradients():
    logits = torch.zeros(1, 4, 2, requires_grad=True)
    (found,) = detections(logits, torch.zeros(1, 4, 4), [random_boxes(4)], [(99, 99)])
    assert not found.scores.requires_grad
    assert postprocess.Selection().most == 100
