"""Runs and checkpoints that are judged: counts, files and printed tables."""

import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
import released_code
import torch

import saprof
from saprof.paper import robustness as printed_robustness
from saprof.paper.printed import rows as rows_of
from studies import data
from studies.config import Config
from studies.data import Dataset, Pixels, torchvision
from studies.data.split import Subset
from studies.evaluate import main
from studies.failures import BadData
from studies.judging import robustness as robustness_module
from studies.judging.perturbations import ATTACKS, MANIPULATIONS, Attack, attacked
from studies.judging.robustness import Conditions, Execution, judge, judged, robustness, sample
from studies.judging.statistics import wilson
from studies.judging.table import render, rows
from studies.training import distributed
from studies.training import run as runs
from studies.training.classification import evaluate as score_of
from studies.training.session import train

QUICK = ["--only", "clean"]
SMALL = [Attack(32, 16, 2)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "resnet"
    train(Config(model="resnet_mini", epochs=1, batch=100, output=folder, device="cpu"), progress=False)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "resnet")


@pytest.fixture
def untouchable(monkeypatch):
    """Returns a function after whose call judging is an error."""

    def refuse(*arguments, **options):
        raise AssertionError("nothing should be judged")

    return lambda: monkeypatch.setattr(robustness_module, "robustness", refuse)


def test_a_report_counts_what_evaluate_counts(folder):
    report = judge(folder, Conditions.from_parts(attacks=SMALL))
    _, dataset, split, model = runs.trained(folder)
    assert json.loads((folder / "robustness.json").read_text()) == report
    assert list(report["manipulations"]) == list(MANIPULATIONS)
    steady = [n for n, label in enumerate(split.judged.labels.tolist()) if label not in (6, 9)]
    for name, turn in MANIPULATIONS.items():
        for images, cells in ((split.judged, report), (Subset(split.judged, torch.tensor(steady)), report["without"])):
            expected = score_of(model, images, dataset, change=lambda pixels, *_, turn=turn: turn(pixels))
            cell = cells["manipulations"][name]
            assert {key: cell[key] for key in expected.record()} == expected.record()
            assert tuple(cell["top1_interval"]) == wilson(expected.correct1, expected.n)
    assert report["without"]["classes"] == ["6", "9"]
    assert report["without"]["manipulations"]["none"]["n"] == 400
    result = json.loads((folder / "result.json").read_text())
    assert report["manipulations"]["none"]["correct1"] == result["correct1"]
    assert {key: report[key] for key in ("fingerprint", "weights_sha256")} == {
        key: result[key] for key in ("fingerprint", "weights_sha256")
    }
    expected = attacked(model, split.judged, dataset, SMALL[0])
    cell = report["attacks"][SMALL[0].name]
    assert {key: cell[key] for key in expected.record()} == expected.record()
    assert {key: cell[key] for key in SMALL[0].facts()} == SMALL[0].facts()
    assert tuple(cell["success_rate_interval"]) == wilson(cell["success"], 500)


def test_all_of_the_papers_attacks_and_the_ladder_by_default():
    asked = Conditions.from_parts()
    assert asked.attacks == ATTACKS
    assert asked.manipulations == tuple(MANIPULATIONS)
    assert Conditions.from_parts(["attacks"]) == Conditions(manipulations=("none",), attacks=ATTACKS)
    assert Conditions.from_parts(["clean"]) == Conditions(manipulations=("none",), attacks=())


@pytest.mark.deep
def test_counts_do_not_depend_on_batches_and_workers(folder):
    _, dataset, split, model = runs.trained(folder)
    images = sample(split.judged, 60)
    reports = [
        robustness(
            model, images, dataset, Conditions.from_parts(attacks=SMALL), Execution(batch=batch, workers=workers)
        )
        for batch, workers in ((64, 0), (7, 0), (13, 2))
    ]
    counts = [[(row["n"], row["correct1"], row["correct5"], row.get("success")) for row in flat(r)] for r in reports]
    assert counts[0] == counts[1] == counts[2]


def flat(report):
    cells = [report["manipulations"], report["without"]["manipulations"], report["attacks"]]
    return [cell for part in cells for cell in part.values()]


