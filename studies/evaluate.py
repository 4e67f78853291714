"""Judge trained networks: clean, turned and attacked images (SAN Tables 3, 9 and 10).

    python -m studies.evaluate RUN [RUN ...]
    python -m studies.evaluate --checkpoint FILE --official --model san10_pairwise --data folder --root /data/imagenet

The first judges finished runs on the images of their protocol, and keeps what comes of it in RUN/robustness.json. The
second judges a checkpoint, the SAN authors' or one of saprof.save, on a data set's validation set, beside what the
paper prints. Exit codes are those of studies.train.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import text
from saprof.command import OK, choices
from saprof.paper import printed
from saprof.paper import robustness as printed_robustness
from studies.config import DEVICES, Config
from studies.judging.judge import PARTS, Asked, How, judge, robustness, sample

if TYPE_CHECKING:
    from saprof.models.build import Model
    from studies.data import Dataset
    from studies.judging.robust import Attack
    from studies.training.engine import Classifier

__all__ = ["Checkpoint", "judge", "main", "of_checkpoint", "render", "rows"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    path: Path
    official: bool = False
    """Of the SAN authors' released code, and not of saprof.save."""
    model: str | None = None
    """Its name among saprof.list_models()."""

    def classifier(self, config: Config, dataset: Dataset) -> Classifier:
        """Its network in evaluation mode; ValueError unless it is the one that is named and fits the data."""
        import saprof
        from studies.training.engine import Classifier, network

        if self.official:
            classifier = network(config, dataset)
            if not isinstance(classifier.model, saprof.SAN):
                raise ValueError(f"--official is of the SAN authors' checkpoints, and {self.model} is no SAN")
            saprof.load_official(classifier.model, self.path)
            return classifier.eval()
        model = saprof.load(self.path)
        classes = model.config.num_classes
        if classes != len(dataset.classes):
            raise ValueError(f"{self.path} tells {classes} classes apart; {dataset.name} has {len(dataset.classes)}")
        if self.model is not None:
            self._check_name(model)
        return Classifier(model, dataset).eval()

    def _check_name(self, model: Model) -> None:
        from saprof.models.counting import blueprint

        as_named = blueprint(str(self.model), num_classes=model.config.num_classes)
        how_computed = {"backend", "attention"}
        was, named = vars(model.config), vars(as_named.config)
        other = [key for key in named if key not in how_computed and was.get(key) != named[key]]
        if was.keys() != named.keys() or other:
            raise ValueError(f"{self.path} holds another model than {self.model}; leave --model out, or name its own")


def of_checkpoint(
    checkpoint: Checkpoint, config: Config, asked: Asked, how: How, images: int | None = None
) -> dict[str, Any]:
    """A report like that of a run, of a checkpoint on the validation set of the config's data."""
    from studies import data
    from studies.training.distributed import device

    dataset = data.load(config)
    model = checkpoint.classifier(config, dataset)
    chosen = sample(dataset.test, images)
    total = len(dataset.test.labels)
    return {
        "model": checkpoint.model,
        "data": dataset.name,
        "evaluation_set": "val-original",
        "classes": len(dataset.classes),
        "sample_of": total if len(chosen.labels) < total else None,
        **robustness(model.to(device(how.device)), chosen, dataset, asked, how),
    }


