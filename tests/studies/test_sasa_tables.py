"""SASA's tables: which run stands for each row, in miniature and at full scale, and their pages."""

from collections import Counter
from dataclasses import replace

import made_up_runs
import pytest
import torch

from saprof.models.counting import blueprint
from saprof.paper.printed import paper
from studies import reproduce
from studies.config import RECIPES, load
from studies.reproduction import records, report, sizes, summary
from studies.reproduction.grid import TABLES, bases, cells, printed, unique
from studies.reproduction.miniatures import SIDES
from studies.reproduction.rates import DEFAULTS, Tuning
from studies.reproduction.sasa_miniatures import maps, miniature
from studies.reproduction.study import Study

FULL = Study(paper="sasa", data="folder")
FASHION = Study(paper="sasa", data="fashion")
SASA = TABLES["sasa"]


def every(study):
    return [cell for table in SASA for cell in cells(table, study)]


def test_the_tables_are_those_with_accuracies_of_classifiers():
    assert SASA == ("1", "3", "4", "5", "6", "7")


def test_at_full_scale_every_row_is_its_own_network_by_the_recipe():
    recipe = load(RECIPES / "sasa_imagenet.yaml")
    for cell in every(FULL):
        assert (cell.config.model, cell.config.options) == (cell.row.model, cell.row.overrides)
        assert replace(cell.config, model=recipe.model, options={}, protocol=recipe.protocol, data="folder") == replace(
            recipe, options={}
        )
        assert not cell.note
    assert len(every(FULL)) == 30
    assert len(unique(every(FULL))) == 26  # Tables 1, 4 and 6 share a network, 1 and 7 another, 3 and 5 a third


@pytest.mark.parametrize("data", ["fashion", "digits", "folder"])
def test_tests_and_validations_are_apart(data):
    """Tables 3 and 5 are judged on images held out of the training set, all others on the data set's own."""
    study = Study(paper="sasa", data=data)
    protocols = {table: {cell.config.protocol for cell in cells(table, study)} for table in SASA}
    held_out = {table for table, found in protocols.items() if found == {"val-split"}}
    assert held_out == {"3", "5"} == {t for t in SASA if paper("sasa")[t].evaluation_set == "validation"}
    assert all(found == {"val-original"} for table, found in protocols.items() if table not in held_out)


def test_what_a_row_is_compared_with():
    """Early attention is compared with as much late attention, and other groups of stages with none."""
    found = {table: bases(printed(table, "sasa"), table, "sasa") for table in SASA}
    assert found["1"] == [None, 0, 0, None, 3, 3, None, 6, 6]
    rows = printed("3", "sasa")
    pairs = {rows[i].setting: rows[base].setting for i, base in enumerate(found["3"]) if base is not None}
    assert pairs == dict.fromkeys(["1, 2, 3, 4", "2, 3, 4", "3, 4", "4"], "none") | {
        "1": "4",
        "1, 2": "3, 4",
        "1, 2, 3": "2, 3, 4",
    }
    against = {table: {printed(table, "sasa")[b].setting for b in found[table] if b is not None} for table in "4567"}
    assert against == {
        "4": {7},
        "5": {"relative"},
        "6": {"content and position"},
        "7": {"spatially aware values"},
    }


@pytest.mark.parametrize("data", ["digits", "fashion"])
def test_every_row_has_a_miniature_that_can_be_built(data):
    study, side = Study(paper="sasa", data=data), SIDES[data]
    assert len(unique(every(study))) == 27
    for cell in unique(every(study)):
        network = blueprint(cell.config.model, **{"num_classes": 10} | cell.config.options)
        assert network(torch.empty(2, 3, side, side, device="meta")).shape == (2, 10)
        sides = [x.shape[-1] for x in network.features(torch.empty(2, 3, side, side, device="meta"))]
        assert sides == maps(cell.config.options, side)


