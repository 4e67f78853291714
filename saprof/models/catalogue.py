"""The named models: their architecture, the fields of their config, and the facts that other modules need.

Nothing here imports torch. No code derives a fact from a name: the facts are fields of `NamedModel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from saprof.operators import RELATIONS
from saprof.operators.attention import DEFAULTS
from saprof.text import unknown

SAN_FOOTPRINTS = (3, 7, 7, 7, 7)
"""The sides of the footprints of SAN's stages (SAN Table 1)."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """One model that `create_model` builds by its name."""

    name: str
    architecture: str
    """`SAN`, `ResNet`, `SASA` or `RetinaNet`."""
    fields: Mapping[str, Any]
    """The fields of the config that differ from the architecture's defaults."""
    family: str
    """`convolution`, `pairwise`, `patchwise` or `stand_alone`."""
    relation: str | None = None
    """The relation of a pairwise or patchwise network; None for any other."""
    depth: int | None = None
    """The number in the paper's name of the network: 10 for SAN10; None for a small network."""
    side: int | None = None
    """The side of the model's own square footprint: in all stages of a SAN but the first, in the convolutions of a
    ResNet, in the attention of a stand-alone network. None if the stages differ in another way."""
    base: str
    """The model without its relation and its footprint: `san10_pairwise` for `san10_pairwise_summation`."""

    @property
    def image(self) -> int:
        """The side of the images that the model is for, in pixels."""
        return 32 if self.small else 224

    @property
    def attends(self) -> bool:
        """Whether the model has attention, which one of our backends computes."""
        return self.family != "convolution"

    @property
    def convolution_stem(self) -> bool:
        """Whether a stand-alone network starts with a convolution."""
        return self.attends and self.fields.get("stem") == "convolution"

    @property
    def small(self) -> bool:
        """Whether the model is for images of 8 to 32 pixels."""
        return self.depth is None

    @property
    def footprints(self) -> tuple[int, ...]:
        """The sides of the square footprints of the stages of a SAN."""
        return self.fields.get("footprints", SAN_FOOTPRINTS)


def named_model(name: str) -> NamedModel:
    """The facts about a named model; ValueError for an unknown name."""
    if name not in MODELS:
        raise ValueError(unknown("model", name, list_models(), "saprof.list_models()"))
    return MODELS[name]


def list_models() -> list[str]:
    """The names that `create_model` takes."""
    return list(MODELS)


_BLOCKS = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
_RESNET_BLOCKS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}
_SMALL = {"channels": (32, 64), "blocks": (1, 1), "stem_stride": 1, "num_classes": 10}
# the parts of an attention train faster than the fused operator on maps of 8 to 32 pixels
_SMALL_SAN = _SMALL | {"footprints": (7, 3), "value_reduction": 2, "attention": "composed"}


def _models() -> Iterator[NamedModel]:
    for depth, blocks in _BLOCKS.items():
        for family in RELATIONS:
            yield _san(f"san{depth}_{family}", depth, family, {"family": family, "blocks": blocks})
    for family, relations in RELATIONS.items():
        for relation in relations:
            fields = {"family": family, "relation": relation}
            yield _san(f"san10_{family}_{relation}", 10, family, fields, relation, base=f"san10_{family}")
    yield _san("san10_stand_alone", 10, "stand_alone", {"family": "stand_alone"})
    for depth, blocks in _RESNET_BLOCKS.items():
        yield _resnet(f"resnet{depth}", depth, {"blocks": blocks})
    for side in (5, 7):
        fields = {"blocks": _RESNET_BLOCKS[26], "footprint": side}
        yield _resnet(f"resnet26_{side}x{side}", 26, fields, side, base="resnet26")
    for depth, blocks in _RESNET_BLOCKS.items():
        yield _stand_alone(f"sasa_resnet{depth}", "SASA", depth, {"blocks": blocks})
    for depth, blocks in _RESNET_BLOCKS.items():
        fields = {"blocks": blocks, "stem": "convolution"}
        yield _stand_alone(f"sasa_resnet{depth}_convolution_stem", "SASA", depth, fields)
    name = "retinanet_resnet50"
    fields = {"attention_stages": (), "stem": "convolution", "predictors": "convolution"}
    yield NamedModel(
        name=name, architecture="RetinaNet", fields=fields, family="convolution", depth=50, side=3, base=name
    )
    for stem in ({}, {"stem": "convolution"}):
        for heads in ({}, {"predictors": "convolution"}):
            parts = "_stem" * bool(stem) + "_heads" * bool(heads)
            name = "retinanet_sasa_resnet50" + f"_convolution{parts}" * bool(parts)
            yield _stand_alone(name, "RetinaNet", 50, stem | heads)
    for family in RELATIONS:
        fields = _SMALL_SAN | {"family": family, "relation_reduction": 8, "share": 4}
        yield _san(f"san_mini_{family}", None, family, fields)
    yield _san("san_mini_stand_alone", None, "stand_alone", _SMALL_SAN | {"family": "stand_alone", "heads": 4})
    yield _resnet("resnet_mini", None, _SMALL | {"channels": (16, 32)})
    fields = {"channels": (16, 32), "stem": "convolution", "footprint": 5, "heads": 4, "attention": "composed"}
    yield _stand_alone("sasa_mini", "SASA", None, _SMALL | fields, side=5)


def _san(
    name: str,
    depth: int | None,
    family: str,
    fields: Mapping[str, Any],
    relation: str | None = None,
    base: str | None = None,
) -> NamedModel:
    if relation is None and family in DEFAULTS:
        relation = DEFAULTS[family][0]
    return NamedModel(
        name=name,
        architecture="SAN",
        fields=fields,
        family=family,
        relation=relation,
        depth=depth,
        side=7 if depth else None,
        base=base or name,
    )


def _resnet(
    name: str, depth: int | None, fields: Mapping[str, Any], side: int = 3, base: str | None = None
) -> NamedModel:
    return NamedModel(
        name=name,
        architecture="ResNet",
        fields=fields,
        family="convolution",
        depth=depth,
        side=side,
        base=base or name,
    )


def _stand_alone(
    name: str, architecture: str, depth: int | None, fields: Mapping[str, Any], side: int = 7
) -> NamedModel:
    return NamedModel(
        name=name, architecture=architecture, fields=fields, family="stand_alone", depth=depth, side=side, base=name
    )


MODELS = {model.name: model for model in _models()}
"""The named models, in the order in which they are listed."""
