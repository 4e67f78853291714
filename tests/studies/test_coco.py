"""COCO's layout: what is read, every problem and note of a survey, results, and precision beside pycocotools."""

import contextlib
import copy
import io
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from studies.detection import coco, evaluation
from studies.detection.postprocess import Detections
from studies.failures import BadData

CATEGORIES = [{"id": 7, "name": "bee"}, {"id": 3, "name": "ant"}]
IMAGES = [{"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} for number in (12, 5)]


def annotation(number, image=5, category=3, bbox=(1, 2, 10, 8), **others):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox)} | others


ANNOTATIONS = [annotation(1), annotation(2, category=7, bbox=(4.5, 6, 20, 20.25)), annotation(3, image=12)]


@pytest.fixture
def files(tmp_path):
    """A function that writes a file of annotations, with changes, and the folder of the images."""
    folder = tmp_path / "val2017"
    folder.mkdir()
    for image in IMAGES:
        Image.new("RGB", (image["width"], image["height"])).save(folder / image["file_name"])

    def write(**changes):
        content = {"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES} | changes
        file = tmp_path / "instances_val2017.json"
        file.write_text(json.dumps(content))
        return file, folder

    return write


# what is read


def test_what_is_read(files):
    data = coco.load(*files())
    assert (len(data), data.classes) == (2, ("ant", "bee"))
    assert [image["id"] for image in data.images] == [5, 12]
    assert data.size(0) == (30, 40)
    assert data.read(1).size == (40, 30)
    found = data.objects(0)
    assert found.boxes.tolist() == [[1, 2, 11, 10], [4.5, 6, 24.5, 26.25]]
    assert found.labels.tolist() == [0, 1]
    assert found.crowd.tolist() == [False, False]
    assert found.boxes.dtype == torch.float32


def test_images_are_opened_when_they_are_read(files):
    file, folder = files()
    (folder / "5.png").write_bytes(b"x")
    data = coco.load(file, folder)
    data.objects(0)
    with pytest.raises(BadData, match=r"5\.png cannot be read as an image"):
        data.read(0)
    Image.new("RGB", (41, 30)).save(folder / "5.png")
    with pytest.raises(BadData, match=r"5\.png has 41 × 30 pixels; expected 40 × 30, as the annotations state$"):
        data.read(0)
    (folder / "12.png").write_bytes((folder / "12.png").read_bytes()[:60])
    with pytest.raises(BadData, match=r"12\.png cannot be read as an image"):
        data.read(1)


def test_what_is_not_needed_is_not_kept(files):
    annotations = [annotation(1, segmentation=[[1.0] * 8], area=70.5, iscrowd=0)]
    kept = {"id", "image_id", "category_id", "bbox", "area", "iscrowd"}
    data = coco.load(*files(annotations=annotations))
    assert [set(entry) for entry in data.annotations] == [kept]
    assert data.ground_truth()["annotations"][0]["area"] == 70.5


def test_boxes_are_cut_or_left_out_and_crowds_marked(files):
    boxes = [(-3, 25, 10, 10), (50, 5, 9, 9), (3, 3, 0, 5), (3, 3, -2, 5), (0, 0, 40, 30), (39, 0, 1, 30)]
    annotations = [annotation(number, bbox=box, iscrowd=int(number == 4)) for number, box in enumerate(boxes)]
    file, folder = files(annotations=annotations)
    data = coco.load(file, folder)
    found = data.objects(0)
    assert found.boxes.tolist() == [[0, 25, 7, 30], [0, 0, 40, 30], [39, 0, 40, 30]]
    assert found.crowd.tolist() == [False, True, False]
    empty = data.objects(1)
    assert (empty.boxes.shape, empty.labels.dtype, empty.crowd.dtype) == ((0, 4), torch.int64, torch.bool)
    assert [a["bbox"] for a in data.ground_truth()["annotations"]] == [list(box) for box in boxes]
    notes = " ".join(coco.survey(file, folder).notes)
    for note in (
        "boxes that are cut at the edge of their image: 0",
        "boxes outside of their image, which are left out: 1",
        "empty boxes, which are left out: 2, 3",
        "boxes around crowds, which match no anchor: 4",
        "ids of categories with gaps; labels have none: 2 ids from 3 to 7",
        "categories without an object: 'bee'",
        "images without an object: 12",
    ):
        assert note in notes


def test_what_is_usual_has_no_notes(files):
    categories = [{"id": 3, "name": "ant"}, {"id": 4, "name": "bee"}]
    annotations = [annotation(1), annotation(2, category=4), annotation(3, image=12)]
    found = coco.survey(*files(categories=categories, annotations=annotations))
    assert (found.problems, found.notes) == ((), ())


# problems

PROBLEMS = {
    "duplicate image": (
        {"images": [*IMAGES, IMAGES[0] | {"file_name": "other.png"}]},
        "images with the id of another: 12",
    ),
    "duplicate file": ({"images": [*IMAGES, IMAGES[0] | {"id": 9}]}, "images with the file_name of another: '12.png'"),
    "no size": (
        {"images": [*IMAGES, {"id": 8, "file_name": "8.png"}]},
        "images without a valid id, file_name or size: ",
    ),
    "size": ({"images": [*IMAGES, IMAGES[0] | {"id": 8, "width": 0}]}, "images without a valid id, file_name or size"),
    "outside": (
        {"images": [*IMAGES, IMAGES[0] | {"id": 8, "file_name": "../8.png"}]},
        "images without a valid id, file_name or size",
    ),
    "no object": ({"images": [*IMAGES, 5]}, "images without a valid id, file_name or size: 5"),
    "missing": (
        {"images": [*IMAGES, IMAGES[0] | {"id": 8, "file_name": "gone.png"}]},
        "images that are not in the folder: ",
    ),
    "duplicate category": (
        {"categories": [*CATEGORIES, {"id": 3, "name": "cat"}]},
        "categories with the id of another: 3",
    ),
    "duplicate name": (
        {"categories": [*CATEGORIES, {"id": 4, "name": "ant"}]},
        "categories with the name of another: 'ant'",
    ),
    "no name": ({"categories": [*CATEGORIES, {"id": 4}]}, "categories without a valid id, name or size: {'id': 4}"),
    "duplicate annotation": ({"annotations": [*ANNOTATIONS, annotation(1)]}, "annotations with the id of another: 1"),
    "no id": ({"annotations": [annotation(None)]}, "annotations without a valid id: "),
    "text": ({"annotations": ["x"]}, "annotations without a valid id: x"),
    "no image": ({"annotations": [annotation(1, image=99)]}, "annotations of an image that is not listed: 1"),
    "list": ({"annotations": [annotation(1, image=[5])]}, "annotations of an image that is not listed: 1"),
    "true": ({"annotations": [annotation(1, category=True)]}, "annotations of a category that is not listed: 1"),
    "area": ({"annotations": [annotation(1, area="9")]}, "annotations whose area or iscrowd is wrong: 1"),
    "crowd": ({"annotations": [annotation(1, iscrowd="no")]}, "annotations whose area or iscrowd is wrong: 1"),
    "no category": ({"annotations": [annotation(1, category=99)]}, "annotations of a category that is not listed: 1"),
    "three": ({"annotations": [annotation(1, bbox=(1, 2, 3))]}, "annotations whose bbox is not four finite numbers: 1"),
    "nan": (
        {"annotations": [annotation(1, bbox=(1, 2, 3, math.nan))]},
        "annotations whose bbox is not four finite numbers: 1",
    ),
    "null": (
        {"annotations": [annotation(1, bbox=(1, 2, 3, None))]},
        "annotations whose bbox is not four finite numbers",
    ),
    "nothing": ({"images": [], "annotations": []}, "has no images; expected a file such as"),
    "no categories": ({"categories": [], "annotations": []}, "has no categories; expected a file such as"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_each_problem_is_named_and_what_is_left_can_be_used(case, files):
    changes, sentence = PROBLEMS[case]
    file, folder = files(**changes)
    found = coco.survey(file, folder)
    assert any(sentence in problem for problem in found.problems), found.problems
    assert all(str(file) in problem for problem in found.problems)
    for index in range(len(found.data)):
        found.data.objects(index)
    with pytest.raises(BadData, match=r"\A[^\n]*\Z"):
        coco.load(file, folder)


def test_many_problems_of_one_kind_are_one_sentence(files):
    file, folder = files(annotations=[annotation(number, image=99) for number in range(2000)])
    found = coco.survey(file, folder)
    assert [problem.partition(": ")[2] for problem in found.problems] == [
        "annotations of an image that is not listed: 0, 1, 2 and 1,997 more"
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"images": [{"id": 1,', "is no JSON, or is cut off"),
        ("", "is no JSON, or is cut off"),
        (b"\xff\xfe{", "is no JSON, or is cut off"),
        ("[" * 100_000, "is no JSON, or is cut off"),
        ("[]", "holds a list; expected a file such as instances_val2017.json, with lists of images"),
        ('{"images": [], "annotations": []}', "has no list of categories; expected a file such as"),
        (None, "cannot be read (No such file or directory); expected a file such as"),
    ],
    ids=["cut off", "empty", "bytes", "deep", "list", "part", "absent"],
)
def test_a_file_that_is_none(content, sentence, tmp_path):
    file = tmp_path / "instances.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (problem,) = coco.survey(file, tmp_path).problems
    assert problem.startswith(str(file))
    assert sentence in problem


def test_a_folder_that_is_not_there_and_an_empty_image(files):
    file, folder = files()
    (folder / "5.png").write_bytes(b"")
    assert any("images that are empty files: " in problem for problem in coco.survey(file, folder).problems)
    (problem,) = coco.survey(file, folder / "none").problems
    assert problem.endswith(f"the folder of images is not there: {folder / 'none'}")


# evaluation


def made_up(seed=0, images=12, classes=3):
    """Ground truth of all sizes, with crowds, and an image without objects."""
    random = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images):
        for _ in range(random.integers(1, 6)):
            width, height = np.exp(random.uniform(np.log(6), np.log(200), 2))
            x, y = random.uniform(0, 300, 2)
            bbox = [float(v) for v in (x, y, width, height)]
            category = int(random.integers(classes)) * 2 + 1
            crowd = int(random.random() < 0.05)
            area = bbox[2] * bbox[3]
            number = len(annotations) + 1
            annotations.append(annotation(number, image, category, bbox, area=area, iscrowd=crowd))
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 640, "height": 480} for n in range(images)],
        "annotations": annotations,
        "categories": [{"id": 2 * n + 1, "name": f"class {n}"} for n in range(classes)],
    }


