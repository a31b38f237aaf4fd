"""Filter pruning by L2 norm, the variant that Li et al. 2017 (arXiv 1608.08710) compare with L1."""

from __future__ import annotations

from torch import Tensor

from engine import Wrapper
from engine.pruning import Channels, FilterPruner, wide


class L2FilterPruner(FilterPruner):
    """Removes the filters whose weights have the smallest Euclidean norm."""

    reads_weights = True

    def filter_importance(self, wrapper: Wrapper, channels: Channels) -> Tensor:
        """Return ``(sum_j F_ij^2)^(1/2)`` for each filter i."""
        return wide(channels.rows(wrapper.weight.detach())).square().sum(dim=1).sqrt()
