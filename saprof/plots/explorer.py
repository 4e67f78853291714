"""An explorer of runs for JupyterLab: choose what is drawn; only what the runs have is offered."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from saprof.markup import Html, join, tag
from saprof.plots import frames, page, style
from saprof.plots.choices import Offer, narrowed, shared
from saprof.plots.icicle import MEASURES, scale_of
from saprof.plots.icicle_panels import icicle_figure
from saprof.plots.metrics import (
    AGAINST,
    AXES,
    MANY,
    SPEEDUP,
    against,
    figure_of,
    frame_of,
    lined,
    metric_figure,
    metric_of,
    metrics_of,
    with_metric,
    worded,
)
from saprof.records.found import Found, find_runs, usual_folders
from saprof.records.rows import MEASURED
from saprof.text import counted

__all__ = ["Explorer", "explorer", "metric_figure"]

WIDTH = "20rem"
"""The width of a control, whatever that of the browser."""
PLOT = "30rem"
"""The least width of a plot beside the controls. On a narrower page the plot is below the controls."""
HINT = "Ctrl or Shift with a click chooses several."


def explorer(*folders: str | Path) -> Any:
    """A widget that draws what you choose of the runs in these folders and below; it needs ipywidgets.

    Without folders, it finds the runs in `runs`, here or in a folder above, and the recorded ones. ModuleNotFoundError
    without ipywidgets.
    """
    if find_spec("ipywidgets") is None:
        raise ModuleNotFoundError(
            "the explorer needs ipywidgets, which is not installed; install it with `pip install ipywidgets`, or draw "
            "with saprof.plots.metrics.metric_figure, which needs no widgets"
        )
    return Explorer(folders).widget


class Explorer:
    """The controls, and what they draw. `widget` shows both."""

    def __init__(self, folders: Sequence[str | Path] = ()) -> None:
        import ipywidgets

        self._folders = folders
        self._offers: dict[str, Offer] = {}
        self._rows = pd.DataFrame()
        self._busy = False
        self._drawn: tuple[str, ...] = ()
        fill = ipywidgets.Layout(width="100%", margin="0")
        many, one = ipywidgets.SelectMultiple, ipywidgets.Dropdown
        self.runs = many(layout=fill, rows=6)
        self.metric, self.across = one(layout=fill), one(layout=fill)
        self.picks = {column: many(layout=fill) for column in AXES}
        self.refresh = ipywidgets.Button(
            description="look for new runs",
            icon="refresh",
            layout=ipywidgets.Layout(width=WIDTH, margin="0 1rem .6rem 0"),
        )
        self.unreadable, self.said, self.plot = (ipywidgets.HTML(layout=fill) for _ in range(3))
        self._parts: dict[Any, Any] = {}
        named = {"runs": self.runs, "what": self.metric, "against": self.across}
        named |= {AXES[column]: pick for column, pick in self.picks.items()}
        for name, control in named.items():
            label = ipywidgets.HTML(tag("b", name), layout=ipywidgets.Layout(margin="0"))
            self._parts[control] = ipywidgets.VBox(
                [label, control], layout=ipywidgets.Layout(width=WIDTH, margin="0 1rem .5rem 0", flex="0 0 auto")
            )
        hint = ipywidgets.HTML(tag("small", HINT))
        runs, *others = self._parts.values()
        controls = ipywidgets.Box(
            [runs, self.refresh, *others, hint],
            layout=ipywidgets.Layout(flex=f"1 1 {WIDTH}", min_width=WIDTH, flex_flow="row wrap"),
        )
        drawn = ipywidgets.VBox(
            [self.plot, self.said, self.unreadable],
            layout=ipywidgets.Layout(flex=f"999 1 {PLOT}", width="auto", min_width="0"),
        )
        self.widget = ipywidgets.Box(
            [controls, drawn], layout=ipywidgets.Layout(flex_flow="row wrap", width="100%", align_items="flex-start")
        )
        self.find()
        self.refresh.on_click(lambda _: self.find())
        self.runs.observe(self._when_free(self._take_runs), "value")
        for control in (self.metric, self.across, *self.picks.values()):
            control.observe(self._when_free(self._offer), "value")

    def find(self) -> None:
        """Look for runs; what is chosen stays."""
        found = find_runs(self._folders or usual_folders())
        self._found = {str(one.folder): one for one in found if one.run is not None}
        labels = _distinct(list(self._found.values()))
        before = self.runs.value
        self._set(self.runs, [(label, folder) for folder, label in labels.items()])
        kept = [folder for folder in before if folder in self._found]
        sweeps = [folder for folder, one in self._found.items() if one.run and not one.run.profiles]
        self._set_value(self.runs, tuple(kept or (sweeps or list(self._found))[:1]))
        self.unreadable.value = _unreadable(found)
        self._take_runs()

    def _when_free(self, act: Callable[[], None]) -> Callable[[object], None]:
        """Do not react to what this class itself sets."""

        def react(_: object) -> None:
            if not self._busy:
                act()

        return react

    def _set_value(self, control: Any, value: Any) -> None:
        self._busy = True
        control.value = value
        self._busy = False

    def _set(self, control: Any, options: Sequence[Any]) -> None:
        self._busy = True
        control.options = options
        self._busy = False

    def _choose(self, control: Any, options: Sequence[tuple[str, Any]], value: Any) -> None:
        """Offer these options, with their labels; a control with only one option is hidden."""
        if list(control.options) != list(options):
            self._set(control, options)
        if control.value != value:
            self._set_value(control, value)
        self._show(control, len(options) > 1)

    def _show(self, control: Any, is_shown: bool) -> None:
        self._parts[control].layout.display = None if is_shown else "none"

    def _chosen(self) -> list[Found]:
        return [self._found[folder] for folder in self.runs.value if folder in self._found]

    def _take_runs(self) -> None:
        """Read the chosen runs."""
        runs = [one.run for one in self._chosen() if one.run is not None]
        labels = _distinct(self._chosen())
        self._is_profile = bool(runs) and all(run.profiles for run in runs)
        tables = [
            frame_of(run).assign(run=labels[str(one.folder)].partition(" · ")[0])
            for one, run in zip(self._chosen(), runs, strict=True)
        ]
        self._rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        if self.runs.value != self._drawn:
            self._drawn, self._offers = self.runs.value, {}
            self._set(self.across, [])
        self._offer()

    def _offer(self) -> None:
        """Offer what the chosen runs have, and draw the choice."""
        if not self._chosen():
            for control in (self.metric, self.across, *self.picks.values()):
                self._show(control, False)
            where = ", ".join(str(folder) for folder in self._folders or usual_folders())
            return self._say(f"No run is chosen. Runs are looked for in {where}; saprof sweep measures one.")
        if self._is_profile:
            return self._draw_profiles()
        metrics = metrics_of(self._rows)
        if not metrics:
            return self._say(f"Nothing was measured: {_why(self._rows)}")
        metric = self.metric.value if self.metric.value in metrics else metrics[0]
        self._choose(self.metric, [(_label(name), name) for name in metrics], metric)
        rows = with_metric(self._rows, metric)
        axes = against(rows)
        across = self.across.value if self.across.value in axes else axes[0]
        self._choose(self.across, [(AGAINST[name], name) for name in axes], across)
        if across == "footprint":
            rows = rows[rows["taps"].notna()]
        empty = [name for name, pick in self.picks.items() if not pick.value]
        before = {
            name: Offer(offer.options, self.picks[name].value or offer.options)
            for name, offer in self._offers.items()
            if name not in empty or len(offer.options) > 1
        }
        drawn, self._offers = narrowed(rows, across, before)
        for column, offer in self._offers.items():
            pick = self.picks[column]
            self._choose(pick, [(_option(column, one), one) for one in offer.options], offer.picked)
            pick.rows = min(max(len(offer.options), 2), 8)
        self._draw_rows(drawn, metric, across)

    def _draw_rows(self, rows: pd.DataFrame, metric: str, across: str) -> None:
        self._draw(figure_of(rows, metric_of(metric), across))
        lines = lined(rows, across, metric_of(metric))["label"].nunique()
        doubtful, same = int(rows["doubtful"].sum()), shared(self._offers)
        facts = [worded(name, value) for name, value in same.items() if name not in ("kind", "run")]
        said = [f"Common to all: {', '.join(filter(None, facts))}." if any(facts) else ""]
        if doubtful:
            verb, why = (
                "is" if doubtful == 1 else "are",
                frames.doubts(rows[rows["doubtful"]]) or "compared with a doubtful row",
            )
            said.append(f"{doubtful} of {counted(len(rows), 'row')} {verb} {why}, and hollow: do not trust.")
        if lines > MANY:
            said.append(f"{lines} lines are hard to tell apart; choose fewer.")
        if failed := _why(self._like(rows)):
            said.append(f"Did not run: {failed}.")
        said += [f"{one.name}: {one.reason}." for one in self._chosen() if one.reason]
        self.said.value = join(*(tag("p", one) for one in [*said, *self._captions()] if one))

    def _like(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The cells without a latency that agree with chosen rows in name, run and mode."""
        failed = self._rows.loc[~self._rows["status"].isin(MEASURED)]
        for column in ("name", "run", "mode"):
            failed = failed.loc[failed[column].isin(rows[column].unique())]
        return failed

    def _draw_profiles(self) -> None:
        profiles = [one for found in self._chosen() if found.run for one in found.run.profiles]
        measures = {measure.title: measure for measure in MEASURES if scale_of(profiles, measure)}
        title = self.metric.value if self.metric.value in measures else next(iter(measures))
        self._choose(self.metric, [(name, name) for name in measures], title)
        for control in (self.across, *self.picks.values()):
            self._show(control, False)
        self._draw(icicle_figure(profiles, measures[title]))
        self.said.value = join(*(tag("p", one) for one in [_PROFILE, *self._captions()]))

    def _captions(self) -> list[str]:
        """Machine and code of the chosen runs."""
        return list(dict.fromkeys(one.run.caption for one in self._chosen() if one.run))

    def _draw(self, figure: style.Chart) -> None:
        self.plot.value = _image(figure)

    def _say(self, sentence: str) -> None:
        self.plot.value, self.said.value = tag("p", sentence), ""


