import json
import math
from dataclasses import replace

import made_up_runs
import pytest
from made_up_runs import WHERE

from studies.judging.statistics import holm, paired
from studies.reproduction import records, report, sizes, summary
from studies.reproduction.grid import cells
from studies.reproduction.study import Study


@pytest.fixture(autouse=True)
def _no_networks_are_counted(monkeypatch):
    monkeypatch.setattr(sizes, "full_size", lambda cell: {"params": 10_530_000, "flops_paper": 2_200_000_000})


def results(table, top1, seeds=6, smoke=False, **changed):
    """Made-up runs: `top1` takes the number of a row and a seed; None is a failed run."""
    study = made_up_runs.study(seeds, tables=[table], smoke=smoke)
    return made_up_runs.results([cell.config for cell in cells(table, Study())], top1, study, **changed)


def of_table_8(number, seed):
    """Convolution has 90, the default 80, no position far less, and absolute positions as much as the default."""
    noise = [0.3, -0.2, 0.1, -0.4, 0.2, 0.0][seed]
    return [90.0, 60.0 + 2 * noise, 80.0 + (-1) ** seed, 80.0 + noise][number]


def test_verdicts_are_those_of_the_corrected_differences():
    given = results("8", of_table_8)
    rows = report.page("8", given).rows
    assert [row["verdict"] for row in rows] == ["", "supported", "equivalent", "contradicted"]
    assert [row["paper_difference"] for row in rows] == [None, -5.1, -2.7, 1.4]
    values = [{seed: of_table_8(number, seed) for seed in range(6)} for number in range(4)]
    plain = [paired(values[1], values[3]), paired(values[2], values[3]), paired(values[3], values[0])]
    for row, expected in zip(rows[1:], holm(plain), strict=True):
        assert (row["difference"], row["p_holm"]) == (expected.mean, expected.p_adjusted)
        assert (row["difference_low"], row["difference_high"]) == (expected.low, expected.high)
        assert row["p_holm"] >= row["p"]
    assert [row["against"] for row in rows] == ["", *["SAN10 pairwise, relative"] * 2, "ResNet26 convolution"]


def test_a_tie_in_the_paper_is_a_claim_of_equality():
    rows = report.page("4", results("4", lambda number, seed: 80 + 0.01 * number + 0.1 * seed * (number % 2))).rows
    tied = [row for row in rows if row["paper_difference"] == 0]
    assert [row["setting"] for row in tied] == ["summation", "hadamard_product"]
    assert {row["verdict"] for row in tied} <= {"equivalent", "undecided"}
    assert all(row["resolvable"] > 0 for row in rows[1:] if row["seeds_compared"] and row["difference_low"] is not None)


def test_every_page_says_that_digits_are_not_imagenet():
    given = results("8", of_table_8)
    shown = report.page("8", given)
    sentence = (
        "digits-8x8 miniature, 6 seeds, not ImageNet; the paper's numbers are shown for reference. Only the sign of a "
        "difference is compared, and whether its interval lies within the paper's difference."
    )
    for text in (*(report.render(shown, form) for form in ("md", "csv", "json")), summary.summary([shown], given)):
        assert sentence in text
    assert "top-5 (10 classes: saturated)" in report.render(shown, "md")


def test_what_is_missing_is_told():
    given = results("8", lambda number, seed: None if (number, seed) == (1, 2) else of_table_8(number, seed))
    shown = report.page("8", given)
    assert [row["seeds"] for row in shown.rows] == [6, 5, 6, 6]
    assert shown.rows[1]["seeds_compared"] == 5
    (sentence,) = shown.missing
    assert sentence.startswith("SAN10 pairwise, none, seed 2: the loss is not finite")
    assert sentence in report.render(shown, "md")
    assert "5 of 6" in report.render(shown, "md")
    assert sentence in summary.summary([shown], given)


def test_a_table_of_nothing_but_failures_is_still_drawn():
    shown = report.page("8", results("8", lambda number, seed: None))
    assert len(shown.missing) == 24
    assert "0 of 6" in report.render(shown, "md")
    assert shown.rows[1]["verdict"] == "not applicable (0 of at least 2 seeds)"


def test_the_best_epoch_is_beside_the_last_where_all_were_judged():
    given = results("8", of_table_8)
    assert "best epoch" not in report.render(report.page("8", given), "md")
    for run in given.runs.values():
        run["best_top1"] = run["top1"] + 0.5
    shown = report.page("8", given)
    assert all(row["best_top1"] == pytest.approx(row["ours"] + 0.5) for row in shown.rows)
    assert "our best epoch, mean" in report.render(shown, "md")
    next(iter(given.runs.values())).pop("best_top1")
    assert "best_top1" not in report.page("8", given).rows[0]


