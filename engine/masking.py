"""Masks as the engine holds them: checked, computed into a weight, equal in all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.blame import name_of, named, origin_of
from engine.errors import PluginError
from engine.wrapper import Wrapper

#: Where a layer keeps the wrapper that masks it, for a quantizer that comes later.
MASKED_BY = "_engine_masked_by"
_PARAMETER_OF = {"weight_mask": "weight", "bias_mask": "bias"}


class MaskedWeight:
    """Computes ``weight * mask`` for one layer; the last stage of a computed weight."""

    def __init__(self, wrapper: Wrapper) -> None:
        self.wrapper = wrapper

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the masked weight."""
        mask = self.wrapper.mask("weight")
        if mask is None:
            return weight
        if self.wrapper.straight_through:
            return weight + (weight * (mask - 1)).detach()
        return weight * mask


def checked_masks(masks: Any, wrapper: Wrapper, plugin: object) -> dict[str, Tensor]:
    """Return ``masks``, which ``plugin`` made, as tensors like their parameters, zeros and ones.

    Raises:
        PluginError: not a dict of masks, an unknown parameter, a wrong shape, other values.
    """

    def fault(message: str) -> PluginError:
        return PluginError(
            f'{named(plugin, ".calc_mask")} for layer "{wrapper.name}" ({wrapper.type}) {message}\n'
            '  it must return {"weight_mask": tensor} and may add "bias_mask", zeros and ones '
            "of the parameter's shape",
            plugin=name_of(plugin),
            distribution=origin_of(plugin),
            hook="calc_mask",
            layer=wrapper.name,
        )

    if isinstance(masks, Tensor):
        masks = {"weight_mask": masks}
    if not isinstance(masks, Mapping):
        raise fault(f"returned a {type(masks).__name__}")
    result = {}
    for name, mask in masks.items():
        if mask is None:
            continue
        parameter = wrapper.module._parameters.get(_PARAMETER_OF.get(name, ""))
        if parameter is None:
            raise fault(f"returned {name!r}, which the layer has no parameter for")
        if not isinstance(mask, Tensor):
            raise fault(f"returned {name!r} as a {type(mask).__name__}")
        try:
            whole = mask.detach().to(parameter.device).expand(parameter.shape)
        except RuntimeError:
            raise fault(
                f"returned {name!r} of shape {tuple(mask.shape)} for a parameter of shape "
                f"{tuple(parameter.shape)}"
            ) from None
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            raise fault(f"returned {name!r} with values that are neither 0 nor 1")
        result[name] = torch.empty_like(parameter).copy_(whole)
    return result


def agree_between_processes(fresh: Sequence[tuple[Wrapper, float, dict[str, Tensor]]]) -> None:
    """Give all processes of a distributed run the masks of the first.

    Scores made from activations or gradients differ between processes that see different data.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for _, _, masks in fresh:
        for name in sorted(masks):
            distributed.broadcast(masks[name], src=0)
