"""Level pruning: the weights of smallest magnitude go, each by itself.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks",
arXiv 1506.02626, section 3.
"""

from __future__ import annotations

from torch import Tensor

from engine import Pruner, Wrapper
from engine.pruning import prune_count, smallest_removed


class LevelPruner(Pruner):
    """Removes the ``int(n * sparsity)`` smallest of each layer's n weights, removed ones first."""

    reads_weights = True

    one_shot = True

    def calc_mask(self, wrapper: Wrapper, sparsity: float) -> dict[str, Tensor]:
        """Return the mask that is zero at the weights of smallest absolute value."""
        magnitude = wrapper.weight.detach().abs()
        mask = wrapper.mask("weight")
        if mask is not None:
            magnitude.masked_fill_(mask == 0, -1)
        count = prune_count(magnitude.numel(), sparsity)
        return {"weight_mask": smallest_removed(magnitude, count)}