def test_the_papers_figures_may_be_of_the_best_epoch():
    assert "the paper's may be of the epoch that is best on the validation set" in report.caution("folder", 1)


def test_smoke_shows_no_figures():
    given = results("8", of_table_8, 1, smoke=True)
    shown = report.page("8", given)
    text = report.render(shown, "md") + summary.summary([shown], given)
    assert "smoke: pipeline only" in text
    assert not {"ours", "difference", "top5", "loss"} & set().union(*shown.rows)
    assert {row["verdict"] for row in shown.rows} == {"", "smoke: pipeline only"}


def test_versions_are_not_mixed():
    given = results("8", of_table_8, where=[WHERE, WHERE | {"versions": {"saprof": "1", "torch": "3"}}])
    next(iter(given.runs.values()))["where"] = 1
    with pytest.raises(ValueError, match="table 8 would mix runs of saprof 1, torch 2 and saprof 1, torch 3"):
        report.page("8", given)


@pytest.mark.parametrize(("name", "value"), [("data", "digits16"), ("epochs", 3), ("held_out", 7)])
def test_recipes_are_not_mixed(name, value):
    given = results("8", of_table_8)
    list(given.runs.values())[-1]["facts"][name] = value
    with pytest.raises(ValueError, match=rf"would mix runs with {name} .* and {value!r}"):
        report.page("8", given)


def test_protocols_are_not_mixed():
    given = results("8", of_table_8)
    list(given.runs.values())[-1]["facts"]["protocol"] = "val-original"
    with pytest.raises(ValueError, match="would mix runs with protocol 'val-split' and 'val-original'"):
        report.page("8", given)


def robust(run, turned, attacked):
    accuracy = {
        "none": 95.0,
        **dict.fromkeys(["clockwise_90", "clockwise_180", "clockwise_270", "upside_down"], turned),
    }
    without = {"classes": ["6", "9"], "manipulations": accuracy | {"none": 96.0}}
    attacks = {"pgd_8_4_2": {"success_rate": 100 - attacked, "top1": attacked}}
    run["robustness"] = {"n": 500, "manipulations": accuracy, "without": without, "attacks": attacks}


def test_table_9_compares_drops():
    given = results("9", lambda number, seed: 95.0)
    for number, cell in enumerate(cells("9", Study())):
        for seed in range(6):
            run = given.runs[replace(cell.config, seed=seed).fingerprint()]
            robust(run, turned=50.0 + 0.1 * seed + (number % 3 == 1) * (5 + 0.01 * seed**2), attacked=80.0)
    shown = report.page("9", given)
    assert len(shown.rows) == 36
    row = shown.rows[4]  # SAN10 pairwise, rotated by 90 degrees, against ResNet26
    assert (row["against"], row["measure"], row["paper"]) == ("ResNet26 convolution, clockwise_90", "top-1 drop", 23.1)
    assert row["paper_difference"] == -1.4
    assert row["difference"] == pytest.approx(-5 - 0.01 * 55 / 6)
    assert row["verdict"] == "supported"
    assert row["ours_without"] == pytest.approx(row["ours"] + 1)
    assert "without classes 6 9" in report.render(shown, "md")


def test_table_10_compares_success_and_accuracy_and_claims_nothing_of_wider_attacks():
    given = results("10", lambda number, seed: 95.0)
    for number, cell in enumerate(cells("10", Study())):
        for seed in range(6):
            run = given.runs[replace(cell.config, seed=seed).fingerprint()]
            robust(run, turned=50.0, attacked=80.0 + 0.1 * seed + (number % 3 > 0) * (3 + 0.01 * seed**2))
    rows = report.page("10", given).rows
    ours = [row for row in rows if row["setting"] == "pgd_8_4_2" and row["network"] == "SAN10"]
    assert {(row["measure"], row["verdict"]) for row in ours} == {("success rate", "supported"), ("top-1", "supported")}
    wider = [row for row in rows if row["paper"] is None and row["against"]]
    assert wider
    assert {row["verdict"] for row in wider} == {"not applicable (the paper has no such difference)"}


def test_a_run_that_was_not_judged_is_missing_from_table_9():
    shown = report.page("9", results("9", lambda number, seed: 95.0, 2))
    assert len(shown.missing) == 18


