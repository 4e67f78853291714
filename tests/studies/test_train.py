"""Runs that are stopped, killed, damaged or misused resume exactly where they were, or report why they cannot."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import networks
import pytest
import torch

import saprof
from saprof import atomic
from studies import data, train
from studies.config import Config
from studies.failures import Preempted
from studies.training import checkpoint, classification, session
from studies.training.run import Run, trained, weights_sha256

ROOT = Path(__file__).parents[2]
OWN = ("seconds", "images_per_s", "data_wait")
"""Fields of a line of metrics that depend on time."""
FEW = Config(model="networks:normed", data="few", held_out=2, batch=16, epochs=2, checkpoint_every=2)
"""60 images to train on, so three steps an epoch."""


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setitem(data.MODULES, "few", "networks")
    monkeypatch.setattr(networks.Signalling, "sent", False)
    yield
    torch.set_num_threads(1)


def lines(folder: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in OWN} for line in Run(folder).metrics()]


def outcome(folder: Path) -> tuple:
    result = Run(folder).result()
    return {key: value for key, value in result.items() if key != "train_seconds"}, lines(folder)


def arguments(config: Config) -> list[str]:
    return [f"--{name}={json.dumps(v) if isinstance(v, dict) else v}" for name, v in config.plain().items() if v != ""]


def ended(config: Config) -> tuple[int, str]:
    """The exit code of the command, and the sentence of its error."""
    argv = [argument for argument in arguments(config) if not argument.endswith("=None")]
    try:
        return train.main(argv), ""
    except ValueError as error:
        return getattr(error, "code", 2), str(error)


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def finished(tmp_path) -> Path:
    session.train(replace(FEW, output=tmp_path / "run"), progress=False)
    return tmp_path / "run"


# a run and its folder


def test_a_run_leaves_what_came_of_it(finished):
    run = Run(finished)
    result, config, last = run.result(), run.config(), run.metrics()[-1]
    assert config == replace(FEW, output=finished)
    assert result["fingerprint"] == config.fingerprint()
    assert (result["n"], result["steps"], result["protocol"]) == (20, 6, "val-split")
    assert result["top1"] == 5 * result["correct1"] == last["top1"]
    assert [line["step"] for line in run.metrics()] == [3, 6]
    assert result["best_top1"] == max(line["top1"] for line in run.metrics())
    assert not (finished / "failed.json").exists()
    session = json.loads((finished / "manifest.json").read_text())["sessions"][0]
    assert (session["step"], session["threads"], session["processes"]) == (0, 1, 1)
    assert session["torch"] == torch.__version__


def test_a_finished_run_can_be_had(finished):
    config, dataset, parts, model = trained(finished)
    result = Run(finished).result()
    assert weights_sha256(model.model.state_dict()) == result["weights_sha256"]
    score = classification.evaluate(model, parts.judged, dataset)
    assert (score.n, score.correct1, score.correct5) == (result["n"], result["correct1"], result["correct5"])
    assert not model.training
    assert config.output == finished


def test_a_network_of_ours_is_kept_for_saprof(tmp_path):
    config = replace(FEW, model="resnet_mini", options={"channels": [4, 8]}, epochs=1, output=tmp_path / "run")
    result = session.train(config, progress=False)
    kept = saprof.load(tmp_path / "run" / "model.pt")
    assert weights_sha256(kept.state_dict()) == result["weights_sha256"]


def test_a_finished_run_says_so_and_stays_as_it_is(finished, capsys):
    before = content(finished)
    assert ended(replace(FEW, output=finished, workers=1)) == (0, "")
    assert "finished already, nothing was changed" in capsys.readouterr().out
    assert content(finished) == before
    assert session.train(replace(FEW, output=finished)) == Run(finished).result()
    assert content(finished) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": 0.2}, "lr 0.1, not 0.2"),
        ({"options": {"width": 4}}, "options {}, not {'width': 4}"),
        ({"seed": 1, "epochs": 3}, "seed 0, not 1; epochs 2, not 3"),
    ],
)
def test_a_folder_of_another_run_is_refused(finished, change, sentence):
    before = content(finished)
    code, said = ended(replace(FEW, output=finished, **change))
    assert code == 2
    assert f"{finished} holds a run with {sentence}; choose another --output" in said
    assert content(finished) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    before = content(tmp_path)
    for output in (tmp_path, tmp_path / "thesis.txt"):
        assert ended(replace(FEW, output=output)) == (2, f"{output} exists and holds no run; choose another --output")
    assert content(tmp_path) == before


def test_an_empty_folder_and_one_that_was_only_claimed_are_taken(tmp_path):
    (tmp_path / "ckpt").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.1.tmp").write_text("half")
    assert ended(replace(FEW, output=tmp_path)) == (0, "")


def test_a_run_whose_batch_norms_see_more_images_than_in_the_recipe_says_so_once(tmp_path, capsys):
    assert ended(replace(FEW, output=tmp_path / "run", batch_per_process=4)) == (0, "")
    assert capsys.readouterr().err.count("warning: batch norms see 16 images at a time") == 1
    assert ended(replace(FEW, output=tmp_path / "parts", batch_per_process=4, accumulate=4)) == (0, "")
    assert "warning" not in capsys.readouterr().err


def test_the_accuracy_of_the_best_epoch_is_beside_that_of_the_last(finished, capsys):
    result = Run(finished).result()
    assert ended(replace(FEW, output=finished)) == (0, "")
    assert result["judged_epochs"] == 2
    assert f"; {result['best_top1']:.2f} % in the best of the judged epochs" in capsys.readouterr().out


def test_a_run_removes_what_it_left_half_written_when_it_was_killed(tmp_path):
    config = replace(FEW, output=tmp_path / "run")
    stop(config, calls=2)
    (killed := subprocess.Popen([sys.executable, "-c", ""])).wait()
    for place, name in (("ckpt", "step_0000000099.pt"), (".", "metrics.jsonl")):
        (tmp_path / "run" / place / f".{name}.{killed.pid}.tmp").write_bytes(b"half")
    session.train(config, progress=False)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_two_processes_do_not_share_a_folder(tmp_path):
    with Run(tmp_path / "run").claimed():
        code, said = ended(replace(FEW, output=tmp_path / "run"))
    assert code == 2
    assert said == f"another process is working on {tmp_path / 'run'}; wait for it, or stop it"
    assert ended(replace(FEW, output=tmp_path / "run")) == (0, "")


@pytest.mark.parametrize("damage", ["", "{", "[]", "1", "{}", '{"schema": 99}', "\0\0", "ÿ"])
def test_a_damaged_result_is_told_and_made_again(finished, damage):
    before, path = outcome(finished), finished / "result.json"
    path.write_text(damage, encoding="latin-1")
    code, said = ended(replace(FEW, output=finished))
    assert code == 2
    assert f"{path} is damaged" in said
    assert "delete it, and it is made again" in said
    path.unlink()
    assert ended(replace(FEW, output=finished)) == (0, "")
    assert outcome(finished) == before


def test_a_damaged_config_is_named(finished):
    (finished / "config.yaml").write_text("hello")
    code, said = ended(replace(FEW, output=finished))
    assert code == 2
    assert f"{finished / 'config.yaml'} is no config of a run" in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "san_giant"}, "unknown model 'san_giant'; expected one of the "),
        ({"data": "imagenet"}, "unknown data set 'imagenet'; expected 'digits', 'digits16', 'folder', 'cifar10'"),
        ({"model": "san_mini_pairwise", "options": {"width": 1}}, "unknown option of SAN 'width'; expected 'family'"),
        ({"batch": 61}, "batch is 61; expected at most the 60 images"),
        ({"held_out": 8}, "class 'a' has 8 images to train on, and held_out takes 8 of them"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, change, sentence):
    code, said = ended(replace(FEW, output=tmp_path / "run", **change))
    assert code == 2
    assert sentence in said
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_cannot_be_had(tmp_path):
    stop(replace(FEW, output=tmp_path / "run"), calls=2)
    for folder in (tmp_path / "run", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"{folder} holds no finished run"):
            trained(folder)


def test_weights_that_are_not_those_of_the_result_cannot_be_had(finished):
    checkpoint.paths(finished / "ckpt")[0].unlink()
    with pytest.raises(ValueError, match=r"the newest checkpoint of .* is not the one of its result.json"):
        trained(finished)
    checkpoint.paths(finished / "ckpt")[0].unlink()
    with pytest.raises(ValueError, match="has no checkpoint left"):
        trained(finished)


# stopped and resumed


@contextmanager
def asked(calls: int) -> Iterator:
    """A stop request that arrives before the `calls`-th query by training or an evaluation."""
    count = iter(range(1, 10**9))
    yield lambda: next(count) >= calls


def stop(config: Config, calls: int) -> dict | None:
    """The result, or None if the run was stopped before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "stop_requests", partial(asked, calls))
        try:
            return session.train(config, progress=False)
        except Preempted:
            return None


