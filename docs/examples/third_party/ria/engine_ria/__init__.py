"""RIA: weights relative to their row and their column, times what they are multiplied with.

Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models", ICLR 2024, section 3.
"""

from __future__ import annotations

from engine import Wrapper
from engine.calibration import LayerInputs, LayerResult, n_m_mask
from engine.pruning import PatternedPruner, prune_count, smallest_removed


class RIAPruner(PatternedPruner):
    """Removes, without training, the weights of a layer with the smallest of

    ``(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) ||X_j||_2 ^ exponent``.
    """

    exponent: float

    def calibrate_layer(
        self, wrapper: Wrapper, inputs: LayerInputs, sparsity: float
    ) -> LayerResult:
        """Return the mask of one layer; what is gone already goes first."""
        weight = inputs.weight().abs()
        rows, columns = weight.sum(-1, keepdim=True), weight.sum(-2, keepdim=True)
        relative = weight / rows.clamp(min=1e-30) + weight / columns.clamp(min=1e-30)
        norms = inputs.square_norms().sqrt() ** self.exponent
        scores = relative * norms.unsqueeze(-2)
        scores.masked_fill_(self.gone(wrapper, inputs), -1.0)
        if self.removes is not None:
            mask = n_m_mask(scores, *self.removes)
        else:
            mask = smallest_removed(scores, prune_count(scores.numel(), sparsity))
        return LayerResult(mask=inputs.restored(mask))