def test_parameters_stand_to_each_other_as_in_the_paper_and_flops_are_told():
    """Parameters are within 5 %; the FLOPs of a network with attention are up to 1.52 times what they are in the
    paper."""
    far = {}
    for table in SASA:
        of_table = cells(table, FASHION)
        for cell in of_table:
            if cell.base is None:
                continue
            shares = sizes.shares(cell, of_table[cell.base])
            assert shares["params_of_base"] == pytest.approx(shares["params_of_base_full_size"], rel=0.05)
            far[table, cell.row.network, cell.row.setting] = shares["flops_of_base"] / shares["flops_of_base_full_size"]
    assert max(far, key=lambda key: far[key]) == ("3", "ResNet50", "1, 2, 3, 4")
    assert max(far.values()) == pytest.approx(1.516, abs=0.001)
    assert min(far.values()) == pytest.approx(0.843, abs=0.001)


def test_networks_that_share_a_learning_rate():
    """Networks whose stem reduces the image are a group of their own, since their maps and widths differ."""
    groups = Counter(cell.group for cell in every(FASHION))
    assert groups == {"convolution": 1, "stand_alone": 17, "convolution_reduced": 3, "stand_alone_reduced": 9}
    assert groups.keys() == DEFAULTS["sasa"].keys()
    assert {cell.group for cell in every(FULL)} == {"convolution", "stand_alone"}
    tuned = FASHION.with_rates({name: {"chosen": 0.1 * number} for number, name in enumerate(groups, start=1)})
    rates = {name: 0.1 * number for number, name in enumerate(groups, start=1)}
    assert {cell.group: cell.config.lr for cell in every(tuned)} == rates


@pytest.mark.parametrize("group", DEFAULTS["sasa"])
def test_a_learning_rate_is_chosen_with_a_network_of_the_tables(tmp_path, group):
    tuning = Tuning(study=FASHION, runs=tmp_path, families=(group,))
    config = tuning.task(group, 0.1, 1000).config
    assert config.protocol == "val-split"
    ours = {cell.key for cell in every(FASHION) if cell.group == group}
    protocols = ("val-split", "val-original")
    assert ours & {replace(config, seed=0, protocol=protocol).fingerprint() for protocol in protocols}


@pytest.mark.parametrize(("name", "steps"), [("sasa_fashion_study", 625), ("sasa_digits_study", 480)])
def test_a_miniature_scales_the_recipe_to_its_own_length(name, steps):
    """ImageNet without 51 images of each class has 299 steps an epoch."""
    full, small = load(RECIPES / "sasa_imagenet.yaml"), load(RECIPES / f"{name}.yaml")
    original = full.epochs * ((1_281_167 - 51_000) // full.batch)
    assert original == 130 * 300
    assert small.norm_momentum * steps == pytest.approx(1e-4 * original, rel=0.02)
    assert (1 - small.ema) * steps == pytest.approx(1e-4 * original, rel=0.02)
    assert small.warmup_epochs / small.epochs == pytest.approx(10 / 130, rel=0.01)
    for field in ("momentum", "nesterov", "weight_decay", "weight_decay_on", "ema_of", "label_smoothing", "lr_every"):
        assert getattr(small, field) == getattr(full, field)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("sasa_resnet50", "sasa_resnet50 has attention in its stem; expected a convolution"),
        ("resnet26", "resnet26 has no miniature; expected a classifier of SASA's tables"),
        ("retinanet_resnet50", "retinanet_resnet50 has no miniature"),
        ("vit", "vit has no miniature"),
    ],
)
def test_networks_without_a_miniature(model, expected):
    with pytest.raises(ValueError, match=expected):
        miniature(model, {}, reduced=False)


def results(table, top1, seeds=6, smoke=False):
    study = made_up_runs.study(seeds, tables=[table], smoke=smoke, paper="sasa")
    configs = [cell.config for cell in cells(table, Study(paper="sasa"))]
    return made_up_runs.results(configs, top1, study)


