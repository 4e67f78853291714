"""The request for a sweep. It is read and checked once, before anything is planned. Nothing here imports torch."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from saprof import command
from saprof.measure.cells import MODES
from saprof.models.named import REGISTERED, NamedNetwork, read_networks
from saprof.operators import BACKENDS, OPERATORS, RELATIONS, Operator
from saprof.operators.attention import CHOICES
from saprof.operators.footprint import BOUNDARIES, Footprint
from saprof.operators.footprint_lists import read_footprints
from saprof.operators.workload import ITEMSIZE, STAGES
from saprof.records.runs import check_folder
from saprof.text import unknown

DEFAULT_OPERATORS = ("pairwise_attention", "patchwise_attention", "aggregation")
DEFAULT_MODELS = ("resnet26", "san10_pairwise", "san10_patchwise")
LARGEST_CONVOLUTION = 49
"""The largest number of taps of a convolution in the paper (SAN Table 7) and in the default sweep."""
FARTHEST_MEASURED = 1 << 16
"""The largest distance of a tap. The reference walks there step by step."""
DEFAULT_STAGE = 2
DEFAULT_FOOTPRINT = "7"
AGAIN = "doubtful"
"""The rows that --again measures again."""
MOST_GROUPS = 20_000
"""The largest number of groups of a request. More of them would take days to measure, and long to plan."""


@dataclass(frozen=True, kw_only=True)
class What:
    """The networks and operators to measure."""

    networks: tuple[tuple[NamedNetwork, Footprint | None], ...]
    """Networks, each with a footprint; None is the network's own footprint."""
    image_sides: tuple[int, ...]
    """0 is the network's own side."""
    operators: tuple[Operator, ...]
    shapes: tuple[tuple[int, int], ...]
    """C and the side of the map of the operators."""
    footprints: tuple[Footprint, ...]
    """The footprints of the operators, with their strides."""
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]

    @property
    def subjects(self) -> int:
        """The number of networks and operators, each at every size, batch and dtype."""
        networks = len(self.networks) * len(self.image_sides)
        operators = len(self.operators) * len(self.shapes) * len(self.footprints)
        return (networks + operators) * len(self.batches) * len(self.dtypes)


