"""Two processes that train together compute what one process computes, and end together.

The processes are started once, in the way of torchrun, and do one job after the other; torchrun itself is started once.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import networks
import psutil
import pytest
import torch

from studies import data
from studies.config import Config
from studies.data.split import split
from studies.training import checkpoint, classification, engine, session
from studies.training.distributed import world
from studies.training.run import Run

ROOT = Path(__file__).parents[2]
OWN = ("seconds", "images_per_s", "data_wait", "train_seconds")
FEW = Config(model="networks:plain", data="few", held_out=2, batch=20, epochs=2, checkpoint_every=1)
"""60 images to train on, so three steps an epoch."""
SMALL_SAN = {"channels": [8, 8], "footprints": [3, 3], "backend": "unfold"}
SAN = Config(model="san_mini_pairwise", options=SMALL_SAN, epochs=2, batch=64, checkpoint_every=3)
SIGNALLED = {"number": int(signal.SIGTERM), "at": 2, "rank": 1}
JOBS = {
    "plain": replace(FEW, precision="fp64"),
    "batch norm": replace(FEW, precision="fp64", model="networks:normed"),
    "pieces": replace(FEW, precision="fp64", accumulate=2, epochs=1),
    "one epoch": replace(FEW, model="networks:normed", epochs=1, workers=1, ema=0.5),
    "nan on one": replace(FEW, model="networks:Breaking", options={"at": 4, "rank": 1}),
    "nan gradient": replace(FEW, model="networks:Breaking", options={"at": 6, "gradient": True}),
    "nan gradient, late": replace(
        FEW, model="networks:Breaking", options={"at": 6, "gradient": True}, checkpoint_every=1000
    ),
    "indivisible": replace(FEW, batch=15),
    "stopped": replace(FEW, model="networks:Signalling", options=SIGNALLED),
    "gone on": replace(FEW, model="networks:Signalling", options=SIGNALLED),
    "not stopped": replace(FEW, model="networks:Signalling", options=SIGNALLED),
    "after torchrun": SAN,
    "without torchrun": SAN,
}
FAILING = {"nan on one": 3, "nan gradient": 5, "nan gradient, late": 3, "indivisible": None}
"""Jobs that fail, and the step of their last checkpoint."""
SAME = {"gone on": "stopped"}
"""Jobs that resume in the folder of another."""

DRIVER = """
import json, os, sys, traceback
import networks
from studies import data, train
data.MODULES["few"] = "networks"
for name, port, argv in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    try:
        code = train.main(argv)
    except ValueError as error:
        code = getattr(error, "code", 2)
    except Exception:
        traceback.print_exc()
        code = 1
    print("ended", json.dumps([name, code]), flush=True)
"""


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)} | more


def arguments(config: Config) -> list[str]:
    values = {name: value for name, value in config.plain().items() if value is not None}
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}" for name, value in values.items()]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def under_torchrun(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run under torchrun that was asked to stop, and its output."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*command, "-m", "studies.train", *arguments(replace(SAN, output=folder))],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    while not checkpoint.paths(folder / "ckpt"):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1].decode()
    assert process.returncode != 0
    return folder, said


@pytest.fixture(scope="module")
def pair(tmp_path_factory, under_torchrun) -> tuple[dict[str, Path], dict[str, list[int]]]:
    """The folder of every job, and how both processes ended it."""
    base = tmp_path_factory.mktemp("pair")
    folders = {name: base / SAME.get(name, name).replace(" ", "_") for name in JOBS}
    folders["after torchrun"] = under_torchrun[0]
    logs = [base / f"rank{rank}.txt" for rank in range(2)]
    jobs = [
        (name, port, arguments(replace(config, output=folders[name])))
        for port, (name, config) in zip(free_ports(len(JOBS)), JOBS.items(), strict=True)
    ]
    assert both_end(jobs, logs), "\n".join(log.read_text() for log in logs)
    said = [log.read_text() for log in logs]
    ended = [
        dict(json.loads(line.removeprefix("ended ")) for line in text.splitlines() if line.startswith("ended "))
        for text in said
    ]
    assert set(ended[0]) == set(ended[1]) == set(JOBS), "\n".join(said)
    return folders, {name: [ended[0][name], ended[1][name]] for name in JOBS}


def both_end(jobs: list[tuple[str, int, list[str]]], logs: list[Path]) -> bool:
    """Whether two processes do these jobs; processes that hang print where they are."""
    processes = [run_jobs(rank, jobs, log) for rank, log in enumerate(logs)]
    try:
        for process in processes:
            process.wait(timeout=180)
    except subprocess.TimeoutExpired:
        for process in processes:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.send_signal(signal.SIGABRT)  # each then prints its traceback, the workers too
        return False
    finally:
        for process in processes:
            process.wait()
    return True


def run_jobs(rank: int, jobs: list[tuple[str, int, list[str]]], log: Path) -> subprocess.Popen:
    env = environment(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    command = [sys.executable, "-X", "faulthandler", "-c", DRIVER, json.dumps(jobs)]
    with log.open("w") as said:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=said, stderr=subprocess.STDOUT)


CROWDED = """
from functools import partial
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from studies.training.distributed import world

dist.init_process_group = partial(dist.init_process_group, store=dist.HashStore(), rank=0, world_size=1)

def work():
    with world("cpu"):
        model = DistributedDataParallel(torch.nn.Linear(8, 8))
        for _ in range(500):
            dist.all_reduce(torch.zeros(4), async_op=True)

