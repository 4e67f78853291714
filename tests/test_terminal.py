"""Tables that fit the terminal: nothing is lost, no line is too wide, columns are aligned."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saprof import terminal
from saprof.terminal import Column, Table, fitted, page, wrapped
from saprof.text import align, breadth, is_number, plain

NONSENSE = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="網絡層ab ×±✓-_.", max_size=60),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda x: f"{x:,.3f}"),
    st.sampled_from(["", " ", "\n", "\t", "x\x1b[31mred", "a" * 300, "e\u0301" * 20, "👩‍🔬", "  indented name"]),
)


@st.composite
def tables(draw):
    count, lines = draw(st.integers(1, 12)), draw(st.integers(0, 5))
    cells = st.lists(NONSENSE, min_size=lines, max_size=lines)
    columns = [
        Column(draw(NONSENSE), draw(cells), draw(st.integers(0, 9)), draw(st.sampled_from(["", "{}", "map {}"])))
        for _ in range(count)
    ]
    return Table(columns, draw(NONSENSE), draw(st.one_of(st.just([]), cells)), explained=draw(NONSENSE))


def squeezed(text):
    return re.sub(r"[\s\-─]", "", text)


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(1, 220))
def test_no_line_is_wider_than_the_terminal(table, most):
    shown = fitted(table, most)
    assert all(breadth(line) <= max(most, terminal.NARROWEST) for line in shown.splitlines())
    assert plain(shown.replace("\n", "")) == shown.replace("\n", ""), "no control character reaches the terminal"


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(40, 220))
def test_nothing_is_lost_without_saying_so(table, most):
    """Every character of every cell is printed, except those of columns that a line names."""
    shown = fitted(table, most)
    left = squeezed(shown.partition("not shown: ")[2])
    counts = {c: squeezed(shown).count(c) for c in set(squeezed(shown))}
    for column in table.columns:
        if squeezed(plain(column.title)) in left or not column.title.strip():
            continue
        for cell in column.cells:
            assert all(c in counts for c in squeezed(plain(cell))), (column.title, cell)
    for note in table.notes:
        assert all(c in counts for c in squeezed(plain(note)))


@given(NONSENSE, st.integers(4, 120), st.integers(0, 8))
def test_a_wrapped_text_keeps_its_characters(text, most, indent):
    lines = wrapped(plain(text), most, indent)
    assert squeezed("".join(lines)) == squeezed(plain(text))
    assert all(breadth(line) <= max(most, indent + terminal.LEAST) for line in lines)


def wide(lines=3):
    """A table of a name, a required figure, and others of less and less importance."""
    return Table(
        [
            Column("network", [f"san10_pairwise_{n}" for n in range(lines)]),
            Column("mode", ["forward"] * lines, 9, "{}"),
            Column("map", ["56 × 56"] * lines, 9, "map {}"),
            Column("nothing", [""] * lines),
            Column("latency ms", [f"{n}6.2 ± 0.8" for n in range(1, lines + 1)]),
            Column("FLOPs G (paper)", ["2.2"] * lines, 1),
            Column("images per second", ["1,234"] * lines, 2),
        ],
        "Networks",
        ["", "a note about the second line that is longer than the room beside the table has", ""][:lines],
        explained="± is half of the 95 % interval.",
    )


def test_a_table_at_several_widths():
    assert fitted(wide(), 200).splitlines() == [
        "Networks",
        "forward, map 56 × 56",
        "± is half of the 95 % interval.",
        "",
        "network           latency ms  FLOPs G (paper)  images per second  note",
        "----------------  ----------  ---------------  -----------------  "
        "------------------------------------------------------------------------------",
        "san10_pairwise_0  16.2 ± 0.8              2.2              1,234",
        "san10_pairwise_1  26.2 ± 0.8              2.2              1,234  "
        "a note about the second line that is longer than the room beside the table has",
        "san10_pairwise_2  36.2 ± 0.8              2.2              1,234",
    ]
    assert fitted(wide(), 60).splitlines()[3:] == [
        "",
        "                                               images per",
        "network           latency ms  FLOPs G (paper)      second",
        "----------------  ----------  ---------------  ----------",
        "san10_pairwise_0  16.2 ± 0.8              2.2       1,234",
        "san10_pairwise_1  26.2 ± 0.8              2.2       1,234",
        "    a note about the second line that is longer than the",
        "    room beside the table has",
        "san10_pairwise_2  36.2 ± 0.8              2.2       1,234",
    ]
    narrow = fitted(wide(), 40)
    assert narrow.endswith("\n\nnot shown: images per second; --format\ncsv has all")
    assert "1,234" not in narrow


def test_a_column_is_left_out_by_its_rank_and_not_by_its_place():
    columns = [Column("name", ["x" * 10]), Column("little", ["1" * 30], 2), Column("much", ["2" * 25], 1)]
    shown = fitted(Table(columns), 40)
    assert "2" * 25 in shown
    assert shown.endswith("not shown: little; --format csv has all")


def test_wide_characters_are_aligned():
    names = ["網絡:層", "étage", "e\u0301tage", "3 × 3 ✓"]
    shown = fitted(Table([Column("name", names), Column("ms", ["1", "22", "333", "4,444"])]), 80).splitlines()
    assert [breadth(line) for line in shown[2:]] == [14] * 4
    assert [breadth(line) for line in align(["name", "ms"], [[name, "1"] for name in names], "md").splitlines()] == [
        16
    ] * 6


def test_a_long_name_is_wrapped_after_a_seam_and_its_numbers_stay_beside_it():
    name = "my_package.networks_of_mine:a_network_with_a_long_name"
    shown = fitted(Table([Column("network", [name]), Column("ms", ["12,345 ± 678"])]), 40).splitlines()
    assert re.fullmatch(r"my_package\.networks_of_ +12,345 ± 678", shown[2])
    assert "".join(line.split("  ")[0] for line in shown[2:]) == name


def test_the_width_is_that_of_columns_or_80(monkeypatch):
    monkeypatch.setenv("COLUMNS", "123")
    assert terminal.width() == 123
    for nonsense in ("", "wide", "-5", "0"):
        monkeypatch.setenv("COLUMNS", nonsense)
        assert terminal.width() >= terminal.NARROWEST
    monkeypatch.setenv("COLUMNS", "3")
    assert terminal.width() == terminal.NARROWEST


@pytest.mark.parametrize(
    ("cells", "number"),
    [(["1", "", "-"], True), (["1,234 ± 5"], True), (["−3", "+2"], True), (["a", "1"], False), (["", "-"], False)],
)
def test_figures_are_aligned_to_the_right(cells, number):
    assert is_number(cells) is number


def test_a_table_without_lines_has_its_header():
    assert fitted(Table([Column("name", []), Column("ms", [])]), 80) == "name  ms\n----  --"


def test_a_page_of_markdown():
    table = align(
        ["network", "accuracy", "against", "verdict", "note"], [["san", "78.0", "resnet " * 9, "same", "few"]], "md"
    )
    shown = page(f"# Table 3\n\n**one two three.**\n\n{table}\n\n{'word ' * 20}", ["verdict"], 60)
    assert max(map(len, shown.splitlines())) <= 60
    head, bold, header = shown.split("\n\n")[:3]
    assert (head, bold) == ("# Table 3", "one two three.")
    assert header.splitlines()[0].split()[0] == "network"
    assert "same" in header
    assert header.splitlines()[-1] == "    few"
    assert "|" not in shown
    narrow = page(table, ["verdict"], 40)
    assert "verdict" in narrow.splitlines()[0]
    assert "not shown: against; the page has all" in narrow
