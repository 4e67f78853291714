"""The attention weights of a network: how much each centre reads of each tap."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers import LocalAttention


@torch.no_grad()
def attention_weights(model: nn.Module, images: Float[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n g k p"]]:
    """α of every attention module, by the module's path, in the order of their execution; g are weight groups or heads.

    The weights are computed step by step, even if the network runs its attention as one fused operator. ValueError for
    a network without attention, or in training mode, where a forward would change the running statistics.
    """
    if model.training:
        raise ValueError("the network is in training mode; expected model.eval()")
    found: dict[str, Tensor] = {}

    def keep(name: str, module: Any, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        found[name] = module.weights(*inputs, **named)

    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, LocalAttention)]
    if not modules:
        raise ValueError(f"{type(model).__name__} has no attention; expected a SAN or SASA")
    hooks = [module.register_forward_pre_hook(partial(keep, name), with_kwargs=True) for name, module in modules]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code would not call the hooks
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