def rows(name: str, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A report, flat: a row per manipulation, then one per attack, beside the figures that the paper prints."""
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
    """What the paper prints of the same model under the same condition, on ImageNet."""
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
    """The rows in one of `saprof.text.FORMATS`; for people, apart by data set and images judged."""
    if form in ("csv", "json"):
        return text.records(flat, form)
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in flat:
        groups.setdefault(tuple(row[key] for key in ("data", "evaluation_set", "sample_of")), []).append(row)
    return "\n\n".join(_section(group, form) for group in groups.values())


def _section(group: Sequence[Mapping[str, Any]], form: str) -> str:
    first = group[0]
    images = f"{first['n']:,} images"
    if first["sample_of"]:
        images = f"a sample of {first['n']:,} of {first['sample_of']:,} images"
    title = f"{'## ' if form == 'md' else ''}{first['data']}, {first['evaluation_set']}, {images}"
    notes = ["Percent and points; in brackets 95 % over images, not over seeds (Wilson)."]
    if first["classes"] <= 10:
        notes.append(f"Top-5 of {first['classes']} classes is saturated.")
    attacks = [row for row in group if "success" in row]
    turned = [row for row in group if "success" not in row]
    parts = [title, " ".join(notes), _table(turned, _turned_cells, form)]
    if attacks:
        notes = ["Targeted PGD, ε and ρ of 255; success is predicting the target."]
        if any("success_rate_printed" in row for row in attacks):
            notes.append("The paper says neither how it chose targets nor where it started.")
        parts += [" ".join(notes), _table(attacks, _attack_cells, form)]
    return "\n\n".join(parts)


def _table(group: Sequence[Mapping[str, Any]], cells: Any, form: str) -> str:
    """Columns that no row fills are left out."""
    lines = [cells(row) for row in group]
    header = [name for name in lines[0] if any(line[name] for line in lines)]
    return text.align(header, [[line[name] for name in header] for line in lines], form)


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


def _attacks(arguments: argparse.Namespace) -> tuple[Attack, ...]:
    """Those of studies.judging.robust, or the one that all three of radius, step and steps describe."""
    from studies.judging.robust import ATTACKS, Attack

    numbers = [arguments.attack_epsilon, arguments.attack_step, arguments.attack_steps]
    if any(number is not None for number in numbers) and None in numbers:
        raise ValueError("an attack of your own needs --attack-epsilon, --attack-step and --attack-steps")
    attacks = ATTACKS if None in numbers else (Attack(*numbers),)
    drawn = {name: getattr(arguments, f"attack_{name}") for name in ("target", "start", "seed")}
    return tuple(replace(attack, **drawn) for attack in attacks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.evaluate", description=str(__doc__).partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a finished run")
    one = parser.add_argument_group("a checkpoint instead of runs")
    one.add_argument("--checkpoint", type=Path, metavar="FILE", help="what saprof.save wrote, or with --official")
    one.add_argument("--official", action="store_true", help="a checkpoint of the SAN authors' released code")
    one.add_argument("--model", help="the checkpoint's model, such as san10_pairwise; picks the paper's figures too")
    one.add_argument("--data", default="folder", help="data set whose validation set is judged; default %(default)s")
    one.add_argument("--root", type=Path, help="where the data are, if they are not embedded")
    what = parser.add_argument_group("what is judged")
    what.add_argument("--only", default="all", help=f"comma list of {', '.join(PARTS)}; clean always is; default all")
    what.add_argument("--limit", type=int, metavar="N", help="a sample of N images, spread evenly")
    what.add_argument("--again", action="store_true", help="judge runs that are judged already")
    what.add_argument("--attack-epsilon", type=float, metavar="ε", help="one attack of your own: radius of the L∞ ball")
    what.add_argument("--attack-step", type=float, metavar="ρ", help="its step, on pixels from 0 to 255 too")
    what.add_argument("--attack-steps", type=int, metavar="n", help="its number of steps")
    what.add_argument("--attack-target", default="random", help="random, least_likely or next; default %(default)s")
    what.add_argument("--attack-start", default="clean", help="clean or random; default %(default)s")
    what.add_argument("--attack-seed", type=int, default=0, help="of targets and starts; default %(default)s")
    how = parser.add_argument_group("how")
    how.add_argument("--batch", type=int, default=How.batch, help="images at a time; default %(default)s")
    how.add_argument("--workers", type=int, default=How.workers, help="processes that load images; default %(default)s")
    how.add_argument("--threads", type=int, default=1, help="threads on a CPU; default %(default)s")
    how.add_argument("--device", default=How.device, help=f"{', '.join(DEVICES)}; default %(default)s")
    how.add_argument("--format", default="table", help=f"{', '.join(text.FORMATS)}; default %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    parts = choices("part", arguments.only, PARTS)
    import torch

    torch.set_num_threads(arguments.threads)
    asked = Asked.of(parts, _attacks(arguments))
    how = How(batch=arguments.batch, workers=arguments.workers, device=arguments.device, progress=True)
    flat: list[dict[str, Any]] = []
    if arguments.checkpoint:
        checkpoint = Checkpoint(path=arguments.checkpoint, official=arguments.official, model=arguments.model)
        model = checkpoint.model or Config.model  # which only an official checkpoint needs
        config = Config(model=model, data=arguments.data, root=arguments.root, protocol="val-original")
        report = of_checkpoint(checkpoint, config, asked, how, arguments.limit)
        flat = rows(checkpoint.model or checkpoint.path.name, report)
    for folder in arguments.runs:
        options = {"images": arguments.limit, "again": arguments.again}
        flat += rows(str(folder), judge(folder, asked, how, **options, say=_say))
    sys.stdout.write(render(flat, arguments.format) + "\n")
    return OK


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _check(arguments: argparse.Namespace) -> None:
    if bool(arguments.runs) == bool(arguments.checkpoint):
        raise ValueError("expected the folders of finished runs, or --checkpoint FILE; got " + _got(arguments))
    if arguments.official and not (arguments.checkpoint and arguments.model):
        raise ValueError("--official needs --checkpoint and --model, such as san10_pairwise")
    for name, valid in (("format", text.FORMATS), ("device", DEVICES)):
        if getattr(arguments, name) not in valid:
            raise ValueError(text.unknown(name, getattr(arguments, name), valid))
    for name, least in (("batch", 1), ("threads", 1), ("workers", 0), ("limit", 1)):
        if getattr(arguments, name) is not None and getattr(arguments, name) < least:
            raise ValueError(f"--{name} is {getattr(arguments, name)}; expected at least {least}")


def _got(arguments: argparse.Namespace) -> str:
    return "both" if arguments.runs else "neither"


if __name__ == "__main__":
    from saprof.command import run

    run(main)
