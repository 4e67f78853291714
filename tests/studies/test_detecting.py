"""Detectors in training: views and their way back, runs that end, are killed and resume, and input that is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import saprof
from studies import data, doctor, train
from studies.config import RECIPES, Config, load
from studies.data.split import Split
from studies.data.views import Plan, generator, grouped
from studies.detection import losses, matching, views
from studies.detection.coco import Objects
from studies.detection.views import Rules
from studies.failures import BadData, NonFinite, Preempted
from studies.training import checkpoint, engine, requirements, session, tasks
from studies.training.detecting import Detecting, Method, batches_of
from studies.training.distributed import World
from studies.training.engine import Hooks, State
from studies.training.run import Run, trained, weights_sha256

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
TINY = {"channels": [4, 4, 8, 8], "blocks": [1, 1, 1, 1], "width": 8, "level_norms": True}
SMALL = Config(
    model="retinanet_resnet50",
    options=TINY,
    data="canvas_digits",
    canvases=12,
    judged_canvases=6,
    batch=4,
    epochs=2,
    lr=0.02,
    anchor_scale=2.0,
    weight_decay_on="weights",
)
OWN = ("seconds", "images_per_s", "data_wait")


def lines(folder: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in OWN} for line in Run(folder).metrics()]


def begun(config: Config) -> tuple[Detecting, Split, State]:
    task = tasks.of(config, data.load(config))
    assert isinstance(task, Detecting)
    return task, task.split(), State(config, task.network(), ALONE)


def ended(*argv: str) -> tuple[int, str]:
    try:
        return train.main(list(argv)), ""
    except ValueError as error:
        return getattr(error, "code", 2), str(error)


def arguments(config: Config) -> list[str]:
    values = {name: value for name, value in config.plain().items() if value is not None}
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}" for name, value in values.items()]


def objects(*boxes, crowd=False) -> Objects:
    count = len(boxes)
    return Objects(torch.tensor(boxes).float().reshape(-1, 4), torch.arange(count), torch.full((count,), crowd))


# views


def marked(rows=40, columns=60, box=(10, 5, 30, 20)):
    """A dark image with a light box, and the box."""
    pixels = torch.zeros(3, rows, columns, dtype=torch.uint8)
    x0, y0, x1, y1 = box
    pixels[:, y0:y1, x0:x1] = 255
    return pixels, objects(box)


def light(view: views.View) -> list[int]:
    """The box around what is lighter than half."""
    _, rows, columns = (view.pixels > 127).nonzero().unbind(1)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize("rules", [Rules(), Rules(sides=(80,)), Rules(jitter=0.3), Rules(sides=(30, 50), longest=70)])
def test_boxes_follow_their_pixels(rules):
    for seed in range(12):
        view = rules.training(marked(), generator(seed))
        assert view.objects.boxes[0].tolist() == pytest.approx(light(view), abs=1)


def test_a_cut_leaves_out_what_is_outside():
    kept = [Rules(crop=16).training(marked(), generator(seed)) for seed in range(30)]
    assert all(max(view.pixels.shape[1:]) == 16 for view in kept)
    for view in kept:
        if len(view.objects.boxes):
            assert view.objects.boxes[0].tolist() == light(view)
        else:
            assert not view.pixels.any()
    assert {len(view.objects.boxes) for view in kept} == {0, 1}


def test_views_are_those_of_their_draws():
    rules = Rules(sides=(30, 50), jitter=0.2, crop=32)
    one, same, other = (rules.training(marked(), generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(one.pixels, same.pixels)
    assert one.pixels.shape != other.pixels.shape or not torch.equal(one.pixels, other.pixels)
    assert len({bool(light(Rules().training(marked(), generator(seed)))[0] == 10) for seed in range(20)}) == 2  # flips


def test_views_differ_between_epochs():
    task, parts, _ = begun(replace(SMALL, jitter=0.3))
    shown = task.views(parts.train)
    sizes = {tuple(shown[epoch, 3].pixels.shape) for epoch in range(6)}
    assert len(sizes) > 3
    assert torch.equal(shown[2, 3].pixels, task.views(parts.train)[2, 3].pixels)
    assert shown[2, 3].number == 3


def test_what_is_judged_is_whole_and_boxes_come_back():
    scene = marked(rows=37, columns=53)
    view = Rules(sides=(20, 80), longest=100, jitter=0.5, crop=8).judged(scene)
    assert view.pixels.shape[1:] == (round(37 * 100 / 53), 100)  # the longest side decides
    back = views.back(view.objects.boxes, torch.tensor(view.scale))
    assert back.tolist() == [pytest.approx([10, 5, 30, 20], abs=1e-4)]


def test_a_batch_is_padded_to_32():
    batch = views.collate([Rules().judged(marked(40, 60)), Rules().judged(marked(50, 33))])
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.sizes.tolist() == [[40, 60], [50, 33]]
    assert not batch.pixels[0, :, 40:].any()


def test_what_lies_outside_of_an_image_does_not_matter():
    _, _, state = begun(replace(SMALL, precision="fp64"))  # new heads reduce a difference to less than fp32 shows
    pixels = torch.randint(256, (2, 1, 64, 96), dtype=torch.uint8, generator=generator(1))
    sizes = torch.tensor([[40, 70], [64, 96]])
    network = state.classifier.eval()

    def logits(change):
        changed = pixels.clone()
        changed[0][change] = 77
        with torch.no_grad():
            return network(changed, sizes).logits

    whole = logits(np.s_[:, :0])
    assert torch.equal(logits(np.s_[:, 40:]), whole)
    assert torch.equal(logits(np.s_[:, :, 70:]), whole)
    assert not torch.equal(logits(np.s_[:, 39:]), whole)


def test_batches_of_one_group():
    groups = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0])
    images = torch.randperm(11, generator=generator(1))
    found = grouped(images, groups[images], 2, generator(2))
    assert found.sort().values.tolist() == list(range(11))
    pairs = [groups[pair].unique().numel() for pair in found.split(2)]
    assert pairs[:5].count(1) >= 4
    plan = Plan(11, 2, 1, 0, groups=groups)
    shown = [[image for _, image in piece] for piece in plan.pieces(0, 5, 0, 1)]
    assert shown == [[image for _, image in piece] for piece in plan.pieces(0, 5, 0, 1)]
    assert shown != [[image for _, image in piece] for piece in plan.pieces(5, 10, 0, 1)]


# training


def test_a_loss_is_that_of_its_parts():
    task, parts, state = begun(SMALL)
    batch = views.collate([task.views(parts.train)[0, index] for index in range(3)])
    state.classifier.eval()
    loss, of_boxes = task.loss(state.forward, batch, CPU)
    found = state.classifier(batch.pixels, batch.sizes)
    every = torch.cat(task.method.levels(batch.pixels.shape, found, state.classifier.model.strides))
    targets = [
        losses.Targets(each.boxes, each.labels, matching.match(each.boxes, every, matching.SASA, each.crowd))
        for each in batch.objects
    ]
    expected = losses.losses(found.logits, found.offsets, every, targets, losses.SASA)
    assert loss.item() == pytest.approx(sum(expected).item())
    assert of_boxes.item() == pytest.approx(expected.boxes.item())


def test_a_few_canvases_are_learned():
    config = replace(SMALL, canvases=4, lr=0.05, epochs=60, momentum=0.9, clip_norm=10.0)
    _, parts, state = begun(config)
    seen = []
    engine.train_until(
        25, state, data.load(config), parts.train, Hooks(after_step=lambda s: seen.append(s.progress.loss_sum))
    )
    steps = [b - a for a, b in zip([0, *seen], seen, strict=False)]
    assert sum(steps[-5:]) < 0.8 * sum(steps[:5])


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_other_precisions(tmp_path, precision):
    result = session.train(replace(SMALL, precision=precision, epochs=1, output=tmp_path / "run"), progress=False)
    assert result["nonfinite"] == 0


def test_pieces_and_an_average(tmp_path):
    config = replace(SMALL, accumulate=2, ema=0.5, ema_of="parameters", epochs=1, output=tmp_path / "run")
    assert session.train(config, progress=False)["steps"] == 3


def test_a_loss_that_is_no_number_ends_training():
    task, parts, state = begun(SMALL)
    with torch.no_grad():
        state.classifier.model.heads.boxes[-1].bias.fill_(float("nan"))
    with pytest.raises(NonFinite):
        engine.train_until(1, state, task.dataset, parts.train, Hooks())
    judged = task.judge(state.judged, parts.judged, ALONE, workers=0, stop=lambda: False)
    assert (judged["nonfinite"], judged["detections"], judged["AP"]) == (6, 0, 0.0)


# a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detecting") / "run"
    assert train.main(arguments(replace(SMALL, output=folder))) == 0
    return folder


def test_a_run_leaves_what_came_of_it(finished):
    run = Run(finished)
    result, last = run.result(), run.metrics()[-1]
    assert (result["n"], result["steps"], result["judged_epochs"]) == (6, 6, 2)
    assert result["AP"] == last["AP"]
    assert {"AP50", "AR100", "AP_small", "per_class", "best_AP"} <= result.keys()
    assert set(result["per_class"]) == set("0123456789")
    assert isinstance(json.loads((finished / "detections.json").read_text()), list)
    with Image.open(finished / "boxes.png") as picture:
        assert picture.size[0] > 1000
    kept = saprof.load(finished / "model.pt")
    assert weights_sha256(kept.state_dict()) == result["weights_sha256"]


def test_a_finished_run_can_be_had(finished, capsys):
    config, dataset, parts, network = trained(finished)
    task = tasks.of(config, dataset)
    again = task.judge(network, parts.judged, ALONE, workers=0, stop=lambda: False)
    assert again["AP"] == Run(finished).result()["AP"]
    assert train.main(arguments(config)) == 0
    assert "finished already, nothing was changed" in capsys.readouterr().out


def test_a_run_shows_precision_against_recall(finished):
    with Image.open(finished / "precision_recall.png") as picture:
        described = picture.info["Description"]
    result = Run(finished).result()
    assert described.startswith(f"AP {100 * result['AP']:.1f} %, AP50 {100 * result['AP50']:.1f} %")
    assert "AP50 of each class:" in described
    assert (finished / "precision_recall.svg").read_bytes().startswith(b"<?xml")


def test_a_run_whose_detections_are_lost_ends_without_a_picture(finished, tmp_path):
    config, dataset, parts, _ = trained(finished)
    (tmp_path / "detections.json").write_text('[{"image')
    tasks.of(config, dataset).finish(tmp_path, parts.judged)
    assert not (tmp_path / "boxes.png").exists()
    assert not (tmp_path / "precision_recall.png").exists()


def test_an_evaluation_can_be_stopped(finished):
    config, dataset, parts, network = trained(finished)
    with pytest.raises(Preempted):
        tasks.of(config, dataset).judge(network, parts.judged, ALONE, workers=0, stop=lambda: True)


def test_the_judge_of_classifiers_refuses_a_detector(finished):
    from studies.judging.robustness import judge

    with pytest.raises(ValueError, match=r"trained a detector, whose numbers are in its result\.json"):
        judge(finished)


def test_a_detector_that_finds_everything_scores_1(finished):
    """The ground truth as logits and offsets: the way from outputs to the numbers loses nothing but what is equal."""
    config, dataset, parts, network = trained(finished)
    task = tasks.of(config, dataset)
    network.model = Telling(network.model, task, parts.judged)
    found = task.judge(network, parts.judged, ALONE, workers=0, stop=lambda: False)
    assert found["AP"] > 0.9


class Telling(nn.Module):
    """Returns what its task expects for the images, in their order."""

    def __init__(self, model, task, images):
        super().__init__()
        self.model, self.task, self.images, self.shown = model, task, images, 0
        self.strides = model.strides

    def predict(self, x):
        from studies.detection import boxes as box

        found = self.model.predict(x)
        every = torch.cat(self.task.method.levels(x.shape, found, self.strides))
        logits, offsets = torch.full_like(found.logits, -9.0), torch.zeros_like(found.offsets)
        for place in range(len(x)):
            truth = self.images.read(self.shown)[1]
            matched = matching.match(truth.boxes, every, matching.SASA)
            there = matched >= 0
            offsets[place, there] = box.encode(truth.boxes[matched[there]], every[there])
            logits[place, there, truth.labels[matched[there]]] = 9.0
            self.shown += 1
        return found._replace(logits=logits, offsets=offsets)


def test_a_detector_that_is_killed_goes_on(tmp_path):
    """By SIGKILL between two checkpoints, with other numbers of workers, to the same bits."""
    config = replace(SMALL, epochs=3, checkpoint_every=2, jitter=0.2, crop=96, output=tmp_path / "whole")
    session.train(config, progress=False)
    parts = replace(config, output=tmp_path / "parts")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "studies.train", *arguments(replace(parts, workers=1))],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not any(int(path.stem[5:]) >= 2 for path in checkpoint.paths(parts.output / "ckpt")):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (parts.output / "result.json").exists()
    session.train(parts, progress=False)
    assert Run(parts.output).sessions()[1]["step"] > 0
    assert lines(parts.output) == lines(config.output)
    one, two = (Run(folder.output).result() for folder in (parts, config))
    assert one["weights_sha256"] == two["weights_sha256"]
    assert (parts.output / "detections.json").read_bytes() == (config.output / "detections.json").read_bytes()


def test_two_processes_train_and_judge(tmp_path):
    """The images of both are judged: one process alone finds the same with the same weights."""
    config = replace(SMALL, epochs=1, output=tmp_path / "run")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "studies.train", *arguments(config)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, dataset, parts, network = trained(config.output)
    task = tasks.of(config, dataset)
    alone = task.judge(network, parts.judged, ALONE, workers=0, stop=lambda: False, folder=tmp_path)
    together = Run(config.output).result()
    assert {name: together[name] for name in task.numbers} == alone
    assert len(json.loads((tmp_path / "detections.json").read_text())) == alone["detections"]


def test_processes_share_an_evaluation(finished):
    """The batches of all processes hold every image once."""

    config = Run(finished).config()
    dataset = data.load(config)
    shares = [batches_of(dataset.rules, dataset.test, rank, 4) for rank in range(4)]
    assert sorted(image for share in shares for batch in share for image in batch) == list(range(6))


# COCO


@pytest.fixture
def coco_root(tmp_path):
    """Six images to train on, one of them without an object, and two to judge, of several sizes."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for part, count in (("train2017", 6), ("val2017", 2)):
        (root / part).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            width, height = (90, 60) if number % 2 else (50, 70)
            Image.new("RGB", (width, height), (number * 30, 9, 99)).save(root / part / f"{number}.jpg")
            images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
            if number != 6:
                entry = {"id": number, "image_id": number, "category_id": 1 + 2 * (number % 2)}
                annotations.append(entry | {"bbox": [5, 6, 30, 25], "area": 750, "iscrowd": 0})
        categories = [{"id": 1, "name": "ant"}, {"id": 3, "name": "bee"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


COCO = replace(
    SMALL,
    data="coco",
    protocol="val-original",
    canvases=Config.canvases,
    judged_canvases=Config.judged_canvases,
    batch=2,
    epochs=1,
    sides=(48, 64),
    longest=96,
    by_aspect=True,
)


@pytest.mark.parametrize("detector", ["sasa", "torchvision"])
def test_images_of_coco_are_learned_and_judged(coco_root, tmp_path, detector):
    config = replace(COCO, root=coco_root, detector=detector, output=tmp_path / "run")
    result = session.train(config, progress=False)
    assert (result["n"], result["steps"], set(result["per_class"])) == (2, 2, {"ant", "bee"})
    assert (tmp_path / "run" / "boxes.png").exists()


def test_boxes_of_coco_are_those_of_the_original(coco_root):
    config = replace(COCO, root=coco_root)
    task, parts, state = begun(config)
    state.classifier.model = Scaled(state.classifier.model, task, parts.judged)
    found = task.judge(state.judged, parts.judged, ALONE, workers=0, stop=lambda: False)
    assert found["AP"] > 0.9


class Scaled(Telling):
    """Tells boxes in pixels of the views. Both images have batches of their own, in their order."""

    def __init__(self, model, task, images):
        super().__init__(model, task, images)
        views_ = [task.dataset.rules.judged(images.read(index)) for index in range(len(images))]
        self.images = [(view.pixels, view.objects) for view in views_]
        self.images = type("Views", (), {"read": lambda _, index, found=self.images: found[index]})()


def test_the_doctor_knows_canvases(capsys):
    argv = ["--data=canvas_digits", "--canvases=5", "--judged_canvases=3", "--model=retinanet_resnet50", "--batch=4"]
    assert doctor.main([*argv, f"--options={json.dumps(TINY)}"]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("train 5 ") for line in said)
    assert "opened 8 images, 8 of them readable" in said
    assert doctor.main([*argv, "--batch=6", f"--options={json.dumps(TINY)}"]) == 3
    assert "expected at most the 5 images to train on" in capsys.readouterr().err


def test_the_doctor_knows_coco(coco_root, capsys):
    assert doctor.main(["--data", "coco", "--root", str(coco_root)]) == 0
    out = capsys.readouterr().out
    said = [" ".join(line.split()) for line in out.splitlines()]
    assert "train 6 5 2 (ant) 3 (bee)" in said
    assert "images without an object: 6" in out
    (coco_root / "val2017" / "1.jpg").unlink()
    (coco_root / "train2017" / "2.jpg").write_bytes(b"x")
    assert doctor.main(["--data", "coco", "--root", str(coco_root)]) == 3
    err = capsys.readouterr().err
    assert "images that are not in the folder" in err
    assert "2.jpg cannot be read as an image" in err


def test_a_backbone_starts_from_a_classifier(coco_root, tmp_path):
    options = {"channels": TINY["channels"], "blocks": TINY["blocks"]}
    saprof.save(resnet := saprof.create_model("resnet50", num_classes=5, **options), tmp_path / "resnet.pt")
    _, _, state = begun(replace(COCO, root=coco_root, backbone=str(tmp_path / "resnet.pt")))
    own = state.classifier.model.backbone.network.state_dict()
    assert torch.equal(own["conv1.weight"], resnet.state_dict()["conv1.weight"])
    assert torch.equal(own["layer4.0.bn3.weight"], resnet.state_dict()["layer4.0.bn3.weight"])
    saprof.save(saprof.create_model("resnet50", num_classes=5, channels=(4, 4), blocks=(1, 1)), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="which holds another network"):
        begun(replace(COCO, root=coco_root, backbone=str(tmp_path / "other.pt")))


# what is refused


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"model": "san_mini_pairwise", "options": {}}, 2, "is no detector, and canvas_digits has boxes"),
        ({"options": TINY | {"anchors": 9}}, 2, "6 anchors per position (detector sasa)"),
        ({"options": TINY | {"num_classes": 3}}, 2, "and 10 classes"),
        ({"data": "coco", "protocol": "val-original"}, 3, "the data set coco has no root"),
        ({"data": "coco"}, 2, "expected val-original for coco"),
        ({"batch": 1}, 2, "sees one image at a time and cannot train on it"),
        ({"batch": 20}, 2, "expected at most the 12 images to train on"),
        ({"data": "canvas", "root": "/nowhere"}, 3, "/nowhere"),
        ({"backbone": "/nowhere/x.pt"}, 2, "/nowhere/x.pt"),
    ],
)
def test_wrong_input_is_refused(tmp_path, change, code, sentence):
    found, said = ended(*arguments(replace(SMALL, output=tmp_path / "run", **change)))
    assert found == code, said
    assert sentence in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def options_of(*names: str) -> list[tuple[str, object]]:
    """Each option with a value that is not its default."""
    other = {
        "detector": "torchvision",
        "backbone": "x.pt",
        "anchor_scale": 2.0,
        "sides": (16,),
        "longest": 20,
        "jitter": 0.1,
        "crop": 8,
        "by_aspect": True,
        "canvases": 12,
        "judged_canvases": 6,
        "split_seed": 1,
        "held_out": 7,
        "train_per_class": 3,
        "image_size": 64,
        "resize": 300,
        "interpolation": "bicubic",
        "label_smoothing": 0.2,
        "smoothing_over": "all",
    }
    return [(name, other[name]) for name in names]


