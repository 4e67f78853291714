"""Pictures show the taps that a footprint has, and the weights that a centre gives them."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from saprof import Footprint
from saprof.plots.pictures import attention_picture, footprint_picture

CROSS = Footprint.cross(3)
IRREGULAR = Footprint.from_offsets([(2, 1), (0, 0), (-1, 0)])


def test_every_tap_is_drawn_at_its_offset_with_its_number():
    figure = footprint_picture([CROSS, IRREGULAR])
    for axes, footprint in zip(figure.axes, [CROSS, IRREGULAR], strict=True):
        numbers = {(text.get_position()[1], text.get_position()[0]): int(text.get_text()) for text in axes.texts}
        assert numbers == {offset: j for j, offset in enumerate(footprint.offsets)}
        assert str(footprint.taps) in axes.get_title(loc="left") + axes.get_title()


def test_numbers_are_no_wider_than_their_taps():
    figure = footprint_picture([Footprint.cross(25), *[Footprint.random(49, seed=1)] * 4])
    figure.set_dpi(400)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    tap = axes.transData.transform((1, 0))[0] - axes.transData.transform((0, 0))[0]
    widest = max(text.get_window_extent().width for text in axes.texts)
    assert 0.5 * tap < widest <= tap
    few = footprint_picture([CROSS])
    assert {text.get_fontsize() for text in few.axes[0].texts} == {6.0}


def test_weights_are_where_their_taps_are():
    h, w, centre = 3, 4, (1, 2)
    alpha = np.random.default_rng(0).normal(size=(2, IRREGULAR.taps, h * w))
    figure = attention_picture(np.zeros((h, w)), alpha, IRREGULAR, [centre])
    here = alpha[:, :, 1 * w + 2]
    for axes, weights in zip(figure.axes[1:4], [here.mean(0), *here], strict=True):
        (image,) = axes.images
        left, _, _, top = image.get_extent()
        grid = image.get_array()
        assert grid.count() == IRREGULAR.taps
        for weight, (dy, dx) in zip(weights, IRREGULAR.offsets, strict=True):
            assert grid[int(dy - top - 0.5), int(dx - left - 0.5)] == weight
    assert figure.axes[1].images[0].norm.vmin == -abs(here).max()


def test_the_image_ends_where_it_does_seen_from_the_centre():
    alpha = np.full((1, CROSS.taps, 12), 0.2)
    figure = attention_picture(np.zeros((3, 4)), alpha, CROSS, [(2, 0)])
    *_, border = [patch for patch in figure.axes[1].patches if isinstance(patch, Rectangle)]
    assert (border.get_x(), border.get_y(), border.get_width(), border.get_height()) == (-0.5, -2.5, 4, 3)
    assert figure.axes[1].images[0].norm.vmin == 0


def test_weights_of_another_map_are_refused():
    with pytest.raises(ValueError, match=r"alpha is g k p = \(1, 5, 9\); expected k = 5 and p = 3 · 4"):
        attention_picture(np.zeros((3, 4)), np.zeros((1, 5, 9)), CROSS, [(0, 0)])
