"""Masks that an algorithm returned: what it promised, or an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.attach.wrapper import Wrapper
from engine.errors import PluginError
from engine.plugins.blame import at_fault

_PARAMETER_OF = {"weight_mask": "weight", "bias_mask": "bias"}


def checked_masks(masks: Any, wrapper: Wrapper, plugin: object) -> dict[str, Tensor]:
    """Return ``masks``, which ``plugin`` made, as tensors like their parameters, zeros and ones.

    Raises:
        PluginError: not a dict of masks, an unknown parameter, a wrong shape, other values.
    """
    return {
        name: torch.empty_like(wrapper.own(_PARAMETER_OF[name])).copy_(mask)  # type: ignore[arg-type]
        for name, mask in expanded_masks(masks, wrapper, plugin).items()
    }


def expanded_masks(masks: Any, wrapper: Wrapper, plugin: object) -> dict[str, Tensor]:
    """Return ``masks``, which ``plugin`` made, in their parameters' shapes and places.

    Raises:
        PluginError: see :func:`checked_masks`.
    """

    def fault(message: str) -> PluginError:
        return at_fault(
            plugin,
            f'for layer "{wrapper.name}" ({wrapper.type}) {message}\n'
            '  it must return {"weight_mask": tensor} and may add "bias_mask", zeros and ones '
            "of the parameter's shape",
            more=".calc_mask",
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
        parameter = wrapper.own(_PARAMETER_OF.get(name, ""))
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
        result[name] = whole
    return result
