"""What the attention modules of one network have in common."""

from __future__ import annotations

from dataclasses import dataclass, fields

from saprof.backends import BACKENDS
from saprof.layers.parts import expect
from saprof.operators import FAMILIES, RELATIONS
from saprof.operators.attention import CHOICES, DEFAULTS, MAPPINGS, POSITIONS
from saprof.operators.footprint import set_positive
from saprof.operators.stand_alone import HEADS, LOGITS
from saprof.operators.workload import REDUCTIONS

TRANSFORMATIONS = ("distinct", "shared_phi_psi", "shared")

_OF_HEADS = ("heads", "logits", "scaled", "projection_groups", "bias")
_UNUSED = {
    "pairwise": _OF_HEADS,
    "patchwise": _OF_HEADS,
    "stand_alone": ("relation", "mapping", "transformations", "relation_reduction", "share"),
}
"""The fields that do not apply to the family. They keep their defaults."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """What the attention modules of one network have in common. None stands for the paper's choice for the family."""

    family: str = "pairwise"
    relation: str | None = None
    mapping: str = "lrl"
    """One of MAPPINGS."""
    transformations: str = "distinct"
    """`shared_phi_psi` is φ = ψ ≠ β, `shared` is φ = ψ = β (SAN Table 6)."""
    position: str | None = None
    relation_reduction: int | None = None
    """r₁: φ and ψ have C / r₁ channels."""
    value_reduction: int = REDUCTIONS["v"]
    """r₂: β has C / r₂ channels."""
    share: int = REDUCTIONS["g"] // REDUCTIONS["v"]
    """Channels of β that share one attention weight."""
    heads: int = HEADS
    """The number of heads of stand-alone attention."""
    logits: str | None = None
    """The terms of the logits in stand-alone attention: one of LOGITS. None stands for `both` with relative positions,
    else for `content`."""
    scaled: bool = False
    """Whether the logits are divided by the square root of the channels of a head."""
    projection_groups: int = 1
    """The groups of the projections to queries, keys and values in stand-alone attention. 1 gives whole matrices, as
    SASA's parameter counts demand. As many groups as heads give one matrix per head, as in SASA's text."""
    bias: bool = True
    """Whether these projections have a bias."""
    backend: str = "auto"
    attention: str = "auto"
    """`fused` runs one operator without footprint-sized tensors. `composed` runs relation, γ, softmax and aggregation
    one by one. `auto` is `fused` where a backend has compiled kernels for it, and `composed` elsewhere and for small
    attentions on a CPU (`saprof.layers.choice`). Weights are the same, and results agree up to rounding."""

    def __post_init__(self) -> None:
        expect("family", self.family, FAMILIES)
        expect("backend", self.backend, (*BACKENDS, "auto"))
        expect("attention", self.attention, CHOICES)
        for field in fields(self):
            if field.name in _UNUSED[self.family] and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)!r}; expected {field.default!r}, "
                    f"since {self.family} attention does not read it"
                )
        set_positive(self, "value_reduction", "share", "heads", "projection_groups")
        if self.family == "stand_alone":
            self._complete_heads()
        else:
            self._complete()

    def _complete_heads(self) -> None:
        """Fill the fields of stand-alone attention that are None, and check the others."""
        self._default("position", "none" if self.logits == "content" else "relative")
        expect("position", self.position, POSITIONS)
        self._default("logits", "both" if self.position == "relative" else "content")
        expect("logits", self.logits, LOGITS)
        if (self.logits == "content") == (self.position == "relative"):
            valid = "'both' or 'position'" if self.position == "relative" else "'content'"
            raise ValueError(f"logits is {self.logits!r}; expected {valid}, since position is {self.position!r}")

    def _complete(self) -> None:
        """Fill the fields that are None with the paper's choice for the family, and check the others."""
        expect("mapping", self.mapping, MAPPINGS)
        expect("transformations", self.transformations, TRANSFORMATIONS)
        relation, position, _ = DEFAULTS[self.family]
        self._default("relation", relation)
        self._default("position", position)
        one_layer = self.transformations == "shared"
        self._default("relation_reduction", self.value_reduction if one_layer else REDUCTIONS["r"])
        expect(f"{self.family} relation", self.relation, RELATIONS[self.family])
        expect(f"{self.family} position", self.position, POSITIONS if self.family == "pairwise" else POSITIONS[:1])
        set_positive(self, "relation_reduction")
        if one_layer and self.relation_reduction != self.value_reduction:
            raise ValueError(
                f"relation_reduction is {self.relation_reduction}; expected value_reduction = {self.value_reduction}, "
                "since φ = ψ = β is one layer"
            )

    def _default(self, name: str, value: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)


def check_config(config: object, family: str | None) -> None:
    """ValueError unless `config` is an AttentionConfig of this family; None stands for any family."""
    if not isinstance(config, AttentionConfig):
        raise ValueError(f"config is {config!r}; expected an AttentionConfig")
    if family not in (None, config.family):
        raise ValueError(f"family of the config is {config.family!r}; expected {family!r}")