@pytest.mark.parametrize(("name", "value"), options_of(*requirements.CLASSIFYING))
def test_options_that_a_detector_ignores_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*, which has no effect on a detector; omit {name}$"):
        requirements.check_options(replace(SMALL, **{name: value}))


@pytest.mark.parametrize(("name", "value"), options_of(*requirements.DETECTING))
def test_options_that_a_classifier_ignores_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*, which has no effect on a classifier; omit {name}$"):
        requirements.check_options(Config(**{name: value}))


@pytest.mark.parametrize(("name", "value"), options_of(*requirements.OF_CANVASES))
def test_options_that_coco_ignores_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*, which has no effect on coco; omit {name}$"):
        requirements.check_options(replace(COCO, **{name: value}))


def test_options_that_say_what_is_done_are_not_refused():
    requirements.check_options(SMALL)
    requirements.check_options(Config())
    requirements.check_options(replace(SMALL, label_smoothing=0.0))
    for name in ("canvas", "sasa_coco", "retinanet_1x"):
        requirements.check_options(load(RECIPES / f"{name}.yaml"))


def test_an_ignored_option_ends_the_command_before_anything_is_written(tmp_path):
    code, said = ended(*arguments(replace(SMALL, output=tmp_path / "run")), "--label_smoothing=0.3")
    assert (code, said) == (2, "label_smoothing is 0.3, which has no effect on a detector; omit label_smoothing")
    assert not (tmp_path / "run").exists()
    assert doctor.main(["--data=digits", "--jitter=0.1"]) == 3


