"""Pictures of footprints, and of the attention weights that a network gives their taps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from saprof.operators.footprint import Footprint
from saprof.plots.scales import plain
from saprof.plots.style import STYLE, Chart

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAP, CENTRE = "#a8d4ef", "#ff9a1f"
"""Light blue and orange; no operator, backend or family has these colours."""
SIDE = 2.6
"""The side of the picture of one footprint, in inches."""


def footprint_picture(footprints: Sequence[Footprint]) -> Figure:
    """Draw the taps of each footprint around its centre, numbered in tap order."""
    with matplotlib.rc_context(STYLE):
        figure = Chart(figsize=(SIDE * len(footprints), SIDE + 0.6), layout="compressed")
        reach = max(abs(bound) for footprint in footprints for axis in footprint.reach for bound in axis)
        tap = 72 * SIDE / (2 * reach + 2)  # points
        for footprint, axes in zip(footprints, figure.subplots(1, len(footprints), squeeze=False)[0], strict=True):
            for j, (dy, dx) in enumerate(footprint.offsets):
                axes.add_patch(Rectangle((dx - 0.5, dy - 0.5), 1, 1, facecolor=TAP, edgecolor="white"))
                axes.text(dx, dy, str(j), ha="center", va="center", fontsize=min(6.0, 0.7 * tap))
            axes.add_patch(Rectangle((-0.5, -0.5), 1, 1, fill=False, edgecolor=CENTRE, linewidth=2))
            axes.set(xlim=(-reach - 1, reach + 1), ylim=(reach + 1, -reach - 1), aspect="equal")
            axes.set_title(f"{footprint}\n{footprint.taps} taps", fontsize="medium")
            _bare(axes)
    named = ", ".join(f"{footprint} with {footprint.taps} taps" for footprint in footprints)
    figure.alt = f"Footprints, the taps of each around its centre and numbered in tap order: {named}."
    return figure


def attention_picture(
    image: NDArray[Any], alpha: NDArray[Any], footprint: Footprint, centres: Sequence[tuple[int, int]], title: str = ""
) -> Figure:
    """The attention weights of the given centres (row, column). Each has a row with the image, the mean of α over the
    weight groups, and α of every group.

    `image` is h w. `alpha` is g k p, the weights of an attention for this image, whose map is also h w. A tap beyond
    the image is drawn at its own position, for every boundary.
    """
    (h, w), groups = image.shape, len(alpha)
    if alpha.shape[1:] != (footprint.taps, h * w):
        raise ValueError(
            f"alpha is g k p = {alpha.shape}; expected k = {footprint.taps} and p = {h} · {w} of the image"
        )
    most = max(float(abs(alpha[:, :, y * w + x]).max()) for y, x in centres)
    norm, colours = Normalize(-most, most), "RdBu_r"
    if alpha.min() >= 0:
        norm, colours = PowerNorm(0.5, 0, most), "cividis"  # this makes small weights visible
    with matplotlib.rc_context(STYLE):
        figure = Chart(figsize=(1.9 * (groups + 2) + 0.8, 2.0 * len(centres) + 0.6), layout="compressed")
        panels = figure.subplots(len(centres), groups + 2, squeeze=False)
        for row, (y, x) in zip(panels, centres, strict=True):
            _draw_image(row[0], image, footprint, (y, x))
            at_centre = alpha[:, :, y * w + x]
            for axes, weights in zip(row[1:], [at_centre.mean(0), *at_centre], strict=True):
                _draw_weights(axes, weights, footprint, norm, colours)
            _draw_border(row[1:], (h, w), (y, x))
        titles = ["image", "mean of groups", *(f"group {g}" for g in range(groups))]
        for axes, name in zip(panels[0], titles, strict=True):
            axes.set_title(name, fontsize="medium")
        figure.colorbar(ScalarMappable(norm, colours), ax=panels, shrink=0.6, label="attention weight α")
        figure.suptitle(title)
    at = ", ".join(f"({y}, {x})" for y, x in centres)
    shown = np.concatenate([alpha[:, :, y * w + x].ravel() for y, x in centres])
    low, high = plain(float(shown.min())), plain(float(shown.max()))
    figure.alt = (
        f"{title or 'Attention weights'}: the image and the weights of the {footprint.taps} taps at the centres {at}, "
        f"the mean and each of {groups} groups, from {low} to {high}."
    )
    return figure


def _draw_image(axes: Axes, image: NDArray[Any], footprint: Footprint, centre: tuple[int, int]) -> None:
    y, x = centre
    (top, bottom), (left, right) = footprint.reach
    (h, w) = image.shape
    axes.imshow(image, cmap="gray_r")
    axes.add_patch(Rectangle((-0.5, -0.5), w, h, fill=False, edgecolor="0.2", linestyle=":", linewidth=1))
    window = (x + left - 0.5, y + top - 0.5), right - left + 1, bottom - top + 1
    axes.add_patch(Rectangle(*window, fill=False, edgecolor=TAP, linewidth=1.5))
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=CENTRE, linewidth=2))
    axes.set(xlim=(-1.5, w + 0.5), ylim=(h + 0.5, -1.5))
    _bare(axes)


def _draw_weights(axes: Axes, weights: NDArray[Any], footprint: Footprint, norm: Normalize, colours: str) -> None:
    """The weight of each tap at its offset from the centre."""
    (top, bottom), (left, right) = footprint.reach
    grid = np.full((bottom - top + 1, right - left + 1), np.nan)
    for weight, (dy, dx) in zip(weights, footprint.offsets, strict=True):
        grid[dy - top, dx - left] = weight
    extent = left - 0.5, right + 0.5, bottom + 0.5, top - 0.5
    axes.imshow(grid, extent=extent, norm=norm, cmap=colours)
    axes.add_patch(Rectangle((-0.5, -0.5), 1, 1, fill=False, edgecolor=CENTRE, linewidth=2))
    _bare(axes)


def _draw_border(panels: Sequence[Axes], size: tuple[int, int], centre: tuple[int, int]) -> None:
    """The border of the image relative to the centre."""
    (h, w), (y, x) = size, centre
    for axes in panels:
        limits = axes.get_xlim(), axes.get_ylim()
        axes.add_patch(Rectangle((-x - 0.5, -y - 0.5), w, h, fill=False, edgecolor="0.2", linestyle=":", linewidth=1))
        axes.set(xlim=limits[0], ylim=limits[1])


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