@dataclass(frozen=True, kw_only=True)
class How:
    """The ways to measure each of them."""

    backends: tuple[str, ...]
    attentions: tuple[str, ...]
    """For networks: `fused`, `composed` or `auto`."""
    modes: tuple[str, ...]
    compiled: tuple[bool, ...]
    device: str
    threads: int | None
    """The number of torch's threads; None does not change it."""
    seconds: float
    """The longest time per cell, after the first rounds."""
    roofs: bool
    """Whether to calibrate the machine first."""
    time_budget: float | None
    """No cell starts after this many seconds; None is no limit."""
    isolate: bool
    """Whether each group is measured in a process of its own."""
    timeout: float | None
    """The seconds after which an isolated group is stopped; None stands for no limit."""
    every_backend: bool
    """Whether the user requested all backends. An unsupported one is then not a failure."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """The run folder and the format of the printed tables."""

    folder: Path | None
    """None is a new folder, named for the time."""
    resume: bool
    again: bool
    """Whether the doubtful rows of a run that is continued are measured again."""
    form: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """A whole request. Its values are valid, so planning and measuring do not check them again."""

    what: What
    how: How
    output: Output


def read_request(arguments: Namespace) -> Request:
    """Check the arguments of `saprof.sweep`; ValueError says what is wrong with the first bad one."""
    request = Request(what=_what(arguments), how=_how(arguments), output=_output(arguments))
    if request.what.subjects * len(request.how.modes) > MOST_GROUPS:
        raise ValueError(f"the lists multiply to more than {MOST_GROUPS:,} groups of cells; expected shorter lists")
    return request


def _what(arguments: Namespace) -> What:
    chosen = (arguments.operator, arguments.family, arguments.relation, arguments.stage, arguments.channels)
    chooses_operators = any(option is not None for option in chosen)
    strides = command.integers("stride", arguments.stride)
    footprints = _footprints(arguments, len(strides))
    has_networks = arguments.model is not None or not chooses_operators
    has_operators = arguments.model is None or chooses_operators
    if not has_operators:
        _refuse_what_networks_ignore(arguments)
    return What(
        networks=tuple(islice(_networks(arguments, footprints), MOST_GROUPS + 1)) if has_networks else (),
        image_sides=(0,) if arguments.size is None else tuple(command.integers("size", arguments.size)),
        operators=tuple(_operators(arguments)) if has_operators else (),
        shapes=tuple(islice(_shapes(arguments), MOST_GROUPS + 1)),
        footprints=tuple(footprint.with_(stride=stride) for footprint, stride in product(footprints, strides)),
        batches=tuple(command.integers("batch", arguments.batch)),
        dtypes=tuple(command.choices("dtype", arguments.dtype, tuple(ITEMSIZE))),
    )


def _how(arguments: Namespace) -> How:
    threads, budget, timeout = arguments.threads, arguments.time_budget, arguments.timeout
    return How(
        backends=tuple(command.choices("backend", arguments.backend, tuple(BACKENDS), extra=("auto",))),
        attentions=tuple(command.choices("attention", arguments.attention, CHOICES)),
        modes=tuple(command.choices("mode", arguments.mode, MODES)),
        compiled={"no": (False,), "yes": (True,), "both": (False, True)}[arguments.compile],
        device=command.device(arguments.device),
        threads=None if threads is None else command.integer("threads", threads, command.MOST_THREADS),
        seconds=command.seconds("seconds", arguments.seconds),
        roofs=arguments.roofs == "measure",
        time_budget=None if budget is None else command.seconds("time-budget", budget, least=0),
        isolate=arguments.isolate or timeout is not None,
        timeout=None if timeout is None else command.seconds("timeout", timeout),
        every_backend=arguments.backend == "all",
    )


def _output(arguments: Namespace) -> Output:
    if arguments.again not in (None, AGAIN):
        raise ValueError(unknown("again", arguments.again, [AGAIN]))
    if arguments.again is not None and not arguments.resume:
        raise ValueError("--again measures rows of a run again; expected --resume, and its folder as --output")
    if arguments.resume and arguments.output is None:
        raise ValueError("--resume continues a run; expected its folder as --output")
    if arguments.output is not None:
        check_folder(arguments.output, arguments.resume)
    again = arguments.again is not None
    return Output(folder=arguments.output, resume=arguments.resume, again=again, form=arguments.format)


def _networks(arguments: Namespace, footprints: list[Footprint]) -> Iterator[tuple[NamedNetwork, Footprint | None]]:
    """The networks with their footprints. A footprint that a convolution cannot have is left out, unless the user named
    the network."""
    named = arguments.model not in (None, "all")
    names = ",".join(DEFAULT_MODELS) if arguments.model is None else arguments.model
    if others := [name for name in names.split(",") if ":" in name]:
        print(f"importing {', '.join(others)} …", file=sys.stderr)  # torch and the user's modules may take a while
    networks = read_networks(names)
    for network in networks:
        _refuse_what_others_ignore(arguments, network)
    for network, footprint in product(networks, footprints if arguments.footprint is not None else [None]):
        if footprint is None or network.attends:
            yield network, footprint
        elif _is_odd_square(footprint):
            if arguments.model or footprint.taps <= LARGEST_CONVOLUTION:
                yield network, footprint
        elif named:
            raise ValueError(
                f"footprint of {network.name} is {footprint}; expected an odd square, as its convolutions have one"
            )


def _refuse_what_others_ignore(arguments: Namespace, network: NamedNetwork) -> None:
    """ValueError if a network that is not registered is requested with an option that has no effect on it."""
    if network.kind != REGISTERED and arguments.footprint is not None:
        raise ValueError(f"footprint is {arguments.footprint!r}, but {network.name} has its own; omit --footprint")
    if network.sizes is None:
        return
    for name, default in (("size", None), ("batch", "1")):
        if getattr(arguments, name) != default:
            value = getattr(arguments, name)
            raise ValueError(f"{name} is {value!r}, but {network.name} has inputs of its own; omit --{name}")


def _refuse_what_networks_ignore(arguments: Namespace) -> None:
    """ValueError if networks alone are requested, with an option that has no effect on them."""
    own = [] if arguments.footprint is not None else [("boundary", "reflect"), ("dilation", "1")]
    for name, default in [("stride", "1"), *own]:
        if getattr(arguments, name) != default:
            needs = "an operator" if name == "stride" else "--footprint, or an operator"
            raise ValueError(f"{name} is {getattr(arguments, name)!r}, but networks ignore it; expected {needs}")


def _is_odd_square(footprint: Footprint) -> bool:
    """Whether a convolution of a ResNet can have the footprint: an odd square without dilation."""
    return footprint.lattice is not None and footprint.offsets == Footprint.square(footprint.lattice[0][0] | 1).offsets


def _operators(arguments: Namespace) -> list[Operator]:
    if arguments.operator is arguments.family is arguments.relation is None:
        return [OPERATORS[name] for name in DEFAULT_OPERATORS]
    named = command.choices("operator", arguments.operator, tuple(OPERATORS)) if arguments.operator is not None else []
    if arguments.family is not None or arguments.relation is not None:
        families = command.choices("family", _given(arguments.family, "all"), tuple(RELATIONS))
        known = tuple(dict.fromkeys(relation for family in families for relation in RELATIONS[family]))
        relations = command.choices("relation", _given(arguments.relation, "all"), known)
        named += [f"{f}_{r}" for f, r in product(families, relations) if r in RELATIONS[f]]
    return [OPERATORS[name] for name in dict.fromkeys(named)]


def _shapes(arguments: Namespace) -> Iterator[tuple[int, int]]:
    """C and the side of the map: those of the stages of SAN, where the user gives no others."""
    stages = command.integers("stage", _given(arguments.stage, str(DEFAULT_STAGE)))
    if max(stages) > len(STAGES):
        raise ValueError(f"stage is {max(stages)}; expected 1 to {len(STAGES)}")
    for stage in stages:
        channels, side = STAGES[stage - 1]
        widths = command.integers("channels", _given(arguments.channels, str(channels)))
        yield from product(widths, _sides(arguments, side))


def _sides(arguments: Namespace, default: int) -> list[int]:
    return command.integers("size", _given(arguments.size, str(default)))


def _given(option: str | None, default: str) -> str:
    """The text of an option, which may be empty; the default if the option was not given."""
    return default if option is None else option


def _footprints(arguments: Namespace, strides: int) -> list[Footprint]:
    """Every footprint, with every dilation and boundary. Each will be combined with `strides` strides."""
    boundaries = command.choices("boundary", arguments.boundary, BOUNDARIES)
    written = _given(arguments.footprint, DEFAULT_FOOTPRINT)
    found = read_footprints(written, arguments.dilation, len(boundaries) * strides)
    for footprint in found:
        reach = max(max(map(abs, span)) for span in footprint.reach)
        if reach > FARTHEST_MEASURED:
            raise ValueError(
                f"a tap of footprint {footprint} is {reach} rows or columns away; expected at most {FARTHEST_MEASURED}"
            )
    return [footprint.with_(boundary=boundary) for footprint, boundary in product(found, boundaries)]