def results_of(truth, seed=1, shift=4.0, keep=0.8):
    """Shifted boxes with scores of one decimal, which are often equal, and some wrong ones."""
    random = np.random.default_rng(seed)
    found = []
    for each in truth["annotations"]:
        for _ in range(2):
            if random.random() < keep:
                bbox = (np.array(each["bbox"]) + random.normal(0, shift, 4)).clip(1).tolist()
                category = each["category_id"] if random.random() < 0.9 else 1
                score = round(float(random.random()), 1)
                found.append({"image_id": each["image_id"], "category_id": category, "bbox": bbox, "score": score})
    return found


def perfect(truth):
    entries = [each for each in truth["annotations"] if not each.get("iscrowd")]
    return [{name: each[name] for name in ("image_id", "category_id", "bbox")} | {"score": 1.0} for each in entries]


@pytest.fixture
def extra():
    pytest.importorskip("faster_coco_eval", reason="needs the extra detection")


@pytest.mark.parametrize("sizes", [evaluation.SIZES, (400.0, 1000.0)], ids=["of COCO", "own"])
@pytest.mark.parametrize("seed", range(4))
def test_all_numbers_are_those_of_pycocotools(extra, seed, sizes):
    pytest.importorskip("pycocotools", reason="pycocotools, the judge, is not installed")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = made_up(seed)
    results = results_of(truth, seed)
    kept = copy.deepcopy((truth, results))
    found = evaluation.evaluate(truth, results, sizes)
    assert (truth, results) == kept, "nothing that was given has changed"
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = copy.deepcopy(truth)
        expected.createIndex()
        judge = COCOeval(expected, expected.loadRes(copy.deepcopy(results)), "bbox")
        low, high = sizes
        judge.params.areaRng = [[0, 1e10], [0, low], [low, high], [high, 1e10]]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    numbers = [-1.0 if number is None else number for number in found.numbers.values()]
    assert numbers == pytest.approx(judge.stats.tolist(), abs=1e-12)
    precision = judge.eval["precision"][:, :, :, 0, -1]
    for place, name in enumerate(found.per_class):
        of_class = precision[:, :, place]
        assert found.per_class[name] == pytest.approx(of_class[of_class > -1].mean(), abs=1e-12)
    assert 0.02 < found.numbers["AP"] < 0.9
    assert list(found.numbers) == list(evaluation.NUMBERS)


