"""The folder of a training run.

config.yaml     the config: what decides the result, and how the run is carried out
manifest.json   versions, machine and arguments of every session that worked on the run
split.json      which images were held out, and hashes of all images
metrics.jsonl   one line per epoch
ckpt/           the two newest checkpoints
model.pt        the evaluated network, for saprof.load
detections.json what the newest evaluation of a detector found, as COCO writes results
boxes.png       some of it, beside the ground truth; precision_recall.png and .svg are drawn of all of it
result.json     accuracies; it is written last, and a run without it is not finished
failed.json     why the run failed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import atomic, lock
from studies import config as configs
from studies.config import Config
from studies.failures import BadCheckpoint, CannotWrite

if TYPE_CHECKING:
    from torch import Tensor, nn

    from studies.data import Dataset
    from studies.data.split import Split
    from studies.training.networks import FromPixels

SCHEMA = 1


class Run:
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.checkpoints = self.folder / "ckpt"
        self.metrics_path = self.folder / "metrics.jsonl"

    def config(self) -> Config | None:
        """The config of the run; None if no run has begun."""
        path = self.folder / "config.yaml"
        return configs.load(path) if path.exists() else None

    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None while the run is not finished."""
        return self._json("result.json", "fingerprint")

    def check(self, config: Config) -> None:
        """Raise ValueError if the folder holds a run of another config, or other files."""
        before = self.config()
        if before is None:
            if self.folder.exists() and not (self.folder.is_dir() and self._only_claimed()):
                raise ValueError(f"{self.folder} exists and holds no run; choose another --output")
            return
        was, asked = before.facts(), config.facts()
        changed = [f"{name} {was[name]!r}, not {asked[name]!r}" for name in was if was[name] != asked[name]]
        if changed:
            raise ValueError(f"{self.folder} holds a run with {'; '.join(changed)}; choose another --output")

    def _only_claimed(self) -> bool:
        """Whether the folder holds only the files of a session that ended before training began."""
        return all(path.name in ("ckpt", "failed.json") or path.name.startswith(".") for path in self.folder.iterdir())

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the run, and delete the files that killed processes left half-written. Raises ValueError if another
        process holds the lock, CannotWrite if the folder cannot be written."""
        with ExitStack() as stack:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock.held(self.folder))
            except OSError as error:
                raise CannotWrite(f"cannot write to {self.folder}: {error.strerror}; choose another --output") from None
            for folder in (self.folder, self.checkpoints):
                atomic.remove_abandoned(folder)
            yield

    def begin(self, config: Config, session: Mapping[str, Any]) -> None:
        """Record the config and the session that works on the run from now on."""
        sessions = [*self.sessions(), session]
        self._write("config.yaml", configs.dump(config))
        self._write_json("manifest.json", {"schema": SCHEMA, "sessions": sessions})
        self.forgive()

    def sessions(self) -> list[dict[str, Any]]:
        """The sessions that worked on the run, oldest first."""
        return (self._json("manifest.json", "sessions") or {"sessions": []})["sessions"]

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without a last line that a crash cut short. Raises BadCheckpoint if a line is
        damaged."""
        try:
            whole = self.metrics_path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return [self._line(number, line) for number, line in enumerate(whole, start=1)]

    def _line(self, number: int, text: bytes) -> dict[str, Any]:
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not {"step", "epoch"} <= line.keys():
                raise ValueError
            return line
        except ValueError:
            raise BadCheckpoint(
                f"line {number} of {self.metrics_path} is damaged; repair it, or delete {self.folder} to train again"
            ) from None

    def reported(self, until: int) -> list[dict[str, Any]]:
        """The lines of metrics up to a step that ends an epoch. Raises BadCheckpoint if lines are missing."""
        lines = [line for line in self.metrics() if line["step"] <= until] if until else []
        last = lines[-1]["step"] if lines else 0
        if last != until or [line["epoch"] for line in lines] != list(range(1, len(lines) + 1)):
            raise BadCheckpoint(
                f"{self.metrics_path} has {len(lines)} lines up to step {until}; expected one line per epoch, the last "
                f"at that step; restore it, or delete {self.folder} to train again"
            )
        return lines

    def note(self, line: Mapping[str, Any]) -> None:
        """Append a line of metrics."""
        self.keep([*self.metrics(), line])

    def keep(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Replace the metrics with these lines."""
        text = "".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in lines)
        self._write(self.metrics_path.name, text)

    def finish(self, result: Mapping[str, Any], model: nn.Module) -> None:
        """Write the evaluated network, and then the result. If an adapter has changed the network so that it cannot be
        saved, only the result is written, and it says why."""
        import saprof

        if isinstance(model, saprof.SAN | saprof.ResNet | saprof.RetinaNet):
            try:
                saprof.save(model, self.folder / "model.pt")
            except OSError as error:
                raise _cannot_write(error) from None
            except ValueError as error:
                result = {**result, "model_not_saved": str(error)}
        self._write_json("result.json", {"schema": SCHEMA, **result})

    def fail(self, kind: str, reason: str, traceback: str = "") -> str:
        """Write why the run failed to failed.json, if the disk allows it; return the reason on one line."""
        reason = " ".join(reason.split()) or kind
        with suppress(OSError, CannotWrite):  # an error here would hide the reason
            self.folder.mkdir(parents=True, exist_ok=True)
            content = {"schema": SCHEMA, "kind": kind, "reason": reason, "traceback": traceback}
            self._write_json("failed.json", content)
        return reason

    def failure(self) -> str | None:
        """The reason in failed.json; None without the file."""
        found = self._json("failed.json", "reason")
        return None if found is None else found["reason"]

    def forgive(self) -> None:
        """Delete failed.json."""
        with suppress(OSError):
            (self.folder / "failed.json").unlink(missing_ok=True)

    def _json(self, name: str, field: str) -> dict[str, Any] | None:
        """The content of a file, which must have `field`; None if there is no file."""
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("schema") != SCHEMA:
                raise ValueError(f"its schema is not {SCHEMA}")
            if field not in content:
                raise ValueError(f"it has no {field}")
            return content
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from None

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._write(name, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def _write(self, name: str, content: str) -> None:
        try:
            atomic.write(self.folder / name, content.encode(errors="backslashreplace"))  # file names may be undecodable
        except OSError as error:
            raise _cannot_write(error) from None


def _cannot_write(error: OSError) -> CannotWrite:
    return CannotWrite(f"cannot write {error.filename}: {error.strerror}; earlier checkpoints are intact")


def trained(folder: str | Path) -> tuple[Config, Dataset, Split, FromPixels]:
    """The config, data and split of a finished run, and its evaluated network on the CPU in evaluation mode.
    Training images that are not judged may be absent.

    Raises ValueError if the run is not finished or its weights are not those of its result.
    """
    from studies import data
    from studies.data import split
    from studies.training import checkpoint, engine, tasks
    from studies.training.distributed import World

    run = Run(folder)
    config, result = run.config(), run.result()
    if config is None or result is None:
        raise ValueError(
            f"{folder} holds no finished run; finish it with python -m studies.train --recipe {folder}/config.yaml"
        )
    import torch

    dataset = data.load(config)
    task = tasks.of(config, dataset)
    parts = task.split()
    split.verify(run.folder / "split.json", parts)
    engine.set_precision(config)
    state = engine.State(config, task.network(), World(0, 1, torch.device("cpu")))
    saved = checkpoint.newest(run.checkpoints, lambda sentence: None)
    if saved is None:
        raise ValueError(f"{folder} has no checkpoint left; train it again")
    state.restore(saved["state"])
    if weights_sha256(state.judged.model.state_dict()) != result["weights_sha256"]:
        raise ValueError(f"the newest checkpoint of {folder} is not the one of its result.json; train it again")
    return config, dataset, parts, state.judged.eval()


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """A hash of all weights and buffers and their names."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
