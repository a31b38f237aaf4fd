"""Gradients of removed weights are zero as soon as backward has made them.

What looks at gradients before the optimizer does, as ``clip_grad_norm_``, then sees those of what
is left, as if the mask were multiplied into the weight in the forward pass. It is done by one hook
on each masked parameter, which PyTorch calls when a gradient has been added to ``.grad``: before
``DistributedDataParallel`` sends it, and whoever calls backward, how often, scaled or not. A single
callback at the end of backward would come too late for the first and is not cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class MaskedGradients:
    """The hooks of one pruner, on the parameters that it masks in place."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def follow(self, parameters: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """Mask the gradients of these parameters from now on, and of no others."""
        self.remove()
        self._handles = [_masked(p, m) for p, m in zip(parameters, masks, strict=True)]

    def remove(self) -> None:
        """Leave all gradients as they come."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _masked(parameter: Tensor, mask: Tensor) -> Any:
    """Let ``mask`` be multiplied into each gradient of ``parameter``; return the hook's handle."""

    def multiply(parameter: Tensor) -> None:
        nonlocal mask
        gradient = parameter.grad
        if gradient is None:
            return
        if gradient.requires_grad:  # create_graph: its graph may need the values as they are
            parameter.grad = gradient * mask.to(gradient.device)
        elif gradient.is_sparse:  # of an embedding: some rows, at their indices
            rows = gradient._indices().to(mask.device).unbind()
            gradient._values().mul_(mask[rows].to(gradient.device))
        else:
            try:
                gradient.mul_(mask)
            except RuntimeError:  # the model has moved to another device since the last step
                if mask.device == gradient.device:
                    raise
                mask = mask.to(gradient.device)
                gradient.mul_(mask)

    trained = parameter.requires_grad
    parameter.requires_grad_(True)  # PyTorch wants it of a parameter that is frozen for now, too
    handle = parameter.register_post_accumulate_grad_hook(multiply)
    parameter.requires_grad_(trained)
    return handle