def test_what_is_judged_is_not_judged_again(folder, capsys, untouchable):
    assert main([str(folder), *QUICK]) == 0
    first = capsys.readouterr()
    kept = (folder / "robustness.json").read_bytes()
    untouchable()
    assert main([str(folder), *QUICK]) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err == f"{folder} is judged already, in robustness.json; --again judges it once more\n"
    assert (folder / "robustness.json").read_bytes() == kept
    with pytest.raises(AssertionError, match="nothing should be judged"):
        main([str(folder), *QUICK, "--again"])


def test_what_is_missing_is_added(folder, monkeypatch):
    asked = []
    true = robustness_module.robustness
    monkeypatch.setattr(robustness_module, "robustness", lambda *a: asked.append(a[3]) or true(*a))
    judge(folder, Conditions.from_parts(["clean"]))
    assert judged(folder, conditions=Conditions.from_parts(["clean"])) == judged(folder)
    assert judged(folder, conditions=Conditions.from_parts(["rotations"])) is None
    report = judge(folder, Conditions.from_parts(["rotations", "attacks"], SMALL))
    assert asked[1] == Conditions(manipulations=tuple(MANIPULATIONS)[1:], attacks=tuple(SMALL))
    assert list(report["manipulations"]) == list(report["without"]["manipulations"]) == list(MANIPULATIONS)
    assert report == judge(folder, Conditions.from_parts(attacks=SMALL), again=True)
    assert len(asked) == 3


@pytest.mark.parametrize("key", ["fingerprint", "weights_sha256", "schema"])
def test_a_report_of_other_weights_does_not_count(folder, key):
    report = judge(folder, Conditions.from_parts(["clean"]))
    assert judged(folder) == report
    (folder / "robustness.json").write_text(json.dumps(report | {key: "another"}))
    assert judged(folder) is None
    assert judge(folder, Conditions.from_parts(["clean"])) == report


def test_a_sample_says_so_and_serves_for_itself_alone(folder, capsys):
    assert main([str(folder), *QUICK, "--limit", "30"]) == 0
    assert "digits, val-split, a sample of 30 of 500 images" in capsys.readouterr().out
    assert judged(folder) is None
    assert judged(folder, 29) is None
    assert judged(folder, 30)["sample_of"] == 500
    whole = judge(folder, Conditions.from_parts(["clean"]))
    assert (whole["sample_of"], whole["manipulations"]["none"]["n"]) == (None, 500)
    assert judge(folder, Conditions.from_parts(["clean"]), images=30) == whole
    assert judge(folder, Conditions.from_parts(["attacks"], SMALL), images=30)["attacks"][SMALL[0].name]["n"] == 500


def test_samples_are_spread_evenly():
    images = Pixels(torch.zeros(10, 1, 1, 1), torch.arange(10))
    assert sample(images, 4).labels.tolist() == [0, 2, 5, 7]
    assert sample(images, 10) is sample(images, 11) is sample(images, None) is images


@pytest.mark.parametrize("name", ["result.json", "config.yaml"])
def test_an_unfinished_run_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{folder} holds no finished run"):
        judge(folder)
    assert not (folder / "robustness.json").exists()


def test_a_damaged_report_is_named(folder):
    (folder / "robustness.json").write_text('{"schema": 1,')
    with pytest.raises(ValueError, match=r"robustness\.json is damaged .*; delete it"):
        judge(folder)


def test_a_report_that_cannot_be_written_has_its_exit_code(folder, monkeypatch):
    monkeypatch.setattr(robustness_module, "FILE", "missing/robustness.json")
    with pytest.raises(ValueError, match=r"^cannot write .*robustness\.json: No such file") as refused:
        judge(folder, Conditions.from_parts(["clean"]))
    assert refused.value.code == 6