def test_metrics_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    session.train(replace(SMALL, epochs=1, tensorboard=True, output=tmp_path / "run"), progress=False)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_detector_on_labelled_images_is_refused(tmp_path):
    code, said = ended("--model=retinanet_resnet50", "--data=digits", f"--output={tmp_path}/run")
    assert code == 2
    assert "expected (1, classes), since digits has a label per image" in said


@pytest.mark.parametrize("change", [{"jitter": 1.0}, {"sides": (0,)}, {"anchor_scale": 0.0}, {"detector": "yolo"}])
def test_wrong_settings_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        replace(SMALL, **change)


def test_coco_with_other_categories_or_files(coco_root):
    (coco_root / "annotations" / "instances_val2014.json").write_text("{}")
    with pytest.raises(BadData, match="2 files of annotations for val"):
        data.load(replace(COCO, root=coco_root))
    (coco_root / "annotations" / "instances_val2014.json").unlink()
    path = coco_root / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("ant", "cat"))
    with pytest.raises(BadData, match="other categories in train than in val"):
        data.load(replace(COCO, root=coco_root))


def test_the_steps_of_a_learning_rate():
    config = replace(SMALL, lr=0.01, lr_drops=(8, 11), epochs=12, lr_every="step", warmup_epochs=1.0)
    found = [engine.learning_rate(config, step, 10) for step in (0, 9, 10, 79, 80, 109, 110)]
    assert found == pytest.approx([0.001, 0.01, 0.01, 0.01, 0.001, 0.001, 0.0001])


@pytest.mark.parametrize("name", ["canvas", "sasa_coco", "retinanet_1x"])
def test_a_recipe_makes_a_detector(name):
    config = load(RECIPES / f"{name}.yaml")
    assert config.fingerprint() != Config().fingerprint()
    with torch.device("meta"):
        model = saprof.create_model(
            config.model, num_classes=80, anchors=Method.of(config).anchors.count, **config.options
        )
    assert isinstance(model, saprof.RetinaNet)
