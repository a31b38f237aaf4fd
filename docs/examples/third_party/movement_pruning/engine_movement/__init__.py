"""Movement pruning: weights go that training moves towards zero, however large they are.

Sanh, Wolf, Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv 2005.07683,
section 4 (hard masks, top-v of each layer).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine import Pruner, Wrapper
from engine.pruning import prune_count, smallest_removed


class MovementPruner(Pruner):
    """Learns a score for each weight and keeps those with the largest.

    Weights beneath the mask keep their values, and their scores go on: they can come back. A
    schedule around it (``agp``) raises the sparsity the way that the paper does.
    """

    straight_through = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for wrapper in self.wrappers:
            wrapper.learn("scores", torch.zeros_like(wrapper.weight, dtype=torch.float32))
            wrapper.set_attribute("scored", False)

    def before_step(self) -> None:
        """Give S the gradient dL/dM, straight through top-v, and W the gradient ``dL/dW' M``."""
        for wrapper in self.wrappers:
            gradient, mask = self.mask_gradient(wrapper), wrapper.mask("weight")
            if gradient is not None:
                wrapper.scores.grad = gradient.float()
                wrapper.scored = True
                wrapper.weight.grad *= mask

    def calc_mask(self, wrapper: Wrapper, sparsity: float) -> dict[str, Tensor] | None:
        """Return the mask that keeps the top-v scores; None before there is a gradient."""
        if not wrapper.scored:
            return None
        count = prune_count(wrapper.scores.numel(), sparsity)
        return {"weight_mask": smallest_removed(wrapper.scores, count)}
