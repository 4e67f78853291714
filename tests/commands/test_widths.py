"""What commands print fits the terminal, for the recorded runs: no line is too wide, and no latency is lost."""

import contextlib
from importlib import import_module

import pytest

from saprof import advise, compare, roofline, sweep, tables
from saprof.__main__ import COMMANDS, listing
from saprof.paper.summary import summarise
from saprof.quantities import LATENCY
from saprof.records.runs import RECORDED, read_run
from saprof.text import breadth

WIDTHS = pytest.mark.parametrize("width", [60, 80, 120, 200])
RUNS = ("footprint_cpu", "networks_cpu", "relations_cpu", "irregular_cpu", "stand_alone_cpu")


def narrow(text, width):
    """The text, of which no line is too wide, but for commands that are meant to be copied."""
    wide = [line for line in text.splitlines() if breadth(line) > width and not line.startswith("  python ")]
    assert not wide, wide
    return text


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_help(monkeypatch, capsys, width, command):
    monkeypatch.setenv("COLUMNS", str(width))
    with contextlib.suppress(SystemExit):
        import_module(command.module).main(["--help"])
    assert narrow(capsys.readouterr().out, width).startswith(f"usage: python -m {command.module}")


def test_the_list_of_commands():
    narrow(listing(), 80)


@WIDTHS
@pytest.mark.parametrize("name", RUNS)
def test_the_tables_of_a_sweep(monkeypatch, width, name):
    monkeypatch.setenv("COLUMNS", str(width))
    run = read_run(RECORDED / name)
    shown = narrow(summarise(run.cells, "table", run.calibration), width)
    words = {word.replace(",", "") for word in shown.split()}
    for row in run.cells:
        if row.latency_s is not None:
            ms = LATENCY.in_unit(row.latency_s)
            digits = {f"{ms:.{places}f}" for places in range(7)} | {f"{ms:.3g}"}
            assert digits & words, (row.name, ms)


@WIDTHS
@pytest.mark.parametrize("name", RUNS[:3])
def test_the_roofline(monkeypatch, width, name):
    monkeypatch.setenv("COLUMNS", str(width))
    run = read_run(RECORDED / name)
    assert run.calibration is not None
    lines = roofline.place(run.rows, run.calibration)
    shown = narrow(roofline.render(lines, run.rows, run.calibration, "table"), width)
    assert all(roofline.digits(100 * line["roof_share"]) in shown for line in lines)


@WIDTHS
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (compare, [str(RECORDED / "relations_cpu"), "--backends", "numba,unfold", "--all"]),
        (compare, [str(RECORDED / "profile_cpu"), str(RECORDED / "profile_cpu"), "--all"]),
        (compare, [str(RECORDED / "backends_cpu"), str(RECORDED / "backends_cpu"), "--metric", "peak", "--all"]),
        (advise, ["--max-latency", "200ms", "--max-params", "12M", "--all"]),
        pytest.param(tables, ["--paper", "sasa"], marks=pytest.mark.deep),
        (sweep, ["--footprint", "3,11", "--dry-run", "--mode", "forward,train_step", "--compile", "both"]),
    ],
    ids=["backends", "profiles", "peaks", "advise", "sasa", "dry-run"],
)
def test_what_a_command_prints(monkeypatch, capsys, width, command, arguments):
    monkeypatch.setenv("COLUMNS", str(width))
    command.main(arguments)
    assert len(narrow(capsys.readouterr().out, width).splitlines()) > 10


def test_a_cell_that_is_believed_is_one_line_of_80_characters(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    compare.main([str(RECORDED / "relations_cpu"), "--backends", "numba,unfold"])
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("---"))
    assert all(line.endswith(" faster than unfold") for line in lines[first + 1 : first + 20])
