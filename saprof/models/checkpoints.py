"""Weights on disk: the SAN authors' released checkpoints, and our own, which contain their config.

Loading never executes code from a file: all files are read with `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saprof import atomic
from saprof.models.build import ARCHITECTURES, EXPECTED, Model, blueprint
from saprof.models.differences import differences, listed
from saprof.models.folded import FoldedSAN
from saprof.models.san import SAN
from saprof.operators.attention import DEFAULTS
from saprof.operators.footprint import Footprint

FORMAT = 1

_OFFICIAL_KEYS = [
    (r"^module\.", ""),
    (r"^conv_in\.", "stem.0."),
    (r"^bn_in\.", "stem.1."),
    (r"^conv(\d)\.", r"stages.\1.transition.linear."),
    (r"^bn(\d)\.", r"stages.\1.norm."),
    (r"^layer(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"(blocks\.\d+)\.bn1\.", r"\1.norm_in."),
    (r"(blocks\.\d+)\.bn2\.", r"\1.norm_out."),
    (r"(blocks\.\d+)\.conv\.", r"\1.expand."),
    (r"\.sam\.conv1\.", ".attention.phi."),
    (r"\.sam\.conv2\.", ".attention.psi."),
    (r"\.sam\.conv3\.", ".attention.beta."),
    (r"\.sam\.conv_w\.", ".attention.gamma."),
    (r"\.sam\.conv_p\.", ".attention.position."),
    (r"^fc\.", "head."),
]
"""Patterns of the names in the released checkpoints and their replacements here, applied in order."""

_EARLIER_KEYS = {
    "RetinaNet": [
        (r"^backbone\.(?!network\.)", "backbone.network."),
        (r"^(lateral|smooth|coarser)\.", r"pyramid.\1."),
        (r"^(classes|boxes)\.", r"heads.\1."),
    ]
}
"""The same for the names in checkpoints of earlier versions, by architecture."""


def save(model: Model, path: str | Path) -> None:
    """Write the model's config and weights to `path`. If writing fails, `path` does not change.

    The content is first loaded again, and ValueError raised if that gives another network. `load` builds the network of
    the config, so it cannot restore layers, settings, hooks or parametrizations that were changed later. The mode
    (training or evaluation) and `requires_grad` are not saved. ValueError also if the model is not one of saprof's, or
    has no weights; OSError if the file cannot be written.
    """
    if isinstance(model, FoldedSAN):
        raise ValueError("cannot save this copy, which is for inference only; expected the network that was copied")
    architecture = type(model).__name__
    if ARCHITECTURES.get(architecture, (None, None))[1] is not type(model):
        raise ValueError(f"cannot save a {architecture}; expected a {EXPECTED}, not wrapped in anything")
    if not isinstance(model.__dict__.get("config"), ARCHITECTURES[architecture][0]):
        raise ValueError(f"cannot save a {architecture} without its config")
    weights = model.state_dict()
    if others := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"cannot save a {architecture} whose state has {others[0]}; expected tensors alone")
    if any(value.is_meta for value in weights.values()):
        raise ValueError(f"cannot save a {architecture} on the meta device; expected one with weights")
    config = {name: _plain(value) for name, value in vars(model.config).items()}
    buffer = io.BytesIO()
    torch.save({"saprof": FORMAT, "architecture": architecture, "config": config, "weights": weights}, buffer)
    buffer.seek(0)
    try:
        reasons = differences(model, _load(buffer, "what it has"))
    except ValueError as error:
        raise ValueError(f"cannot save this {architecture}, since load would refuse it: {error}") from None
    if reasons:
        raise ValueError(f"cannot save this {architecture}, since load would give another: {listed(reasons)}")
    atomic.write(path, buffer.getvalue())


def load(path: str | Path) -> Model:
    """Rebuild the model that `save` wrote to `path`, on the CPU. Raises ValueError for any other file."""
    return _load(path, str(path))


def _load(file: str | Path | io.BytesIO, where: str) -> Model:
    match _read(file, where):
        case {
            "saprof": int(version),
            "architecture": str(architecture),
            "config": dict(config),
            "weights": weights,
        } if version == FORMAT and architecture in ARCHITECTURES:
            return _rebuild(architecture, config, _state_dict(weights, where), where)
        case _:
            raise ValueError(
                f"{where} is not a saprof checkpoint of format {FORMAT}; load the authors' with load_official"
            )


def load_official(model: SAN, checkpoint: str | Path | Mapping[str, Any]) -> SAN:
    """Load a checkpoint of the SAN authors' released code (hszhao/SAN) into a pairwise or patchwise `model`.

    `checkpoint` is a path, the loaded file, or its state dict. It does not tell the sizes of pairwise footprints, nor
    the stride of the stem: these must be those of the released network. ValueError lists the missing weights and those
    of a wrong shape; the model is then unchanged.
    """
    where = "the checkpoint" if isinstance(checkpoint, Mapping) else str(checkpoint)
    content = checkpoint if isinstance(checkpoint, Mapping) else _read(checkpoint, where)
    weights = _state_dict(content.get("state_dict", content), where)
    _check_released(model, where)
    renamed = {official_to_ours(key): value for key, value in weights.items()}
    if len(renamed) < len(weights):
        raise ValueError(f"{where} has some weights twice, with and without the prefix 'module.'")
    _check_weights(model, renamed, where)
    model.load_state_dict(renamed)
    return model


def _check_released(model: SAN, where: str) -> None:
    """ValueError if the model computes something else than the released code with the same weights."""
    if type(model) is not SAN:
        return  # the names of its weights do not fit, which is reported later
    relation, position, _ = DEFAULTS.get(model.config.family, (None, None, None))
    for name, released in (("relation", relation), ("position", position)):
        if released is not None and getattr(model.config, name) != released:
            got = getattr(model.config, name)
            raise ValueError(f"{name} is {got!r}; expected {released!r}, as in the network of {where}")
    for footprint in model.config.stage_footprints:
        size = footprint.lattice[0][0] if footprint.lattice else 1
        if footprint != Footprint.square(size):
            raise ValueError(f"footprint is {footprint}; expected a square that reflects, as in the network of {where}")
    if reasons := differences(model, blueprint("SAN", vars(model.config)), values=False):
        raise ValueError(f"{where} is for the network of the config, but {listed(reasons)}")


def official_to_ours(key: str) -> str:
    """Our name of a parameter or buffer of the released code."""
    for pattern, name in _OFFICIAL_KEYS:
        key = re.sub(pattern, name, key)
    return key


def _plain(value: Any) -> Any:
    """The value in types that `torch.load(weights_only=True)` reads; a footprint becomes text."""
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, int | float | bool) else str(value)


def _read(file: str | Path | io.BytesIO, where: str) -> dict[str, Any]:
    # checkpoints often hold accuracies as numpy scalars; numpy 1 and numpy 2 name the module of scalars differently
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    harmless = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read checkpoint {where}: {error.strerror or error}") from None
    except Exception as error:  # reading a damaged pickle can raise any exception, as its documentation states
        raise ValueError(f"cannot read checkpoint {where}: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds a {type(content).__name__}; expected a dictionary")
    return content


def _reason(error: Exception) -> str:
    """The error of torch.load, shortened from several paragraphs to one clause."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2]
    if refused := re.search(r"GLOBAL (\S+)", text):
        return f"it holds {refused[1]}, and nothing but tensors and plain values is loaded"
    clause = re.split(r"[.\n]", text)[0] or type(error).__name__
    return f"it is damaged, or no checkpoint at all ({clause})"