def in_parts(config: Config, calls: int) -> int:
    """Run to the end with a stop every few steps; return the number of stops."""
    stops = 0
    while stop(config, calls) is None:
        stops += 1
        assert stops < 50
    return stops


WAYS = {
    "plain": {"model": "networks:plain"},
    "batch norm": {},
    "dropout": {"model": "networks:dropping"},
    "average": {"ema": 0.9},
    "pieces": {"accumulate": 4},
    "clip": {"clip_norm": 0.5},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "clip_norm": 5.0},
    "fp64": {"precision": "fp64"},
    "channels last": {"model": "networks:mapped", "channels_last": True},
    "compiled": {"compile": True},
    "nesterov by step": {"nesterov": True, "lr_every": "step", "warmup_epochs": 0.5},
    "judged at the end": {"evaluate_every": 2},
    "all of train": {"protocol": "val-original"},
    "attention": {
        "model": "san_mini_pairwise",
        "options": {"channels": (8, 8), "footprints": (3, 3), "backend": "unfold"},
        "precision": "bf16",
        "ema": 0.5,
    },
    "everything": {"model": "networks:mapped", "ema": 0.5, "accumulate": 2, "precision": "fp16", "channels_last": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_in_parts_is_the_run(tmp_path, monkeypatch, way):
    if way == "compiled":  # without generated code
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(FEW, **WAYS[way])
    session.train(replace(config, output=tmp_path / "whole"), progress=False)
    stops = in_parts(replace(config, output=tmp_path / "parts"), calls=2)
    assert stops >= 3
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    sessions = json.loads((tmp_path / "parts" / "manifest.json").read_text())["sessions"]
    assert len(sessions) == stops + 1
    if way == "compiled":
        torch._dynamo.reset()


@pytest.mark.parametrize("calls", range(1, 10))
def test_a_run_stopped_anywhere_is_the_run(tmp_path, finished, calls):
    config = replace(FEW, output=tmp_path / "parts", workers=calls % 2)
    assert (stop(config, calls) is None) == (calls <= 8)  # six steps and two evaluations
    session.train(replace(config, workers=0), progress=False)
    assert outcome(tmp_path / "parts") == outcome(finished)


@pytest.mark.deep_unless(case=lambda number, workers: (number == signal.SIGTERM) == bool(workers))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("when", ["training", "evaluation"])
def test_a_signal_stops_a_run_that_then_goes_on(tmp_path, monkeypatch, capsys, number, workers, when):
    monkeypatch.setattr(classification, "evaluate", partial(classification.evaluate, batch=7))
    options = {"number": int(number), "at": 5, "training": when == "training"}  # the fifth of six steps or batches
    config = replace(FEW, model="networks:Signalling", options=options, workers=workers)
    handlers = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]
    assert ended(replace(config, output=tmp_path / "parts")) == (75, "")
    assert [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert networks.Signalling.sent
    assert "stopped, and saved; the same command resumes from there" in capsys.readouterr().err
    state = checkpoint.newest(tmp_path / "parts" / "ckpt", pytest.fail)["state"]
    assert (state["step"], state["reported"]) == ((5, 3) if when == "training" else (6, 3))
    assert len(lines(tmp_path / "parts")) == 1
    assert ended(replace(config, output=tmp_path / "parts", workers=2 - workers)) == (0, "")
    assert ended(replace(config, output=tmp_path / "whole")) == (0, "")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_second_interrupt_interrupts():
    with session.stop_requests() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_conditions_are_told(tmp_path, capsys):
    config = replace(FEW, output=tmp_path / "run")
    stop(config, calls=2)
    assert ended(replace(config, threads=2)) == (0, "")
    said = capsys.readouterr().err
    assert "resuming with another threads; the last digits will differ" in said
    assert "resuming at step 2" in said
    sessions = json.loads((tmp_path / "run" / "manifest.json").read_text())["sessions"]
    assert [(session["step"], session["threads"]) for session in sessions] == [(0, 1), (2, 2)]


def test_lines_that_a_crash_left_behind_come_again_once(tmp_path, finished):
    """Killed between a line of metrics and its checkpoint."""
    folder = tmp_path / "parts"
    stop(replace(FEW, output=folder), calls=4)  # at the end of the first epoch, before its line
    line = Run(finished).metrics()[0]
    (folder / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 6, "ep')
    session.train(replace(FEW, output=folder), progress=False)
    assert outcome(folder) == outcome(finished)


# damage


def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, finished, capsys):
    folder = tmp_path / "parts"
    stop(replace(FEW, output=folder), calls=6)  # steps 2 to 5 were saved; the last two are kept
    newest, older = checkpoint.paths(folder / "ckpt")
    newest.write_bytes(newest.read_bytes()[:-1])
    assert ended(replace(FEW, output=folder)) == (0, "")
    said = capsys.readouterr().err
    assert f"skipped: {newest} is damaged" in said
    assert f"resuming at step {int(older.stem[5:])}" in said
    assert outcome(folder) == outcome(finished)


def test_damaged_checkpoints_are_a_failure_that_is_noted(tmp_path, finished):
    folder = tmp_path / "parts"
    stop(replace(FEW, output=folder), calls=6)
    for path in checkpoint.paths(folder / "ckpt"):
        path.write_bytes(b"")
    code, said = ended(replace(FEW, output=folder))
    assert code == 5
    failed = json.loads((folder / "failed.json").read_text())
    assert (failed["kind"], failed["reason"]) == ("BadCheckpoint", said)
    for path in checkpoint.paths(folder / "ckpt"):
        path.unlink()
    assert ended(replace(FEW, output=folder)) == (0, "")
    assert not (folder / "failed.json").exists()
    assert outcome(folder) == outcome(finished)


def drop_first(text: str) -> str:
    return text.partition("\n")[2]


def drop_last(text: str) -> str:
    return text.rpartition("\n{")[0] + "\n"


LOST = {
    "emptied": (lambda text: "", "has 0 lines up to step 9; expected one line per epoch, the last at that step"),
    "first line": (drop_first, "has 2 lines up to step 9; expected one line per epoch"),
    "last line": (drop_last, "has 2 lines up to step 9; expected one line per epoch"),
    "half of the last line": (lambda text: text[:-9], "has 2 lines up to step 9; expected one line per epoch"),
    "junk in the middle": (lambda text: text.replace("\n", "\n\0\0\n", 1), "line 2 of"),
    "another value": (lambda text: "[]\n" + text, "line 1 of"),
    "another line": (lambda text: "{}\n" + text, "line 1 of"),
    "not text": (lambda text: "\udcff" + text, "line 1 of"),
}
"""Damages to the metrics of three epochs of three steps, and the sentences of their errors."""


@pytest.mark.parametrize("way", LOST)
def test_metrics_that_are_lost_or_damaged_are_a_failure_that_is_noted(tmp_path, way):
    config = replace(FEW, epochs=4, output=tmp_path / "run")
    change, sentence = LOST[way]
    stop(config, calls=14)  # in the fourth epoch, after three of three steps and a judgement each
    path = tmp_path / "run" / "metrics.jsonl"
    whole, saved = path.read_text(), content(tmp_path / "run" / "ckpt")
    path.write_text(change(whole), errors="surrogateescape")
    code, said = ended(config)
    assert code == 5
    assert sentence in said
    assert str(path) in said
    assert said.endswith(f"or delete {tmp_path / 'run'} to train again")
    assert (Run(tmp_path / "run").failure(), content(tmp_path / "run" / "ckpt")) == (said, saved)
    path.write_text(whole)  # restored, as the sentence says
    assert ended(config) == (0, "")
    assert [line["epoch"] for line in Run(tmp_path / "run").metrics()] == [1, 2, 3, 4]
    assert Run(tmp_path / "run").failure() is None


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_text("{")])
def test_metrics_that_are_lost_when_all_is_trained(finished, change):
    """Between the last line and the result."""
    (finished / "result.json").unlink()
    change(finished / "metrics.jsonl")
    code, said = ended(replace(FEW, output=finished))
    assert code == 5
    assert "has 0 lines up to step 6; expected one line per epoch" in said


