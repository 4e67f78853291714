"""Footprints: the taps of each name, and the position that each tap reads."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saprof.operators.footprint import BOUNDARIES, Footprint, source

NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "zero": "constant", "exclude": "constant"}
SIZES = st.integers(1, 7)
OFFSETS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=6, unique=True)
SHAPES = st.one_of(
    st.builds(Footprint.square, SIZES, st.integers(1, 4)),
    st.builds(Footprint.rectangle, SIZES, SIZES),
    st.builds(Footprint.cross, SIZES),
    st.builds(Footprint.disk, SIZES),
    st.builds(Footprint.random, st.integers(1, 25), st.integers(0, 2**70), st.none() | st.integers(5, 8)),
    st.builds(Footprint.from_offsets, OFFSETS),
)
FOOTPRINTS = st.builds(
    lambda shape, stride, boundary: shape.with_(stride=stride, boundary=boundary),
    SHAPES,
    st.integers(1, 4),
    st.sampled_from(BOUNDARIES),
)


def picture(footprint: Footprint) -> list[str]:
    (top, bottom), (left, right) = footprint.reach
    return [
        "".join("#" if (dy, dx) in footprint.offsets else "." for dx in range(left, right + 1))
        for dy in range(top, bottom + 1)
    ]


def test_square_lists_rows_then_columns():
    assert Footprint.square(3).offsets == (
        (-1, -1), (-1, 0), (-1, 1),
        (0, -1), (0, 0), (0, 1),
        (1, -1), (1, 0), (1, 1),
    )  # fmt: skip


def test_an_even_size_has_one_more_tap_after_the_centre():
    assert Footprint.rectangle(1, 4).offsets == ((0, -1), (0, 0), (0, 1), (0, 2))
    assert Footprint.square(2).offsets == ((0, 0), (0, 1), (1, 0), (1, 1))


def test_dilation_spreads_the_taps():
    assert Footprint.square(3, dilation=2).reach == ((-2, 2), (-2, 2))
    assert Footprint.square(3, dilation=2).offsets[:2] == ((-2, -2), (-2, 0))


def test_rectangle():
    assert picture(Footprint.rectangle(2, 5)) == ["#####", "#####"]


@pytest.mark.parametrize("size", range(1, 15))
def test_cross_has_one_row_and_one_column(size):
    assert Footprint.cross(size).taps == 2 * size - 1


def test_cross():
    assert picture(Footprint.cross(5)) == ["..#..", "..#..", "#####", "..#..", "..#.."]


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        (1, ["#"]),
        (2, ["##", "##"]),
        (3, [".#.", "###", ".#."]),
        (4, [".##.", "####", "####", ".##."]),
        (5, ["..#..", ".###.", "#####", ".###.", "..#.."]),
    ],
)
def test_disk(size, rows):
    assert picture(Footprint.disk(size)) == rows


def test_a_disk_of_9_has_as_many_taps_as_a_square_of_7():
    assert Footprint.disk(9).taps == Footprint.square(7).taps == 49


def test_a_random_footprint_is_the_same_everywhere():
    """Drawn by hand from what CPython promises to keep: the numbers of `random.Random(seed).random()`."""
    assert picture(Footprint.random(9, seed=3, size=5)) == ["#....", "##.##", "..#..", "#....", ".#..#"]
    assert picture(Footprint.random(25, seed=1)) == [
        "#..#....#",
        "#...#..#.",
        ".##...#.#",
        "#..###.##",
        "...##.#..",
        ".........",
        "..##..#..",
        "........#",
        "#....#...",
    ]


@given(st.integers(1, 60), st.integers(0, 99))
def test_a_random_footprint_has_the_centre_and_as_many_taps_as_asked(taps, seed):
    footprint = Footprint.random(taps, seed)
    side = next(side for side in range(1, 99, 2) if side**2 >= 2 * taps)
    assert footprint.taps == taps
    assert (0, 0) in footprint.offsets
    assert set(footprint.offsets) <= set(Footprint.square(side).offsets)
    assert list(footprint.offsets) == sorted(footprint.offsets)


def test_every_tap_of_the_square_is_drawn_by_some_seed():
    drawn = [set(Footprint.random(3, seed, size=4).offsets) for seed in range(60)]
    assert set().union(*drawn) == set(Footprint.square(4).offsets)
    assert Footprint.random(16, seed=5, size=4).offsets == Footprint.square(4).offsets
    assert Footprint.random(1, seed=5).offsets == ((0, 0),)


def test_the_size_of_a_random_footprint_is_told_where_it_is_not_the_usual_one():
    assert str(Footprint.random(25, 1, 9, boundary="zero")) == "random:25@seed1 boundary=zero"
    assert str(Footprint.random(25, 1, 7, stride=2)) == "random:25@seed1@size7 stride=2"
    assert Footprint.random(25, 1, 7) != Footprint.random(25, 1)


@pytest.mark.parametrize(
    "others",
    [
        ["square:5", "cross:13", "dilated:5x2", "random:25@seed1"],
        ["square:7", "disk:9", "cross:25", "dilated:7x2", "random:49@seed1"],
    ],
)
def test_footprints_of_equally_many_taps(others):
    assert {Footprint.parse(text).taps for text in others} == {Footprint.parse(others[0]).taps}


def test_offsets_keep_their_order_and_may_be_any_integers():
    offsets = np.array([[3, -1], [0, 0]])
    assert Footprint.from_offsets(offsets).offsets == ((3, -1), (0, 0))
    assert str(Footprint.from_offsets(offsets)) == "offsets:3,-1;0,0"


@given(FOOTPRINTS)
def test_parse_reads_what_str_writes(footprint):
    assert Footprint.parse(str(footprint)) == footprint
    assert str(Footprint.parse(str(footprint))) == str(footprint)
    assert eval(repr(footprint)) == footprint


@pytest.mark.parametrize(
    ("text", "footprint"),
    [
        (7, Footprint.square(7)),
        ("7", Footprint.square(7)),
        ("square:4 stride=2", Footprint.square(4, stride=2)),
        ("dilated:5x2", Footprint.square(5, dilation=2)),
        ("rectangle:3x5 boundary=zero", Footprint.rectangle(3, 5, boundary="zero")),
        ("cross:13", Footprint.cross(13)),
        ("disk:9 boundary=exclude stride=3", Footprint.disk(9, stride=3, boundary="exclude")),
        ("offsets:0,0;-1,12", Footprint.from_offsets([(0, 0), (-1, 12)])),
        ("random:49@seed1", Footprint.random(49, seed=1)),
        ("random:9@seed20@size4 stride=2", Footprint.random(9, seed=20, size=4, stride=2)),
    ],
)
def test_parse(text, footprint):
    assert Footprint.parse(text) == footprint


def test_with_keeps_the_taps_and_what_is_not_changed():
    footprint = Footprint.disk(3, stride=2).with_(boundary="zero")
    assert footprint == Footprint.disk(3, stride=2, boundary="zero")
    assert str(footprint.with_(stride=1)) == "disk:3 boundary=zero"


def walked(coordinate: int, size: int, boundary: str) -> int:
    """The position that a coordinate reads, found step by step from 0: at a border a step turns, stays or wraps."""
    if boundary in ("zero", "exclude"):
        return coordinate if coordinate in range(size) else -1
    here, direction = 0, 1 if coordinate > 0 else -1
    for _ in range(abs(coordinate)):
        if boundary == "circular":
            here = (here + direction) % size
        elif boundary == "replicate":
            here = min(here + direction, size - 1) if here + direction >= 0 else 0
        elif size > 1:  # reflect: turn round at either end
            if here + direction not in range(size):
                direction = -direction
            here += direction
    return here


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("size", range(1, 8))
def test_source_is_the_literal_walk(size, boundary):
    positions = torch.arange(-25, 26)
    assert source(positions, size, boundary).tolist() == [walked(p, size, boundary) for p in positions.tolist()]


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("size", range(1, 8))
def test_source_is_numpy_pad(size, boundary):
    padded = np.pad(np.arange(size), 25, mode=NUMPY_MODES[boundary])
    if boundary in ("zero", "exclude"):
        padded = np.pad(np.arange(size), 25, mode="constant", constant_values=-1)
    assert source(torch.arange(-25, size + 25), size, boundary).tolist() == padded.tolist()


def test_source_knows_far_coordinates():
    far = torch.tensor([10**15, -(10**15)])
    assert source(far, 4, "reflect").tolist() == [2, 2]  # the period is 6, and 10¹⁵ = 4 (mod 6), which reflects to 2
    assert source(far, 4, "circular").tolist() == [0, 0]
    assert source(far, 4, "replicate").tolist() == [3, 0]
    assert source(far, 4, "zero").tolist() == [-1, -1]


@given(FOOTPRINTS, SIZES, SIZES)
def test_tables_read_what_a_padded_map_holds(footprint, height, width):
    """rows and columns, with the stride, on maps that may be smaller than the footprint."""
    oh, ow = footprint.output_size(height, width)
    image = 1 + np.arange(height * width).reshape(height, width)
    margin = 40
    padded = np.pad(image, margin, mode=NUMPY_MODES[footprint.boundary])
    rows, columns = footprint.rows(height), footprint.columns(width)
    assert rows.shape == (footprint.taps, oh)
    assert columns.shape == (footprint.taps, ow)
    for tap, (dy, dx) in enumerate(footprint.offsets):
        for oy in range(oh):
            for ox in range(ow):
                y, x = int(rows[tap, oy]), int(columns[tap, ox])
                read = image[y, x] if y >= 0 and x >= 0 else 0
                assert read == padded[margin + oy * footprint.stride + dy, margin + ox * footprint.stride + dx]


@given(FOOTPRINTS, SIZES, SIZES)
def test_readers_are_the_centres_that_read(footprint, height, width):
    for table, size, (starts, readers) in (
        (footprint.rows(height), height, footprint.row_readers(height)),
        (footprint.columns(width), width, footprint.column_readers(width)),
    ):
        assert starts.shape == (footprint.taps, size + 1)
        assert starts[0, 0] == 0
        assert starts[-1, -1] == len(readers)
        assert starts.is_contiguous()
        for tap, sources in enumerate(table.tolist()):
            for element in range(size):
                read = readers[starts[tap, element] : starts[tap, element + 1]].tolist()
                assert read == [centre for centre, source in enumerate(sources) if source == element]


def test_readers_of_a_known_map():
    # rows 0, 2 and 4 are centres: the tap above reads row 1 (reflected), 1 and 3
    starts, readers = Footprint.from_offsets([(-1, 0), (0, 0)], stride=2).row_readers(5)
    assert starts.tolist() == [[0, 0, 2, 2, 3, 3], [3, 4, 4, 5, 5, 6]]
    assert readers.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("boundary", ["zero", "exclude"])
def test_nobody_reads_what_is_outside(boundary):
    far = Footprint.from_offsets([(0, -(10**12)), (0, 0)], boundary=boundary)
    starts, readers = far.column_readers(2)
    assert starts.tolist() == [[0, 0, 0], [0, 1, 2]]
    assert readers.tolist() == [0, 1]


@given(FOOTPRINTS, SIZES, SIZES)
def test_window_is_what_all_taps_reach(footprint, height, width):
    spans = []
    for axis, size in enumerate((height, width)):
        reached = {o[axis] + centre for o in footprint.offsets for centre in range(0, size, footprint.stride)}
        spans.append((min(reached), max(reached) + 1))
    assert footprint.window(height, width) == tuple(spans)


@given(FOOTPRINTS, SIZES, SIZES)
def test_pairs_counts_inside(footprint, height, width):
    nominal, real = footprint.pairs(height, width)
    oh, ow = footprint.output_size(height, width)
    inside = footprint.inside(height, width)
    assert inside.shape == (footprint.taps, oh * ow)
    assert (nominal, real) == (inside.numel(), int(inside.sum()))


def test_pairs_of_a_known_map():
    assert Footprint.square(3).pairs(4, 5) == (180, 180)
    # of 9 · 20 pairs a border of 3 per outer position is dropped: (3 · 4 − 2) · (3 · 5 − 2) are left
    assert Footprint.square(3, boundary="zero").pairs(4, 5) == (180, 130)
    assert Footprint.square(3, boundary="exclude").pairs(1, 1) == (9, 1)


def test_inside_is_in_tap_and_position_order():
    inside = Footprint.from_offsets([(0, 0), (0, 1), (-1, 0)], boundary="zero").inside(2, 2)
    assert inside.tolist() == [[True] * 4, [True, False, True, False], [False, False, True, True]]


def test_output_size_rounds_up():
    assert [Footprint.square(3, stride=3).output_size(h, h) for h in (1, 2, 3, 4, 6, 7)] == [
        (1, 1), (1, 1), (1, 1), (2, 2), (2, 2), (3, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("footprint", "lattice"),
    [
        (Footprint.square(3), ((3, 3), (1, 1))),
        (Footprint.square(4, dilation=3), ((4, 4), (3, 3))),
        (Footprint.rectangle(1, 5), ((1, 5), (1, 1))),
        (Footprint.from_offsets([(4, 4)]), ((1, 1), (1, 1))),
        (Footprint.from_offsets([(0, 0), (0, 3), (5, 0), (5, 3)]), ((2, 2), (5, 3))),
        (Footprint.disk(2), ((2, 2), (1, 1))),
        (Footprint.disk(3), None),
        (Footprint.cross(3), None),
        (Footprint.from_offsets([(0, 1), (0, 0)]), None),  # not in row-major order
        (Footprint.from_offsets([(0, 0), (0, 1), (0, 3)]), None),  # uneven
        (Footprint.from_offsets([(0, 0), (1, 1)]), None),  # a diagonal
    ],
    ids=str,
)
def test_lattice(footprint, lattice):
    assert footprint.lattice == lattice


@given(FOOTPRINTS)
def test_a_lattice_spells_out_the_offsets(footprint):
    if footprint.lattice is not None:
        (rows, columns), (row_step, column_step) = footprint.lattice
        (top, _), (left, _) = footprint.reach
        grid = [(top + y * row_step, left + x * column_step) for y in range(rows) for x in range(columns)]
        assert footprint.offsets == tuple(grid)


CANNOT_READ = "cannot read footprint {!r}; expected a size such as 7, or square:7, dilated:5x2"


@pytest.mark.parametrize(
    "text",
    ["x", "", " ", "3,x,7", "3.5", "-3", "True", "square:", ":7", "square:3x4", "square:3x", "dilated:5", "cross:3x3",
     "rectangle:3", "triangle:3", "offsets:", "offsets:0", "offsets:0,0;1", "offsets:0,0,0", "offsets:a,b",
     "random:49", "random:49@1", "random:49@seed", "random:49@seed-1", "random:49@seed1x11", "random:@seed1",
     "random:49@seed1@size", "random:49@size11@seed1", "square:٣", "7 7 7:7", None, True, 3.0, [3]],
    ids=repr,
)  # fmt: skip
def test_parse_refuses(text):
    expected = "unknown option" if text == "7 7 7:7" else CANNOT_READ.format(str(text))
    with pytest.raises(ValueError, match=re.escape(expected)):
        Footprint.parse(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Footprint.parse(0), "footprint size is 0; expected a positive integer"),
        (lambda: Footprint.parse("dilated:3x0"), "dilation is 0; expected a positive integer"),
        (lambda: Footprint.parse("7 stride=0"), "stride is 0; expected a positive integer"),
        (lambda: Footprint.parse("7 stride=-1"), "stride of footprint '7 stride=-1' is '-1'; expected a positive"),
        (lambda: Footprint.parse("7 stride=²"), "stride of footprint '7 stride=²' is '²'; expected a positive"),
        (lambda: Footprint.parse("7 stride"), "stride of footprint '7 stride' is ''; expected a positive integer"),
        (lambda: Footprint.parse("7 colour=red"), "unknown option 'colour=red' of footprint '7 colour=red'; expected "),
        (lambda: Footprint.parse("7 boundary=mirror"), "unknown boundary 'mirror'; expected one of reflect, zero, "),
        (lambda: Footprint.square(0), "footprint size is 0; expected a positive integer"),
        (lambda: Footprint.square(-3), "footprint size is -3; expected a positive integer"),
        (lambda: Footprint.square(99_999), "footprint size is 99999; expected at most 1024"),
        (lambda: Footprint.random(10**9, 1), "footprint size is 44723; expected at most 1024"),
        (lambda: Footprint.square(True), "footprint size is True; expected a positive integer"),
        (lambda: Footprint.square(3.0), "footprint size is 3.0; expected a positive integer"),
        (lambda: Footprint.square("3"), "footprint size is '3'; expected a positive integer"),
        (lambda: Footprint.square(3, dilation=0), "dilation is 0; expected a positive integer"),
        (lambda: Footprint.square(3, stride=0), "stride is 0; expected a positive integer"),
        (lambda: Footprint.square(3, stride=2.0), "stride is 2.0; expected a positive integer"),
        (lambda: Footprint.square(3).with_(stride=0), "stride is 0; expected a positive integer"),
        (lambda: Footprint.square(3, boundary=None), "unknown boundary None; expected one of reflect, zero, "),
        (lambda: Footprint.rectangle(3, 0), "footprint size is 0; expected a positive integer"),
        (lambda: Footprint.cross(0), "footprint size is 0; expected a positive integer"),
        (lambda: Footprint.disk(0), "footprint size is 0; expected a positive integer"),
        (lambda: Footprint.random(0, 1), "number of taps is 0; expected a positive integer"),
        (lambda: Footprint.random(9, -1), "seed is -1; expected an integer, 0 or more"),
        (lambda: Footprint.random(9, True), "seed is True; expected an integer, 0 or more"),
        (lambda: Footprint.random(9, 1.0), "seed is 1.0; expected an integer, 0 or more"),
        (lambda: Footprint.random(9, 1, 0), "footprint size is 0; expected a positive integer"),
        (lambda: Footprint.random(10, 1, 3), "footprint size is 3, for 10 taps; expected at least 4"),
        (lambda: Footprint.parse("random:10@seed1@size3"), "footprint size is 3, for 10 taps; expected at least 4"),
        (lambda: Footprint.from_offsets([]), "the footprint has no taps; expected at least one (dy, dx)"),
        (lambda: Footprint.from_offsets([(0, 0), (1, 0), (0, 0)]), "offset (0, 0) appears twice; expected distinct"),
        (lambda: Footprint.from_offsets([(0,)]), "footprint offset (0,); expected a pair of integers (dy, dx)"),
        (lambda: Footprint.from_offsets([(0, 1, 2)]), "footprint offset (0, 1, 2); expected a pair of integers"),
        (lambda: Footprint.from_offsets([3]), "footprint offset 3; expected a pair of integers (dy, dx)"),
        (lambda: Footprint.from_offsets([(0, 0.5)]), "footprint offset (0, 0.5); expected a pair of integers"),
        (lambda: Footprint.from_offsets([(0, True)]), "footprint offset (0, True); expected a pair of integers"),
        (lambda: Footprint.from_offsets(["ab"]), "footprint offset 'ab'; expected a pair of integers (dy, dx)"),
        (lambda: Footprint(((0, False),)), "footprint offset (0, False); expected a pair of integers (dy, dx)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_label_cannot_be_given():
    """The label determines the taps, so only the constructors may set it."""
    with pytest.raises(TypeError, match="label"):
        Footprint(((0, 0), (0, 1)), label="square:3")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32, torch.tensor])
def test_any_integer_type_is_stored_as_an_integer(kind):
    made = [
        Footprint.square(kind(3), kind(2), stride=kind(2)),
        Footprint.rectangle(kind(1), kind(3)),
        Footprint.cross(kind(3)),
        Footprint.disk(kind(5)),
        Footprint.random(kind(4), kind(1), kind(3)),
        Footprint.from_offsets([(kind(0), kind(1))]).with_(stride=kind(2)),
    ]
    for footprint in made:
        numbers = [footprint.stride, *(o for offset in footprint.offsets for o in offset)]
        assert {type(number) for number in numbers} == {int}
        assert Footprint.parse(str(footprint)) == footprint


@pytest.mark.parametrize("size", [True, np.True_, 3.0, np.float64(3), "3", None, np.int64(0), [3]])
def test_what_is_no_positive_integer_is_refused(size):
    for make in (Footprint.square, Footprint.cross, Footprint.disk, lambda n: Footprint.square(3, stride=n)):
        with pytest.raises(ValueError, match="expected a positive integer"):
            make(size)
