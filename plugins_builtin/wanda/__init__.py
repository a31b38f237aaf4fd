"""Wanda: pruning by weights and activations, without training.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models",
arXiv 2306.11695, section 3.
"""

from __future__ import annotations

from torch import nn

from engine import Pruner, Wrapper
from engine.calibration import LayerInputs, LayerResult, has_rows, n_m_mask, pattern_of
from engine.pruning import prune_count, smallest_in_rows


class WandaPruner(Pruner):
    """Removes of each output's weights those of smallest ``|W_ij| ||X_j||_2`` (eq. 1)."""

    one_shot = True
    pattern: str | None

    def check_layer(self, module: nn.Module) -> str | None:
        """Return why a layer's inputs cannot be told, or None."""
        return None if has_rows(module) else "it is no linear layer and no plain convolution"

    def calibrate_layer(
        self, wrapper: Wrapper, inputs: LayerInputs, sparsity: float
    ) -> LayerResult:
        """Return the mask, compared within each row: what is gone already goes first."""
        weight = inputs.weight()
        scores = weight.abs() * inputs.square_norms().sqrt().unsqueeze(-2)
        pattern = pattern_of(self.pattern)
        if pattern is not None:
            return LayerResult(mask=inputs.restored(n_m_mask(scores, *pattern)))
        count = prune_count(weight.numel(), sparsity)
        return LayerResult(mask=inputs.restored(smallest_in_rows(scores, count)))