def test_metrics_that_are_lost_in_training_are_missed_at_its_end(tmp_path, monkeypatch):
    evaluate = classification.evaluate

    def forgetting(*arguments, **options):
        (tmp_path / "metrics.jsonl").write_text("")
        return evaluate(*arguments, **options)

    monkeypatch.setattr(classification, "evaluate", forgetting)
    assert "has 1 lines up to step 6; expected one line per epoch" in ended(replace(FEW, output=tmp_path))[1]
    assert not (tmp_path / "result.json").exists()


def test_without_checkpoints_damaged_metrics_do_not_matter(tmp_path, finished):
    folder = tmp_path / "parts"
    stop(replace(FEW, output=folder), calls=6)
    for path in checkpoint.paths(folder / "ckpt"):
        path.unlink()
    (folder / "metrics.jsonl").write_text("junk\n")
    assert ended(replace(FEW, output=folder)) == (0, "")
    assert outcome(folder) == outcome(finished)


def test_checkpoints_of_another_run_are_refused(tmp_path, finished):
    folder = tmp_path / "other"
    folder.mkdir()
    (finished / "ckpt").rename(folder / "ckpt")
    code, said = ended(replace(FEW, output=folder, lr=0.2))
    assert code == 5
    assert f"the checkpoints in {folder / 'ckpt'} are of another run" in said