_PROFILE = (
    "A profile: the width of a box is the share of a layer or operator; it is below the module that contains it. "
    "saprof report shows the tree with all numbers."
)


def _image(figure: style.Chart) -> Html:
    """A figure as an image that is as wide as its place."""
    content = BytesIO()
    with matplotlib.rc_context(style.STYLE):
        figure.savefig(content, format="svg", metadata={"Date": None})
    data = base64.b64encode(content.getvalue()).decode()
    css = "width: 100%; max-width: 75rem; background: white"
    return Html(f'<img alt="{html.escape(figure.alt)}" style="{css}" src="data:image/svg+xml;base64,{data}">')


def _distinct(found: Sequence[Found]) -> dict[str, str]:
    """The label of each run, by its folder; runs of the same name have that of the folder above, too."""
    names = Counter(one.name for one in found)
    return {
        str(one.folder): f"{one.folder.parent.name}/{one.label}" if names[one.name] > 1 else one.label for one in found
    }


def _unreadable(found: Sequence[Found]) -> Html:
    """The runs that cannot be read, with the reasons."""
    damaged = [f"{one.folder}: {one.reason}" for one in found if one.run is None]
    return page.folded(f"{counted(len(damaged), 'run')} cannot be read", page.items(damaged)) if damaged else Html("")


def _label(metric: str) -> str:
    known = metric_of(metric)
    return known.noun if metric.startswith(SPEEDUP) else known.label.partition(" (band")[0]


def _option(column: str, value: Any) -> str:
    """A value as the controls show it."""
    if column == "footprint":
        return frames.footprint_label(value)
    if column == "kind":
        return {"model": "networks", "operator": "operators", "function": "functions"}.get(value, str(value))
    if column == "compiled":
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


def _why(rows: pd.DataFrame) -> str:
    """The number of cells without a latency, by reason."""
    failed = rows[~rows["status"].isin(MEASURED)] if len(rows) else rows
    reasons = Counter(f"{status}, {reason}" for status, reason in zip(failed["status"], failed["reason"], strict=True))
    return "; ".join(f"{counted(count, 'cell')} ({reason})" for reason, count in reasons.most_common())
