"""Train and judge one network; once more goes on where it stopped.

    python -m studies.train --model san_mini_patchwise --data digits --epochs 30 --output runs/patchwise
    torchrun --nproc-per-node 8 -m studies.train --recipe san_imagenet --model san10_pairwise --root /data/imagenet

Exit codes: 0 done, 2 the input was at fault, 3 data, 4 not finite, 5 checkpoints, 6 cannot write, 75 asked to stop, and
saved.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof.command import OK
from studies.config import Config, parse
from studies.failures import BadCheckpoint, Failure, Preempted
from studies.training.run import Run, weights_sha256

if TYPE_CHECKING:
    from studies.data import Dataset
    from studies.data.split import Split
    from studies.training.distributed import World
    from studies.training.engine import State


def run(config: Config, progress: bool = True) -> dict[str, Any]:
    """Train what `config` says, or go on with it, or return what came of it: the content of result.json.

    A Failure says why it cannot go on and leaves the last checkpoint as it is; Preempted was asked to stop, and saved.
    """
    folder = Run(output(config))
    folder.check(config)
    if (done := folder.result()) is not None:
        return done

    from studies import data
    from studies.data import split
    from studies.training.distributed import world

    with world(config.device) as here, asked_to_stop() as stop:
        dataset = data.load(config)
        parts = split.split(dataset, config)
        session = _Session(config, folder, here, dataset, parts, stop, progress)
        with folder.claimed() if here.first else nullcontext():
            try:
                return session.work()
            except Failure as error:
                if here.first:
                    folder.fail(type(error).__name__, str(error))
                raise


def output(config: Config) -> Path:
    """The run's folder."""
    name = config.model.rpartition(":")[2]
    return config.output or Path("runs") / f"{name}-{config.data}-{config.seed}"


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT came; a second SIGINT interrupts at once."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Session:
    """One process at work on a run, from its newest checkpoint to the end or to a stop."""

    config: Config
    folder: Run
    here: World
    dataset: Dataset
    parts: Split
    stop: Callable[[], bool]
    progress: bool

    def __post_init__(self) -> None:
        """ValueError for what cannot be, before anything is written."""
        import torch

        from studies.training import engine

        if self.config.tensorboard and find_spec("tensorboard") is None:
            raise ValueError("tensorboard is not installed; pip install tensorboard, or leave --tensorboard")
        if self.here.device.type == "cpu":
            torch.set_num_threads(self.config.threads)
        self.epoch = engine.plan(self.config, self.parts.train, self.here).steps
        self.state = engine.State(self.config, engine.network(self.config, self.dataset), self.here)

    def work(self) -> dict[str, Any]:
        from studies.training import engine

        state, epoch = self.state, self.epoch
        self._go_on(state)
        with self._bar(state, epoch) as bar:
            hooks = engine.Hooks(self.stop, lambda state: self._stepped(state, bar))
            try:
                while state.reported < self.config.epochs * epoch:
                    if state.step % epoch or state.step == state.reported:
                        end = (state.step // epoch + 1) * epoch
                        engine.train_until(end, state, self.dataset, self.parts.train, hooks)
                    else:
                        self._report(state, state.step // epoch)
            except Preempted:
                self._save(state)
                raise
        return self._finish(state)

    def _go_on(self, state: State) -> None:
        """Take up the newest checkpoint, and note that this session works on the run now."""
        from saprof.records.environment import provenance
        from studies.data import split
        from studies.training import checkpoint

        before = checkpoint.newest(self.folder.checkpoints, self._tell)
        kept = self.folder.folder / "split.json"
        if before is not None:
            if before["fingerprint"] != self.config.fingerprint():
                raise BadCheckpoint(f"the checkpoints in {self.folder.checkpoints} are of another run; delete them")
            split.verify(kept, self.parts)
            state.restore(before["state"])
            changed = [name for name, value in self._conditions().items() if before["conditions"][name] != value]
            if changed:
                self._tell(f"going on with another {' and '.join(changed)}; the last digits will differ")
            self._tell(f"going on at step {state.step}")
        lines = self.folder.reported(state.reported)  # less those that a crash left behind: they come again
        self.here.wait()  # until all have read what the first now changes
        if self.here.first:
            where = provenance(str(self.here.device), self.config.threads)
            session = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": state.step}
            self.folder.begin(self.config, session | self._conditions() | where)
            self.folder.keep(lines)
            split.write(kept, self.parts)

    def _conditions(self) -> dict[str, Any]:
        """What the last digits of the weights depend on beside the config."""
        import torch

        threads = self.config.threads if self.here.device.type == "cpu" else None
        return {"torch": str(torch.__version__), "device_type": self.here.device.type, "processes": self.here.size} | {
            "threads": threads
        }

    def _stepped(self, state: State, bar: Any) -> None:
        progress = state.progress
        bar.update(self.config.batch)
        waiting = f"{100 * progress.waited / max(progress.seconds, 1e-9):.0f} %"
        bar.set_postfix(loss=f"{progress.loss_sum / progress.seen:.3f}", data_wait=waiting, refresh=False)
        if state.step % self.config.checkpoint_every == 0:
            self._save(state)

    def _save(self, state: State) -> None:
        from studies.training import checkpoint

        content = {"step": state.step, "state": state.saved(), "conditions": self._conditions()}  # all refuse, or none
        content["fingerprint"] = self.config.fingerprint()
        if self.here.first:
            checkpoint.save(self.folder.checkpoints, state.step, content)

    def _report(self, state: State, epoch: int) -> None:
        """The line of an epoch that has ended, judged if it is time to."""
        from studies.training import engine

        progress = state.progress
        line = {"step": state.step, "epoch": epoch, "lr": state.optimizer.param_groups[0]["lr"]} | progress.record()
        if epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs:
            engine.share_buffers(state)
            with engine.autocast(self.config, self.here.device):
                score = engine.evaluate(
                    state.judged,
                    self.parts.judged,
                    self.dataset,
                    workers=self.config.workers,
                    world=self.here,
                    stop=self.stop,
                )
            line |= score.record()
        speed = {"images_per_s": progress.seen / progress.seconds, "data_wait": progress.waited / progress.seconds}
        line |= {"seconds": progress.seconds} | speed
        if self.here.first:
            self.folder.note(line)
            if self.config.tensorboard:
                self._draw(line)
        state.reported = state.step
        state.progress = engine.Progress()
        self._save(state)
        self._tell(_sentence(line, self.config.epochs))

    def _draw(self, line: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.folder.folder / "tensorboard")) as writer:
            for name, value in line.items():
                if name not in ("step", "epoch") and value is not None:
                    writer.add_scalar(name, value, line["step"])

    def _finish(self, state: State) -> dict[str, Any]:
        """What came of the run, from its last line of metrics; the network itself beside it."""
        self.here.wait()  # until the first has written the last line
        lines, weights = self.folder.reported(state.step), state.judged.model.state_dict()
        judged = {name: lines[-1][name] for name in ("n", "correct1", "correct5", "nonfinite", "top1", "top5", "loss")}
        result = judged | {
            "fingerprint": self.config.fingerprint(),
            "config": self.config.facts(),
            "protocol": self.config.protocol,
            "params": sum(parameter.numel() for parameter in state.judged.parameters()),
            "steps": state.step,
            "best_top1": max(line["top1"] for line in lines if "top1" in line),
            "train_seconds": sum(line["seconds"] for line in lines),
            "weights_sha256": weights_sha256(weights),
        }
        if self.here.first:
            self.folder.finish(result, state.judged.model)
        self.here.wait()
        return result

    def _bar(self, state: State, epoch: int) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self.config.epochs * epoch * self.config.batch,
            initial=state.step * self.config.batch,
            unit=" images",
            unit_scale=True,
            desc=self.folder.folder.name,
            disable=not (self.progress and self.here.first),
        )

    def _tell(self, sentence: str) -> None:
        from tqdm import tqdm

        if self.progress and self.here.first:
            tqdm.write(sentence, file=sys.stderr)


def _sentence(line: dict[str, Any], epochs: int) -> str:
    judged = f", judged: top-1 {line['top1']:.2f} %, loss {_number(line['loss'])}" if "top1" in line else ""
    return (
        f"epoch {line['epoch']}/{epochs}: loss {line['train_loss']:.3f}, top-1 {line['train_top1']:.2f} %{judged}; "
        f"{line['images_per_s']:.0f} images/s, {100 * line['data_wait']:.0f} % of it waiting for data"
    )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def main(argv: list[str] | None = None) -> int:
    description = (__doc__ or "").partition("\n\n")[0]
    config = parse(argv, "python -m studies.train", description)
    finished, first = Run(output(config)).result() is not None, os.environ.get("RANK", "0") == "0"
    try:
        result = run(config)
    except Preempted as stopped:
        if first:
            print(f"stopped, and saved; the same command goes on from there ({output(config)})", file=sys.stderr)
        return stopped.code
    if first:
        again = "finished already, nothing was changed: " if finished else ""
        print(f"{again}{output(config)}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % of {result['n']}")
    return OK


if __name__ == "__main__":
    from saprof.command import run as command

    command(main)
