"""The fashion canvas: the same bytes everywhere, disjoint sources, and boxes that are those of the visible pixels."""

import hashlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from studies.data import Pixels, idx
from studies.detection import boxes as box
from studies.detection import canvas, coco, evaluation
from studies.detection.canvas import SPLITS, Canvases, Draws
from studies.detection.postprocess import Detections


def made_up(count=60):
    """Items of distinct shapes; one is black."""
    pixels = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    for number in range(1, count):
        height, width = 8 + number % 21, 28 - number % 17
        pixels[number, 0, 28 - height :, :width] = 40 + 3 * number
    return Pixels(pixels, torch.arange(count) % 10)


def canvases(split="train", count=20, seed=0, source=None):
    items = canvas.items_of(source or made_up(), split)
    return Canvases(items, tuple(f"class {n}" for n in range(10)), split, count, seed)


EXPECTED = "eccb927eabf353266aabf09efe6243a37e736e583571a41a4add54c155099785"


def test_the_bytes_are_these():
    """They were computed once; another platform or process computes the same."""
    assert canvases(count=5).digest() == EXPECTED


def test_another_process_computes_the_same_in_another_order():
    script = (
        "from test_canvas import canvases\n"
        "c = canvases()\n"
        "for i in reversed(range(5)): c.read(i)\n"
        "import hashlib; print(hashlib.sha256(c.read(3).numpy().tobytes()).hexdigest())"
    )
    path = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(canvases().read(3).numpy().tobytes()).hexdigest()


def test_a_canvas_depends_on_seed_split_and_number_alone():
    one = canvases(count=9)
    assert torch.equal(one.read(3), canvases(count=4).read(3))
    assert len({one.read(n).numpy().tobytes() for n in range(9)}) == 9
    assert not torch.equal(one.read(3), canvases(seed=1).read(3))
    same_items = Canvases(one.items, one.classes, "val", 9)
    assert not torch.equal(one.read(3), same_items.read(3))


def test_a_canvas_that_was_changed_by_its_reader_is_read_anew():
    data = canvases()
    data.read(0).fill_(255)
    assert data.read(0).min() == 0


def test_the_sources_of_splits_are_disjoint():
    source = made_up()
    train, val = (canvas.items_of(source, split) for split in ("train", "val"))
    numbers = [{image.numpy().tobytes() for image in part.pixels} for part in (train, val)]
    assert not numbers[0] & numbers[1]
    assert len(train.labels) + len(val.labels) == 60
    assert len(val.labels) == 10
    assert canvas.items_of(source, "test") is source


def test_boxes_hold_what_is_promised():
    data, longest, counts = canvases(count=60), [], set()
    for index in range(60):
        pixels, found = data.read(index)[0], data.objects(index)
        assert pixels.shape == (128, 128)
        assert pixels.dtype == torch.uint8
        box.check(found.boxes)
        assert found.boxes.min() >= 0
        assert found.boxes.max() <= 128
        counts.add(len(found.labels))
        assert box.pairwise_iou(found.boxes, found.boxes).fill_diagonal_(0).max() <= canvas.OVERLAP
        outside = torch.ones(128, 128, dtype=torch.bool)
        for x0, y0, x1, y1 in found.boxes.int().tolist():
            inside = pixels[y0:y1, x0:x1] > 0
            assert inside[0].any(), "the box touches its pixels"
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            outside[y0:y1, x0:x1] = False
            longest.append(max(x1 - x0, y1 - y0))
        assert not pixels[outside].any(), "what is outside of all boxes is black"
    assert counts == {1, 2, 3, 4, 5, 6}
    assert max(longest) == canvas.LONGEST
    assert 0.7 * canvas.SHORTEST <= min(longest) <= canvas.SHORTEST + 2
    assert sum(side < 28 for side in longest) > 0.35 * len(longest), "sides are drawn by their logarithm"


def test_an_item_that_is_hidden_too_much_is_refused():
    owner = np.full((20, 20), -1)
    owner[:10, :10] = 0
    assert canvas.visible_boxes(owner, [100]) == [(0, 0, 10, 10)]
    owner[:10, 7:17] = 1
    assert canvas.visible_boxes(owner, [100, 100]) == [(0, 0, 7, 10), (7, 0, 17, 10)]
    owner[:10, 6:16] = 1
    assert canvas.visible_boxes(owner, [100, 110]) is None, "60 % is visible"


