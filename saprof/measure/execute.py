"""Measuring the groups of a plan that a run folder does not have yet."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from saprof.atomic import WriteError
from saprof.backends import check_device
from saprof.measure.calibrate import anchor, calibrate
from saprof.measure.cell import measure
from saprof.measure.own_process import measure_in_own_process
from saprof.measure.plan import Group
from saprof.measure.request import How
from saprof.records import calibration
from saprof.records.rows import Row
from saprof.records.runs import Run


def set_up_torch(how: How) -> int:
    """Set the number of threads, and return it; ValueError if torch does not see the device."""
    check_device(how.device)
    if how.threads is not None:
        torch.set_num_threads(how.threads)
    return torch.get_num_threads()


def execute(groups: list[Group], run: Run, how: How) -> list[Row]:
    """Measure the cells that the run does not have, within the time budget; returns the rows of all cells it has then.

    If a cell is missing, the machine is calibrated before the measurements, and an anchor is measured after them.
    """
    fingerprint = run.fingerprint
    calibrating = how.roofs and any(cell.key(fingerprint) not in run.done for group in groups for cell in group)
    if calibrating:
        _calibrate(run.folder, groups, how.device)
    started = time.monotonic()
    try:
        with _progress(groups) as progress:
            for group in groups:
                progress.set_postfix_str(str(group[0]), refresh=sys.stderr.isatty())
                spent = time.monotonic() - started
                missing = [cell for cell in group if cell.key(fingerprint) not in run.done]
                if missing and (how.time_budget is None or spent < how.time_budget):
                    rows = measure_group(group, fingerprint, how)
                    run.append([row for cell, row in zip(group, rows, strict=True) if cell in missing])
                progress.update()
    except (KeyboardInterrupt, WriteError):
        print(f"\nfinished cells are kept; continue with --resume --output {run.folder}", file=sys.stderr)
        raise
    if calibrating:
        _note_drift(run.folder, how.device)
    return run.rows(cell.key(fingerprint) for group in groups for cell in group)


def measure_group(group: Group, fingerprint: str, how: How) -> list[Row]:
    """One row per cell, measured in this process or in one of its own."""
    if how.isolate:
        return measure_in_own_process(group, fingerprint, how.seconds, how.timeout, how.threads)
    return measure(group, fingerprint, how.seconds)


def _calibrate(folder: Path, groups: list[Group], device: str) -> None:
    """Keep the roofs of the machine beside the rows, unless the folder has them since the run began."""
    if calibration.read(folder) is None:
        dtypes = dict.fromkeys(cell.subject.dtype for group in groups for cell in group)
        calibration.write(folder, calibrate(device, list(dtypes)))


def _note_drift(folder: Path, device: str) -> None:
    """Record one more anchor, which shows the drift of the machine since the first one."""
    if roofs := calibration.read(folder):
        calibration.write(folder, calibration.with_anchor(roofs, anchor(device)))


def _progress(groups: list[Group]) -> tqdm:
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=len(groups), file=sys.stderr, unit="cell", mininterval=interval, dynamic_ncols=True)