def test_results_are_read_as_they_were_written(tmp_path):
    given = results("8", of_table_8)
    records.write(tmp_path / records.FILE, given)
    again = records.read(tmp_path / records.FILE)
    assert (again.study, again.failed, list(again.where)) == (given.study, given.failed, given.where)
    assert report.render(report.page("8", again), "json") == report.render(report.page("8", given), "json")
    content = json.loads((tmp_path / records.FILE).read_text())
    assert content["common"]["data"] == "digits"
    assert "data" not in content["runs"][0]["facts"]


def test_results_outlive_a_new_field_of_the_config(tmp_path):
    given = results("8", of_table_8)
    records.write(tmp_path / records.FILE, given)
    content = json.loads((tmp_path / records.FILE).read_text())
    for name in ("compile", "remainder", "tf32"):
        del content["common"][name]  # as if the fields were newer than the file
    (tmp_path / records.FILE).write_text(json.dumps(content))
    assert not report.page("8", records.read(tmp_path / records.FILE)).missing


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema": 2}, "its schema is 2, not 1"),
        ({"common": {"colour": "red"}}, "there are runs with colour; expected fields of studies.config.Config"),
    ],
)
def test_results_of_another_time(tmp_path, change, expected):
    records.write(tmp_path / records.FILE, results("8", of_table_8))
    content = json.loads((tmp_path / records.FILE).read_text())
    (tmp_path / records.FILE).write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=expected):
        records.read(tmp_path / records.FILE)


def test_results_that_are_damaged_or_not_there(tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a finished study"):
        records.read(tmp_path / records.FILE)
    for damaged in ("{", "", "[]", "null", "3"):
        (tmp_path / records.FILE).write_text(damaged)
        with pytest.raises(
            ValueError, match=r"cannot be read .*; fetch it again; or delete it, and the study's command"
        ):
            records.read(tmp_path / records.FILE)


PARTS = {
    "": (lambda content: content, records.CONTENT),
    "study": (lambda content: content["study"], records.STUDY),
    "place": (lambda content: content["where"][0], records.PLACE),
    "run": (lambda content: content["runs"][0], records.RUN),
}


@pytest.mark.parametrize(("part", "field"), [(part, field) for part, (_, types) in PARTS.items() for field in types])
def test_results_of_which_a_part_is_lost_or_of_another_kind(tmp_path, part, field):
    records.write(tmp_path / records.FILE, results("8", of_table_8))
    whole = (tmp_path / records.FILE).read_text()
    odd = {} if PARTS[part][1][field] is list else []
    for damage in (lambda found: found.pop(field), lambda found: found.update({field: odd})):
        content = json.loads(whole)
        damage(PARTS[part][0](content))
        (tmp_path / records.FILE).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"cannot be read \((no )?{field} in .*; fetch it again"):
            records.read(tmp_path / records.FILE)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content["runs"].__setitem__(0, "run"), "run 0 is 'run'"),
        (lambda content: content["runs"][0].update(where=7), "run 0 was made at place 7 of 1"),
        (lambda content: content["runs"][0].update(top1=200), "run 0 has a top-1 of 200 % of"),
        (lambda content: content["runs"][0].update(top1=math.nan), "run 0 has a top-1 of nan % of"),
        (lambda content: content["runs"][0].update(n=0), "run 0 has a top-1 of 90.0 % of 0 images"),
        (lambda content: content["common"].update(epochs="x"), "the config of a run is impossible: "),
        (lambda content: content.update(learning_rates={"rule": "", "data": ""}), "no families in its learning rates"),
    ],
)
def test_results_that_cannot_be(tmp_path, change, expected):
    records.write(tmp_path / records.FILE, results("8", of_table_8))
    content = json.loads((tmp_path / records.FILE).read_text())
    change(content)
    (tmp_path / records.FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"cannot be read \({expected}"):
        records.read(tmp_path / records.FILE)


def test_pages_and_summary_are_written(tmp_path):
    given = results("8", of_table_8)
    summary.write(tmp_path, given)
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"table8.md", "table8.csv", "table8.json"}
    readme = (tmp_path / "README.md").read_text()
    assert "1 supported, 1 contradicted, 1 equivalent, 0 undecided, 0 not applicable, of 3 comparisons" in readme
    assert "That of the recipe for every family" in readme
    assert "24 runs: a CPU, 1 thread per run" in readme