def test_other_images_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stop(replace(FEW, output=folder), calls=2)
    few = networks.load(FEW)
    pixels = few.train.pixels.clone()
    pixels[0] ^= 1
    monkeypatch.setattr(networks, "load", lambda config: replace(few, train=replace(few.train, pixels=pixels)))
    code, said = ended(replace(FEW, output=folder))
    assert code == 3
    assert "the listing of the train images changed" in said
    assert json.loads((folder / "failed.json").read_text())["kind"] == "BadData"


# a full disk


def fill(monkeypatch, name: str, after: int = 0) -> None:
    """Files of this name can be written `after` times; then the disk is full."""
    write, count = atomic.write, iter(range(10**9))

    def full(path, content):
        if Path(path).name.startswith(name) and next(count) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(atomic, "write", full)


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, finished, monkeypatch):
    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:
        fill(patch, "step_", after=2)
        code, said = ended(replace(FEW, output=folder))
    assert code == 6
    assert "No space left on device; earlier checkpoints are intact" in said
    failed = json.loads((folder / "failed.json").read_text())
    assert (failed["kind"], failed["reason"]) == ("CannotWrite", said)
    assert checkpoint.newest(folder / "ckpt", pytest.fail)["step"] == 3
    assert ended(replace(FEW, output=folder)) == (0, "")
    assert outcome(folder) == outcome(finished)


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json", "split.json", "metrics.jsonl", "result.json", ""])
def test_a_full_disk_is_told_whatever_was_to_be_written(tmp_path, finished, monkeypatch, name):
    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:
        fill(patch, name)
        code, said = ended(replace(FEW, output=folder))
        assert code == 6
        assert "No space left on device" in said
        assert not (folder / "result.json").exists()
    assert ended(replace(FEW, output=folder)) == (0, "")
    assert outcome(folder) == outcome(finished)