def test_a_resize_keeps_means_and_is_that_of_areas():
    image = np.random.default_rng(0).integers(16, 256, (28, 28)).astype(np.uint8)
    half = canvas.scaled(image, 14, mirrored=False)
    means = image.reshape(14, 2, 14, 2).mean((1, 3))
    assert np.abs(half - means).max() <= 0.5
    assert np.array_equal(canvas.scaled(image, 28, mirrored=False), image)
    assert np.array_equal(canvas.scaled(image, 28, mirrored=True), image[:, ::-1])
    double = torch.nn.functional.interpolate(torch.tensor(image)[None, None].double(), size=(56, 56), mode="bilinear")
    assert np.abs(canvas.scaled(image, 56, mirrored=False) - double[0, 0].numpy()).max() <= 0.5


def test_draws_are_uniform():
    draws = Draws(b"key")
    found = np.bincount([draws.below(7) for _ in range(7000)], minlength=7)
    assert len(found) == 7
    assert np.abs(found - 1000).max() < 150
    first, again = Draws(b"key"), Draws(b"key")
    assert [first.below(2**40) for _ in range(9)] == [again.below(2**40) for _ in range(9)]


def test_ground_truth_is_in_the_layout_of_coco(tmp_path):
    data = canvases(count=6)
    truth = data.ground_truth()
    assert len(truth["images"]) == 6
    assert len(truth["annotations"]) == sum(len(data.objects(n).labels) for n in range(6))
    assert {each["category_id"] for each in truth["annotations"]} <= set(range(10))
    assert len({each["id"] for each in truth["annotations"]}) == len(truth["annotations"])


def judged(data, shift=0.0, turned=0):
    found = []
    for index in range(len(data)):
        boxes, labels, _ = data.objects(index)
        boxes = boxes + torch.tensor([shift, 0, shift, 0])
        found.append((index, Detections(boxes, torch.ones(len(labels)), (labels + turned) % 10)))
    truth = data.ground_truth()
    return evaluation.evaluate(truth, coco.results(found, truth), canvas.SIZES).numbers


def test_precision_is_sane():
    pytest.importorskip("faster_coco_eval", reason="needs the extra detection")
    data = canvases(count=40)
    perfect, moved = judged(data), judged(data, shift=2.0)
    assert {round(perfect[name], 9) for name in ("AP", "AP75", "AP_small", "AP_medium", "AP_large")} == {1}
    assert judged(data, turned=1)["AP"] < 0.05
    assert moved["AP_small"] < moved["AP_large"] < 1
    assert moved["AP75"] < perfect["AP75"]


def test_the_manifest():
    parts = {split: canvases(split, count=2) for split in SPLITS}
    found = canvas.manifest(parts)
    assert list(found["splits"]) == list(SPLITS)
    hashes = [part[name] for part in found["splits"].values() for name in ("items", "canvases")]
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes)
    assert len(set(hashes)) == 6
    assert canvas.manifest(parts) == found
    assert canvas.manifest(parts | {"val": canvases("val", count=2, seed=1)}) != found


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: canvas.load("validation", 4), "unknown split 'validation'; expected 'train', 'val' or 'test'"),
        (lambda: canvas.load("val", 0), "count is 0; expected a positive integer"),
        (lambda: canvas.load("val", 4, seed=-1), "seed is -1; expected 0 or a positive integer"),
        (lambda: canvas.load("val", 4, seed=1.5), "seed is 1.5; expected 0 or a positive integer"),
    ],
)
def test_what_does_not_fit(act, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        act()


def test_numbers_out_of_range():
    for index in (-1, 20):
        with pytest.raises(IndexError, match=rf"^canvas {index} is not in train; expected 0 to 19$"):
            canvases().read(index)


ITEMS = {
    "train": (
        "53c1c0ecd0a78fc9564871dde86733f37487d17dd09c21680e3b9158f2dccdfd",
        "6cf721aedb7214680c8feba8487f57b0fde4b10824d61b076b2fb4fc2f98209a",
    ),
    "val": (
        "d3b2d84a23911f6f3754b4d20f0ff720521752f41dfa448f81588c02b1231a5f",
        "8ec599105b629c023a44220597aa45f24ab56f436d6dfbcbbd488f783ab211e9",
    ),
    "test": (
        "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e",
        "0e69bb1de740292a2a2d864cc6e884d4712d02684fc85786a02dea156b2ab92f",
    ),
}
"""The hashes of the items, and of the first 40 canvases of seed 0, of Fashion-MNIST."""


@pytest.mark.deep
@pytest.mark.parametrize("split", SPLITS)
def test_the_canvases_of_fashion_mnist(split):
    if not idx.SOURCES["fashion"].installed.is_dir():
        pytest.skip("Fashion-MNIST is not installed")
    data = canvas.load(split, 40)
    assert data.classes[:2] == ("T-shirt", "trouser")
    assert (data.items.digest(), data.digest()) == ITEMS[split]
