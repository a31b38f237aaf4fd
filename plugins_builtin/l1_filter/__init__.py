"""Filter pruning by L1 norm.

Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv 1608.08710, section 3.1.
"""

from __future__ import annotations

from torch import Tensor

from engine import Wrapper
from engine.pruning import Channels, FilterPruner, wide


class L1FilterPruner(FilterPruner):
    """Removes the filters whose weights have the smallest sum of absolute values."""

    reads_weights = True

    def filter_importance(self, wrapper: Wrapper, channels: Channels) -> Tensor:
        """Return ``sum_j |F_ij|`` for each filter i."""
        return wide(channels.rows(wrapper.weight.detach())).abs().sum(dim=1)
