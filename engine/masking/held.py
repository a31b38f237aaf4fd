"""Masks at a layer: who masks it, its masked weight, the same masks in all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.wrapper import Wrapper

#: Where a layer keeps the wrapper that masks it, for a quantizer that comes later.
MASKED_BY = "_engine_masked_by"


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
