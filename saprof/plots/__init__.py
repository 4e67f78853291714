"""Figures from rows: each a function from a DataFrame to a matplotlib Figure."""

from typing import TYPE_CHECKING

from saprof.lazy import lazy

if TYPE_CHECKING:
    from saprof.plots.footprint import cost_figure, footprint_figure
    from saprof.plots.frames import frame
    from saprof.plots.growth import growth_figure
    from saprof.plots.icicle_panels import icicle_figure
    from saprof.plots.panels import latency_figure, memory_figure
    from saprof.plots.pareto import accuracy_figure
    from saprof.plots.pictures import attention_picture, footprint_picture
    from saprof.plots.roofline import roofline_figure
    from saprof.plots.shapes import shapes_figure
    from saprof.plots.speedup import speedup_figure
    from saprof.plots.style import STYLE, write

__getattr__, __dir__, __all__ = lazy(__spec__)
