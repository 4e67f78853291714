"""Detectors that studies.evaluate judges: runs, checkpoints, samples, and what it refuses."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_detecting import SMALL, TINY

import saprof
from studies import data
from studies.config import Config, dump
from studies.detection.evaluation import NUMBERS, evaluate
from studies.evaluate import main
from studies.judging import detectors
from studies.training.run import Run
from studies.training.session import train

PICTURES = ("boxes.png", "precision_recall.png", "precision_recall.svg")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "detector"
    train(replace(SMALL, epochs=1, output=folder), progress=False)
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "detector")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    train(Config(model="resnet_mini", epochs=1, batch=100, output=folder, device="cpu"), progress=False)
    return folder


def told(capsys, *argv) -> list[dict]:
    assert main([*map(str, argv), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_is_judged_as_at_its_end(folder, capsys):
    found = [folder / name for name in (*PICTURES, "detections.json")]
    before = [path.read_bytes() for path in found]
    for path in found:
        path.unlink()
    every, *classes = told(capsys, folder)
    result = Run(folder).result()
    assert {name: every[name] for name in NUMBERS} == {name: result[name] for name in NUMBERS}
    assert {row["class"]: row["AP"] for row in classes} == result["per_class"]
    assert (every["n"], every["detections"], every["sample_of"]) == (6, result["detections"], None)
    assert every["objects"] == sum(row["objects"] for row in classes) > 0
    assert [path.read_bytes() for path in found] == before
    assert json.loads((folder / "evaluation.json").read_text())["weights_sha256"] == result["weights_sha256"]


def test_per_class_numbers_average_to_those_of_all():
    """On detections of many overlaps, the mean over classes of AP, AP50 and AP75 is that of all classes."""
    images = data.load(SMALL).test
    truth = images.ground_truth()
    shifted = []
    for number, found in enumerate(truth["annotations"]):
        x, y, width, height = found["bbox"]
        moved = [x + width * 0.04 * (number % 6), y, width, height]
        shifted.append({**found, "bbox": moved, "score": 1 / (1 + number)})
    found = evaluate(truth, shifted)
    for name in ("AP", "AP50", "AP75"):
        each = [value for label in found.per_class if (value := found.of_class(label)[name]) is not None]
        assert sum(each) / len(each) == pytest.approx(found.numbers[name])
    assert found.numbers["AP75"] < found.numbers["AP50"]


def test_what_is_judged_is_not_judged_again(folder, capsys, monkeypatch):
    first = told(capsys, folder)
    monkeypatch.setattr(detectors, "trained", lambda folder: pytest.fail("judged again"))
    assert told(capsys, folder) == first
    with pytest.raises(pytest.fail.Exception):
        main([str(folder), "--again"])


def test_a_sample_does_not_replace_the_report_of_all_images(folder, capsys):
    told(capsys, folder)
    kept = (folder / "evaluation.json").read_bytes()
    every, *_ = told(capsys, folder, "--again", "--limit", "2")
    assert every["n"] == 2
    assert (folder / "evaluation.json").read_bytes() == kept


@pytest.mark.parametrize("change", [{"weights_sha256": "another"}, {"schema": 0}])
def test_a_report_of_other_weights_does_not_count(folder, capsys, change):
    first = told(capsys, folder)
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change | {"n": 1}))
    assert told(capsys, folder) == first


def test_a_damaged_report_is_named(folder):
    (folder / "evaluation.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged .*; delete it"):
        main([str(folder)])


def test_a_sample_has_only_the_objects_of_its_images(folder, capsys):
    (folder / "boxes.png").unlink()
    every, *_ = told(capsys, folder, "--limit", "2")
    assert (every["n"], every["sample_of"]) == (2, 6)
    assert not (folder / "boxes.png").exists()
    images = data.load(SMALL).test
    chosen = images.sample(2)
    assert list(chosen.indices) == [0, 3]
    truth = chosen.ground_truth()
    assert {a["image_id"] for a in truth["annotations"]} == {image["id"] for image in truth["images"]} == {0, 3}
    assert every["objects"] == len(truth["annotations"]) < len(images.ground_truth()["annotations"])
    perfect = [{**a, "score": 1.0} for a in truth["annotations"]]
    assert evaluate(truth, perfect).numbers["AP"] == 1.0
    assert images.sample(None) is images.sample(6) is images


def test_batches_do_not_change_the_numbers(folder, capsys):
    assert told(capsys, folder) == told(capsys, folder, "--again", "--batch", "1")


def test_a_checkpoint_is_judged_as_its_run(folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(replace(SMALL, protocol="val-original")))
    output = tmp_path / "judged"
    every, *classes = told(capsys, "--checkpoint", folder / "model.pt", "--recipe", recipe, "--output", output)
    assert (every["name"], every["evaluation_set"], every["n"]) == ("model.pt", "val-original", 6)
    assert len(classes) == 10
    assert all((output / name).exists() for name in (*PICTURES, "detections.json"))
    with Image.open(output / "precision_recall.png") as picture:
        assert "Precision against recall" in picture.info["Description"]


def test_tables_for_people_and_programs(folder, classifier, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([str(classifier), str(folder), "--only", "clean", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("##")] == [
        "## digits, val-split, 500 images",
        "## canvas_digits, val-split, 6 images",
    ]
    assert main([str(classifier), str(folder), "--only", "clean", "--format", "csv"]) == 0
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["condition"] or row["class"] for row in read][:3] == ["none", "all", "0"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--only", "rotations"], "--only rotations has no effect on a detector"),
        (["--attack-seed", "3"], "--attack-seed has no effect on a detector"),
        (["--recipe", "canvas"], "--recipe is for --checkpoint FILE"),
        (["--data", "canvas"], "--data is for --checkpoint FILE"),
    ],
)
def test_options_without_effect_are_refused(folder, argv, sentence):
    with pytest.raises(ValueError, match=sentence):
        main([str(folder), *argv])


def test_files_that_do_not_fit_are_refused(folder, classifier, tmp_path):
    canvas, model = ["--data", "canvas_digits"], str(folder / "model.pt")
    with pytest.raises(ValueError, match="holds a classifier, and canvas_digits has boxes; expected a RetinaNet"):
        main(["--checkpoint", str(classifier / "model.pt"), *canvas])
    with pytest.raises(ValueError, match="holds a detector; expected a --recipe, or --data canvas"):
        main(["--checkpoint", model, "--data", "digits", "--only", "clean"])
    with pytest.raises(ValueError, match="--official has no effect on a detector"):
        main(["--checkpoint", model, *canvas, "--official", "--model", "retinanet_resnet50"])
    with pytest.raises(ValueError, match="--output is for the checkpoint of a detector"):
        main(["--checkpoint", str(classifier / "model.pt"), "--data", "digits", "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="holds another model than retinanet_sasa_resnet50"):
        main(["--checkpoint", model, *canvas, "--model", "retinanet_sasa_resnet50"])
    saprof.save(saprof.create_model("retinanet_resnet50", num_classes=10, **TINY | {"anchors": 9}), tmp_path / "9.pt")
    with pytest.raises(ValueError, match=r"6 anchors per position \(detector sasa\)"):
        main(["--checkpoint", str(tmp_path / "9.pt"), *canvas])
