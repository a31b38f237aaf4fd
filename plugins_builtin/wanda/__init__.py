"""Wanda: pruning by weights and activations, without training.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models",
arXiv 2306.11695, section 3.
"""

from __future__ import annotations

from engine import Wrapper
from engine.calibration import LayerInputs, LayerResult, n_m_mask
from engine.pruning import PatternedPruner, prune_count, smallest_in_rows


class WandaPruner(PatternedPruner):
    """Removes of each output's weights those of smallest ``|W_ij| ||X_j||_2`` (eq. 1)."""

    def calibrate_layer(
        self, wrapper: Wrapper, inputs: LayerInputs, sparsity: float
    ) -> LayerResult:
        """Return the mask, compared within each row: what is gone already goes first."""
        weight = inputs.weight()
        scores = weight.abs() * inputs.square_norms().sqrt().unsqueeze(-2)
        scores.masked_fill_(self.gone(wrapper, inputs), -1.0)
        if self.removes is not None:
            return LayerResult(mask=inputs.restored(n_m_mask(scores, *self.removes)))
        count = prune_count(weight.numel(), sparsity)
        return LayerResult(mask=inputs.restored(smallest_in_rows(scores, count)))
