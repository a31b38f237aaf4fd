"""Masks at a layer: who masks it, its masked weight, the same masks in all processes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.attach.computed import Stage, compute_weight, is_computed, plain_weight
from engine.attach.parametrized import is_parametrized
from engine.attach.wrapper import Wrapper
from engine.errors import PluginError

#: Where a layer keeps the wrapper that masks it, for a quantizer that comes later.
MASKED_BY = "_engine_masked_by"
#: Wrappers in use by a pruner; the wrapper that a copied or unpickled layer brings along is not.
_in_use: weakref.WeakSet[Wrapper] = weakref.WeakSet()


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


def hold(wrappers: Sequence[Wrapper], plugin: str, *, straight_through: bool) -> None:
    """Let these layers be masked by ``plugin``, with masks of ones until there are others.

    Args:
        wrappers: one for each layer.
        plugin: the pruner's name, for the message.
        straight_through: compute masked weights in the forward pass, with dense ones beneath.

    Raises:
        PluginError: another pruner masks one of them; nothing was changed.
    """
    for wrapper in wrappers:
        if wrapper.module.__dict__.get(MASKED_BY) in _in_use:
            raise PluginError(
                f'layer "{wrapper.name}" is already masked by another pruner; unwrap() that '
                "one first, or compose the two as a stack",
                plugin=plugin,
                layer=wrapper.name,
            )
    for wrapper in wrappers:
        if MASKED_BY in wrapper.module.__dict__:
            plain_weight(wrapper.module, Stage.MASK)
        wrapper.module.__dict__[MASKED_BY] = wrapper
        _in_use.add(wrapper)
        if wrapper.weight_mask is None:
            wrapper.register_buffer("weight_mask", torch.ones_like(wrapper.weight.detach()))
        wrapper.__dict__["straight_through"] = straight_through
        computed = is_computed(wrapper.module, Stage.QUANTIZE) or is_parametrized(wrapper.module)
        if straight_through or computed:
            compute_weight(wrapper.module, Stage.MASK, MaskedWeight(wrapper))


def let_go(wrappers: Sequence[Wrapper]) -> None:
    """Undo :func:`hold`; layers that another pruner masks by now are left alone."""
    for wrapper in wrappers:
        _in_use.discard(wrapper)
        if wrapper.module.__dict__.get(MASKED_BY) is wrapper:
            del wrapper.module.__dict__[MASKED_BY]
            plain_weight(wrapper.module, Stage.MASK)


def agree_between_processes(masks: Sequence[dict[str, Tensor]]) -> None:
    """Give all processes of a distributed run the masks of the first, in place.

    Each of ``masks`` holds those of one layer, all processes having the same layers.

    Scores made from activations or gradients differ between processes that see different data.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for layer in masks:
        for name in sorted(layer):
            distributed.broadcast(layer[name], src=0)
