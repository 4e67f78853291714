"""Weights on disk: the SAN authors' released checkpoints, and our own, which carry their config.

Loading never executes what is in a file: everything goes through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saprof import atomic
from saprof.models.resnet import ResNet, ResNetConfig
from saprof.models.san import SAN, SANConfig

FORMAT = 1
_ARCHITECTURES = {"SAN": (SAN, SANConfig), "ResNet": (ResNet, ResNetConfig)}

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
"""The names of the released checkpoints, and ours, applied in order."""


def save(model: SAN | ResNet, path: str | Path) -> None:
    """Write the model's config and weights to `path`, whole or not at all."""
    config = {name: _plain(value) for name, value in vars(model.config).items()}
    content = {"saprof": FORMAT, "architecture": type(model).__name__, "config": config, "weights": model.state_dict()}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic.write(path, buffer.getvalue())


def load(path: str | Path) -> nn.Module:
    """Rebuild the model that `save` wrote to `path`, on the CPU. ValueError if the file is anything else."""
    content = _read(path)
    if content.get("saprof") != FORMAT or content.get("architecture") not in _ARCHITECTURES:
        raise ValueError(f"{path} is not a saprof checkpoint of format {FORMAT}; load the authors' with load_official")
    model, config = _ARCHITECTURES[content["architecture"]]
    try:
        with torch.device("meta"):
            built = model(config(**content["config"]))
    except TypeError as error:
        raise ValueError(f"{path}: its config does not fit this version of saprof: {error}") from None
    _check_weights(built, content["weights"], str(path))
    built.load_state_dict(content["weights"], assign=True)
    return built


def load_official(model: SAN, checkpoint: str | Path | Mapping[str, Any]) -> SAN:
    """Load a checkpoint of the SAN authors' released code (hszhao/SAN) into a pairwise or patchwise `model`.

    `checkpoint` is a path, the loaded file, or its state dict. ValueError lists what is missing or misshapen.
    """
    where = "the checkpoint" if isinstance(checkpoint, Mapping) else str(checkpoint)
    content = checkpoint if isinstance(checkpoint, Mapping) else _read(checkpoint)
    weights = content.get("state_dict", content)
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{where} holds no state dict; expected one under 'state_dict', or nothing but tensors")
    renamed = {official_to_ours(key): value for key, value in weights.items()}
    _check_weights(model, renamed, where)
    model.load_state_dict(renamed)
    return model


def official_to_ours(key: str) -> str:
    """The name here of a parameter or buffer of the released code."""
    for pattern, name in _OFFICIAL_KEYS:
        key = re.sub(pattern, name, key)
    return key


def _plain(value: Any) -> Any:
    """Only what weights_only reads back: a footprint goes as text."""
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value if value is None or isinstance(value, int | float | bool) else str(value)


def _read(path: str | Path) -> dict[str, Any]:
    # accuracies of training checkpoints are often numpy scalars: data like any other, under the name of either numpy
    scalar = np.float64(0).__reduce__()[0]
    harmless = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"cannot read checkpoint {path}: it is damaged, or holds more than tensors and plain values ({reason})"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dictionary")
    return content


def _check_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in weights.items()}
    problems = [f"{key} is missing" for key in ours.keys() - theirs.keys()]
    problems += [f"{key} is unexpected" for key in theirs.keys() - ours.keys()]
    problems += [
        f"{key} is {theirs[key]}, expected {ours[key]}"
        for key in ours.keys() & theirs.keys()
        if ours[key] != theirs[key]
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8])
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{where} does not fit this model: {shown}{more}")