def of_table_3(number, seed):
    """Attention in later stages is worth more."""
    return 80.0 + [0, 1, 2, 3, 2, -1, -2, -3][number] + 0.1 * ((seed * (number + 3)) % 5)


def test_a_page_has_verdicts_ratios_and_its_set_of_images(tmp_path):
    given = results("3", of_table_3)
    records.write(tmp_path / records.FILE, given)
    again = records.read(tmp_path / records.FILE)
    assert again.paper == "sasa"
    shown = report.page("3", again)
    assert [row["paper_difference"] for row in shown.rows] == [None, 0.7, 1.2, 1.2, 0.7, -0.5, -1.1, -0.8]
    assert [row["verdict"] for row in shown.rows] == ["", *["supported"] * 7]
    text = report.render(shown, "md")
    assert "# SASA Table 3: stages with attention" in text
    assert "digits-8x8 miniature, 6 seeds, not ImageNet" in text
    assert "FLOPs, full size (2 per multiply-add)" in text
    assert "Judged on images held out of the training set (val-split)" in text
    row = shown.rows[1]
    assert row["note"].endswith("0.74 of the base's parameters (full size 0.71), 1.33 of its FLOPs (0.85)")
    assert "the second (4 × 4), the third (2 × 2) and the fourth (1 × 1) stage" in row["note"]
    assert row["params_of_base"] == pytest.approx(0.736, abs=0.001)
    assert row["flops_flop2_full_size"] == pytest.approx(7.0e9, rel=0.01)


def test_the_summary_has_a_table_for_each_set_of_images():
    shown = [report.page(table, results(table, lambda number, seed: 80.0 + number + 0.1 * seed)) for table in "34"]
    text = summary.summary(shown, results("3", of_table_3))
    held_out, tested = text.split("### Judged on ")[1:]
    assert held_out.startswith("images held out of the training set (val-split)")
    assert tested.startswith("the data set's own images for validation or test (val-original)")
    assert "[4]" not in held_out
    assert "[3]" not in tested
    assert "# Accuracy tables of SASA, digits" in text


def test_at_full_scale_a_page_says_that_the_recipe_is_known_in_part():
    assert "recipe as far as it is known" in report.caution("folder", 1, "sasa")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--paper", "swin"], "unknown paper 'swin'; expected 'san' or 'sasa'"),
        (["table8", "--paper", "sasa"], "unknown table 'table8'; expected 'table1', 'table3', .* or 'all'"),
        (["table1"], "unknown table 'table1'; expected 'table3', "),
        (["--paper", "sasa", "--accumulate", "0"], "accumulate is 0; expected a positive integer"),
    ],
)
def test_bad_input(argv, expected):
    with pytest.raises(ValueError, match=expected):
        reproduce.main(argv)


def test_a_folder_of_another_paper_is_refused(tmp_path):
    given = results("3", of_table_3)
    records.write(tmp_path / records.FILE, given)
    with pytest.raises(ValueError, match=r"is of a study with paper 'sasa', not 'san'.*; choose another --output"):
        reproduce.main(["table3", "--output", str(tmp_path), "--dry-run"])


def test_pages_are_drawn_from_results_without_naming_the_paper(tmp_path, capsys):
    records.write(tmp_path / records.FILE, results("5", lambda number, seed: 80.0 + number + 0.1 * seed))
    assert reproduce.main(["--from", str(tmp_path)]) == 0
    assert "# SASA Table 5: positions" in capsys.readouterr().out
    assert (tmp_path / "tables" / "table5.csv").exists()


@pytest.mark.deep
def test_smoke_of_every_table(tmp_path, capsys):
    """31 runs of two epochs; two minutes on two idle cores."""
    assert reproduce.main(["--paper", "sasa", "--smoke", "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 31
    assert {path.stem for path in tmp_path.glob("tables/*.csv")} == {f"table{name}" for name in SASA}
    for page in [*(tmp_path / "tables").glob("*.md"), tmp_path / "README.md"]:
        assert "smoke: pipeline only" in page.read_text()
