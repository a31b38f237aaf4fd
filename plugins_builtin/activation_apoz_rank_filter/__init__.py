"""Filter pruning by the average percentage of zero activations.

Hu et al. 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
Architectures", arXiv 1607.03250, eq. 1.
"""

from __future__ import annotations

from torch import Tensor

from engine.pruning import ActivationFilterPruner


class ActivationAPoZRankFilterPruner(ActivationFilterPruner):
    """Removes the filters whose activation is zero most often."""

    reads_weights = True

    def activation_statistic(self, activation: Tensor) -> Tensor:
        """Return ``1 - APoZ``: the fraction of samples in which each filter is active."""
        return (activation != 0).float().mean(dim=1)
