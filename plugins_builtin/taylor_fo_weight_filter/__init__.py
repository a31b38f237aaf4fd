"""First-order Taylor pruning of filters.

Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv 1906.10771,
eq. 8, summed over the weights of a filter.
"""

from __future__ import annotations

import torch

from engine.pruning import Channels, StatisticsFilterPruner, wide


class TaylorFOWeightFilterPruner(StatisticsFilterPruner):
    """Removes the filters whose removal changes the loss least, to first order."""

    seen = "gradient"
    unseen = "its weight is frozen or takes no part in the loss"

    @torch.no_grad()
    def before_step(self) -> None:
        """Record ``sum_j (g_ij w_ij)^2`` for each filter i, weight and gradient of one step."""
        for wrapper in self.wrappers:
            gradient = wrapper.weight.grad
            if gradient is not None and self.wants(wrapper):
                change = Channels(wrapper.module).rows(wrapper.weight * gradient)
                self.record(wrapper, wide(change).square().sum(dim=1))
