"""One round of masks: asked of an algorithm for all layers before any layer gets a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.attach.wrapper import Wrapper
from engine.pruning.masking.asked import in_config
from engine.pruning.masking.checked import checked_masks

#: A layer's place among the wrappers, its wrapper, and the fraction asked of it.
Asked = tuple[int, Wrapper, float]


class NewMasks(NamedTuple):
    """The masks of one layer, checked, and the fraction that they were asked for."""

    wrapper: Wrapper
    sparsity: float
    masks: dict[str, Tensor]


def calculated(
    calculate: Callable[..., Any] | None, provider: object, asked: Sequence[Asked]
) -> tuple[list[NewMasks], bool]:
    """Return the masks that ``calculate`` makes; and whether it needs to be asked once more.

    Args:
        calculate: the stack's ``calc_mask``; None from it means that it cannot tell yet. A stack
            without one leaves layers as they are, or dense at a sparsity of 0.
        provider: the algorithm, for messages.
        asked: what is asked of which layer.

    Raises:
        PluginError: the algorithm failed or returned something that is no mask.
    """
    fresh = []
    waiting = False
    with in_config(asked):
        for index, wrapper, target in asked:
            if calculate is not None:
                masks = calculate(wrapper, target, index)
                waiting = waiting or masks is None
            elif target == 0:
                masks = {"weight_mask": torch.ones_like(wrapper.weight)}
            else:
                continue
            if masks is not None:
                fresh.append(NewMasks(wrapper, target, checked_masks(masks, wrapper, provider)))
    return fresh, waiting


def put_in_place(
    fresh: Sequence[NewMasks], wrappers: Sequence[Wrapper], tied: Mapping[int, Wrapper]
) -> None:
    """Give each layer its new masks, and each tied layer those of the weight's owner."""
    for wrapper, sparsity, masks in fresh:
        wrapper.sparsity = sparsity
        for name, mask in masks.items():
            wrapper.register_buffer(name, mask)
    for wrapper in wrappers:
        owner = tied.get(id(wrapper))
        if owner is not None:
            wrapper.sparsity = owner.sparsity
            wrapper.register_buffer("weight_mask", owner.weight_mask)
