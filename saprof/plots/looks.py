"""Colours, markers and dashes: of operators and networks, of families, and of what computed a row."""

# matplotlib's annotations know only tuples of a fixed length as colours:
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_hex, to_rgb

from saprof.models.catalogue import MODELS, NamedModel
from saprof.operators.attention import DEFAULTS

LOOKS = {
    "pairwise_attention": ("#332288", "p"),
    "pairwise_summation": ("#56b4e9", "v"),
    "pairwise_subtraction": ("#0072b2", "o"),
    "pairwise_hadamard_product": ("#44aa99", "P"),
    "pairwise_concatenation": ("#117733", "X"),
    "pairwise_dot_product": ("#999933", "<"),
    "patchwise_attention": ("#882255", "H"),
    "patchwise_star_product": ("#e69f00", "*"),
    "patchwise_clique_product": ("#cc79a7", "h"),
    "patchwise_concatenation": ("#d55e00", "s"),
    "aggregation": ("#222222", "^"),
    "stand_alone_attention": ("#aa4499", ">"),
    "convolution_stem": ("#cc6677", "d"),
    "convolution": ("#666666", "D"),
}
"""Colour and marker of operators, and of the networks made of them. The colours are from the palettes of Okabe and Ito
and of Tol, which readers with any colour vision can distinguish. Pairwise colours are cool, patchwise ones warm."""

OTHERS = ("#7f9fbf", "#b08d57", "#5fae57", "#9a7fd1", "#c9728b")
"""Colours of names that are not in LOOKS, such as your own networks."""

FAMILIES = {"convolution": "convolution", "stand_alone": "stand_alone_attention"}
FAMILIES |= {family: f"{family}_{relation}" for family, (relation, *_) in DEFAULTS.items()}
"""The entry of LOOKS that the usual network of a family has."""

FAMILY_LOOKS = {
    "convolution": ("#2c4a3a", "D"),
    "pairwise": ("#008a92", "o"),
    "patchwise": ("#a8400a", "s"),
    "stand_alone": ("#e858e0", ">"),
}
"""Colour and marker of families of networks. Their greys differ."""

SHADE = {15: 0.7, 38: 0.7, 19: 0.45, 50: 0.45}
"""By depth: the share of the light that the colour of a deeper network keeps."""

BACKENDS = {"numba": "#2418c8", "unfold": "#f0103c", "cuda": "#a673ff", "torch": "#4d2a12"}
"""Colours in panels of one operator or network. Neither LOOKS nor FAMILY_LOOKS has one of them: on a page, a colour has
one meaning."""

MARKERS = {"numba": "opd8", "unfold": "shPX", "cuda": "^v<>", "torch": "DDHH"}
"""Markers in these panels: of a backend as it is, fused, compiled, and both. Plain torch fuses nothing."""

DASHES = {"numba": (), "unfold": (4, 2), "cuda": (6, 2, 1.5, 2), "torch": (1.5, 1.2)}
"""Dashes and gaps of the line of a backend, in line widths."""


@dataclass(frozen=True)
class Look:
    """Colour and marker of one name, family or backend."""

    colour: str
    marker: str


def look(name: str) -> Look:
    """The colour and marker of an operator or a network in every figure. A network looks like its relation, and a
    deeper one is darker."""
    model = MODELS.get(name)
    kind = name if model is None else _kind_of_look(model)
    colour, marker = LOOKS.get(kind) or _look_of_other(name)
    light = SHADE.get(model.depth, 1) if model else 1
    return Look(to_hex(tuple(light * channel for channel in to_rgb(colour))), marker)


def _look_of_other(name: str) -> tuple[str, str]:
    number, markers = zlib.crc32(name.encode()), [marker for _, marker in LOOKS.values()]
    return OTHERS[number % len(OTHERS)], markers[number // len(OTHERS) % len(markers)]


def _kind_of_look(model: NamedModel) -> str:
    if model.convolution_stem:
        return "convolution_stem"
    return f"{model.family}_{model.relation}" if model.relation else FAMILIES[model.family]


def look_of_family(family: str) -> Look:
    """The colour and marker of a family of networks."""
    return Look(*FAMILY_LOOKS[family]) if family in FAMILY_LOOKS else look(family)


def line_of(ran: str) -> dict[str, Any]:
    """The line style by what computed a row, such as `numba fused`; all of them can be distinguished in grey."""
    backend, fused, compiled = _parts(ran)
    dashes = DASHES.get(backend, DASHES["torch"])
    if fused:
        dashes = tuple(2.5 * part for part in dashes) or (10, 2)
    if compiled:
        dashes = (*(dashes or (7, 1.5)), 1, 1.5, 1, 1.5)
    return {"linestyle": (0, dashes) if dashes else "-"}


def look_of(ran: str) -> dict[str, Any]:
    """The same with a colour and a marker, for panels of one operator or network."""
    backend, _, _ = _parts(ran)
    return line_of(ran) | {"color": BACKENDS.get(backend, BACKENDS["torch"]), "marker": marker_of(ran)}


def marker_of(ran: str) -> str:
    """The marker of what computed a row."""
    backend, fused, compiled = _parts(ran)
    return MARKERS.get(backend, MARKERS["torch"])[fused + 2 * compiled]


def _parts(ran: str) -> tuple[str, bool, bool]:
    """The backend, whether it ran fused, and whether it was compiled."""
    plain = ran.removesuffix("+compile")
    return plain.split()[0], " " in plain, plain != ran