def test_ground_truth_is_perfect(extra):
    truth = made_up()
    found = evaluation.evaluate(truth, perfect(truth))
    assert {round(found.numbers[name], 9) for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")} == {
        1
    }
    assert found.numbers["AR100"] == 1
    assert set(found.per_class.values()) == {1}


def test_wrong_classes_are_worth_nothing(extra):
    truth = made_up()
    turned = [each | {"category_id": (each["category_id"] + 2) % 6} for each in perfect(truth)]
    assert evaluation.evaluate(truth, turned).numbers["AP"] < 0.02


def test_a_shift_of_a_pixel_counts_for_small_objects_alone(extra):
    truth = made_up()
    for each in truth["annotations"]:
        small = each["id"] % 2
        each["bbox"][2:], each["area"] = ([8.0, 8.0], 64.0) if small else ([100.0, 100.0], 10_000.0)
    moved = [each | {"bbox": [each["bbox"][0] + 1.5, *each["bbox"][1:]]} for each in perfect(truth)]
    numbers = evaluation.evaluate(truth, moved).numbers
    assert numbers["AP50"] > 0.9
    assert numbers["AP75"] < 0.9
    assert numbers["AP_small"] < 0.5 < 0.9 < numbers["AP_large"]


def test_a_size_or_class_without_objects_has_no_number(extra):
    truth = made_up()
    truth["categories"].append({"id": 99, "name": "nowhere"})
    truth["annotations"] = [each for each in truth["annotations"] if each["area"] > 96**2 and not each["iscrowd"]]
    found = evaluation.evaluate(truth, perfect(truth))
    assert found.per_class["nowhere"] is None
    assert found.numbers["AP_small"] is found.numbers["AR_small"] is None
    assert found.numbers["AP"] == pytest.approx(1)


