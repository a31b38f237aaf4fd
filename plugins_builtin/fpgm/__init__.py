"""Filter pruning via geometric median.

He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
Acceleration", arXiv 1811.00250, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine import Wrapper
from engine.pruning import Channels, FilterPruner, wide


class FPGMPruner(FilterPruner):
    """Removes the filters nearest the geometric median: the others can stand in for them."""

    reads_weights = True

    def filter_importance(self, wrapper: Wrapper, channels: Channels) -> Tensor:
        """Return ``sum_j ||F_i - F_j||_2`` over the filters j that are not removed yet (eq. 7)."""
        filters = wide(channels.rows(wrapper.weight.detach())).contiguous()
        # Distances stay the same and lose fewer digits: cdist computes |a|^2 + |b|^2 - 2ab.
        filters = filters - filters[0]
        mask = wrapper.mask("weight")
        kept = filters if mask is None else filters[channels.left(mask)]
        return torch.cdist(filters, kept).sum(dim=1)
