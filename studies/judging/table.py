"""Reports on robustness as flat rows and as tables, beside the figures that the paper prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saprof import text
from saprof.paper import printed
from saprof.paper import robustness as printed_robustness
from saprof.terminal import laid_out


def rows(name: str, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The flat rows of a report: one per manipulation, then one per attack, with the figures that the paper prints."""
    about = {key: report[key] for key in ("model", "data", "evaluation_set", "classes", "sample_of")}
    clean = report["manipulations"]["none"]
    steady = report.get("without", {"manipulations": {}})
    found = []
    for condition, cell in report["manipulations"].items():
        row = {"name": name, **about, "condition": condition, **_figures(cell, clean)}
        if condition in steady["manipulations"]:
            rest = _figures(steady["manipulations"][condition], steady["manipulations"]["none"])
            row["without"] = ", ".join(steady["classes"])
            row |= {f"{figure}_without": rest[figure] for figure in ("n", "top1", "top1_low", "top1_high", "top1_drop")}
        found.append(row)
    for attack, cell in report["attacks"].items():
        found.append({"name": name, **about, "condition": attack, **_figures(cell, clean)})
    return [row | _printed(row) for row in found]


def _figures(cell: Mapping[str, Any], clean: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in cell.items():
        if isinstance(value, list):
            rate = key.removesuffix("_interval")
            flat |= {f"{rate}_low": value[0], f"{rate}_high": value[1]}
        else:
            flat[key] = value
    return flat | {"top1_drop": clean["top1"] - cell["top1"], "top5_drop": clean["top5"] - cell["top5"]}


def _printed(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures that the paper prints for the same model under the same condition, on ImageNet."""
    model, condition = row["model"], row["condition"]
    if (row["data"], row["classes"], row["evaluation_set"]) != ("folder", 1000, "val-original"):
        return {}
    table3 = {row.model: row for row in printed.rows(3)}
    turned, attacked = printed_robustness.turned().row(model), printed_robustness.attacked().row(model)
    if condition == "none" and model in table3:
        return {"top1_printed": table3[model].top1, "top5_printed": table3[model].top5}
    if turned and condition in turned.manipulations:
        return {f"{figure}_printed": value for figure, value in vars(turned.manipulations[condition]).items()}
    if attacked and condition in attacked.attacks:
        return {f"{figure}_printed": value for figure, value in vars(attacked.attacks[condition]).items()}
    return {}


def render(flat: Sequence[Mapping[str, Any]], form: str) -> str:
    """The rows in one of `saprof.text.FORMATS`; tables for people are separate for each data set and set of images."""
    if form in ("csv", "json"):
        return text.records(flat, form)
    return "\n\n".join(_section(group, form) for group in by_images(flat, ("data", "evaluation_set", "sample_of")))


def by_images(flat: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    """The rows in groups that agree in these fields."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in flat:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())


def title(row: Mapping[str, Any], form: str) -> str:
    """The title of a group of rows: the data set, and the images that were judged."""
    images = f"{row['n']:,} images"
    if row["sample_of"]:
        images = f"a sample of {row['n']:,} of {row['sample_of']:,} images"
    return f"{'## ' if form == 'md' else ''}{row['data']}, {row['evaluation_set']}, {images}"


def _section(group: Sequence[Mapping[str, Any]], form: str) -> str:
    first = group[0]
    notes = ["Percent and points; in brackets the 95 % interval over images, not over seeds (Wilson)."]
    if first["classes"] <= 10:
        notes.append(f"Top-5 of {first['classes']} classes is saturated.")
    attacks = [row for row in group if "success" in row]
    turned = [row for row in group if "success" not in row]
    parts = [title(first, form), " ".join(notes), _table(turned, _turned_cells, form)]
    if attacks:
        notes = ["Targeted PGD, ε and ρ of 255; an attack succeeds if the network predicts the target."]
        if any("success_rate_printed" in row for row in attacks):
            notes.append("The paper states neither how it chose targets nor where attacks start.")
        parts += [" ".join(notes), _table(attacks, _attack_cells, form)]
    return "\n\n".join(parts)


def _table(group: Sequence[Mapping[str, Any]], cells: Any, form: str) -> str:
    """The table of a group, without columns that are empty in every row."""
    lines = [cells(row) for row in group]
    header = [name for name in lines[0] if any(line[name] for line in lines)]
    return laid_out(header, [[line[name] for name in header] for line in lines], form)


def _turned_cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "network": row["name"],
        "images": row["condition"],
        "top-1": _rate(row, "top1"),
        "drop": _point(row, "top1_drop"),
        "printed top-1": _point(row, "top1_printed"),
        "printed drop": _point(row, "top1_drop_printed"),
        "top-5": _point(row, "top5"),
        "printed top-5": _point(row, "top5_printed"),
        f"top-1 without {row.get('without')}": _rate(row, "top1", "_without"),
        f"drop without {row.get('without')}": _point(row, "top1_drop_without"),
        "not finite": f"{row['nonfinite']}" if row["nonfinite"] else "",
    }


def _attack_cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "network": row["name"],
        "ε": f"{row['epsilon']:g}",
        "ρ": f"{row['step']:g}",
        "n": f"{row['steps']}",
        "target": row["target"],
        "start": row["start"],
        "seed": f"{row['seed']}",
        "success": _rate(row, "success_rate"),
        "printed success": _point(row, "success_rate_printed"),
        "top-1": _rate(row, "top1"),
        "drop": _point(row, "top1_drop"),
        "printed top-1": _point(row, "top1_printed"),
        "not finite": f"{row['nonfinite']}" if row["nonfinite"] else "",
    }


def _point(row: Mapping[str, Any], figure: str) -> str:
    return f"{row[figure]:.1f}" if figure in row else ""


def _rate(row: Mapping[str, Any], figure: str, suffix: str = "") -> str:
    if figure + suffix not in row:
        return ""
    rate, low, high = (row[figure + bound + suffix] for bound in ("", "_low", "_high"))
    return f"{rate:.1f} [{low:.1f}, {high:.1f}]"
