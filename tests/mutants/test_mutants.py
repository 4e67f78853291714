"""Every mutant can be planted, and the campaign tells those that fall from those that do not."""

import re
from dataclasses import replace

import pytest

from mutants import campaign
from mutants.campaign import FELL, MUTANTS, ROOT, Mutant, Result

QUICK = (
    "An attack takes one step less",
    "One checkpoint is kept",
    "A sum of costs counts the parameters of one part only",
    "A latency is the mean of its samples",
    "A field that was not measured is written as null",
    "The t test is one-sided",
    "The label wins a tie",
)
"""A mutant of every room without kernels, whose test takes no time."""


def named(name: str) -> Mutant:
    (found,) = [mutant for mutant in MUTANTS if mutant.name == name]
    return found


def test_every_mutant_can_be_planted():
    texts = {mutant.file: (ROOT / mutant.file).read_text(encoding="utf-8") for mutant in MUTANTS}
    for mutant in MUTANTS:
        planted = mutant.planted_in(texts[mutant.file])
        assert planted != texts[mutant.file], mutant.name
        if mutant.file.endswith(".py"):
            compile(planted, mutant.file, "exec")


def test_every_test_of_a_mutant_exists():
    tests = {test for mutant in MUTANTS for test in mutant.tests}
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in {test.partition("::")[0] for test in tests}}
    for test in tests:
        file, *names = test.partition("[")[0].split("::")
        for name in names:
            assert re.search(rf"^ *(def|class) {name}\b", texts[file], re.MULTILINE), f"{file} has no {name}"


def test_names_are_sentences_that_differ():
    names = [mutant.name for mutant in MUTANTS]
    assert len({name.lower() for name in names}) == len(names)
    assert all(re.fullmatch(r"[A-Z].*[^.]", name) for name in names)


@pytest.mark.parametrize(
    ("outcomes", "code", "last"),
    [
        ([FELL, FELL], 0, "2 of 2 mutants fell"),
        ([FELL, "SURVIVED"], 1, "1 of 2 mutants fell"),
        ([FELL, "TOO LONG"], 1, "1 of 2 mutants fell"),
        ([FELL], 1, "1 of 2 mutants fell"),  # interrupted
    ],
)
def test_exit_code(outcomes, code, last, monkeypatch, capsys):
    def results(mutants):
        for mutant, outcome in zip(mutants, outcomes, strict=False):
            yield Result(mutant, outcome, 1.0)
        if len(outcomes) < len(mutants):
            raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "results", results)
    assert campaign.main([*QUICK[:2]]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    assert lines[0].startswith(outcomes[-1])  # what did not fall is above what fell


def test_an_unknown_name_is_one_sentence(capsys):
    with pytest.raises(SystemExit):
        campaign.main(["cost"])
    assert "there is no mutant 'cost'; expected the name of a mutant, or a room: " in capsys.readouterr().err


@pytest.mark.deep
def test_a_mutant_of_every_room_falls():
    before = {name: (ROOT / named(name).file).read_bytes() for name in QUICK}
    assert [result.outcome for result in campaign.results([*map(named, QUICK)])] == [FELL] * len(QUICK)
    assert {name: (ROOT / named(name).file).read_bytes() for name in QUICK} == before


@pytest.mark.deep
def test_what_does_not_fall_is_told():
    mutant = named("The label wins a tie")
    comment = replace(mutant, new=f"{mutant.old}  # a comment")
    no_python = replace(mutant, new="(")
    outcomes = [result.outcome for result in campaign.results([comment, no_python])]
    assert outcomes == ["SURVIVED", "NO TEST"]


@pytest.mark.deep
def test_tests_must_pass_without_any_mistake():
    mutant = replace(named("The label wins a tie"), tests=["tests/studies/test_metrics.py::test_of_nothing"])
    with pytest.raises(RuntimeError, match="must pass without any mistake"):
        next(campaign.results([mutant]))