# what is not finite


def nan_pixels(config: Config):
    return replace(networks_load(config), augment=lambda image, _: image.float() / 0 * 0)


networks_load = networks.load
BREAKING = {
    "first step": {"options": {"at": 1}},
    "fifth step": {"options": {"at": 5}},
    "gradient": {"options": {"at": 5, "gradient": True}},
    "last gradient": {"options": {"at": 6, "gradient": True}},
    "huge lr": {"model": "networks:plain", "lr": 1e38, "options": {}},
    "pixels": {"model": "networks:normed", "options": {}},
    "average": {"options": {"at": 5}, "ema": 0.9},
}


@pytest.mark.parametrize("way", BREAKING)
@pytest.mark.parametrize("checkpoint_every", [1, 1000])
def test_what_is_not_finite_ends_a_run(tmp_path, monkeypatch, way, checkpoint_every):
    if way == "pixels":
        monkeypatch.setattr(networks, "load", nan_pixels)
    config = replace(FEW, model="networks:Breaking", checkpoint_every=checkpoint_every, output=tmp_path / "run")
    config = replace(config, **BREAKING[way])
    code, said = ended(config)
    assert code == 4
    assert "not finite" in said
    assert not (tmp_path / "run" / "result.json").exists()
    failed = json.loads((tmp_path / "run" / "failed.json").read_text())
    assert (failed["kind"], failed["reason"]) == ("NonFinite", said)
    last = checkpoint.newest(tmp_path / "run" / "ckpt", pytest.fail)
    steps = {"first step": 0, "pixels": 0, "huge lr": 1, "last gradient": 5}.get(way, 4)
    if checkpoint_every == 1:
        assert (last["step"] if last else 0) == steps
    for value in last["state"]["weights"].values() if last else ():
        assert value.isfinite().all()


