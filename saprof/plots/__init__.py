"""Figures from rows: each a function from a DataFrame to a matplotlib Figure."""

from saprof.plots.footprint import footprint_figure
from saprof.plots.style import STYLE, frame, write

__all__ = ["STYLE", "footprint_figure", "frame", "write"]
