"""The study of footprint shapes: its networks, its comparisons and its recorded results."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import made_up_runs
import pandas as pd
import pytest
import torch
from made_up_runs import WHERE, finish

from saprof.command import FAILED, OK
from saprof.operators.footprint import Footprint
from studies import footprints
from studies.config import Config
from studies.failures import CannotWrite
from studies.judging.statistics import holm, paired
from studies.reproduction import footprint_shapes, records
from studies.reproduction.executors import Task
from studies.reproduction.figures import footprints_figure
from studies.reproduction.footprint_shapes import base, frame, networks, note, rows
from studies.reproduction.grid import cells
from studies.reproduction.study import Study

RECORDED = Path(footprints.__file__).parent / "recorded" / "footprints_digits"


def groups(asked, families=("pairwise", "patchwise")):
    return networks(Study(), families, [Footprint.parse(text) for text in asked])


def results(asked, top1, families=("pairwise", "patchwise"), seeds=3, **changed):
    """Made-up runs: `top1` takes a family, a footprint and a seed; None is a failed run."""
    every = [network for group in groups(asked, families) for network in group]
    study = made_up_runs.study(seeds, families=list(families), footprints=asked)

    def top1_of(number, seed):
        return top1(every[number].family, str(every[number].footprint), seed)

    return made_up_runs.results([network.config for network in every], top1_of, study, **changed)


def test_networks_are_grouped_by_their_taps():
    asked = ["square:5", "square:3", "random:25@seed1", "cross:5"]
    assert [[str(network) for network in group] for group in groups(asked)] == [
        ["pairwise, square:5", "pairwise, random:25@seed1", "patchwise, square:5", "patchwise, random:25@seed1"],
        ["pairwise, square:3", "pairwise, cross:5", "patchwise, square:3", "patchwise, cross:5"],
    ]


def test_a_square_is_the_network_of_table_7():
    """The configs differ only in the spelling of the footprint; the network is the same."""
    (theirs,) = [cell.config for cell in cells("7", Study()) if (cell.row.family, cell.row.setting) == ("patchwise", 5)]
    (ours,) = groups(["square:5"], ["patchwise"])[0]
    assert theirs.options == {"attention": "composed", "footprints": [5, 3]}
    assert ours.config == replace(theirs, options={"attention": "composed", "footprints": ["square:5", 3]})


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["cross:13", "square:5", "dilated:5x2"], ["square:5", None, "square:5"]),
        (["cross:13", "random:25@seed1", "dilated:5x2"], [None, "cross:13", "cross:13"]),
        (["cross:13", "square:3"], [None]),
    ],
)
def test_the_base_is_the_square_or_the_first_of_the_family(asked, expected):
    group = groups(asked)[0]
    found = [base(network, group) for network in group]
    assert [other and str(other.footprint) for other in found] == expected * 2
    assert all(other is None or other.family == network.family for network, other in zip(group, found, strict=True))


def made_up(family, footprint, seed):
    return {"pairwise": 80.0, "patchwise": 90.0}[family] + {"cross:13": 2.0}.get(footprint, 0) + (0.1, 0.4, 0.2)[seed]


def test_differences_are_paired_by_seed_and_corrected_within_a_number_of_taps():
    asked = ["square:5", "cross:13", "random:25@seed1", "square:3", "cross:5"]

    more = {"cross:13": (0.3, 0.1, 0.2), "cross:5": (1, 2, 4)}

    def top1(family, footprint, seed):
        return made_up(family, footprint, seed) + more.get(footprint, (0, 0, 0))[seed]

    found = {(row["family"], row["footprint"]): row for row in rows(results(asked, top1))}
    assert len(found) == 10

    def plain(family, footprint, against):
        ours, theirs = ({seed: top1(family, text, seed) for seed in range(3)} for text in (footprint, against))
        return paired(ours, theirs)

    of_25 = [("pairwise", "cross:13"), ("pairwise", "random:25@seed1"), ("patchwise", "cross:13")]
    of_25 += [("patchwise", "random:25@seed1")]
    for which, expected in zip(of_25, holm([plain(*which, "square:5") for which in of_25]), strict=True):
        row = found[which]
        assert (row["against"], row["difference"], row["p_holm"]) == ("square:5", expected.mean, expected.p_adjusted)
        assert (row["difference_low"], row["difference_high"]) == (expected.low, expected.high)
    of_9 = holm([plain(family, "cross:5", "square:3") for family in ("pairwise", "patchwise")])
    assert found["patchwise", "cross:5"]["p_holm"] == of_9[1].p_adjusted
    assert found["pairwise", "square:5"]["difference"] is None
    assert found["pairwise", "cross:13"]["top1"] == pytest.approx(82 + 0.7 / 3 + 0.2)


def test_seeds_that_failed_are_told_and_left_out():
    def top1(family, footprint, seed):
        return None if (footprint, seed) == ("cross:13", 1) else made_up(family, footprint, seed)

    given = results(["square:5", "cross:13"], top1, ["pairwise"])
    (_, row) = rows(given)
    assert (row["seeds"], row["seeds_compared"], row["difference"]) == (2, 2, pytest.approx(2.0))
    (sentence,) = footprint_shapes.missing(given)
    assert sentence.startswith("pairwise, cross:13, seed 1: the loss is not finite (run ")
    shown = footprint_shapes.page(given)
    assert "2 of 3" in shown
    assert f"- {sentence}" in shown


def test_a_network_without_runs_has_a_row_and_no_figures():
    given = results(["square:5", "cross:13"], lambda family, footprint, seed: 90.0 if footprint == "square:5" else None)
    assert [row["seeds"] for row in rows(given)] == [3, 0, 3, 0]
    assert "0 of 3" in footprint_shapes.page(given)


def test_one_seed_gives_a_difference_and_no_interval():
    (_, row) = rows(results(["square:5", "cross:13"], made_up, ["pairwise"], seeds=1))
    assert (row["difference"], row["difference_low"], row["p_holm"]) == (pytest.approx(2.0), None, None)


def test_runs_of_several_versions_are_not_mixed():
    other = WHERE | {"versions": {"saprof": "1", "torch": "3"}}
    given = results(["square:5", "cross:13"], made_up, where=[WHERE, other])
    next(iter(given.runs.values()))["where"] = 1
    with pytest.raises(ValueError, match="would mix runs of saprof 1, torch 2 and saprof 1, torch 3"):
        rows(given)


def test_a_footprint_larger_than_the_map_is_noted():
    assert note(Footprint.square(8), "digits") == ""
    assert note(Footprint.square(5, 2), "digits") == ("spans 9 × 9, more than the first stage's map of 8 × 8")
    assert note(Footprint.rectangle(1, 11), "digits").startswith("spans 1 × 11, ")
    assert note(Footprint.rectangle(1, 11), "digits16") == ""


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--footprint", "square:5,hexagon:3"], "cannot read footprint 'hexagon:3'; expected a size such as 7"),
        (["--footprint", "random:25@seed1@size3"], "footprint size is 3, for 25 taps; expected at least 5"),
        (["--footprint", "5,7 stride=2"], "footprint square:7 stride=2 has stride 2; expected 1"),
        (["--family", "triple"], "unknown family 'triple'; expected pairwise, patchwise, stand_alone or all"),
        (["--data", "folder"], "unknown data set 'folder'; expected 'digits', 'digits16', 'cifar10' or 'fashion'"),
        (["--device", "tpu"], "unknown device 'tpu'; expected 'auto', 'cpu' or 'cuda'"),
        (["--seeds", "0"], "seeds is 0; expected a positive integer"),
        (["--epochs", "-1"], "epochs is -1; expected a positive integer"),
        (["--jobs", "0"], "jobs is 0; expected a positive integer"),
        (["--rates", "/nowhere"], "results.json is missing; expected the folder of a finished study"),
        (
            ["--data", "digits16", "--rates", str(RECORDED.with_name("digits"))],
            "are those of digits; expected those of",
        ),
        (["--from", "/nowhere"], "results.json is missing; expected the folder of a finished study"),
        (
            ["--from", "x", "--seeds", "5", "--dry-run"],
            "--from has no effect together with --seeds, --dry-run; omit these",
        ),
        (
            ["--from", str(RECORDED.with_name("digits"))],
            "is not of a study of footprints; expected the folder of python -m",
        ),
    ],
)
def test_bad_input(argv, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        footprints.main([*argv, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_told_before_any_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match=f"cannot write to {tmp_path}/file: File exists; choose another --output"):
        footprints.main(["--footprint", "3", "--seeds", "1", "--output", str(tmp_path / "file")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_device_that_is_missing_is_missed_once(tmp_path):
    with pytest.raises(ValueError, match=r"^device is 'cuda', and torch sees no CUDA device; expected 'cpu' or 'auto'"):
        footprints.main(["--footprint", "3", "--seeds", "1", "--device", "cuda", "--output", str(tmp_path)])
    assert not list(tmp_path.glob("runs/*"))


def test_help_needs_no_torch():
    code = (
        "import sys; from studies.footprints import options; options().format_help(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dry_run_trains_nothing(tmp_path, capsys):
    asked = ["--footprint", "5,square:5,cross:13", "--family", "pairwise", "--seeds", "2", "--output", str(tmp_path)]
    assert footprints.main([*asked, "--dry-run"]) == OK
    shown = capsys.readouterr().out
    assert "2 networks, 2 seeds" in shown
    assert "4 runs: 0 finished, 4 left" in shown
    assert "cross:13 spans 13 × 13, more than the first stage's map of 8 × 8" in shown
    assert "nothing to compare" not in shown
    assert not list(tmp_path.iterdir())


def test_a_footprint_without_another_of_as_many_taps_is_noted(tmp_path, capsys):
    asked = ["--footprint", "3,5,cross:5", "--family", "pairwise,patchwise", "--output", str(tmp_path), "--dry-run"]
    assert footprints.main(asked) == OK
    shown = capsys.readouterr().out
    assert "square:5 alone has 25 taps here, so that there is nothing to compare it with" in shown
    assert shown.count("alone has") == 1


def pretend(task: Task):
    """Replaces training."""
    finish(task, top1=90.0 + len(task.config.options["footprints"][0]) + task.config.seed)


class Here:
    """An executor in this process; it skips finished tasks."""

    def __init__(self, jobs):
        self.done = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def do(self, tasks, label="runs"):
        for task in tasks:
            if task.left():
                pretend(task)


def test_what_is_recorded_is_drawn_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(footprints, "Local", Here)
    asked = ["--footprint", "5,cross:13", "--family", "pairwise,patchwise", "--seeds", "2", "--output", str(tmp_path)]
    assert footprints.main(asked) == OK
    shown = capsys.readouterr().out
    assert "| pairwise  | cross:13  |" in shown
    assert "chosen with 7 × 7: pairwise 0.4, patchwise 0.05." in shown, "the rates that studies/digits chose"
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    assert len(runs) == 8
    assert {json.loads((path.parent / "result.json").read_text())["n"] for path in runs} == {500}
    assert footprints.main(asked) == OK
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    assert footprints.main(["--from", str(tmp_path), "--output", str(tmp_path / "again")]) == OK
    assert (tmp_path / "again" / "README.md").read_text() == (tmp_path / "README.md").read_text()
    kept = records.read(tmp_path / records.FILE)
    assert {run["facts"]["lr"] for run in kept.runs.values()} == {0.4, 0.05}
    shutil.rmtree(tmp_path / "runs")  # as in a clone, which has the record alone
    assert footprints.main(asked) == OK
    assert not (tmp_path / "runs").exists()
    assert records.read(tmp_path / records.FILE).runs == kept.runs


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        (["--footprint", "5,7"], "cross:13"),
        (["--family", "patchwise"], "pairwise"),
        (["--seeds", "1"], "seeds 2"),
        (["--epochs", "3", "--data", "digits"], "epochs 20"),
    ],
)
def test_a_page_that_would_lose_something_is_kept(changed, lost, tmp_path, monkeypatch):
    monkeypatch.setattr(footprints, "Local", Here)
    asked = ["--footprint", "5,cross:13", "--family", "pairwise", "--seeds", "2", "--output", str(tmp_path)]
    assert footprints.main(asked) == OK
    page = (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match=f"{tmp_path} holds a study with {lost}; include these, or choose another"):
        footprints.main([*asked, *changed])
    assert (tmp_path / "README.md").read_text() == page
    assert footprints.main([*asked, "--footprint", "3,5,cross:13", "--family", "all", "--seeds", "3"]) == OK
    assert (tmp_path / "README.md").read_text().count("| 3 of 3 |") == 9


def test_a_run_that_failed_is_told_by_the_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(footprints, "Local", Here)
    monkeypatch.setattr(sys.modules[__name__], "pretend", lambda task: task.run.fail("NonFinite", "not finite"))
    assert (
        footprints.main(["--footprint", "5", "--family", "pairwise", "--seeds", "1", "--output", str(tmp_path)])
        == FAILED
    )
    assert "failed: pairwise, square:5, seed 0: not finite" in capsys.readouterr().err


def recorded_with(folder, change) -> Path:
    """The recorded study's results, changed."""
    content = json.loads((RECORDED / records.FILE).read_text())
    change(content)
    folder.mkdir(exist_ok=True)
    (folder / records.FILE).write_text(json.dumps(content))
    return folder


