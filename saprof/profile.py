"""`python -m saprof.profile NETWORK`: where the time, the memory and the operations of a network go, layer by layer.

The command prints a table, and writes the rows and a page with figures into a run folder. `--compare` measures a second
network in the same rounds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import atomic, command, text
from saprof.lazy import callable_as
from saprof.measure.cells import PROFILED_MODES
from saprof.models.named import OTHERS, NamedNetwork, read_network
from saprof.operators import BACKENDS
from saprof.operators.attention import CHOICES
from saprof.operators.workload import ITEMSIZE
from saprof.records import calibration
from saprof.records.columns import COLUMNS
from saprof.records.profiles import Profile, common_columns, footnotes, headline, versus
from saprof.records.runs import HEADER, Run, check_folder, read_run

if TYPE_CHECKING:
    from saprof.measure.profiled import Profiled
    from saprof.records.calibration import Calibration

ROOF_SECONDS = 0.1
"""The approximate time of the measurement of each roof, half of a sweep's: a profile needs the roofs of one dtype and
takes seconds itself."""


def main(argv: list[str] | None = None) -> int:
    options = parser()
    arguments = options.parse_args(argv)
    for name in [*(arguments.columns or "").split(","), arguments.sort]:
        if name and name not in COLUMNS:
            raise ValueError(text.unknown("column", name, tuple(COLUMNS)))
    depth = _depth(arguments.depth)
    if arguments.from_ is not None:
        command.alone(options, arguments, "from_", ("depth", "sort", "columns", "format"))
        found = list(read_run(arguments.from_).profiles)
        if not found:
            raise ValueError(f"{arguments.from_} has no profile; expected a run folder of saprof.profile")
    else:
        found = _measure(arguments, depth)
    _print(found, arguments, depth)
    return command.OK


def _depth(asked: str) -> int | None:
    if asked == "all":
        return None
    if not asked.isdecimal():
        raise ValueError(f"depth is {asked!r}; expected a positive integer, or all")
    return command.integer("depth", asked)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m saprof.profile",
        description="Measure where the time, the memory and the operations of a network go, layer by layer.",
    )
    what = options.add_argument_group("what")
    what.add_argument(
        "network",
        nargs="?",
        help=f"the network: a name of saprof.list_models(), {', '.join(OTHERS[:2])} or {OTHERS[2]}",
    )
    what.add_argument("--model", help="the network, as an option instead of the argument")
    what.add_argument("--compare", metavar="NETWORK", help="a second network, measured in the same rounds")
    what.add_argument(
        "--mode", default="forward", choices=PROFILED_MODES, help="a forward (default), or a forward and a backward"
    )
    what.add_argument("--batch", default="1", help="images (default 1)")
    what.add_argument("--size", help="side of the images in pixels (default: that of the network)")
    what.add_argument("--dtype", default="float32", choices=tuple(ITEMSIZE), help="dtype of parameters and inputs")
    how = options.add_argument_group("how")
    how.add_argument("--backend", default="auto", choices=(*BACKENDS, "auto"), help="what computes a network of saprof")
    how.add_argument(
        "--attention",
        default="auto",
        choices=CHOICES,
        help="whether the attention of a network of saprof is one operator",
    )
    how.add_argument("--compile", default="no", choices=("no", "yes"), help="whether to use torch.compile")
    how.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    how.add_argument("--threads", help="CPU threads (default: as many as torch uses)")
    how.add_argument(
        "--seconds", default="3", help="most seconds of timing for each network, after the first rounds (default 3)"
    )
    how.add_argument(
        "--roofs", default="measure", choices=("measure", "skip"), help="whether to measure the roofs of the machine"
    )
    output = options.add_argument_group("output")
    output.add_argument(
        "--depth", default="2", help="levels of the tree, or all (default 2); the parts of fused attention are timed "
        "apart only if the tree shows them"
    )  # fmt: skip
    output.add_argument("--sort", help="the column by which the layers inside each module are sorted, largest first")
    output.add_argument(
        "--columns",
        help=f"comma-separated columns, out of {', '.join(COLUMNS)} (default: those that fit into the terminal)",
    )
    output.add_argument("--format", default="table", choices=text.FORMATS)
    output.add_argument("--output", type=command.path, help="run folder (default runs/<time>)")
    output.add_argument("--trace", type=command.path, metavar="FILE", help="also write a Chrome trace of one call")
    output.add_argument(
        "--from", dest="from_", type=command.path, metavar="RUN", help="print the profiles of a run folder, and stop"
    )
    return options


def _measure(arguments: argparse.Namespace, depth: int | None) -> list[Profile]:
    """Profile the networks, and write their rows."""
    if (arguments.network is None) == (arguments.model is None):
        raise ValueError("expected one network, such as python -m saprof.profile san10_pairwise --compare resnet26")
    names = [arguments.network or arguments.model, *([arguments.compare] if arguments.compare else [])]
    if len(set(names)) < len(names):
        raise ValueError(f"--compare is {names[0]!r}, the same as the first network; expected another network")
    networks = [read_network(name) for name in names]
    seconds = command.seconds("seconds", arguments.seconds)
    device = command.device(arguments.device)
    folder = arguments.output or Path("runs") / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    check_folder(folder)
    _check_places(folder, arguments.trace)
    subjects = _subjects(networks, arguments, device)
    from saprof.measure.profiling import profile_all
    from saprof.measure.trace import chrome_trace

    roofs = _roofs(device, arguments)
    found = profile_all(subjects, seconds, apart=_reaches(subjects, depth), roofs=roofs, progress=True)
    with Run(folder, dict(found[0].provenance)) as run:
        run.append([row for one in found for row in one.rows])
        if roofs:
            calibration.write(folder, roofs)
    print(f"rows in {folder}", file=sys.stderr)
    from saprof.plots import profile_page

    print(f"figures in {profile_page.write(found, folder / profile_page.FILE)}", file=sys.stderr)
    if arguments.trace:
        first = subjects[0]
        with first.unchanged():
            atomic.write(arguments.trace, chrome_trace(first.module, first.name, first.call, device))
        print(f"a trace of one call in {arguments.trace}; open it in ui.perfetto.dev", file=sys.stderr)
    return found


def _check_places(folder: Path, trace: Path | None) -> None:
    """WriteError, before minutes of measurement, if the folder or the trace cannot be written."""
    around = (folder.resolve(), *folder.resolve().parents)
    atomic.check(next(at for at in around if at.exists()) / HEADER)
    if trace is not None and trace.resolve().parent != folder.resolve():
        atomic.check(trace)


def _subjects(networks: list[NamedNetwork], arguments: argparse.Namespace, device: str) -> list[Profiled]:
    """The networks with their inputs, on the device."""
    import torch

    from saprof.backends import check_device
    from saprof.measure.profiled import Profiled
    from saprof.models.inputs import moved

    check_device(device)
    if arguments.threads is not None:
        torch.set_num_threads(command.integer("threads", arguments.threads, command.MOST_THREADS))
    batch = command.integer("batch", arguments.batch)
    side = None if arguments.size is None else command.integer("size", arguments.size)
    dtype = getattr(torch, arguments.dtype)
    chosen = {name: getattr(arguments, name) for name in ("backend", "attention") if getattr(arguments, name) != "auto"}
    if chosen and not any(network.has_choices for network in networks):
        asked = " and ".join(f"--{name}" for name in chosen)
        raise ValueError(f"{asked} has no effect on {networks[0].name}; expected a network of saprof with attention")
    subjects = []
    for network in networks:
        torch.manual_seed(0)
        built = network.build(**(chosen if network.has_choices else {}))
        if built.inputs is not None and (side is not None or batch != 1):
            raise ValueError(f"{network.name} has inputs of its own; omit --size and --batch")
        inputs = moved(network.example(built, batch, side), device, dtype)
        module: Any = built.module.to(device, dtype)
        if arguments.compile == "yes":
            module = torch.compile(module)
        subjects.append(Profiled(network.name, module, inputs, arguments.mode))
    return subjects


def _roofs(device: str, arguments: argparse.Namespace) -> Calibration | None:
    if arguments.roofs == "skip":
        return None
    from saprof.measure.calibrate import calibrate

    return calibrate(device, [arguments.dtype], ROOF_SECONDS)


def _reaches(subjects: list[Profiled], depth: int | None) -> bool:
    """Whether a tree of this depth shows the parts of an attention."""
    from saprof.layers import LocalAttention

    levels = [
        path.count(".") + 2
        for subject in subjects
        for path, module in subject.module.named_modules()
        if isinstance(module, LocalAttention)
    ]
    return depth is None or any(level <= depth for level in levels)


def _print(found: list[Profile], arguments: argparse.Namespace, depth: int | None) -> None:
    if arguments.format in ("csv", "json"):
        print(text.records([asdict(row) for one in found for row in one.rows], arguments.format))
        return
    width = shutil.get_terminal_size((80, 24)).columns
    columns = arguments.columns.split(",") if arguments.columns else None
    if columns is None and len(found) > 1:
        columns = common_columns(found, depth, width)
    for number, one in enumerate(found):
        print("\n" * (number > 0) + "\n".join(textwrap.fill(line, width) for line in headline(one)), end="\n\n")
        print(one.table(depth, sort=arguments.sort, columns=columns, form=arguments.format, width=width))
        if notes := footnotes(one, depth):
            print("", *(textwrap.fill(note, width) for note in notes), sep="\n")
    if len(found) == 2:
        print(f"\n{textwrap.fill(versus(*found), width)}")


callable_as(__name__, "profile", "saprof.measure.profiling")

if __name__ == "__main__":
    command.run(main)
