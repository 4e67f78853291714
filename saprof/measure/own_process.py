"""Measuring cells in a process of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection

import torch

from saprof.measure.cell import measure, row
from saprof.measure.cells import Cell
from saprof.records.rows import Row


def measure_in_own_process(
    cells: Sequence[Cell], fingerprint: str, max_seconds: float, timeout: float | None, threads: int | None
) -> list[Row]:
    """`measure` in a process of its own. If it crashes or takes more than `timeout` seconds, only these rows are
    affected."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_and_send, args=(sender, cells, fingerprint, max_seconds, threads))
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            return receiver.recv()
        failure = {"status": "timeout", "reason": f"not done after {timeout:g} s"}
    except EOFError:  # the process ended without a result
        process.join()
        failure = {"status": "error", "reason": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    return [row(cell, fingerprint, **failure) for cell in cells]


def _measure_and_send(
    sender: Connection, cells: Sequence[Cell], fingerprint: str, max_seconds: float, threads: int | None
):
    if threads is not None:
        torch.set_num_threads(threads)
    sender.send(measure(cells, fingerprint, max_seconds))
