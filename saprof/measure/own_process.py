"""Measuring cells in a process of their own."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from saprof import kept_memory
from saprof.measure.cell import TIMING, Say, measure, row
from saprof.measure.cells import Cell
from saprof.measure.request import How
from saprof.records.rows import Row

TELL_S = 0.5
"""While cells are timed, the process reports its round at most this often, because reports disturb the timing."""


def measure_in_own_process(cells: Sequence[Cell], fingerprint: str, how: How, say: Say) -> list[Row]:
    """`measure` in a process of its own. If it crashes or takes more than `how.timeout` seconds, only these rows are
    affected."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    say(cells[0], "starting a process")
    settings = how.seconds, how.threads, kept_memory.kept()
    process = context.Process(target=_measure_and_send, args=(sender, cells, fingerprint, *settings))
    process.start()
    sender.close()
    try:
        return _rows(receiver, cells, how.timeout, say)
    except TimeoutError:
        failure = {"status": "timeout", "reason": f"not done after {how.timeout:g} s"}
    except EOFError:  # the process ended without a result
        process.join()
        failure = {"status": "error", "reason": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    return [row(cell, fingerprint, **failure) for cell in cells]


def _rows(receiver: Connection, cells: Sequence[Cell], timeout: float | None, say: Say) -> list[Row]:
    """The rows, which the process sends at the end. Before that, it sends what it is doing. Raises TimeoutError."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while receiver.poll(None if deadline is None else max(0.0, deadline - time.monotonic())):
        message: Any = receiver.recv()
        if isinstance(message, list):
            return message
        number, step = message
        say(cells[number], step)
    raise TimeoutError


def _measure_and_send(
    sender: Connection, cells: Sequence[Cell], fingerprint: str, max_seconds: float, threads: int | None, keeps: bool
) -> None:
    if keeps:
        kept_memory.keep_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    numbers = {cell: number for number, cell in enumerate(cells)}
    last = -math.inf

    def say(cell: Cell, step: str) -> None:
        nonlocal last
        if not step.startswith(TIMING) or time.monotonic() - last > TELL_S:
            last = time.monotonic()
            sender.send((numbers[cell], step))

    sender.send(measure(cells, fingerprint, max_seconds, say))
