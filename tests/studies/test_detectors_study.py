"""The study of detectors: budgets, requests, pages from runs, and what it refuses."""

import json
from dataclasses import replace

import pytest

import saprof
from studies import detectors as study_command
from studies.detection.evaluation import NUMBERS
from studies.reproduction import detectors, records
from studies.reproduction.detectors import Request
from studies.reproduction.figures import detectors_figure
from studies.reproduction.records import Results

NAMES = ["convolution", "convolution stem and attention", "attention"]
PLACE = {"versions": {"saprof": "1", "torch": "2"}, "device": "cpu", "threads": 1, "cores": 2}
PLACE |= {"commit": None, "dirty": False}


def made_up(ap, seeds=3, smoke=False, request=None) -> Results:
    """Results whose AP in per cent is `ap(row, seed)`; None for a run that is missing."""
    request = request or Request(output="runs", seeds=seeds, smoke=smoke)
    runs = {}
    for place, network in enumerate(detectors.networks(request.recipe)):
        for seed in range(seeds):
            config = replace(network.config, seed=seed)
            value = ap(place, seed)
            if value is None:
                continue
            figures = dict.fromkeys(NUMBERS, value / 100) | {"AP_large": None, "per_class": {}}
            about = {"n": 250, "params": 1, "steps": 1, "train_seconds": 60.0, "weights_sha256": ""}
            runs[config.fingerprint()] = {"facts": config.facts(), "where": 0} | figures | about
    return Results(study=request.study(), learning_rates=None, where=[PLACE], runs=runs, failed={})


def steady(place, seed):
    """Rows 1 to 4 differ from row 0 by 0, 2, 0 and −3 points, with little spread."""
    return 20 + (0, 0, 2, 0, -3)[place] + 0.1 * seed + 0.01 * place * seed


def test_budgets_are_those_of_the_paper():
    """Parameters and FLOPs, as saprof.count finds them, as shares of those of the convolutional detector."""
    every = detectors.networks(Request(output="runs").recipe)
    assert [network.backbone for network in every] == [*NAMES, *NAMES[1:]]
    assert [network.heads for network in every] == ["convolution"] * 3 + ["attention"] * 2
    counted = []
    for network in every:
        model = saprof.create_model(network.config.model, num_classes=10, **network.config.options)
        found = saprof.count(model, (3, 128, 128))
        counted.append((found.params, found.macs))
        assert detectors.cost(network) == (found.params, 2 * found.macs)
    for network, (params, macs) in zip(every, counted, strict=True):
        assert params / counted[0][0] == pytest.approx(network.row.params_M / 33.4, rel=0.05)
        assert macs / counted[0][1] == pytest.approx(network.row.flops_G / 182, rel=0.05)


def test_the_miniatures_are_those_of_the_rows():
    for network in detectors.networks(Request(output="runs").recipe):
        config = saprof.create_model(network.config.model, **network.config.options).config
        assert (config.stem == "convolution") == (network.backbone != "attention")
        assert config.predictors == network.heads
        assert bool(config.attention_stages) == (network.backbone != "convolution")


def test_rows_compare_with_convolutions():
    lines = detectors.rows(made_up(steady))
    assert [line["paper_difference"] for line in lines] == [None, 0.3, -0.3, 0.1, 0.1]
    assert [round(line["difference"] or 0, 1) for line in lines] == [0.0, 0.0, 2.0, 0.0, -3.0]
    assert [line["verdict"] for line in lines] == ["", "equivalent", "contradicted", "equivalent", "contradicted"]
    assert lines[0]["ours"] == pytest.approx(20.1)
    assert lines[1]["against"] == "convolution in the backbone, convolution in the heads"
    assert (lines[2]["seeds"], lines[2]["AP_large"], lines[2]["seconds_per_run"]) == (3, None, 60)