for _ in range(10):
    dist.init_process_group.keywords["store"] = dist.HashStore()
    work()
"""
"""Groups that are destroyed while their threads free tensors, for which they need Python's lock."""


@pytest.mark.deep
def test_a_group_that_is_taken_down_waits_for_no_thread_that_waits_for_it():
    subprocess.run(
        [sys.executable, "-c", CROWDED], cwd=ROOT, env=environment(RANK="0", WORLD_SIZE="2"), check=True, timeout=120
    )


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setitem(data.MODULES, "few", "networks")
    monkeypatch.setattr(networks.Signalling, "sent", True)


def weights(folder: Path) -> torch.Tensor:
    state = checkpoint.newest(folder / "ckpt", pytest.fail)["state"]["weights"]
    return torch.cat([value.double().flatten() for name, value in state.items() if ".num_" not in name])


def outcome(folder: Path) -> tuple:
    lines = [{key: value for key, value in line.items() if key not in OWN} for line in Run(folder).metrics()]
    return {key: value for key, value in Run(folder).result().items() if key not in OWN}, lines


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a config's run in this process."""
    base = tmp_path_factory.mktemp("alone")

    def run(name: str, config: Config) -> Path:
        session.train(replace(config, output=base / name), progress=False)
        return base / name

    return run


@pytest.mark.deep
@pytest.mark.parametrize("name", [name for name in JOBS if name not in (*FAILING, "stopped")])
def test_both_processes_end_well(pair, name):
    folders, codes = pair
    assert codes[name] == [0, 0]
    assert Run(folders[name]).result()["steps"] == JOBS[name].epochs * (3 if JOBS[name].data == "few" else 12)


@pytest.mark.deep
def test_two_processes_train_as_one(pair, alone):
    one, pieces, two = alone("plain", JOBS["plain"]), alone("2", replace(JOBS["plain"], accumulate=2)), pair[0]["plain"]
    assert (weights(one) - weights(pieces)).abs().max() < 1e-12
    assert (weights(one) - weights(two)).abs().max() < 1e-12
    for mine, theirs in zip(Run(one).metrics(), Run(two).metrics(), strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - set(OWN):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-12)


@pytest.mark.deep
def test_two_processes_with_two_pieces_each_train_as_one(pair, alone):
    one = alone("pieces", replace(JOBS["pieces"], accumulate=1))
    assert (weights(one) - weights(pair[0]["pieces"])).abs().max() < 1e-12


@pytest.mark.deep
def test_batch_norms_see_the_images_of_their_process(pair, alone):
    one, two = alone("batch norm", JOBS["batch norm"]), pair[0]["batch norm"]
    assert (weights(one) - weights(two)).abs().max() > 1e-4


@pytest.mark.deep
@pytest.mark.parametrize("name", ["plain", "batch norm", "one epoch"])
def test_what_two_processes_count_one_counts(pair, name):
    folder = pair[0][name]
    config, result = Run(folder).config(), Run(folder).result()
    dataset = data.load(config)
    state = engine.State(config, classification.network(config, dataset), engine.World(0, 1, torch.device("cpu")))
    state.restore(checkpoint.newest(folder / "ckpt", pytest.fail)["state"])
    score = classification.evaluate(state.judged, split(dataset, config).judged, dataset, batch=7)
    assert (score.n, score.correct1, score.correct5) == (result["n"], result["correct1"], result["correct5"])
    assert score.n == 20


@pytest.mark.deep
@pytest.mark.parametrize(("name", "step"), FAILING.items())
def test_processes_fail_together(pair, name, step):
    folders, codes = pair
    assert codes[name] == ([4, 4] if step else [2, 2])
    folder = folders[name]
    assert not (folder / "result.json").exists()
    if step is None:
        assert not folder.exists()
        return
    assert json.loads((folder / "failed.json").read_text())["kind"] == "NonFinite"
    last = checkpoint.newest(folder / "ckpt", pytest.fail)
    assert last["step"] == step
    assert all(value.isfinite().all() for value in last["state"]["weights"].values())


@pytest.mark.deep
def test_a_process_that_is_asked_to_stop_stops_both(pair):
    folders, codes = pair
    assert codes["stopped"] == [75, 75]
    assert codes["gone on"] == [0, 0]
    assert outcome(folders["gone on"]) == outcome(folders["not stopped"])
    sessions = json.loads((folders["gone on"] / "manifest.json").read_text())["sessions"]
    assert [(session["step"], session["processes"]) for session in sessions] == [(0, 2), (2, 2)]


@pytest.mark.deep
def test_torchrun_that_is_asked_to_stop_stops_all(under_torchrun, pair):
    folder, said = under_torchrun
    assert "stopped, and saved" in said
    assert not (folder / "failed.json").exists()
    sessions = json.loads((folder / "manifest.json").read_text())["sessions"]
    assert len(sessions) == 2
    assert sessions[1]["step"] > 0
    assert outcome(folder) == outcome(pair[0]["without torchrun"])


def test_without_torchrun_a_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with world("cpu") as here:
        assert (here.rank, here.size, here.first) == (0, 1, True)
        assert here.sum([1, 2.5]) == [1, 2.5]
        assert here.any([False, True]) == [False, True]
        here.wait()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device is 'cuda', and torch sees no CUDA device"), world("cuda"):
        pass
