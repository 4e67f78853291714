"""What the networks of all tasks share: they map pixels from 0 to 255, and are made from a config."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

import saprof
from studies.config import Config
from studies.data import Dataset
from studies.training.adapters import adapted, sentence

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FromPixels(nn.Module):
    """A network behind the normalisation of pixels from 0 to 255 and the expansion of gray to three channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, dataset: Dataset) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", dataset.mean), ("std", dataset.std)):
            self.register_buffer(name, 255 * torch.tensor(values, dtype=torch.float64)[:, None, None], persistent=False)

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the network takes, `n 3 h w`, with the dtype of its parameters."""
        dtype = next(self.model.parameters()).dtype
        x = (pixels.to(dtype) - self.mean.to(dtype)) / self.std.to(dtype)
        return x.expand(-1, 3, -1, -1)

    def of_whole(self, pixels: Tensor) -> Any:
        """The outputs for images without padding."""
        return self(pixels)


def made(config: Config, defaults: Mapping[str, Any]) -> nn.Module:
    """The network of a config, with new weights from its seed. `defaults` are options that the config may replace;
    networks of other packages do not get them. Raises ValueError for an unknown model or option."""
    torch.manual_seed(config.seed)
    if ":" in config.model:
        model = adapted(config.model, config.options)
    else:
        try:
            model = saprof.create_model(config.model, **{**defaults, **config.options})
        except TypeError as error:
            raise ValueError(f"{config.model} cannot be made with {config.options}: {sentence(error)}") from None
    model = model.double() if config.precision == "fp64" else model
    if config.norm_momentum is not None:
        _set_norm_momentum(model, config.norm_momentum)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameters to train; expected a network with some")
    return model


def _set_norm_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of all batch norms. Raises ValueError if there are none."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    if not norms:
        name = type(model).__name__
        raise ValueError(f"norm_momentum is {momentum:g}, but {name} has no batch norms; omit norm_momentum")
    for norm in norms:
        norm.momentum = momentum


def autocast(config: Config, device: torch.device) -> Any:
    dtype = AUTOCAST.get(config.precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def full(values: Tensor) -> Tensor:
    """The values in fp32, or in fp64 if they are that already."""
    return values if values.dtype == torch.float64 else values.float()