def test_a_run_that_is_not_recorded_is_told_by_the_exit_code(tmp_path, capsys):
    folder = recorded_with(tmp_path, lambda content: content["study"].update(seeds=7))
    assert footprints.main(["--from", str(folder)]) == FAILED
    shown = capsys.readouterr()
    assert "27 runs not in these tables:" in shown.out
    assert "failed: pairwise, square:5, seed 6: not run (run " in shown.err
    assert f"figures in {folder / records.FILE}" in shown.err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda study: study.update(epochs=3), "the study is of 3 epochs, its runs of 20; expected the same"),
        (lambda study: study.update(families=["triple"]), "is of digits, and of triple; expected one of"),
        (lambda study: study.update(data="mnist"), "is of mnist, and of pairwise, patchwise, stand_alone; expected"),
        (lambda study: study.pop("families"), "is not of a study of footprints"),
    ],
)
def test_a_study_that_does_not_fit_its_runs(change, expected, tmp_path):
    folder = recorded_with(tmp_path, lambda content: change(content["study"]))
    with pytest.raises(ValueError, match=expected):
        footprints.main(["--from", str(folder)])
    assert [path.name for path in folder.iterdir()] == [records.FILE]


@pytest.mark.deep
def test_two_epochs_are_trained_once(tmp_path, capsys):
    """Two runs, as a user runs them; some seconds."""
    command = [sys.executable, "-m", "studies.footprints", "--footprint", "3,random:9@seed1", "--family", "stand_alone"]
    command += ["--seeds", "1", "--epochs", "1", "--jobs", "1", "--output", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == OK, first.stderr
    assert "runs: 100%" in first.stderr
    assert footprints.main(command[3:]) == OK
    again = capsys.readouterr()
    assert again.out == first.stdout
    assert "runs:" not in again.err, "nothing is left"
    kept = records.read(tmp_path / records.FILE)
    assert len({run["weights_sha256"] for run in kept.runs.values()}) == 2
    assert kept.where[0]["threads"] == 1


def test_every_network_has_its_accuracy_and_its_difference_drawn():
    given = results(
        ["square:5", "cross:13", "square:3", "cross:5"],
        lambda f, text, s: made_up(f, text, s) + (s + 1) ** len(text) % 7,
    )
    shown = pd.DataFrame(rows(given)).assign(caution="digits, not ImageNet.")
    figure = footprints_figure(shown)
    drawn = [list(line.get_xdata()) for axes in figure.axes for line in axes.lines]
    for _, row in shown.iterrows():
        assert any(row["top1"] in xs for xs in drawn)
        if row["against"]:
            assert any(row["difference"] in xs for xs in drawn)
    assert "not ImageNet" in figure.get_supxlabel()
    alone = pd.DataFrame(rows(results(["square:5"], made_up))).assign(caution="digits")
    assert len(footprints_figure(alone).axes) == 2, "with nothing to compare"


def test_the_recorded_page_is_drawn_from_the_results(tmp_path, capsys):
    whole = not records.read(RECORDED / records.FILE).failed
    assert footprints.main(["--from", str(RECORDED), "--output", str(tmp_path)]) == (OK if whole else FAILED)
    assert (RECORDED / "README.md").read_text() == (tmp_path / "README.md").read_text()


def test_every_recorded_run_is_whole_and_stands_once():
    kept = records.read(RECORDED / records.FILE)
    for fingerprint, run in kept.runs.items():
        assert Config(**run["facts"]).fingerprint() == fingerprint
        assert 0 <= run["top1"] <= run["top5"] <= 100
    assert len({run["weights_sha256"] for run in kept.runs.values()}) == len(kept.runs)


def test_a_recorded_square_is_the_run_of_table_7():
    """The weights are equal to the bit if the same versions trained them, since both studies train in the same way."""
    table = records.read(RECORDED.with_name("digits") / records.FILE)
    ours = records.read(RECORDED / records.FILE)
    (mine,) = [run for run in ours.runs.values() if _is(run, "square:5")]
    (theirs,) = [run for run in table.runs.values() if _is(run, 5)]
    if ours.versions(mine) == table.versions(theirs):
        assert mine["weights_sha256"] == theirs["weights_sha256"]


def _is(run, footprint):
    facts = run["facts"]
    wanted = ("san_mini_patchwise", {"attention": "composed", "footprints": [footprint, 3]}, 0)
    return (facts["model"], facts["options"], facts["seed"]) == wanted


def test_the_recorded_frame_has_the_rows_of_the_page():
    shown = frame(RECORDED)
    assert set(shown["family"]) == {"pairwise", "patchwise", "stand_alone"}
    assert shown["caution"].str.endswith("not ImageNet.").all()
    assert set(shown.groupby("taps")["against"].unique().map(set).map(frozenset)) <= {
        frozenset({"", base}) for base in ("square:5", "square:7")
    }