def test_an_attack_of_ones_own(folder, capsys):
    numbers = ["--attack-epsilon", "16", "--attack-step", "8", "--attack-steps", "1"]
    choices = ["--attack-target", "next", "--attack-start", "random", "--attack-seed", "4"]
    assert main([str(folder), "--only", "attacks", *numbers, *choices, "--format", "json"]) == 0
    clean, row = json.loads(capsys.readouterr().out)
    assert clean["condition"] == "none"
    attack = Attack(16.0, 8.0, 1, target="next", start="random", seed=4)
    assert {key: row[key] for key in attack.facts()} == attack.facts()
    assert list(judged(folder)["attacks"]) == [attack.name]


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def noise(monkeypatch):
    """A data set named `folder` that replaces ImageNet: 1,000 classes, a few small images."""
    pixels = torch.randint(256, (6, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = Pixels(pixels, torch.zeros(6, dtype=torch.int64))
    made = Dataset(
        name="folder",
        classes=tuple(map(str, range(1000))),
        train=images,
        test=images,
        size=(3, 64, 64),
        mean=MEAN,
        std=STD,
        augment=lambda image, _: image,
        view=lambda image: image,
    )
    monkeypatch.setattr(data, "load", lambda config: made)
    return images


ONE_ATTACK = ["--attack-epsilon", "8", "--attack-step", "4", "--attack-steps", "2"]


@pytest.mark.deep
@pytest.mark.parametrize(("family", "options"), [("pairwise", ONE_ATTACK), ("patchwise", ["--only", "rotations"])])
def test_a_released_checkpoint_beside_the_paper(noise, tmp_path, capsys, family, options):
    path, model = tmp_path / "official.pth", f"san10_{family}"
    weights = released_code.weights(family, released_code.BLOCKS[10])
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (MEAN, STD))
    with torch.no_grad():
        logits = released_code.network(weights, (noise.pixels / 255.0 - mean) / std)
    places = torch.tensor(
        [0, 0, 0, 2, 4, 7]
    )  # the released network has 3 of 6 labels right, and 5 of 6 among its first 5
    noise.labels[:] = logits.argsort(1, descending=True)[torch.arange(6), places]

    command = ["--checkpoint", str(path), "--official", "--model", model, "--format", "json"]
    assert main([*command, *options]) == 0
    found = {row["condition"]: row for row in json.loads(capsys.readouterr().out)}
    assert (found["none"]["n"], found["none"]["correct1"], found["none"]["correct5"]) == (6, 3, 5)
    loss = torch.nn.functional.cross_entropy(logits, noise.labels)
    assert found["none"]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    table3 = next(row for row in rows_of(3) if row.model == model)
    assert (found["none"]["top1_printed"], found["none"]["top5_printed"]) == (table3.top1, table3.top5)
    for name, cell in printed_robustness.turned().row(model).manipulations.items():
        assert found[name]["top1_printed"] == cell.top1
        assert found[name].get("top1_drop_printed") == cell.top1_drop
    printed = printed_robustness.attacked().row(model).attacks["pgd_8_4_2"]
    if options is ONE_ATTACK:
        cell = found["pgd_8_4_2"]
        assert (cell["success_rate_printed"], cell["top1_printed"]) == (printed.success_rate, printed.top1)


def test_a_released_checkpoint_of_another_model_is_refused(noise, tmp_path):
    path = tmp_path / "official.pth"
    torch.save({"state_dict": released_code.weights("pairwise", released_code.BLOCKS[10])}, path)
    with pytest.raises(ValueError, match="does not fit this model"):
        main(["--checkpoint", str(path), "--official", "--model", "san10_patchwise"])
    with pytest.raises(ValueError, match="resnet26 is no SAN"):
        main(["--checkpoint", str(path), "--official", "--model", "resnet26"])


def test_classes_in_another_order_are_refused(noise, tmp_path, monkeypatch):
    made = data.load(Config(data="folder"))
    names = tuple(sorted(made.classes))  # 0, 1, 10, 100
    monkeypatch.setattr(data, "load", lambda config: replace(made, classes=names))
    with pytest.raises(ValueError, match=r"the classes are numbers in the order of their text \(0, 1, 10, …\)"):
        main(["--checkpoint", str(tmp_path), "--official", "--model", "san10_pairwise"])


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_is_no_run_is_one_sentence(tmp_path, name):
    path = tmp_path / name
    path.touch() if name == "file" else path.mkdir()
    with pytest.raises(ValueError, match=f"^{path} holds no finished run; finish it with"):
        main([str(path), *QUICK])


def test_a_run_is_judged_without_images_that_it_was_only_trained_on(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    try:
        torchvision.load()
    except ValueError as error:
        pytest.skip(str(error))
    for part, name, image in product(("train", "val"), ("ant", "bee"), range(4)):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (60 * image, 0, 250 * (name == "bee"))).save(tmp_path / part / name / f"{image}.png")
    small = {"model": "resnet_mini", "options": {"channels": [4, 8]}, "image_size": 8, "resize": 8, "batch": 8}
    folder = {"data": "folder", "root": tmp_path, "protocol": "val-original", "output": tmp_path / "run"}
    result = train(Config(**small, **folder, epochs=2, device="cpu"), progress=False)
    assert (result["judged_epochs"], result["n"]) == (2, 8)
    shutil.rmtree(tmp_path / "train")
    assert main([str(tmp_path / "run"), *QUICK]) == 0
    assert main(["--checkpoint", str(tmp_path / "run" / "model.pt"), "--root", str(tmp_path), *QUICK]) == 0
    shutil.rmtree(tmp_path / "val" / "bee")
    with pytest.raises(BadData, match="classes changed since"):
        main([str(tmp_path / "run"), *QUICK, "--again"])


def test_our_checkpoint_judges_as_its_run(folder, capsys):
    command = ["--checkpoint", str(folder / "model.pt"), "--data", "digits", *QUICK]
    assert main([*command, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    _, dataset, _, model = runs.trained(folder)
    expected = score_of(model, dataset.test, dataset)
    assert (row["n"], row["correct1"], row["correct5"]) == (500, expected.correct1, expected.correct5)
    assert (row["name"], row["model"], row["evaluation_set"]) == ("model.pt", None, "val-original")


def test_our_checkpoint_must_have_as_many_classes_as_the_data(tmp_path):
    path = tmp_path / "model.pt"
    saprof.save(saprof.create_model("resnet_mini", num_classes=7), path)
    with pytest.raises(ValueError, match="has 7 classes; digits has 10"):
        main(["--checkpoint", str(path), "--data", "digits"])


def test_our_checkpoint_must_be_of_the_model_that_is_named(tmp_path):
    path = tmp_path / "model.pt"
    saprof.save(saprof.create_model("san_mini_pairwise"), path)
    with pytest.raises(ValueError, match="holds another model than san_mini_patchwise"):
        main(["--checkpoint", str(path), "--data", "digits", "--model", "san_mini_patchwise"])
    assert main(["--checkpoint", str(path), "--data", "digits", "--model", "san_mini_pairwise", *QUICK]) == 0


def report(model="san10_pairwise", **about):
    def cell(correct, n=1000):
        rates = {"top1": correct / n * 100, "top5": 90.0, "top1_interval": [1.0, 2.0], "top5_interval": [89.0, 91.0]}
        return {"n": n, "correct1": correct, "correct5": 900, "nonfinite": 0, "loss_sum": 1.0, "loss": 0.001} | rates

    attack = ATTACKS[1]
    hit = {"success": 500, "success_rate": 50.0, "success_rate_interval": [47.0, 53.0]}
    return {
        "model": model,
        "data": "folder",
        "evaluation_set": "val-original",
        "classes": 1000,
        "sample_of": None,
        "manipulations": {"none": cell(750), "upside_down": cell(500)},
        "attacks": {attack.name: attack.facts() | cell(50) | hit},
    } | about


def test_rows_have_drops_and_what_is_printed():
    clean, turned, attack = rows("here", report())
    assert (clean["top1_drop"], turned["top1_drop"], attack["top1_drop"]) == (0.0, 25.0, 70.0)
    assert (turned["top1_printed"], turned["top1_drop_printed"]) == (54.7, 20.2)
    assert (attack["success_rate_printed"], attack["top1_printed"]) == (90.1, 5.3)
    assert (attack["success_rate_low"], attack["success_rate_high"]) == (47.0, 53.0)


@pytest.mark.parametrize("about", [{"data": "digits"}, {"classes": 100}, {"evaluation_set": "val-split"}])
def test_the_papers_figures_stand_beside_imagenet_alone(about):
    assert not any("printed" in key for row in rows("here", report(**about)) for key in row)


def test_tables_for_people(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    told = render(rows("here", report()), "table")
    assert "folder, val-original, 1,000 images" in told
    assert "The paper states neither how it chose targets nor where attacks start." in told
    assert "saturated" not in told
    assert "without" not in told
    assert "not finite" not in told
    lines = told.splitlines()
    assert [" ".join(lines[n].split()) for n in (4, 7, -1)] == [
        "network images top-1 drop printed top-1 printed drop top-5 printed top-5",
        "here upside_down 50.0 [1.0, 2.0] 25.0 54.7 20.2 90.0 78.5",
        "here 8 2 4 random clean 0 50.0 [47.0, 53.0] 90.1 5.0 [1.0, 2.0] 70.0 5.3",
    ]


def test_what_was_judged_on_other_images_stands_apart():
    both = rows("a", report()) + rows("b", report(evaluation_set="val-split")) + rows("c", report(sample_of=5000))
    told = render(both, "md")
    assert [line for line in told.splitlines() if line.startswith("##")] == [
        "## folder, val-original, 1,000 images",
        "## folder, val-split, 1,000 images",
        "## folder, val-original, a sample of 1,000 of 5,000 images",
    ]


def test_tables_for_programs():
    found = rows("here", report())
    assert json.loads(render(found, "json")) == found
    read = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert [row["condition"] for row in read] == ["none", "upside_down", ATTACKS[1].name]
    assert read[2]["success"] == "500"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "expected the folders of finished runs, or --checkpoint FILE; got neither"),
        (["run", "--checkpoint", "x.pt"], "expected the folders of finished runs, or --checkpoint FILE; got both"),
        (["--checkpoint", "x.pt", "--official"], "--official needs --checkpoint and --model"),
        (["run", "--official"], "--official needs --checkpoint and --model"),
        (["run", "--only", "turned"], "unknown part 'turned'; expected clean, rotations, attacks or all"),
        (["run", "--format", "xml"], "unknown format 'xml'; expected 'table', 'md', 'csv' or 'json'"),
        (["run", "--device", "tpu"], "unknown device 'tpu'; expected 'auto', 'cpu' or 'cuda'"),
        (["run", "--batch", "0"], "--batch is 0; expected at least 1"),
        (["run", "--limit", "0"], "--limit is 0; expected at least 1"),
        (["run", "--attack-step", "2"], "an attack of your own needs --attack-epsilon, --attack-step and"),
        (["run", "--attack-target", "all"], "unknown target of an attack 'all'"),
        (["run", "--attack-epsilon", "-1", "--attack-step", "1", "--attack-steps", "1"], "an attack's epsilon is -1"),
        (["--checkpoint", "x.pt", "--data", "digit"], "unknown data set 'digit'"),
        (["--checkpoint", "x.pt", "--data", "digits"], "cannot read checkpoint x.pt: No such file"),
        (["--checkpoint", "x.pt", "--data", "digits", "--official", "--model", "san11"], "unknown model 'san11'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(argv, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as refused:  # noqa: PT011  the whole sentence is compared
        main(argv)
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


def test_missing_data_have_their_exit_code():
    with pytest.raises(BadData, match="root") as refused:
        main(["--checkpoint", "x.pt"])
    assert refused.value.code == 3


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        distributed.device("cuda")
    assert distributed.device("auto") == torch.device("cpu")


def test_help_does_not_load_torch():
    code = (
        "import runpy, sys; sys.argv = ['evaluate', '--help']\n"
        "try: runpy.run_module('studies.evaluate', run_name='__main__')\n"
        "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules or 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m studies.evaluate")


@pytest.mark.deep
def test_the_command(folder):
    done = subprocess.run(
        [sys.executable, "-m", "studies.evaluate", str(folder), str(folder / "none"), *QUICK],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {folder / 'none'} holds no finished run")
    assert (folder / "robustness.json").exists()