# killed


def begin(config: Config) -> subprocess.Popen:
    """The command in its own session, together with its workers."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    argv = [argument for argument in arguments(config) if not argument.endswith("=None")]
    return subprocess.Popen(
        [sys.executable, "-m", "studies.train", *argv],
        cwd=ROOT,
        env=env,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Until the checkpoint of a step or a later one is there."""
    while not any(int(path.stem[5:]) >= step for path in checkpoint.paths(folder)):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)


@pytest.mark.deep
def test_a_run_that_is_killed_goes_on(tmp_path):
    """Twice by SIGKILL, then by SIGTERM to all of its processes, each time with another number of workers."""
    options = {"channels": [8, 8], "footprints": [3, 3], "backend": "unfold"}
    config = Config(model="san_mini_patchwise", options=options, epochs=4, batch=64, checkpoint_every=3)
    session.train(replace(config, output=tmp_path / "whole"), progress=False)

    parts = replace(config, output=tmp_path / "parts")
    ends = []
    for step, workers, number in [(3, 0, signal.SIGKILL), (12, 2, signal.SIGKILL), (24, 1, signal.SIGTERM)]:
        process = begin(replace(parts, workers=workers))
        wait_for(process, parts.output / "ckpt", step)
        os.killpg(process.pid, number)
        said = process.communicate()[1].decode()
        ends.append(process.returncode)
        assert not (parts.output / "result.json").exists(), said
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, 75]
    sessions = json.loads((parts.output / "manifest.json").read_text())["sessions"]
    assert [session["step"] > 0 for session in sessions] == [False, True, True]

    session.train(parts, progress=False)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    assert len(checkpoint.paths(parts.output / "ckpt")) == 2


HELP = """
import sys
from studies import train
try:
    train.main(["--help"])
finally:
    assert "torch" not in sys.modules
"""


def test_help_is_told_without_torch():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint_every" in done.stdout


def test_a_network_that_its_adapter_changed_ends_with_a_result(tmp_path):
    net = saprof.create_model("san_mini_pairwise")
    net.stem[2] = torch.nn.GELU()
    Run(tmp_path).finish({"fingerprint": "x"}, net)
    reason = Run(tmp_path).result()["model_not_saved"]
    assert reason.startswith("cannot save this SAN, since load would give another: stem.2 is a GELU; expected a ReLU")
    assert not (tmp_path / "model.pt").exists()
