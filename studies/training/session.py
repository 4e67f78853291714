"""One session of work on a training run: from its newest checkpoint to its end, or until it is asked to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studies.config import Config
from studies.failures import BadCheckpoint, Failure, Preempted
from studies.training.run import Run, weights_sha256

if TYPE_CHECKING:
    from studies.data import Dataset
    from studies.training.distributed import World
    from studies.training.engine import State


def train(config: Config, progress: bool = True) -> dict[str, Any]:
    """Start the run of `config`, or resume it, and return the content of its result.json.

    If the run is finished, its existing result is returned. Raises a Failure with the reason if the run cannot
    continue; its last checkpoint does not change. Raises Preempted if a signal stopped the run after it saved its
    state.
    """
    run = Run(folder(config))
    run.check(config)
    if (done := run.result()) is not None:
        return done

    from studies import data
    from studies.training.distributed import world

    with world(config.device) as processes, stop_requests() as stop:
        dataset = data.load(config)
        session = _Session(config, run, processes, dataset, stop, progress)
        with run.claimed() if processes.first else nullcontext():
            try:
                return session.work()
            except Failure as error:
                if processes.first:
                    run.fail(type(error).__name__, str(error))
                raise


def folder(config: Config) -> Path:
    """The run's folder."""
    name = config.model.rpartition(":")[2]
    return config.output or Path("runs") / f"{name}-{config.data}-{config.seed}"


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A function that returns whether SIGTERM or SIGINT has arrived; a second SIGINT interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Session:
    """One process that works on a run."""

    config: Config
    run: Run
    world: World
    dataset: Dataset
    stop: Callable[[], bool]
    progress: bool

    def __post_init__(self) -> None:
        """Raises ValueError for an impossible config before anything is written."""
        import torch

        from studies.training import engine, tasks
        from studies.training.requirements import prepared

        if self.config.tensorboard and find_spec("tensorboard") is None:
            raise ValueError("tensorboard is not installed; pip install tensorboard, or leave --tensorboard")
        if self.world.device.type == "cpu":
            torch.set_num_threads(self.config.threads)
        engine.set_precision(self.config)
        self.task = tasks.of(self.config, self.dataset)
        self.parts, self.plan, network = prepared(self.config, self.dataset, self.world)
        self.state = engine.State(self.config, network, self.world)

    def work(self) -> dict[str, Any]:
        from studies.training import engine

        state, epoch = self.state, self.plan.steps
        if warning := self.config.unlike_recipe(self.world.size):
            self._print(warning)
        self._resume(state)
        with self._bar(state) as bar:
            hooks = engine.Hooks(self.stop, lambda state: self._after_step(state, bar))
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

    def _resume(self, state: State) -> None:
        """Load the newest checkpoint, if there is one, and record that this session now works on the run."""
        from saprof.records.environment import provenance
        from studies.data import split
        from studies.training import checkpoint

        before = checkpoint.newest(self.run.checkpoints, self._print)
        kept = self.run.folder / "split.json"
        if before is not None:
            if before["fingerprint"] != self.config.fingerprint():
                raise BadCheckpoint(f"the checkpoints in {self.run.checkpoints} are of another run; delete them")
            split.verify(kept, self.parts)
            state.restore(before["state"])
            changed = [name for name, value in self._conditions().items() if before["conditions"].get(name) != value]
            if changed:
                self._print(f"resuming with another {' and '.join(changed)}; the last digits will differ")
            self._print(f"resuming at step {state.step}")
        lines = self.run.reported(state.reported)  # without those after the checkpoint, which are written again
        self.world.wait()  # until all processes have read what the first process now changes
        if self.world.first:
            where = provenance(str(self.world.device), self.config.threads)
            session = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": state.step}
            self.run.begin(self.config, session | self._conditions() | where)
            self.run.keep(lines)
            split.write(kept, self.parts)

    def _conditions(self) -> dict[str, Any]:
        """The conditions, besides the config, on which the last digits of the weights depend."""
        import torch

        from saprof.records.environment import tf32

        threads = self.config.threads if self.world.device.type == "cpu" else None
        return {
            "torch": str(torch.__version__),
            "device_type": self.world.device.type,
            "processes": self.world.size,
            "threads": threads,
            "tf32": tf32(str(self.world.device)),
        }

    def _after_step(self, state: State, bar: Any) -> None:
        progress = state.progress
        bar.update(self._seen(state) - bar.n)
        waiting = f"{100 * progress.waited / max(progress.seconds, 1e-9):.0f} %"
        bar.set_postfix(loss=f"{progress.loss_sum / progress.seen:.3f}", data_wait=waiting, refresh=False)
        if state.step % self.config.checkpoint_every == 0:
            self._save(state)

    def _save(self, state: State) -> None:
        """Write a checkpoint. Every process builds the state, so that either all processes raise NonFinite or none
        does."""
        from studies.training import checkpoint

        content = {"step": state.step, "state": state.saved(), "conditions": self._conditions()}
        content["fingerprint"] = self.config.fingerprint()
        if self.world.first:
            checkpoint.save(self.run.checkpoints, state.step, content)

    def _report(self, state: State, epoch: int) -> None:
        """Write the metrics of an epoch that has ended, with an evaluation when one is due."""
        from studies.training import engine

        progress = state.progress
        line = {"step": state.step, "epoch": epoch, "lr": state.optimizer.param_groups[0]["lr"]}
        line |= {"train_loss": progress.loss_sum / progress.seen, **self.task.trained(progress)}
        if epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs:
            engine.broadcast_buffers(state)
            line |= self.task.judge(
                state.judged,
                self.parts.judged,
                self.world,
                workers=self.config.workers,
                stop=self.stop,
                folder=self.run.folder,
            )
        speed = {"images_per_s": progress.seen / progress.seconds, "data_wait": progress.waited / progress.seconds}
        line |= {"seconds": progress.seconds} | speed
        if self.world.first:
            self.run.note(line)
            if self.config.tensorboard:
                self._draw(line)
        state.reported = state.step
        state.progress = engine.Progress()
        self._save(state)
        self._print(self._sentence(line))

    def _draw(self, line: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.run.folder / "tensorboard")) as writer:
            of_classes = {f"per_class/{name}": value for name, value in line.get("per_class", {}).items()}
            for name, value in (line | of_classes).items():
                if name not in ("step", "epoch", "per_class") and value is not None:
                    writer.add_scalar(name, value, line["step"])

    def _finish(self, state: State) -> dict[str, Any]:
        """Write the network and the result, which repeats the last line of metrics, and return the result."""
        self.world.wait()  # until the first process has written the last line
        lines, weights = self.run.reported(state.step), state.judged.model.state_dict()
        best, judged = self.task.best, [line for line in lines if self.task.best in line]
        result = {name: lines[-1][name] for name in self.task.numbers} | {
            "fingerprint": self.config.fingerprint(),
            "config": self.config.facts(),
            "protocol": self.config.protocol,
            "params": sum(parameter.numel() for parameter in state.judged.parameters()),
            "steps": state.step,
            f"best_{best}": max((line[best] for line in judged if line[best] is not None), default=None),
            "judged_epochs": len(judged),
            "train_seconds": sum(line["seconds"] for line in lines),
            "weights_sha256": weights_sha256(weights),
        }
        if self.world.first:
            self.task.finish(self.run.folder, self.parts.judged)
            self.run.finish(result, state.judged.model)
        self.world.wait()
        return result

    def _seen(self, state: State) -> int:
        return self.plan.seen(state.step, self.world.size)

    def _bar(self, state: State) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self.plan.seen(self.config.epochs * self.plan.steps, self.world.size),
            initial=self._seen(state),
            unit=" images",
            unit_scale=True,
            desc=self.run.folder.name,
            disable=not (self.progress and self.world.first),
        )

    def _sentence(self, line: dict[str, Any]) -> str:
        return (
            f"epoch {line['epoch']}/{self.config.epochs}: loss {line['train_loss']:.3f}, "
            f"{self.task.while_training(line)}; {line['images_per_s']:.0f} images/s, "
            f"{100 * line['data_wait']:.0f} % of the time waiting for data"
        )

    def _print(self, sentence: str) -> None:
        from tqdm import tqdm

        if self.progress and self.world.first:
            tqdm.write(sentence, file=sys.stderr)