def _rebuild(architecture: str, config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> Model:
    try:
        model = blueprint(architecture, config)  # all weights come from the file
    except ValueError as error:
        raise ValueError(f"{where} has a config that does not fit this version of saprof: {error}") from None
    weights = {_current_key(architecture, key): value for key, value in weights.items()}
    _check_weights(model, weights, where)
    model.load_state_dict(weights, assign=True)
    return model


def _current_key(architecture: str, key: str) -> str:
    """The name of a parameter or buffer in this version, from that in a checkpoint of this or an earlier version."""
    for pattern, name in _EARLIER_KEYS.get(architecture, ()):
        key = re.sub(pattern, name, key)
    return key


def _state_dict(weights: object, where: str) -> dict[str, Tensor]:
    if isinstance(weights, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        return dict(weights)
    raise ValueError(f"{where} holds no state dict; expected names and tensors, and nothing else")


def _check_weights(model: nn.Module, theirs: Mapping[str, Tensor], where: str) -> None:
    ours = model.state_dict()
    problems = [f"{key} is missing" for key in ours.keys() - theirs.keys()]
    problems += [f"{key} is unexpected" for key in theirs.keys() - ours.keys()]
    misfits = {key: _misfit(ours[key], theirs[key]) for key in ours.keys() & theirs.keys()}
    problems += [f"{key} {misfit}" for key, misfit in misfits.items() if misfit]
    if problems:
        raise ValueError(f"{where} does not fit this model: {listed(sorted(problems))}")


def _misfit(ours: Tensor, theirs: Tensor) -> str | None:
    if theirs.shape != ours.shape:
        return f"is {tuple(theirs.shape)}, expected {tuple(ours.shape)}"
    if theirs.is_floating_point() != ours.is_floating_point():
        return f"is {theirs.dtype}, expected {ours.dtype}"
    return "has no data" if theirs.is_meta else None