def test_a_page(tmp_path, capsys):
    results = made_up(lambda place, seed: None if (place, seed) == (4, 2) else steady(place, seed))
    records.write(tmp_path / records.FILE, results)
    assert study_command.main(["--from", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "attention in the backbone, attention in the heads, seed 2: not run" in told.err
    shown = (tmp_path / "README.md").read_text()
    assert shown.startswith("# Convolution or attention in a detector\n\n**Items of Fashion-MNIST on canvases of 128")
    assert "2 of 3" in shown
    assert "| 735,828 | 0.670 | 0.659 |" in " ".join(shown.split())
    assert detectors.frame(tmp_path)["seeds"].tolist() == [3, 3, 3, 3, 2]


def test_a_check_run_has_no_verdicts():
    results = made_up(steady, seeds=1, smoke=True)
    assert {line["verdict"] for line in detectors.rows(results)} == {"", "not shown"}
    assert "A check that everything runs" in detectors.page(results)


def test_a_recipe_that_changed_since_leaves_recorded_runs(tmp_path, monkeypatch):
    old = Request(output=tmp_path, seeds=2, facts={"lr": 0.01, "canvases": 77})
    results = made_up(steady, seeds=2, request=old)
    assert all(line["seeds"] == 2 for line in detectors.rows(results))


def test_results_of_other_studies_are_refused(tmp_path):
    results = replace(made_up(steady), study=made_up(steady).study | {"detectors": None})
    records.write(tmp_path / records.FILE, results)
    with pytest.raises(ValueError, match="is not of a study of detectors"):
        detectors.read(tmp_path)


def test_runs_of_two_recipes_are_refused():
    results = made_up(steady)
    other = made_up(steady, request=Request(output="runs", seeds=3, facts={"lr": 0.2}))
    mixed = replace(results, runs=dict(list(results.runs.items())[:3]) | dict(list(other.runs.items())[3:]))
    with pytest.raises(ValueError, match="the runs of the study differ in lr"):
        detectors.rows(mixed)


def test_an_earlier_study_is_not_dropped(tmp_path):
    records.write(tmp_path / records.FILE, made_up(steady))
    with pytest.raises(ValueError, match="holds a study with seeds 3; include these, or choose another --output"):
        detectors.check_earlier(Request(output=tmp_path, seeds=2))
    with pytest.raises(ValueError, match="holds a study with epochs 8"):
        detectors.check_earlier(Request(output=tmp_path, seeds=3, epochs=2))
    detectors.check_earlier(Request(output=tmp_path, seeds=4))


def test_a_damaged_record_is_named(tmp_path):
    records.write(tmp_path / records.FILE, made_up(steady))
    path = tmp_path / records.FILE
    path.write_text(path.read_text().replace('"AP50": 0.2', '"AP50": "x", "was": 0.2', 1))
    with pytest.raises(ValueError, match=r"AP50 in run \d+ is 'x'"):
        detectors.read(tmp_path)


def test_evidence_without_runs_says_so(tmp_path):
    found = detectors.evidence(tmp_path)
    assert found["caution"].unique().tolist() == ["No trained detector is recorded here."]
    assert found["params_share"].iloc[0] == found["flops_share"].iloc[0] == 1
    assert found["ours"].isna().all()
    figure = detectors_figure(found)
    assert [text.get_text() for text in figure.axes[2].texts] == ["no trained detector is recorded"]
    assert figure.alt.startswith(
        "In the paper, attention everywhere saves 34 % of the parameters and 40 % of the FLOPs."
    )


def test_evidence_of_runs(tmp_path):
    records.write(tmp_path / records.FILE, made_up(steady))
    found = detectors.evidence(tmp_path)
    assert "not COCO" in found["caution"].iloc[0]
    figure = detectors_figure(found)
    assert "all 4 differences that the paper reports are decided here" in figure.alt
    assert not figure.axes[2].texts


def test_a_dry_run_counts_runs(tmp_path, capsys):
    assert study_command.main(["--dry-run", "--seeds", "2", "--output", str(tmp_path / "new")]) == 0
    assert "10 runs: 0 finished, 10 left" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--data", "coco"], "unknown data set 'coco'; expected 'canvas' or 'canvas_digits'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--seeds", "0"], "seeds is 0; expected a positive integer"),
        (["--from", "nowhere"], "nowhere/results.json is missing"),
    ],
)
def test_mistakes_are_told_in_a_sentence(argv, sentence):
    with pytest.raises(ValueError, match=sentence):
        study_command.main(argv)


@pytest.mark.deep
def test_a_smoke_run_of_all_five(tmp_path, capsys):
    """Twice: the second time nothing is left to do."""
    command = ["--smoke", "--data", "canvas_digits", "--output", str(tmp_path), "--jobs", "1"]
    assert study_command.main(command) == 0
    first = json.loads((tmp_path / "results.json").read_text())
    assert len(first["runs"]) == 5
    assert study_command.main(command) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == first
    assert study_command.main(["--from", str(tmp_path)]) == 0
