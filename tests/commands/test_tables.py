"""Tables 3 to 8 and Sec. 5.3 of SAN, recomputed; and the command that prints them."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from functools import cache

import pytest

from saprof import tables, text
from saprof.paper import printed, recount
from saprof.paper.printed import printed_flops, printed_params

ROWS = [(name, row) for name, table in printed.paper().items() for row in table.rows]
IDS = [f"{name}-{row.model}-{row.setting}" for name, row in ROWS]


@pytest.fixture(scope="module")
def computed():
    return recount.compute()


@pytest.mark.parametrize("index", range(len(ROWS)), ids=IDS)
def test_row_agrees_with_the_paper(computed, index):
    name, printed = ROWS[index]
    row = computed[index]
    assert (row["table"], row["model"]) == (name, printed.model)
    assert recount.disagreements([row]) == []
    assert (row["params_M"], row["flops_paper_G"]) == (printed.params_M, printed.flops_G)


def test_tables_are_whole(computed):
    assert {name: len(table.rows) for name, table in printed.paper().items()} == {
        "3": 9, "4": 9, "5": 7, "6": 7, "7": 13, "8": 4, "sec5.3": 1,
    }  # fmt: skip
    assert len({(row["model"], row["overrides"]) for row in computed}) == 36
    sets = {name: table.evaluation_set for name, table in printed.paper().items()}
    assert sets == dict.fromkeys("45678", "val-split") | {"3": "val-original", "sec5.3": "val-split by context"}


def test_the_same_model_prints_the_same_accuracy():
    """The defaults and the baseline are repeated in Tables 4 to 8, so a typing error in one of them would be found."""
    seen = {}
    for name, row in ROWS:
        key = (printed.paper()[name].evaluation_set, row.model, json.dumps(row.overrides))
        figures = (row.top1, row.top5, row.params_M, row.flops_G)
        assert seen.setdefault(key, figures) == figures, (name, row)
    for _, row in ROWS:
        assert 50 < row.top1 < row.top5 < 100


def test_a_model_is_counted_once(monkeypatch):
    from saprof.models import counting

    counted = []
    count = counting.count
    monkeypatch.setattr(counting, "count", lambda model, size: counted.append(model) or count(model, size))
    monkeypatch.setattr(recount, "_cost", cache(recount._cost.__wrapped__))
    recount.compute(["8", 8, "8"])
    assert len(counted) == 4


@pytest.mark.parametrize(
    ("flops", "printed"),
    [
        (2_045_800_000, "2.1"),  # 2.05 on the way; 2.0 if rounded once
        (2_248_700_000, "2.3"),  # 2.25 on the way; 2.2 if rounded once
        (2_045_000_000, "2.1"),  # both steps are ties
        (2_044_999_999, "2.0"),
        (2_250_000_000, "2.3"),  # 2.2 under half-to-even
        (1_650_000_000, "1.7"),  # 1.6 under half-to-even
        (94_999_999, "0.1"),
        (0, "0.0"),
    ],
)
def test_flops_round_twice_and_halves_up(flops, printed):
    assert printed_flops(flops) == Decimal(printed)


@pytest.mark.parametrize(
    ("params", "printed"), [(10_450_000, "10.5"), (10_449_999, "10.4"), (10_550_000, "10.6"), (9_969_712, "10.0")]
)
def test_parameters_round_once_and_halves_up(params, printed):
    assert printed_params(params) == Decimal(printed)


def test_rows_of_an_unknown_table():
    with pytest.raises(ValueError, match=r"^unknown table '9'; expected '3', '4', '5', '6', '7', '8' or 'sec5\.3'$"):
        printed.rows(9)


@pytest.mark.parametrize(
    ("smaller", "larger", "params", "flops", "printed_params", "printed_flops"),
    [("san10_patchwise", "resnet38", "39.7", "42.5", 40, 41), ("san15_patchwise", "resnet50", "36.7", "37.3", 37, 37)],
    ids=["SAN10-ResNet38", "SAN15-ResNet50"],
)
def test_savings_of_patchwise_attention(computed, smaller, larger, params, flops, printed_params, printed_flops):
    """SAN Sec. 5.2: the percentages in the text follow from the rounded figures of Table 3."""
    row = {row["model"]: row for row in computed if row["table"] == "3"}

    def saved(figure):
        return 100 * (1 - row[smaller][figure] / row[larger][figure])

    assert (f"{saved('params'):.1f}", f"{saved('flops_paper'):.1f}") == (params, flops)
    assert round(saved("params_M_printed")) == printed_params
    assert round(saved("flops_paper_G_printed")) == printed_flops


@pytest.fixture
def tampered(monkeypatch):
    """Table 8 as if the paper printed one figure differently: call it with the figure and its value."""
    honest = printed.paper()

    def tamper(**figure):
        first, *others = honest["8"].rows
        table = replace(honest["8"], rows=(replace(first, **figure), *others))
        for module in (printed, recount, tables):
            monkeypatch.setattr(module, "paper", lambda of="san": honest | {"8": table})

    return tamper


@pytest.mark.parametrize(("figure", "value"), [("params_M", 13.8), ("flops_G", 2.3)])
@pytest.mark.parametrize("form", text.FORMATS)
def test_a_figure_that_disagrees_is_marked_and_fails(tampered, capsys, figure, value, form):
    tampered(**{figure: value})
    assert tables.main(["--table", "8", "--format", form]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "table 8, resnet26" in err
    assert f"the paper prints {value}" in err
    if form in ("table", "md"):
        assert (out.count("✗"), out.count("✓")) == (1, 7)
        assert "7 of 8 printed figures agree" in out


@pytest.mark.parametrize("form", text.FORMATS)
def test_agreement_exits_with_0(capsys, form):
    assert tables.main(["--table", "8", "--format", form]) == 0
    assert capsys.readouterr().err == ""


def test_the_whole_command(computed, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert tables.main([]) == 0
    out = capsys.readouterr().out
    assert "100 of 100 printed figures agree, over 36 models" in out
    assert (out.count("✓"), out.count("✗")) == (100, 0)
    assert out.count("FLOPs (paper convention)") == out.count("top-1 as printed") == 7
    assert out.count("ImageNet val-original") == 1
    assert out.count("ImageNet val-split") == 6
    (line,) = (line for line in out.splitlines() if "φ = ψ ≠ β" in line and "pairwise" in line)
    assert line.split()[7:] == ["9,969,712", "10.0", "10.0", "✓", "2,045,828,494", "2.1", "2.1", "✓", "76.3", "92.6"]


def test_tables_in_the_order_asked_for(capsys):
    tables.main(["--table", "sec5.3, 4,4", "--format", "json"])
    names = [row["table"] for row in json.loads(capsys.readouterr().out)]
    assert list(dict.fromkeys(names)) == ["sec5.3", "4"]
    assert len(names) == 10


def test_json_parses_back(computed, capsys):
    tables.main(["--format", "json"])
    assert json.loads(capsys.readouterr().out) == computed


def test_csv_parses_back(computed, capsys):
    tables.main(["--format", "csv"])
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert read == [{key: "" if value is None else str(value) for key, value in row.items()} for row in computed]
    assert [json.loads(row["overrides"]) for row in read] == [row.overrides for _, row in ROWS]


def test_markdown_parses_back(computed, capsys):
    tables.main(["--table", "7", "--format", "md"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    header, rule, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in (header, rule, *body)} == {11}
    assert all(set(cell) <= set("-:") and len(cell) >= 3 for cell in rule)
    assert [int(line[2]) for line in body] == [row.setting for row in printed.rows(7)]
    assert [int(line[3].replace(",", "")) for line in body] == [r["params"] for r in computed if r["table"] == "7"]


def test_output_goes_to_the_file(tmp_path, capsys):
    path = tmp_path / "tables.csv"
    assert tables.main(["--table", "8", "--format", "csv", "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--table", "3,9"], r"^unknown table '9'; expected 3, 4, 5, 6, 7, 8, sec5\.3 or all$"),
        (["--table", ""], "^unknown table ''; expected 3, "),
        (["--format", "html"], "^unknown format 'html'; expected 'table', 'md', 'csv' or 'json'$"),
    ],
    ids=["table", "no-table", "format"],
)
def test_what_nobody_knows(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        tables.main(arguments)


def test_a_mistake_is_one_sentence_and_exit_code_2():
    result = _python("-m", "saprof.tables", "--table", "9")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "error: unknown table '9'; expected 3, 4, 5, 6, 7, 8, sec5.3 or all\n"


def test_help_and_mistakes_import_no_torch():
    result = _python("-X", "importtime", "-m", "saprof.tables", "--help")
    assert result.returncode == 0
    assert "sec5.3" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert {"saprof", "argparse"} <= imported
    assert not {"torch", "numpy", "pandas", "matplotlib"} & imported


def _python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)