def test_no_detections(extra):
    found = evaluation.evaluate(made_up(), [])
    assert found.numbers["AP"] == 0
    assert set(found.per_class.values()) == {0}


def test_detections_become_results_that_can_be_evaluated(extra, files):
    data = coco.load(*files())
    objects = [data.objects(index) for index in range(len(data))]
    found = [(i, Detections(x.boxes, torch.ones(len(x.boxes)), x.labels)) for i, x in enumerate(objects)]
    listed = coco.results(found, data.ground_truth())
    assert [(each["image_id"], each["category_id"]) for each in listed] == [(5, 3), (5, 7), (12, 3)]
    assert listed[1]["bbox"] == [4.5, 6, 20, 20.25]
    assert json.loads(json.dumps(listed)) == listed
    judged = evaluation.evaluate(data.ground_truth(), listed)
    assert judged.numbers["AP"] == pytest.approx(1)
    assert judged.per_class == {"ant": pytest.approx(1), "bee": pytest.approx(1)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_id": 77}, r"result 0 has image_id 77; expected one of the ground truth's images"),
        ({"category_id": 2}, r"result 0 has category_id 2; expected one of the ground truth's categories"),
        ({"score": math.nan}, r"result 0 has the box \[.*\] and score nan; expected numbers"),
        ({"bbox": [0, 0, math.inf, 1]}, r"result 0 has the box \[0, 0, inf, 1\] and score 1.0; expected numbers"),
        ({"bbox": [0, 0, 1]}, r"result 0 has the box \[0, 0, 1\] and score 1.0; expected numbers"),
    ],
)
def test_results_that_do_not_fit(extra, change, sentence):
    truth = made_up()
    results = perfect(truth)
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        evaluation.evaluate(truth, [results[0] | change, *results[1:]])


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(
        ValueError, match=r"^the evaluation of boxes needs faster_coco_eval, which is not installed; pip"
    ):
        evaluation.evaluate(made_up(), [])
