"""Axes and counts: their spelling and their values."""

import pytest

from saprof.operators import DECLARED, operator
from saprof.operators.axes import parse, shape_of

SIZES = {"n": 2, "r": 3, "k": 9, "v": 8, "g": 4, "oh": 5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("oh", 5),
        ("2*r", 6),
        ("r*(k+1)", 30),
        ("k+1*r", 12),
        ("v//g*n", 4),
        ("2*n*r*k*(2*v+g)", 2 * 2 * 3 * 9 * 20),
        ("(r)", 3),
    ],
)
def test_values(text, expected):
    assert parse(text).at(SIZES) == expected


def test_expressions_add_and_multiply():
    r, k = parse("r"), parse("k")
    assert (2 * r * k + 1 + k * (r + 1)).at(SIZES) == 54 + 1 + 36
    assert (r * (k + 1)).names == {"r", "k"}


def test_a_space_separates_axes():
    assert shape_of("n 2*r k*k 1", SIZES) == (2, 6, 81, 1)


@pytest.mark.parametrize("text", ["", "n r k p", "2r", "r+", "r**2", "(r", "r)", "r-1", "r*", "R", "r/2", "r·k"])
def test_any_other_spelling_is_refused(text):
    with pytest.raises(ValueError, match=r"^cannot read '.*'; expected sizes joined by \*, \+ or //, without spaces"):
        parse(text)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        ("n r k p", r"pairwise_odd: macs: cannot read 'n r k p'; expected sizes joined by"),
        ("n*q*k*p", r"pairwise_odd: macs is 'n\*q\*k\*p'; expected only sizes of h, k, n, oh, ow, p, r, w, not q"),
    ],
)
def test_a_count_that_does_not_fit_the_axes_is_refused(count, message):
    def pairwise_odd(phi_i, psi_j):
        return phi_i + psi_j

    with pytest.raises(ValueError, match=f"^{message}"):
        operator(axes="n r h w, n r h w -> n r k p", macs=count, source="nobody")(pairwise_odd)
    assert "pairwise_odd" not in DECLARED
