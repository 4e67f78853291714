"""The fields of a row that compare networks over seeds: means, intervals, and differences corrected by Holm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.judging import statistics
from studies.judging.statistics import Difference

COMPARED = {
    "difference": "mean",
    "difference_low": "low",
    "difference_high": "high",
    "difference_level": "level",
    "p": "p",
    "p_holm": "p_adjusted",
    "seeds_compared": "n",
    "resolvable": "resolvable",
}
"""Fields of rows, and the attributes of a Difference that they hold."""

Run = Mapping[str, Any]
"""A finished run, as results.json has it."""


def differences(
    values: Sequence[Mapping[int, float]], bases: Sequence[int | None], claimed: Sequence[bool] | None = None
) -> list[Difference | None]:
    """The difference of each line from its base, over the seeds that both have; `values` are by seed.

    Differences of claimed lines (by default all) are corrected for their number by Holm. A line without a base, or
    without a common seed, has None.
    """
    plain: dict[int, Difference] = {}
    for number, base in enumerate(bases):
        if base is None:
            continue
        ours, theirs = values[number], values[base]
        both = sorted(ours.keys() & theirs.keys())
        if both:
            plain[number] = statistics.paired({s: ours[s] for s in both}, {s: theirs[s] for s in both})
    claims = [number for number in plain if claimed is None or claimed[number]]
    corrected = dict(zip(claims, statistics.holm([plain[number] for number in claims]), strict=True))
    return [(plain | corrected).get(number) for number in range(len(values))]


def compared(difference: Difference | None) -> dict[str, Any]:
    """The fields of a difference; empty for None."""
    return {} if difference is None else {name: getattr(difference, field) for name, field in COMPARED.items()}


def over_seeds(name: str, values: Sequence[float]) -> dict[str, Any]:
    """The mean over seeds as the field `name`, its standard deviation and its interval."""
    over = statistics.mean(values)
    return {name: over.mean, "sd": over.sd, "low": over.low, "high": over.high}


def over_images(runs: Sequence[Run], top1: float) -> dict[str, Any]:
    """The interval of a mean top-1 over the images it was judged on."""
    n = runs[0]["n"]
    low, high = statistics.wilson(round(top1 * n / 100), n)
    return {"images": n, "low_over_images": low, "high_over_images": high}


def mean_loss(runs: Sequence[Run]) -> float | None:
    """The mean over the runs with a finite loss."""
    losses = [run["loss"] for run in runs if run["loss"] is not None]
    return statistics.mean(losses).mean if losses else None


def mean_seconds(runs: Sequence[Run]) -> float:
    """The mean training time."""
    return statistics.mean([run["train_seconds"] for run in runs]).mean
