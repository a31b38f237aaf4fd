"""Filter pruning by mean activation.

Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference",
arXiv 1611.06440, section 2.2 (the "mean activation" criterion).
"""

from __future__ import annotations

from torch import Tensor

from engine.pruning import ActivationFilterPruner


class ActivationMeanRankFilterPruner(ActivationFilterPruner):
    """Removes the filters whose activation is smallest on average."""

    reads_weights = True

    def activation_statistic(self, activation: Tensor) -> Tensor:
        """Return the mean activation of each filter."""
        return activation.float().mean(dim=1)
